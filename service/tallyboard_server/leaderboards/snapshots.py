"""Daily standings for callers: lists, pages, and taking them now."""

import builtins
import re
import time
from contextlib import suppress
from datetime import date
from typing import Final, NamedTuple

from redis.exceptions import RedisError

from tallyboard_server.checkpointer import PartitionFenced
from tallyboard_server.errors import (
    DeadlineExceeded,
    FieldViolation,
    InvalidArgument,
    NotFound,
    Unavailable,
)
from tallyboard_server.leaderboards import windows as calendar
from tallyboard_server.leaderboards.boards import Boards
from tallyboard_server.leaderboards.cursors import Cursor, decode_cursor, encode_cursor
from tallyboard_server.leaderboards.model import Entry, Leaderboard
from tallyboard_server.names import name_problem
from tallyboard_server.postgres import snapshots as rows
from tallyboard_server.postgres.pool import BoundedPool, postgres_unavailable
from tallyboard_server.postgres.snapshots import SnapshotRow
from tallyboard_server.snapshotter import Snapshotter

_BOARDS_A_PAGE: Final = 500
_DAY: Final = re.compile("[0-9]{4}-[0-9]{2}-[0-9]{2}")


class SnapshotPage(NamedTuple):
    """One snapshot and a page of its entries."""

    snapshot: SnapshotRow
    entries: list[Entry]
    next_page_token: str


class Snapshots:
    """Reads and takes snapshots for one worker. Deadlines are values of `time.monotonic()`."""

    def __init__(self, pool: BoundedPool, boards: Boards, snapshotter: Snapshotter) -> None:
        self._pool = pool
        self._boards = boards
        self._snapshotter = snapshotter

    def list(
        self,
        tenant: str,
        leaderboard_id: str,
        window: str,
        member: str,
        page_size: int,
        page_token: str,
        deadline: float,
    ) -> "tuple[builtins.list[SnapshotRow], str]":
        """A page of a board's snapshots, the latest day first, and the token of the next one.

        Args:
            window: only those of this window; empty for all.
            member: whose rank and score to add; empty for none.

        Raises:
            NotFound: no such leaderboard.
            InvalidArgument: WINDOW_INVALID, PAGE_INVALID.
        """
        _check_window(window)
        board = self._boards.get(tenant, leaderboard_id, deadline)
        arguments = ("snapshots", board.board_key, window, member)
        after = None
        if page_token:
            after = _after(board, decode_cursor(page_token, *arguments))
        with postgres_unavailable(), self._pool.until(deadline) as conn:
            found = rows.list_snapshots(
                conn,
                board.board_key,
                page_size + 1,
                window=window or None,
                member=member or None,
                after=after,
            )
        token = ""
        if len(found) > page_size:
            found = found[:page_size]
            last = found[-1]
            cursor = Cursor(last.window, 0.0, 0, last.day.isoformat())
            token = encode_cursor(cursor, *arguments)
        return found, token

    def get(
        self,
        tenant: str,
        leaderboard_id: str,
        window: str,
        day: str,
        page_size: int,
        page_token: str,
        deadline: float,
    ) -> SnapshotPage:
        """One snapshot and a page of its entries, best first.

        Args:
            window: may be empty for a board that has windows of one kind only: the one that was
                current at the end of that day.

        Raises:
            NotFound: no such leaderboard, or SNAPSHOT_NOT_FOUND.
            InvalidArgument: FIELD_INVALID (the day), WINDOW_INVALID, PAGE_INVALID.
        """
        _check_window(window)
        board = self._boards.get(tenant, leaderboard_id, deadline)
        of_day = _parse_day(day)
        window = window or _window_of(board, of_day)
        arguments = ("snapshot", board.board_key, window, day)
        start = 0
        if page_token:
            start = decode_cursor(page_token, *arguments).updated_at
        with postgres_unavailable(), self._pool.until(deadline) as conn:
            snapshot = rows.find_snapshot(conn, board.board_key, window, of_day)
            if snapshot is None:
                raise NotFound(
                    "no snapshot of that window was taken on that day", reason="SNAPSHOT_NOT_FOUND"
                )
            entries = rows.snapshot_entries(conn, snapshot.snapshot_id, start, page_size)
        token = ""
        if start + len(entries) < snapshot.entry_count and entries:
            token = encode_cursor(Cursor(window, 0.0, start + len(entries), ""), *arguments)
        return SnapshotPage(snapshot, entries, token)

    def take(self, tenant: str, leaderboard_id: str, deadline: float) -> tuple[int, int]:
        """Takes snapshots now; gives of how many boards, and how many.

        Args:
            leaderboard_id: of one board; empty for all of the tenant.

        Raises:
            NotFound: no such leaderboard.
            Unavailable: a store or a partition is away.
            DeadlineExceeded: not all boards were done.
        """
        boards = taken = 0
        for board in self._chosen(tenant, leaderboard_id, deadline):
            if time.monotonic() > deadline:
                raise DeadlineExceeded("not all leaderboards were done in time; try again")
            try:
                with postgres_unavailable():
                    found = self._snapshotter.take_now(board, deadline)
            except PartitionFenced as error:
                raise Unavailable(str(error), reason="PARTITION_UNAVAILABLE") from error
            except RedisError as error:
                raise Unavailable("Redis does not answer; try again later") from error
            boards += bool(found)
            taken += len(found)
        return boards, taken

    def _chosen(
        self, tenant: str, leaderboard_id: str, deadline: float
    ) -> "builtins.list[Leaderboard]":
        if leaderboard_id:
            return [self._boards.get(tenant, leaderboard_id, deadline)]
        boards: builtins.list[Leaderboard] = []
        token = ""
        while True:
            page, token = self._boards.list(tenant, "", _BOARDS_A_PAGE, token, deadline)
            boards += page
            if not token:
                return boards


def _parse_day(text: str) -> date:
    # Python's own parser takes every form of ISO 8601, 2026-W48-1 for example.
    if _DAY.fullmatch(text):
        with suppress(ValueError):
            return date.fromisoformat(text)
    raise InvalidArgument("FIELD_INVALID", [FieldViolation("day", "must be a day as 2026-11-23")])


def _check_window(window: str) -> None:
    """The id of a window, or nothing; the window may be one that the board has no more."""
    problem = name_problem(window) if window else None
    if ":" in window:
        problem = "must be the id of a window, which holds no colon"
    if problem:
        raise InvalidArgument("WINDOW_INVALID", [FieldViolation("window", problem)])


def _window_of(board: Leaderboard, day: date) -> str:
    """The window that was current at the end of a day, of the only kind that the board has."""
    ended = calendar.day_window(board, day.isoformat()).ends_at or 0
    return calendar.resolve(board, "", ended - 1).window


def _after(board: Leaderboard, cursor: Cursor) -> SnapshotRow:
    return SnapshotRow(0, board.board_key, cursor.window, _parse_day(cursor.member), 0, 0)
