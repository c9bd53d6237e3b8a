"""Reads from Postgres in the place of Redis: when they may be, how many at once, for how long."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import psycopg
import structlog
from psycopg_pool import PoolTimeout, TooManyRequests

from tallyboard_server.counters.model import Fallback
from tallyboard_server.errors import DeadlineExceeded, Overloaded, TallyboardError, Unavailable
from tallyboard_server.postgres.durable import reading
from tallyboard_server.postgres.pool import BoundedConnection, BoundedPool, TooLate

# So many calls may read or wait for a connection; another one waits a little to be one of them.
_MOST_AT_ONCE: Final = 16
_PATIENCE: Final = 0.25
# Seconds: a connection is there by then, or Postgres is away.
_CONNECTION_WAIT: Final = 0.5
_LEAST_WAIT: Final = 0.2
# Seconds after a failure during which nobody tries again.
_PAUSE: Final = 0.5
# Of the time that a call has, what is left for Postgres when Redis does not answer.
_MOST_RESERVED: Final = 0.25
_SHARE_RESERVED: Final = 0.25
_AWAY: Final = frozenset({"REDIS_UNAVAILABLE", "PARTITION_UNAVAILABLE"})
_log = structlog.get_logger(__name__)


def is_away(error: TallyboardError) -> bool:
    """Whether it says that Redis, or a partition there, can't be read now."""
    return isinstance(error, DeadlineExceeded) or (
        isinstance(error, Unavailable) and error.reason in _AWAY
    )


class _Users:
    """Counts who is inside of `with`."""

    def __init__(self) -> None:
        self._count = 0
        self._lock = threading.Lock()  # guards _count

    def __enter__(self) -> None:
        with self._lock:
            self._count += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._count -= 1

    def __bool__(self) -> bool:
        return self._count > 0


class DurableReads:
    """Reads from Postgres for one worker. Deadlines are values of `time.monotonic()`.

    When Postgres fails too, all reads fail at once for a moment, and then one tries again.

    Args:
        pool: its connections; better not those of writes.
        complete: whether all that was acknowledged is in Postgres, so that what is read there is
            as of now.
    """

    def __init__(self, pool: BoundedPool, *, complete: bool = False) -> None:
        self._pool = pool
        self.complete = complete
        self._places = threading.BoundedSemaphore(_MOST_AT_ONCE)
        self._in_use = _Users()
        # When to try again after a failure. Changed without a lock: at worst, two try.
        self._closed_until = 0.0
        self._is_down = False

    @contextmanager
    def reading(self, deadline: float) -> Iterator[BoundedConnection]:
        """A connection whose reads see one moment.

        Raises:
            DeadlineExceeded: there is no time left.
            Unavailable: REDIS_UNAVAILABLE, for Postgres is away too.
            Overloaded: too many read.
        """
        now = time.monotonic()
        if now < self._closed_until:
            raise _both_away()
        if self._is_down:
            self._closed_until = now + _PAUSE  # the others wait for how this one fares
        left = deadline - now
        if left <= 0:
            raise _too_late()
        if not self._places.acquire(timeout=min(left, _PATIENCE)):
            raise _too_many()
        begun = False
        try:
            left = max(0.001, deadline - time.monotonic())
            with reading(self._pool, min(left, _CONNECTION_WAIT), left) as conn:
                begun = True
                self._note(None)
                with self._in_use:
                    yield conn
        except psycopg.errors.QueryCanceled as error:
            raise _too_late() from error
        except psycopg.Error as error:
            raise self._failed(error, now, deadline, begun=begun) from error
        finally:
            self._places.release()

    def live_deadline(self, fallback: Fallback, staleness: float | None, deadline: float) -> float:
        """How long to ask Redis: if Postgres may answer too, some time is left for that."""
        if not self._may_help(fallback, staleness):
            return deadline
        left = deadline - time.monotonic()
        return deadline - min(_MOST_RESERVED, max(0.0, left) * _SHARE_RESERVED)

    def may_answer(
        self, error: TallyboardError, fallback: Fallback, staleness: float | None
    ) -> bool:
        """Whether Postgres may answer where Redis gave an error.

        Args:
            staleness: seconds that the answer may be old; None asks for one as of now.
        """
        return self._may_help(fallback, staleness) and is_away(error)

    @staticmethod
    def is_fresh(as_of: float, fallback: Fallback, staleness: float | None, begun: float) -> bool:
        """Whether an answer is fresh enough for a read that began then."""
        return fallback is Fallback.ANY_AGE or as_of >= begun - (staleness or 0.0)

    def _may_help(self, fallback: Fallback, staleness: float | None) -> bool:
        if fallback is Fallback.NEVER:
            return False
        return fallback is Fallback.ANY_AGE or self.complete or staleness is not None

    def _failed(
        self, error: psycopg.Error, started: float, deadline: float, *, begun: bool
    ) -> TallyboardError:
        """What a read ends with that Postgres did not answer; notes it if Postgres is away."""
        now = time.monotonic()
        if isinstance(error, PoolTimeout | TooManyRequests) and self._in_use:
            return _too_many()  # others read, so it is not away
        is_late = isinstance(error, TooLate) or now >= deadline
        # One that had little time, or used it up, says nothing about others.
        if not is_late or (not begun and now - started >= _LEAST_WAIT):
            self._note(error)
        return _too_late() if is_late else _both_away()

    def _note(self, error: psycopg.Error | None) -> None:
        if error is not None:
            self._closed_until = time.monotonic() + _PAUSE
        elif self._is_down:
            self._closed_until = 0.0
        if self._is_down != (error is not None):
            self._is_down = error is not None
            if error is not None:
                _log.warning("postgres does not answer reads", why=str(error)[:200])
            else:
                _log.info("postgres answers reads again")


def as_away(error: TallyboardError) -> TallyboardError:
    """The error of a read from Redis for a caller who still has time."""
    if isinstance(error, DeadlineExceeded):
        return Unavailable("Redis does not answer, and Postgres has nothing that is fresh enough")
    return error


def _both_away() -> Unavailable:
    return Unavailable("neither Redis nor Postgres answers; try again later")


def _too_many() -> Overloaded:
    return Overloaded("too many calls read from Postgres at the moment; try again")


def _too_late() -> DeadlineExceeded:
    return DeadlineExceeded("Postgres did not answer before the deadline of the call")
