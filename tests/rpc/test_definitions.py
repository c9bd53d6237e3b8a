"""Definitions from the contract to the domain and back, and what update masks do."""

from typing import Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from hypothesis import given
from hypothesis import strategies as st

from tallyboard.v1 import leaderboards_pb2 as pb
from tallyboard_server.errors import InvalidArgument
from tallyboard_server.leaderboards.definitions import normalise, to_json
from tallyboard_server.leaderboards.model import (
    Leaderboard,
    Season,
    SortOrder,
    TieBreak,
    UpdatePolicy,
    WindowKind,
)
from tallyboard_server.rpc.definitions import change_of, contents_of, from_proto, to_proto

PERIODS = [kind for kind in WindowKind if kind is not WindowKind.SEASON]
ENDING = [kind for kind in WindowKind if kind is not WindowKind.ALL_TIME]
FIRST, LAST = -62_135_596_800_000_000, 253_402_300_799_000_000
MICROS = st.integers(FIRST, LAST)
SPANS = st.tuples(MICROS, MICROS).filter(lambda span: span[0] < span[1])
SEASONS = st.builds(
    lambda name, span: Season(name, *span), st.from_regex("s[a-z.-]{0,9}", fullmatch=True), SPANS
)
BOARDS = st.builds(
    Leaderboard,
    tenant=st.just("acme"),
    leaderboard_id=st.just("points"),
    sort_order=st.sampled_from(SortOrder),
    update_policy=st.sampled_from(UpdatePolicy),
    tie_break=st.sampled_from(TieBreak),
    windows=st.lists(st.sampled_from(PERIODS), unique=True).map(tuple),
    time_zone=st.sampled_from(["", "UTC", "Europe/Berlin", "Asia/Kathmandu"]),
    reset_offset=st.integers(0, 86_399),
    retention=st.dictionaries(st.sampled_from(ENDING), st.integers(3600, 3650 * 86_400)),
    late_grace=st.integers(0, 604_800),
    max_entries=st.integers(0, 2**63 - 1),
    segments=st.integers(0, 64),
    seasons=st.lists(SEASONS, max_size=3, unique_by=lambda season: season.name).map(tuple),
    attributes=st.dictionaries(st.text(min_size=1, max_size=64), st.text(max_size=256), max_size=3),
).map(normalise)
FIELDS = [
    "sort_order",
    "update_policy",
    "tie_break",
    "windows",
    "time_zone",
    "reset_offset",
    "retention",
    "late_grace",
    "max_entries",
    "segments",
    "seasons",
    "attributes",
]
OLD = Leaderboard(
    "acme",
    "points",
    board_key="0123456789abcdef",
    sort_order=SortOrder.ASCENDING,
    windows=(WindowKind.DAILY,),
    time_zone="Europe/Berlin",
    late_grace=5,
    max_entries=10,
    seasons=(Season("s1", 0, 1),),
    attributes={"note": "old"},
    revision=3,
)


def updated(*paths: str, board: Leaderboard = OLD, **fields: Any) -> Leaderboard:
    """The old board after an update with these values."""
    return change_of(pb.Leaderboard(**fields), FieldMask(paths=paths))(board)


def changed(board: Leaderboard) -> set[str]:
    """The fields that differ from the old board's."""
    return {name for name in FIELDS if getattr(board, name) != getattr(OLD, name)}


@given(BOARDS)
def test_a_definition_is_no_larger_in_a_message_than_as_it_is_kept(board: Leaderboard) -> None:
    """Pages of definitions are measured by the text."""
    assert to_proto(board).ByteSize() <= len(to_json(board))


@given(BOARDS)
def test_a_definition_survives_the_way_there_and_back(board: Leaderboard) -> None:
    sent = pb.Leaderboard.FromString(to_proto(board).SerializeToString())
    assert from_proto(sent, "acme", "points") == board


@given(BOARDS, BOARDS, st.sets(st.sampled_from(FIELDS), min_size=1))
def test_an_update_changes_the_fields_of_its_mask_and_no_other(
    old: Leaderboard, new: Leaderboard, paths: set[str]
) -> None:
    found = change_of(to_proto(new), FieldMask(paths=sorted(paths)))(old)
    sources = {name: new if name in paths else old for name in FIELDS}
    expected = {name: getattr(source, name) for name, source in sources.items()}
    if not expected["windows"] and not expected["seasons"]:
        expected["windows"] = (WindowKind.ALL_TIME,)
    assert {name: getattr(found, name) for name in FIELDS} == expected


def test_an_unset_definition_is_all_defaults() -> None:
    assert from_proto(pb.Leaderboard(), "acme", "points") == Leaderboard("acme", "points")


def test_every_default_is_filled_in() -> None:
    message = to_proto(Leaderboard("acme", "points", board_key="00", created_at=1_500_000))
    assert message == pb.Leaderboard(
        leaderboard_id="points",
        sort_order=pb.SORT_ORDER_DESCENDING,
        update_policy=pb.UPDATE_POLICY_BEST,
        tie_break=pb.TIE_BREAK_EARLIEST,
        windows=[pb.WINDOW_KIND_ALL_TIME],
        time_zone="UTC",
        reset_offset={},
        late_grace={"seconds": 60},
        segments=1,
        created_at={"seconds": 1, "nanos": 500_000_000},
        updated_at={},
        etag="00-1",
    )


def test_seasons_alone_need_no_window() -> None:
    season = {"name": "s1", "starts_at": {}, "ends_at": {"seconds": 1}}
    board = from_proto(pb.Leaderboard(seasons=[season]), "acme", "points")
    assert (board.windows, board.seasons) == ((), (Season("s1", 0, 1_000_000),))


@pytest.mark.parametrize(
    ("seconds", "nanos", "micros"),
    [(1, 999, 1_000_000), (-1, 1, -1_000_000), (-1, 999_999_999, -1)],
)
def test_moments_are_rounded_down(seconds: int, nanos: int, micros: int) -> None:
    season = {
        "name": "s1",
        "starts_at": {"seconds": seconds, "nanos": nanos},
        "ends_at": {"seconds": 9},
    }
    board = from_proto(pb.Leaderboard(seasons=[season]), "acme", "points")
    assert board.seasons[0].starts_at == micros


def test_a_nanosecond_in_ten_years_is_refused() -> None:
    retention = {"kind": 3, "duration": {"seconds": 315_360_000, "nanos": 1}}
    with pytest.raises(InvalidArgument, match="whole seconds"):
        from_proto(pb.Leaderboard(retention=[retention]), "acme", "points")


def test_no_mask_changes_what_has_a_value() -> None:
    board = updated(max_entries=7, late_grace={}, etag="x", created_at={}, leaderboard_id="points")
    assert (changed(board), board.max_entries, board.late_grace) == (
        {"max_entries", "late_grace"},
        7,
        0,
    )


def test_no_mask_and_no_values_change_nothing() -> None:
    assert updated() == OLD


def test_a_star_sets_all_that_has_no_value_to_its_default() -> None:
    board = updated("*", max_entries=7)
    defaults = Leaderboard("acme", "points", board_key=OLD.board_key, max_entries=7, revision=3)
    assert board == defaults


def test_a_named_field_without_a_value_gets_its_default() -> None:
    board = updated("late_grace", "time_zone", "attributes", "sort_order")
    assert (board.late_grace, board.time_zone, board.attributes, board.sort_order) == (
        60,
        "UTC",
        {},
        SortOrder.DESCENDING,
    )


def test_windows_taken_away_leave_the_seasons() -> None:
    assert updated("windows").windows == ()


def test_the_last_season_taken_away_leaves_all_time() -> None:
    board = updated("windows", "seasons")
    assert board.windows == (WindowKind.ALL_TIME,)


def test_a_change_may_be_made_more_than_once() -> None:
    change = change_of(pb.Leaderboard(max_entries=7), FieldMask())
    assert change(change(OLD)) == change(OLD)


@pytest.mark.parametrize(
    "paths",
    [
        ["max_entries", "etag"],
        ["max_entries", "leaderboard_id"],
        ["max_entries", "created_at"],
        ["max_entries", "updated_at"],
        ["max_entries", "*"],
        ["max_entries", "seasons.name"],
        ["max_entries", "retention.duration.seconds"],
        ["max_entries", "attributes.note"],
        ["max_entries", "nickname"],
        ["max_entries", ""],
    ],
)
def test_a_bad_path_is_refused(paths: list[str]) -> None:
    with pytest.raises(InvalidArgument) as caught:
        change_of(pb.Leaderboard(), FieldMask(paths=paths))
    found = [violation.field for violation in caught.value.violations]
    assert (caught.value.reason, found) == ("FIELD_INVALID", ["update_mask.paths[1]"])


def test_a_change_keeps_to_the_limits() -> None:
    with pytest.raises(InvalidArgument) as caught:
        updated(max_entries=-1, late_grace={"seconds": -1})
    found = {violation.field for violation in caught.value.violations}
    assert (caught.value.reason, found) == ("FIELD_INVALID", {"max_entries", "late_grace"})


def test_contents_are_those_of_the_request_without_its_id() -> None:
    def request(request_id: str, note: str) -> pb.UpdateLeaderboardRequest:
        return pb.UpdateLeaderboardRequest(
            leaderboard={"leaderboard_id": "points", "attributes": {"note": note, "b": "2"}},
            request_id=request_id,
        )

    assert contents_of(request("1", "x")) == contents_of(request("2", "x"))
    assert contents_of(request("1", "x")) != contents_of(request("1", "y"))
