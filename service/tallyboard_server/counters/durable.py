"""Counts from Postgres, journal included, where Redis can't be read."""

import time
from collections.abc import Sequence

import structlog

from tallyboard_server.counters.loads import Name, SharedLoads
from tallyboard_server.counters.merge import in_range
from tallyboard_server.counters.model import Count, Fallback, Source
from tallyboard_server.counters.sharding import Sharding
from tallyboard_server.errors import TallyboardError, Unavailable
from tallyboard_server.postgres.durable import partition_ages, read_counts
from tallyboard_server.recovery.durable_reads import DurableReads, as_away

_log = structlog.get_logger(__name__)


class DurableCounts:
    """Reads for one worker. Deadlines are values of `time.monotonic()`.

    Args:
        ttl: seconds that a count is kept, whatever its `as_of`.
        max_entries: counts kept in memory; the oldest go first.
    """

    def __init__(
        self, reads: DurableReads, sharding: Sharding, *, ttl: float, max_entries: int
    ) -> None:
        self.reads = reads
        self._sharding = sharding
        self._ttl = ttl
        self._max_entries = max_entries
        # When each was read, and what. Read without a lock, changed under that of the loads.
        self._cache: dict[Name, tuple[float, Count]] = {}
        self._loads = SharedLoads(self._keep)

    def instead(
        self,
        error: TallyboardError,
        tenant: str,
        counters: Sequence[str],
        max_staleness: float | None,
        fallback: Fallback,
        deadline: float,
        *,
        anew: bool = False,
    ) -> dict[str, Count]:
        """Counts of different counters, where Redis gave an error.

        Args:
            anew: reads them now, so that what was committed before the call is in them. What is
                kept, or what others are loading, may have been read before that.

        Raises:
            TallyboardError: the error, if Postgres may not answer, or has nothing fresh enough; or
                why Postgres can't.
        """
        reads = self.reads
        if not reads.may_answer(error, fallback, max_staleness):
            raise error
        begun = time.time()

        def will_do(count: Count) -> bool:
            # What is too old now is no better a moment later, unless all is there as of now.
            is_good = reads.is_fresh(count.as_of, fallback, max_staleness, begun)
            return is_good or not reads.complete

        found: dict[str, Count] = {}
        if anew:
            found = self._read(tenant, list(counters), deadline)
        for counter in () if anew else counters:
            kept = self._cache.get((tenant, counter))
            if kept is not None and kept[0] >= begun - self._ttl and will_do(kept[1]):
                found[counter] = kept[1]
        missing = [counter for counter in counters if counter not in found]
        if missing:
            found |= self._loads.load(
                tenant,
                missing,
                deadline,
                lambda names: self._read(tenant, names, deadline),
                will_do,
            )
        oldest = min(count.as_of for count in found.values())
        if not reads.is_fresh(oldest, fallback, max_staleness, begun):
            raise as_away(error) from error
        return found

    def _keep(self, tenant: str, count: Count) -> None:
        cache = self._cache
        cache.pop((tenant, count.counter), None)
        while len(cache) >= self._max_entries:
            del cache[next(iter(cache))]
        cache[tenant, count.counter] = (time.time(), count)

    def _read(self, tenant: str, counters: list[str], deadline: float) -> dict[str, Count]:
        now = time.time()
        with self.reads.reading(deadline) as conn:
            ages = {} if self.reads.complete else partition_ages(conn)
            totals = read_counts(conn, tenant, counters)
        counts = {}
        for counter, (value, exists) in totals.items():
            if not in_range(value):
                _log.error(
                    "The journal takes a counter out of its range.", tenant=tenant, counter=counter
                )
                raise Unavailable(f"the count of {counter!r} is not known until Redis is back")
            as_of = now
            if not self.reads.complete:
                places = self._sharding.all_shards(tenant, counter)
                as_of = min(ages[p].checkpointed_at if p in ages else 0.0 for p, _ in places)
            counts[counter] = Count(counter, value, exists, as_of, Source.DURABLE)
        return counts
