"""Reads of rankings: live ones from Redis, archived ones from Postgres, hot pages from memory."""

import time
from collections.abc import Callable, Hashable, Sequence
from itertools import groupby
from typing import Any, Final, Protocol, TypeVar

from tallyboard_server.errors import DeadlineExceeded, NotFound, Unavailable
from tallyboard_server.leaderboards import windows as calendar
from tallyboard_server.leaderboards.boards import Boards
from tallyboard_server.leaderboards.cache import LoadingCache
from tallyboard_server.leaderboards.cursors import Cursor, decode_cursor, encode_cursor
from tallyboard_server.leaderboards.distinct import DistinctIndexes
from tallyboard_server.leaderboards.live import Members, Slice
from tallyboard_server.leaderboards.model import (
    Entry,
    Fallback,
    FoundEntries,
    Leaderboard,
    Page,
    RankMethod,
    Source,
    Stats,
    TieBreak,
    Window,
)
from tallyboard_server.leaderboards.views import (
    Archives,
    Bounds,
    DurableView,
    LiveView,
    Stamp,
    View,
    percentile_of,
)
from tallyboard_server.postgres.pool import BoundedPool
from tallyboard_server.recovery.durable_reads import DurableReads, as_away
from tallyboard_server.redis.rankings import Anchor
from tallyboard_server.redis.scores import element_of
from tallyboard_server.redis.store import RedisStore

_MOST_CACHED_ENTRIES: Final = 100
_MOST_CACHED_METADATA: Final = 65_536


class _Answer(Protocol):
    """What a read gives."""

    @property
    def as_of(self) -> float: ...


Answer = TypeVar("Answer", bound=_Answer)


class EntryReader:
    """Reads for one worker. Deadlines are values of `time.monotonic()`.

    Where a read takes `staleness` (seconds that the answer may be old; None asks Redis now) and
    `fallback`, those say whether Postgres may answer while Redis is away.

    Args:
        clock: the time now in µs since the epoch.
        most_pages: pages kept in memory.
        durable: reads from Postgres.
        ttl: seconds that answers from Postgres are kept.
    """

    def __init__(
        self,
        store: RedisStore,
        pool: BoundedPool,
        boards: Boards,
        clock: Callable[[], int],
        most_pages: int,
        durable: DurableReads | None = None,
        ttl: float = 0.0,
    ) -> None:
        self._store = store
        self._boards = boards
        self._clock = clock
        self._indexes = DistinctIndexes(store)
        self._archives = Archives(pool, clock)
        self._pages: LoadingCache[Page] = LoadingCache(most_pages)
        self._durable = durable
        self._durable_answers: LoadingCache[Any] = LoadingCache(most_pages)
        self._ttl = ttl

    def entries(
        self,
        board: Leaderboard,
        window: Window,
        members: Sequence[str],
        method: RankMethod,
        deadline: float,
        staleness: float | None = None,
        fallback: Fallback = Fallback.NEVER,
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

        def look(view: View) -> FoundEntries:
            found, stamp = view.members(window, members, method)
            return _found_entries(window, members, found, stamp)

        def live(until: float) -> FoundEntries:
            return look(self._live(board, until, live_only=live_only))

        name = ("entries", window.window, tuple(members), method)
        return self._answer(board, name, live, look, staleness, fallback, deadline)

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
        window: Window | None,
        page_size: int,
        page_token: str,
        skip: int,
        reverse: bool,
        method: RankMethod,
        staleness: float | None,
        deadline: float,
        text: str = "",
        fallback: Fallback = Fallback.NEVER,
    ) -> Page:
        """A page of the whole ranking; from memory where it is fresh enough.

        Args:
            window: None with a page token, for it is that of the first page.
            text: how the request named the window; its later pages have to name it so too.

        Raises:
            InvalidArgument: PAGE_INVALID.
            NotFound: WINDOW_NOT_FOUND.
        """
        arguments = ("list", board.board_key, text, skip, reverse, method.value)
        window, cursor = _start(board, window, page_token, arguments)

        def look(view: View, source: Source = Source.LIVE) -> Page:
            return self._page(
                view, board, window, page_size, cursor, skip, reverse, method, source, arguments
            )

        name = ("page", window.window, text, page_size, page_token, skip, reverse, method)

        def live(until: float) -> Page:
            view = self._live(board, until)
            if staleness is None or page_token or skip or page_size > _MOST_CACHED_ENTRIES:
                return look(view)
            of = (board.board_key, board.revision, *name)
            return self._pages.get(
                of, staleness, until, lambda: look(view, Source.CACHE), _is_small
            )

        return self._answer(board, name, live, look, staleness, fallback, deadline)

    def around(
        self,
        board: Leaderboard,
        window: Window,
        member: str | None,
        score: float | None,
        neighbors: int,
        method: RankMethod,
        deadline: float,
        staleness: float | None = None,
        fallback: Fallback = Fallback.NEVER,
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

        def look(view: View) -> Page:
            found, stamp = view.around(window, method, anchor, neighbors, behind)
            if found is None:
                raise NotFound("the member has no entry in this window", reason="ENTRY_NOT_FOUND")
            entries = (*found.before, *found.behind)
            return Page(window.window, entries, found.size, *stamp, "", found.rank)

        return self._answer(
            board,
            ("around", window.window, anchor, neighbors, method),
            lambda until: look(self._live(board, until)),
            look,
            staleness,
            fallback,
            deadline,
        )

    def by_score(
        self,
        board: Leaderboard,
        window: Window | None,
        from_score: float | None,
        to_score: float | None,
        page_size: int,
        page_token: str,
        reverse: bool,
        method: RankMethod,
        deadline: float,
        text: str = "",
        staleness: float | None = None,
        fallback: Fallback = Fallback.NEVER,
    ) -> Page:
        """A page of the entries with scores within bounds, both included.

        Args:
            window, text: as for `page`.

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
        window, cursor = _start(board, window, page_token, arguments)

        def look(view: View) -> Page:
            found, stamp = self._list(
                view, board, window, method, anchor, cursor, page_size, reverse, bounds
            )
            return _page_of(
                found, found.within, window.window, page_size, reverse, stamp, arguments
            )

        return self._answer(
            board,
            ("score", window.window, text, bounds, page_size, page_token, reverse, method),
            lambda until: look(self._live(board, until)),
            look,
            staleness,
            fallback,
            deadline,
        )

    def stats(
        self,
        board: Leaderboard,
        window: Window,
        percentiles: Sequence[float],
        deadline: float,
        staleness: float | None = None,
        fallback: Fallback = Fallback.NEVER,
    ) -> Stats:
        """A window summed up.

        Raises:
            NotFound: WINDOW_NOT_FOUND.
        """

        def look(view: View) -> Stats:
            return view.stats(window, percentiles)

        return self._answer(
            board,
            ("stats", window.window, tuple(percentiles)),
            lambda until: look(self._live(board, until)),
            look,
            staleness,
            fallback,
            deadline,
        )

    def trim(self, board: Leaderboard, window: Window, deadline: float) -> None:
        """Drops what a board of several segments has above its limit; one segment does so itself.

        Raises:
            Unavailable: Redis is away; the next write trims.
        """
        if board.max_entries and board.segments > 1:
            live = self._live(board, deadline).window(window, RankMethod.ORDINAL)
            live.trim(board.max_entries)

    def _live(self, board: Leaderboard, deadline: float, *, live_only: bool = False) -> LiveView:
        return LiveView(
            self._store,
            self._indexes,
            self._archives,
            board,
            self._boards.partitions,
            deadline,
            live_only=live_only,
        )

    def _answer(
        self,
        board: Leaderboard,
        name: tuple[Hashable, ...],
        live: Callable[[float], Answer],
        look: Callable[[DurableView], Answer],
        staleness: float | None,
        fallback: Fallback,
        deadline: float,
    ) -> Answer:
        """What Redis says, by the deadline that `live` is given; else what Postgres says."""
        durable = self._durable
        if durable is None or fallback is Fallback.NEVER:
            return live(deadline)
        try:
            return live(durable.live_deadline(fallback, staleness, deadline))
        except (Unavailable, DeadlineExceeded) as caught:
            if not durable.may_answer(caught, fallback, staleness):
                raise
            error = caught
        begun = time.time()

        def load() -> Answer:
            with durable.reading(deadline) as conn:
                partitions, now = self._boards.partitions, self._clock()
                view = DurableView(conn, board, partitions, now, complete=durable.complete)
                return look(view)

        of = (board.board_key, board.revision, *name)
        try:
            answer: Answer = self._durable_answers.get(of, self._ttl, deadline, load, _is_small)
        except NotFound as missing:
            if fallback is Fallback.ANY_AGE:
                raise
            # It may have come since.
            raise as_away(error) from missing
        if not durable.is_fresh(answer.as_of, fallback, staleness, begun) and durable.complete:
            answer = load()  # what was kept is too old, and there is something newer
        if not durable.is_fresh(answer.as_of, fallback, staleness, begun):
            raise as_away(error) from error
        return answer

    def _list(
        self,
        view: View,
        board: Leaderboard,
        window: Window,
        method: RankMethod,
        anchor: Anchor,
        cursor: Cursor | None,
        page_size: int,
        reverse: bool,
        bounds: Bounds = (None, None),
    ) -> tuple[Slice, Stamp]:
        """One entry more than a page, from its start or behind the last one of the page before."""
        if cursor is not None:
            element = element_of(
                cursor.member,
                cursor.updated_at,
                descending=board.is_descending,
                earliest=board.tie_break is TieBreak.EARLIEST,
            )
            anchor = Anchor("b" if reverse else "a", cursor.score, element)
        ahead, count = (page_size + 1, 0) if reverse else (0, page_size + 1)
        found, stamp = view.around(window, method, anchor, ahead, count, bounds, cursor)
        assert found is not None
        return found, stamp

    def _page(
        self,
        view: View,
        board: Leaderboard,
        window: Window,
        page_size: int,
        cursor: Cursor | None,
        skip: int,
        reverse: bool,
        method: RankMethod,
        source: Source,
        arguments: tuple[object, ...],
    ) -> Page:
        anchor = Anchor("i", skip)
        if reverse:
            anchor = Anchor("e")
            if skip and cursor is None:
                anchor = self._from_end(view, window, skip)
        found, stamp = self._list(view, board, window, method, anchor, cursor, page_size, reverse)
        if stamp.source is not Source.DURABLE:
            stamp = Stamp(stamp.as_of, source)
        return _page_of(found, found.size, window.window, page_size, reverse, stamp, arguments)

    @staticmethod
    def _from_end(view: View, window: Window, skip: int) -> Anchor:
        """The place before the last `skip` entries."""
        found, _ = view.around(window, RankMethod.ORDINAL, Anchor("e"), 0, 0)
        assert found is not None
        return Anchor("i", max(0, found.size - skip))


def _found_entries(
    window: Window, members: Sequence[str], found: Members, stamp: Stamp
) -> FoundEntries:
    """Puts what was found of members into their order."""
    held, positions, size = found.entries, found.positions, found.size
    missing: tuple[str, ...] = ()
    present = members
    if len(held) < len(members):
        missing = tuple(name for name in members if name not in held)
        present = [name for name in members if name in held]
    return FoundEntries(
        window.window,
        tuple([held[name] for name in present]),
        tuple([percentile_of(positions[name], size) for name in present]),
        missing,
        size,
        *stamp,
    )


def _is_small(answer: Page | FoundEntries | Stats) -> bool:
    """Whether an answer is kept: what they hold together is bounded by their number."""
    if isinstance(answer, Stats):
        return True
    entries = answer.entries
    return (
        len(entries) <= _MOST_CACHED_ENTRIES + 1
        and sum(len(entry.metadata) for entry in entries) <= _MOST_CACHED_METADATA
    )


def _start(
    board: Leaderboard, window: Window | None, page_token: str, arguments: tuple[object, ...]
) -> tuple[Window, Cursor | None]:
    """The window that a page is of, and the place behind which it begins."""
    if page_token:
        cursor = decode_cursor(page_token, *arguments)
        return calendar.parse(board, cursor.window), cursor
    assert window is not None
    return window, None


def _page_of(
    found: Slice,
    total_size: int,
    window: str,
    page_size: int,
    reverse: bool,
    stamp: Stamp,
    arguments: Sequence[object],
) -> Page:
    entries = found.before[::-1] if reverse else found.behind
    token = ""
    if len(entries) > page_size:
        entries = entries[:page_size]
        last = entries[-1]
        cursor = Cursor(window, last.score, last.updated_at, last.member)
        token = encode_cursor(cursor, *arguments)
    return Page(window, tuple(entries), total_size, *stamp, token)


def _best_first(board: Leaderboard, entries: Sequence[Entry]) -> list[Entry]:
    earliest = board.tie_break is TieBreak.EARLIEST

    def place(entry: Entry) -> tuple[float, bytes]:
        return entry.score, element_of(
            entry.member, entry.updated_at, descending=board.is_descending, earliest=earliest
        )

    return sorted(entries, key=place, reverse=board.is_descending)
