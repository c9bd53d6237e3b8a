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


def lock_partition(conn: psycopg.Connection[Any], partition: int, wait: float) -> dict[int, str]:
    """Keeps other checkpoints off the partition until the transaction ends.

    Gives the incarnation that Postgres follows, nothing if it does not know the partition.

    Raises:
        psycopg.errors.LockNotAvailable: somebody else had it for `wait` seconds.
    """
    lock_for_transaction(conn, partition, wait)
    return read_incarnations(conn, [partition])


def try_lock_partitions(
    conn: psycopg.Connection[Any], partitions: Sequence[int]
) -> tuple[dict[int, str], list[int]]:
    """The same for those of `partitions` that are free, without waiting.

    Gives their incarnations as `lock_partition` does, and the partitions that are not free.
    """
    locked = try_lock_for_transaction(conn, partitions)
    return read_incarnations(conn, sorted(locked)), sorted(set(partitions) - locked)


def read_incarnations(conn: psycopg.Connection[Any], partitions: Sequence[int]) -> dict[int, str]:
    """The incarnations that Postgres follows, of those partitions that it knows."""
    # A statement of its own: it has to see what was committed before the lock was had.
    rows = conn.execute(
        "SELECT partition, incarnation FROM tallyboard.partitions WHERE partition = ANY(%s)",
        (list(partitions),),
    )
    return dict(rows.fetchall())


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
