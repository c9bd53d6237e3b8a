"""From its first score to the end of its retention: what happens to a window, and when."""

import pytest

from tests.leaderboards import live
from tests.leaderboards.live import DAY, HOUR, MICROS, House, at, refusal

opened, house = live.opened, live.house

ALL_KINDS = "ALL_TIME HOURLY DAILY WEEKLY MONTHLY"

# Definition, a boundary in time, and the windows just before and just after it.
BOUNDARIES = {
    "hour": ({"windows": "HOURLY"}, at("2026-03-10T09:00"), "2026-03-10T08", "2026-03-10T09"),
    "day": ({"windows": "DAILY"}, at("2026-03-10T00:00"), "2026-03-09", "2026-03-10"),
    "week": ({"windows": "WEEKLY"}, at("2026-03-16T00:00"), "2026-W11", "2026-W12"),
    "month": ({"windows": "MONTHLY"}, at("2026-04-01T00:00"), "2026-03", "2026-04"),
    "long year's last week": (
        {"windows": "WEEKLY"},
        at("2027-01-04T00:00"),
        "2026-W53",
        "2027-W01",
    ),
    "year's last day": ({"windows": "DAILY"}, at("2027-01-01T00:00"), "2026-12-31", "2027-01-01"),
    "reset offset": (
        {"windows": "DAILY", "offset": 4 * 3600},
        at("2026-03-10T04:00"),
        "2026-03-09",
        "2026-03-10",
    ),
    "reset offset of a month": (
        {"windows": "MONTHLY", "offset": 4 * 3600, "zone": "Asia/Kolkata"},
        at("2026-04-01T04:00", "Asia/Kolkata"),
        "2026-03",
        "2026-04",
    ),
    "day before clocks go forward": (
        {"windows": "DAILY", "zone": "Europe/Berlin"},
        at("2026-03-28T23:00"),
        "2026-03-28",
        "2026-03-29",
    ),
    "day of 23 hours": (
        {"windows": "DAILY", "zone": "Europe/Berlin"},
        at("2026-03-29T22:00"),
        "2026-03-29",
        "2026-03-30",
    ),
    "reset offset that clocks skip": (
        {"windows": "DAILY", "zone": "Europe/Berlin", "offset": 9000},
        at("2026-03-29T01:00"),
        "2026-03-28",
        "2026-03-29",
    ),
    "hour that clocks skip": (
        {"windows": "HOURLY", "zone": "Europe/Berlin"},
        at("2026-03-29T01:00"),
        "2026-03-29T01",
        "2026-03-29T03",
    ),
    "day of 25 hours": (
        {"windows": "DAILY", "zone": "Europe/Berlin"},
        at("2026-10-25T23:00"),
        "2026-10-25",
        "2026-10-26",
    ),
    "hour that clocks show twice": (
        {"windows": "HOURLY", "zone": "Europe/Berlin"},
        at("2026-10-25T02:00"),
        "2026-10-25T02",
        "2026-10-25T03",
    ),
    "season": (
        {"seasons": {"s1": (at("2026-03-01T00:00"), at("2026-03-10T12:34:56.789"))}},
        at("2026-03-10T12:34:56.789"),
        "s1",
        None,
    ),
}


@pytest.mark.parametrize("name", BOUNDARIES)
def test_a_score_belongs_to_the_window_of_its_microsecond(house: House, name: str) -> None:
    definition, boundary, before, after = BOUNDARIES[name]
    house.clock.now = boundary - 1
    board = house.new_board(**definition)
    assert board.submit("ann", 1) == [before]
    assert board.page("").window == before
    house.clock.now = boundary
    if after is None:
        with refusal("WINDOW_CLOSED"):
            board.submit("bob", 2)
    else:
        assert board.submit("bob", 2) == [after]
        assert board.page("").window == after
        assert board.scores(after) == {"bob": 2}
    assert board.submit("cat", 3, boundary - 1) == [before]
    assert board.scores(before) == {"cat": 3, "ann": 1}


@pytest.mark.parametrize("name", BOUNDARIES)
def test_a_window_closes_when_its_grace_is_over_to_the_microsecond(house: House, name: str) -> None:
    definition, boundary, before, _ = BOUNDARIES[name]
    house.clock.now = boundary - 1
    board = house.new_board(grace=90, **definition)
    board.submit("ann", 1)
    keeper = house.new_keeper()
    house.clock.now = boundary + 90 * MICROS - 1
    keeper.round()
    assert board.windows() == [(before, "OPEN", 1)]
    assert board.submit("bob", 2, boundary - 1) == [before]
    house.clock.now += 1
    with refusal("WINDOW_CLOSED"):
        board.submit("cat", 3, boundary - 1)
    assert board.windows() == [(before, "CLOSED", 2)]
    keeper.round()
    assert board.windows() == [(before, "ARCHIVED", 2)]
    assert board.scores(before) == {"bob": 2, "ann": 1}
    board.evict(before)
    assert board.scores(before) == {"bob": 2, "ann": 1}


def test_the_same_moment_is_in_windows_of_every_kind(house: House) -> None:
    house.clock.now = at("2027-01-01T00:00") - 1
    season = (at("2026-12-01T00:00"), at("2027-02-01T00:00"))
    board = house.new_board(windows=ALL_KINDS, seasons={"winter": season})
    last = ["all", "2026-12-31T23", "2026-12-31", "2026-W53", "2026-12", "winter"]
    assert board.submit("ann", 1) == last
    house.clock.now += 1
    first = ["all", "2027-01-01T00", "2027-01-01", "2026-W53", "2027-01", "winter"]
    assert board.submit("bob", 2) == first
    assert [board.page(f"previous:{kind}").window for kind in ("hourly", "daily", "monthly")] == [
        "2026-12-31T23",
        "2026-12-31",
        "2026-12",
    ]
    assert board.scores("previous:daily") == {"ann": 1}
    assert board.scores("current:daily") == {"bob": 2}
    assert board.scores("current:weekly") == {"bob": 2, "ann": 1}
    assert board.scores("current:season") == {"bob": 2, "ann": 1}
    assert board.scores("all") == {"bob": 2, "ann": 1}


def test_a_score_too_late_for_one_window_counts_in_none(house: House) -> None:
    house.clock.now = at("2026-03-10T12:00")
    board = house.new_board(windows="ALL_TIME WEEKLY HOURLY", grace=0)
    board.submit("ann", 1)
    house.clock.now += HOUR
    with refusal("WINDOW_CLOSED"):
        board.submit("ann", 100, house.clock.now - 1)
    assert board.submit_all([("bob", 5, house.clock.now - 1), ("cat", 7)]) == ["WINDOW_CLOSED"]
    assert board.scores("all") == {"cat": 7, "ann": 1}
    assert board.scores("2026-W11") == {"cat": 7, "ann": 1}
    assert board.scores("2026-03-10T12") == {"ann": 1}


def test_a_moment_may_be_one_minute_ahead(house: House) -> None:
    house.clock.now = at("2026-03-10T00:00") - 60 * MICROS
    board = house.new_board(windows="DAILY")
    assert board.submit("ann", 1, house.clock.now + 60 * MICROS) == ["2026-03-10"]
    with refusal("FIELD_INVALID"):
        board.submit("ann", 2, house.clock.now + 60 * MICROS + 1)
    assert board.scores("2026-03-10") == {"ann": 1}


def test_a_worker_learns_of_a_window_that_the_keeper_closed_early(house: House) -> None:
    """As when the keeper's clock is ahead."""
    house.clock.now = at("2026-03-10T12:00")
    board = house.new_board(windows="ALL_TIME DAILY", grace=60)
    board.submit("ann", 1)
    keeper = house.new_keeper()
    keeper.checkpoint()
    house.clock.now = at("2026-03-11T00:01")
    keeper.round()
    house.clock.now -= 1
    with refusal("WINDOW_CLOSED"):
        board.submit("ann", 9, at("2026-03-10T12:00"))
    assert board.scores("all") == {"ann": 1}
    assert board.submit("ann", 2) == ["all", "2026-03-11"]


def test_windows_without_retention_get_a_time_to_end_only_with_their_archive(house: House) -> None:
    house.clock.now = at("2026-03-10T12:00")
    board = house.new_board(windows="ALL_TIME DAILY", segments=4)
    board.submit_all([(f"m{i}", i) for i in range(20)])
    keeper = house.new_keeper()
    keeper.round()
    assert set(board.lifetimes("2026-03-10")) == {-1}
    house.clock.now += DAY
    keeper.round()
    assert all(0 < left <= 24 * 3600 for left in board.lifetimes("2026-03-10"))
    assert set(board.lifetimes("all")) == {-1}


def test_windows_with_a_retention_have_their_time_from_the_start(house: House) -> None:
    house.clock.now = at("2026-03-10T12:00")
    board = house.new_board(windows="ALL_TIME DAILY", retention={"DAILY": 7200})
    board.submit("ann", 1)
    left = 14 * 3600
    assert all(left - 5 <= lifetime <= left for lifetime in board.lifetimes("2026-03-10"))
    assert set(board.lifetimes("all")) == {-1}


def test_after_its_retention_nothing_of_a_window_is_left(house: House) -> None:
    house.clock.now = at("2026-03-10T12:00")
    board = house.new_board(windows="ALL_TIME DAILY", retention={"DAILY": 7200}, segments=4)
    board.submit_all([(f"m{i}", i) for i in range(20)])
    keeper = house.new_keeper()
    keeper.round()
    end = at("2026-03-11T00:00")
    house.clock.now = end + 7200 * MICROS - 1
    keeper.round()
    assert board.windows() == [("all", "OPEN", 20), ("2026-03-10", "ARCHIVED", 20)]
    house.clock.now += 1
    keeper.round()
    assert board.windows() == [("all", "OPEN", 20)]
    assert house.found(f"{board.key}:2026-03-10") == []
    kept = house.rows(
        'SELECT held."window", count(*) FROM tallyboard.leaderboard_windows AS held'
        " JOIN tallyboard.leaderboard_entries USING (window_id) WHERE board_key = %s GROUP BY 1",
        board.key,
    )
    assert kept == [("all", 20)]
    with refusal("WINDOW_NOT_FOUND"):
        board.page("2026-03-10")
    with refusal("WINDOW_NOT_FOUND"):
        board.get("2026-03-10", "m1")


def test_a_window_is_kept_while_it_takes_scores_whatever_its_retention(house: House) -> None:
    house.clock.now = at("2026-03-10T12:00")
    board = house.new_board(windows="DAILY", retention={"DAILY": 3600}, grace=2 * 24 * 3600)
    board.submit("ann", 1)
    keeper = house.new_keeper()
    keeper.round()
    house.clock.now = at("2026-03-12T12:00")
    keeper.round()
    assert board.submit("bob", 2, at("2026-03-10T13:00")) == ["2026-03-10"]
    assert board.scores("2026-03-10") == {"bob": 2, "ann": 1}
    house.clock.now = at("2026-03-13T00:00")
    keeper.round()
    with refusal("WINDOW_NOT_FOUND"):
        board.page("2026-03-10")


def test_a_window_that_everyone_was_deleted_from_goes_its_way_too(house: House) -> None:
    house.clock.now = at("2026-03-10T12:00")
    board = house.new_board(windows="ALL_TIME DAILY")
    board.submit("ann", 1)
    board.remove("ann")
    keeper = house.new_keeper()
    house.clock.now += DAY
    keeper.round()
    assert -1 not in board.lifetimes("2026-03-10")


def test_list_windows_pages_and_kinds(house: House) -> None:
    house.clock.now = at("2026-03-09T12:00")
    season = (at("2026-03-01T00:00"), at("2026-04-01T00:00"))
    board = house.new_board(windows="ALL_TIME DAILY WEEKLY", grace=0, seasons={"spring": season})
    keeper = house.new_keeper()
    for day in range(9):
        board.submit_all([(f"m{i}", i) for i in range(day + 1)])
        house.clock.now += DAY
        if day == 6:
            keeper.round()
    days = [
        (f"2026-03-{9 + day:02d}", "ARCHIVED" if day < 7 else "CLOSED", day + 1)
        for day in reversed(range(9))
    ]
    assert board.windows() == [
        ("all", "OPEN", 9),
        *days[:2],
        ("2026-W12", "OPEN", 9),
        *days[2:],
        ("2026-W11", "ARCHIVED", 7),
        ("spring", "OPEN", 9),
    ]
    assert board.windows(kind="WINDOW_KIND_DAILY") == days
    assert board.windows(kind="WINDOW_KIND_SEASON") == [("spring", "OPEN", 9)]
    for kind in (0, 3):
        listed = board.windows(kind=kind)
        assert board.paged_windows(3, kind=kind) == listed
        assert board.paged_windows(1, kind=kind) == listed


def test_windows_of_what_a_board_no_longer_has_are_paged_too(house: House) -> None:
    house.clock.now = at("2026-03-10T12:00")
    season = (at("2026-03-10T00:00"), at("2026-04-01T00:00"))
    board = house.new_board(windows="ALL_TIME DAILY WEEKLY", seasons={"spring": season})
    board.submit("ann", 1)
    house.new_keeper().checkpoint()
    board.update(windows="WEEKLY", mask=["seasons"])
    listed = [("all", "OPEN", 1), ("2026-03-10", "OPEN", 1), ("spring", "OPEN", 1)]
    listed.append(("2026-W11", "OPEN", 1))
    assert board.windows() == listed
    assert board.paged_windows(1) == listed
