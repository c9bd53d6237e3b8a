"""Advisory locks in Postgres, by which any number of instances share the work.

All have one first key; the second is the partition, or a negative number for what there is once.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import psycopg

LOCKS: Final = 0x7A11B0
# Of the journal, by partition: see journal.py.
JOURNAL_LOCKS: Final = 0x7A11B1
MIGRATIONS: Final = -1
OPENING: Final = -2


def lock_for_transaction(conn: psycopg.Connection[Any], what: int, wait: float) -> None:
    """Takes a lock until the transaction ends: a partition, MIGRATIONS or OPENING.

    Args:
        conn: a connection inside a transaction.
        what: the lock's second key.
        wait: seconds to wait for whoever holds it.

    Raises:
        psycopg.errors.LockNotAvailable: somebody held it all that time.
    """
    conn.execute("SELECT set_config('lock_timeout', %s, true)", (_milliseconds(wait),))
    conn.execute("SELECT pg_advisory_xact_lock(%s, %s)", (LOCKS, what))


def try_lock_for_transaction(conn: psycopg.Connection[Any], what: Sequence[int]) -> set[int]:
    """Takes those locks that nobody holds until the transaction ends, and gives them."""
    rows = conn.execute(
        "SELECT what FROM unnest(%s::integer[]) AS given (what)"
        " WHERE pg_try_advisory_xact_lock(%s, what)",
        (list(what), LOCKS),
    )
    return {row[0] for row in rows}


def lock_for_session(conn: psycopg.Connection[Any], what: int, wait: float) -> None:
    """The same until the connection closes; needs autocommit. `wait` goes for later locks too."""
    conn.execute("SELECT set_config('lock_timeout', %s, false)", (_milliseconds(wait),))
    conn.execute("SELECT pg_advisory_lock(%s, %s)", (LOCKS, what))


@contextmanager
def locked(conn: psycopg.Connection[Any], what: Sequence[int], wait: float) -> Iterator[None]:
    """Holds locks for a while, in the session: no transaction has to stay open.

    Args:
        conn: a connection that does nothing else meanwhile, outside a transaction.
        what: the locks' second keys.
        wait: seconds to wait for whoever holds one.

    Raises:
        psycopg.errors.LockNotAvailable: somebody held it all that time.
    """
    taken: list[int] = []
    try:
        for key in sorted(what):
            with conn.transaction():
                conn.execute("SELECT set_config('lock_timeout', %s, true)", (_milliseconds(wait),))
                conn.execute("SELECT pg_advisory_lock(%s, %s)", (LOCKS, key))
            taken.append(key)
        yield
    finally:
        if not conn.closed and not conn.broken:
            conn.rollback()
            for key in taken:
                conn.execute("SELECT pg_advisory_unlock(%s, %s)", (LOCKS, key))
            conn.commit()


def unlock_for_session(conn: psycopg.Connection[Any], what: int) -> None:
    """Gives back a lock of `lock_for_session`."""
    conn.execute("SELECT pg_advisory_unlock(%s, %s)", (LOCKS, what))


def _milliseconds(seconds: float) -> str:
    # 0 would mean for ever.
    return f"{max(1, int(seconds * 1000))}ms"
