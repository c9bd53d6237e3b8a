"""Copies what changed in Redis to Postgres, a few partitions at a time.

Keys are taken in Redis under an id, written in one Postgres transaction that holds the
partitions' locks, and only then forgotten. Whoever dies in between leaves them for the next one.
"""

import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import chain
from typing import Any, Final, NamedTuple

import psycopg
import structlog
from prometheus_client import Counter, Histogram
from redis import Redis
from redis.exceptions import RedisError

from tallyboard_server.leaderboards.checkpoints import TakenEntries, write_taken_entries
from tallyboard_server.postgres.checkpoints import (
    ShardValue,
    TokenRow,
    lock_partition,
    mark_checkpointed,
    mark_cut,
    read_lives,
    try_lock_partitions,
    write_tokens,
    write_values,
)
from tallyboard_server.postgres.journal import OPEN, read_standings
from tallyboard_server.postgres.pool import BoundedConnection, BoundedPool, TooLate
from tallyboard_server.recovery.repeats import remove_applied
from tallyboard_server.redis import scripts
from tallyboard_server.redis.keys import (
    checkpoint_id_key,
    dirty_key,
    in_flight_key,
    incarnation_key,
    journaled_key,
    parse_counter_key,
    version_key,
)
from tallyboard_server.redis.nodes import RedisNodes, check_replies, is_moving

# Most keys that one call of the script takes from a partition.
STEP: Final = 5_000
# What a transaction begins with. The shards of a counter are in several partitions, and its total
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
    """Redis holds another life of the partition than Postgres follows, or none, or an earlier
    state of it, or Postgres doesn't know the partition; nothing was copied."""


@dataclass(frozen=True)
class CheckpointResult:
    """What a checkpoint of all partitions did.

    `counters` is the number of counters' keys copied, `entries` of entries of leaderboards,
    `partitions` of how many partitions that had either. `fenced` ones
    can't be copied (see PartitionFenced), nor `older` ones: Redis has less than Postgres.
    `unfinished` ones were held by somebody else, or were left because time ran out.
    `away` are those of nodes of a cluster that are away, or on their way to another node, while
    others are there.
    """

    counters: int
    partitions: int
    seconds: float
    fenced: tuple[int, ...] = ()
    unfinished: tuple[int, ...] = ()
    entries: int = 0
    older: tuple[int, ...] = ()
    away: tuple[int, ...] = ()


class Copied(NamedTuple):
    """Keys of counters, and entries, that were copied from one partition."""

    counters: int
    entries: int


@dataclass
class _Cut:
    """What one transaction copies: by partition, how much, and what its last step found.

    `versions` are the numbers of the checkpoints, `rows` those of the journal that they have.
    """

    copied: dict[int, int] = field(default_factory=dict)
    entries: dict[int, int] = field(default_factory=dict)
    versions: dict[int, int] = field(default_factory=dict)
    rows: dict[int, list[int]] = field(default_factory=dict)
    fenced: list[int] = field(default_factory=list)
    older: list[int] = field(default_factory=list)
    busy: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class _Taken:
    """What one step took from several partitions, as checkpoint.lua answered."""

    read_at: datetime
    values: list[ShardValue] = field(default_factory=list)
    entries: list[TakenEntries] = field(default_factory=list)
    tokens: list[TokenRow] = field(default_factory=list)
    left: dict[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class _Survey:
    """What Redis says of the partitions: `clean` ones have nothing to copy as of `at`.

    `moving` ones are on their way to another node.
    """

    at: datetime
    clean: dict[int, str]
    changed: dict[int, int]
    empty: list[int]
    moving: list[int]


class _ChangedMidway(PartitionFenced):
    """Redis lost a partition of which a part was copied; nothing was committed.

    A part is no cut: it may have effects of rows of the journal that stay.
    """


class _OutOfTime(Exception):
    """The deadline passed in the middle of a transaction; nothing was committed."""


class Checkpointer:
    """Checkpoints of a number of partitions; safe to use from several threads and processes.

    A checkpoint of a partition is a cut: one transaction that holds all that Redis holds at the
    moment of its last step, and deletes the rows of the journal that are in it.

    Its methods raise redis.RedisError and psycopg.Error when a store is away; whatever was taken
    by then is copied by the next checkpoint.

    Args:
        nodes: clients that do not repeat commands; their timeout bounds each wait.
        pool: connections with timeouts; each call uses one at a time.
        partitions: how many there are.
    """

    def __init__(self, nodes: RedisNodes, pool: BoundedPool, partitions: int) -> None:
        self._take = scripts.on_any_client(scripts.CHECKPOINT)
        self._forget = scripts.on_any_client(scripts.CHECKPOINTED)
        self._nodes = nodes
        self._pool = pool
        self._partitions = partitions

    def checkpoint_all(self, deadline: float | None = None) -> CheckpointResult:
        """Copies all that changed before the call; the cost follows what changed.

        Args:
            deadline: of time.monotonic(); no step is begun after it, and no transaction under way
                then is committed.

        Raises:
            redis.RedisError: all nodes are away.
            TooLate: all was copied, and Postgres could not be told in time when.
        """
        started = time.monotonic()
        done, unfinished = _Cut(), set[int]()
        empty: list[int] = []
        moving: list[int] = []
        away: dict[RedisError, list[int]] = {}
        groups = self._nodes.topology.layout.group(range(self._partitions))
        for node, partitions in groups.items():
            try:
                client = self._nodes.at(node)
                survey = self._checkpoint_node(client, partitions, deadline, done, unfinished)
                empty += survey.empty
                moving += survey.moving
            except RedisError as error:
                self._nodes.note(node, error)
                away[error] = partitions
        if len(away) == len(groups):
            raise next(iter(away))
        seconds = time.monotonic() - started
        _SECONDS.observe(seconds)
        return CheckpointResult(
            counters=sum(done.copied.values()),
            entries=sum(done.entries.values()),
            partitions=sum(done.copied[i] > 0 or done.entries[i] > 0 for i in done.copied),
            seconds=seconds,
            fenced=tuple(sorted([*empty, *done.fenced])),
            unfinished=tuple(sorted(unfinished)),
            older=tuple(sorted(done.older)),
            away=tuple(sorted(chain(moving, *away.values()))),
        )

    def _checkpoint_node(
        self,
        node: Redis,
        partitions: Sequence[int],
        deadline: float | None,
        done: _Cut,
        unfinished: set[int],
    ) -> _Survey:
        """Copies what changed on one node; gives what it said of its partitions."""
        survey = _survey(node, partitions)
        waiting, busy_before = dict(survey.changed), len(done.busy)
        while waiting and not _is_past(deadline):
            group = _next_group(waiting)
            for partition in group:
                del waiting[partition]
            try:
                _add(done, self._cut(group, deadline))
            except _ChangedMidway:
                unfinished.update(group)
            except (_OutOfTime, TooLate):
                waiting |= dict.fromkeys(group, 0)
                break
        unfinished.update(waiting)
        busy = done.busy[busy_before:]
        for partition in self._worth_waiting_for(busy, unfinished, deadline):
            # Whoever has it may have begun before this call: only our own turn is proof.
            try:
                _add(done, self._cut([partition], deadline, LOCK_WAIT))
            except (psycopg.errors.LockNotAvailable, _ChangedMidway, _OutOfTime, TooLate):
                unfinished.add(partition)
        self._mark_clean(survey, deadline, is_last=not unfinished)
        return survey

    def _mark_clean(self, survey: _Survey, deadline: float | None, *, is_last: bool) -> None:
        """Notes that the others were up to date; with more left to do, that may wait too.

        Raises:
            TooLate: the deadline has passed, and this was the last there was to do.
        """
        if not survey.clean:
            return
        try:
            with self._pool.until(deadline) as conn:
                mark_checkpointed(conn, survey.clean, survey.at)
        except TooLate:
            if is_last:
                raise

    def _worth_waiting_for(
        self, busy: Sequence[int], unfinished: set[int], deadline: float | None
    ) -> list[int]:
        """Those of them that whoever has them soon lets go of; the rest is unfinished."""
        if not busy:
            return []
        try:
            with self._pool.until(deadline) as conn:
                standings = read_standings(conn, busy)
        except TooLate:
            unfinished.update(busy)
            return []
        open_ones = {standing.partition for standing in standings if standing.state == OPEN}
        unfinished.update(set(busy) - open_ones)
        return sorted(open_ones)

    def checkpoint_partition(
        self, partition: int, limit: int = STEP, deadline: float | None = None
    ) -> Copied:
        """Copies all that changed in one partition; gives how much that was.

        Args:
            partition: which one.
            limit: most keys and entries a step, one script call.
            deadline: of time.monotonic(); nothing is committed after it.

        Raises:
            TooLate: the deadline passed; nothing was committed.
            PartitionFenced: see there.
            psycopg.errors.LockNotAvailable: somebody else held the partition for 5 s.
        """
        try:
            cut = self._cut([partition], deadline, LOCK_WAIT, limit)
        except _OutOfTime:
            raise TooLate from None
        if cut.fenced or cut.older:
            raise PartitionFenced(f"Redis or Postgres doesn't have this life of {partition}")
        return Copied(cut.copied[partition], cut.entries[partition])

    def checkpoint_fenced(self, conn: BoundedConnection, partition: int, mark: str) -> Copied:
        """The last checkpoint of a partition that takes no more writes, whose lock the caller has.

        Args:
            conn: a connection outside a transaction; it is committed.
            partition: which one.
            mark: what Redis holds in the place of the incarnation.

        Raises:
            PartitionFenced: Redis holds something else, or less than Postgres.
        """
        checkpoint, cut = uuid.uuid4().hex, _Cut()
        with conn.transaction():
            rows = read_lives(conn, [partition])
            self._copy(conn, checkpoint, {partition: (mark, rows[partition].version)}, cut)
        self._forget_keys(cut, checkpoint)
        if cut.fenced or cut.older:
            raise PartitionFenced(f"Redis or Postgres doesn't have this life of {partition}")
        return Copied(cut.copied[partition], cut.entries[partition])

    def _cut(
        self,
        partitions: Sequence[int],
        deadline: float | None,
        wait: float | None = None,
        limit: int | None = None,
    ) -> _Cut:
        """One transaction over some partitions of a node; without `wait`, over free ones."""
        checkpoint, cut = uuid.uuid4().hex, _Cut()
        with self._pool.until(deadline) as conn:
            if wait is None:
                lives, cut.busy = try_lock_partitions(conn, partitions)
            else:
                lives = lock_partition(conn, partitions[0], wait)
            cut.fenced += set(partitions) - set(cut.busy) - set(lives)
            waiting = {i: (life.incarnation, life.version) for i, life in lives.items()}
            self._copy(conn, checkpoint, waiting, cut, deadline, limit)
        self._forget_keys(cut, checkpoint)
        _KEYS.inc(sum(cut.copied.values()))
        _ENTRIES.inc(sum(cut.entries.values()))
        return cut

    def _copy(
        self,
        conn: BoundedConnection,
        checkpoint: str,
        lives: Mapping[int, tuple[str, int]],
        cut: _Cut,
        deadline: float | None = None,
        limit: int | None = None,
    ) -> None:
        """Steps through partitions until nothing is left in them.

        A window of many entries is one dirty key, so nobody knows before how much there is.
        """
        waiting = dict(lives)
        step = limit or max(1, min(STEP, GROUP_KEYS // max(1, len(waiting))))
        left_before: dict[int, int] = {}
        finished: list[int] = []
        what, read_at = "first", None
        while waiting:
            taken = self._take_keys(waiting, checkpoint, step, what, cut)
            write_values(conn, taken.values, taken.read_at)
            write_taken_entries(conn, taken.entries, taken.read_at)
            write_tokens(conn, taken.tokens)
            finished += [i for i, left in taken.left.items() if not left]
            read_at = read_at or taken.read_at
            waiting = {i: life for i, life in waiting.items() if taken.left.get(i)}
            if waiting and _is_past(deadline):
                raise _OutOfTime
            if any(left_before.get(i, left + 1) <= left for i, left in taken.left.items() if left):
                step *= 2  # it changes as fast as it is copied
            left_before, what = taken.left, "more"
        if finished and read_at is not None:
            # Last, behind all that waits for Redis: whoever begins to journal changes these rows.
            versions = {i: cut.versions[i] for i in finished}
            mark_cut(conn, versions, read_at)
            if rows := [row for i in finished for row in cut.rows[i]]:
                remove_applied(conn, versions, rows)

    def _take_keys(
        self,
        lives: Mapping[int, tuple[str, int]],
        checkpoint: str,
        limit: int,
        what: str,
        cut: _Cut,
    ) -> _Taken:
        """One step of each partition; `cut` gets what is counted and what failed."""
        pipeline = self._nodes.of(next(iter(lives))).pipeline(transaction=False)
        pipeline.execute_command("TIME")
        for i, (incarnation, version) in lives.items():
            keys = [
                dirty_key(i), in_flight_key(i), checkpoint_id_key(i), incarnation_key(i),
                version_key(i), journaled_key(i),
            ]  # fmt: skip
            self._take(keys, [checkpoint, limit, incarnation, version, what], client=pipeline)
        read_at, *answers = pipeline.execute()
        taken = _Taken(_time(*read_at))
        for i, answer in zip(lives, answers, strict=True):
            if answer[0] in (b"fenced", b"older") and i in cut.versions:
                raise _ChangedMidway(f"Redis lost partition {i} while it was copied")
            if answer[0] == b"fenced":
                cut.fenced.append(i)
            elif answer[0] == b"older":
                cut.older.append(i)
            elif answer[0] == b"taken":
                raise psycopg.errors.LockNotAvailable(f"another checkpoint has begun of {i}")
            else:
                self._take_answer(i, answer[1:], taken, cut)
        return taken

    @staticmethod
    def _take_answer(partition: int, answer: Sequence[Any], taken: _Taken, cut: _Cut) -> None:
        version, left, entries_left, found, values, entries, tokens, rows = answer
        cut.versions[partition] = version
        cut.rows[partition] = [int(row) for row in rows]
        cut.copied[partition] = cut.copied.get(partition, 0) + len(found)
        members = sum(len(members) for _, members, _ in entries)
        cut.entries[partition] = cut.entries.get(partition, 0) + members
        taken.left[partition] = left + max(0, entries_left)
        taken.values.extend(_parse(found, values))
        taken.entries.extend(TakenEntries(*window) for window in entries)
        for token, milliseconds, kind, *held in tokens:
            ends_at = taken.read_at + timedelta(milliseconds=milliseconds)
            taken.tokens.append(TokenRow(partition, token, kind == b"h", held, ends_at))

    def _forget_keys(self, cut: _Cut, checkpoint: str) -> None:
        if not cut.versions:
            return
        pipeline = self._nodes.of(next(iter(cut.versions))).pipeline(transaction=False)
        for i in cut.versions:
            keys = [in_flight_key(i), checkpoint_id_key(i), journaled_key(i)]
            self._forget(keys, [checkpoint, *cut.rows[i]], client=pipeline)
        pipeline.execute()


def _survey(node: Redis, partitions: Sequence[int]) -> _Survey:
    """Which partitions have something to copy, without taking it."""
    pipeline = node.pipeline(transaction=False)
    pipeline.execute_command("TIME")
    for i in partitions:
        # Keys go from dirty to in flight to Postgres: looking in this order misses none.
        pipeline.execute_command("SCARD", dirty_key(i))
        pipeline.execute_command("SCARD", in_flight_key(i))
        pipeline.execute_command("SCARD", journaled_key(i))
        pipeline.execute_command("GET", incarnation_key(i))
    at, *answers = pipeline.execute(raise_on_error=False)
    clean: dict[int, str] = {}
    changed: dict[int, int] = {}
    empty: list[int] = []
    moving: list[int] = []
    check_replies([at])
    for i, found in zip(partitions, _batched(answers, 4), strict=True):
        if is_moving(found):
            moving.append(i)
            continue
        check_replies(found)
        dirty, in_flight, journaled, incarnation = found
        if incarnation is None:
            empty.append(i)
        elif dirty or in_flight or journaled:
            changed[i] = dirty + in_flight
        else:
            clean[i] = incarnation.decode()
    return _Survey(_time(*at), clean, changed, empty, moving)


def _batched(values: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """The values in tuples of `size`, in their order."""
    return zip(*[iter(values)] * size, strict=True)


def _is_past(deadline: float | None) -> bool:
    return deadline is not None and time.monotonic() >= deadline


def _next_group(sizes: Mapping[int, int]) -> list[int]:
    """Partitions for one transaction."""
    group: list[int] = []
    keys = 0
    for partition, size in sizes.items():
        if group and (len(group) == GROUP_PARTITIONS or keys + size > GROUP_KEYS):
            break
        group.append(partition)
        keys += size
    return group


def _add(done: _Cut, cut: _Cut) -> None:
    """Adds what one more transaction did."""
    done.fenced += cut.fenced
    done.older += cut.older
    done.busy += cut.busy
    for partition in cut.versions:
        done.copied[partition] = done.copied.get(partition, 0) + cut.copied[partition]
        done.entries[partition] = done.entries.get(partition, 0) + cut.entries[partition]


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
