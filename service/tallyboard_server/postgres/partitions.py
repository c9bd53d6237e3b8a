"""Rows about partitions, their number and the rules for shards. Callers hold the transaction."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import psycopg

from tallyboard_server.postgres.pool import BoundedPool


class PartitionRow(NamedTuple):
    """What Postgres knows of a partition.

    `opened` is False until Redis is known to hold the incarnation; everything that Redis held at
    `checkpointed_at`, by its clock, is in Postgres. For `state` and `version` see journal.py;
    `earlier` are incarnations that it had before.
    """

    partition: int
    incarnation: str
    opened: bool
    checkpointed_at: datetime
    state: str
    version: int
    earlier: list[str]


class StoreRow(NamedTuple):
    """What a store was made for, and never changes: `partitions` and `token_shards`."""

    partitions: int
    token_shards: int


def read_store(conn: psycopg.Connection[Any]) -> StoreRow | None:
    """What this database was made for; None when it is new."""
    row = conn.execute("SELECT partitions, token_shards FROM tallyboard.store").fetchone()
    return None if row is None else StoreRow(*row)


def record_store(conn: psycopg.Connection[Any], store: StoreRow) -> None:
    """Remembers what the database is made for, unless that is recorded."""
    conn.execute(
        "INSERT INTO tallyboard.store (partitions, token_shards) VALUES (%s, %s)"
        " ON CONFLICT DO NOTHING",
        store,
    )


def read_partitions(conn: psycopg.Connection[Any]) -> list[PartitionRow]:
    """All rows, by partition."""
    rows = conn.execute(
        "SELECT partition, incarnation, opened, checkpointed_at, state, version, earlier"
        " FROM tallyboard.partitions ORDER BY partition"
    )
    return [PartitionRow(*row) for row in rows]


def partition_states(pool: BoundedPool) -> list[PartitionRow]:
    """All rows, by partition, for whoever shows them.

    Raises:
        psycopg.Error: Postgres is away.
    """
    with pool.connection() as conn:
        return read_partitions(conn)


def insert_partitions(
    conn: psycopg.Connection[Any],
    incarnations: Mapping[int, str],
    *,
    opened: bool,
    checkpointed_at: datetime,
) -> None:
    """Adds rows for new or adopted partitions."""
    conn.execute(
        "INSERT INTO tallyboard.partitions (partition, incarnation, opened, checkpointed_at)"
        " SELECT *, %s, %s FROM unnest(%s::integer[], %s::text[])",
        (opened, checkpointed_at, list(incarnations), list(incarnations.values())),
    )


def mark_opened(conn: psycopg.Connection[Any], partitions: Sequence[int]) -> None:
    """Says that Redis holds the incarnations of these partitions."""
    conn.execute(
        "UPDATE tallyboard.partitions SET opened = true WHERE partition = ANY(%s)",
        (list(partitions),),
    )


def read_rules(conn: psycopg.Connection[Any]) -> set[tuple[str, int]]:
    """All rules for the number of shards that were ever recorded."""
    return set(conn.execute("SELECT prefix, shards FROM tallyboard.shard_rules").fetchall())


def record_rules(
    conn: psycopg.Connection[Any], rules: Iterable[tuple[str, int]]
) -> set[tuple[str, int]]:
    """Adds rules for the number of shards and gives all that were ever recorded."""
    prefixes, shards = zip(*sorted(rules), strict=True)
    conn.execute(
        "INSERT INTO tallyboard.shard_rules (prefix, shards)"
        " SELECT * FROM unnest(%s::text[], %s::integer[]) ON CONFLICT DO NOTHING",
        (list(prefixes), list(shards)),
    )
    return read_rules(conn)
