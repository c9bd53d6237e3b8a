"""Daily standings of leaderboards: copies that later scores do not change.

Callers hold the transaction. Moments are microseconds since 1970-01-01T00:00:00Z.
"""

from dataclasses import dataclass
from datetime import date
from typing import Any

import psycopg

from tallyboard_server.leaderboards.model import Entry, SortOrder, TieBreak
from tallyboard_server.postgres.entries import RANKING_TIMEOUT, patience, ranking
from tallyboard_server.postgres.statements import statement


@dataclass(frozen=True, slots=True)
class SnapshotRow:
    """One window's standing on one day.

    Attributes:
        entry_count: how many entries were kept, less those that were erased since.
        rank, score: of the member that was asked for; None if it is not in the snapshot.
    """

    snapshot_id: int
    board_key: str
    window: str
    day: date
    taken_at: int
    entry_count: int
    rank: int | None = None
    score: float | None = None


def take(
    conn: psycopg.Connection[Any],
    board_key: str,
    window: str,
    day: date,
    taken_at: int,
    limit: int | None = None,
    *,
    timeout: float = RANKING_TIMEOUT,
) -> SnapshotRow | None:
    """Copies a window's standing as of the last checkpoints, in place of the day's earlier one.

    Args:
        conn: a connection inside a transaction of its own.
        board_key: of the board.
        window: its name.
        day: what the snapshot is filed under.
        taken_at: when the last checkpoint was, or now.
        limit: only so many of the best; None for all.
        timeout: seconds that one statement may take.

    Returns:
        The snapshot; None if there is no such board, or no checkpoint has found entries in the
        window.
    """
    source = _source(conn, board_key, window)
    if source is None:
        return None
    window_id, order = source
    snapshot_id = _head(conn, board_key, window, day, taken_at)
    with patience(conn, timeout):
        conn.execute(
            "DELETE FROM tallyboard.leaderboard_snapshot_entries WHERE snapshot_id = %s",
            (snapshot_id,),
        )
        copied = conn.execute(
            statement("take_snapshot").format(order=order),
            {"snapshot_id": snapshot_id, "window_id": window_id, "limit": limit},
        ).rowcount
    conn.execute(
        "UPDATE tallyboard.leaderboard_snapshots SET entry_count = %s WHERE snapshot_id = %s",
        (copied, snapshot_id),
    )
    return SnapshotRow(snapshot_id, board_key, window, day, taken_at, copied)


def list_snapshots(
    conn: psycopg.Connection[Any],
    board_key: str,
    limit: int,
    *,
    window: str | None = None,
    member: str | None = None,
    after: SnapshotRow | None = None,
) -> list[SnapshotRow]:
    """One page of a board's snapshots: the latest day first, then windows by name, descending.

    Args:
        conn: where to read.
        board_key: whose snapshots.
        limit: most rows.
        window: only those of this window.
        member: whose rank and score to add.
        after: the last row of the page before.
    """
    rows = conn.execute(
        statement("list_snapshots"),
        {
            "board_key": board_key,
            "window": window,
            "member": member,
            "after_day": after and after.day,
            "after_window": after and after.window,
            "limit": limit,
        },
    )
    return [SnapshotRow(*row) for row in rows]


def find_snapshot(
    conn: psycopg.Connection[Any], board_key: str, window: str, day: date
) -> SnapshotRow | None:
    """The window's snapshot of that day, None if none was taken."""
    row = conn.execute(
        'SELECT snapshot_id, board_key, "window", day, tallyboard.micros(taken_at), entry_count'
        " FROM tallyboard.leaderboard_snapshots"
        ' WHERE board_key = %s AND "window" = %s AND day = %s',
        (board_key, window, day),
    ).fetchone()
    return None if row is None else SnapshotRow(*row)


def snapshot_entries(
    conn: psycopg.Connection[Any], snapshot_id: int, start: int, count: int
) -> list[Entry]:
    """The entries at the indexes from `start`, at most `count`, with their ordinal ranks."""
    rows = conn.execute(
        "SELECT rank, member, score, metadata, tallyboard.micros(updated_at)"
        " FROM tallyboard.leaderboard_snapshot_entries"
        " WHERE snapshot_id = %s AND rank > %s AND rank <= %s ORDER BY rank",
        (snapshot_id, start, start + count),
    )
    return [Entry(*row) for row in rows]


def taken_since(conn: psycopg.Connection[Any], board_key: str, day: date, moment: int) -> set[str]:
    """The windows of which a snapshot of that day was taken at the moment (µs) or later."""
    rows = conn.execute(
        'SELECT "window" FROM tallyboard.leaderboard_snapshots'
        " WHERE board_key = %s AND day = %s AND taken_at >= tallyboard.moment(%s)",
        (board_key, day, moment),
    )
    return {row[0] for row in rows}


def purge_before(conn: psycopg.Connection[Any], moment: int, limit: int) -> bool:
    """Removes at most `limit` entries of the oldest snapshot taken before `moment`, and it.

    Call it again, each time in a transaction of its own, until it gives True: none is left.
    """
    row = conn.execute(
        statement("purge_old_snapshot"), {"moment": moment, "limit": limit}
    ).fetchone()
    return row is None


def _source(conn: psycopg.Connection[Any], board_key: str, window: str) -> tuple[int, str] | None:
    """The window's id and the order of its ranking.

    Until the transaction ends, neither it nor its board is removed, and nobody is erased from it:
    an erasure that did not see the snapshot would leave the member there.
    """
    row = conn.execute(
        "SELECT held.window_id, board.descending, board.earliest"
        " FROM tallyboard.leaderboards AS board"
        " JOIN tallyboard.leaderboard_windows AS held USING (board_key)"
        ' WHERE board.board_key = %s AND board.deleted_at IS NULL AND held."window" = %s'
        " FOR KEY SHARE OF board, held",
        (board_key, window),
    ).fetchone()
    if row is None:
        return None
    window_id, descending, earliest = row
    sort_order = SortOrder.DESCENDING if descending else SortOrder.ASCENDING
    return window_id, ranking(sort_order, TieBreak.EARLIEST if earliest else TieBreak.MEMBER_ID)


def _head(
    conn: psycopg.Connection[Any], board_key: str, window: str, day: date, taken_at: int
) -> int:
    """The id of the day's snapshot, locked: new, or the one that is to be replaced."""
    row = conn.execute(
        "INSERT INTO tallyboard.leaderboard_snapshots AS head"
        ' (board_key, "window", day, taken_at, entry_count)'
        " VALUES (%s, %s, %s, tallyboard.moment(%s), 0)"
        ' ON CONFLICT (board_key, "window", day) DO UPDATE SET taken_at = excluded.taken_at'
        " RETURNING snapshot_id",
        (board_key, window, day, taken_at),
    ).fetchone()
    assert row is not None
    return int(row[0])
