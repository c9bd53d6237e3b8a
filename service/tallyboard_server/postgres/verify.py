"""What Postgres holds of a partition, for whoever compares it with Redis, page by page.

Callers hold the connection. Nothing here locks or writes.
"""

from collections.abc import Sequence
from typing import Any, Final, LiteralString, NamedTuple

import psycopg

from tallyboard_server.leaderboards.model import WindowState
from tallyboard_server.postgres.entries import StoredEntry
from tallyboard_server.postgres.statements import statement

_ENTRY: Final[LiteralString] = "member, partition, score, tallyboard.micros(updated_at), metadata"


class Life(NamedTuple):
    """What Postgres says of a partition: which life of its data it follows, and its state."""

    incarnation: str
    state: str


class ShardName(NamedTuple):
    """Names a key of a counter: its part in a partition, or (wide) its whole value."""

    partition: int
    tenant: str
    counter: str
    wide: bool


class Shard(NamedTuple):
    """A row of counter_shards."""

    name: ShardName
    value: int
    frozen: bool


class WrongTotal(NamedTuple):
    """A counter whose total isn't what its parts add up to; None for a counter that isn't there."""

    tenant: str
    counter: str
    parts: int | None
    total: int | None


class BoardHere(NamedTuple):
    """What a comparison needs to know of a leaderboard."""

    board_key: str
    tenant: str
    leaderboard_id: str
    descending: bool
    earliest: bool
    segments: int


class WindowHere(NamedTuple):
    """A window's row; `closes_at` in µs since the epoch, None for never."""

    window_id: int
    board_key: str
    window: str
    state: WindowState
    closes_at: int | None


def read_life(conn: psycopg.Connection[Any], partition: int) -> Life | None:
    """The partition's row; None if Postgres doesn't know it."""
    row = conn.execute(
        "SELECT incarnation, state FROM tallyboard.partitions WHERE partition = %s", (partition,)
    ).fetchone()
    return None if row is None else Life(*row)


def shard_page(
    conn: psycopg.Connection[Any], partition: int, after: Shard | None, limit: int
) -> list[Shard]:
    """At most `limit` shards of a partition, behind `after`."""
    tenant, counter, wide = ("", "", False) if after is None else after.name[1:]
    rows = conn.execute(
        "SELECT tenant, counter, wide, value, frozen FROM tallyboard.counter_shards"
        " WHERE partition = %s AND (tenant, counter, wide) > (%s, %s, %s)"
        " ORDER BY tenant, counter, wide LIMIT %s",
        (partition, tenant, counter, wide, limit),
        binary=True,
    ).fetchall()
    return [
        Shard(ShardName(partition, tenant, counter, wide), value, frozen)
        for tenant, counter, wide, value, frozen in rows
    ]


def find_shards(
    conn: psycopg.Connection[Any], names: Sequence[ShardName]
) -> dict[ShardName, Shard]:
    """Those of these shards that there are."""
    rows = conn.execute(
        "SELECT partition, tenant, counter, wide, value, frozen FROM tallyboard.counter_shards"
        " JOIN unnest(%s::integer[], %s::text[], %s::text[], %s::boolean[])"
        " AS given (partition, tenant, counter, wide) USING (partition, tenant, counter, wide)",
        _columns(names),
    )
    shards = (Shard(ShardName(*row[:4]), row[4], row[5]) for row in rows)
    return {shard.name: shard for shard in shards}


def missing_shards(conn: psycopg.Connection[Any], names: Sequence[ShardName]) -> list[ShardName]:
    """Those of these shards that there are not."""
    rows = conn.execute(statement("missing_shards"), _columns(names)).fetchall()
    return [names[row[0] - 1] for row in rows]


def end_of_totals(
    conn: psycopg.Connection[Any], after: tuple[str, str], count: int
) -> tuple[str, str] | None:
    """The last of the next `count` counters behind a tenant's one; None if there aren't as many."""
    found: tuple[str, str] | None = conn.execute(
        "SELECT tenant, counter FROM tallyboard.counters WHERE (tenant, counter) > (%s, %s)"
        " ORDER BY tenant, counter OFFSET %s LIMIT 1",
        (*after, count - 1),
    ).fetchone()
    return found


def wrong_totals(
    conn: psycopg.Connection[Any],
    partitions: int,
    after: tuple[str, str],
    last: tuple[str, str] | None,
) -> list[WrongTotal]:
    """Totals that are wrong, from behind one counter to another; None: to the end."""
    below: LiteralString = "true" if last is None else "(tenant, counter) <= (%(t)s, %(c)s)"
    arguments: dict[str, Any] = {"partitions": partitions}
    arguments["tenant"], arguments["counter"] = after
    arguments["t"], arguments["c"] = last or ("", "")
    rows = conn.execute(statement("wrong_totals").format(below=below), arguments)
    return [WrongTotal(*row[:2], *map(_whole, row[2:])) for row in rows]


def board_page(conn: psycopg.Connection[Any], after: str, limit: int) -> list[BoardHere]:
    """All tenants' leaderboards in pages by board_key: at most `limit` behind `after` (or "")."""
    rows = conn.execute(
        "SELECT board_key, tenant, leaderboard_id, descending, earliest,"
        " coalesce((definition::json ->> 'segments')::integer, 1)"
        " FROM tallyboard.leaderboards WHERE board_key > %s AND deleted_at IS NULL"
        " ORDER BY board_key LIMIT %s",
        (after, limit),
    )
    return [BoardHere(*row) for row in rows]


def windows_here(
    conn: psycopg.Connection[Any], board_keys: Sequence[str], named: Sequence[tuple[str, str]]
) -> list[WindowHere]:
    """The windows of boards that aren't archived, and those that are named, archived or not."""
    arguments = {
        "board_keys": list(board_keys),
        "of_boards": [board_key for board_key, _ in named],
        "windows": [window for _, window in named],
    }
    return [_window(*row) for row in conn.execute(statement("windows_here"), arguments)]


def window_here(conn: psycopg.Connection[Any], board_key: str, window: str) -> WindowHere | None:
    """One window; None if there is none, or its board was deleted."""
    row = conn.execute(
        'SELECT held.window_id, held.board_key, held."window", held.state,'
        " tallyboard.micros(held.closes_at)"
        " FROM tallyboard.leaderboard_windows AS held"
        " JOIN tallyboard.leaderboards AS board USING (board_key)"
        ' WHERE held.board_key = %s AND held."window" = %s AND board.deleted_at IS NULL',
        (board_key, window),
    ).fetchone()
    return None if row is None else _window(*row)


def is_live_board(conn: psycopg.Connection[Any], board_key: str) -> bool:
    """Whether there is such a board, and it wasn't deleted."""
    found = conn.execute(
        "SELECT FROM tallyboard.leaderboards WHERE board_key = %s AND deleted_at IS NULL",
        (board_key,),
    )
    return found.fetchone() is not None


def entry_page_here(
    conn: psycopg.Connection[Any], window_id: int, partition: int, after: str, limit: int
) -> list[StoredEntry]:
    """At most `limit` entries of a window in a partition by member, behind `after` (or "")."""
    rows = conn.execute(
        f"SELECT {_ENTRY} FROM tallyboard.leaderboard_entries"
        " WHERE window_id = %s AND partition = %s AND member > %s ORDER BY member LIMIT %s",
        (window_id, partition, after, limit),
        binary=True,
    ).fetchall()
    return list(map(StoredEntry._make, rows))


def find_entries(
    conn: psycopg.Connection[Any], window_id: int, members: Sequence[str]
) -> dict[str, StoredEntry]:
    """Those of these members that have an entry, by member."""
    rows = conn.execute(
        f"SELECT {_ENTRY} FROM tallyboard.leaderboard_entries"
        " WHERE window_id = %s AND member = ANY(%s)",
        (window_id, list(members)),
    ).fetchall()
    return {row[0]: StoredEntry(*row) for row in rows}


def _whole(value: Any) -> int | None:
    return None if value is None else int(value)


def _columns(names: Sequence[ShardName]) -> tuple[list[Any], ...]:
    partitions, tenants, counters, wides = zip(*names, strict=True)
    return list(partitions), list(tenants), list(counters), list(wides)


def _window(
    window_id: int, board_key: str, window: str, state: str, closes_at: int | None
) -> WindowHere:
    return WindowHere(window_id, board_key, window, WindowState(state), closes_at)
