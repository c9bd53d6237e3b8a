"""Where journaled scores go: the windows that they were acknowledged for, as they are now."""

from collections.abc import Callable
from typing import Any

from tallyboard_server.leaderboards import windows as calendar
from tallyboard_server.leaderboards.checkpoints import window_of
from tallyboard_server.leaderboards.definitions import from_json
from tallyboard_server.leaderboards.model import Leaderboard, Window, WindowState
from tallyboard_server.leaderboards.plans import Target, make_plan
from tallyboard_server.postgres.entries import WindowRow, find_window
from tallyboard_server.postgres.leaderboards import find_by_keys
from tallyboard_server.recovery.batches import Scores
from tallyboard_server.redis.scores import Plan


class ScorePlans:
    """Plans for the scores of one partition's journal.

    Boards and windows are read from Postgres once, and again after `forget`.

    Args:
        conn: where to read.
        clock: the time now in µs since the epoch.
    """

    def __init__(self, conn: Any, clock: Callable[[], int]) -> None:
        self._conn = conn
        self._clock = clock
        self._boards: dict[str, Leaderboard | None] = {}
        self._plans: dict[tuple[int, str, tuple[str, ...]], Plan | None] = {}

    def plan_of(self, partition: int, scores: Scores) -> Plan | None:
        """The plan; None if the board is gone, or keeps none of the windows any more."""
        name = (partition, scores.board_key, scores.windows)
        if name not in self._plans:
            self._plans[name] = self._make(partition, scores)
        return self._plans[name]

    def board(self, board_key: str) -> Leaderboard | None:
        """The definition; None if the board is gone."""
        if board_key not in self._boards:
            rows = find_by_keys(self._conn, [board_key])
            alive = [row for row in rows if row.deleted_at is None]
            self._boards[board_key] = from_json(alive[0].definition) if alive else None
        return self._boards[board_key]

    def window_row(self, board_key: str, window: str) -> WindowRow | None:
        """What Postgres has of a window."""
        return find_window(self._conn, board_key, window)

    def forget(self) -> None:
        """Has everything read anew."""
        self._boards.clear()
        self._plans.clear()

    def _make(self, partition: int, scores: Scores) -> Plan | None:
        board = self.board(scores.board_key)
        if board is None:
            return None
        now = self._clock()
        targets: list[Target] = []
        for name in scores.windows:
            window = window_of(self._conn, board, name)
            ends_at = calendar.expires_at(board, window)
            if ends_at is not None and ends_at <= now:
                continue
            lives = "" if ends_at is None else -((now - ends_at) // calendar.MICROS)
            targets.append(Target(name, lives, self._mode(board, window)))
        return make_plan(board, partition, targets) if targets else None

    def _mode(self, board: Leaderboard, window: Window) -> str:
        """As submit.lua has it: it was open when the scores were acknowledged.

        One that Postgres has closed may have left Redis, and has to be brought back first.
        """
        row = find_window(self._conn, board.board_key, window.window)
        return "n" if row is None or row.state is WindowState.OPEN else "i"
