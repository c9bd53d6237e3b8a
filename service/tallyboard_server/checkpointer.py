"""Copies what changed in Redis to Postgres, a few partitions at a time.

Keys are taken in Redis under an id, written in one Postgres transaction that holds the
partitions' locks, and only then forgotten. Whoever dies in between leaves them for the next one.
"""

import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import resources
from typing import Final, NamedTuple

import psycopg
import structlog
from prometheus_client import Counter, Histogram
from psycopg_pool import ConnectionPool
from redis import Redis

from tallyboard_server.leaderboards.checkpoints import TakenEntries, write_taken_entries
from tallyboard_server.postgres.checkpoints import (
    ShardValue,
    lock_partition,
    mark_checkpointed,
    try_lock_partitions,
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

# Most keys that one call of the script takes from a partition.
STEP: Final = 5_000
# What goes into one transaction. The shards of a counter are in several partitions, and its total
# is written once for all that are in the same transaction.
GROUP_KEYS: Final = 20_000
GROUP_PARTITIONS: Final = 64
LOCK_WAIT: Final = 5.0
_INT64: Final = range(-(2**63), 2**63)

_SECONDS = Histogram(
    "tallyboard_checkpoint_seconds",
    "Seconds that a checkpoint of all partitions took.",
    buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30),
)
_KEYS = Counter("tallyboard_checkpoint_keys", "Keys that checkpoints copied to Postgres.")
_ENTRIES = Counter(
    "tallyboard_checkpoint_entries", "Entries of leaderboards that checkpoints copied to Postgres."
)
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

    `counters` is the number of counters' keys copied, `entries` of entries of leaderboards,
    `partitions` of how many partitions. `fenced` ones
    can't be copied (see PartitionFenced); `unfinished` ones were held by somebody else, changed
    faster than they were copied, or were left because time ran out.
    """

    counters: int
    partitions: int
    seconds: float
    fenced: tuple[int, ...] = ()
    unfinished: tuple[int, ...] = ()
    entries: int = 0


class Copied(NamedTuple):
    """Keys of counters, and entries, that were copied from one partition."""

    counters: int
    entries: int


@dataclass(frozen=True)
class _Step:
    """What one transaction copied: by partition, keys and entries copied, and what is left.

    `entries_left` is None for a partition with so many dirty keys that nobody counted.
    """

    copied: dict[int, int]
    entries: dict[int, int]
    left: dict[int, int]
    entries_left: dict[int, int | None]
    fenced: list[int]
    busy: list[int]


@dataclass(frozen=True)
class _Taken:
    """What checkpoint.lua answered: what it took from each partition, and what it left."""

    read_at: datetime
    values: list[ShardValue] = field(default_factory=list)
    entries: list[TakenEntries] = field(default_factory=list)
    copied: dict[int, int] = field(default_factory=dict)
    copied_entries: dict[int, int] = field(default_factory=dict)
    left: dict[int, int] = field(default_factory=dict)
    entries_left: dict[int, int | None] = field(default_factory=dict)
    fenced: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class _Survey:
    """What Redis says of the partitions: `clean` ones have nothing to copy as of `at`."""

    at: datetime
    clean: dict[int, str]
    changed: dict[int, int]
    empty: list[int]


class Checkpointer:
    """Checkpoints of a number of partitions; safe to use from several threads and processes.

    Its methods raise redis.RedisError and psycopg.Error when a store is away; whatever was taken
    by then is copied by the next checkpoint.

    Args:
        redis: a client that does not repeat commands; its timeout bounds each wait.
        pool: connections with timeouts; each call uses one at a time.
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
        progress = _Progress(survey.changed)
        while progress.waiting and (deadline is None or time.monotonic() < deadline):
            group = progress.next_group()
            # A window of many entries is one dirty key: nobody knows yet how much there is.
            progress.add(self._step(group, min(STEP, GROUP_KEYS // len(group))))
        unfinished = set(progress.waiting) | progress.given_up
        for partition in sorted(progress.busy):
            # Whoever has it may have begun before this call: only our own turn is proof.
            try:
                finished = self._finish(partition, STEP, deadline)
                progress.copied[partition] += finished.counters
                progress.entries += finished.entries
            except PartitionFenced:
                progress.fenced.append(partition)
            except psycopg.errors.LockNotAvailable:
                unfinished.add(partition)
            except _Unfinished as left:
                progress.copied[partition] += left.done.counters
                progress.entries += left.done.entries
                unfinished.add(partition)
        if survey.clean:
            with self._pool.connection() as conn:
                mark_checkpointed(conn, survey.clean, survey.at)
        seconds = time.monotonic() - started
        _SECONDS.observe(seconds)
        return CheckpointResult(
            counters=sum(progress.copied.values()),
            entries=progress.entries,
            partitions=sum(copied > 0 for copied in progress.copied.values()),
            seconds=seconds,
            fenced=tuple(sorted([*survey.empty, *progress.fenced])),
            unfinished=tuple(sorted(unfinished)),
        )

    def checkpoint_partition(self, partition: int, limit: int = STEP) -> Copied:
        """Copies all that changed in one partition; gives how much that was.

        Args:
            partition: which one.
            limit: most keys a step: one script call and one transaction.

        Raises:
            PartitionFenced: see there.
            psycopg.errors.LockNotAvailable: somebody else held the partition for 5 s.
        """
        try:
            return self._finish(partition, limit, None)
        except _Unfinished as unfinished:
            return unfinished.done

    def _finish(self, partition: int, limit: int, deadline: float | None) -> Copied:
        """Steps through one partition, waiting for its lock, until nothing is left."""
        progress = _Progress({partition: 0})
        while progress.waiting and (deadline is None or time.monotonic() < deadline):
            progress.add(self._step([partition], limit, LOCK_WAIT))
        if progress.fenced:
            raise PartitionFenced(f"Redis or Postgres doesn't have this life of {partition}")
        done = Copied(progress.copied[partition], progress.entries)
        if progress.waiting or progress.given_up:
            raise _Unfinished(done)
        return done

    def _step(self, partitions: Sequence[int], limit: int, wait: float | None = None) -> _Step:
        """One transaction over some partitions; without `wait`, over those that are free."""
        checkpoint = uuid.uuid4().hex
        with self._pool.connection() as conn:
            if wait is None:
                incarnations, busy = try_lock_partitions(conn, partitions)
            else:
                incarnations, busy = lock_partition(conn, partitions[0], wait), []
            unknown = set(partitions) - set(busy) - set(incarnations)
            taken = self._take_keys(incarnations, checkpoint, limit)
            write_values(conn, taken.values, taken.read_at)
            write_taken_entries(conn, taken.entries, taken.read_at)
            finished = {i: incarnations[i] for i, left in taken.left.items() if left == 0}
            mark_checkpointed(conn, finished, taken.read_at)
        self._forget_keys(list(taken.copied), checkpoint)
        _KEYS.inc(sum(taken.copied.values()))
        _ENTRIES.inc(sum(taken.copied_entries.values()))
        return _Step(
            taken.copied,
            taken.copied_entries,
            taken.left,
            taken.entries_left,
            [*taken.fenced, *unknown],
            busy,
        )

    def _take_keys(self, incarnations: Mapping[int, str], checkpoint: str, limit: int) -> _Taken:
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.execute_command("TIME")
        for i, incarnation in incarnations.items():
            keys = [dirty_key(i), in_flight_key(i), checkpoint_id_key(i), incarnation_key(i)]
            self._take(keys, [checkpoint, limit, incarnation], client=pipeline)
        read_at, *answers = pipeline.execute()
        taken = _Taken(_time(*read_at))
        for i, answer in zip(incarnations, answers, strict=True):
            if answer[0] == b"fenced":
                taken.fenced.append(i)
                continue
            _, taken.left[i], entries_left, found, values, entries = answer
            taken.entries_left[i] = None if entries_left < 0 else entries_left
            taken.copied[i] = len(found)
            taken.copied_entries[i] = sum(len(members) for _, members, _ in entries)
            taken.values.extend(_parse(found, values))
            taken.entries.extend(TakenEntries(*window) for window in entries)
        return taken

    def _forget_keys(self, partitions: Sequence[int], checkpoint: str) -> None:
        if not partitions:
            return
        pipeline = self._redis.pipeline(transaction=False)
        for i in partitions:
            self._forget([in_flight_key(i), checkpoint_id_key(i)], [checkpoint], client=pipeline)
        pipeline.execute()

    def _survey(self) -> _Survey:
        """Which partitions have something to copy, without taking it."""
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.execute_command("TIME")
        for i in range(self._partitions):
            # Keys go from dirty to in flight to Postgres: looking in this order misses none.
            pipeline.execute_command("SCARD", dirty_key(i))
            pipeline.execute_command("SCARD", in_flight_key(i))
            pipeline.execute_command("GET", incarnation_key(i))
        at, *answers = pipeline.execute()
        clean: dict[int, str] = {}
        changed: dict[int, int] = {}
        empty: list[int] = []
        triples = zip(answers[0::3], answers[1::3], answers[2::3], strict=True)
        for i, (dirty, in_flight, incarnation) in enumerate(triples):
            if incarnation is None:
                empty.append(i)
            elif dirty or in_flight:
                changed[i] = dirty + in_flight
            else:
                clean[i] = incarnation.decode()
        return _Survey(_time(*at), clean, changed, empty)


class _Unfinished(Exception):
    """A partition has something left, after what is `done`."""

    def __init__(self, done: Copied) -> None:
        super().__init__(done)
        self.done = done


class _Progress:
    """Which partitions still have to be copied, and how often that was tried.

    A partition that changes as fast as it is copied is given up after a while, so that it does
    not keep a checkpoint from its end.
    """

    def __init__(self, sizes: Mapping[int, int]) -> None:
        self.waiting = dict(sizes)
        self.copied = dict.fromkeys(sizes, 0)
        self.fenced: list[int] = []
        self.busy: set[int] = set()
        self.given_up: set[int] = set()
        self.entries = 0
        self._bounds: dict[int, _Bound] = {}

    def next_group(self) -> list[int]:
        """Partitions for one transaction."""
        group: list[int] = []
        keys = 0
        for partition, size in self.waiting.items():
            if group and (len(group) == GROUP_PARTITIONS or keys + size > GROUP_KEYS):
                break
            group.append(partition)
            keys += min(size, STEP)
        return group

    def add(self, step: _Step) -> None:
        """Counts a transaction."""
        for partition in step.fenced:
            del self.waiting[partition]
        self.fenced += step.fenced
        for partition in step.busy:
            del self.waiting[partition]
        self.busy.update(step.busy)
        self.entries += sum(step.entries.values())
        for partition, left in step.left.items():
            self.copied[partition] += step.copied[partition]
            bound = self._bounds.setdefault(partition, _Bound())
            bound.add(step, partition)
            if left == 0 or bound.is_passed:
                del self.waiting[partition]
                if left:
                    self.given_up.add(partition)
            else:
                self.waiting[partition] = left


class _Bound:
    """How much may be copied from a partition until it counts as changing too fast."""

    def __init__(self) -> None:
        self._done = 0
        self._most = 0
        self._counted = False

    def add(self, step: _Step, partition: int) -> None:
        """Takes what a step did and what it left; sets the bound when that is known first."""
        self._done += step.copied[partition] + step.entries[partition]
        entries_left = step.entries_left[partition]
        if self._most and (self._counted or entries_left is None):
            return
        self._counted = entries_left is not None
        self._most = self._done + 2 * (step.left[partition] + (entries_left or 0)) + STEP

    @property
    def is_passed(self) -> bool:
        """Whether more was copied than there was when it began."""
        return self._done > self._most


def _time(seconds: int, microseconds: int) -> datetime:
    return datetime.fromtimestamp(int(seconds), UTC).replace(microsecond=int(microseconds))


def _parse(keys: Sequence[bytes], values: Sequence[bytes | None]) -> Iterator[ShardValue]:
    for key, value in zip(keys, values, strict=True):
        try:
            yield _parse_one(key, value)
        except ValueError:
            # One such key must not keep the others from Postgres for ever.
            _UNREADABLE.inc()
            _log.error("A counter's key can't be read.", key=repr(key), value=repr(value))


def _parse_one(key: bytes, value: bytes | None) -> ShardValue:
    kind, partition, tenant, counter = parse_counter_key(key)
    if "\0" in tenant or "\0" in counter:
        raise ValueError("Postgres has no NUL")
    wide = kind == "w"
    if value is None:
        return ShardValue(partition, tenant, counter, wide, None, False)
    if wide and value == b"x":
        return ShardValue(partition, tenant, counter, wide, 0, True)
    frozen = not wide and value.startswith(b"w")
    number = int(value[1:] if frozen else value)
    if number not in _INT64:
        raise ValueError("more than 64 bits")
    return ShardValue(partition, tenant, counter, wide, number, frozen)
