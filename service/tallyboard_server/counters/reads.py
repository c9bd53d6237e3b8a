"""Reads of counts: exact ones ask Redis, others may come from memory or the shared aggregate.

A miss is loaded once, however many callers wait for it. Redis holds an aggregate of each counter
that is read, so that a second worker does not add up the shards again.
"""

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

from tallyboard_server.counters.durable import DurableCounts
from tallyboard_server.counters.loads import Name, SharedLoads
from tallyboard_server.counters.model import Count, Fallback, Source
from tallyboard_server.counters.sharding import Sharding
from tallyboard_server.errors import DeadlineExceeded, TallyboardError, Unavailable
from tallyboard_server.redis.keys import aggregate_key, wide_key
from tallyboard_server.redis.store import RedisStore


class CountReader:
    """Reads counts for one worker.

    Args:
        ttl: seconds that a shared aggregate lives in Redis.
        max_entries: counts kept in memory; the oldest go first.
        durable: reads counts from Postgres where Redis can't be read.
    """

    def __init__(
        self,
        store: RedisStore,
        sharding: Sharding,
        *,
        ttl: float,
        max_entries: int,
        durable: DurableCounts | None = None,
    ) -> None:
        self._store = store
        self._sharding = sharding
        self._ttl_ms = max(1, int(ttl * 1000))
        self._max_entries = max_entries
        self._durable = durable
        # Read without a lock, changed under that of the loads.
        self._cache: dict[Name, Count] = {}
        self._loads = SharedLoads(self._keep)

    def cached(self, tenant: str, counter: str, max_staleness: float) -> Count | None:
        """The count in memory, if it is fresh enough."""
        count = self._cache.get((tenant, counter))
        if count is not None and count.as_of >= time.time() - max_staleness:
            return count
        return None

    def get(
        self,
        tenant: str,
        counters: Sequence[str],
        max_staleness: float | None,
        deadline: float,
        fallback: Fallback = Fallback.NEVER,
        *,
        anew: bool = False,
    ) -> list[Count]:
        """Counts that are fresh enough, in the order of the names.

        Args:
            max_staleness: seconds that they may be old; None asks Redis now.
            fallback: whether Postgres may answer where Redis can't.
            anew: whether Postgres is to be asked now, as behind a write that went there.

        Raises:
            TallyboardError: Redis is away, or the deadline passed.
        """
        found: dict[str, Count] = {}
        missing = list(dict.fromkeys(counters))
        if max_staleness is not None:
            for counter in counters:
                count = self.cached(tenant, counter, max_staleness)
                if count is not None:
                    found[counter] = count
            missing = [counter for counter in missing if counter not in found]
        if missing:
            found |= self._get(tenant, missing, max_staleness, deadline, fallback, anew)
        return [found[counter] for counter in counters]

    def _get(
        self,
        tenant: str,
        missing: list[str],
        max_staleness: float | None,
        deadline: float,
        fallback: Fallback,
        anew: bool,
    ) -> dict[str, Count]:
        durable, until = self._durable, deadline
        if durable is not None:
            until = durable.reads.live_deadline(fallback, max_staleness, deadline)
        try:
            if max_staleness is None:
                return {count.counter: count for count in self.exact(tenant, missing, until)}
            return self._load(tenant, missing, max_staleness, until)
        except (Unavailable, DeadlineExceeded) as error:
            if durable is None:
                raise
            return durable.instead(
                error, tenant, missing, max_staleness, fallback, deadline, anew=anew
            )

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
        homes = [self._sharding.home(tenant, name) for name in counters]
        keys = [wide_key(home, tenant, name) for home, name in zip(homes, counters, strict=True)]
        totals = {}
        values = self._store.get(keys, deadline, set(homes))
        for counter, value in zip(counters, values, strict=True):
            if value == b"x":
                totals[counter] = replace(counts[counter], value=0, exists=False)
            elif value is not None:
                totals[counter] = replace(counts[counter], value=int(value), exists=True)
        return totals

    def _keep(self, tenant: str, count: Count) -> None:
        cache = self._cache
        cache.pop((tenant, count.counter), None)
        while len(cache) >= self._max_entries:
            del cache[next(iter(cache))]
        cache[tenant, count.counter] = count

    def _load(
        self, tenant: str, counters: list[str], max_staleness: float, deadline: float
    ) -> dict[str, Count]:
        oldest = time.time() - max_staleness
        return self._loads.load(
            tenant,
            counters,
            deadline,
            lambda names: self._fetch(tenant, names, max_staleness, deadline),
            lambda count: count.as_of >= oldest,
        )

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
