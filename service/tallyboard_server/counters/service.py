"""All of a worker's counters: writer, reader, streams, watches and lists, put together."""

import threading

from tallyboard_server.counters.durable import DurableCounts
from tallyboard_server.counters.model import MakeDurable
from tallyboard_server.counters.reads import CountReader
from tallyboard_server.counters.requests import RequestIds
from tallyboard_server.counters.sharding import Sharding
from tallyboard_server.counters.stream import IncrementStream
from tallyboard_server.counters.watch import CountSource
from tallyboard_server.counters.wide import WideCounters
from tallyboard_server.counters.writes import CounterWriter
from tallyboard_server.errors import shutting_down
from tallyboard_server.postgres.counters import CounterPage, list_counters
from tallyboard_server.postgres.pool import BoundedPool, postgres_unavailable
from tallyboard_server.recovery.durable_reads import DurableReads
from tallyboard_server.redis.store import RedisStore
from tallyboard_server.settings import Settings
from tallyboard_server.watching import WatchHub


class Counters:
    """Owns the threads of the domain; `close` ends them.

    Args:
        hub: serves watches, shared with other services of the worker.
        make_durable: copies partitions to Postgres, before what is not journaled is acknowledged.
        durable_reads: reads from Postgres while Redis is away; None: such reads fail.

    Attributes:
        writer, reader, hub: the parts that the RPC layer calls.
    """

    def __init__(
        self,
        store: RedisStore,
        wide: WideCounters,
        sharding: Sharding,
        pool: BoundedPool,
        settings: Settings,
        hub: WatchHub,
        make_durable: MakeDurable | None = None,
        durable_reads: DurableReads | None = None,
    ) -> None:
        requests = RequestIds(store, sharding.partitions, int(settings.request_id_ttl))
        self.writer = CounterWriter(store, sharding, wide, requests, make_durable)
        ttl, most = settings.cache_ttl, settings.cache_entries
        durable = None
        if durable_reads is not None:
            durable = DurableCounts(durable_reads, sharding, ttl=ttl, max_entries=most)
        self.reader = CountReader(store, sharding, ttl=ttl, max_entries=most, durable=durable)
        self._watch_hub = hub
        self.hub = self._watch_hub.of(CountSource(self.reader))
        self._patience = settings.call_timeout
        self._pool = pool
        self._producer_ttl = int(settings.producer_ttl)
        self._streams: set[IncrementStream] = set()
        self._draining = False
        self._lock = threading.Lock()  # guards _streams and _draining

    def open_stream(self, tenant: str) -> IncrementStream:
        """A new stream; `close_stream` it.

        Raises:
            Unavailable: the server is stopping.
        """
        stream = IncrementStream(self.writer, tenant, self._producer_ttl, self._patience)
        with self._lock:
            if self._draining:
                raise shutting_down()
            self._streams.add(stream)
        return stream

    def close_stream(self, stream: IncrementStream) -> None:
        """Forgets a stream that is over."""
        with self._lock:
            self._streams.discard(stream)

    def list(
        self,
        tenant: str,
        prefix: str,
        order_by: str,
        page_size: int,
        page_token: str,
        deadline: float,
    ) -> CounterPage:
        """A page of counters from Postgres.

        Raises:
            InvalidArgument: the order or the token is not one of ours.
            Unavailable: Postgres is away.
            DeadlineExceeded: it has not answered by then, of time.monotonic().
        """
        with postgres_unavailable():
            return list_counters(
                self._pool, tenant, prefix, order_by, page_size, page_token or None, deadline
            )

    def drain(self) -> None:
        """Ends streams after what they hold, and the watches of the hub, of all kinds."""
        with self._lock:
            self._draining = True
            streams = list(self._streams)
        for stream in streams:
            stream.finish(shutting_down())
        self._watch_hub.close()
