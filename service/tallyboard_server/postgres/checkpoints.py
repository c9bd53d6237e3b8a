"""Writing what a checkpoint read from Redis, a few partitions at a time."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import psycopg

from tallyboard_server.postgres.locks import lock_for_transaction, try_lock_for_transaction
from tallyboard_server.postgres.statements import statement


class ShardValue(NamedTuple):
    """One key of a counter: a shard, or the whole value of a wide counter.

    `value` is None when the key is gone. `frozen` says of a shard that it belongs to a wide
    counter, and of a wide value that the counter was deleted.
    """

    partition: int
    tenant: str
    counter: str
    wide: bool
    value: int | None
    frozen: bool


class Life(NamedTuple):
    """Which life of a partition Postgres follows, and the number of its last checkpoint."""

    incarnation: str
    version: int


class TokenRow(NamedTuple):
    """A token that a partition remembers.

    `held` is a ring's fields and values, one behind the other, or the one value of another token.
    """

    partition: int
    token: bytes
    ring: bool
    held: list[bytes]
    expires_at: datetime


def lock_partition(conn: psycopg.Connection[Any], partition: int, wait: float) -> dict[int, Life]:
    """Keeps other checkpoints off the partition until the transaction ends.

    Gives the life that Postgres follows, nothing if it does not know the partition.

    Raises:
        psycopg.errors.LockNotAvailable: somebody else had it for `wait` seconds.
    """
    lock_for_transaction(conn, partition, wait)
    return read_lives(conn, [partition])


def try_lock_partitions(
    conn: psycopg.Connection[Any], partitions: Sequence[int]
) -> tuple[dict[int, Life], list[int]]:
    """The same for those of `partitions` that are free, without waiting.

    Gives their lives as `lock_partition` does, and the partitions that are not free.
    """
    locked = try_lock_for_transaction(conn, partitions)
    return read_lives(conn, sorted(locked)), sorted(set(partitions) - locked)


def read_lives(conn: psycopg.Connection[Any], partitions: Sequence[int]) -> dict[int, Life]:
    """The lives that Postgres follows, of those partitions that it knows."""
    # A statement of its own: it has to see what was committed before the lock was had.
    rows = conn.execute(
        "SELECT partition, incarnation, version FROM tallyboard.partitions"
        " WHERE partition = ANY(%s)",
        (list(partitions),),
    )
    return {partition: Life(incarnation, version) for partition, incarnation, version in rows}


def write_values(
    conn: psycopg.Connection[Any], values: Sequence[ShardValue], read_at: datetime
) -> None:
    """Writes what Redis held at `read_at` and keeps the totals; the partitions must be locked.

    The values go along as arrays: a temporary table would fill Postgres' catalog with garbage,
    several times a second.
    """
    if not values:
        return
    partitions, tenants, counters, wides, numbers, frozens = map(list, zip(*values, strict=True))
    columns: dict[str, Any] = {"tenants": tenants, "counters": counters}
    conn.execute(
        statement("write_counters"),
        columns
        | {
            "partitions": partitions,
            "wides": wides,
            "values": numbers,
            "frozens": frozens,
            "read_at": read_at,
        },
    )
    if None in numbers:
        conn.execute(statement("drop_counters"), columns)


def write_tokens(conn: psycopg.Connection[Any], tokens: Sequence[TokenRow]) -> None:
    """Writes what partitions remember of their callers; the partitions must be locked."""
    if not tokens:
        return
    # The same order everywhere, so that two checkpoints wait instead of deadlocking.
    ordered = sorted(tokens, key=lambda row: (row.partition, row.token))
    with conn.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO tallyboard.tokens (partition, token, ring, held, expires_at)"
            " VALUES (%s, %s, %s, %s, %s) ON CONFLICT (partition, token) DO UPDATE SET"
            " ring = excluded.ring, held = excluded.held, expires_at = excluded.expires_at",
            ordered,
        )


def forget_tokens(conn: psycopg.Connection[Any], limit: int) -> int:
    """Removes at most `limit` tokens whose time is over; gives how many."""
    return conn.execute(
        "DELETE FROM tallyboard.tokens WHERE ctid = ANY(ARRAY("
        " SELECT ctid FROM tallyboard.tokens WHERE expires_at < now() LIMIT %s"
        " FOR UPDATE SKIP LOCKED))",
        (limit,),
    ).rowcount


def mark_cut(conn: psycopg.Connection[Any], versions: Mapping[int, int], at: datetime) -> None:
    """Says that Postgres holds all that these partitions held at `at`; they must be locked.

    Args:
        versions: by partition, the number of this checkpoint.
    """
    conn.execute(
        "UPDATE tallyboard.partitions SET checkpointed_at = greatest(checkpointed_at, %s),"
        " version = given.version"
        " FROM unnest(%s::integer[], %s::bigint[]) AS given (partition, version)"
        " WHERE partitions.partition = given.partition",
        (at, list(versions), list(versions.values())),
    )


def mark_checkpointed(
    conn: psycopg.Connection[Any], incarnations: Mapping[int, str], at: datetime
) -> None:
    """Says that Postgres holds all that these lives of partitions held at `at`.

    Rows that somebody else is writing are left to them, so this never waits.
    """
    conn.execute(
        "WITH due AS ("
        " SELECT partition FROM tallyboard.partitions"
        " JOIN unnest(%s::integer[], %s::text[]) AS given (partition, incarnation)"
        " USING (partition, incarnation)"
        " FOR UPDATE OF partitions SKIP LOCKED)"
        " UPDATE tallyboard.partitions SET checkpointed_at = greatest(checkpointed_at, %s)"
        " FROM due WHERE partitions.partition = due.partition",
        (list(incarnations), list(incarnations.values()), at),
    )


def oldest_checkpoint(conn: psycopg.Connection[Any]) -> datetime | None:
    """The moment up to which Postgres holds everything; None before there are partitions."""
    row = conn.execute("SELECT min(checkpointed_at) FROM tallyboard.partitions").fetchone()
    return None if row is None else row[0]
