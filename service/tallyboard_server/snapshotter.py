"""The daily standing of every board, copied in Postgres when its day ends, and on command.

A day is the board's own: by its time zone and reset offset. What is copied are the windows that
hold the last moment of the day, or, on command, the windows of now.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import date
from typing import Final

import psycopg
import structlog
from prometheus_client import Counter

from tallyboard_server.checkpointer import Checkpointer, PartitionFenced
from tallyboard_server.leaderboards.definitions import from_json
from tallyboard_server.leaderboards.model import Leaderboard, Window
from tallyboard_server.leaderboards.windows import MICROS, day_at, windows_at
from tallyboard_server.postgres import snapshots
from tallyboard_server.postgres.leaderboards import find_by_keys, live_boards
from tallyboard_server.postgres.pool import BoundedPool
from tallyboard_server.redis.definitions import partitions_of

_PAGE: Final = 500
# Seconds between two looks for boards that are new.
_LOOK_EVERY: Final = 30.0
# Seconds that one round may take: checkpoints wait for it.
_ROUND: Final = 10.0
_PURGE_STEP: Final = 20_000

_TAKEN = Counter("tallyboard_snapshots", "Snapshots of windows of leaderboards that were taken.")
_log = structlog.get_logger(__name__)


@dataclass
class _Board:
    """What is remembered of a board: when its current day ends."""

    revision: int
    day_ends_at: int


class Snapshotter:
    """Work of the keeper; its methods raise redis.RedisError and psycopg.Error.

    Args:
        partitions: how many there are.
        clock: the time now in µs since the epoch.
        keep: seconds that snapshots are kept; 0 is for good.
    """

    def __init__(
        self,
        pool: BoundedPool,
        checkpointer: Checkpointer,
        partitions: int,
        clock: Callable[[], int],
        keep: float,
    ) -> None:
        self._pool = pool
        self._checkpointer = checkpointer
        self._partitions = partitions
        self._clock = clock
        self._keep = keep
        self._boards: dict[str, _Board] = {}
        self._looked = float("-inf")

    def work(self) -> int:
        """Takes the snapshots that are due, for a while; gives how many."""
        until = time.monotonic() + _ROUND
        if time.monotonic() - self._looked > _LOOK_EVERY:
            self._look()
            self._looked = time.monotonic()
            self._purge(until)
        now = self._clock()
        due = [key for key, board in self._boards.items() if board.day_ends_at <= now]
        taken = 0
        for start in range(0, len(due), _PAGE):
            with self._pool.connection() as conn:
                rows = find_by_keys(conn, due[start : start + _PAGE])
            for row in rows:
                if time.monotonic() > until:
                    return taken
                if row.deleted_at is None:
                    board = from_json(row.definition)
                    taken += self._end_day(board, self._boards[row.board_key], now)
            for key in set(due[start : start + _PAGE]) - {row.board_key for row in rows}:
                del self._boards[key]
        return taken

    def take_now(self, board: Leaderboard, deadline: float) -> list[snapshots.SnapshotRow]:
        """The standing of the windows of now, filed under today, in place of an earlier one.

        Args:
            deadline: of time.monotonic(); each snapshot is there whole by then, or not at all.

        Raises:
            TooLate: not all of them are there.
            PartitionFenced: a partition of the board isn't the one that Postgres follows.
        """
        now = self._clock()
        return self._take(board, windows_at(board, now), _day_of(day_at(board, now)), deadline)

    def _look(self) -> None:
        """Finds boards that are new, or were changed, and days that ended while nobody looked."""
        after, now = "", self._clock()
        while True:
            with self._pool.connection() as conn:
                rows = live_boards(conn, after, _PAGE)
            for row in rows:
                known = self._boards.get(row.board_key)
                if known is None or known.revision != row.revision:
                    board = from_json(row.definition)
                    day = day_at(board, now)
                    begun = day.starts_at or 0
                    missed = row.created_at < begun and bool(self._missing(board, begun))
                    ends_at = begun if missed else day.ends_at or 0
                    self._boards[row.board_key] = _Board(row.revision, ends_at)
            if len(rows) < _PAGE:
                return
            after = rows[-1].board_key

    def _missing(self, board: Leaderboard, ended_at: int) -> list[Window]:
        """The windows of a day that has ended of which nobody took a snapshot since.

        One that was taken earlier, on command, is not that of the day's end. One that was taken
        since stays as it is: all-time windows have gone on.
        """
        day = _day_of(day_at(board, ended_at - 1))
        with self._pool.connection() as conn:
            taken = snapshots.taken_since(conn, board.board_key, day, ended_at)
        return [w for w in windows_at(board, ended_at - 1) if w.window not in taken]

    def _end_day(self, board: Leaderboard, known: _Board, now: int) -> int:
        ended_at = known.day_ends_at
        day = _day_of(day_at(board, ended_at - 1))
        try:
            taken = self._take(board, self._missing(board, ended_at), day)
        except (PartitionFenced, psycopg.errors.LockNotAvailable):
            return 0  # it stays due
        known.day_ends_at = day_at(board, now).ends_at or 0
        return len(taken)

    def _take(
        self,
        board: Leaderboard,
        windows: Iterable[Window],
        day: date,
        deadline: float | None = None,
    ) -> list[snapshots.SnapshotRow]:
        for partition in partitions_of(
            board.tenant, board.leaderboard_id, board.segments, self._partitions
        ):
            self._checkpointer.checkpoint_partition(partition, deadline=deadline)
        taken = []
        for window in windows:
            with self._pool.until(deadline) as conn:
                row = snapshots.take(conn, board.board_key, window.window, day, self._clock())
            if row is not None:
                taken.append(row)
        _TAKEN.inc(len(taken))
        if taken:
            _log.info(
                "Snapshots taken.",
                tenant=board.tenant,
                leaderboard=board.leaderboard_id,
                day=day.isoformat(),
                windows=len(taken),
            )
        return taken

    def _purge(self, until: float) -> None:
        if not self._keep:
            return
        before = self._clock() - int(self._keep * MICROS)
        is_done = False
        while not is_done and time.monotonic() < until:
            with self._pool.connection() as conn:
                is_done = snapshots.purge_before(conn, before, _PURGE_STEP)


def _day_of(day: Window) -> date:
    return date.fromisoformat(day.window)
