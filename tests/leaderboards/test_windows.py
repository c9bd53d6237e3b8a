"""The calendar of windows: time is parted without gap or overlap, and ids name what they say."""

import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import groupby
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tallyboard_server.errors import InvalidArgument, NotFound
from tallyboard_server.leaderboards.model import Leaderboard, Season, Window, WindowKind
from tallyboard_server.leaderboards.windows import (
    END_OF_MOMENTS,
    FIRST_MOMENT,
    MICROS,
    WindowCache,
    closes_at,
    expires_at,
    has_started,
    is_open,
    is_time_zone,
    listing_order,
    parse,
    resolve,
    windows_at,
)

CALENDAR = (WindowKind.HOURLY, WindowKind.DAILY, WindowKind.WEEKLY, WindowKind.MONTHLY)
HOUR = 3600 * MICROS
DAY = 24 * HOUR

# With each zone a second before a change of its clocks that is worth a test.
CHANGES = [
    ("Europe/Berlin", "2026-03-29T00:59:59"),
    ("Europe/Berlin", "2026-10-25T00:59:59"),
    ("America/New_York", "2026-03-08T06:59:59"),
    ("America/New_York", "2026-11-01T05:59:59"),
    ("America/Sao_Paulo", "2018-11-04T02:59:59"),  # forwards at midnight
    ("America/Sao_Paulo", "2018-02-18T01:59:59"),  # back at midnight
    ("Africa/Cairo", "2026-04-23T21:59:59"),  # forwards at midnight
    ("Africa/Cairo", "2026-10-29T20:59:59"),  # back at midnight
    ("Asia/Beirut", "2026-03-28T21:59:59"),  # forwards at midnight
    ("America/St_Johns", "2006-10-29T02:30:59"),  # back from 00:01 to 23:01
    ("Australia/Lord_Howe", "2026-04-04T14:59:59"),  # back by half an hour
    ("Australia/Lord_Howe", "2026-10-03T15:29:59"),  # forwards by half an hour
    ("Antarctica/Troll", "2026-10-25T00:59:59"),  # back by two hours
    ("Pacific/Apia", "2011-12-30T09:59:59"),  # no 30 December
    ("Pacific/Kwajalein", "1993-08-21T11:59:59"),  # no 21 August
    ("Pacific/Kwajalein", "1969-09-30T12:59:59"),  # 23 hours twice
    ("Asia/Kathmandu", "1985-12-31T18:29:59"),  # to 45 minutes
    ("Africa/Monrovia", "1972-01-07T00:44:29"),  # from an offset with seconds
    ("Asia/Pyongyang", "2018-05-04T14:59:59"),
    ("UTC", "2024-02-28T23:59:59"),
]


def micros(text: str, zone: str = "UTC") -> int:
    """A moment in µs, of a time that the clocks of the zone show once."""
    moment = datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone))
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def board(*windows: WindowKind, **changed: object) -> Leaderboard:
    """A definition with these kinds."""
    return replace(Leaderboard("acme", "points", windows=windows), **changed)  # type: ignore[arg-type]


zones = st.sampled_from(sorted({zone for zone, _ in CHANGES}))
offsets = st.sampled_from([0, 60, 1800, 2 * 3600 + 1800, 5 * 3600, 86_399])
kinds = st.sampled_from(CALENDAR)
any_moment = st.integers(FIRST_MOMENT, END_OF_MOMENTS - 1)


@st.composite
def zones_with_moments(draw: st.DrawFn) -> tuple[str, int]:
    """Any moment in a zone, mostly one around a change of its clocks."""
    hours = draw(st.sampled_from([0, 2, 30]))
    if not hours:
        return draw(zones), draw(any_moment)
    zone, before = draw(st.sampled_from(CHANGES))
    return zone, micros(before) + draw(st.integers(-hours * HOUR, hours * HOUR))


def begins(kind: WindowKind, window_id: str) -> datetime:
    """The wall clock time in an id, before the reset offset."""
    if kind is WindowKind.WEEKLY:
        return datetime.strptime(window_id + "-1", "%G-W%V-%u")
    formats = {
        WindowKind.HOURLY: "%Y-%m-%dT%H",
        WindowKind.DAILY: "%Y-%m-%d",
        WindowKind.MONTHLY: "%Y-%m",
    }
    return datetime.strptime(window_id, formats[kind])


def clock(zone: str, moment: int) -> datetime:
    """What clocks show."""
    shown = datetime.fromtimestamp(moment // MICROS, ZoneInfo(zone))
    return shown.replace(tzinfo=None, fold=0)


def only(windows: tuple[Window, ...]) -> Window:
    """The one window there is."""
    (window,) = windows
    return window


def id_or_reason(call: Callable[[], Window]) -> str:
    """The id of the window that is found, or why the argument is invalid."""
    try:
        return call().window
    except InvalidArgument as error:
        return error.reason


def bounds(window: Window) -> tuple[int, int]:
    """Start and end of a window that has them."""
    assert window.starts_at is not None
    assert window.ends_at is not None
    return window.starts_at, window.ends_at


@settings(max_examples=600)
@given(zones_with_moments(), kinds, offsets)
def test_time_is_parted(place: tuple[str, int], kind: WindowKind, offset: int) -> None:
    zone, moment = place
    definition = board(kind, time_zone=zone, reset_offset=offset)
    window = only(windows_at(definition, moment))
    starts_at, ends_at = bounds(window)
    assert starts_at <= moment < ends_at
    assert len(window.window) <= 64
    assert parse(definition, window.window) == window
    for inside in (starts_at, ends_at - 1):
        if FIRST_MOMENT <= inside < END_OF_MOMENTS:
            assert windows_at(definition, inside) == (window,)
    if starts_at > FIRST_MOMENT and ends_at < END_OF_MOMENTS:
        before = only(windows_at(definition, starts_at - 1))
        after = only(windows_at(definition, ends_at))
        assert (before.ends_at, after.starts_at) == (starts_at, ends_at)
        assert len({before.window, window.window, after.window}) == 3
        times = [begins(kind, each.window) for each in (before, window, after)]
        assert times == sorted(times)


@settings(max_examples=300)
@given(zones_with_moments(), kinds, offsets)
def test_a_window_starts_when_clocks_first_show_its_begin_or_later(
    place: tuple[str, int], kind: WindowKind, offset: int
) -> None:
    zone, moment = place
    window = only(windows_at(board(kind, time_zone=zone, reset_offset=offset), moment))
    begin = begins(kind, window.window)
    if kind is not WindowKind.HOURLY:
        begin += timedelta(seconds=offset)
    starts_at, _ = bounds(window)
    assert clock(zone, starts_at) >= begin
    seconds = [*range(1, 120), *range(59, 30 * 3600, 60)]
    assert all(clock(zone, starts_at - before * MICROS) < begin for before in seconds)


@pytest.mark.parametrize(("zone", "before"), CHANGES)
@pytest.mark.parametrize("offset", [0, 1800, 5 * 3600])
def test_around_a_change_of_clocks_ids_are_unique(zone: str, before: str, offset: int) -> None:
    definition = board(*CALENDAR, time_zone=zone, reset_offset=offset)
    first, last = micros(before) - 3 * DAY, micros(before) + 3 * DAY
    moments = range(first, last, HOUR // 4)
    for place, kind in enumerate(CALENDAR):
        found = [windows_at(definition, moment)[place] for moment in moments]
        windows = [window for window, _ in groupby(found)]
        assert len({window.window for window in windows}) == len(windows)
        assert [window.ends_at for window in windows[:-1]] == [
            window.starts_at for window in windows[1:]
        ]
        assert all(parse(definition, window.window) == window for window in windows)
        assert {window.kind for window in windows} == {kind}


def test_an_hour_that_comes_twice_is_one_window() -> None:
    berlin = board(WindowKind.HOURLY, time_zone="Europe/Berlin")
    repeated = parse(berlin, "2026-10-25T02")
    assert bounds(repeated) == (micros("2026-10-25T00:00"), micros("2026-10-25T02:00"))
    assert windows_at(berlin, micros("2026-10-25T00:30")) == (repeated,)
    assert windows_at(berlin, micros("2026-10-25T01:30")) == (repeated,)


def test_an_hour_that_is_skipped_is_none() -> None:
    berlin = board(WindowKind.HOURLY, time_zone="Europe/Berlin")
    with pytest.raises(InvalidArgument) as raised:
        parse(berlin, "2026-03-29T02")
    assert raised.value.reason == "WINDOW_INVALID"
    assert parse(berlin, "2026-03-29T01").ends_at == parse(berlin, "2026-03-29T03").starts_at


def test_a_day_that_is_skipped_is_none() -> None:
    apia = board(WindowKind.DAILY, time_zone="Pacific/Apia")
    with pytest.raises(InvalidArgument):
        parse(apia, "2011-12-30")
    assert parse(apia, "2011-12-29").ends_at == parse(apia, "2011-12-31").starts_at
    assert resolve(apia, "previous:daily", micros("2011-12-30T10:00")).window == "2011-12-29"


@pytest.mark.parametrize(
    ("zone", "window_id", "offset", "starts_at", "ends_at"),
    [
        # Berlin goes forwards at 01:00 UTC on 29 March 2026 and back at 01:00 UTC on 25 October.
        ("Europe/Berlin", "2026-03-29", 0, "2026-03-28T23:00", "2026-03-29T22:00"),
        ("Europe/Berlin", "2026-03-29", 5 * 3600, "2026-03-29T03:00", "2026-03-30T03:00"),
        ("Europe/Berlin", "2026-03-28", 5 * 3600, "2026-03-28T04:00", "2026-03-29T03:00"),
        # 02:30 is skipped on the 29th.
        ("Europe/Berlin", "2026-03-29", 9000, "2026-03-29T01:00", "2026-03-30T00:30"),
        ("Europe/Berlin", "2026-03-28", 9000, "2026-03-28T01:30", "2026-03-29T01:00"),
        ("Europe/Berlin", "2026-10-25", 0, "2026-10-24T22:00", "2026-10-25T23:00"),
        ("Europe/Berlin", "2026-10-25", 5 * 3600, "2026-10-25T04:00", "2026-10-26T04:00"),
        # 02:30 comes twice on the 25th; the first counts.
        ("Europe/Berlin", "2026-10-25", 9000, "2026-10-25T00:30", "2026-10-26T01:30"),
        ("Europe/Berlin", "2026-W13", 0, "2026-03-22T23:00", "2026-03-29T22:00"),
        ("Europe/Berlin", "2026-W13", 5 * 3600, "2026-03-23T04:00", "2026-03-30T03:00"),
        ("Europe/Berlin", "2026-W43", 0, "2026-10-18T22:00", "2026-10-25T23:00"),
        ("Europe/Berlin", "2026-03", 5 * 3600, "2026-03-01T04:00", "2026-04-01T03:00"),
        ("Europe/Berlin", "2026-10", 0, "2026-09-30T22:00", "2026-10-31T23:00"),
        ("Europe/Berlin", "2026-03-29T03", 5 * 3600, "2026-03-29T01:00", "2026-03-29T02:00"),
        # New York goes forwards at 07:00 UTC on 8 March 2026 and back at 06:00 UTC on 1 November.
        ("America/New_York", "2026-03-08", 0, "2026-03-08T05:00", "2026-03-09T04:00"),
        ("America/New_York", "2026-03-08", 9000, "2026-03-08T07:00", "2026-03-09T06:30"),
        ("America/New_York", "2026-03-07", 5 * 3600, "2026-03-07T10:00", "2026-03-08T09:00"),
        ("America/New_York", "2026-11-01", 0, "2026-11-01T04:00", "2026-11-02T05:00"),
        ("America/New_York", "2026-11-01", 5400, "2026-11-01T05:30", "2026-11-02T06:30"),
        ("America/New_York", "2026-11", 5400, "2026-11-01T05:30", "2026-12-01T06:30"),
        ("America/New_York", "2026-W44", 0, "2026-10-26T04:00", "2026-11-02T05:00"),
        ("America/New_York", "2026-11-01T01", 0, "2026-11-01T05:00", "2026-11-01T07:00"),
        # Midnight itself is skipped, and comes twice.
        ("America/Sao_Paulo", "2018-11-04", 0, "2018-11-04T03:00", "2018-11-05T02:00"),
        ("America/Sao_Paulo", "2018-02-17", 0, "2018-02-17T02:00", "2018-02-18T03:00"),
        ("America/St_Johns", "2006-10-29", 0, "2006-10-29T02:30", "2006-10-30T03:30"),
        ("Asia/Kathmandu", "2026-11-23", 0, "2026-11-22T18:15", "2026-11-23T18:15"),
        ("Asia/Kathmandu", "2026-11-23T08", 0, "2026-11-23T02:15", "2026-11-23T03:15"),
        # Years of 52 and of 53 ISO weeks.
        ("UTC", "2020-W53", 0, "2020-12-28T00:00", "2021-01-04T00:00"),
        ("UTC", "2026-W53", 0, "2026-12-28T00:00", "2027-01-04T00:00"),
        ("UTC", "2027-W01", 0, "2027-01-04T00:00", "2027-01-11T00:00"),
        ("UTC", "2026-W01", 0, "2025-12-29T00:00", "2026-01-05T00:00"),
        ("UTC", "2024-02", 0, "2024-02-01T00:00", "2024-03-01T00:00"),
    ],
)
def test_limits(zone: str, window_id: str, offset: int, starts_at: str, ends_at: str) -> None:
    definition = board(*CALENDAR, time_zone=zone, reset_offset=offset)
    window = parse(definition, window_id)
    assert bounds(window) == (micros(starts_at), micros(ends_at))
    assert window in windows_at(definition, micros(starts_at))
    assert window not in windows_at(definition, micros(ends_at))


@pytest.mark.parametrize(
    "window_id",
    [
        "2026-02-30",
        "2026-13",
        "2026-00",
        "2025-W53",
        "2026-W00",
        "2026-11-23T24",
        "0000-01-01",
        "9999-12-31",
        "9999-12",
        "9999-W52",
        "9999-12-31T23",
        "2026",
        "2026-1",
        "2026-11-23T8",
        "2026-11-23t08",
        "2026-11-23 08",
        " 2026-11",
        "2026-11\n",
        "\uff12\uff10\uff12\uff16-11",
        "-2026-11",
        "ALL",
        "spring",
        "\x00",
        "x" * 100_000,
    ],
)
def test_what_is_no_id(window_id: str) -> None:
    definition = board(WindowKind.ALL_TIME, *CALENDAR)
    for call in (lambda: parse(definition, window_id), lambda: resolve(definition, window_id, 0)):
        with pytest.raises(InvalidArgument) as raised:
            call()
        assert raised.value.reason == "WINDOW_INVALID"
        assert raised.value.violations[0].field == "window"
        assert len(str(raised.value)) < 300


@given(
    st.text() | st.from_regex(r"\A[0-9]{4}-W?[0-9]{2}(-[0-9]{2})?(T[0-9]{2})?\Z"), zones, offsets
)
@example("0001-01-01", "Asia/Kathmandu", 0)
@example("0001-01-01", "America/New_York", 0)
@example("0001-W01", "Pacific/Apia", 86_399)
@example("9999-12-30", "America/New_York", 86_399)
@example("9999-W51", "America/New_York", 86_399)
def test_any_text_is_a_window_or_invalid(text: str, zone: str, offset: int) -> None:
    definition = board(WindowKind.ALL_TIME, *CALENDAR, time_zone=zone, reset_offset=offset)
    assert id_or_reason(lambda: parse(definition, text)) in (text, "WINDOW_INVALID")


@pytest.mark.parametrize(
    ("zone", "window_id", "offset", "is_held"),
    [
        ("UTC", "0001-01-01", 0, True),
        ("UTC", "9999-12-30", 86_399, True),
        ("Asia/Kathmandu", "0001-01-01", 0, False),
        ("Asia/Kathmandu", "0001-01-01", 6 * 3600, True),
        ("America/New_York", "9999-12-30", 0, True),
        ("America/New_York", "9999-12-30", 20 * 3600, False),
        ("America/New_York", "9999-12-31T17", 0, True),
        ("America/New_York", "9999-12-31T18", 0, False),
    ],
)
def test_the_ends_of_the_calendar(zone: str, window_id: str, offset: int, is_held: bool) -> None:
    definition = board(*CALENDAR, time_zone=zone, reset_offset=offset)
    expected = window_id if is_held else "WINDOW_INVALID"
    assert id_or_reason(lambda: parse(definition, window_id)) == expected


@given(st.sampled_from(["current", "previous"]), kinds, st.integers(-(2**63), 2**63), zones)
@example("previous", WindowKind.MONTHLY, micros("0001-01-03T00:00"), "UTC")
def test_a_moment_beyond_the_calendar_is_invalid(
    relation: str, kind: WindowKind, now: int, zone: str
) -> None:
    definition = board(kind, time_zone=zone)
    found = id_or_reason(lambda: resolve(definition, f"{relation}:{kind.value.lower()}", now))
    assert found == "WINDOW_INVALID" or parse(definition, found).window == found


@pytest.mark.parametrize("moment", [FIRST_MOMENT - 1, END_OF_MOMENTS, -(2**63), 2**63 - 1])
def test_a_moment_that_is_not_accepted(moment: int) -> None:
    definition = board(WindowKind.ALL_TIME)
    cache = WindowCache(definition)
    cache.at(0)
    for call in (lambda: windows_at(definition, moment), lambda: cache.at(moment)):
        with pytest.raises(InvalidArgument) as raised:
            call()
        assert raised.value.reason == "FIELD_INVALID"
        assert raised.value.violations[0].field == "occurred_at"


NOW = micros("2026-11-23T08:30")
SEASONS = (
    Season("spring", micros("2026-03-01T00:00"), micros("2026-06-01T00:00")),
    Season("year", micros("2026-01-01T00:00"), micros("2027-01-01T00:00")),
    Season("autumn", micros("2026-09-01T00:00"), micros("2026-12-01T00:00")),
    Season("cup", micros("2026-05-01T00:00"), micros("2026-05-08T00:00")),
)


@pytest.mark.parametrize(
    ("text", "window_id"),
    [
        ("current:all_time", "all"),
        ("all", "all"),
        ("current:hourly", "2026-11-23T08"),
        ("previous:hourly", "2026-11-23T07"),
        ("current:daily", "2026-11-23"),
        ("previous:daily", "2026-11-22"),
        ("current:weekly", "2026-W48"),
        ("previous:weekly", "2026-W47"),
        ("current:monthly", "2026-11"),
        ("previous:monthly", "2026-10"),
        ("current:season", "autumn"),
        ("previous:season", "spring"),
        ("2026-11-23T08", "2026-11-23T08"),
        ("cup", "cup"),
        ("1999-W07", "1999-W07"),
        ("2080-01", "2080-01"),
    ],
)
def test_names_of_windows(text: str, window_id: str) -> None:
    definition = board(WindowKind.ALL_TIME, *CALENDAR, seasons=SEASONS)
    window = resolve(definition, text, NOW)
    assert window.window == window_id
    assert window == parse(definition, window_id)


@pytest.mark.parametrize(
    "text",
    [
        "previous:all_time",
        "current:yearly",
        "next:daily",
        "current:",
        "current",
        ":daily",
        "current:DAILY",
        "current:daily:",
        "Current:daily",
        "",
    ],
)
def test_what_is_no_name_of_a_window(text: str) -> None:
    definition = board(WindowKind.ALL_TIME, *CALENDAR, seasons=SEASONS)
    with pytest.raises(InvalidArgument) as raised:
        resolve(definition, text, NOW)
    assert raised.value.reason == "WINDOW_INVALID"


@pytest.mark.parametrize("kind", [WindowKind.ALL_TIME, *CALENDAR])
def test_the_only_kind_needs_no_name(kind: WindowKind) -> None:
    definition = board(kind)
    current = resolve(definition, f"current:{kind.value.lower()}", NOW)
    assert resolve(definition, "", NOW) == current
    assert windows_at(definition, NOW) == (current,)


def test_seasons_alone_need_no_name() -> None:
    assert resolve(board(seasons=SEASONS), "", NOW).window == "autumn"


def test_of_several_kinds_the_message_names_them() -> None:
    definition = board(WindowKind.DAILY, seasons=SEASONS)
    with pytest.raises(InvalidArgument, match="DAILY, SEASON"):
        resolve(definition, "", NOW)


@pytest.mark.parametrize(
    "text", ["all", "2026-11", "2026-W48", "2026-11-23T08", "current:season", "current:monthly"]
)
def test_a_kind_that_the_board_has_not(text: str) -> None:
    with pytest.raises(InvalidArgument) as raised:
        resolve(board(WindowKind.DAILY), text, NOW)
    assert raised.value.reason == "WINDOW_INVALID"


@given(zones_with_moments(), kinds, offsets)
def test_names_at_the_border_of_two_windows(
    place: tuple[str, int], kind: WindowKind, offset: int
) -> None:
    zone, moment = place
    definition = board(kind, time_zone=zone, reset_offset=offset)
    word = kind.value.lower()
    window = resolve(definition, f"current:{word}", moment)
    starts_at, ends_at = bounds(window)
    assert resolve(definition, f"current:{word}", starts_at) == window
    assert resolve(definition, f"current:{word}", ends_at - 1) == window
    assert resolve(definition, f"current:{word}", ends_at) != window
    assert resolve(definition, f"previous:{word}", ends_at) == window
    before = resolve(definition, f"previous:{word}", starts_at)
    assert before == resolve(definition, f"previous:{word}", ends_at - 1)
    assert before.ends_at == starts_at


def test_seasons_at_their_borders() -> None:
    definition = board(seasons=SEASONS)
    start, end = micros("2026-05-01T00:00"), micros("2026-05-08T00:00")

    def current(now: int) -> str:
        return resolve(definition, "current:season", now).window

    assert [current(start - 1), current(start), current(end - 1), current(end)] == [
        "spring",
        "cup",
        "cup",
        "spring",
    ]
    assert resolve(definition, "previous:season", end).window == "cup"
    for text, now in [
        ("previous:season", end - 1),
        ("current:season", micros("2026-01-01T00:00") - 1),
        ("current:season", micros("2027-01-01T00:00")),
    ]:
        with pytest.raises(NotFound) as raised:
            resolve(definition, text, now)
        assert raised.value.reason == "WINDOW_NOT_FOUND"


def test_of_seasons_that_are_alike_the_last_one_is_meant() -> None:
    definition = board(seasons=(Season("one", 0, 10), Season("two", 0, 10)))
    assert resolve(definition, "current:season", 5).window == "two"
    assert resolve(definition, "previous:season", 10).window == "two"


def test_windows_come_in_the_order_of_the_definition() -> None:
    order = (WindowKind.DAILY, WindowKind.ALL_TIME, WindowKind.HOURLY)
    found = windows_at(board(*order, seasons=SEASONS), micros("2026-05-02T00:00"))
    assert [window.window for window in found] == [
        "2026-05-02",
        "all",
        "2026-05-02T00",
        "spring",
        "year",
        "cup",
    ]
    assert windows_at(board(seasons=SEASONS), 0) == ()


def test_the_life_of_a_window() -> None:
    definition = board(
        WindowKind.DAILY,
        WindowKind.HOURLY,
        WindowKind.ALL_TIME,
        late_grace=7200,
        retention={WindowKind.DAILY: 10 * 3600, WindowKind.HOURLY: 3600},
        seasons=SEASONS,
    )
    day = parse(definition, "2026-11-23")
    starts_at, ends_at = bounds(day)
    assert [has_started(day, now) for now in (starts_at - 1, starts_at)] == [False, True]
    assert closes_at(definition, day) == ends_at + 2 * HOUR
    assert [is_open(definition, day, ends_at + 2 * HOUR + step) for step in (-1, 0)] == [
        True,
        False,
    ]
    assert is_open(definition, day, starts_at - 1)
    assert expires_at(definition, day) == ends_at + 10 * HOUR
    hour = parse(definition, "2026-11-23T08")
    assert expires_at(definition, hour) == closes_at(definition, hour)
    assert expires_at(definition, parse(definition, "cup")) is None
    for_good = parse(definition, "all")
    assert has_started(for_good, FIRST_MOMENT)
    assert is_open(definition, for_good, END_OF_MOMENTS)
    assert (closes_at(definition, for_good), expires_at(definition, for_good)) == (None, None)


def test_the_order_of_lists() -> None:
    definition = board(WindowKind.ALL_TIME, *CALENDAR, seasons=SEASONS)
    ordered = ["all", "2026-05-02", "2026-05-01", "2026-05-01T00", "2026-05", "cup", "spring"]
    windows = [parse(definition, window_id) for window_id in reversed(ordered)]
    assert [window.window for window in sorted(windows, key=listing_order)] == ordered


@pytest.mark.parametrize(("zone", "_before"), CHANGES)
def test_a_time_zone(zone: str, _before: str) -> None:
    assert is_time_zone(zone)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "Europe",
        "Europe/Nowhere",
        "../../etc/passwd",
        "/usr/share/zoneinfo/UTC",
        "right/UTC",
        "posix/UTC",
        "localtime",
        "tzdata.zi",
        "UTC\n",
        "UTC\x00",
        "\ud800",
        "a" * 100_000,
        "a/b/c/d/e/f",
    ],
)
def test_no_time_zone(name: str) -> None:
    assert not is_time_zone(name)


def test_a_zone_that_this_server_does_not_know() -> None:
    with pytest.raises(InvalidArgument, match="time_zone"):
        windows_at(board(WindowKind.DAILY, time_zone="Mars/Olympus"), NOW)


def around(moments: list[int]) -> Iterator[int]:
    """The moments, those just before them, and some after."""
    for moment in moments:
        yield from (moment, moment - 1, moment, moment + HOUR)


@settings(max_examples=100)
@given(
    zones_with_moments(),
    offsets,
    st.sets(st.sampled_from([WindowKind.ALL_TIME, *CALENDAR])),
    st.lists(st.tuples(st.integers(-3 * DAY, 3 * DAY), st.integers(1, 2 * DAY)), max_size=6),
    st.lists(st.integers(-3 * DAY, 3 * DAY), min_size=1, max_size=30),
    st.integers(1, 8),
)
def test_the_cache_answers_as_the_calendar(
    place: tuple[str, int],
    offset: int,
    windows: set[WindowKind],
    limits: list[tuple[int, int]],
    distances: list[int],
    most: int,
) -> None:
    zone, centre = place
    centre = min(max(centre, FIRST_MOMENT + 10 * DAY), END_OF_MOMENTS - 10 * DAY)
    seasons = tuple(
        Season(f"season-{number}", centre + start, centre + start + length)
        for number, (start, length) in enumerate(limits)
    )
    definition = board(*windows, time_zone=zone, reset_offset=offset, seasons=seasons)
    cache = WindowCache(definition, most)
    borders = [border for season in seasons for border in (season.starts_at, season.ends_at)]
    for moment in around([*(centre + distance for distance in distances), *borders]):
        expected = windows_at(definition, moment)
        assert cache.at(moment) == expected
        stretch = cache.stretch(moment)
        assert stretch.starts_at <= moment < stretch.ends_at
        assert stretch.windows == expected
        assert windows_at(definition, stretch.starts_at) == expected
        assert windows_at(definition, stretch.ends_at - 1) == expected
        assert len(cache) <= most


def test_a_stretch_is_as_long_as_it_can_be() -> None:
    definition = board(
        WindowKind.DAILY, WindowKind.ALL_TIME, seasons=(Season("cup", NOW, NOW + 9),)
    )
    cache = WindowCache(definition)
    day = parse(definition, "2026-11-23")
    assert cache.stretch(NOW - 1)[:2] == (day.starts_at, NOW)
    assert cache.stretch(NOW + 8)[:2] == (NOW, NOW + 9)
    assert cache.stretch(NOW + 9)[:2] == (NOW + 9, day.ends_at)
    whole = WindowCache(board(WindowKind.ALL_TIME)).stretch(NOW)
    assert whole[:2] == (FIRST_MOMENT, END_OF_MOMENTS)


def test_the_cache_holds_what_it_has_found() -> None:
    cache = WindowCache(board(*CALENDAR), 4)
    found = {NOW + hour * HOUR: cache.at(NOW + hour * HOUR) for hour in range(4)}
    assert all(cache.at(moment) is windows for moment, windows in found.items())
    assert len(cache) == 4


def test_threads_share_a_cache() -> None:
    definition = board(*CALENDAR, time_zone="Europe/Berlin")
    cache = WindowCache(definition, 16)
    moments = [NOW + step * HOUR for step in range(48)]
    expected = [windows_at(definition, moment) for moment in moments]
    start = threading.Barrier(8)

    def read(first: int) -> list[int]:
        start.wait(10)
        wrong = []
        for step in range(first, first + 2000):
            place = step * 7 % len(moments)
            if cache.at(moments[place]) != expected[place]:
                wrong.append(place)
        return wrong

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(read, range(8))) == [[]] * 8
    finally:
        sys.setswitchinterval(interval)
    assert len(cache) <= 16


def test_a_stretch_that_many_threads_miss_is_held_once() -> None:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            for _ in range(50):
                cache = WindowCache(board(*CALENDAR))
                found = list(pool.map(cache.at, [NOW] * 64))
                assert found == [windows_at(board(*CALENDAR), NOW)] * 64
                assert len(cache) == 1
    finally:
        sys.setswitchinterval(interval)


def test_a_hit_takes_no_lock() -> None:
    cache = WindowCache(board(*CALENDAR))
    moments = [NOW + hour * HOUR for hour in range(3)]
    expected = [cache.at(moment) for moment in moments]
    with ThreadPoolExecutor(1) as pool:
        with cache._lock:
            hits = [pool.submit(cache.at, moment) for moment in moments]
            done = wait(hits, timeout=10).done
        assert len(done) == len(hits)
    assert [hit.result() for hit in hits] == expected
