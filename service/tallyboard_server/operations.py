"""What the people who run the service ask: how it is, a checkpoint, a comparison, a rebuild."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from threading import Lock
from typing import Final, NamedTuple, Protocol

import psycopg
from redis import Redis
from redis.exceptions import RedisError

from tallyboard_server.checkpointer import Checkpointer, CheckpointResult, PartitionFenced
from tallyboard_server.errors import DeadlineExceeded, NotImplementedYet, Overloaded, Unavailable
from tallyboard_server.postgres.journal import count_batches
from tallyboard_server.postgres.partitions import PartitionRow, read_partitions
from tallyboard_server.postgres.pool import BoundedPool, postgres_unavailable
from tallyboard_server.postgres.tenants import TenantPage, list_tenants
from tallyboard_server.recovery.drift import note_drift
from tallyboard_server.recovery.findings import Verified
from tallyboard_server.recovery.verify import Verifier
from tallyboard_server.redis.fences import Fences
from tallyboard_server.redis.keys import dirty_key, in_flight_key, incarnation_key
from tallyboard_server.redis.nodes import RedisNodes
from tallyboard_server.redis.urls import address_of
from tallyboard_server.settings import Settings, postgres_address

# Up to here the batches of the journal are counted; above, their number is worked out.
_COUNTED_BATCHES: Final = 10_000
# Of the time that a question for the state has, what is left when Postgres does not answer.
_MOST_RESERVED: Final = 0.25
_SHARE_RESERVED: Final = 0.25


@dataclass(frozen=True)
class StoreState:
    """One store: whether it answers, its version, or what it said instead."""

    name: str
    address: str
    available: bool
    version: str = ""
    detail: str = ""


class Condition(Enum):
    """What a partition does; the values are the contract's names without their prefix."""

    UNKNOWN = "UNSPECIFIED"
    OPEN = "OPEN"
    CLOSED = "CLOSED"
    JOURNALING = "JOURNALING"
    REBUILDING = "REBUILDING"


@dataclass(frozen=True)
class PartitionState:
    """One partition: what it does, and what is not in Postgres yet."""

    partition: int
    condition: Condition
    dirty_keys: int
    checkpointed_at: datetime | None


@dataclass(frozen=True)
class ServiceState:
    """The whole.

    Attributes:
        checkpoint_lag: in seconds, 0 when nothing is left to copy, None while a store is away.
        journal_depth: batches in the journal, 0 while Postgres is away.
    """

    stores: list[StoreState]
    partitions: list[PartitionState]
    checkpoint_lag: float | None
    journal_depth: int = 0


class Rebuilt(Protocol):
    """What a rebuild of a partition loaded and applied, and how many seconds it took."""

    @property
    def counters(self) -> int:
        """Values of counters."""

    @property
    def entries(self) -> int:
        """Entries of leaderboards."""

    @property
    def batches(self) -> int:
        """Batches of the journal."""

    @property
    def seconds(self) -> float:
        """How long it took."""


#: Makes a partition anew until a deadline (of time.monotonic()). Raises Unavailable with
#: PARTITION_UNAVAILABLE when somebody else does so.
Rebuild = Callable[[int, float], Rebuilt]


class _Held(NamedTuple):
    """What Redis holds of a partition: its life, changed keys, and whether any is to be copied."""

    incarnation: str | None
    dirty: int
    has_changed: bool


_NOTHING: Final = _Held(None, 0, False)


@dataclass(frozen=True)
class _Found:
    """What Postgres says of itself, and of partitions; nothing of these while it is away."""

    store: StoreState
    rows: tuple[PartitionRow, ...] = ()
    journal_depth: int = 0


class Operations:
    """Answers for one worker.

    Args:
        nodes: clients that do not repeat commands.
        pool: connections to Postgres.
        fences: the incarnations this worker expects.
        verifier: compares the stores.
        rebuild: makes a partition anew; None where that can't be done.
    """

    def __init__(
        self,
        nodes: RedisNodes,
        pool: BoundedPool,
        fences: Fences,
        settings: Settings,
        verifier: Verifier,
        rebuild: Rebuild | None = None,
    ) -> None:
        self._nodes = nodes
        self._pool = pool
        self._fences = fences
        self._settings = settings
        self._verifier = verifier
        self._rebuild = rebuild
        self._journals = settings.redis_outage == "journal" or settings.journals_first
        # Either is heavy: one at a time a worker.
        self._verifying = Lock()
        self._rebuilding = Lock()

    def state(self, deadline: float) -> ServiceState:
        """The state now; a store that is away is part of the answer, not an error.

        Args:
            deadline: of time.monotonic(); some of the time is left for the answer.
        """
        redis, held = self._redis_state()
        left = max(0.0, deadline - time.monotonic())
        found = self._postgres_state(deadline - min(_MOST_RESERVED, left * _SHARE_RESERVED))
        rows = {row.partition: row for row in found.rows}
        partitions = []
        for number in range(self._settings.partitions):
            here, row = held.get(number, _NOTHING), rows.get(number)
            condition = self._condition(number, row, here.incarnation, number in held)
            at = None if row is None else row.checkpointed_at
            partitions.append(PartitionState(number, condition, here.dirty, at))
        lag = None
        if all(store.available for store in (*redis, found.store)):
            lag = _lag(rows[i].checkpointed_at for i in rows if held.get(i, _NOTHING).has_changed)
        return ServiceState([*redis, found.store], partitions, lag, found.journal_depth)

    def _condition(
        self, number: int, row: PartitionRow | None, held: str | None, is_redis_there: bool
    ) -> Condition:
        """What a partition does, from what Postgres says of it and what Redis holds."""
        if row is not None and row.state != Condition.OPEN.value:
            return Condition(row.state)
        if not is_redis_there:
            if row is None:
                return Condition.UNKNOWN
            # What workers do then.
            return Condition.JOURNALING if self._journals else Condition.CLOSED
        expected = self._fences.expected(number) if row is None else row.incarnation
        is_open = expected is not None and held == expected
        return Condition.OPEN if is_open else Condition.CLOSED

    def checkpoint(self, deadline: float, partitions: list[int]) -> CheckpointResult:
        """A checkpoint of some partitions, or of all if none is named.

        Raises:
            Unavailable: a store or a partition is away.
            DeadlineExceeded: not all of it was done in time.
        """
        checkpointer = Checkpointer(self._nodes, self._pool, self._settings.partitions)
        with _stores_unavailable():
            if not partitions:
                result = checkpointer.checkpoint_all(deadline)
                left_out = sorted({*result.fenced, *result.older})
                if left_out:
                    named = ", ".join(map(str, left_out))
                    raise Unavailable(
                        "Redis or Postgres doesn't have this life of partitions that were not"
                        f" copied: {named}",
                        reason="PARTITION_UNAVAILABLE",
                    )
                if result.away:
                    named = ", ".join(map(str, result.away))
                    raise Unavailable(f"Redis does not answer for partitions {named}")
                if result.unfinished:
                    raise DeadlineExceeded("not all partitions were copied in time; try again")
                return result
            return _checkpoint_some(checkpointer, sorted(set(partitions)), deadline)

    def verify(
        self, partitions: Sequence[int], most: int, pause: Callable[[], None]
    ) -> Iterator[Verified]:
        """Compares the stores; see Verifier.verify. No partition named: all.

        Raises:
            Unavailable: a store or a partition is away.
            Overloaded: this worker is at it already.
        """
        with (
            _alone(self._verifying, "a verification is under way here; try again later"),
            _stores_unavailable(),
        ):
            drift = 0
            numbers = partitions or range(self._settings.partitions)
            for result in self._verifier.verify(numbers, most, pause):
                drift += result.difference_count
                yield result
            if len(numbers) == self._settings.partitions:
                note_drift(drift)

    def rebuild(self, partition: int, deadline: float) -> Rebuilt:
        """Makes a partition of Redis anew from Postgres.

        Raises:
            Unavailable: a store is away, or somebody else works on the partition.
            Overloaded: this worker is rebuilding already.
        """
        if self._rebuild is None:
            raise NotImplementedYet("partitions can't be rebuilt by this version")
        with (
            _alone(self._rebuilding, "a rebuild is under way here; try again later"),
            _stores_unavailable(),
        ):
            return self._rebuild(partition, deadline)

    def tenants(self, page_size: int, cursor: str | None, deadline: float) -> TenantPage:
        """The tenants that have data, page by page.

        Raises:
            InvalidArgument: PAGE_INVALID for the cursor.
            Unavailable: Postgres is away.
            DeadlineExceeded: it has not answered by then, of time.monotonic().
        """
        with postgres_unavailable():
            return list_tenants(self._pool, page_size, cursor, deadline)

    def _redis_state(self) -> tuple[list[StoreState], dict[int, _Held]]:
        """Each node, and what those that answer hold of their partitions."""
        states, found = [], dict[int, _Held]()
        layout = self._nodes.topology.layout
        for node in layout.nodes:
            address = address_of(node)
            try:
                version, held = _ask_node(self._nodes.at(node), layout.partitions_of(node))
            except RedisError as error:
                states.append(StoreState("redis", address, False, detail=str(error)))
            else:
                states.append(StoreState("redis", address, True, version))
                found |= held
        return states, found

    def _postgres_state(self, deadline: float) -> _Found:
        address = postgres_address(self._settings.postgres_url)
        try:
            with self._pool.until(deadline) as conn:
                version = conn.info.server_version
                rows, depth = read_partitions(conn), count_batches(conn, _COUNTED_BATCHES)
        except (psycopg.Error, Unavailable) as error:
            return _Found(StoreState("postgres", address, False, detail=str(error)))
        said = f"{version // 10000}.{version % 10000}"
        return _Found(StoreState("postgres", address, True, said), tuple(rows), depth)


def _ask_node(node: Redis, partitions: Sequence[int]) -> tuple[str, dict[int, _Held]]:
    """The node's version, and what it holds."""
    pipeline = node.pipeline(transaction=False)
    pipeline.info("server")
    for partition in partitions:
        pipeline.get(incarnation_key(partition))
        # Keys go from dirty to in flight to Postgres: looking in this order misses none.
        pipeline.scard(dirty_key(partition))
        pipeline.scard(in_flight_key(partition))
    info, *replies = pipeline.execute()
    found = {}
    for partition, incarnation, dirty, in_flight in zip(
        partitions, replies[::3], replies[1::3], replies[2::3], strict=True
    ):
        name = incarnation.decode() if incarnation else None
        found[partition] = _Held(name, dirty, bool(dirty or in_flight))
    return str(info["redis_version"]), found


def _lag(checkpointed: Iterable[datetime]) -> float:
    """Seconds since the oldest of these checkpoints of partitions that have changed since."""
    oldest = min(checkpointed, default=None)
    return 0.0 if oldest is None else max(0.0, (datetime.now(UTC) - oldest).total_seconds())


@contextmanager
def _alone(lock: Lock, otherwise: str) -> Iterator[None]:
    """Holds the lock, if nobody has it."""
    if not lock.acquire(blocking=False):
        raise Overloaded(otherwise)
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _stores_unavailable() -> Iterator[None]:
    """Turns what the clients of the stores raise into `Unavailable`."""
    try:
        with postgres_unavailable():
            yield
    except RedisError as error:
        raise Unavailable("Redis does not answer; try again later") from error


def _checkpoint_some(
    checkpointer: Checkpointer, partitions: list[int], deadline: float
) -> CheckpointResult:
    started = time.monotonic()
    counters = entries = changed = 0
    for partition in partitions:
        if time.monotonic() > deadline:
            raise DeadlineExceeded("not all partitions were copied in time; try again")
        try:
            copied = checkpointer.checkpoint_partition(partition, deadline=deadline)
            counters += copied.counters
            entries += copied.entries
            changed += bool(copied.counters or copied.entries)
        except PartitionFenced as error:
            raise Unavailable(str(error), reason="PARTITION_UNAVAILABLE") from error
    seconds = time.monotonic() - started
    return CheckpointResult(counters, changed, seconds, entries=entries)
