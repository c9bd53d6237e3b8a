"""Daily standings: taken when a board's day ends, or on command, and kept for a while."""

import pytest
from click.testing import CliRunner

from tallyboard.v1 import operations_pb2 as ops
from tallyboard_server.cli import main
from tallyboard_server.errors import InvalidArgument
from tallyboard_server.leaderboards.cursors import Cursor, decode_cursor, encode_cursor
from tests.leaderboards import live
from tests.leaderboards.live import DAY, HOUR, MICROS, House, LiveBoard, at, refusal

opened, house = live.opened, live.house

NOON = at("2026-03-10T12:00")


def taken(board: LiveBoard) -> dict[tuple[str, str], int]:
    """The number of entries by day and window."""
    return {(one.day, one.window): one.entry_count for one in board.snapshots()}


def standing(board: LiveBoard, window: str, day: str) -> dict[str, float]:
    """A snapshot's entries: member and score, best first."""
    request = ops.GetSnapshotRequest(leaderboard_id="lives", window=window, day=day)
    entries = board.call("GetSnapshot", request).entries
    assert [entry.rank for entry in entries] == list(range(1, len(entries) + 1))
    return {entry.member: entry.score for entry in entries}


def test_the_standing_is_taken_when_the_day_ends(house: House) -> None:
    house.clock.now = NOON
    board = house.new_board(windows="ALL_TIME HOURLY DAILY WEEKLY", segments=4)
    keeper = house.new_keeper()
    keeper.round()
    board.submit_all([("ann", 1), ("bob", 2), ("cat", 3)])
    house.clock.now = at("2026-03-11T00:00") - 1
    board.submit("dan", 4)
    keeper.round()
    assert taken(board) == {}
    house.clock.now += 1
    keeper.round()
    assert taken(board) == {
        ("2026-03-10", "all"): 4,
        ("2026-03-10", "2026-03-10T23"): 1,
        ("2026-03-10", "2026-03-10"): 4,
        ("2026-03-10", "2026-W11"): 4,
    }
    assert list(standing(board, "all", "2026-03-10").items()) == [
        ("dan", 4),
        ("cat", 3),
        ("bob", 2),
        ("ann", 1),
    ]
    board.submit("ann", 9)
    keeper.round()
    house.new_keeper().round()
    assert standing(board, "all", "2026-03-10")["ann"] == 1


@pytest.mark.parametrize(
    ("definition", "ends_at", "day"),
    [
        ({"zone": "Europe/Berlin"}, at("2026-03-10T23:00"), "2026-03-10"),
        ({"zone": "Europe/Berlin"}, at("2026-03-29T22:00"), "2026-03-29"),
        ({"zone": "Pacific/Auckland", "offset": 4 * 3600}, at("2026-03-10T15:00"), "2026-03-10"),
        ({"offset": 4 * 3600}, at("2026-03-11T04:00"), "2026-03-10"),
    ],
)
def test_a_day_is_the_boards_own(
    house: House, definition: dict[str, object], ends_at: int, day: str
) -> None:
    house.clock.now = ends_at - 3 * HOUR
    board = house.new_board(**definition)
    board.submit("ann", 1)
    keeper = house.new_keeper()
    keeper.round()
    house.clock.now = ends_at - 1
    keeper.round()
    assert taken(board) == {}
    house.clock.now = ends_at
    keeper.round()
    assert taken(board) == {(day, "all"): 1}


def test_a_board_of_today_has_none_of_yesterday(house: House) -> None:
    house.clock.now = NOON
    board = house.new_board()
    board.submit("ann", 1)
    house.new_keeper().round()
    assert taken(board) == {}


def test_a_keeper_that_was_off_over_midnight_takes_it_late(house: House) -> None:
    house.clock.now = NOON
    board = house.new_board(windows="ALL_TIME DAILY")
    board.submit("ann", 1)
    house.new_keeper().round()
    house.clock.now = at("2026-03-11T09:00")
    house.new_keeper().round()
    assert taken(board) == {("2026-03-10", "all"): 1, ("2026-03-10", "2026-03-10"): 1}


def test_one_of_the_day_itself_does_not_stand_for_its_end(house: House) -> None:
    house.clock.now = NOON
    board = house.new_board()
    board.submit("ann", 1)
    board.call("TakeSnapshots", ops.TakeSnapshotsRequest())
    board.submit("bob", 2)
    house.clock.now = at("2026-03-11T09:00")
    house.new_keeper().round()
    assert taken(board) == {("2026-03-10", "all"): 2}


def test_a_keeper_that_starts_anew_leaves_what_was_taken(house: House) -> None:
    """Also where another window had no entries, and so has no snapshot."""
    house.clock.now = NOON
    board = house.new_board(windows="ALL_TIME HOURLY")
    board.submit("ann", 1)
    keeper = house.new_keeper()
    keeper.round()
    house.clock.now = at("2026-03-11T00:00")
    keeper.round()
    house.clock.now = at("2026-03-11T15:00")
    board.submit("bob", 2)
    house.new_keeper().round()
    assert taken(board) == {("2026-03-10", "all"): 1}


def test_a_board_that_is_changed_as_its_day_ends_has_its_snapshot(house: House) -> None:
    house.clock.now = NOON
    board = house.new_board()
    board.submit("ann", 1)
    keeper = house.new_keeper()
    keeper.round()
    house.clock.now = at("2026-03-11T00:00")
    board.update(attributes={"a": "b"})
    keeper.round()
    house.clock.now += HOUR
    keeper.round()
    assert taken(board) == {("2026-03-10", "all"): 1}


def test_snapshots_on_command(house: House) -> None:
    house.clock.now = NOON
    board = house.new_board(windows="ALL_TIME DAILY")
    other = board.sibling("other")
    empty = board.sibling("empty")
    board.submit_all([("ann", 1), ("bob", 2)])
    other.submit("ann", 5)
    answer = board.call("TakeSnapshots", ops.TakeSnapshotsRequest())
    assert (answer.leaderboards, answer.snapshots) == (2, 3)
    assert empty.snapshots() == []
    board.submit("cat", 3)
    answer = board.call("TakeSnapshots", ops.TakeSnapshotsRequest(leaderboard_id="lives"))
    assert (answer.leaderboards, answer.snapshots) == (1, 2)
    assert taken(board) == {("2026-03-10", "all"): 3, ("2026-03-10", "2026-03-10"): 3}
    assert taken(other) == {("2026-03-10", "all"): 1}
    with refusal("LEADERBOARD_NOT_FOUND"):
        board.call("TakeSnapshots", ops.TakeSnapshotsRequest(leaderboard_id="none"))


def test_snapshots_by_command_line(house: House) -> None:
    house.clock.now = NOON
    board = house.new_board(windows="ALL_TIME DAILY")
    board.submit("ann", 1)
    where = ["--server", house.site.address, "--tenant", board.tenant]
    for chosen in ([], ["--leaderboard", "lives"]):
        done = CliRunner().invoke(main, ["snapshot", *chosen, *where])
        assert done.exit_code == 0
        # The server of this process logs to the same output.
        assert done.output.splitlines()[-1] == "2 snapshots of 1 leaderboards"
    assert taken(board) == {("2026-03-10", "all"): 1, ("2026-03-10", "2026-03-10"): 1}


def test_a_rank_over_time(house: House) -> None:
    house.clock.now = NOON
    board = house.new_board(windows="ALL_TIME DAILY")
    keeper = house.new_keeper()
    keeper.round()
    for rows in ([("ann", 5)], [("bob", 7)], [("cat", 6)], [("ann", 8), ("bob", 8)], [("dan", 1)]):
        board.submit_all(rows)
        house.clock.now += DAY
        keeper.round()
    found = [
        (one.day, one.rank if one.HasField("rank") else None, one.score)
        for one in board.snapshots(member="ann", window="all")
    ]
    assert found == [
        ("2026-03-14", 1, 8),
        ("2026-03-13", 1, 8),
        ("2026-03-12", 3, 5),
        ("2026-03-11", 2, 5),
        ("2026-03-10", 1, 5),
    ]
    daily = [(one.day, one.HasField("rank")) for one in board.snapshots(member="ann")]
    assert ("2026-03-11", False) in daily
    paged, token = [], ""
    while True:
        request = ops.ListSnapshotsRequest(
            leaderboard_id="lives", member="ann", page_size=2, page_token=token
        )
        answer = board.call("ListSnapshots", request)
        assert len(answer.snapshots) <= 2
        paged += answer.snapshots
        token = answer.next_page_token
        if not token:
            break
    assert paged == board.snapshots(member="ann")
    with refusal("PAGE_INVALID"):
        request.page_token = "nonsense"
        board.call("ListSnapshots", request)


def test_pages_of_a_snapshot(house: House) -> None:
    house.clock.now = NOON
    board = house.new_board(segments=4)
    board.submit_all([(f"m{i}", i % 4, NOON - i, f"{i}".encode()) for i in range(11)])
    board.call("TakeSnapshots", ops.TakeSnapshotsRequest())
    expected = list(board.page("all").entries)
    found, token = [], ""
    while True:
        request = ops.GetSnapshotRequest(
            leaderboard_id="lives", day="2026-03-10", page_size=3, page_token=token
        )
        answer = board.call("GetSnapshot", request)
        assert answer.snapshot.entry_count == 11
        found += answer.entries
        token = answer.next_page_token
        if not token:
            break
    assert found == expected
    for fields, reason in (
        ({"day": "2026-03-09"}, "SNAPSHOT_NOT_FOUND"),
        ({"day": "2026-02-30"}, "FIELD_INVALID"),
        ({"day": ""}, "FIELD_INVALID"),
        ({"day": "2026-W11-2"}, "FIELD_INVALID"),
        ({"day": "20260310"}, "FIELD_INVALID"),
        ({"day": "2026-03-10", "window": "2026-03-10"}, "SNAPSHOT_NOT_FOUND"),
        ({"day": "2026-03-10", "page_token": "x"}, "PAGE_INVALID"),
    ):
        with refusal(reason):
            board.call("GetSnapshot", ops.GetSnapshotRequest(leaderboard_id="lives", **fields))


def test_a_window_of_snapshots_is_an_id(house: House) -> None:
    house.clock.now = NOON
    board = house.new_board()
    for window in ("current:daily", "a\0b", "a\nb", "a" * 257):
        fields = {"leaderboard_id": board.leaderboard_id, "window": window}
        with refusal("WINDOW_INVALID"):
            board.call("GetSnapshot", ops.GetSnapshotRequest(day="2026-03-10", **fields))
        with refusal("WINDOW_INVALID"):
            board.call("ListSnapshots", ops.ListSnapshotsRequest(**fields))


def test_a_page_token_with_a_nul_is_none() -> None:
    token = encode_cursor(Cursor("a\0b", 0.0, 0, "2026-03-10"))
    with pytest.raises(InvalidArgument) as caught:
        decode_cursor(token)
    assert caught.value.reason == "PAGE_INVALID"


def test_snapshots_are_kept_for_their_time(house: House) -> None:
    house.clock.now = NOON
    board = house.new_board()
    board.submit("ann", 1)
    for _ in range(3):
        board.call("TakeSnapshots", ops.TakeSnapshotsRequest())
        house.clock.now += DAY
    house.clock.now = NOON + int(house.settings.snapshot_retention) * MICROS + DAY
    house.new_keeper().round()
    days = [one.day for one in board.snapshots()]
    assert days[1:] == ["2026-03-12", "2026-03-11"]
    house.clock.now += 1
    house.new_keeper().round()
    assert "2026-03-11" not in [one.day for one in board.snapshots()]
