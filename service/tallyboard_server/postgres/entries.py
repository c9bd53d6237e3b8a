"""Windows of leaderboards and their entries: as of the last checkpoint, and ranked once closed.

Callers hold the transaction. Moments are microseconds since 1970-01-01T00:00:00Z.

Locks are taken in one order, so that nobody deadlocks: the board, its windows by name, entries.
Whoever writes entries holds their windows FOR KEY SHARE, whoever ranks or removes them FOR UPDATE.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, LiteralString, NamedTuple

import psycopg

from tallyboard_server.leaderboards.model import (
    SortOrder,
    TieBreak,
    Window,
    WindowKind,
    WindowState,
)
from tallyboard_server.postgres.pool import BoundedConnection
from tallyboard_server.postgres.statements import statement

# Seconds that ranking one window may take; what is usual for others is too short for millions.
RANKING_TIMEOUT: Final = 600.0

# Before all moments that there are: the year -2189.
_LONG_AGO: Final = -(2**57)

# By whether the greatest score ranks first, and whether who was earlier does.
_ORDERS: Final[Mapping[tuple[bool, bool], LiteralString]] = {
    (True, True): "score DESC, updated_at, member DESC",
    (True, False): "score DESC, member DESC",
    (False, True): "score, updated_at, member",
    (False, False): "score, member",
}


class EntryValue(NamedTuple):
    """What a checkpoint read of one member in one window; `score` None: the entry is gone.

    Text with NUL has no place in Postgres: leave such entries out.
    """

    board_key: str
    window: Window
    partition: int
    member: str
    score: float | None
    updated_at: int
    metadata: bytes


class StoredEntry(NamedTuple):
    """An entry as of the last checkpoint that found it changed."""

    member: str
    partition: int
    score: float
    updated_at: int
    metadata: bytes


class Erased(NamedTuple):
    """What a deletion removed.

    `archived` are entries of archived windows, `live` of others, `snapshots` rows of snapshots;
    `boards` are the keys of all that had any of them.
    """

    archived: int
    live: int
    snapshots: int
    boards: frozenset[str]


@dataclass(frozen=True, slots=True)
class WindowRow:
    """A window that has, or had, entries in Postgres.

    Attributes:
        changed_at: Redis' clock at the last checkpoint that changed entries.
        closes_at, expires_at: when its grace and its retention are over, None for never.
        archived_at, entry_count, mean: of an archived window only; `mean` None without entries.
    """

    window_id: int
    board_key: str
    window: Window
    state: WindowState
    changed_at: int
    closes_at: int | None
    expires_at: int | None
    archived_at: int | None
    entry_count: int | None
    mean: float | None


WINDOW_COLUMNS: Final = (
    'held.window_id, held.board_key, held."window", held.kind,'
    " tallyboard.micros(held.starts_at), tallyboard.micros(held.ends_at), held.state,"
    " tallyboard.micros(held.changed_at), tallyboard.micros(held.closes_at),"
    " tallyboard.micros(held.expires_at), tallyboard.micros(held.archived_at),"
    " held.entry_count, held.mean"
)


def ranking(sort_order: SortOrder, tie_break: TieBreak) -> LiteralString:
    """What ORDER BY puts the columns score, updated_at and member of entries into order with."""
    return _ORDERS[sort_order is SortOrder.DESCENDING, tie_break is TieBreak.EARLIEST]


def write_entries(
    conn: psycopg.Connection[Any],
    entries: Iterable[EntryValue],
    read_at: datetime,
    windows: Iterable[tuple[str, Window]] = (),
) -> int:
    """Writes what Redis held at `read_at`; the partitions must be locked.

    Windows get rows as needed, and an archived one is only closed until it is archived again.
    Entries of boards that are unknown or deleted are left out. Commit soon, for others that
    change the same windows wait; two calls in a transaction may deadlock with them.

    Args:
        conn: a connection inside the transaction that holds the partitions' advisory locks.
        entries: at most one of a member and window.
        read_at: by Redis' clock.
        windows: by board_key, those that get a row even without entries.

    Returns:
        How many entries were taken, those that did not change included.
    """
    found = list(entries)
    touched = dict.fromkeys((entry.board_key, entry.window) for entry in found)
    held = lock_windows(conn, touched | dict.fromkeys(windows), read_at)
    names = {(board_key, window.window) for board_key, window in touched}
    held = {name: window_id for name, window_id in held.items() if name in names}
    if not held:
        return 0
    taken, gone = _stage(conn, found, held)
    if taken > gone:
        conn.execute(statement("write_entries"))
    if gone:
        conn.execute(statement("drop_entries"))
    arguments = {"window_ids": sorted(held.values()), "read_at": read_at}
    conn.execute(statement("touch_windows"), arguments)
    return taken


def _stage(
    conn: psycopg.Connection[Any],
    entries: Sequence[EntryValue],
    held: Mapping[tuple[str, str], int],
) -> tuple[int, int]:
    """Copies the entries of these windows to where a statement finds them.

    Gives how many there are, and how many of them are gone.
    """
    conn.execute(statement("stage_entries"))
    # What an earlier call in the same transaction left; a commit empties the table itself.
    conn.execute("DELETE FROM pg_temp.staged_entries")
    taken = gone = 0
    with (
        conn.cursor() as cursor,
        cursor.copy("COPY pg_temp.staged_entries FROM STDIN (FORMAT binary)") as copy,
    ):
        copy.set_types(["int8", "text", "int4", "float8", "int8", "bytea"])
        write_row = copy.write_row
        for board_key, window, partition, member, score, updated_at, metadata in entries:
            window_id = held.get((board_key, window.window))
            if window_id is not None:
                taken += 1
                gone += score is None
                write_row((window_id, member, partition, score, updated_at, metadata))
    return taken, gone


def lock_windows(
    conn: psycopg.Connection[Any], windows: Iterable[tuple[str, Window]], read_at: datetime
) -> dict[tuple[str, str], int]:
    """The ids of windows by board_key and name, locked, and made if need be.

    Those of boards that are unknown or deleted are left out.
    """
    wanted = {(board_key, window.window): window for board_key, window in windows}
    live = conn.execute(
        "SELECT board_key FROM tallyboard.leaderboards"
        " WHERE board_key = ANY(%s) AND deleted_at IS NULL ORDER BY board_key FOR KEY SHARE",
        (sorted({board_key for board_key, _ in wanted}),),
    )
    boards = {row[0] for row in live}
    names = sorted(name for name in wanted if name[0] in boards)
    held: dict[tuple[str, str], int] = {}
    # A window may go between the two statements, when its retention is over: once more then.
    while len(held) < len(names):
        chosen = [wanted[name] for name in names]
        arguments: dict[str, Any] = {
            "board_keys": [board_key for board_key, _ in names],
            "windows": [window for _, window in names],
            "kinds": [window.kind.value for window in chosen],
            "starts_at": [window.starts_at for window in chosen],
            "ends_at": [window.ends_at for window in chosen],
            "read_at": read_at,
        }
        conn.execute(statement("write_windows"), arguments)
        locked = conn.execute(statement("lock_windows"), arguments)
        held = {(board_key, window): window_id for board_key, window, window_id in locked}
    return held


def find_window(conn: psycopg.Connection[Any], board_key: str, window: str) -> WindowRow | None:
    """The window; None if no checkpoint has found entries in it, or its retention is over."""
    rows = _windows(conn, 'WHERE held.board_key = %s AND held."window" = %s', (board_key, window))
    return rows[0] if rows else None


def window_rows(
    conn: psycopg.Connection[Any],
    board_key: str,
    limit: int,
    kind: WindowKind | None = None,
    after: Window | None = None,
) -> list[WindowRow]:
    """One page of a board's windows: ALL_TIME, then the newest start first.

    Equal starts are in descending order of the bytes of their names.

    Args:
        conn: where to read.
        board_key: whose windows.
        limit: most rows.
        kind: only those of this kind.
        after: the last window of the page before.
    """
    query = statement("list_windows").format(
        columns=WINDOW_COLUMNS, kind="true" if kind is None else "held.kind = %(kind)s"
    )
    arguments = {
        "board_key": board_key,
        "kind": kind and kind.value,
        "after": after and after.window,
        "after_start": after and after.starts_at,
        "limit": limit,
    }
    return [_window_row(*row) for row in conn.execute(query, arguments)]


def entry_page(
    conn: psycopg.Connection[Any], window_id: int, after: str, limit: int
) -> list[StoredEntry]:
    """At most `limit` entries of a window by the bytes of the member, behind `after` (or "")."""
    rows = conn.execute(
        "SELECT member, partition, score, tallyboard.micros(updated_at), metadata"
        " FROM tallyboard.leaderboard_entries WHERE window_id = %s AND member > %s"
        " ORDER BY member LIMIT %s",
        (window_id, after, limit),
    )
    return [StoredEntry(*row) for row in rows]


def due_windows(
    conn: psycopg.Connection[Any],
    now: int,
    unchanged_since: int,
    limit: int,
    after: WindowRow | None = None,
) -> list[WindowRow]:
    """Windows to be closed (OPEN) or archived (CLOSED), the longest overdue first.

    Args:
        conn: where to read.
        now: windows whose grace is over then.
        unchanged_since: only those that no checkpoint has changed later than this.
        limit: most rows.
        after: the last one of the page before, for whoever can't do anything about it now.
    """
    return _windows(
        conn,
        "JOIN tallyboard.leaderboards AS board ON board.board_key = held.board_key"
        " WHERE held.state <> 'ARCHIVED' AND held.closes_at <= tallyboard.moment(%s)"
        " AND held.changed_at <= tallyboard.moment(%s) AND board.deleted_at IS NULL"
        " AND (held.closes_at, held.window_id) > (tallyboard.moment(%s), %s)"
        " ORDER BY held.closes_at, held.window_id LIMIT %s",
        (now, unchanged_since, *_behind(after, after.closes_at if after else None), limit),
    )


def expired_windows(
    conn: psycopg.Connection[Any], now: int, limit: int, after: WindowRow | None = None
) -> list[WindowRow]:
    """Windows whose retention is over `now`, the longest overdue first; `after` as above."""
    return _windows(
        conn,
        "WHERE held.expires_at <= tallyboard.moment(%s)"
        " AND (held.expires_at, held.window_id) > (tallyboard.moment(%s), %s)"
        " ORDER BY held.expires_at, held.window_id LIMIT %s",
        (now, *_behind(after, after.expires_at if after else None), limit),
    )


def close_window(conn: psycopg.Connection[Any], window_id: int, now: int | None = None) -> bool:
    """Says that Redis takes no more scores for an open window; False if it is not open.

    Args:
        conn: a connection inside a transaction; changes of the definition wait for its end.
        window_id: which window.
        now: False also if its grace isn't over then; None closes it in any case.
    """
    closed = conn.execute(
        "UPDATE tallyboard.leaderboard_windows SET state = 'CLOSED'"
        " WHERE window_id = %(window_id)s AND state = 'OPEN'"
        " AND (%(now)s::bigint IS NULL OR closes_at <= tallyboard.moment(%(now)s))",
        {"window_id": window_id, "now": now},
    )
    return closed.rowcount > 0


def archive_window(
    conn: psycopg.Connection[Any],
    window_id: int,
    changed_at: int | None,
    *,
    archived_at: int | None = None,
    timeout: float = RANKING_TIMEOUT,
) -> int | None:
    """Ranks all entries of a closed window and makes it an archive.

    Checkpoints that change the window wait until the transaction ends.

    Args:
        conn: a connection inside a transaction of its own.
        window_id: which window.
        changed_at: of the row that told the caller to do so; None for whatever it is.
        archived_at: None for Postgres' clock.
        timeout: seconds that one statement may take.

    Returns:
        The number of entries; None if the window is not closed, or has changed since.

    Raises:
        psycopg.errors.QueryCanceled: the time was too short.
    """
    row = conn.execute(
        "SELECT descending, earliest, tallyboard.micros(changed_at)"
        " FROM tallyboard.leaderboard_windows AS held"
        " JOIN tallyboard.leaderboards AS board USING (board_key)"
        " WHERE held.window_id = %s AND held.state = 'CLOSED' FOR UPDATE OF held",
        (window_id,),
    ).fetchone()
    if row is None or changed_at not in (None, row[2]):
        return None
    descending, earliest, _ = row
    query = statement("archive_window").format(
        order=_ORDERS[descending, earliest], by_score="score DESC" if descending else "score"
    )
    with patience(conn, timeout):
        # A hash join of millions works in batches, which loses the order that the query sees to.
        conn.execute("SET LOCAL enable_hashjoin = off")
        conn.execute(query, {"window_id": window_id})
        conn.execute("SET LOCAL enable_hashjoin TO DEFAULT")
        return _sum_up(conn, window_id, archived_at)


def delete_window(conn: psycopg.Connection[Any], window_id: int, limit: int) -> bool:
    """Removes at most `limit` entries of a window; True when the window is gone too.

    Call it again, each time in a transaction of its own, until it gives True.
    """
    arguments = {"window_id": window_id, "limit": limit}
    row = conn.execute(statement("delete_window"), arguments).fetchone()
    return row is not None and bool(row[0])


def delete_member(
    conn: psycopg.Connection[Any],
    board_key: str,
    window: str | None,
    member: str,
    *,
    timeout: float = RANKING_TIMEOUT,
) -> Erased:
    """Removes a member from one window, or from all windows of a board; ranks close up.

    Snapshots keep it. The cost of an archived window is that of all entries ranked below.

    Args:
        conn: a connection inside a transaction; checkpoints of these windows wait for its end.
        board_key: of the board.
        window: None for all.
        member: who goes.
        timeout: seconds that one statement may take.
    """
    with patience(conn, timeout):
        return _delete(conn, [board_key], window, member)


def erase_member(
    conn: psycopg.Connection[Any], tenant: str, member: str, *, timeout: float = RANKING_TIMEOUT
) -> Erased:
    """Removes a member from all windows and snapshots of all the tenant's boards.

    What Redis still holds has to go first, or the next checkpoint brings it back. Deleted boards
    that are not purged yet count too.

    Args: see `delete_member`.
    """
    with patience(conn, timeout):
        boards = conn.execute(
            "SELECT board_key FROM tallyboard.leaderboards WHERE tenant = %s ORDER BY board_key",
            (tenant,),
        )
        keys = [row[0] for row in boards]
        erased = _delete(conn, keys, None, member)
        arguments: dict[str, Any] = {"board_keys": keys, "member": member}
        locked = conn.execute(statement("lock_snapshots_of_member"), arguments)
        arguments["snapshot_ids"] = [row[0] for row in locked]
        left = conn.execute(statement("erase_from_snapshots"), arguments).fetchall()
    found = {board_key for (board_key,) in left}
    return erased._replace(snapshots=len(left), boards=erased.boards | found)


@contextmanager
def patience(conn: psycopg.Connection[Any], timeout: float) -> Iterator[None]:
    """Gives the statements within `timeout` seconds each, and after that what they had."""
    answer_timeout = conn.answer_timeout if isinstance(conn, BoundedConnection) else 0.0
    row = conn.execute(
        "SELECT current_setting('statement_timeout'), set_config('statement_timeout', %s, true)",
        (f"{timeout:g}s",),
    ).fetchone()
    if isinstance(conn, BoundedConnection):
        conn.answer_timeout = timeout + 2.0
    try:
        yield
        if row is not None:
            conn.execute("SELECT set_config('statement_timeout', %s, true)", (row[0],))
    finally:
        if isinstance(conn, BoundedConnection):
            conn.answer_timeout = answer_timeout


def _delete(
    conn: psycopg.Connection[Any], board_keys: Sequence[str], window: str | None, member: str
) -> Erased:
    held = conn.execute(
        statement("lock_windows_of_member"),
        {"board_keys": list(board_keys), "window": window, "member": member},
    ).fetchall()
    archived = live = 0
    boards = set()
    for window_id, board_key, state in held:
        row = conn.execute(
            "DELETE FROM tallyboard.leaderboard_entries WHERE window_id = %s AND member = %s"
            " RETURNING rank, score",
            (window_id, member),
        ).fetchone()
        if row is None:
            continue
        boards.add(board_key)
        if state == WindowState.ARCHIVED.value:
            archived += 1
            arguments = {"window_id": window_id, "rank": row[0], "score": row[1]}
            conn.execute(statement("rank_up"), arguments)
            _sum_up(conn, window_id, None)
        else:
            live += 1
    return Erased(archived, live, 0, frozenset(boards))


def _sum_up(conn: psycopg.Connection[Any], window_id: int, archived_at: int | None) -> int:
    """Makes a ranked window an archive, or keeps it one, with the count and mean that it has."""
    row = conn.execute(statement("sum_scores"), {"window_id": window_id}).fetchone()
    count, total, scale = row or (0, 0.0, 1.0)
    conn.execute(
        "UPDATE tallyboard.leaderboard_windows SET state = 'ARCHIVED', entry_count = %s,"
        " mean = %s, archived_at = coalesce(tallyboard.moment(%s), archived_at,"
        " clock_timestamp()) WHERE window_id = %s",
        (count, total / count * scale if count else None, archived_at, window_id),
    )
    return int(count)


def _behind(after: WindowRow | None, moment: int | None) -> tuple[int, int]:
    """The moment and the id that a page of overdue windows starts behind."""
    return (_LONG_AGO, 0) if moment is None or after is None else (moment, after.window_id)


def _windows(
    conn: psycopg.Connection[Any], clauses: LiteralString, arguments: Sequence[Any]
) -> list[WindowRow]:
    rows = conn.execute(
        f"SELECT {WINDOW_COLUMNS} FROM tallyboard.leaderboard_windows AS held {clauses}", arguments
    )
    return [_window_row(*row) for row in rows]


def _window_row(
    window_id: int,
    board_key: str,
    window: str,
    kind: str,
    starts_at: int | None,
    ends_at: int | None,
    state: str,
    *rest: Any,
) -> WindowRow:
    return WindowRow(
        window_id,
        board_key,
        Window(window, WindowKind(kind), starts_at, ends_at),
        WindowState(state),
        *rest,
    )
