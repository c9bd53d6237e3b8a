"""Compares Redis with Postgres, partition by partition, while traffic runs.

Values are compared in pages, without a lock. What differs is looked at once more in one step in
Redis: what has changed since the last checkpoint is merely newer. What has not must be in
Postgres, and is compared a last time under the partition's lock, so that nothing moves meanwhile.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Final

import psycopg
from prometheus_client import Counter

from tallyboard_server.checkpointer import Checkpointer, PartitionFenced
from tallyboard_server.errors import Unavailable
from tallyboard_server.leaderboards.service import now_micros
from tallyboard_server.postgres.pool import BoundedPool
from tallyboard_server.recovery.counter_check import CounterCheck
from tallyboard_server.recovery.entry_check import EntryCheck
from tallyboard_server.recovery.findings import Verified
from tallyboard_server.recovery.partition import OpenPartition, find_open, unavailable
from tallyboard_server.redis.looks import Looks
from tallyboard_server.redis.nodes import RedisNodes

DEFAULT_DIFFERENCES: Final = 100

_VALUES = Counter(
    "tallyboard_verified_values", "Values of counters and entries that verifications compared."
)


class Verifier:
    """Comparisons; safe to use from several threads and processes.

    Its methods raise redis.RedisError and psycopg.Error when a store is away.

    Args:
        nodes: clients that do not repeat commands.
        pool: connections with timeouts; each comparison uses one at a time.
        checkpointer: of the same stores.
        partitions: how many there are.
        clock: the time now in µs since the epoch, by which windows close and end.
    """

    def __init__(
        self,
        nodes: RedisNodes,
        pool: BoundedPool,
        checkpointer: Checkpointer,
        partitions: int,
        clock: Callable[[], int] = now_micros,
    ) -> None:
        looks = Looks(nodes)
        self._pool = pool
        self._checkpointer = checkpointer
        self._partitions = partitions
        self._counters = CounterCheck(pool, looks)
        self._entries = EntryCheck(pool, looks, partitions, clock)

    def verify(
        self,
        partitions: Sequence[int],
        most: int = DEFAULT_DIFFERENCES,
        pause: Callable[[], None] = lambda: None,
    ) -> Iterator[Verified]:
        """Compares partitions one after the other, and gives what it found as it goes.

        Args:
            partitions: each at most once.
            most: differences to keep a partition; all are counted.
            pause: called every few milliseconds; what it raises ends the verification.

        Raises:
            Unavailable: PARTITION_UNAVAILABLE, after all others: at least one partition isn't
                open, or somebody else works on it.
        """
        found = {partition: Verified(partition, most) for partition in partitions}
        for _ in self.search(found):
            pause()
        problem: Unavailable | None = None
        for result in found.values():
            for _ in self.compare(result):
                pause()
            if result.problem is None:
                yield result
            problem = problem or result.problem
        if problem is not None:
            raise problem

    def search(self, found: dict[int, Verified]) -> Iterator[None]:
        """Looks for counters that only Redis has, and for wrong totals in Postgres, step by step.

        Each is one walk over everything, however many partitions are asked for.

        Args:
            found: by partition, what takes the differences.
        """
        partitions: dict[int, OpenPartition] = {}
        for number, result in found.items():
            try:
                partitions[number] = self._open(number)
            except Unavailable as error:
                result.problem = error
        if partitions:
            yield from self._counters.search(partitions, found)
            yield from self._counters.compare_totals(found, self._partitions)

    def compare(self, found: Verified) -> Iterator[None]:
        """Compares what Postgres has in a partition, and all entries, step by step.

        Adds to `found`; if it has a problem, nothing is compared.
        """
        if found.problem is not None:
            return
        before = found.counters + found.entries
        try:
            partition = self._open(found.partition)
            self._checkpoint(found.partition)
            yield
            yield from self._counters.compare(partition, found)
            yield from self._entries.compare(partition, found)
        except Unavailable as error:
            found.problem = error
        finally:
            _VALUES.inc(found.counters + found.entries - before)

    def _open(self, number: int) -> OpenPartition:
        with self._pool.connection() as conn:
            return find_open(conn, number)

    def _checkpoint(self, number: int) -> None:
        try:
            self._checkpointer.checkpoint_partition(number)
        except PartitionFenced:
            raise unavailable(number, "Redis doesn't hold the data that Postgres follows") from None
        except psycopg.errors.LockNotAvailable:
            raise unavailable(number, "somebody else works on it") from None
