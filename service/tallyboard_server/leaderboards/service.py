"""All of a worker's leaderboards, put together."""

import threading
import time
from collections.abc import Callable

from tallyboard_server.counters.model import MakeDurable
from tallyboard_server.counters.requests import RequestIds
from tallyboard_server.errors import shutting_down
from tallyboard_server.leaderboards import windows as calendar
from tallyboard_server.leaderboards.archive import WindowLoader
from tallyboard_server.leaderboards.boards import Boards
from tallyboard_server.leaderboards.listing import WindowLister
from tallyboard_server.leaderboards.reads import EntryReader
from tallyboard_server.leaderboards.routes import Routes
from tallyboard_server.leaderboards.stream import ScoreStream
from tallyboard_server.leaderboards.watch import TopSource
from tallyboard_server.leaderboards.writes import ScoreWriter
from tallyboard_server.postgres.pool import BoundedPool
from tallyboard_server.recovery.durable_reads import DurableReads
from tallyboard_server.redis.store import RedisStore
from tallyboard_server.settings import Settings
from tallyboard_server.watching import WatchHub


def now_micros() -> int:
    """The time now in µs since the epoch."""
    return time.time_ns() // 1000


class Leaderboards:
    """Owns the threads of the domain; `close` ends them.

    Args:
        hub: serves watches, shared with other services of the worker.
        clock: the time now in µs since the epoch.
        make_durable: copies partitions to Postgres, before what is not journaled is acknowledged.
        durable_reads: reads from Postgres while Redis is away; None: such reads fail.

    Attributes:
        boards, writer, reader, lister, hub: the parts that the RPC layer calls.
    """

    def __init__(
        self,
        store: RedisStore,
        pool: BoundedPool,
        hub: WatchHub,
        settings: Settings,
        clock: Callable[[], int] = now_micros,
        make_durable: MakeDurable | None = None,
        durable_reads: DurableReads | None = None,
    ) -> None:
        self._store = store
        self.clock = clock
        self.boards = Boards(store, pool, settings.partitions, clock, durable_reads)
        self.reader = EntryReader(
            store,
            pool,
            self.boards,
            clock,
            settings.cache_pages,
            durable_reads,
            settings.cache_ttl,
        )
        self.lister = WindowLister(pool, self.boards, clock, durable_reads)
        self._routes = Routes(
            store,
            self.boards,
            settings.partitions,
            clock,
            WindowLoader(store, pool, settings.partitions),
            self.reader.trim,
        )
        request_ttl = int(settings.request_id_ttl)
        self.writer = ScoreWriter(
            store,
            pool,
            self.boards,
            self._routes,
            self.reader,
            RequestIds(store, settings.partitions, request_ttl),
            request_ttl,
            make_durable,
        )
        self.hub = hub.of(TopSource(self.boards, self.reader, calendar.resolve, clock))
        self._patience = settings.call_timeout
        self._producer_ttl = int(settings.producer_ttl)
        self._streams: set[ScoreStream] = set()
        self._draining = False
        self._lock = threading.Lock()  # guards _streams and _draining

    def open_stream(self, tenant: str) -> ScoreStream:
        """A new stream; `close_stream` it.

        Raises:
            Unavailable: the server is stopping.
        """
        stream = ScoreStream(self._store, self._routes, tenant, self._producer_ttl, self._patience)
        with self._lock:
            if self._draining:
                raise shutting_down()
            self._streams.add(stream)
        return stream

    def close_stream(self, stream: ScoreStream) -> None:
        """Forgets a stream that is over."""
        with self._lock:
            self._streams.discard(stream)

    def drain(self) -> None:
        """Ends streams after what they hold."""
        with self._lock:
            self._draining = True
            streams = list(self._streams)
        for stream in streams:
            stream.finish(shutting_down())

    def close(self) -> None:
        """Ends the threads."""
        self.drain()
        self.boards.close()
