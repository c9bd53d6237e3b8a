"""What tests of leaderboards in Postgres share: boards, entries, and a plain ranking of them."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import psycopg

from tallyboard_server.leaderboards.model import SortOrder, TieBreak, Window, WindowKind
from tallyboard_server.postgres.entries import (
    EntryValue,
    WindowRow,
    archive_window,
    close_window,
    find_window,
    write_entries,
)
from tallyboard_server.postgres.leaderboards import BoardRow, insert

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
DAY = 86_400_000_000
MIDNIGHT = 1_763_856_000_000_000
ALL = Window("all", WindowKind.ALL_TIME)
DAILY = Window("2025-11-23", WindowKind.DAILY, MIDNIGHT, MIDNIGHT + DAY)
ORDERS = [(order, tie) for order in SortOrder for tie in TieBreak]
# Members that sort, quote and encode in unusual ways.
HOSTILE = [
    "ann",
    "Ann",
    "'; DROP TABLE tallyboard.leaderboards; --",
    '"quoted"',
    "back\\slash",
    "\\N",
    "%s",
    "{order}",
    "ä",
    "\uffee",
    "\U0001f600",
    "a",
    "a b",
    "a:b",
    " ",
    "x" * 256,
    "é" * 128,
]


class Standing(NamedTuple):
    """A member's entry, for a plain ranking."""

    member: str
    score: float
    updated_at: int = MIDNIGHT
    metadata: bytes = b""


def board(leaderboard_id: str = "post:42", **changes: Any) -> BoardRow:
    """A definition with a key made of the tenant and the id."""
    values: dict[str, Any] = {
        "board_key": f"{changes.get('tenant', 'acme')}/{leaderboard_id}",
        "tenant": "acme",
        "leaderboard_id": leaderboard_id,
        "definition": '{"a": 1}',
        "revision": 1,
        "sort_order": SortOrder.DESCENDING,
        "tie_break": TieBreak.EARLIEST,
        "late_grace": 60,
        "retention": {},
        "created_at": MIDNIGHT + 1,
        "updated_at": MIDNIGHT + 2,
    }
    return BoardRow(**(values | changes))


def add_board(
    conn: psycopg.Connection[Any], leaderboard_id: str = "post:42", **changes: Any
) -> str:
    """Inserts a definition and gives its key."""
    row = board(leaderboard_id, **changes)
    insert(conn, row)
    return row.board_key


def values(
    board_key: str, window: Window, standings: Iterable[Standing], partition: int = 3
) -> list[EntryValue]:
    """Standings as a checkpoint reads them."""
    return [EntryValue(board_key, window, partition, *standing) for standing in standings]


def gone(board_key: str, window: Window, *members: str) -> list[EntryValue]:
    """Members that a checkpoint finds gone."""
    return [EntryValue(board_key, window, 3, member, None, 0, b"") for member in members]


def fill(
    conn: psycopg.Connection[Any], board_key: str, window: Window, standings: Iterable[Standing]
) -> WindowRow:
    """Writes entries and gives their window."""
    write_entries(conn, values(board_key, window, standings), NOW)
    return window_of(conn, board_key, window)


def window_of(conn: psycopg.Connection[Any], board_key: str, window: Window) -> WindowRow:
    """A window that has to be there."""
    row = find_window(conn, board_key, window.window)
    assert row is not None
    return row


def archive(
    conn: psycopg.Connection[Any], board_key: str, window: Window, standings: Iterable[Standing]
) -> WindowRow:
    """Writes entries and archives their window."""
    row = fill(conn, board_key, window, standings)
    close_window(conn, row.window_id)
    assert archive_window(conn, row.window_id, None) is not None
    return window_of(conn, board_key, window)


def ranked(
    standings: Iterable[Standing], sort_order: SortOrder, tie_break: TieBreak
) -> list[Standing]:
    """The ranking, by stable sorts in Python."""
    descending = sort_order is SortOrder.DESCENDING
    found = sorted(standings, key=lambda entry: entry.member.encode(), reverse=descending)
    if tie_break is TieBreak.EARLIEST:
        found.sort(key=lambda entry: entry.updated_at)
    found.sort(key=lambda entry: -entry.score if descending else entry.score)
    return found


def competition(found: Sequence[Standing]) -> list[int]:
    """1224 ranks of a ranking."""
    scores = [entry.score for entry in found]
    return [scores.index(score) + 1 for score in scores]


def dense(found: Sequence[Standing]) -> list[int]:
    """1223 ranks of a ranking."""
    scores = [entry.score for entry in found]
    distinct = list(dict.fromkeys(scores))
    return [distinct.index(score) + 1 for score in scores]


def mixed(count: int = 200) -> list[Standing]:
    """Standings with few distinct scores and moments, and all the hostile members."""
    members = HOSTILE + [f"user:{number}" for number in range(count - len(HOSTILE))]
    return [
        Standing(member, (at * 7919) % 11 - 5.5, MIDNIGHT + (at * 104_729) % 3, member.encode()[:9])
        for at, member in enumerate(members)
    ]
