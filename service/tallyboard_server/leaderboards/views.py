"""Where a read of a ranking looks: in Redis and the archive, or in Postgres where Redis is away."""

import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import BoundedSemaphore
from typing import Any, Final, NamedTuple, Protocol

from tallyboard_server.errors import NotFound, Overloaded
from tallyboard_server.leaderboards import windows as calendar
from tallyboard_server.leaderboards.archived import ArchivedWindow
from tallyboard_server.leaderboards.cursors import Cursor
from tallyboard_server.leaderboards.distinct import DistinctIndexes
from tallyboard_server.leaderboards.durable import DurableWindow
from tallyboard_server.leaderboards.live import LiveWindow, Members, Slice
from tallyboard_server.leaderboards.model import (
    Leaderboard,
    RankMethod,
    Source,
    Stats,
    Window,
    WindowState,
)
from tallyboard_server.postgres import archive
from tallyboard_server.postgres.durable import has_journal, partition_ages
from tallyboard_server.postgres.entries import WindowRow, find_window
from tallyboard_server.postgres.pool import BoundedPool, postgres_unavailable
from tallyboard_server.redis.keys import segment_partition
from tallyboard_server.redis.rankings import Anchor, mean_of
from tallyboard_server.redis.store import RedisStore

# Of the threads for reads, so many may wait for the archive.
_ARCHIVE_SLOTS: Final = 8
_EMPTY: Final = Slice(False, 0, 0, 0, 1, [], [])

Bounds = tuple[float | None, float | None]


class Stamp(NamedTuple):
    """How good an answer is: true at `as_of` (seconds since the epoch) or later."""

    as_of: float
    source: Source


class View(Protocol):
    """What reads of one board ask; a window that nothing is kept of raises NotFound."""

    def members(
        self, window: Window, names: Sequence[str], method: RankMethod
    ) -> tuple[Members, Stamp]:
        """The entries of those members that have one."""
        ...

    def around(
        self,
        window: Window,
        method: RankMethod,
        anchor: Anchor,
        ahead: int,
        count: int,
        bounds: Bounds = (None, None),
        cursor: Cursor | None = None,
    ) -> tuple[Slice | None, Stamp]:
        """Entries next to a place; None where that is a member's that has no entry.

        Args:
            cursor: the place that an anchor by element stands for.
        """
        ...

    def stats(self, window: Window, percentiles: Sequence[float]) -> Stats:
        """A window summed up."""
        ...


class Archives:
    """Opens archived windows for one worker.

    Args:
        clock: the time now in µs since the epoch.
    """

    def __init__(self, pool: BoundedPool, clock: Callable[[], int]) -> None:
        self._pool = pool
        self._clock = clock
        self._slots = BoundedSemaphore(_ARCHIVE_SLOTS)

    @contextmanager
    def find(
        self, board: Leaderboard, window: Window, method: RankMethod, deadline: float
    ) -> Iterator[tuple[ArchivedWindow, WindowRow] | None]:
        """The archive of a window that Redis does not have; None: it is new, and empty.

        Args:
            deadline: when the last look into it is to be over, of time.monotonic().

        Raises:
            NotFound: there is none, and the window is not one that may still be written to.
            Unavailable, DeadlineExceeded: Postgres doesn't answer.
        """
        now = self._clock()
        is_open = takes_scores(board, window, now)
        if is_open and (window.ends_at is None or now < window.ends_at):
            yield None
            return
        with self._slot(), postgres_unavailable(), archive.standing(self._pool, deadline) as conn:
            row = archive.archived_window(conn, board.board_key, window.window)
            if row is None and is_open:
                yield None
                return
            if row is None:
                raise nothing_kept()
            yield ArchivedWindow(conn, row, board.is_descending, method), row

    @contextmanager
    def _slot(self) -> Iterator[None]:
        """Bounds how many calls wait for Postgres, so that live reads always find a thread."""
        if not self._slots.acquire(blocking=False):
            raise Overloaded("too many calls read archived windows at the moment; try again")
        try:
            yield
        finally:
            self._slots.release()


class LiveView:
    """Redis, and the archive of what Redis no longer has.

    Args:
        partitions: how many there are.
        deadline: of `time.monotonic()`.
        live_only: an empty answer, and no look into the archive, where Redis has nothing.
    """

    def __init__(
        self,
        store: RedisStore,
        indexes: DistinctIndexes,
        archives: Archives,
        board: Leaderboard,
        partitions: int,
        deadline: float,
        *,
        live_only: bool = False,
    ) -> None:
        self._store = store
        self._indexes = indexes
        self._archives = archives
        self._board = board
        self._partitions = partitions
        self._deadline = deadline
        self._live_only = live_only

    def window(self, window: Window, method: RankMethod) -> LiveWindow:
        """The window in Redis."""
        return LiveWindow(
            self._store,
            self._indexes,
            self._board,
            window.window,
            method,
            self._partitions,
            self._deadline,
        )

    def members(
        self, window: Window, names: Sequence[str], method: RankMethod
    ) -> tuple[Members, Stamp]:
        """See View."""
        stamp = Stamp(time.time(), Source.LIVE)
        found = self.window(window, method).members(names)
        if not found.exists and not self._live_only:
            with self._archives.find(self._board, window, method, self._deadline) as archived:
                if archived is not None:
                    held, row = archived
                    return held.members(names), _archived_at(row)
        return found, stamp

    def around(
        self,
        window: Window,
        method: RankMethod,
        anchor: Anchor,
        ahead: int,
        count: int,
        bounds: Bounds = (None, None),
        cursor: Cursor | None = None,
    ) -> tuple[Slice | None, Stamp]:
        """See View."""
        stamp = Stamp(time.time(), Source.LIVE)
        live = self.window(window, method)
        found = live.around(anchor, ahead, count, *bounds)
        if found is not None and found.exists:
            return found, stamp
        if found is None and live.exists():
            return None, stamp
        with self._archives.find(self._board, window, method, self._deadline) as archived:
            if archived is None:
                return found, stamp
            held, row = archived
            return _around(held, anchor, ahead, count, bounds, cursor), _archived_at(row)

    def stats(self, window: Window, percentiles: Sequence[float]) -> Stats:
        """See View."""
        stamp = Stamp(time.time(), Source.LIVE)
        live = self.window(window, RankMethod.ORDINAL)
        ends = live.around(Anchor("e"), 0, 0)
        assert ends is not None
        if ends.exists:
            mean = mean_of(ends.sums, ends.size) if ends.size else None
            return _stats(window, live, ends.size, mean, percentiles, stamp)
        with self._archives.find(
            self._board, window, RankMethod.ORDINAL, self._deadline
        ) as archived:
            if archived is None:
                return Stats(window.window, 0, None, None, None, (), *stamp)
            held, row = archived
            return _stats(window, held, held.size, held.mean, percentiles, _archived_at(row))


class DurableView:
    """Postgres, journal included.

    Args:
        conn: a connection whose reads see one moment (`postgres.durable.reading`).
        partitions: how many there are.
        now: the time now in µs since the epoch, by which windows begin and end.
        complete: whether all that was acknowledged is in Postgres.
    """

    def __init__(
        self, conn: Any, board: Leaderboard, partitions: int, now: int, *, complete: bool
    ) -> None:
        as_of = time.time()
        self._conn = conn
        self._board = board
        self._now = now
        ages = partition_ages(conn)
        places = {
            segment_partition(board.tenant, board.leaderboard_id, segment, partitions)
            for segment in range(min(board.segments, partitions))
        }
        held = [ages[place] for place in places if place in ages]
        # Of a partition that is open, what is journaled and not checkpointed is not in its entries.
        if not complete or any(age.is_open for age in held):
            as_of = min((age.checkpointed_at for age in held), default=0.0)
        self._stamp = Stamp(as_of, Source.DURABLE)

    def members(
        self, window: Window, names: Sequence[str], method: RankMethod
    ) -> tuple[Members, Stamp]:
        """See View."""
        held = self._window(window, method)
        found = Members(False, 0, {}, {}) if held is None else held.members(names)
        return found, self._stamp

    def around(
        self,
        window: Window,
        method: RankMethod,
        anchor: Anchor,
        ahead: int,
        count: int,
        bounds: Bounds = (None, None),
        cursor: Cursor | None = None,
    ) -> tuple[Slice | None, Stamp]:
        """See View."""
        held = self._window(window, method)
        if held is None:
            return None if anchor.kind == "m" else _EMPTY, self._stamp
        return _around(held, anchor, ahead, count, bounds, cursor), self._stamp

    def stats(self, window: Window, percentiles: Sequence[float]) -> Stats:
        """See View."""
        held = self._window(window, RankMethod.ORDINAL)
        if held is None:
            return Stats(window.window, 0, None, None, None, (), *self._stamp)
        return _stats(window, held, held.size, held.mean, percentiles, self._stamp)

    def _window(
        self, window: Window, method: RankMethod
    ) -> "DurableWindow | ArchivedWindow | None":
        """The window; None: it is new, and empty."""
        row = find_window(self._conn, self._board.board_key, window.window)
        if row is None:
            if takes_scores(self._board, window, self._now):
                return None
            raise nothing_kept()
        is_archived = row.state is WindowState.ARCHIVED
        if is_archived and not has_journal(self._conn, row.window_id):
            return ArchivedWindow(self._conn, row, self._board.is_descending, method)
        return DurableWindow(self._conn, row.window_id, self._board, method)


def takes_scores(board: Leaderboard, window: Window, now: int) -> bool:
    """Whether scores may still come into a window, or have just begun to."""
    return calendar.has_started(window, now) and calendar.is_open(board, window, now)


def nothing_kept() -> NotFound:
    """The error for a window without entries that can't get any."""
    return NotFound("nothing is kept of this window", reason="WINDOW_NOT_FOUND")


def percentile_of(position: int, size: int) -> float:
    """How many percent of a window's entries the one at a position, from 0, ranks at or above."""
    return 100 * (size - position) / size


class _Ranking(Protocol):
    """A window to sum up."""

    def scores_at(self, indexes: Sequence[int]) -> list[float]: ...


def _around(
    held: ArchivedWindow | DurableWindow,
    anchor: Anchor,
    ahead: int,
    count: int,
    bounds: Bounds,
    cursor: Cursor | None,
) -> Slice | None:
    moment, member = (cursor.updated_at, cursor.member) if cursor else (0, "")
    return held.around(anchor, ahead, count, *bounds, updated_at=moment, member=member)


def _stats(
    window: Window,
    ranking: _Ranking,
    size: int,
    mean: float | None,
    percentiles: Sequence[float],
    stamp: Stamp,
) -> Stats:
    if not size:
        return Stats(window.window, 0, None, None, None, (), *stamp)
    ranks = [1, size, *(_rank_at(percentile, size) for percentile in percentiles)]
    scores = ranking.scores_at([rank - 1 for rank in ranks])
    if len(scores) < len(ranks):  # entries went meanwhile
        scores += [scores[-1]] * (len(ranks) - len(scores)) if scores else [0.0] * len(ranks)
    return Stats(window.window, size, scores[0], scores[1], mean, tuple(scores[2:]), *stamp)


def _rank_at(percentile: float, size: int) -> int:
    """The last rank whose own percentile, rounded as entries have it, is at least this one."""
    return bisect_right(range(size), -percentile, key=lambda at: -percentile_of(at, size))


def _archived_at(row: WindowRow) -> Stamp:
    return Stamp((row.archived_at or 0) / calendar.MICROS, Source.DURABLE)
