"""All that the keeper restores partitions with, put together, on a thread of its own."""

import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, closing
from typing import Final, Self

import psycopg
from redis.exceptions import RedisError

from tallyboard_server.checkpointer import Checkpointer, PartitionFenced
from tallyboard_server.counters.sharding import Sharding
from tallyboard_server.counters.wide import WideCounters
from tallyboard_server.errors import Unavailable
from tallyboard_server.leaderboards.model import Leaderboard
from tallyboard_server.leaderboards.service import now_micros
from tallyboard_server.postgres.entries import WindowRow
from tallyboard_server.postgres.pool import open_pool
from tallyboard_server.recovery.drain import Drainer
from tallyboard_server.recovery.restorer import Restorer
from tallyboard_server.redis.connection import Connection
from tallyboard_server.redis.durability import Durability
from tallyboard_server.redis.fences import Fences
from tallyboard_server.redis.operations import Part
from tallyboard_server.redis.store import RedisStore
from tallyboard_server.settings import Settings
from tallyboard_server.stores import control_client

# A journal's row stays until a checkpoint has its effect: Redis need not promise anything.
_APPLIED: Final = Durability(None, lambda reply: True)
_STOP_TIMEOUT: Final = 15.0


class _AnyLife:
    """Admits every Redis: the scripts themselves compare the incarnations."""

    def admit(self, connection: Connection) -> Durability:
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
        redis = own.enter_context(closing(control_client(settings.redis_url)))
        pool = own.enter_context(
            open_pool(settings.postgres_url, name="tallyboard restorer", max_size=6)
        )
        fences = Fences({})
        store = RedisStore(
            settings.redis_url,
            fences,
            _AnyLife(),
            timeout=settings.redis_timeout,
            max_pending=settings.max_pending_operations,
            on_refused=_refused,
        )
        own.callback(store.close)
        checkpointer = Checkpointer(redis, pool, settings.partitions)
        wide = WideCounters(
            store,
            _any_sharding(settings),
            settings.call_timeout,
            make_durable(checkpointer) if settings.journals_first else None,
        )
        own.callback(wide.close)
        drainer = Drainer(
            lambda: Connection(settings.redis_url, settings.redis_timeout),
            pool,
            wide,
            checkpointer.checkpoint_partition if settings.journals_first else None,
            _load_window,
            settings.partitions,
            self._clock,
            keeps_tokens=settings.journals_first,
        )
        restorer = Restorer(
            redis, pool, drainer, _rebuild, fences, settings.partitions, self._stopping
        )
        self._thread = threading.Thread(target=restorer.run, name="restorer", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join(_STOP_TIMEOUT)
        self._stack.close()


def make_durable(checkpointer: Checkpointer) -> Callable[[Iterable[int]], None]:
    """A function that copies partitions to Postgres now, and raises Unavailable if it can't."""

    def copy(partitions: Iterable[int]) -> None:
        try:
            for partition in sorted(partitions):
                checkpointer.checkpoint_partition(partition)
        except (RedisError, psycopg.Error, PartitionFenced) as error:
            raise Unavailable(f"a very large counter can't be made durable: {error}") from error

    return copy


def _any_sharding(settings: Settings) -> Sharding:
    """Wide counters look at every shard that any setting could give."""
    return Sharding(settings.partitions, settings.default_shards, {}, (), 1, 0)


def _refused(part: Part, keys: list[str]) -> None:
    part.done(Unavailable("a wide counter was not"))


def _load_window(board: Leaderboard, row: WindowRow, partition: int, incarnation: str) -> None:
    raise Unavailable("archived windows can't be brought back yet")


def _rebuild(partitions: Sequence[int]) -> None:
    raise Unavailable(f"partitions {list(partitions)} are lost")
