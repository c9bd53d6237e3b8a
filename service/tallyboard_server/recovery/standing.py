"""What a worker knows of its partitions: looked up in Postgres several times a second."""

import threading
from collections.abc import Iterable
from typing import Final

import psycopg
import structlog
from psycopg_pool import ConnectionPool

from tallyboard_server.postgres.journal import (
    OPEN,
    Standing,
    begin_journaling,
    left_behind,
    read_standings,
)
from tallyboard_server.postgres.pool import BoundedConnection
from tallyboard_server.redis.fences import Fences

# Seconds between two looks, for so many partitions; more of them are looked at less often.
_INTERVAL: Final = 0.2
_PARTITIONS: Final = 512
_log = structlog.get_logger(__name__)


class PartitionFollower:
    """Keeps a worker's fences as Postgres has them.

    While Postgres is away, what was known last stays in force: serving goes on. Owns one thread.

    Args:
        fences: what is kept up to date.
        partitions: how many there are.
    """

    def __init__(
        self, pool: ConnectionPool[BoundedConnection], fences: Fences, partitions: int
    ) -> None:
        self._pool = pool
        self._fences = fences
        self._interval = _INTERVAL * max(1.0, partitions / _PARTITIONS)
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

    def close_where_journaled(self) -> None:
        """Has those partitions journaled for that the journal has rows of, applied or not.

        Raises:
            psycopg.Error: Postgres is away.
        """
        with self._pool.connection() as conn:
            begin_journaling(conn, left_behind(conn, 0.0))
        self.look()

    def close(self) -> None:
        """Ends the thread."""
        self._closing.set()
        self._thread.join(15.0)

    def _run(self) -> None:
        while not self._closing.wait(self._interval):
            try:
                self.look()
            except psycopg.Error:
                pass  # what is known stays in force
            except Exception:
                _log.exception("partitions could not be followed")
