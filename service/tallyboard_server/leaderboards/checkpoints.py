"""Entries on their way from Redis to Postgres: what a checkpoint took, made sense of."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, NamedTuple

import structlog

from tallyboard_server.errors import TallyboardError
from tallyboard_server.leaderboards import windows as calendar
from tallyboard_server.leaderboards.definitions import from_json
from tallyboard_server.leaderboards.model import Leaderboard, Window, WindowKind
from tallyboard_server.postgres.entries import EntryValue, find_window, write_entries
from tallyboard_server.postgres.leaderboards import find_by_keys
from tallyboard_server.redis.keys import EntriesKey, parse_entries_key
from tallyboard_server.redis.scores import parse_record

_log = structlog.get_logger(__name__)


class TakenEntries(NamedTuple):
    """What checkpoint.lua took of one window: members, and their records (None: gone)."""

    key: bytes
    members: Sequence[bytes]
    records: Sequence[bytes | None]


def write_taken_entries(conn: Any, taken: Sequence[TakenEntries], read_at: datetime) -> int:
    """Writes the entries of several partitions; gives how many.

    Args:
        conn: a connection inside the transaction that holds the partitions' locks.
        taken: boards that Postgres doesn't know, or that were deleted, are left out.
        read_at: by Redis' clock.
    """
    windows = [(parse_entries_key(window.key), window) for window in taken]
    if not windows:
        return 0
    rows = find_by_keys(conn, sorted({key.board_key for key, _ in windows}))
    boards = {row.board_key: from_json(row.definition) for row in rows if row.deleted_at is None}
    unknown = {key.board_key for key, _ in windows} - boards.keys() - {r.board_key for r in rows}
    if unknown:
        _log.error("Redis holds leaderboards that Postgres doesn't know.", boards=len(unknown))
    values: list[EntryValue] = []
    named: list[tuple[str, Window]] = []
    for key, taken_entries in windows:
        if key.board_key in boards:
            board = boards[key.board_key]
            window = window_of(conn, board, key.window)
            named.append((key.board_key, window))
            values += _values(board, window, key, taken_entries)
    # A window that everyone was deleted from ends its life in Postgres, too.
    return write_entries(conn, values, read_at, named)


def _values(
    board: Leaderboard, window: Window, key: EntriesKey, taken: TakenEntries
) -> Iterator[EntryValue]:
    for name, data in zip(taken.members, taken.records, strict=True):
        member = name.decode()
        if data is None:
            yield EntryValue(board.board_key, window, key.partition, member, None, 0, b"")
        else:
            record = parse_record(data, board.is_descending)
            yield EntryValue(
                board.board_key,
                window,
                key.partition,
                member,
                record.score,
                record.updated_at,
                record.metadata,
            )


def window_of(conn: Any, board: Leaderboard, name: str) -> Window:
    """The window of a name, also of a kind or a season that the board no longer has."""
    kinds = tuple(kind for kind in WindowKind if kind is not WindowKind.SEASON)
    try:
        return calendar.parse(replace(board, windows=kinds), name)
    except TallyboardError:
        row = find_window(conn, board.board_key, name)
        return Window(name, WindowKind.SEASON) if row is None else row.window
