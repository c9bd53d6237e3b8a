"""What the people who run the service ask: how it is, and a checkpoint now."""

import time
from dataclasses import dataclass
from datetime import UTC, datetime

import psycopg
from psycopg_pool import ConnectionPool
from redis import Redis
from redis.exceptions import RedisError

from tallyboard_server.checkpointer import Checkpointer, CheckpointResult, PartitionFenced
from tallyboard_server.errors import DeadlineExceeded, Unavailable
from tallyboard_server.postgres.partitions import PartitionRow, partition_states
from tallyboard_server.postgres.pool import BoundedConnection, postgres_unavailable
from tallyboard_server.redis.fences import Fences
from tallyboard_server.redis.keys import dirty_key, incarnation_key
from tallyboard_server.settings import Settings, mask_url


@dataclass(frozen=True)
class StoreState:
    """One store: whether it answers, its version, or what it said instead."""

    name: str
    address: str
    available: bool
    version: str = ""
    detail: str = ""


@dataclass(frozen=True)
class PartitionState:
    """One partition: whether it takes writes, and what is not in Postgres yet."""

    partition: int
    open: bool
    dirty_keys: int
    checkpointed_at: datetime | None


@dataclass(frozen=True)
class ServiceState:
    """The whole; `checkpoint_lag` is in seconds, None while Postgres is away."""

    stores: list[StoreState]
    partitions: list[PartitionState]
    checkpoint_lag: float | None


class Operations:
    """Answers for one worker.

    Args:
        redis: a client that does not repeat commands.
        pool: connections to Postgres.
        fences: the incarnations this worker expects.
    """

    def __init__(
        self,
        redis: Redis,
        pool: ConnectionPool[BoundedConnection],
        fences: Fences,
        settings: Settings,
    ) -> None:
        self._redis = redis
        self._pool = pool
        self._fences = fences
        self._settings = settings

    def state(self) -> ServiceState:
        """The state now; a store that is away is part of the answer, not an error."""
        redis, found = self._redis_state()
        postgres, rows = self._postgres_state()
        times = {row.partition: row.checkpointed_at for row in rows}
        partitions = []
        for partition in range(self._settings.partitions):
            incarnation, dirty = found.get(partition, (None, 0))
            expected = self._fences.expected(partition)
            is_open = expected is not None and incarnation == expected
            partitions.append(PartitionState(partition, is_open, dirty, times.get(partition)))
        known = [moment for moment in times.values() if moment is not None]
        lag = (datetime.now(UTC) - min(known)).total_seconds() if known else None
        return ServiceState([redis, postgres], partitions, lag)

    def checkpoint(self, deadline: float, partitions: list[int]) -> CheckpointResult:
        """A checkpoint of some partitions, or of all if none is named.

        Raises:
            Unavailable: a store or a partition is away.
            DeadlineExceeded: not all of it was done in time.
        """
        checkpointer = Checkpointer(self._redis, self._pool, self._settings.partitions)
        try:
            with postgres_unavailable():
                if not partitions:
                    result = checkpointer.checkpoint_all(deadline)
                    if result.unfinished:
                        raise DeadlineExceeded("not all partitions were copied in time; try again")
                    return result
                return _checkpoint_some(checkpointer, sorted(set(partitions)), deadline)
        except RedisError as error:
            raise Unavailable("Redis does not answer; try again later") from error

    def _redis_state(self) -> tuple[StoreState, dict[int, tuple[str | None, int]]]:
        address = mask_url(self._settings.redis_url)
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.info("server")
        for partition in range(self._settings.partitions):
            pipeline.get(incarnation_key(partition))
            pipeline.scard(dirty_key(partition))
        try:
            info, *replies = pipeline.execute()
        except RedisError as error:
            return StoreState("redis", address, False, detail=str(error)), {}
        found = {}
        for partition, (incarnation, dirty) in enumerate(
            zip(replies[::2], replies[1::2], strict=True)
        ):
            found[partition] = (incarnation.decode() if incarnation else None, dirty)
        return StoreState("redis", address, True, str(info["redis_version"])), found

    def _postgres_state(self) -> tuple[StoreState, list[PartitionRow]]:
        address = mask_url(self._settings.postgres_url)
        try:
            with self._pool.connection() as conn:
                version = conn.info.server_version
            rows = partition_states(self._pool)
        except (psycopg.Error, Unavailable) as error:
            return StoreState("postgres", address, False, detail=str(error)), []
        return StoreState("postgres", address, True, f"{version // 10000}.{version % 10000}"), rows


def _checkpoint_some(
    checkpointer: Checkpointer, partitions: list[int], deadline: float
) -> CheckpointResult:
    started = time.monotonic()
    counters = entries = 0
    for partition in partitions:
        if time.monotonic() > deadline:
            raise DeadlineExceeded("not all partitions were copied in time; try again")
        try:
            copied = checkpointer.checkpoint_partition(partition)
            counters += copied.counters
            entries += copied.entries
        except PartitionFenced as error:
            raise Unavailable(str(error), reason="PARTITION_UNAVAILABLE") from error
    seconds = time.monotonic() - started
    return CheckpointResult(counters, len(partitions), seconds, entries=entries)
