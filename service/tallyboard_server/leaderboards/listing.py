"""Which windows of a board hold entries: those in Redis and those in Postgres."""

import builtins
from collections.abc import Callable, Iterator
from typing import Final

from tallyboard_server.errors import DeadlineExceeded, TallyboardError, Unavailable
from tallyboard_server.leaderboards import windows as calendar
from tallyboard_server.leaderboards.boards import Boards
from tallyboard_server.leaderboards.cursors import Cursor, decode_cursor, encode_cursor
from tallyboard_server.leaderboards.model import (
    Fallback,
    Leaderboard,
    Window,
    WindowKind,
    WindowStanding,
    WindowState,
)
from tallyboard_server.postgres.durable import window_sizes
from tallyboard_server.postgres.entries import WindowRow, window_rows
from tallyboard_server.postgres.pool import BoundedPool, postgres_unavailable
from tallyboard_server.recovery.durable_reads import DurableReads

# More windows than a board has: an hour each for eleven years.
ALL_WINDOWS: Final = 100_000


class WindowLister:
    """Lists windows for one worker. Deadlines are values of `time.monotonic()`.

    Args:
        clock: the time now in µs since the epoch.
        durable: reads from Postgres what Redis can't tell.
    """

    def __init__(
        self,
        pool: BoundedPool,
        boards: Boards,
        clock: Callable[[], int],
        durable: DurableReads | None = None,
    ) -> None:
        self._durable = durable
        self._pool = pool
        self._boards = boards
        self._clock = clock

    def list(
        self,
        board: Leaderboard,
        kind: WindowKind | None,
        page_size: int,
        page_token: str,
        deadline: float,
    ) -> tuple[builtins.list[WindowStanding], str]:
        """The windows that hold entries, ALL_TIME first, then the latest start first.

        Raises:
            InvalidArgument: PAGE_INVALID.
            Unavailable: a store is away.
        """
        arguments = ("windows", board.board_key, kind and kind.value)
        standings = self._standings(board, kind, deadline)
        standings.sort(key=lambda standing: calendar.listing_order(standing.window))
        if page_token:
            cursor = decode_cursor(page_token, *arguments)
            last = next((s.window for s in standings if s.window.window == cursor.window), None)
            after = calendar.listing_order(last or calendar.parse(board, cursor.window))
            standings = [s for s in standings if calendar.listing_order(s.window) > after]
        page, more = standings[:page_size], len(standings) > page_size
        token = ""
        if more:
            token = encode_cursor(Cursor(page[-1].window.window, 0.0, 0, ""), *arguments)
        return page, token

    def _standings(
        self, board: Leaderboard, kind: WindowKind | None, deadline: float
    ) -> builtins.list[WindowStanding]:
        live, rows = self._windows(board, deadline)
        now = self._clock()
        known = {row.window.window: row for row in rows}
        standings = []
        for window in self._known_windows(board, live, known):
            if kind is not None and window.kind is not kind:
                continue
            row = known.get(window.window)
            state = WindowState.OPEN
            count = live.get(window.window, 0)
            if row is not None and row.state is WindowState.ARCHIVED:
                state, count = WindowState.ARCHIVED, row.entry_count or 0
            elif not calendar.is_open(board, window, now):
                state = WindowState.CLOSED
            if count:
                standings.append(WindowStanding(window, state, count))
        return standings

    def _windows(
        self, board: Leaderboard, deadline: float
    ) -> tuple[dict[str, int], builtins.list[WindowRow]]:
        """How many entries each window has that is not archived, and what Postgres has of all."""
        durable, until = self._durable, deadline
        if durable is not None:
            until = durable.live_deadline(Fallback.ANY_AGE, None, deadline)
        try:
            live = self._boards.live_windows(board, until)
        except (Unavailable, DeadlineExceeded) as error:
            if durable is None or not durable.may_answer(error, Fallback.ANY_AGE, None):
                raise
            with durable.reading(deadline) as conn:
                sizes = window_sizes(conn, board.board_key)
                return sizes, window_rows(conn, board.board_key, ALL_WINDOWS)
        with postgres_unavailable(), self._pool.until(deadline) as conn:
            return live, window_rows(conn, board.board_key, ALL_WINDOWS)

    @staticmethod
    def _known_windows(
        board: Leaderboard, live: dict[str, int], known: dict[str, WindowRow]
    ) -> Iterator[Window]:
        for name in live.keys() | known.keys():
            try:
                yield calendar.parse(board, name)
            except TallyboardError:
                # Of a kind, or a season, that the board no longer has.
                if name in known:
                    yield known[name].window
