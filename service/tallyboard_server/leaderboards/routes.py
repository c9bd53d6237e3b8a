"""Where a submission goes: the board, the windows that hold its moment, and their partitions."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Protocol

from tallyboard_server.errors import (
    FailedPrecondition,
    FieldViolation,
    InvalidArgument,
    TallyboardError,
)
from tallyboard_server.leaderboards import windows as calendar
from tallyboard_server.leaderboards.boards import Board, Boards
from tallyboard_server.leaderboards.model import Leaderboard, Window
from tallyboard_server.leaderboards.plans import Target, make_plan
from tallyboard_server.redis.keys import segment_of, segment_partition
from tallyboard_server.redis.operations import Write
from tallyboard_server.redis.scores import Plan, Refusal
from tallyboard_server.redis.store import RedisStore

# After so many refusals of a revision, Redis may hold the fence of a change that nobody ended.
_REPAIR_AT: Final = 4
# How far ahead of this clock a moment may be.
MAX_AHEAD: Final = 60 * calendar.MICROS
# Of plans that submissions with moments of their own need; forgotten together.
_MOST_PLANS: Final = 512
# How long (µs) it is believed that Postgres has nothing of a window. A window that was written to
# since, and archived, stays in Redis for longer.
_NEW_FOR: Final = 3600 * calendar.MICROS


class Archive(Protocol):
    """Brings windows that only Postgres has back into Redis."""

    def load(self, board: Leaderboard, window: Window, deadline: float) -> bool:
        """Loads the window; False if Postgres has never had it."""
        ...


@dataclass(eq=False)
class Route:
    """Where the scores of one board and one stretch of time go.

    Attributes:
        windows: those that hold the stretch, in the order of the answer.
        ends_at: where the stretch ends.
        closes_at: when the first of the windows takes no more scores.
        valid_until: when one of the windows has to be treated in another way.
    """

    board: Leaderboard
    windows: tuple[Window, ...]
    ends_at: int
    closes_at: float
    valid_until: float
    modes: tuple[str, ...]
    lives: tuple[Any, ...]
    partitions: tuple[int, ...]
    plans: list[Plan | None]

    @property
    def segments(self) -> int:
        """Over how many partitions the board is spread."""
        return len(self.partitions)

    @property
    def needs_trim(self) -> bool:
        """Whether the limit of entries has to be kept over several segments."""
        return self.board.max_entries > 0 and len(self.partitions) > 1

    @property
    def descending(self) -> bool:
        """Whether the greatest score ranks first."""
        return self.board.is_descending

    def partition(self, segment: int) -> int:
        """The partition of a segment."""
        return self.partitions[segment]

    def plan(self, segment: int) -> Plan:
        """The plan of a segment; always the same one, so that what has it merges."""
        plan = self.plans[segment]
        if plan is None:
            described = zip(self.windows, self.modes, self.lives, strict=True)
            plan = self.plans[segment] = make_plan(
                self.board,
                self.partitions[segment],
                (Target(window.window, lives, mode) for window, mode, lives in described),
            )
        return plan


class Routes:
    """Finds routes for one worker.

    Args:
        clock: the time now in µs since the epoch.
        archive: brings back windows for imports and late scores.
        trim: drops what a window of several segments has above its board's limit.
    """

    def __init__(
        self,
        store: RedisStore,
        boards: Boards,
        partitions: int,
        clock: Callable[[], int],
        archive: Archive,
        trim: Callable[[Leaderboard, Window, float], None],
    ) -> None:
        self._store = store
        self._boards = boards
        self._partitions = partitions
        self._archive = archive
        self._trim = trim
        self.clock = clock

    def route(
        self,
        tenant: str,
        leaderboard_id: str,
        moment: int | None,
        now: int,
        deadline: float,
        *,
        is_import: bool = False,
    ) -> Route:
        """The route of a submission.

        Args:
            moment: when the score was reached; None is now.

        Raises:
            NotFound: there is no such leaderboard.
            FailedPrecondition: WINDOW_CLOSED, a window of the moment takes no more scores, or
                there is none.
            InvalidArgument: the moment is ahead of the clock, or beyond what is kept.
        """
        board = self._boards.held(tenant, leaderboard_id, deadline)
        at = now if moment is None else moment
        if at > now + MAX_AHEAD:
            violation = FieldViolation("occurred_at", "is more than 1 minute ahead of the server")
            raise InvalidArgument("FIELD_INVALID", [violation])
        stretch = board.windows.stretch(at)
        name = (stretch.starts_at, is_import)
        route: Route | None = board.plans.get(name)
        if route is None or route.ends_at != stretch.ends_at or route.valid_until <= now:
            route = self._make(board, name, stretch, now, is_import=is_import)
        if not is_import and route.closes_at <= now:
            raise _closed("a window of that moment has ended, and its grace is over")
        return route

    def partition_of(self, tenant: str, leaderboard_id: str, member: str, deadline: float) -> int:
        """The partition of a member; of a board that there isn't, where it would be by default."""
        segments = 1
        with suppress(TallyboardError):
            segments = self._boards.held(tenant, leaderboard_id, deadline).definition.segments
        segment = segment_of(member, min(segments, self._partitions))
        return segment_partition(tenant, leaderboard_id, segment, self._partitions)

    def trim(self, route: Route, deadline: float) -> None:
        """Keeps the windows of a board of several segments within its limit, after a write."""
        with suppress(TallyboardError):  # the scores count; the next write trims
            for window in route.windows:
                self._trim(route.board, window, deadline)

    def learn(self, refusal: Refusal, attempt: int, deadline: float) -> None:
        """Acts on a refusal, so that a new route is another.

        Args:
            attempt: how often the same was refused before.

        Raises:
            TallyboardError: it will be refused again.
        """
        plan = refusal.plan
        if refusal.code == "r":
            self._boards.forget(plan.tenant, plan.leaderboard_id)
            if attempt == _REPAIR_AT:
                self._boards.repair(plan.tenant, plan.leaderboard_id, deadline)
            return
        board = self._boards.held(plan.tenant, plan.leaderboard_id, deadline)
        window = calendar.parse(board.definition, refusal.subject)
        if refusal.code == "c":
            board.notes["closed", window.window] = self.clock()
        elif not self._archive.load(board.definition, window, deadline):
            board.notes["new", window.window] = self.clock()
        board.plans.clear()

    def send(self, parts: Callable[[Write], None], deadline: float) -> Write:
        """Submits parts and waits for them; their errors are left in them."""
        return self._store.write(parts, None, deadline, raises=False)

    def _make(
        self,
        board: Board,
        name: tuple[int, bool],
        stretch: calendar.Stretch,
        now: int,
        *,
        is_import: bool,
    ) -> Route:
        definition = board.definition
        windows = _kept(definition, stretch.windows, now) if is_import else stretch.windows
        if not windows:
            raise _closed("the leaderboard has, or keeps, no window of that moment")
        closings = [_closing(board, window) for window in windows]
        expiries = [calendar.expires_at(definition, window) for window in windows]
        route = Route(
            definition,
            windows,
            stretch.ends_at,
            min((at for at in closings if at is not None), default=float("inf")),
            _valid_until(board, windows, [*closings, *expiries], now),
            tuple(
                _mode(board, window, closing, now, is_import=is_import)
                for window, closing in zip(windows, closings, strict=True)
            ),
            tuple("" if at is None else -((now - at) // calendar.MICROS) for at in expiries),
            tuple(
                segment_partition(
                    definition.tenant, definition.leaderboard_id, segment, self._partitions
                )
                for segment in range(min(definition.segments, self._partitions))
            ),
            [None] * min(definition.segments, self._partitions),
        )
        if len(board.plans) > _MOST_PLANS:
            board.plans.clear()
        board.plans[name] = route
        return route


def _mode(board: Board, window: Window, closing: int | None, now: int, *, is_import: bool) -> str:
    """How a window may be written to, as submit.lua has it."""
    noted = board.notes.get(("new", window.window))
    is_new = noted is not None and now < noted + _NEW_FOR
    if is_import and closing is not None and closing <= now:
        return "n" if is_new else "i"
    # Its grace may have become longer when it was archived already.
    definition = board.definition
    may_be_archived = window.ends_at is not None and window.ends_at <= definition.updated_at
    return "l" if may_be_archived and not is_new else "o"


def _kept(board: Leaderboard, windows: tuple[Window, ...], now: int) -> tuple[Window, ...]:
    """Those windows whose retention is not over."""
    expiries = [calendar.expires_at(board, window) for window in windows]
    return tuple(
        window for window, at in zip(windows, expiries, strict=True) if at is None or at > now
    )


def _valid_until(
    board: Board, windows: tuple[Window, ...], turns: list[int | None], now: int
) -> float:
    """The next moment at which what `_make` found changes, or is asked for anew."""
    notes = [board.notes.get(("new", window.window)) for window in windows]
    turns = [*turns, *(window.ends_at for window in windows)]
    turns += [None if noted is None else noted + _NEW_FOR for noted in notes]
    return min((at for at in turns if at is not None and at > now), default=float("inf"))


def _closing(board: Board, window: Window) -> int | None:
    """When the window takes no more scores; the keeper's clock may have been ahead of ours."""
    if ("closed", window.window) in board.notes:
        return 0
    return calendar.closes_at(board.definition, window)


def _closed(why: str) -> FailedPrecondition:
    return FailedPrecondition(f"{why}; nothing was applied", reason="WINDOW_CLOSED")
