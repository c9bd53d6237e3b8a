"""The calendar of windows: which window a moment is in, and what a window's name means.

A calendar window begins at a wall clock time of the board's zone: an hour at its minute 0, a day,
an ISO week and a month at the reset offset of their first date. On the axis of real time that is
the first instant at which the clock shows this time or a later one. So a time that clocks skip
begins when they skip it, one that they show twice begins the first time, and since these instants
never decrease, the windows of a kind part time without gap or overlap whatever a zone does to its
clocks. An hour that is shown twice is one window of two hours; an hour or a day that is skipped is
no window.

Nothing here reads a clock or does I/O, save that a zone's rules are read once.
"""

import re
import threading
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import NamedTuple
from zoneinfo import ZoneInfo

from tallyboard_server.errors import FieldViolation, InvalidArgument, NotFound
from tallyboard_server.leaderboards.model import Leaderboard, Season, Window, WindowKind

ALL_TIME_ID = "all"
MICROS = 1_000_000
DAY_SECONDS = 86_400

_EPOCH = datetime(1970, 1, 1)
_AWARE_EPOCH = _EPOCH.replace(tzinfo=UTC)


def _micros(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(microseconds=1)


def _whole_seconds(duration: timedelta) -> int:
    return duration.days * DAY_SECONDS + duration.seconds


# What the contract's timestamps can hold.
FIRST_TIMESTAMP = _micros(datetime.min)
LAST_TIMESTAMP = _micros(datetime.max)
# What submissions may carry: from the first to before the second.
FIRST_MOMENT = _micros(datetime(1900, 1, 1))
END_OF_MOMENTS = _micros(datetime(2100, 1, 1))

_SHAPES = {
    WindowKind.ALL_TIME: re.compile(ALL_TIME_ID),
    WindowKind.HOURLY: re.compile("([0-9]{4})-([0-9]{2})-([0-9]{2})T([0-9]{2})"),
    WindowKind.DAILY: re.compile("([0-9]{4})-([0-9]{2})-([0-9]{2})"),
    WindowKind.WEEKLY: re.compile("([0-9]{4})-W([0-9]{2})"),
    WindowKind.MONTHLY: re.compile("([0-9]{4})-([0-9]{2})"),
}
_KINDS_BY_WORD = {kind.value.lower(): kind for kind in WindowKind}
_ZONE_NAME = re.compile("(?!(?:posix|right)/)[A-Za-z0-9_+-]+(?:/[A-Za-z0-9_+-]+){0,3}")
# Files that lie among the zones and mean another thing on every machine, or nothing.
_NO_ZONES = frozenset({"Factory", "localtime", "posixrules"})
_MAX_STRETCHES = 512


class Stretch(NamedTuple):
    """A time, from `starts_at` to before `ends_at`, whose every moment is in the same windows."""

    starts_at: int
    ends_at: int
    windows: tuple[Window, ...]


class WindowCache:
    """The windows of one board's moments, for callers that ask very often about a few windows.

    Safe for any number of threads. What is known is one immutable pair of lists that a miss
    replaces, under a lock, by a longer copy: a reader that loads it once sees lists that belong
    together and takes no lock. `_last` is a hint that any thread may overwrite, and is complete in
    itself.
    """

    def __init__(self, board: Leaderboard, most: int = _MAX_STRETCHES) -> None:
        """A cache for this revision of a board that holds at most `most` stretches of time."""
        self._board = board
        self._most = most
        self._lock = threading.Lock()
        self._last = Stretch(0, 0, ())
        self._known: tuple[list[int], list[Stretch]] = ([], [])
        self._next_victim = 0

    def __len__(self) -> int:
        return len(self._known[0])

    def at(self, moment: int) -> tuple[Window, ...]:
        """Like `windows_at`."""
        starts_at, ends_at, windows = self._last
        if starts_at <= moment < ends_at:
            return windows
        return self.stretch(moment).windows

    def stretch(self, moment: int) -> Stretch:
        """The longest stretch of time around the moment with the same windows throughout.

        Raises what `windows_at` raises.
        """
        starts, stretches = self._known
        index = bisect_right(starts, moment) - 1
        if index >= 0 and moment < stretches[index].ends_at:
            found = stretches[index]
        else:
            found = self._learn(moment)
        self._last = found
        return found

    def _learn(self, moment: int) -> Stretch:
        found = _stretch(self._board, moment)
        with self._lock:
            starts, stretches = self._known[0].copy(), self._known[1].copy()
            index = bisect_right(starts, found.starts_at)
            if index and starts[index - 1] == found.starts_at:
                return stretches[index - 1]
            starts.insert(index, found.starts_at)
            stretches.insert(index, found)
            if len(starts) > self._most:
                # A victim that moves on spares, most of the time, the stretch that is now.
                self._next_victim = (self._next_victim + 1) % len(starts)
                del starts[self._next_victim], stretches[self._next_victim]
            self._known = (starts, stretches)
        return found


def windows_at(board: Leaderboard, moment: int) -> tuple[Window, ...]:
    """Every window that holds the moment (µs), in the order of `board.windows`, then of seasons.

    It is empty for a board that has seasons only, between them. Raises InvalidArgument
    (FIELD_INVALID, `occurred_at`) for a moment before 1900 or from 2100 on.
    """
    if not FIRST_MOMENT <= moment < END_OF_MOMENTS:
        raise InvalidArgument(
            "FIELD_INVALID", [FieldViolation("occurred_at", "must be from 1900 to 2099")]
        )
    calendar = [_current(board, kind, moment) for kind in board.windows]
    seasons = [
        _season_window(season)
        for season in board.seasons
        if season.starts_at <= moment < season.ends_at
    ]
    return (*calendar, *seasons)


def parse(board: Leaderboard, window_id: str) -> Window:
    """The window of an id, of a kind or a season that the board has.

    Raises InvalidArgument (WINDOW_INVALID): it is no id, or of a kind that the board does not
    have, or names a date, week or hour that there is not, or one beyond the years 1 to 9999.
    """
    kind = kind_of_id(window_id)
    if kind is None:
        for season in board.seasons:
            if season.name == window_id:
                return _season_window(season)
        raise _invalid(f"{_quoted(window_id)} is neither the id of a window nor a season")
    _check_kind(board, kind)
    if kind is WindowKind.ALL_TIME:
        return Window(ALL_TIME_ID, kind)
    try:
        window = _calendar(board.time_zone, board.reset_offset).window(
            kind, _parse_begin(kind, window_id)
        )
    except (OverflowError, ValueError):
        raise _invalid(f"{_quoted(window_id)} is not in the calendar") from None
    if window.starts_at == window.ends_at:
        raise _invalid(f"{window_id} is skipped by the clocks of {board.time_zone}")
    return window


def resolve(board: Leaderboard, text: str, now: int) -> Window:
    """The window that a request means at the moment `now` (µs).

    `text` is an id, or `current:` or `previous:` and a kind, or empty for the current window of a
    board that has windows of one kind only. The current season is the one among those that hold
    `now` that started last, the previous one that which ended last; where two are alike, the later
    one of the definition.

    Raises InvalidArgument (WINDOW_INVALID): it is none of these, or the board has no windows of
    that kind, or of several kinds and none was named. Raises NotFound (WINDOW_NOT_FOUND): there is
    no such season now.
    """
    if not text:
        return _current(board, _only_kind(board), now)
    relation, colon, word = text.partition(":")
    if not colon:
        return parse(board, text)
    kind = _KINDS_BY_WORD.get(word)
    if kind is None or relation not in ("current", "previous"):
        raise _invalid(
            f"{_quoted(text)} is not `current:` or `previous:` and one of "
            + ", ".join(_KINDS_BY_WORD)
        )
    _check_kind(board, kind)
    return (_current if relation == "current" else _previous)(board, kind, now)


def day_at(board: Leaderboard, moment: int) -> Window:
    """The board's day that holds the moment (µs), whether or not it has daily windows."""
    return _current(board, WindowKind.DAILY, moment)


def day_window(board: Leaderboard, day: str) -> Window:
    """The board's day of a name such as `2026-11-23`, whether or not it has daily windows."""
    return parse(replace(board, windows=(WindowKind.DAILY,)), day)


def has_started(window: Window, now: int) -> bool:
    """Whether the window's first moment has come."""
    return window.starts_at is None or window.starts_at <= now


def closes_at(board: Leaderboard, window: Window) -> int | None:
    """The moment (µs) from which the window takes no scores; None: it never ends."""
    return None if window.ends_at is None else window.ends_at + board.late_grace * MICROS


def is_open(board: Leaderboard, window: Window, now: int) -> bool:
    """Whether the window's end and grace are still to come; true before its start, too."""
    closing = closes_at(board, window)
    return closing is None or now < closing


def expires_at(board: Leaderboard, window: Window) -> int | None:
    """The moment (µs) from which nothing of the window is kept; None: it is kept for good.

    A grace that is longer than the retention is waited for: a window that takes scores is kept.
    """
    retention = board.retention.get(window.kind)
    if retention is None or window.ends_at is None:
        return None
    return window.ends_at + max(retention, board.late_grace) * MICROS


def listing_order(window: Window) -> tuple[bool, int, str, str]:
    """The sort key of lists of windows: ALL_TIME, then the latest start; then by kind and id."""
    return (
        window.starts_at is not None,
        -(window.starts_at or 0),
        window.kind.value,
        window.window,
    )


def kind_of_id(window_id: str) -> WindowKind | None:
    """The kind whose ids look like this one, if there is such a window or not; None: a season's."""
    for kind, shape in _SHAPES.items():
        if shape.fullmatch(window_id):
            return kind
    return None


def is_time_zone(name: str) -> bool:
    """Whether this server knows the rules of a time zone of this IANA name."""
    if not _ZONE_NAME.fullmatch(name) or name in _NO_ZONES:
        return False
    try:
        ZoneInfo(name)
    except (LookupError, OSError, ValueError):
        return False
    return True


class _Calendar:
    """The hours, days, weeks and months of one zone and reset offset.

    A window is known by its begin: the naive local time, before the reset offset, at which a
    calendar on a wall would have it begin. Methods raise OverflowError or ValueError for what is
    beyond the years 1 to 9999.
    """

    def __init__(self, time_zone: str, reset_offset: int) -> None:
        self._zone = ZoneInfo(time_zone)
        self._reset_offset = timedelta(seconds=reset_offset)

    def window(self, kind: WindowKind, begin: datetime) -> Window:
        """The window of that begin; one that clocks skip ends where it starts."""
        return self._until(kind, begin, self._start(kind, _following(kind, begin)))

    def at(self, kind: WindowKind, moment: int) -> Window:
        """The window that holds the moment (µs)."""
        local = self._local(moment // MICROS)
        if kind is not WindowKind.HOURLY:
            local -= self._reset_offset
        begin = _floor(kind, local)
        following = _following(kind, begin)
        ends_at = self._start(kind, following)
        # The window of `begin` has started, for clocks have shown that time. Where they went back,
        # one that follows may have started, too.
        while ends_at <= moment:
            begin, following = following, _following(kind, following)
            ends_at = self._start(kind, following)
        return self._until(kind, begin, ends_at)

    def _until(self, kind: WindowKind, begin: datetime, ends_at: int) -> Window:
        starts_at = self._start(kind, begin)
        if starts_at < FIRST_TIMESTAMP or ends_at > LAST_TIMESTAMP:
            raise OverflowError("beyond the years 1 to 9999")
        return Window(_format(kind, begin), kind, starts_at, ends_at)

    def _start(self, kind: WindowKind, begin: datetime) -> int:
        if kind is WindowKind.HOURLY:
            return self._first_instant(begin) * MICROS
        return self._first_instant(begin + self._reset_offset) * MICROS

    def _first_instant(self, wall: datetime) -> int:
        """The first second since the epoch at which clocks show `wall` or later.

        PEP 495: of a time that is shown twice, fold 0 is the first; of a time that is skipped, fold
        0 and 1 are instants after and before the skip.
        """
        since_epoch = _whole_seconds(wall - _EPOCH)
        first = since_epoch - _offset_seconds(wall.replace(tzinfo=self._zone, fold=0))
        second = since_epoch - _offset_seconds(wall.replace(tzinfo=self._zone, fold=1))
        if first <= second:
            return first
        before, after = second, first
        while after - before > 1:
            middle = (before + after) // 2
            if self._local(middle) >= wall:
                after = middle
            else:
                before = middle
        return after

    def _local(self, since_epoch: int) -> datetime:
        moment = _AWARE_EPOCH + timedelta(seconds=since_epoch)
        return moment.astimezone(self._zone).replace(tzinfo=None, fold=0)


@lru_cache(maxsize=1024)
def _calendar(time_zone: str, reset_offset: int) -> _Calendar:
    try:
        return _Calendar(time_zone, reset_offset)
    except (LookupError, OSError, ValueError):
        raise InvalidArgument(
            "FIELD_INVALID",
            [FieldViolation("leaderboard.time_zone", f"{_quoted(time_zone)} is not known here")],
        ) from None


def _offset_seconds(moment: datetime) -> int:
    offset = moment.utcoffset()
    assert offset is not None
    return _whole_seconds(offset)


def _floor(kind: WindowKind, wall: datetime) -> datetime:
    if kind is WindowKind.HOURLY:
        return wall.replace(minute=0, second=0, microsecond=0)
    day = wall.replace(hour=0, minute=0, second=0, microsecond=0)
    if kind is WindowKind.WEEKLY:
        return day - timedelta(days=day.weekday())
    if kind is WindowKind.MONTHLY:
        return day.replace(day=1)
    return day


def _following(kind: WindowKind, begin: datetime) -> datetime:
    if kind is WindowKind.MONTHLY:
        return (begin + timedelta(days=31)).replace(day=1)
    return begin + _STEPS[kind]


_STEPS = {
    WindowKind.HOURLY: timedelta(hours=1),
    WindowKind.DAILY: timedelta(days=1),
    WindowKind.WEEKLY: timedelta(days=7),
}


def _format(kind: WindowKind, begin: datetime) -> str:
    if kind is WindowKind.WEEKLY:
        year, week, _ = begin.isocalendar()
        return f"{year:04d}-W{week:02d}"
    if kind is WindowKind.MONTHLY:
        return f"{begin.year:04d}-{begin.month:02d}"
    return begin.isoformat(timespec="hours") if kind is WindowKind.HOURLY else str(begin.date())


def _parse_begin(kind: WindowKind, window_id: str) -> datetime:
    """Raises ValueError if there is no such date, week or hour."""
    shape = _SHAPES[kind].fullmatch(window_id)
    assert shape is not None
    numbers = [int(digits) for digits in shape.groups()]
    if kind is WindowKind.WEEKLY:
        return datetime.fromisocalendar(numbers[0], numbers[1], 1)
    if kind is WindowKind.MONTHLY:
        return datetime(numbers[0], numbers[1], 1)
    return datetime(*numbers)  # type: ignore[arg-type]


def _stretch(board: Leaderboard, moment: int) -> Stretch:
    windows = windows_at(board, moment)
    starts_at, ends_at = FIRST_MOMENT, END_OF_MOMENTS
    for border in _borders(windows, board.seasons):
        if border <= moment:
            starts_at = max(starts_at, border)
        else:
            ends_at = min(ends_at, border)
    return Stretch(starts_at, ends_at, windows)


def _borders(windows: Iterable[Window], seasons: Iterable[Season]) -> Iterator[int]:
    for window in windows:
        if window.starts_at is not None and window.ends_at is not None:
            yield window.starts_at
            yield window.ends_at
    for season in seasons:
        yield season.starts_at
        yield season.ends_at


def _current(board: Leaderboard, kind: WindowKind, now: int) -> Window:
    if kind is WindowKind.ALL_TIME:
        return Window(ALL_TIME_ID, kind)
    if kind is WindowKind.SEASON:
        held = [season for season in board.seasons if season.starts_at <= now < season.ends_at]
        return _latest((season.starts_at, season) for season in held)
    try:
        return _calendar(board.time_zone, board.reset_offset).at(kind, now)
    except (OverflowError, ValueError):
        raise _invalid("is beyond the years 1 to 9999") from None


def _previous(board: Leaderboard, kind: WindowKind, now: int) -> Window:
    if kind is WindowKind.ALL_TIME:
        raise _invalid("there is none before the one of all time")
    if kind is WindowKind.SEASON:
        return _latest(
            (season.ends_at, season) for season in board.seasons if season.ends_at <= now
        )
    starts_at = _current(board, kind, now).starts_at
    assert starts_at is not None
    return _current(board, kind, starts_at - 1)


def _latest(seasons: Iterable[tuple[int, Season]]) -> Window:
    """The season with the greatest moment, the last one of equals."""
    found = max(enumerate(seasons), key=lambda item: (item[1][0], item[0]), default=None)
    if found is None:
        raise NotFound("the leaderboard has no such season now", reason="WINDOW_NOT_FOUND")
    return _season_window(found[1][1])


def _season_window(season: Season) -> Window:
    return Window(season.name, WindowKind.SEASON, season.starts_at, season.ends_at)


def _kinds(board: Leaderboard) -> tuple[WindowKind, ...]:
    return (*board.windows, WindowKind.SEASON) if board.seasons else board.windows


def _check_kind(board: Leaderboard, kind: WindowKind) -> None:
    if kind not in _kinds(board):
        raise _invalid(f"the leaderboard has no windows of the kind {kind.value}")


def _only_kind(board: Leaderboard) -> WindowKind:
    kinds = _kinds(board)
    if len(kinds) != 1:
        names = ", ".join(kind.value for kind in kinds)
        raise _invalid(f"must name one, for the leaderboard has windows of the kinds {names}")
    return kinds[0]


def _quoted(text: str) -> str:
    """What a caller sent, printable and not too long for a message."""
    return ascii(text if len(text) <= 64 else text[:64] + "...")


def _invalid(description: str) -> InvalidArgument:
    return InvalidArgument("WINDOW_INVALID", [FieldViolation("window", description)])
