"""Windows that have ended: closed in Redis, archived in Postgres with their ranks, and let go.

Closing comes first: from then on Redis takes no scores but imports, so the checkpoint that follows
has all there is. An import makes the window one that is only closed, to be archived again.
"""

import time
from collections.abc import Callable
from typing import Any, Final

import psycopg
import structlog
from prometheus_client import Counter, Histogram

from tallyboard_server.checkpointer import Checkpointer, PartitionFenced
from tallyboard_server.leaderboards.definitions import from_json
from tallyboard_server.leaderboards.model import Leaderboard, WindowState
from tallyboard_server.leaderboards.windows import MICROS
from tallyboard_server.postgres.checkpoints import read_lives
from tallyboard_server.postgres.entries import (
    WindowRow,
    archive_window,
    close_window,
    delete_window,
    due_windows,
    expired_windows,
)
from tallyboard_server.postgres.journal import OPEN, read_standings
from tallyboard_server.postgres.leaderboards import find_by_keys
from tallyboard_server.postgres.pool import BoundedPool
from tallyboard_server.redis import windows
from tallyboard_server.redis.definitions import partitions_of
from tallyboard_server.redis.nodes import RedisNodes

# Redis keeps an archived window so long: most reads of it come soon after its end.
LIVE_AFTER_ARCHIVE: Final = 24 * 3600
# A window that imports still write to is not archived every time a checkpoint finds some.
QUIET: Final = 5.0
_PAGE: Final = 100
_DELETE_STEP: Final = 20_000
# Seconds that one round may take: checkpoints wait for it.
_ROUND: Final = 10.0

_ARCHIVED = Counter("tallyboard_archived_windows", "Windows of leaderboards that were archived.")
_SECONDS = Histogram(
    "tallyboard_archive_seconds",
    "Seconds that the archiving of a window took.",
    buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300),
)
_log = structlog.get_logger(__name__)


class Archiver:
    """Work of the keeper; its methods raise redis.RedisError and psycopg.Error.

    Args:
        nodes: clients that do not repeat commands.
        partitions: how many there are.
        clock: the time now in µs since the epoch.
        quiet: seconds without a change after which a closed window is archived.
    """

    def __init__(
        self,
        nodes: RedisNodes,
        pool: BoundedPool,
        checkpointer: Checkpointer,
        partitions: int,
        clock: Callable[[], int],
        quiet: float = QUIET,
    ) -> None:
        self._nodes = nodes
        self._pool = pool
        self._checkpointer = checkpointer
        self._partitions = partitions
        self._clock = clock
        self._quiet = quiet

    def work(self) -> int:
        """Closes and archives windows that are due, for a while; gives how many it archived."""
        until = time.monotonic() + _ROUND
        archived, after = 0, None
        while time.monotonic() < until:
            with self._pool.connection() as conn:
                due = due_windows(conn, self._clock(), self._quiet_since(), _PAGE, after)
                found = _boards_of(conn, due)
            for board, row in found:
                if time.monotonic() > until:
                    break
                archived += self._settle(board, row)
            if len(due) < _PAGE:
                break
            after = due[-1]
        return archived

    def drop_expired(self) -> None:
        """Deletes windows whose retention is over, for a while."""
        until = time.monotonic() + _ROUND
        with self._pool.connection() as conn:
            expired = _boards_of(conn, expired_windows(conn, self._clock(), _PAGE))
        for board, row in expired:
            commands = []
            for partition in self._places(board):
                commands += windows.drop_window(partition, row.board_key, row.window.window)
            self._nodes.run(commands)
            is_gone = False
            while not is_gone and time.monotonic() < until:
                with self._pool.connection() as conn:
                    is_gone = delete_window(conn, row.window_id, _DELETE_STEP)

    def _settle(self, board: Leaderboard, row: WindowRow) -> bool:
        """Takes a window that is due one step further; tells whether it is archived now."""
        if not self._are_open(board):
            return False  # scores for it may still be in the journal
        try:
            if not self._close(board, row):
                return False
            for partition in self._places(board):
                self._checkpointer.checkpoint_partition(partition)
        except (PartitionFenced, psycopg.errors.LockNotAvailable):
            return False  # it stays due
        started = time.monotonic()
        with self._pool.connection() as conn:
            entries = archive_window(conn, row.window_id, None, archived_at=self._clock())
        if entries is None:
            return False
        _SECONDS.observe(time.monotonic() - started)
        _ARCHIVED.inc()
        _log.info(
            "Window archived.",
            tenant=board.tenant,
            leaderboard=board.leaderboard_id,
            window=row.window.window,
            entries=entries,
        )
        self._let_go(board, row)
        return True

    def _are_open(self, board: Leaderboard) -> bool:
        places = self._places(board)
        with self._pool.connection() as conn:
            standings = read_standings(conn, places)
        return all(standing.state == OPEN for standing in standings)

    def _close(self, board: Leaderboard, row: WindowRow) -> bool:
        """Closes the window in every partition; False when it is not to be closed after all."""
        if row.state is not WindowState.OPEN:
            return True
        places = self._places(board)
        with self._pool.connection() as conn:
            # The row stays locked until Redis knows: a season that is made longer meanwhile is
            # either seen here, or finds a window that is closed.
            if not close_window(conn, row.window_id, self._clock()):
                return False
            lives = read_lives(conn, places)
            replies = self._nodes.run(
                [
                    windows.close_window(
                        place,
                        lives[place].incarnation if place in lives else "",
                        row.board_key,
                        row.window.window,
                    )
                    for place in places
                ]
            )
            if any(reply[0] != b"ok" for reply in replies):
                raise PartitionFenced("a partition isn't what Postgres follows")
        return True

    def _let_go(self, board: Leaderboard, row: WindowRow) -> None:
        """Gives the window's data in Redis a time to end, the same in every partition.

        Where a part of it has ended its time already, the rest goes too: reads take what Redis has
        for the whole.
        """
        key, name, places = row.board_key, row.window.window, self._places(board)
        seconds = LIVE_AFTER_ARCHIVE
        if row.expires_at is not None:
            left = (row.expires_at - self._clock()) // MICROS
            seconds = max(1, min(seconds, left))
        there = self._nodes.run([windows.is_there(place, key, name) for place in places])
        ends_at = max(self._nodes.times()) // MICROS + seconds if all(there) else 1
        commands = []
        for place in places:
            commands.append(windows.expire_window(place, key, name, ends_at))
            commands.append(windows.sweep_windows(place, key))
        self._nodes.run(commands)

    def _places(self, board: Leaderboard) -> list[int]:
        return partitions_of(board.tenant, board.leaderboard_id, board.segments, self._partitions)

    def _quiet_since(self) -> int:
        """Changes are dated by the clock of their node."""
        return min(self._nodes.times()) - int(self._quiet * MICROS)


def _boards_of(conn: Any, found: list[WindowRow]) -> list[tuple[Leaderboard, WindowRow]]:
    """The windows with their boards, without those of boards that were purged meanwhile."""
    rows = find_by_keys(conn, sorted({row.board_key for row in found}))
    boards = {row.board_key: from_json(row.definition) for row in rows}
    return [(boards[row.board_key], row) for row in found if row.board_key in boards]
