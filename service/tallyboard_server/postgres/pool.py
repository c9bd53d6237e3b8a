"""Connections to Postgres that never hang anyone: every connect, wait and answer has a limit."""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, LiteralString, TypeVar

import psycopg
import structlog
from psycopg.abc import PQGen
from psycopg_pool import ConnectionPool

from tallyboard_server.errors import DeadlineExceeded, Unavailable

CONNECT_TIMEOUT: Final = 3
STATEMENT_TIMEOUT: Final = 10.0
LOCK_TIMEOUT: Final = 5.0
# More than the server's own limit, so that it is the server that ends a slow statement.
ANSWER_TIMEOUT: Final = STATEMENT_TIMEOUT + 2.0
_POLL: Final = 0.1
# Seconds after a call's deadline in which the server may still say that it has ended a statement;
# it counts in whole milliseconds, and so may say it a little too soon.
_GRACE: Final = 0.1
_EARLY: Final = 0.01

# Those of the pool are OperationalErrors. A server that turns read-only is being replaced, and one
# that ends an idle transaction has ended the connection.
_AWAY: Final = (
    psycopg.OperationalError,
    psycopg.InterfaceError,
    psycopg.errors.ReadOnlySqlTransaction,
    psycopg.errors.IdleInTransactionSessionTimeout,
)
# Seconds from one line about an outage to the next.
_LOG_INTERVAL: Final = 30.0
_quiet_until = 0.0
_log = structlog.get_logger(__name__)

_Result = TypeVar("_Result")

# The pool warns at every attempt while Postgres is away; who uses it logs the change, once.
logging.getLogger("psycopg.pool").setLevel(logging.ERROR)


class TooLate(psycopg.OperationalError):
    """The deadline of a call passed before Postgres had answered."""

    def __init__(self) -> None:
        super().__init__("Postgres did not answer before the deadline of the call")


class BoundedConnection(psycopg.Connection[Any]):
    """A connection that gives up when the server is silent for `answer_timeout` seconds.

    The server's own statement_timeout can't help when the server is stopped or unreachable.
    Giving up closes the connection and raises psycopg.OperationalError.
    """

    answer_timeout: float = ANSWER_TIMEOUT
    # When to give up in any case, as time.monotonic() has it.
    answer_by: float | None = None

    def wait(
        self, gen: PQGen[_Result], interval: float = _POLL, timeout: float | None = None
    ) -> _Result:
        """Runs one exchange with the server to its end, or to the limit."""
        limit = self.answer_timeout if timeout is None else timeout
        started = time.monotonic()
        if self.answer_by is not None:
            limit = min(limit, max(0.001, self.answer_by - started))
        try:
            return super().wait(gen, interval, limit)
        except psycopg.OperationalError:
            if time.monotonic() - started >= limit:
                # An answer that comes now belongs to a question nobody asks any more.
                self.close()
            raise


class BoundedPool(ConnectionPool[BoundedConnection]):
    """Connections for which nobody waits longer than they said, whatever Postgres does."""

    # By thread: when the caller that is being given a connection stops waiting for it.
    _asking = threading.local()

    @contextmanager
    def until(
        self,
        deadline: float | None,
        *,
        wait: float | None = None,
        begin: LiteralString = "",
    ) -> Iterator[BoundedConnection]:
        """A connection for one transaction that is over by the deadline, its commit included.

        Postgres ends a statement that takes longer than what is left. The connection gives up, and
        is closed, when it does not even do that.

        Args:
            deadline: of time.monotonic(); None: only the limits that all connections have.
            wait: seconds until there must be a connection, if not those of the pool.
            begin: what the transaction starts with.

        Raises:
            TooLate: the deadline passed. Whether a commit under way came through is not known.
            psycopg_pool.PoolTimeout: there was no connection.
            psycopg.Error: Postgres is away.
        """
        patience = self.timeout if wait is None else wait
        if deadline is not None:
            patience = min(patience, deadline - time.monotonic())
            if patience <= 0:
                raise TooLate
        conn = self.getconn(patience)
        try:
            if deadline is not None:
                conn.answer_by = deadline + _GRACE
            with conn:
                if deadline is not None:
                    conn.execute(f"{begin}SET LOCAL statement_timeout = {_milliseconds(deadline)}")
                elif begin:
                    conn.execute(begin)
                yield conn
        except psycopg.OperationalError as error:
            if deadline is None or time.monotonic() < deadline - _EARLY:
                raise
            raise TooLate from error
        finally:
            conn.answer_by = None
            self.putconn(conn)

    def getconn(self, timeout: float | None = None) -> BoundedConnection:
        """As the parent has it; the wait for a sign of life from a connection counts too."""
        patience = self.timeout if timeout is None else timeout
        self._asking.until = time.monotonic() + patience
        return super().getconn(timeout)

    @classmethod
    def check_alive(cls, conn: BoundedConnection) -> None:
        """Checks a connection that is about to be given to the caller of `getconn`.

        Raises:
            psycopg.Error: it doesn't work, or doesn't answer as long as the caller waits.
        """
        conn.answer_by = cls._asking.until
        try:
            cls.check_connection(conn)
        finally:
            conn.answer_by = None


def _milliseconds(deadline: float) -> int:
    """What a statement may take: what is left until the deadline, or less."""
    left = min(deadline - time.monotonic(), STATEMENT_TIMEOUT)
    return max(1, int(left * 1e3))


# Dead peers: TCP gives up on data nobody acknowledges, and asks idle ones whether they live.
_CONNECT_OPTIONS: Final[dict[str, Any]] = {
    "connect_timeout": CONNECT_TIMEOUT,
    "tcp_user_timeout": 5_000,
    "keepalives_idle": 10,
    "keepalives_interval": 3,
    "keepalives_count": 3,
    "client_encoding": "utf8",
}


def connect(conninfo: str, *, name: str = "tallyboard") -> BoundedConnection:
    """One connection outside a pool, for work at the start; close it.

    Args:
        conninfo: a postgresql:// URL or libpq's key=value form.
        name: what pg_stat_activity shows.

    Raises:
        psycopg.OperationalError: no connection within 3 s.
    """
    conn = BoundedConnection.connect(conninfo, application_name=name, **_CONNECT_OPTIONS)
    try:
        _set_limits(conn)
    except BaseException:
        conn.close()
        raise
    return conn


def open_pool(
    conninfo: str,
    *,
    name: str = "tallyboard",
    max_size: int = 4,
    wait: float = 2.0,
    answer_timeout: float = ANSWER_TIMEOUT,
) -> BoundedPool:
    """A pool that starts at once, whether Postgres answers or not; close it.

    Args:
        conninfo: a postgresql:// URL or libpq's key=value form.
        name: what pg_stat_activity shows.
        max_size: most connections; at most 16 callers a connection wait for one.
        wait: seconds until a caller that finds no connection, or none that answers, gets
            psycopg_pool.PoolTimeout.
        answer_timeout: seconds of silence after which a connection gives up.
    """

    def configure(conn: BoundedConnection) -> None:
        # Who connects may not be kept for long by a server that hangs: callers wait.
        conn.answer_timeout = CONNECT_TIMEOUT
        _set_limits(conn)
        conn.answer_timeout = answer_timeout

    pool = BoundedPool(
        conninfo,
        connection_class=BoundedConnection,
        kwargs={"application_name": name, **_CONNECT_OPTIONS},
        min_size=1,
        max_size=max_size,
        open=False,
        configure=configure,
        check=BoundedPool.check_alive,
        name=name,
        timeout=wait,
        max_waiting=16 * max_size,
        # Attempts get rarer with time; giving up early lets the next caller start afresh, so a
        # Postgres that is back is found within seconds.
        reconnect_timeout=4.0,
        num_workers=2,
    )
    pool.open(wait=False)
    return pool


def _set_limits(conn: psycopg.Connection[Any]) -> None:
    conn.execute(
        "SELECT set_config('statement_timeout', %s, false),"
        " set_config('lock_timeout', %s, false),"
        " set_config('idle_in_transaction_session_timeout', %s, false)",
        tuple(f"{seconds:g}s" for seconds in (STATEMENT_TIMEOUT, LOCK_TIMEOUT, 30.0)),
    )
    conn.commit()


def _log_away(error: psycopg.Error) -> None:
    """Says why, but not for every call of an outage."""
    global _quiet_until
    now = time.monotonic()
    if now >= _quiet_until:
        _quiet_until = now + _LOG_INTERVAL
        _log.warning("postgres does not answer", kind=type(error).__name__, why=str(error)[:200])


@contextmanager
def postgres_unavailable() -> Iterator[None]:
    """Turns what psycopg raises while Postgres is away into `Unavailable`.

    The reason is POSTGRES_UNAVAILABLE, or PARTITION_UNAVAILABLE where somebody else held a lock for
    too long. A deadline that has passed (see BoundedPool.until) becomes `DeadlineExceeded`. Other
    errors of psycopg are faults of the statement and pass.
    """
    try:
        yield
    except TooLate as error:
        raise DeadlineExceeded(str(error)) from error
    except psycopg.errors.LockNotAvailable as error:
        raise Unavailable(
            "somebody else holds a lock in Postgres that this needs; try again later",
            reason="PARTITION_UNAVAILABLE",
        ) from error
    except _AWAY as error:
        _log_away(error)
        raise Unavailable(
            "Postgres does not answer; try again later", reason="POSTGRES_UNAVAILABLE"
        ) from error
