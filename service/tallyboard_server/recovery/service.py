"""All that the keeper restores partitions with, put together, on a thread of its own."""

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, closing
from typing import Final, Self

import psycopg
from redis.exceptions import RedisError

from tallyboard_server.checkpointer import Checkpointer, PartitionFenced
from tallyboard_server.counters.model import MakeDurable
from tallyboard_server.counters.sharding import Sharding
from tallyboard_server.counters.wide import WideCounters
from tallyboard_server.errors import DeadlineExceeded, Unavailable
from tallyboard_server.leaderboards.model import Leaderboard
from tallyboard_server.leaderboards.service import now_micros
from tallyboard_server.postgres import journal as rows
from tallyboard_server.postgres.checkpoints import read_lives
from tallyboard_server.postgres.entries import WindowRow
from tallyboard_server.postgres.locks import locked
from tallyboard_server.postgres.pool import BoundedPool, TooLate, connect, open_pool
from tallyboard_server.recovery.boards import BoardLoader
from tallyboard_server.recovery.drain import Drainer, LoadWindow
from tallyboard_server.recovery.rebuild import (
    PartitionBusy,
    Rebuilder,
    Rebuilt,
    UnknownPartition,
)
from tallyboard_server.recovery.restorer import Restorer
from tallyboard_server.redis import scripts
from tallyboard_server.redis.connection import Connection
from tallyboard_server.redis.definitions import partitions_of
from tallyboard_server.redis.durability import Durability
from tallyboard_server.redis.fences import Fences
from tallyboard_server.redis.nodes import RedisNodes
from tallyboard_server.redis.pipe import Fenced, Pipe
from tallyboard_server.redis.store import RedisStore
from tallyboard_server.redis.topology import Stay, Topology
from tallyboard_server.settings import Settings

# A journal's row stays until a checkpoint has its effect: Redis need not promise anything.
_APPLIED: Final = Durability(None, lambda reply: True)
_STOP_TIMEOUT: Final = 15.0
_POLL: Final = 0.05
_LOCK_WAIT: Final = 5.0


class _AnyLife:
    """Admits every Redis: the scripts themselves compare the incarnations."""

    def admit(self, connection: Connection, node: str, stays: Sequence[Stay]) -> Durability:
        return _APPLIED


class Restoring:
    """Runs a `Restorer` from `with` to its end.

    Args:
        settings: with both URLs filled in.
        clock: the time now in µs since the epoch.
    """

    def __init__(self, settings: Settings, clock: Callable[[], int] = now_micros) -> None:
        self._settings = settings
        self._clock = clock
        self._stack = ExitStack()
        self._stopping = threading.Event()

    def __enter__(self) -> Self:
        settings, own = self._settings, self._stack
        nodes = own.enter_context(RedisNodes.of_url(settings.redis_url, settings.partitions))
        topology = nodes.topology
        pool = own.enter_context(
            open_pool(settings.postgres_url, name="tallyboard restorer", max_size=6)
        )
        fences = Fences({})
        store = RedisStore(
            topology,
            fences,
            _AnyLife(),
            timeout=settings.redis_timeout,
            max_pending=settings.max_pending_operations,
            on_refused=lambda part, keys: wide.take_over(part, keys),
        )
        own.callback(store.close)
        checkpointer = Checkpointer(nodes, pool, settings.partitions)
        durable = make_durable(checkpointer) if settings.journals_first else None
        wide = WideCounters(store, _any_sharding(settings), settings.call_timeout, durable)
        own.callback(wide.close)
        drainer = Drainer(
            lambda node: Connection(node, settings.redis_timeout),
            topology,
            pool,
            wide,
            durable,
            window_loader(settings, topology, self._clock),
            settings.partitions,
            self._clock,
            keeps_tokens=settings.journals_first,
        )
        rebuilder = Rebuilder(
            topology,
            settings.postgres_url,
            settings.partitions,
            last_checkpoint=checkpointer.checkpoint_fenced,
            drain=hand_over(pool),
            clock=self._clock,
        )
        # A node that hangs must not keep the others waiting for long.
        looking = own.enter_context(RedisNodes(topology, settings.redis_timeout))
        restorer = Restorer(
            looking,
            pool,
            drainer,
            lambda lost: rebuilder.rebuild(lost, resume=True),
            fences,
            settings.partitions,
            self._stopping,
        )
        self._thread = threading.Thread(target=restorer.run, name="restorer", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join(_STOP_TIMEOUT)
        self._stack.close()


def make_durable(checkpointer: Checkpointer) -> MakeDurable:
    """A function that copies partitions to Postgres now, and raises Unavailable if it can't."""

    def copy(partitions: Iterable[int], deadline: float | None = None) -> None:
        try:
            for partition in sorted(partitions):
                checkpointer.checkpoint_partition(partition, deadline=deadline)
        except TooLate as error:
            raise DeadlineExceeded(str(error)) from error
        except (RedisError, psycopg.Error, PartitionFenced) as error:
            raise Unavailable(f"a very large counter can't be made durable: {error}") from error

    return copy


def _any_sharding(settings: Settings) -> Sharding:
    """Wide counters look at every shard that any setting could give."""
    return Sharding(settings.partitions, settings.default_shards, {}, (), 1, 0)


def window_loader(settings: Settings, topology: Topology, clock: Callable[[], int]) -> LoadWindow:
    """Brings back windows, over connections of its own: that is rare.

    The partitions are locked meanwhile, for whoever is deleted from the window would come back with
    it.
    """

    def load(board: Leaderboard, row: WindowRow) -> None:
        places = partitions_of(
            board.tenant, board.leaderboard_id, board.segments, settings.partitions
        )
        with (
            closing(connect(settings.postgres_url, name="tallyboard windows")) as conn,
            Pipe(topology, settings.redis_timeout) as pipe,
            locked(conn, places, _LOCK_WAIT),
        ):
            loader = BoardLoader(pipe, conn, settings.partitions, clock)
            pipe.prepare(scripts.LOAD)
            lives = read_lives(conn, places)
            conn.commit()
            try:
                for partition in places:
                    loader.load_window(board, row, partition, lives[partition].incarnation)
            except Fenced as error:
                raise Unavailable(str(error), reason="PARTITION_UNAVAILABLE") from error

    return load


def hand_over(pool: BoundedPool) -> Callable[[int], int]:
    """What a rebuild ends with: the restorer drains the journal and opens the partition."""

    def end(partition: int) -> int:
        with pool.connection() as conn:
            return rows.hand_over(conn, partition)

    return end


def rebuild_on_demand(
    settings: Settings,
    topology: Topology,
    checkpointer: Checkpointer,
    pool: BoundedPool,
    clock: Callable[[], int],
) -> Callable[[int, float], Rebuilt]:
    """What an operator's request does: it rebuilds a partition whatever Redis holds of it.

    The function takes a deadline of `time.monotonic()`, until which it waits for the keeper to open
    the partition. It raises redis.RedisError and psycopg.Error, Unavailable when somebody else
    works on the partition, and DeadlineExceeded when it is rebuilt and not yet open.
    """
    rebuilder = Rebuilder(
        topology,
        settings.postgres_url,
        settings.partitions,
        last_checkpoint=checkpointer.checkpoint_fenced,
        drain=hand_over(pool),
        clock=clock,
    )

    def rebuild(partition: int, deadline: float) -> Rebuilt:
        try:
            (rebuilt,) = rebuilder.rebuild([partition], force=True)
        except (PartitionBusy, UnknownPartition, PartitionFenced, Fenced) as error:
            raise Unavailable(str(error), reason="PARTITION_UNAVAILABLE") from error
        while time.monotonic() < deadline:
            with pool.connection() as conn:
                if rows.read_standings(conn, [partition])[0].state == rows.OPEN:
                    return rebuilt
            time.sleep(_POLL)
        raise DeadlineExceeded("the partition is rebuilt; the keeper has not opened it yet")

    return rebuild
