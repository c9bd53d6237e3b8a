"""Making partitions of Redis anew from Postgres: who may, in which order, and from where to go on.

How: docs/recovery.md; what is remembered in Redis: marks.py. Whoever dies at any point leaves a
partition in the state REBUILDING, and the next rebuild begins anew where nothing is lost.
"""

import time
import uuid
from collections import Counter as Counts
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Self

import psycopg
import structlog
from prometheus_client import Counter, Histogram

from tallyboard_server.leaderboards.service import now_micros
from tallyboard_server.postgres.journal import OPEN
from tallyboard_server.postgres.locks import lock_for_session, unlock_for_session
from tallyboard_server.postgres.pool import BoundedConnection, connect
from tallyboard_server.postgres.rebuild import (
    Life,
    begin_life,
    estimate,
    open_partition,
    read_lives,
)
from tallyboard_server.recovery import overlay
from tallyboard_server.recovery.boards import BoardLoader
from tallyboard_server.recovery.loading import PartitionLoader
from tallyboard_server.recovery.marks import (
    Held,
    Mark,
    Stage,
    earlier,
    first_stage,
    is_foreign,
    is_loaded,
)
from tallyboard_server.recovery.progress import Listener, Reporter
from tallyboard_server.redis import scripts
from tallyboard_server.redis.keys import incarnation_key, version_key
from tallyboard_server.redis.pipe import Fenced, Pipe
from tallyboard_server.redis.topology import Topology

REDIS_TIMEOUT: Final = 5.0
# Seconds to wait for a checkpoint to let go of a partition, and that one statement may take.
LOCK_WAIT: Final = 5.0
_STATEMENT_TIMEOUT: Final = 120.0

_REBUILDS: Final = Counter("tallyboard_rebuilds", "Partitions that were rebuilt from Postgres.")
_SECONDS: Final = Histogram(
    "tallyboard_rebuild_seconds",
    "Seconds that a rebuild of one or several partitions took.",
    buckets=(0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000),
)
_log = structlog.get_logger(__name__)

#: Makes the last checkpoint of a partition that holds the mark, on a connection that holds its
#: lock and is outside a transaction.
LastCheckpoint = Callable[[BoundedConnection, int, str], Any]
#: Applies the journal of a partition and opens it; gives the number of batches. It takes the
#: partition's lock itself.
Drain = Callable[[int], int]


class PartitionBusy(Exception):
    """Somebody else is working on a partition; nothing was changed."""


class ForeignPartition(Exception):
    """Redis holds an incarnation that Postgres never knew: it may be somebody else's data."""

    def __init__(self, partitions: Sequence[int]) -> None:
        super().__init__(f"Redis holds data that Postgres never knew in {list(partitions)}")
        self.partitions = tuple(partitions)


class UnknownPartition(Exception):
    """Postgres knows nothing of a partition, so there is nothing to rebuild it from."""


@dataclass(frozen=True)
class Rebuilt:
    """What a rebuild did with one partition.

    Attributes:
        incarnation: the one that it has now.
        kept: whether what Redis held was good, so that Postgres has it by now.
        counters, entries, tokens: how many were loaded: keys of counters, entries of leaderboards.
        batches: how many of the journal were applied.
        seconds: what the partitions of one rebuild took together.
    """

    partition: int
    incarnation: str
    kept: bool
    counters: int
    entries: int
    tokens: int
    batches: int
    seconds: float


class Rebuilder:
    """Rebuilds partitions; for any number of threads and processes.

    Args:
        topology: which node of Redis has what.
        postgres_url: where Postgres is.
        partitions: how many there are.
        last_checkpoint: see `LastCheckpoint`; it raises when it can't.
        drain: see `Drain`; None just opens the partitions.
        clock: the time now in µs since the epoch, by which windows end.
        timeout: seconds without any progress after which Redis counts as away.
    """

    def __init__(
        self,
        topology: Topology,
        postgres_url: str,
        partitions: int,
        *,
        last_checkpoint: LastCheckpoint,
        drain: Drain | None = None,
        clock: Callable[[], int] = now_micros,
        timeout: float = REDIS_TIMEOUT,
    ) -> None:
        self.topology = topology
        self.postgres_url = postgres_url
        self.partitions = partitions
        self.last_checkpoint = last_checkpoint
        self.drain = drain
        self.clock = clock
        self.timeout = timeout

    def rebuild(
        self,
        partitions: Sequence[int],
        *,
        force: bool = False,
        resume: bool = False,
        progress: Listener | None = None,
    ) -> list[Rebuilt]:
        """Rebuilds some partitions together and opens them.

        Args:
            partitions: which ones.
            force: also where Redis holds data that Postgres never knew; they are deleted.
            resume: a partition that Redis has by now is only drained and opened.
            progress: is told how far it is, on this thread; see `Progress`.

        Raises:
            PartitionBusy, ForeignPartition, UnknownPartition: nothing was changed.
            redis.RedisError, psycopg.Error, Fenced: a store is away, or somebody else has taken
                over: to be done again.
        """
        started = time.monotonic()
        with Rebuild(self, partitions, progress) as going:
            going.begin(force=force, resume=resume)
            going.fence()
            going.copy()
            going.load()
            done = going.open(started)
        _REBUILDS.inc(len(done))
        _SECONDS.observe(time.monotonic() - started)
        _log.info(
            "Partitions rebuilt.",
            partitions=[each.partition for each in done],
            counters=sum(each.counters for each in done),
            entries=sum(each.entries for each in done),
            batches=sum(each.batches for each in done),
            seconds=round(time.monotonic() - started, 3),
        )
        return done


@dataclass
class _Partition:
    """One partition of a rebuild: what was found, and how far it is."""

    life: Life
    held: Held
    stage: Stage = Stage.WORTHLESS
    incarnation: str = ""
    loaded: bool = False
    counts: Counts[str] = field(default_factory=Counts)

    @property
    def mark(self) -> str:
        return str(Mark(self.stage, self.incarnation))


class Rebuild:
    """One rebuild, step by step: `begin`, `fence`, `copy`, `load`, `open`; a context manager.

    It holds the partitions' locks while inside, on a connection of its own. It may end between
    any two steps, and in the middle of them.
    """

    def __init__(
        self, owner: Rebuilder, partitions: Sequence[int], progress: Listener | None = None
    ) -> None:
        self._owner = owner
        self._names = sorted(set(partitions))
        self._reporter = Reporter(tuple(self._names), progress)
        self._partitions: dict[int, _Partition] = {}
        self._own = ExitStack()
        self._pipe: Pipe
        self._conn: BoundedConnection

    def __enter__(self) -> Self:
        with self._own:
            owner = self._owner
            self._own.callback(self._reporter.over)
            conn = connect(owner.postgres_url, name="tallyboard rebuild")
            self._conn = self._own.enter_context(closing(conn))
            self._lock()
            self._pipe = self._own.enter_context(Pipe(owner.topology, owner.timeout))
            self._pipe.prepare(scripts.FENCE_PARTITION)
            self._own = self._own.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._own.close()

    def begin(self, *, force: bool = False, resume: bool = False) -> None:
        """Looks at both stores, and commits new incarnations in Postgres."""
        lives = read_lives(self._conn, self._names)
        if len(lives) < len(self._names):
            missing = sorted(set(self._names) - lives.keys())
            raise UnknownPartition(f"Postgres does not know {missing}")
        held = self._look()
        foreign = [i for i in self._names if is_foreign(held[i], lives[i])]
        if foreign and not force:
            raise ForeignPartition(foreign)
        with self._conn.transaction():
            for i in self._names:
                partition = self._partitions[i] = _Partition(lives[i], held[i])
                if resume and is_loaded(held[i], lives[i]):
                    partition.incarnation, partition.loaded = lives[i].incarnation, True
                    continue
                new = uuid.uuid4()
                partition.incarnation = str(new)
                partition.stage = first_stage(held[i], lives[i])
                begin_life(self._conn, i, new, earlier(held[i], lives[i]))
                if lives[i].state == OPEN:
                    overlay.make_anew(self._conn, i)

    def fence(self) -> None:
        """Puts marks in the place of the incarnations: from now on nobody else writes there."""
        for i, partition in self._unloaded().items():
            held = partition.held
            self._replace(i, held.value, partition.mark, str(held.version))

    def copy(self) -> None:
        """Makes the last checkpoints of partitions whose data are good."""
        kept = {i: each for i, each in self._unloaded().items() if each.stage is Stage.KEPT}
        self._reporter.begin("checkpoint", len(kept))
        for i, partition in kept.items():
            before = partition.mark
            self._owner.last_checkpoint(self._conn, i, before)
            partition.stage = Stage.COPIED
            self._replace(i, before, partition.mark)
            self._reporter.add(1)

    def load(self) -> None:
        """Empties the partitions, loads them from Postgres, and gives them their incarnations."""
        unloaded = self._unloaded()
        if not unloaded:
            return
        marks = {i: each.mark for i, each in unloaded.items()}
        with_tokens = {i for i, each in unloaded.items() if each.stage is Stage.COPIED}
        reporter, owner = self._reporter, self._owner
        expected = estimate(self._conn, list(marks))
        reporter.expect(sum(expected))
        loader = PartitionLoader(self._pipe, self._conn, marks, reporter)
        boards = BoardLoader(self._pipe, self._conn, owner.partitions, owner.clock)
        reporter.begin("empty", sum(map(int, self._pipe.ask_nodes(marks, ("DBSIZE",)))))
        loader.empty(with_tokens)
        reporter.begin("counters", expected.counters)
        counters = loader.load_counters()
        reporter.begin("leaderboards", expected.entries)
        entries = boards.load_all(marks, reporter)
        reporter.begin("tokens", expected.tokens)
        tokens = loader.load_tokens(with_tokens)
        lives = read_lives(self._conn, list(marks))
        loader.set_versions({i: life.version for i, life in lives.items()})
        for i, partition in unloaded.items():
            self._replace(i, partition.mark, partition.incarnation)
            partition.loaded = True
            partition.counts.update(counters=counters[i], entries=entries[i], tokens=tokens[i])

    def open(self, started: float | None = None) -> list[Rebuilt]:
        """Drains the journal into the partitions and opens them.

        Args:
            started: of `time.monotonic()`, for the seconds of the answer.
        """
        self._reporter.begin("journal", len(self._partitions))
        done = []
        for i, partition in self._partitions.items():
            batches = 0
            if self._owner.drain is None:
                open_partition(self._conn, i, partition.incarnation)
                unlock_for_session(self._conn, i)
            else:
                unlock_for_session(self._conn, i)
                batches = self._owner.drain(i)
            self._reporter.add(1)
            done.append(
                Rebuilt(
                    i,
                    partition.incarnation,
                    partition.stage is Stage.COPIED,
                    partition.counts["counters"],
                    partition.counts["entries"],
                    partition.counts["tokens"],
                    batches,
                    0.0 if started is None else time.monotonic() - started,
                )
            )
        self._reporter.end()
        return done

    def _lock(self) -> None:
        """Takes the partitions' locks until the connection ends."""
        conn = self._conn
        conn.autocommit = True
        conn.answer_timeout = _STATEMENT_TIMEOUT + 2.0
        timeout = f"{_STATEMENT_TIMEOUT:g}s"
        conn.execute("SELECT set_config('statement_timeout', %s, false)", (timeout,))
        try:
            for partition in self._names:
                lock_for_session(conn, partition, LOCK_WAIT)
        except psycopg.errors.LockNotAvailable as error:
            raise PartitionBusy(f"somebody else is working on partition {partition}") from error

    def _look(self) -> dict[int, Held]:
        """What Redis holds in the places of incarnations and versions."""
        commands = [("MGET", incarnation_key(i), version_key(i)) for i in self._names]
        replies = self._pipe.ask(*commands)
        return {
            i: Held((value or b"").decode(), int(version or 0))
            for i, (value, version) in zip(self._names, replies, strict=True)
        }

    def _replace(self, partition: int, before: str, after: str, version: str = "") -> None:
        """Puts an incarnation or a mark in the place of another.

        Raises:
            Fenced: something else is there by now.
        """
        names = (incarnation_key(partition), version_key(partition))
        sha = scripts.FENCE_PARTITION.sha
        reply = self._pipe.ask(("EVALSHA", sha, 2, *names, before, version, after))[0]
        if reply[0] != b"ok":
            raise Fenced(f"partition {partition} has changed since it was looked at")

    def _unloaded(self) -> dict[int, _Partition]:
        return {i: each for i, each in self._partitions.items() if not each.loaded}
