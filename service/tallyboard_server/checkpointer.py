"""Copies what changed in Redis to Postgres, partition by partition.

Keys are taken in Redis under an id, written in one Postgres transaction that holds the
partition's lock, and only then forgotten. Whoever dies in between leaves them for the next one.
"""

import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import resources
from typing import Any, Final

import psycopg
import structlog
from prometheus_client import Counter, Histogram
from psycopg_pool import ConnectionPool
from redis import Redis

from tallyboard_server.postgres.checkpoints import (
    ShardValue,
    lock_partition,
    mark_checkpointed,
    write_values,
)
from tallyboard_server.postgres.pool import BoundedConnection
from tallyboard_server.redis.keys import (
    checkpoint_id_key,
    dirty_key,
    in_flight_key,
    incarnation_key,
    parse_counter_key,
)

STEP: Final = 5_000
LOCK_WAIT: Final = 5.0
_INT64: Final = range(-(2**63), 2**63)

_SECONDS = Histogram(
    "tallyboard_checkpoint_seconds",
    "Seconds that a checkpoint of all partitions took.",
    buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30),
)
_KEYS = Counter("tallyboard_checkpoint_keys", "Keys that checkpoints copied to Postgres.")
_UNREADABLE = Counter(
    "tallyboard_checkpoint_unreadable_keys", "Keys that a checkpoint could not understand."
)
_log = structlog.get_logger(__name__)


class PartitionFenced(Exception):
    """Redis holds another life of the partition than Postgres follows, or none, or Postgres
    doesn't know the partition; nothing was copied."""


@dataclass(frozen=True)
class CheckpointResult:
    """What a checkpoint of all partitions did.

    `counters` is the number of keys copied, `partitions` of how many partitions. `fenced` ones
    can't be copied (see PartitionFenced); `unfinished` ones were held by somebody else, changed
    faster than they were copied, or were left because time ran out.
    """

    counters: int
    partitions: int
    seconds: float
    fenced: tuple[int, ...] = ()
    unfinished: tuple[int, ...] = ()


@dataclass(frozen=True)
class _Step:
    """What checkpoint.lua took: values as of `read_at`, and how many dirty keys it left."""

    read_at: datetime
    left: int
    values: list[ShardValue]
    taken: int


@dataclass(frozen=True)
class _Survey:
    """What Redis says of the partitions: `clean` ones have nothing to copy as of `at`."""

    at: datetime
    clean: dict[int, str]
    changed: list[int]
    empty: list[int]


class Checkpointer:
    """Checkpoints of a number of partitions; safe to use from several threads and processes.

    Its methods raise redis.RedisError and psycopg.Error when a store is away; whatever was taken
    by then is copied by the next checkpoint.

    Args:
        redis: a client that does not repeat commands; its timeout bounds each wait.
        pool: connections with timeouts; one is used at a time.
        partitions: how many there are.
    """

    def __init__(
        self, redis: Redis, pool: ConnectionPool[BoundedConnection], partitions: int
    ) -> None:
        folder = resources.files("tallyboard_server.redis") / "lua"
        self._take = redis.register_script((folder / "checkpoint.lua").read_text())
        self._forget = redis.register_script((folder / "checkpointed.lua").read_text())
        self._redis = redis
        self._pool = pool
        self._partitions = partitions

    def checkpoint_all(self, deadline: float | None = None) -> CheckpointResult:
        """Copies all that changed before the call; the cost follows what changed.

        Args:
            deadline: of time.monotonic(); no step is begun after it.
        """
        started = time.monotonic()
        survey = self._survey()
        counters, done = 0, 0
        fenced, unfinished = list(survey.empty), []
        for partition in survey.changed:
            try:
                copied, finished = self._checkpoint(partition, STEP, deadline)
            except PartitionFenced:
                fenced.append(partition)
                continue
            except psycopg.errors.LockNotAvailable:
                unfinished.append(partition)
                continue
            counters += copied
            done += copied > 0
            if not finished:
                unfinished.append(partition)
        if survey.clean:
            with self._pool.connection() as conn:
                mark_checkpointed(conn, survey.clean, survey.at)
        seconds = time.monotonic() - started
        _SECONDS.observe(seconds)
        return CheckpointResult(counters, done, seconds, tuple(fenced), tuple(unfinished))

    def checkpoint_partition(self, partition: int, limit: int = STEP) -> int:
        """Copies all that changed in one partition; gives the number of keys.

        Args:
            partition: which one.
            limit: most keys a step: one script call and one transaction.

        Raises:
            PartitionFenced: see there.
            psycopg.errors.LockNotAvailable: somebody else held the partition for 5 s.
        """
        return self._checkpoint(partition, limit, None)[0]

    def _checkpoint(self, partition: int, limit: int, deadline: float | None) -> tuple[int, bool]:
        """Steps until nothing is left, or more came than there was at first."""
        copied, budget = 0, None
        while deadline is None or time.monotonic() < deadline:
            step = self._step(partition, limit)
            copied += step.taken
            if step.left == 0:
                return copied, True
            # Twice what was there: a partition that changes all the time must not hold the rest.
            budget = copied + 2 * step.left + limit if budget is None else budget
            if copied >= budget:
                break
        return copied, False

    def _step(self, partition: int, limit: int) -> _Step:
        checkpoint = uuid.uuid4().hex
        with self._pool.connection() as conn:
            incarnation = lock_partition(conn, partition, LOCK_WAIT)
            if incarnation is None:
                raise PartitionFenced(f"Postgres doesn't know partition {partition}")
            step = self._take_keys(partition, checkpoint, limit, incarnation)
            write_values(conn, partition, step.values, step.read_at)
            if step.left == 0:
                mark_checkpointed(conn, {partition: incarnation}, step.read_at)
        if step.taken:
            self._forget([in_flight_key(partition), checkpoint_id_key(partition)], [checkpoint])
        _KEYS.inc(step.taken)
        return step

    def _take_keys(self, partition: int, checkpoint: str, limit: int, incarnation: str) -> _Step:
        keys = [
            dirty_key(partition),
            in_flight_key(partition),
            checkpoint_id_key(partition),
            incarnation_key(partition),
        ]
        answer: Any = self._take(keys, [checkpoint, limit, incarnation])
        if answer[0] == b"fenced":
            raise PartitionFenced(f"Redis holds another life of partition {partition}")
        _, seconds, microseconds, left, taken, values = answer
        read_at = datetime.fromtimestamp(int(seconds), UTC).replace(microsecond=int(microseconds))
        return _Step(read_at, left, list(_parse(taken, values)), len(taken))

    def _survey(self) -> _Survey:
        """Which partitions have something to copy, without taking it."""
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.execute_command("TIME")
        for i in range(self._partitions):
            # Keys go from dirty to in flight to Postgres: looking in this order misses none.
            pipeline.execute_command("SCARD", dirty_key(i))
            pipeline.execute_command("SCARD", in_flight_key(i))
            pipeline.execute_command("GET", incarnation_key(i))
        (seconds, microseconds), *answers = pipeline.execute()
        at = datetime.fromtimestamp(seconds, UTC).replace(microsecond=microseconds)
        clean: dict[int, str] = {}
        changed, empty = [], []
        triples = zip(answers[0::3], answers[1::3], answers[2::3], strict=True)
        for i, (dirty, in_flight, incarnation) in enumerate(triples):
            if incarnation is None:
                empty.append(i)
            elif dirty or in_flight:
                changed.append(i)
            else:
                clean[i] = incarnation.decode()
        return _Survey(at, clean, changed, empty)


def _parse(keys: Sequence[bytes], values: Sequence[bytes | None]) -> Iterator[ShardValue]:
    for key, value in zip(keys, values, strict=True):
        try:
            yield _parse_one(key, value)
        except ValueError:
            # One such key must not keep the others from Postgres for ever.
            _UNREADABLE.inc()
            _log.error("A counter's key can't be read.", key=repr(key), value=repr(value))


def _parse_one(key: bytes, value: bytes | None) -> ShardValue:
    kind, _, tenant, counter = parse_counter_key(key)
    if "\0" in tenant or "\0" in counter:
        raise ValueError("Postgres has no NUL")
    wide = kind == "w"
    if value is None:
        return ShardValue(tenant, counter, wide, None, False)
    if wide and value == b"x":
        return ShardValue(tenant, counter, wide, 0, True)
    frozen = not wide and value.startswith(b"w")
    number = int(value[1:] if frozen else value)
    if number not in _INT64:
        raise ValueError("more than 64 bits")
    return ShardValue(tenant, counter, wide, number, frozen)
