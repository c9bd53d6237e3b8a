"""Reads of rankings: live ones from Redis, archived ones from Postgres, hot pages from memory."""

import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from threading import BoundedSemaphore
from typing import Final, Protocol

from psycopg_pool import ConnectionPool

from tallyboard_server.errors import NotFound, Overloaded
from tallyboard_server.leaderboards import windows as calendar
from tallyboard_server.leaderboards.archived import ArchivedWindow
from tallyboard_server.leaderboards.boards import Boards
from tallyboard_server.leaderboards.cache import LoadingCache
from tallyboard_server.leaderboards.cursors import Cursor, decode_cursor, encode_cursor
from tallyboard_server.leaderboards.distinct import DistinctIndexes
from tallyboard_server.leaderboards.live import LiveWindow, Members, Slice
from tallyboard_server.leaderboards.model import (
    Entry,
    FoundEntries,
    Leaderboard,
    Page,
    RankMethod,
    Source,
    Stats,
    TieBreak,
    Window,
)
from tallyboard_server.postgres import archive
from tallyboard_server.postgres.entries import WindowRow
from tallyboard_server.postgres.pool import BoundedConnection, postgres_unavailable
from tallyboard_server.redis.rankings import Anchor, mean_of
from tallyboard_server.redis.scores import element_of
from tallyboard_server.redis.store import RedisStore

# Of the threads for reads, so many may wait for Postgres.
_ARCHIVE_SLOTS: Final = 8
_MOST_CACHED_ENTRIES: Final = 100
_MOST_CACHED_METADATA: Final = 65_536


class _Ranking(Protocol):
    """A window to read, live or archived."""

    def members(self, names: Sequence[str]) -> Members: ...

    def scores_at(self, indexes: Sequence[int]) -> list[float]: ...


class EntryReader:
    """Reads for one worker. Deadlines are values of `time.monotonic()`.

    Args:
        clock: the time now in µs since the epoch.
        most_pages: pages kept in memory.
    """

    def __init__(
        self,
        store: RedisStore,
        pool: ConnectionPool[BoundedConnection],
        boards: Boards,
        clock: Callable[[], int],
        most_pages: int,
    ) -> None:
        self._store = store
        self._pool = pool
        self._boards = boards
        self._clock = clock
        self._indexes = DistinctIndexes(store)
        self._pages: LoadingCache[Page] = LoadingCache(most_pages)
        self._archive_slots = BoundedSemaphore(_ARCHIVE_SLOTS)

    def entries(
        self,
        board: Leaderboard,
        window: Window,
        members: Sequence[str],
        method: RankMethod,
        deadline: float,
        *,
        live_only: bool = False,
    ) -> FoundEntries:
        """The entries of members, with their ranks in the whole window.

        Args:
            live_only: an empty answer, and no look into the archive, where Redis has nothing.

        Raises:
            NotFound: WINDOW_NOT_FOUND.
            Unavailable: a store is away.
        """
        as_of, source = time.time(), Source.LIVE
        found = self._live(board, window, method, deadline).members(members)
        if not found.exists and not live_only:
            with self._archived(board, window, method) as archived:
                if archived is not None:
                    found, source = archived[0].members(members), Source.DURABLE
                    as_of = _as_of(archived[1])
        held, positions, size = found.entries, found.positions, found.size
        missing: tuple[str, ...] = ()
        present = members
        if len(held) < len(members):
            missing = tuple(name for name in members if name not in held)
            present = [name for name in members if name in held]
        return FoundEntries(
            window.window,
            tuple([held[name] for name in present]),
            tuple([_percentile(positions[name], size) for name in present]),
            missing,
            size,
            as_of,
            source,
        )

    def relative(self, board: Leaderboard, found: FoundEntries, method: RankMethod) -> FoundEntries:
        """The same entries, ranked among themselves."""
        ranks: dict[str, int] = {}
        best_first = _best_first(board, found.entries)
        position = 0
        groups = groupby(best_first, key=lambda entry: entry.score)
        for dense, (_, group) in enumerate(groups, start=1):
            same = list(group)
            for i, entry in enumerate(same):
                ordinal = position + i + 1
                ranks[entry.member] = {
                    RankMethod.ORDINAL: ordinal,
                    RankMethod.COMPETITION: position + 1,
                    RankMethod.DENSE: dense,
                }[method]
            position += len(same)
        entries = tuple(
            Entry(ranks[e.member], e.member, e.score, e.metadata, e.updated_at)
            for e in found.entries
        )
        return FoundEntries(
            found.window,
            entries,
            found.percentiles,
            found.missing,
            found.total_size,
            found.as_of,
            found.source,
        )

    def page(
        self,
        board: Leaderboard,
        window: Window,
        page_size: int,
        page_token: str,
        skip: int,
        reverse: bool,
        method: RankMethod,
        staleness: float | None,
        deadline: float,
        text: str = "",
    ) -> Page:
        """A page of the whole ranking; from memory where it is fresh enough.

        Args:
            staleness: seconds that the answer may be old; None asks Redis now.
            text: how the request named the window; its later pages have to name it so too.

        Raises:
            InvalidArgument: PAGE_INVALID.
            NotFound: WINDOW_NOT_FOUND.
        """

        def load(source: Source = Source.LIVE) -> Page:
            return self._page(
                board, window, page_size, page_token, skip, reverse, method, source, deadline, text
            )

        if staleness is None or page_token or skip or page_size > _MOST_CACHED_ENTRIES:
            return load()
        name = (board.board_key, board.revision, window.window, text, page_size, reverse, method)
        return self._pages.get(name, staleness, deadline, lambda: load(Source.CACHE), _is_small)

    def around(
        self,
        board: Leaderboard,
        window: Window,
        member: str | None,
        score: float | None,
        neighbors: int,
        method: RankMethod,
        deadline: float,
    ) -> Page:
        """The neighbours of a member, or of a score.

        Raises:
            NotFound: WINDOW_NOT_FOUND, or ENTRY_NOT_FOUND: the member has no entry.
        """
        if member is not None:
            anchor, behind = Anchor("m", 0, member), neighbors + 1
        else:
            assert score is not None
            anchor, behind = Anchor("s", score + 0.0), neighbors
        found, as_of, source = self._around(
            board, window, method, anchor, neighbors, behind, deadline
        )
        if found is None:
            raise NotFound("the member has no entry in this window", reason="ENTRY_NOT_FOUND")
        entries = (*found.before, *found.behind)
        return Page(window.window, entries, found.size, as_of, source, "", found.rank)

    def by_score(
        self,
        board: Leaderboard,
        window: Window,
        from_score: float | None,
        to_score: float | None,
        page_size: int,
        page_token: str,
        reverse: bool,
        method: RankMethod,
        deadline: float,
        text: str = "",
    ) -> Page:
        """A page of the entries with scores within bounds, both included.

        Raises:
            InvalidArgument: PAGE_INVALID.
            NotFound: WINDOW_NOT_FOUND.
        """
        bounds = (from_score, to_score)
        arguments = ("score", board.board_key, text, bounds, reverse, method.value)
        best, worst = (to_score, from_score) if board.is_descending else (from_score, to_score)
        anchor = Anchor("i", 0) if best is None else Anchor("u", best + 0.0)
        if reverse:
            anchor = Anchor("e") if worst is None else Anchor("s", worst + 0.0)
        cursor = decode_cursor(page_token, *arguments) if page_token else None
        found, as_of, source = self._list(
            board,
            window,
            method,
            anchor,
            cursor,
            page_size,
            reverse,
            deadline,
            bounds,
        )
        window_id = cursor.window if cursor else window.window
        return _page_of(
            found, found.within, window_id, page_size, reverse, as_of, source, arguments
        )

    def stats(
        self, board: Leaderboard, window: Window, percentiles: Sequence[float], deadline: float
    ) -> Stats:
        """A window summed up.

        Raises:
            NotFound: WINDOW_NOT_FOUND.
        """
        as_of = time.time()
        live = self._live(board, window, RankMethod.ORDINAL, deadline)
        ends = live.around(Anchor("e"), 0, 0)
        assert ends is not None
        if ends.exists:
            mean = mean_of(ends.sums, ends.size) if ends.size else None
            return _stats(window, live, ends.size, mean, percentiles, as_of, Source.LIVE)
        with self._archived(board, window, RankMethod.ORDINAL) as archived:
            if archived is None:
                return Stats(window.window, 0, None, None, None, (), as_of, Source.LIVE)
            held, row = archived
            return _stats(
                window, held, held.size, held.mean, percentiles, _as_of(row), Source.DURABLE
            )

    def trim(self, board: Leaderboard, window: Window, deadline: float) -> None:
        """Drops what a board of several segments has above its limit; one segment does so itself.

        Raises:
            Unavailable: Redis is away; the next write trims.
        """
        if board.max_entries and board.segments > 1:
            live = self._live(board, window, RankMethod.ORDINAL, deadline)
            live.trim(board.max_entries)

    def _live(
        self, board: Leaderboard, window: Window, method: RankMethod, deadline: float
    ) -> LiveWindow:
        return LiveWindow(
            self._store,
            self._indexes,
            board,
            window.window,
            method,
            self._boards.partitions,
            deadline,
        )

    @contextmanager
    def _archive_slot(self) -> Iterator[None]:
        """Bounds how many calls wait for Postgres, so that live reads always find a thread."""
        if not self._archive_slots.acquire(blocking=False):
            raise Overloaded("too many calls read archived windows at the moment; try again")
        try:
            yield
        finally:
            self._archive_slots.release()

    @contextmanager
    def _archived(
        self, board: Leaderboard, window: Window, method: RankMethod
    ) -> Iterator[tuple[ArchivedWindow, WindowRow] | None]:
        """The archive of a window that Redis does not have; None: it is new, and empty.

        Raises:
            NotFound: there is none, and the window is not one that may still be written to.
        """
        now = self._clock()
        is_open = calendar.has_started(window, now) and calendar.is_open(board, window, now)
        if is_open and (window.ends_at is None or now < window.ends_at):
            yield None
            return
        with self._archive_slot(), postgres_unavailable(), archive.standing(self._pool) as conn:
            row = archive.archived_window(conn, board.board_key, window.window)
            if row is None and is_open:
                yield None
                return
            if row is None:
                raise NotFound("nothing is kept of this window", reason="WINDOW_NOT_FOUND")
            yield ArchivedWindow(conn, row, board.is_descending, method), row

    def _around(
        self,
        board: Leaderboard,
        window: Window,
        method: RankMethod,
        anchor: Anchor,
        ahead: int,
        count: int,
        deadline: float,
        bounds: tuple[float | None, float | None] = (None, None),
        cursor: Cursor | None = None,
    ) -> tuple[Slice | None, float, Source]:
        """Entries next to a place, from Redis, or from the archive where that has them."""
        as_of = time.time()
        live = self._live(board, window, method, deadline)
        found = live.around(anchor, ahead, count, *bounds)
        if found is not None and found.exists:
            return found, as_of, Source.LIVE
        if found is None and live.exists():
            return None, as_of, Source.LIVE
        with self._archived(board, window, method) as archived:
            if archived is None:
                return found, as_of, Source.LIVE
            held, row = archived
            moment, member = (cursor.updated_at, cursor.member) if cursor else (0, "")
            found = held.around(anchor, ahead, count, *bounds, updated_at=moment, member=member)
            return found, _as_of(row), Source.DURABLE

    def _list(
        self,
        board: Leaderboard,
        window: Window,
        method: RankMethod,
        anchor: Anchor,
        cursor: Cursor | None,
        page_size: int,
        reverse: bool,
        deadline: float,
        bounds: tuple[float | None, float | None] = (None, None),
    ) -> tuple[Slice, float, Source]:
        """One entry more than a page, from its start or behind the last one of the page before."""
        if cursor is not None:
            window = calendar.parse(board, cursor.window)
            element = element_of(
                cursor.member,
                cursor.updated_at,
                descending=board.is_descending,
                earliest=board.tie_break is TieBreak.EARLIEST,
            )
            anchor = Anchor("b" if reverse else "a", cursor.score, element)
        ahead, count = (page_size + 1, 0) if reverse else (0, page_size + 1)
        found, as_of, source = self._around(
            board, window, method, anchor, ahead, count, deadline, bounds, cursor
        )
        assert found is not None
        return found, as_of, source

    def _page(
        self,
        board: Leaderboard,
        window: Window,
        page_size: int,
        page_token: str,
        skip: int,
        reverse: bool,
        method: RankMethod,
        source: Source,
        deadline: float,
        text: str,
    ) -> Page:
        arguments = ("list", board.board_key, text, skip, reverse, method.value)
        cursor = decode_cursor(page_token, *arguments) if page_token else None
        anchor = Anchor("i", skip)
        if reverse:
            anchor = Anchor("e")
            if skip and cursor is None:
                anchor = self._from_end(board, window, skip, deadline)
        found, as_of, read = self._list(
            board, window, method, anchor, cursor, page_size, reverse, deadline
        )
        window_id = cursor.window if cursor else window.window
        source = read if read is Source.DURABLE else source
        return _page_of(found, found.size, window_id, page_size, reverse, as_of, source, arguments)

    def _from_end(self, board: Leaderboard, window: Window, skip: int, deadline: float) -> Anchor:
        """The place before the last `skip` entries."""
        found, _, _ = self._around(board, window, RankMethod.ORDINAL, Anchor("e"), 0, 0, deadline)
        assert found is not None
        return Anchor("i", max(0, found.size - skip))


def _is_small(page: Page) -> bool:
    """Whether a page is kept: what pages hold together is bounded by their number."""
    return sum(len(entry.metadata) for entry in page.entries) <= _MOST_CACHED_METADATA


def _page_of(
    found: Slice,
    total_size: int,
    window: str,
    page_size: int,
    reverse: bool,
    as_of: float,
    source: Source,
    arguments: Sequence[object],
) -> Page:
    entries = found.before[::-1] if reverse else found.behind
    token = ""
    if len(entries) > page_size:
        entries = entries[:page_size]
        last = entries[-1]
        cursor = Cursor(window, last.score, last.updated_at, last.member)
        token = encode_cursor(cursor, *arguments)
    return Page(window, tuple(entries), total_size, as_of, source, token)


def _stats(
    window: Window,
    ranking: _Ranking,
    size: int,
    mean: float | None,
    percentiles: Sequence[float],
    as_of: float,
    source: Source,
) -> Stats:
    if not size:
        return Stats(window.window, 0, None, None, None, (), as_of, source)
    ranks = [1, size, *(_rank_at(percentile, size) for percentile in percentiles)]
    scores = ranking.scores_at([rank - 1 for rank in ranks])
    if len(scores) < len(ranks):  # entries went meanwhile
        scores += [scores[-1]] * (len(ranks) - len(scores)) if scores else [0.0] * len(ranks)
    return Stats(window.window, size, scores[0], scores[1], mean, tuple(scores[2:]), as_of, source)


def _percentile(position: int, size: int) -> float:
    """How many percent of a window's entries the one at a position, from 0, ranks at or above."""
    return 100 * (size - position) / size


def _rank_at(percentile: float, size: int) -> int:
    """The last rank whose own percentile, rounded as entries have it, is at least this one."""
    return bisect_right(range(size), -percentile, key=lambda at: -_percentile(at, size))


def _best_first(board: Leaderboard, entries: Sequence[Entry]) -> list[Entry]:
    earliest = board.tie_break is TieBreak.EARLIEST

    def place(entry: Entry) -> tuple[float, bytes]:
        return entry.score, element_of(
            entry.member, entry.updated_at, descending=board.is_descending, earliest=earliest
        )

    return sorted(entries, key=place, reverse=board.is_descending)


def _as_of(row: WindowRow) -> float:
    return (row.archived_at or 0) / calendar.MICROS
