"""The keeper's second thread: drains journals, rebuilds what Redis lost, opens partitions again.

It looks several times a second, so that a partition is open again soon after Redis is back; one
partition after the other, so that what waits comes back in turns.
"""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

import psycopg
import structlog
from prometheus_client import Gauge
from redis import Redis
from redis.exceptions import RedisError

from tallyboard_server.errors import TallyboardError
from tallyboard_server.postgres import journal as rows
from tallyboard_server.postgres.journal import JOURNALING, OPEN, REBUILDING
from tallyboard_server.postgres.partitions import PartitionRow, read_partitions
from tallyboard_server.postgres.pool import BoundedPool
from tallyboard_server.recovery import overlay
from tallyboard_server.recovery.drain import Drainer, NotReady, RedisAway
from tallyboard_server.recovery.rebuild import PartitionBusy
from tallyboard_server.redis.fences import Fences
from tallyboard_server.redis.keys import incarnation_key, journaled_key, version_key
from tallyboard_server.redis.link import RECONNECT_MOST
from tallyboard_server.redis.pipe import Fenced

_PAUSE: Final = 0.2
_REBUILT_TOGETHER: Final = 16
_AWAY_PAUSE: Final = 0.5
# A partition that is opened before all workers have found Redis again is closed by the next one.
_SETTLING: Final = 1.5 * RECONNECT_MOST
# Seconds after which a row that nobody has applied belongs to a worker that is gone.
LEFT_BEHIND: Final = 10.0

_NOT_OPEN = Gauge(
    "tallyboard_partitions_not_open",
    "Partitions whose writes go to the journal.",
    multiprocess_mode="mostrecent",
)
_DEPTH = Gauge(
    "tallyboard_journal_batches",
    "About how many batches the journal has, at most.",
    multiprocess_mode="mostrecent",
)
_log = structlog.get_logger(__name__)


class Restorer:
    """Brings partitions back. `run` is for one thread; it ends soon after `stopping` is set.

    Args:
        redis: a client that does not repeat commands.
        pool: connections to Postgres.
        drainer: applies the journal.
        rebuild: makes partitions of Redis anew from Postgres, and has their journals drained.
        fences: told of every partition's incarnation, open or not.
        partitions: how many there are.
    """

    def __init__(
        self,
        redis: Redis,
        pool: BoundedPool,
        drainer: Drainer,
        rebuild: Callable[[Sequence[int]], object],
        fences: Fences,
        partitions: int,
        stopping: threading.Event,
    ) -> None:
        self._redis = redis
        self._pool = pool
        self._drainer = drainer
        self._rebuild = rebuild
        self._fences = fences
        self._partitions = partitions
        self._stopping = stopping
        self._looked_behind = 0.0
        self._foreign: list[int] = []
        self._trouble = ""
        self._back_since = 0.0

    def run(self) -> None:
        """Works until `stopping` is set."""
        pause = 0.0
        while not self._stopping.wait(pause):
            try:
                self.work()
                pause = _PAUSE
            except (RedisError, psycopg.Error, NotReady, TallyboardError) as error:
                self._note(str(error).strip())
                pause = _AWAY_PAUSE
            except Exception:  # the thread must live
                _log.exception("restoring failed")
                pause = _AWAY_PAUSE
        self._drainer.close()

    def work(self) -> None:
        """One look at all partitions, and what follows from it.

        Raises:
            RedisError, psycopg.Error, NotReady: a store is away.
        """
        self._find_left_behind()
        with self._pool.connection() as conn:
            standings = read_partitions(conn)
            _DEPTH.set(rows.depth(conn))
        self._fences.follow({row.partition: row.incarnation for row in standings}, ())
        _NOT_OPEN.set(sum(row.state != OPEN for row in standings))
        found = self._lives([row for row in standings if row.opened])
        if self._trouble:
            self._trouble, self._back_since = "", time.monotonic()
        if time.monotonic() - self._back_since < _SETTLING:
            return
        lost, foreign = self._sort(found)
        if foreign != self._foreign:
            self._foreign = foreign
            if foreign:
                _log.error("Redis holds data that Postgres never knew.", partitions=foreign)
        waiting = [
            row.partition
            for row in standings
            if row.state == JOURNALING
            and row.partition not in lost
            and row.partition not in foreign
        ]
        try:
            self._drain_all(waiting)
        except RedisAway:
            raise
        except (NotReady, TallyboardError) as error:
            if not lost:
                raise
            # It may want a counter's or a window's other partitions, which are lost still.
            _log.info("Partitions wait for others.", why=str(error))
        if lost:
            # Some at a time, so that the first are open while the others are loaded.
            self._rebuild_some(lost[:_REBUILT_TOGETHER])

    def _lives(
        self, standings: Sequence[PartitionRow]
    ) -> list[tuple[PartitionRow, str | None, int]]:
        """The rows with the incarnation and the version that Redis has."""
        pipeline = self._redis.pipeline(transaction=False)
        for row in standings:
            pipeline.execute_command("GET", incarnation_key(row.partition))
            pipeline.execute_command("GET", version_key(row.partition))
        found = pipeline.execute()
        return [
            (row, held.decode() if held else None, int(version or 0))
            for row, held, version in zip(standings, found[::2], found[1::2], strict=True)
        ]

    @staticmethod
    def _sort(
        found: Sequence[tuple[PartitionRow, str | None, int]],
    ) -> tuple[list[int], list[int]]:
        """Partitions that Redis lost, and those of which it holds somebody else's data."""
        lost, foreign = [], []
        for row, incarnation, version in found:
            if incarnation == row.incarnation:
                if row.state == REBUILDING or version < row.version:
                    lost.append(row.partition)
            elif incarnation is None or incarnation.startswith("-") or incarnation in row.earlier:
                lost.append(row.partition)
            else:
                foreign.append(row.partition)
        return lost, foreign

    def _drain_all(self, partitions: Sequence[int]) -> None:
        """Opens partitions one after the other: what waits for them comes back in turns.

        One that can't be opened does not keep the others from it.

        Raises:
            NotReady, TallyboardError: of the last one that can't be.
        """
        started, batches = time.monotonic(), 0
        opened: list[int] = []
        trouble: NotReady | TallyboardError | None = None
        try:
            for partition in partitions:
                if self._stopping.is_set():
                    break
                try:
                    batches += self._drainer.drain(partition).batches
                    opened.append(partition)
                except psycopg.errors.LockNotAvailable:
                    continue  # somebody else works on it
                except RedisAway:
                    raise
                except (NotReady, TallyboardError) as error:
                    trouble = error
            if trouble is not None:
                raise trouble
        finally:
            if opened:
                seconds = round(time.monotonic() - started, 3)
                _log.info(
                    "Partitions open again.", partitions=opened, batches=batches, seconds=seconds
                )

    def _rebuild_some(self, partitions: Sequence[int]) -> None:
        try:
            self._rebuild(partitions)
        except (PartitionBusy, Fenced) as error:
            # Another keeper, or a checkpoint; the next look shows what is left.
            _log.info("Partitions are being worked on.", partitions=partitions, why=str(error))

    def _find_left_behind(self) -> None:
        """Has partitions drained whose rows a worker left that is gone."""
        now = time.monotonic()
        if now - self._looked_behind < LEFT_BEHIND / 2:
            return
        self._looked_behind = now
        with self._pool.connection() as conn:
            found = rows.left_behind(conn, LEFT_BEHIND)
        if found:
            self._close_where_unapplied(found)

    def _close_where_unapplied(self, partitions: set[int]) -> None:
        for partition in sorted(partitions):
            applied = {int(row) for row in self._redis.smembers(journaled_key(partition))}
            with self._pool.connection() as conn:
                if rows.batch_ids(conn, partition, LEFT_BEHIND) - applied:
                    overlay.begin(conn, [partition])

    def _note(self, trouble: str) -> None:
        if trouble != self._trouble:
            self._trouble = trouble
            _log.warning("Partitions can't be brought back now.", why=trouble)
