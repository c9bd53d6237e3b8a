"""The keeper's second thread: drains journals, rebuilds what Redis lost, opens partitions again.

It looks several times a second, so that a partition is open again soon after Redis is back; one
partition after the other, so that what waits comes back in turns.
"""

import threading
import time
from collections.abc import Callable, Sequence, Set
from typing import Final, NamedTuple

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
from tallyboard_server.redis.nodes import RedisNodes, check_replies, is_moving
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


class _Found(NamedTuple):
    """A partition as Postgres has it, and the incarnation and the version that Redis has."""

    row: PartitionRow
    incarnation: str | None
    version: int


class Restorer:
    """Brings partitions back. `run` is for one thread; it ends soon after `stopping` is set.

    Args:
        nodes: clients that do not repeat commands.
        pool: connections to Postgres.
        drainer: applies the journal.
        rebuild: makes partitions of Redis anew from Postgres, and has their journals drained.
        fences: told of every partition's incarnation, open or not.
        partitions: how many there are.
    """

    def __init__(
        self,
        nodes: RedisNodes,
        pool: BoundedPool,
        drainer: Drainer,
        rebuild: Callable[[Sequence[int]], object],
        fences: Fences,
        partitions: int,
        stopping: threading.Event,
    ) -> None:
        self._nodes = nodes
        self._pool = pool
        self._drainer = drainer
        self._rebuild = rebuild
        self._fences = fences
        self._partitions = partitions
        self._stopping = stopping
        self._looked_behind = 0.0
        self._foreign: list[int] = []
        self._trouble = ""
        # Nodes that were away when they were asked last, and since when the others are there.
        self._away: set[str] = set()
        self._back_since: dict[str, float] = {}
        # Partitions whose last rebuild wanted a node that is away, those that waited longest first.
        self._stuck: dict[int, None] = {}

    def run(self) -> None:
        """Works until `stopping` is set."""
        pause = 0.0
        while not self._stopping.wait(pause):
            try:
                self.work()
                pause = _PAUSE
            except (RedisError, psycopg.Error, NotReady, TallyboardError) as error:
                if isinstance(error, psycopg.Error):
                    # Workers may be without it still: nothing is opened before they found it.
                    self._away.update(self._nodes.topology.layout.nodes)
                self._note(str(error).strip())
                pause = _AWAY_PAUSE
            except Exception:  # the thread must live
                _log.exception("restoring failed")
                pause = _AWAY_PAUSE
        self._drainer.close()

    def work(self) -> None:
        """One look at all partitions, and what follows from it.

        Raises:
            RedisError, psycopg.Error, NotReady: a store is away; what does not need it is done.
        """
        self._nodes.refresh()
        with self._pool.connection() as conn:
            standings = read_partitions(conn)
            _DEPTH.set(rows.depth(conn))
        self._fences.follow({row.partition: row.incarnation for row in standings}, ())
        _NOT_OPEN.set(sum(row.state != OPEN for row in standings))
        found, away = self._lives([row for row in standings if row.opened])
        self._find_left_behind({row.partition for row, _, _ in found})
        trouble = self._restore(found) or away
        if trouble is not None:
            raise trouble
        self._trouble = ""

    def _restore(self, found: Sequence[_Found]) -> Exception | None:
        """Brings back what can be; gives what is in the way of the others."""
        lost, foreign = self._sort(found)
        if foreign != self._foreign:
            self._foreign = foreign
            if foreign:
                _log.error("Redis holds data that Postgres never knew.", partitions=foreign)
        waiting = [
            row.partition
            for row, _, _ in found
            if row.state == JOURNALING
            and row.partition not in lost
            and row.partition not in foreign
        ]
        trouble: Exception | None = None
        layout = self._nodes.topology.layout
        for node, partitions in layout.group(waiting).items():
            try:
                self._drain_all(partitions)
            except RedisAway as error:
                self._away.add(node)
                trouble = error
            except (NotReady, TallyboardError, RedisError) as error:
                if not lost:
                    trouble = trouble or error
                    continue
                # It may want a counter's or a window's other partitions, which are lost still.
                _log.info("Partitions wait for others.", why=str(error))
        lost = [partition for partition in lost if layout.node_of(partition) not in self._away]
        if lost:
            self._rebuild_some(self._next_to_rebuild(lost))
        return trouble

    def _next_to_rebuild(self, lost: Sequence[int]) -> list[int]:
        """Some at a time, so that the first are open while the others are loaded.

        One that wants a node that is away, for a board with segments there, must not keep others
        from being rebuilt: those that were tried with it are tried alone, behind the others.
        """
        self._stuck = {i: None for i in self._stuck if i in lost}
        fresh = [i for i in lost if i not in self._stuck]
        if not fresh:
            fresh = [next(iter(self._stuck))]
            del self._stuck[fresh[0]]
        return fresh[:_REBUILT_TOGETHER]

    def _lives(self, standings: Sequence[PartitionRow]) -> tuple[list[_Found], RedisError | None]:
        """What the nodes hold that have been there for a while; and what one that is away said."""
        by_partition = {row.partition: row for row in standings}
        found: list[_Found] = []
        trouble: RedisError | None = None
        # Workers find a node that has just taken over as late as one that is back.
        new_since = time.monotonic() if self._back_since else 0.0
        for node, partitions in self._nodes.topology.layout.group(by_partition).items():
            try:
                held = _ask(self._nodes.at(node), partitions)
            except RedisError as error:
                self._nodes.note(node, error)
                self._away.add(node)
                trouble = error
                continue
            if node in self._away:
                self._away.remove(node)
                self._back_since[node] = time.monotonic()
            if time.monotonic() - self._back_since.setdefault(node, new_since) >= _SETTLING:
                found += [_Found(by_partition[i], *each) for i, each in held.items()]
        return found, trouble

    @staticmethod
    def _sort(found: Sequence[_Found]) -> tuple[list[int], list[int]]:
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
            NotReady, TallyboardError, RedisError: of the last one that can't be.
        """
        started, batches = time.monotonic(), 0
        opened: list[int] = []
        trouble: NotReady | TallyboardError | RedisError | None = None
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
                except (NotReady, TallyboardError, RedisError) as error:
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
        except RedisError:
            if self._away:
                self._stuck |= dict.fromkeys(partitions)
            raise
        except (PartitionBusy, Fenced) as error:
            # Another keeper, or a checkpoint; the next look shows what is left.
            _log.info("Partitions are being worked on.", partitions=partitions, why=str(error))

    def _find_left_behind(self, reached: Set[int]) -> None:
        """Has partitions drained whose rows a worker left that is gone."""
        now = time.monotonic()
        if now - self._looked_behind < LEFT_BEHIND / 2:
            return
        self._looked_behind = now
        with self._pool.connection() as conn:
            found = rows.left_behind(conn, LEFT_BEHIND)
        self._close_where_unapplied(found & reached)

    def _close_where_unapplied(self, partitions: set[int]) -> None:
        for partition in sorted(partitions):
            applied = {
                int(row) for row in self._nodes.of(partition).smembers(journaled_key(partition))
            }
            with self._pool.connection() as conn:
                if rows.batch_ids(conn, partition, LEFT_BEHIND) - applied:
                    overlay.begin(conn, [partition])

    def _note(self, trouble: str) -> None:
        if trouble != self._trouble:
            self._trouble = trouble
            _log.warning("Partitions can't be brought back now.", why=trouble)


def _ask(node: Redis, partitions: Sequence[int]) -> dict[int, tuple[str | None, int]]:
    """The incarnation and the version of partitions that a node holds.

    One that is on its way to another node is left out.
    """
    pipeline = node.pipeline(transaction=False)
    for partition in partitions:
        pipeline.execute_command("GET", incarnation_key(partition))
        pipeline.execute_command("GET", version_key(partition))
    replies = pipeline.execute(raise_on_error=False)
    found: dict[int, tuple[str | None, int]] = {}
    for partition, *pair in zip(partitions, replies[::2], replies[1::2], strict=True):
        if is_moving(pair):
            continue
        check_replies(pair)
        incarnation, version = pair
        found[partition] = (incarnation.decode() if incarnation else None, int(version or 0))
    return found
