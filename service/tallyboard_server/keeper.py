"""The keeper process: checkpoints at an interval, and what follows from them.

Definitions that Redis doesn't have are told to it, windows that have ended are archived, daily
standings are copied, the stores are compared; whatever happens to the stores meanwhile.
"""

import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Final

import psycopg
import structlog
from prometheus_client import Counter, Gauge
from redis.exceptions import RedisError

from tallyboard_server.archiver import Archiver
from tallyboard_server.checkpointer import Checkpointer, CheckpointResult
from tallyboard_server.leaderboards.service import now_micros
from tallyboard_server.postgres.checkpoints import oldest_checkpoint
from tallyboard_server.postgres.pool import BoundedPool, open_pool
from tallyboard_server.publisher import Publisher
from tallyboard_server.recovery.drift import DriftWatch
from tallyboard_server.recovery.service import Restoring
from tallyboard_server.recovery.verify import Verifier
from tallyboard_server.redis.nodes import RedisNodes
from tallyboard_server.settings import Settings
from tallyboard_server.snapshotter import Snapshotter
from tallyboard_server.startup import StartupError
from tallyboard_server.stores import open_stores

LAST_CHECKPOINT_TIMEOUT: Final = 10.0
FIRST_RETRY: Final = 0.5
SLOWEST_RETRY: Final = 10.0

_FAILURES = Counter(
    "tallyboard_checkpoint_failures", "Checkpoints that did not get through.", ["store"]
)
_LAG = Gauge(
    "tallyboard_checkpoint_lag_seconds",
    "Age of what Postgres holds: the time since its oldest partition was up to date.",
    multiprocess_mode="mostrecent",
)
_log = structlog.get_logger(__name__)


def main(settings: Settings, ready_fd: int) -> int:
    """Runs until SIGTERM or SIGINT, then makes one last checkpoint; gives the exit status 0.

    Args:
        settings: with both URLs filled in.
        ready_fd: gets b"ready\\n" once signals are handled.
    """
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    with (
        RedisNodes.of_url(settings.redis_url, settings.partitions) as nodes,
        open_pool(settings.postgres_url, name="tallyboard keeper", max_size=2) as pool,
    ):
        os.write(ready_fd, b"ready\n")
        with Restoring(settings):
            Keeper(settings, nodes, pool, stopping).run()
    return 0


class Keeper:
    """The loop of the keeper, for one thread.

    Args:
        settings: with both URLs filled in.
        nodes: clients that do not repeat commands.
        pool: connections to Postgres.
        stopping: ends `run`.
        clock: the time now in µs since the epoch, by which windows and days end.
    """

    def __init__(
        self,
        settings: Settings,
        nodes: RedisNodes,
        pool: BoundedPool,
        stopping: threading.Event,
        clock: Callable[[], int] = now_micros,
    ) -> None:
        self._settings = settings
        self._pool = pool
        self._stopping = stopping
        self._nodes = nodes
        self._checkpointer = Checkpointer(nodes, pool, settings.partitions)
        self._publisher = Publisher(nodes, pool, settings.partitions, settings.request_id_ttl)
        self._archiver = Archiver(
            nodes, pool, self._checkpointer, settings.partitions, clock, settings.archive_quiet
        )
        self._snapshotter = Snapshotter(
            pool, self._checkpointer, settings.partitions, clock, settings.snapshot_retention
        )
        self._drift_watch = DriftWatch(
            Verifier(nodes, pool, self._checkpointer, settings.partitions, clock),
            settings.partitions,
            settings.verify_interval,
        )
        # A Postgres that was away at the start may lack the schema, or the partitions.
        self._prepared = False
        self._away: str | None = None
        self._fenced: tuple[int, ...] = ()
        self._unreached: tuple[int, ...] = ()

    def run(self) -> None:
        """Works until `stopping` is set, and makes one checkpoint more then."""
        pause = 0.0
        while not self._stopping.wait(pause):
            started = time.monotonic()
            if self.attempt() and self.tidy():
                pause = max(0.0, started + self._settings.checkpoint_interval - time.monotonic())
            else:
                pause = min(max(FIRST_RETRY, 2 * pause), SLOWEST_RETRY)
        self.attempt(time.monotonic() + LAST_CHECKPOINT_TIMEOUT)

    def tidy(self) -> bool:
        """What follows a checkpoint: definitions, archives, snapshots, a look at what differs.

        False as in `attempt`.
        """
        return self._guarded(self._tidy)

    def attempt(self, deadline: float | None = None) -> bool:
        """One checkpoint of everything, ended at `deadline`; False when a store is away."""
        return self._guarded(lambda: self._checkpoint(deadline))

    def _tidy(self) -> None:
        if self._unreached:
            return  # most of it needs all nodes, and would keep checkpoints waiting for one
        self._publisher.publish()
        self._snapshotter.work()
        self._archiver.work()
        self._archiver.drop_expired()
        self._publisher.purge()
        self._drift_watch.work()

    def _checkpoint(self, deadline: float | None) -> None:
        self._nodes.refresh()
        if not self._prepared:
            self._prepare()
        result = self._checkpointer.checkpoint_all(deadline)
        self._measure_lag()
        self._succeeded(result)

    def _guarded(self, work: Callable[[], None]) -> bool:
        try:
            work()
        except StartupError as error:
            return self._failed("start", str(error))
        except RedisError as error:
            return self._failed("redis", f"Redis is away: {error}")
        except psycopg.Error as error:
            return self._failed("postgres", f"Postgres is away: {error}")
        return True

    def _prepare(self) -> None:
        opened = open_stores(self._settings, log=False)
        if not opened.postgres_available:
            raise StartupError(opened.problems[0])
        self._prepared = True

    def _measure_lag(self) -> None:
        with self._pool.connection() as conn:
            oldest = oldest_checkpoint(conn)
        if oldest is not None:
            _LAG.set(max(0.0, time.time() - oldest.timestamp()))

    def _failed(self, store: str, problem: str) -> bool:
        _FAILURES.labels(store).inc()
        self._prepared = False
        if self._away != store:
            self._away = store
            _log.warning("Checkpoints wait.", store=store, problem=problem.strip())
        return False

    def _succeeded(self, result: CheckpointResult) -> None:
        if self._away is not None:
            _log.info("Checkpoints go on.", store=self._away)
            self._away = None
        if result.away != self._unreached:
            self._unreached = result.away
            if result.away:
                _log.warning(
                    "Checkpoints of some partitions wait: their node of Redis is away, or they are "
                    "on their way to another one.",
                    partitions=list(result.away),
                )
            else:
                # A start that ended halfway may have left partitions of that node to be made.
                self._prepared = False
                _log.info("Checkpoints of all partitions go on.")
        if result.fenced != self._fenced:
            self._fenced = result.fenced
            if result.fenced:
                _log.error(
                    "Partitions can't be checkpointed: Redis doesn't hold the data that Postgres "
                    "follows.",
                    partitions=list(result.fenced),
                )
        _log.debug(
            "Checkpoint.",
            keys=result.counters,
            entries=result.entries,
            partitions=result.partitions,
            seconds=round(result.seconds, 3),
        )
