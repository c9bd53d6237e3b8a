"""A partition that is open, as whoever works on it found it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

import psycopg

from tallyboard_server.errors import Unavailable
from tallyboard_server.postgres.locks import lock_for_transaction
from tallyboard_server.postgres.pool import BoundedPool
from tallyboard_server.postgres.verify import read_life

_LOCK_WAIT: Final = 5.0
_OPEN: Final = "OPEN"


class OpenPartition(NamedTuple):
    """A partition and the life of its data that both stores have to follow."""

    number: int
    incarnation: str

    @contextmanager
    def held(self, pool: BoundedPool) -> Iterator[psycopg.Connection[Any]]:
        """A transaction during which no checkpoint, erasure or rebuild moves the partition.

        Raises:
            Unavailable: PARTITION_UNAVAILABLE, somebody else has held it for 5 s, or it isn't open
                any more, or it is open in another life.
        """
        with pool.connection() as conn:
            try:
                lock_for_transaction(conn, self.number, _LOCK_WAIT)
            except psycopg.errors.LockNotAvailable:
                raise unavailable(self.number, "somebody else works on it") from None
            if find_open(conn, self.number) != self:
                raise unavailable(self.number, "it was made anew in between")
            yield conn


def find_open(conn: psycopg.Connection[Any], number: int) -> OpenPartition:
    """The partition as Postgres has it.

    Raises:
        Unavailable: PARTITION_UNAVAILABLE, it isn't open.
    """
    life = read_life(conn, number)
    if life is None:
        raise unavailable(number, "Postgres doesn't know it")
    if life.state != _OPEN:
        raise unavailable(number, f"it is {life.state.lower()}")
    return OpenPartition(number, life.incarnation)


def unavailable(number: int, why: str) -> Unavailable:
    """The error for a partition that can't be worked on now."""
    return Unavailable(
        f"partition {number} can't be used now: {why}", reason="PARTITION_UNAVAILABLE"
    )
