"""Definitions: their limits, what is locked, and their JSON."""

import json
from collections.abc import Callable
from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallyboard_server.leaderboards.definitions import (
    from_json,
    locked_changes,
    normalise,
    problems,
    to_json,
)
from tallyboard_server.leaderboards.model import (
    Leaderboard,
    Season,
    SortOrder,
    TieBreak,
    UpdatePolicy,
    WindowKind,
)
from tallyboard_server.leaderboards.windows import FIRST_TIMESTAMP, LAST_TIMESTAMP

DAY = 86_400
BOARD = Leaderboard("acme", "points")

int64s = st.integers(-(2**63), 2**63 - 1)
definitions = st.builds(
    Leaderboard,
    tenant=st.text(),
    leaderboard_id=st.text(),
    board_key=st.text(),
    sort_order=st.sampled_from(SortOrder),
    update_policy=st.sampled_from(UpdatePolicy),
    tie_break=st.sampled_from(TieBreak),
    windows=st.lists(st.sampled_from(WindowKind)).map(tuple),
    time_zone=st.text(),
    reset_offset=int64s,
    retention=st.dictionaries(st.sampled_from(WindowKind), int64s),
    late_grace=int64s,
    max_entries=int64s,
    segments=int64s,
    seasons=st.lists(st.builds(Season, st.text(), int64s, int64s)).map(tuple),
    attributes=st.dictionaries(st.text(), st.text()),
    created_at=int64s,
    updated_at=int64s,
    revision=int64s,
)


def seasons(*names: str) -> tuple[Season, ...]:
    """Seasons of these names, each good save perhaps for its name."""
    return tuple(Season(name, 0, 1) for name in names)


@given(definitions)
def test_json_holds_every_field(board: Leaderboard) -> None:
    text = to_json(board)
    assert text.isascii()
    assert from_json(text) == board
    assert set(json.loads(text)) == {item.name for item in fields(Leaderboard)}


@given(definitions)
def test_equal_definitions_have_equal_texts(board: Leaderboard) -> None:
    turned = replace(
        board,
        retention=dict(reversed(list(board.retention.items()))),
        attributes=dict(reversed(list(board.attributes.items()))),
    )
    assert to_json(turned) == to_json(board)


def test_json_of_a_newer_and_of_an_older_version() -> None:
    text = """{"tenant":"acme","leaderboard_id":"points","reset_offset":7,"colour":{"red":1},
        "seasons":[{"name":"cup","starts_at":1,"ends_at":2,"prize":"gold"}]}"""
    assert from_json(text) == replace(BOARD, reset_offset=7, seasons=(Season("cup", 1, 2),))


@pytest.mark.parametrize(
    "text", ["", "[", '{"tenant":"acme"}', '{"tenant":"acme","leaderboard_id":"a","windows":["X"]}']
)
def test_json_that_is_no_definition(text: str) -> None:
    with pytest.raises((ValueError, TypeError, KeyError)):
        from_json(text)


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"leaderboard_id": "é" * 128},
        {"windows": tuple(kind for kind in WindowKind if kind is not WindowKind.SEASON)},
        {"windows": (), "seasons": seasons("cup")},
        {"time_zone": "America/Argentina/Buenos_Aires"},
        {"time_zone": "Etc/GMT+12"},
        {"reset_offset": DAY - 1},
        {"retention": {kind: 3600 for kind in WindowKind if kind is not WindowKind.ALL_TIME}},
        {"retention": {WindowKind.DAILY: 10 * 365 * DAY, WindowKind.SEASON: 3653 * DAY}},
        {"late_grace": 0},
        {"late_grace": 7 * DAY},
        {"max_entries": 2**63 - 1, "segments": 64},
        {"seasons": tuple(Season(f"s{number}", number, number + 8) for number in range(100))},
        {"seasons": seasons("x" * 64, "2026", "2026-1", "All", "a.b_c-d", "...", "current")},
        {"seasons": (Season("cup", FIRST_TIMESTAMP, LAST_TIMESTAMP),)},
        {"attributes": {f"{number:0256}": "é" * 512 for number in range(64)}},
        {"attributes": {"note": "\x00"}},
    ],
)
def test_a_good_definition(changed: dict[str, object]) -> None:
    assert problems(replace(BOARD, **changed)) == []  # type: ignore[arg-type]


DAILY, SEASON, ALL_TIME = WindowKind.DAILY, WindowKind.SEASON, WindowKind.ALL_TIME


@pytest.mark.parametrize(
    ("changed", "reason", "field"),
    [
        ({"leaderboard_id": ""}, "NAME_INVALID", "leaderboard_id"),
        ({"leaderboard_id": "é" * 129}, "NAME_INVALID", "leaderboard_id"),
        ({"windows": (DAILY, ALL_TIME, DAILY)}, "FIELD_INVALID", "windows[2]"),
        ({"windows": (SEASON,)}, "FIELD_INVALID", "windows[0]"),
        ({"time_zone": "Europe/Nowhere"}, "FIELD_INVALID", "time_zone"),
        ({"reset_offset": -1}, "FIELD_INVALID", "reset_offset"),
        ({"reset_offset": DAY}, "FIELD_INVALID", "reset_offset"),
        ({"retention": {DAILY: 3600, ALL_TIME: 3600}}, "FIELD_INVALID", "retention[1].kind"),
        ({"retention": {DAILY: 3599}}, "FIELD_INVALID", "retention[0].duration"),
        (
            {"retention": {DAILY: 3600, SEASON: 3653 * DAY + 1}},
            "FIELD_INVALID",
            "retention[1].duration",
        ),
        ({"late_grace": -1}, "FIELD_INVALID", "late_grace"),
        ({"late_grace": 7 * DAY + 1}, "FIELD_INVALID", "late_grace"),
        ({"max_entries": -1}, "FIELD_INVALID", "max_entries"),
        ({"segments": 0}, "FIELD_INVALID", "segments"),
        ({"segments": 65}, "FIELD_INVALID", "segments"),
        (
            {"seasons": seasons(*(f"s{number}" for number in range(101)))},
            "TOO_MANY_ITEMS",
            "seasons",
        ),
        ({"seasons": seasons("a", "b", "a")}, "FIELD_INVALID", "seasons[2].name"),
        ({"seasons": (Season("cup", 5, 5),)}, "FIELD_INVALID", "seasons[0].ends_at"),
        ({"seasons": seasons(*"abcdefghi")}, "FIELD_INVALID", "seasons"),
        (
            {"seasons": (Season("cup", FIRST_TIMESTAMP - 1, 5),)},
            "FIELD_INVALID",
            "seasons[0].starts_at",
        ),
        (
            {"seasons": (Season("cup", 5, LAST_TIMESTAMP + 1),)},
            "FIELD_INVALID",
            "seasons[0].ends_at",
        ),
        ({"attributes": {str(key): "" for key in range(65)}}, "TOO_MANY_ITEMS", "attributes"),
        ({"attributes": {"": "x"}}, "FIELD_INVALID", 'attributes[""]'),
        ({"attributes": {"é" * 129: "x"}}, "FIELD_INVALID", f"attributes[{json.dumps('é' * 64)}]"),
        ({"attributes": {"note": "x" * 1025}}, "FIELD_INVALID", 'attributes["note"]'),
    ],
)
def test_a_limit(changed: dict[str, object], reason: str, field: str) -> None:
    (problem,) = problems(replace(BOARD, **changed))  # type: ignore[arg-type]
    assert (problem.reason, problem.field) == (reason, field)
    assert problem.description


@pytest.mark.parametrize(
    "name",
    [
        "",
        "x" * 65,
        "a:b",
        "a b",
        "é",
        "cup\n",
        "all",
        "2026-11-23T08",
        "2026-11-23",
        "2026-99-99",
        "2026-W48",
        "2026-W99",
        "2026-11",
    ],
)
def test_a_name_that_no_season_may_have(name: str) -> None:
    (problem,) = problems(replace(BOARD, seasons=seasons(name)))
    assert (problem.reason, problem.field) == ("FIELD_INVALID", "seasons[0].name")


@given(definitions)
def test_any_definition_is_judged(board: Leaderboard) -> None:
    assert len(problems(board)) <= 20


def test_a_list_of_many_mistakes_is_cut() -> None:
    assert len(problems(replace(BOARD, windows=(SEASON,) * 1000))) == 20


@pytest.mark.parametrize(
    ("given_", "normal"),
    [
        ({"windows": ()}, {"windows": (ALL_TIME,)}),
        ({"windows": (), "seasons": seasons("cup")}, {"windows": (), "seasons": seasons("cup")}),
        ({"windows": (DAILY,)}, {"windows": (DAILY,)}),
        ({"windows": (DAILY, DAILY)}, {"windows": (DAILY, DAILY)}),
        ({"time_zone": ""}, {"time_zone": "UTC"}),
        ({"segments": 0}, {"segments": 1}),
        ({"segments": -1}, {"segments": -1}),
    ],
)
def test_defaults(given_: dict[str, object], normal: dict[str, object]) -> None:
    assert normalise(replace(BOARD, **given_)) == replace(BOARD, **normal)  # type: ignore[arg-type]


LOCKED: dict[str, object] = {
    "sort_order": SortOrder.ASCENDING,
    "update_policy": UpdatePolicy.SUM,
    "tie_break": TieBreak.MEMBER_ID,
    "time_zone": "Europe/Berlin",
    "reset_offset": 1,
    "segments": 2,
}


@pytest.mark.parametrize("name", list(LOCKED))
def test_a_locked_field(name: str) -> None:
    assert locked_changes(BOARD, replace(BOARD, **{name: LOCKED[name]})) == [name]  # type: ignore[arg-type]


def test_what_may_change_at_any_time() -> None:
    free: Callable[..., Leaderboard] = replace
    changed = free(
        BOARD,
        windows=(DAILY,),
        retention={DAILY: 3600},
        late_grace=5,
        max_entries=5,
        seasons=seasons("cup"),
        attributes={"a": "b"},
        revision=2,
        updated_at=3,
    )
    assert locked_changes(BOARD, changed) == []
    assert locked_changes(BOARD, replace(BOARD, **LOCKED)) == list(LOCKED)  # type: ignore[arg-type]
