"""What a rebuild reads of partitions, and what it writes about them.

Callers hold the partitions' advisory locks. Moments are microseconds since 1970-01-01T00:00:00Z.
"""

import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, LiteralString, NamedTuple

import psycopg

from tallyboard_server.postgres.statements import statement

#: Rows that come from Postgres at a time.
FETCH: Final = 5_000


class Life(NamedTuple):
    """A partition as Postgres follows it.

    `version` is the number of its last checkpoint, `earlier` are the incarnations that it had
    before, the oldest first.
    """

    partition: int
    incarnation: str
    state: str
    version: int
    earlier: tuple[str, ...]


class BoardPart(NamedTuple):
    """What a rebuild needs of a leaderboard; `definition` is the text of it."""

    board_key: str
    tenant: str
    leaderboard_id: str
    definition: str
    revision: int
    deleted: bool


class WindowPart(NamedTuple):
    """What a rebuild needs of a window; `expires_at` None: it is kept for good."""

    window_id: int
    board_key: str
    window: str
    is_open: bool
    expires_at: int | None


class Estimates(NamedTuple):
    """About how many rows there are."""

    counters: int
    entries: int
    tokens: int


def read_lives(conn: psycopg.Connection[Any], partitions: Sequence[int]) -> dict[int, Life]:
    """Those of these partitions that Postgres knows."""
    rows = conn.execute(
        "SELECT partition, incarnation, state, version, earlier FROM tallyboard.partitions"
        " WHERE partition = ANY(%s) ORDER BY partition",
        (list(partitions),),
    )
    return {
        partition: Life(partition, incarnation, state, version, tuple(earlier))
        for partition, incarnation, state, version, earlier in rows
    }


def begin_life(
    conn: psycopg.Connection[Any], partition: int, incarnation: uuid.UUID, earlier: Sequence[str]
) -> None:
    """Gives a partition a new incarnation and the state REBUILDING."""
    conn.execute(
        "UPDATE tallyboard.partitions SET incarnation = %s, earlier = %s, state = 'REBUILDING',"
        " opened = true, changes = changes + 1, changed_at = clock_timestamp()"
        " WHERE partition = %s",
        (str(incarnation), list(earlier), partition),
    )


def open_partition(conn: psycopg.Connection[Any], partition: int, incarnation: str) -> bool:
    """Ends a rebuild; False if the partition has got another incarnation since."""
    opened = conn.execute(
        "UPDATE tallyboard.partitions"
        " SET state = 'OPEN', changes = changes + 1, changed_at = clock_timestamp()"
        " WHERE partition = %s AND incarnation = %s AND state = 'REBUILDING'",
        (partition, incarnation),
    )
    return opened.rowcount > 0


def estimate(conn: psycopg.Connection[Any], partitions: Sequence[int]) -> Estimates:
    """About how much the partitions hold, as Postgres' planner sees it."""
    return Estimates(
        *(
            int(_planned(conn, f"SELECT FROM tallyboard.{table} WHERE partition = ANY(%s)", chosen))
            for table, chosen in (
                ("counter_shards", partitions),
                ("leaderboard_entries", partitions),
                ("tokens", partitions),
            )
        )
    )


def counters_of(
    conn: psycopg.Connection[Any], partitions: Sequence[int]
) -> Iterator[list[tuple[int, str, str, bool, int, bool]]]:
    """Rows of counters, some at a time: partition, tenant, counter, wide, value, frozen.

    Rows of several partitions come in any order.
    """
    return _stream(
        conn,
        "SELECT partition, tenant, counter, wide, value, frozen FROM tallyboard.counter_shards"
        " WHERE partition = ANY(%s)",
        (list(partitions),),
    )


def tokens_of(
    conn: psycopg.Connection[Any], partitions: Sequence[int]
) -> Iterator[list[tuple[int, bytes, bool, list[bytes], int]]]:
    """Tokens that have time left, some at a time: partition, key, whether it is a ring, what it
    holds, and the milliseconds left."""
    return _stream(
        conn,
        "SELECT partition, token, ring, held, left_over FROM tallyboard.tokens"
        " CROSS JOIN LATERAL (SELECT ceil(1000 * extract(epoch FROM expires_at"
        " - clock_timestamp()))::bigint AS left_over) AS time"
        " WHERE partition = ANY(%s) AND left_over > 0",
        (list(partitions),),
    )


def board_page(conn: psycopg.Connection[Any], after: str, limit: int) -> list[BoardPart]:
    """At most `limit` boards by board_key behind `after` (or ""), deleted ones too."""
    return _boards(conn, "WHERE board_key > %s ORDER BY board_key LIMIT %s", (after, limit))


def lock_boards(conn: psycopg.Connection[Any], board_keys: Sequence[str]) -> list[BoardPart]:
    """The same of these boards; nobody changes them, or tells Redis of them, until the end of the
    transaction."""
    return _boards(
        conn, "WHERE board_key = ANY(%s) ORDER BY board_key FOR SHARE", (list(board_keys),)
    )


def live_windows(conn: psycopg.Connection[Any], board_keys: Sequence[str]) -> list[WindowPart]:
    """The boards' windows that are not archived."""
    return _windows(conn, "WHERE board_key = ANY(%s) AND state <> 'ARCHIVED'", (list(board_keys),))


def lock_open_windows(conn: psycopg.Connection[Any], board_keys: Sequence[str]) -> list[WindowPart]:
    """The boards' windows that are open; nobody closes them until the end of the transaction."""
    return _windows(
        conn,
        "WHERE board_key = ANY(%s) AND state = 'OPEN' ORDER BY board_key, \"window\" FOR SHARE",
        (list(board_keys),),
    )


def archived_among(
    conn: psycopg.Connection[Any], names: Sequence[tuple[str, str]]
) -> list[WindowPart]:
    """Those of these windows, by board_key and id, that are archived."""
    if not names:
        return []
    return _windows(
        conn,
        'JOIN unnest(%s::text[], %s::text[]) AS given (board_key, "window")'
        " USING (board_key, \"window\") WHERE state = 'ARCHIVED'",
        ([board_key for board_key, _ in names], [window for _, window in names]),
    )


def entries_of(
    conn: psycopg.Connection[Any], window_ids: Sequence[int], partitions: Sequence[int]
) -> Iterator[list[tuple[int, int, str, float, int, bytes]]]:
    """Entries, some at a time and in any order: window_id, partition, member, score, moment,
    metadata."""
    return _stream(conn, statement("entries_of_partitions"), (list(window_ids), list(partitions)))


@contextmanager
def reading(conn: psycopg.Connection[Any]) -> Iterator[None]:
    """A transaction for the streams of this module."""
    with conn.transaction():
        # All rows are wanted, not the first ones soon.
        conn.execute("SET LOCAL cursor_tuple_fraction = 1")
        yield


def _boards(
    conn: psycopg.Connection[Any], clauses: LiteralString, arguments: Sequence[Any]
) -> list[BoardPart]:
    rows = conn.execute(
        "SELECT board_key, tenant, leaderboard_id, definition, revision, deleted_at IS NOT NULL"
        f" FROM tallyboard.leaderboards {clauses}",
        arguments,
    )
    return [BoardPart(*row) for row in rows]


def _windows(
    conn: psycopg.Connection[Any], clauses: LiteralString, arguments: Sequence[Any]
) -> list[WindowPart]:
    rows = conn.execute(
        "SELECT window_id, board_key, \"window\", state = 'OPEN', tallyboard.micros(expires_at)"
        f" FROM tallyboard.leaderboard_windows {clauses}",
        arguments,
    )
    return [WindowPart(*row) for row in rows]


def _stream(
    conn: psycopg.Connection[Any], query: LiteralString, arguments: Sequence[Any]
) -> Iterator[list[Any]]:
    with conn.cursor(name="rebuild", binary=True) as cursor:
        cursor.execute(query, arguments)
        while rows := cursor.fetchmany(FETCH):
            yield rows


def _planned(
    conn: psycopg.Connection[Any], query: LiteralString, partitions: Sequence[int]
) -> float:
    row = conn.execute("EXPLAIN (FORMAT JSON) " + query, (list(partitions),)).fetchone()
    plan: Mapping[str, Any] = {} if row is None else row[0][0]["Plan"]
    return float(plan.get("Plan Rows", 0))
