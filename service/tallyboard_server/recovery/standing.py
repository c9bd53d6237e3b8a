"""What a worker knows of its partitions: looked up in Postgres several times a second."""

import threading
from collections.abc import Collection, Iterable
from typing import Final

import psycopg
import structlog

from tallyboard_server.postgres.journal import (
    OPEN,
    Standing,
    left_behind,
    note_redis_life,
    read_standings,
)
from tallyboard_server.postgres.pool import BoundedConnection, BoundedPool, connect
from tallyboard_server.recovery import overlay
from tallyboard_server.redis.fences import Fences

#: Seconds after a change of a state until every worker has seen it.
SEEN_BY_ALL: Final = 0.5
#: The same after Postgres was away: they connect anew.
FOUND_BY_ALL: Final = 1.0
# Seconds between two looks, for so many partitions; more of them are looked at less often, but
# within SEEN_BY_ALL.
_INTERVAL: Final = 0.2
_PARTITIONS: Final = 512
_LONGEST: Final = 0.3
# Seconds that one answer may take; silence is no answer, and stopped servers do answer one day.
_PATIENCE: Final = 3.0
_log = structlog.get_logger(__name__)


class PartitionFollower:
    """Keeps a worker's fences as Postgres has them.

    While Postgres is away, what was known last stays in force: serving goes on. Owns one thread.

    Args:
        conninfo: Postgres, for a connection of its own: a pool's attempts get rarer while Postgres
            is away, and whoever finds it again last would read and write past the journal.
        pool: more connections, for other threads that want to look.
        fences: what is kept up to date.
        partitions: how many there are.
    """

    def __init__(
        self,
        conninfo: str,
        pool: BoundedPool,
        fences: Fences,
        partitions: int,
    ) -> None:
        self._conninfo = conninfo
        self._pool = pool
        self._fences = fences
        self._interval = min(_INTERVAL * max(1.0, partitions / _PARTITIONS), _LONGEST)
        self._standings: dict[int, Standing] = {}  # replaced item by item
        self._lock = threading.Lock()  # guards _standings together with the fences
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="partitions", daemon=True)
        self._thread.start()

    def standing(self, partition: int) -> Standing | None:
        """What Postgres said of it last; None if it never did."""
        return self._standings.get(partition)

    def notice(self, standings: Iterable[Standing]) -> None:
        """Takes what was read from Postgres just now."""
        with self._lock:
            for standing in standings:
                known = self._standings.get(standing.partition)
                if known is not None and known.changes > standing.changes:
                    continue  # somebody has read it since
                self._standings[standing.partition] = standing
                if standing.state == OPEN:
                    self._fences.follow({standing.partition: standing.incarnation}, ())
                else:
                    self._fences.follow({}, (standing.partition,))

    def look(self) -> None:
        """Looks now.

        Raises:
            psycopg.Error: Postgres is away.
        """
        with self._pool.connection() as conn:
            standings = read_standings(conn)
        self.notice(standings)

    def close_where_journaled(self, run_id: str, partitions: Collection[int]) -> None:
        """Looks at partitions in a life of their node, once among all workers.

        It may have lost what was applied. Those that the journal has rows of, applied or not, are
        journaled for.

        Raises:
            psycopg.Error: Postgres is away.
        """
        with self._pool.connection() as conn:
            new = note_redis_life(conn, run_id, partitions)
            if new:
                overlay.begin(conn, left_behind(conn, 0.0) & new)
        self.look()

    def close(self) -> None:
        """Ends the thread."""
        self._closing.set()
        self._thread.join(15.0)

    def _run(self) -> None:
        conn: BoundedConnection | None = None
        while not self._closing.wait(self._interval):
            try:
                if conn is None or conn.closed:
                    conn = connect(self._conninfo, name="tallyboard partitions")
                    conn.answer_timeout = _PATIENCE
                    conn.autocommit = True
                self.notice(read_standings(conn))
            except psycopg.Error:
                # What is known stays in force.
                if conn is not None:
                    conn.close()
            except Exception:
                _log.exception("partitions could not be followed")
        if conn is not None:
            conn.close()
