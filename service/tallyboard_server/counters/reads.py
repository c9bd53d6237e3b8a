"""Reads of counts: exact ones ask Redis, others may come from memory or the shared aggregate.

A miss is loaded once, however many callers wait for it. Redis holds an aggregate of each counter
that is read, so that a second worker does not add up the shards again.
"""

import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

from tallyboard_server.counters.model import Count, Source
from tallyboard_server.counters.sharding import Sharding
from tallyboard_server.errors import DeadlineExceeded, TallyboardError
from tallyboard_server.redis.keys import aggregate_key, wide_key
from tallyboard_server.redis.store import RedisStore

_Name = tuple[str, str]


@dataclass
class _Load:
    """One load under way: `done` is set when `count` or `error` is there."""

    done: threading.Event = field(default_factory=threading.Event)
    count: Count | None = None
    error: TallyboardError | None = None


class CountReader:
    """Reads counts for one worker.

    Args:
        ttl: seconds that a shared aggregate lives in Redis.
        max_entries: counts kept in memory; the oldest go first.
    """

    def __init__(
        self, store: RedisStore, sharding: Sharding, *, ttl: float, max_entries: int
    ) -> None:
        self._store = store
        self._sharding = sharding
        self._ttl_ms = max(1, int(ttl * 1000))
        self._max_entries = max_entries
        self._cache: dict[_Name, Count] = {}  # read without the lock, changed under it
        self._loads: dict[_Name, _Load] = {}
        self._lock = threading.Lock()  # guards _cache's changes and _loads

    def cached(self, tenant: str, counter: str, max_staleness: float) -> Count | None:
        """The count in memory, if it is fresh enough."""
        count = self._cache.get((tenant, counter))
        if count is not None and count.as_of >= time.time() - max_staleness:
            return count
        return None

    def get(
        self, tenant: str, counters: Sequence[str], max_staleness: float, deadline: float
    ) -> list[Count]:
        """Counts that are at most `max_staleness` seconds old, in the order of the names.

        Raises:
            TallyboardError: Redis is away, or the deadline passed.
        """
        found: dict[str, Count] = {}
        missing = []
        for counter in counters:
            count = self.cached(tenant, counter, max_staleness)
            if count is None:
                missing.append(counter)
            else:
                found[counter] = count
        if missing:
            found |= self._load(tenant, list(dict.fromkeys(missing)), max_staleness, deadline)
        return [found[counter] for counter in counters]

    def exact(self, tenant: str, counters: Sequence[str], deadline: float) -> list[Count]:
        """Counts as Redis has them now, in the order of the names."""
        as_of = time.time()
        distinct = list(dict.fromkeys(counters))
        shards = [shard for name in distinct for shard in self._sharding.all_shards(tenant, name)]
        values = self._store.get([key for _, key in shards], deadline, {p for p, _ in shards})
        counts, wide, at = {}, [], 0
        for counter in distinct:
            mine = values[at : at + self._sharding.read_shards(counter)]
            at += len(mine)
            if any(value is not None and value.startswith(b"w") for value in mine):
                wide.append(counter)
            total = sum(int(value.lstrip(b"w")) for value in mine if value is not None)
            exists = any(value is not None for value in mine)
            counts[counter] = Count(counter, total, exists, as_of, Source.LIVE)
        if wide:
            counts |= self._wide(tenant, wide, counts, deadline)
        return [counts[counter] for counter in counters]

    def _wide(
        self, tenant: str, counters: list[str], counts: dict[str, Count], deadline: float
    ) -> dict[str, Count]:
        """Totals of wide counters; one that is just becoming wide is still the sum of shards."""
        keys = [wide_key(self._sharding.home(tenant, name), tenant, name) for name in counters]
        totals = {}
        for counter, value in zip(counters, self._store.get(keys, deadline), strict=True):
            if value == b"x":
                totals[counter] = replace(counts[counter], value=0, exists=False)
            elif value is not None:
                totals[counter] = replace(counts[counter], value=int(value), exists=True)
        return totals

    def _load(
        self, tenant: str, counters: list[str], max_staleness: float, deadline: float
    ) -> dict[str, Count]:
        mine: dict[str, _Load] = {}
        others: dict[str, _Load] = {}
        with self._lock:
            for counter in counters:
                load = self._loads.get((tenant, counter))
                if load is None:
                    mine[counter] = self._loads[tenant, counter] = _Load()
                else:
                    others[counter] = load
        oldest = time.time() - max_staleness
        counts = self._load_mine(tenant, mine, max_staleness, deadline) if mine else {}
        for counter, load in others.items():
            if not load.done.wait(max(0.0, deadline - time.monotonic())):
                raise DeadlineExceeded("the count was not loaded before the deadline of the call")
            if load.count is not None and load.count.as_of >= oldest:
                counts[counter] = load.count
            elif load.count is None and not isinstance(load.error, DeadlineExceeded):
                raise load.error or TallyboardError("a load ended without a count")
        # Others asked for less, or had less time.
        left = [counter for counter in counters if counter not in counts]
        return counts | self._fetch(tenant, left, max_staleness, deadline) if left else counts

    def _load_mine(
        self, tenant: str, loads: dict[str, _Load], max_staleness: float, deadline: float
    ) -> dict[str, Count]:
        counts: dict[str, Count] = {}
        error: TallyboardError | None = None
        try:
            counts = self._fetch(tenant, list(loads), max_staleness, deadline)
            return counts
        except TallyboardError as caught:
            error = caught
            raise
        finally:
            with self._lock:
                for counter in loads:
                    del self._loads[tenant, counter]
                    if counter in counts:
                        self._keep(tenant, counts[counter])
            for counter, load in loads.items():
                load.count, load.error = counts.get(counter), error
                load.done.set()

    def _keep(self, tenant: str, count: Count) -> None:
        cache = self._cache
        cache.pop((tenant, count.counter), None)
        while len(cache) >= self._max_entries:
            del cache[next(iter(cache))]
        cache[tenant, count.counter] = count

    def _fetch(
        self, tenant: str, counters: list[str], max_staleness: float, deadline: float
    ) -> dict[str, Count]:
        keys = [aggregate_key(self._sharding.home(tenant, name), tenant, name) for name in counters]
        oldest = time.time() - max_staleness
        counts = {}
        for counter, value in zip(counters, self._store.get(keys, deadline), strict=True):
            count = _parse_aggregate(counter, value)
            if count is not None and count.as_of >= oldest:
                counts[counter] = count
        missing = [counter for counter in counters if counter not in counts]
        if missing:
            for count in self.exact(tenant, missing, deadline):
                self._share(tenant, count)
                counts[count.counter] = replace(count, source=Source.CACHE)
        return counts

    def _share(self, tenant: str, count: Count) -> None:
        key = aggregate_key(self._sharding.home(tenant, count.counter), tenant, count.counter)
        value = f"{count.value}:{int(count.exists)}:{count.as_of:.6f}"
        with suppress(TallyboardError):  # a favour to others: the count itself is there
            self._store.send(("SET", key, value, "PX", self._ttl_ms))


def _parse_aggregate(counter: str, value: bytes | None) -> Count | None:
    if value is None:
        return None
    total, exists, as_of = value.decode().split(":")
    return Count(counter, int(total), exists == "1", float(as_of), Source.CACHE)
