"""A worker process: one gRPC server over the domain, pinned to a core."""

import os
import random
import signal
import threading
from collections.abc import Callable
from contextlib import ExitStack, closing
from typing import Final

import structlog

from tallyboard_server.checkpointer import Checkpointer
from tallyboard_server.counters.service import Counters
from tallyboard_server.counters.sharding import Sharding
from tallyboard_server.counters.wide import WideCounters
from tallyboard_server.leaderboards.service import Leaderboards, now_micros
from tallyboard_server.leaderboards.snapshots import Snapshots
from tallyboard_server.operations import Operations
from tallyboard_server.postgres.pool import open_pool
from tallyboard_server.recovery.admission import RedisAdmission
from tallyboard_server.recovery.durable_reads import DurableReads
from tallyboard_server.recovery.journal import JournalWriter
from tallyboard_server.recovery.service import make_durable, rebuild_on_demand
from tallyboard_server.recovery.standing import PartitionFollower
from tallyboard_server.recovery.verify import Verifier
from tallyboard_server.redis.fences import Fences
from tallyboard_server.redis.nodes import RedisNodes, control_client
from tallyboard_server.redis.operations import Part
from tallyboard_server.redis.store import RedisStore
from tallyboard_server.redis.topology import Topology
from tallyboard_server.rpc.counters import CounterServicer
from tallyboard_server.rpc.leaderboards import LeaderboardServicer
from tallyboard_server.rpc.metrics import CallMetrics
from tallyboard_server.rpc.operations import OperationsServicer
from tallyboard_server.rpc.server import Server
from tallyboard_server.rpc.stack import Stack
from tallyboard_server.settings import Settings
from tallyboard_server.snapshotter import Snapshotter
from tallyboard_server.stores import Opened, open_stores
from tallyboard_server.watching import WatchHub

# Seconds.
_SOON: Final = 1.0
_log = structlog.get_logger(__name__)


def main(settings: Settings, index: int, ready_fd: int) -> int:
    """Serves until SIGTERM; gives the exit status.

    Args:
        settings: with both URLs filled in.
        index: which of the workers this is, from 0.
        ready_fd: gets b"ready\\n" when calls are served.

    Raises:
        StartupError: the stores can't be used.
    """
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    with Worker(settings, open_stores(settings, log=index == 0)) as worker:
        os.write(ready_fd, b"ready\n")
        _log.info("serving", worker=index, address=settings.listen)
        # A signal that came while the process was stopped may be taken by another thread: this one
        # then runs the handler when it wakes up by itself.
        while not stopping.wait(_SOON):
            pass
        worker.drain()
    return 0


class Worker:
    """Everything a worker owns, started by `__enter__` and ended by `__exit__`.

    Args:
        clock: the time now in µs since the epoch, by which windows begin and end.
    """

    def __init__(
        self, settings: Settings, opened: Opened, clock: Callable[[], int] = now_micros
    ) -> None:
        self._settings = settings
        self._opened = opened
        self._clock = clock
        self._stack = ExitStack()

    def __enter__(self) -> "Worker":
        settings, opened, own = self._settings, self._opened, self._stack
        fences = Fences(opened.incarnations)
        sharding = Sharding(
            settings.partitions,
            settings.default_shards,
            settings.shards_by_prefix,
            opened.shard_rules,
            opened.token_shards,
            random.randrange(1 << 16),
        )
        pool = own.enter_context(
            open_pool(settings.postgres_url, name="tallyboard worker", max_size=8)
        )
        nodes = own.enter_context(RedisNodes.of_url(settings.redis_url, settings.partitions))
        store = self._open_store(fences, nodes.topology)
        durable = None
        if settings.journals_first:
            durable = make_durable(Checkpointer(nodes, pool, settings.partitions))
        self._wide = WideCounters(store, sharding, settings.call_timeout, durable)
        own.callback(self._wide.close)
        hub = WatchHub(settings.max_watchers)
        own.callback(hub.close)
        reads = self._open_durable_reads()
        self._counters = Counters(store, self._wide, sharding, pool, settings, hub, durable, reads)
        self._leaderboards = Leaderboards(store, pool, hub, settings, self._clock, durable, reads)
        own.callback(self._leaderboards.close)
        checkpointer = Checkpointer(nodes, pool, settings.partitions)
        verifier = Verifier(nodes, pool, checkpointer, settings.partitions, self._clock)
        rebuild = rebuild_on_demand(settings, nodes.topology, checkpointer, pool, self._clock)
        operations = Operations(nodes, pool, fences, settings, verifier, rebuild)
        snapshots = Snapshots(
            pool,
            self._leaderboards.boards,
            Snapshotter(
                pool,
                checkpointer,
                settings.partitions,
                self._clock,
                settings.snapshot_retention,
            ),
        )
        metrics = own.enter_context(closing(CallMetrics()))
        stack = Stack(
            metrics,
            settings.call_timeout,
            max_streams=settings.stream_threads,
            log_all=settings.access_log == "all",
        )
        servicers = {
            "CounterService": CounterServicer(self._counters, stack, settings.cache_ttl),
            "LeaderboardService": LeaderboardServicer(
                self._leaderboards, stack, settings.cache_ttl
            ),
            "OperationsService": OperationsServicer(
                operations, snapshots, settings.durability, settings.partitions
            ),
        }
        self._server = Server(servicers, stack, settings)
        self._server.start(settings.listen)
        return self

    def _open_durable_reads(self) -> DurableReads:
        """The way to Postgres for reads; what is written and journaled must not wait for them."""
        pool = open_pool(
            self._settings.postgres_url,
            name="tallyboard reads",
            wait=_SOON,
        )
        return DurableReads(self._stack.enter_context(pool), complete=self._settings.journals_first)

    def _open_store(self, fences: Fences, topology: Topology) -> RedisStore:
        """The way to Redis, and to the journal for what Redis does not take."""
        settings, own = self._settings, self._stack
        # What calls and links wait for: a Postgres that hangs must not hang them.
        states = own.enter_context(
            open_pool(
                settings.postgres_url,
                name="tallyboard partitions",
                wait=_SOON,
                answer_timeout=_SOON,
            )
        )
        follower = PartitionFollower(settings.postgres_url, states, fences, settings.partitions)
        own.callback(follower.close)
        admission = RedisAdmission(
            lambda node: control_client(node, settings.redis_timeout),
            topology,
            fences,
            follower,
            settings.durability,
            settings.redis_timeout,
        )
        store = RedisStore(
            topology,
            fences,
            admission,
            timeout=settings.redis_timeout,
            max_pending=settings.max_pending_operations,
            on_refused=lambda part, keys: self._take_over(part, keys),
            journals_first=settings.journals_first,
        )
        if settings.redis_outage == "journal" or settings.journals_first:
            journal = JournalWriter(
                settings.postgres_url,
                states,
                store,
                follower,
                journals_first=settings.journals_first,
                max_pending=settings.max_pending_operations,
                max_rows=settings.max_journal_batches,
            )
            store.attach(journal)
            own.callback(journal.close)
        own.callback(store.close)
        return store

    def __exit__(self, *_: object) -> None:
        self._server.stop(0)
        self._counters.drain()
        self._leaderboards.drain()
        self._stack.close()

    def drain(self) -> None:
        """Says NOT_SERVING, lets the calls under way end, then stops."""
        _log.info("draining")
        self._server.refuse()
        self._counters.drain()
        self._leaderboards.drain()
        self._server.stop(self._settings.drain_timeout)

    def _take_over(self, part: Part, keys: list[str]) -> None:
        self._wide.take_over(part, keys)
