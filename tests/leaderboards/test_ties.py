"""Equal scores rank by who was first, to the microsecond, whatever the score."""

import itertools
import math
import random
import sys

import pytest

from tests.leaderboards.calls import Caller, Clock
from tests.leaderboards.model import ALL_TIME, DAY, MICROS, Board, Definition, Item, Row

_BOTH = pytest.mark.parametrize("sort_order", ["DESCENDING", "ASCENDING"])
_SEGMENTS = pytest.mark.parametrize("segments", [1, 16])
_SCORES = [
    *(0.0, -0.0, 1.0, -1.0, 0.1, 5e-324, -5e-324, 2.2250738585072014e-308),
    *(2.0**53, 2.0**53 - 1, -(2.0**53), 1e308, -1e308, sys.float_info.max),
]
_FIRST = -25_567 * DAY  # the year 1900


def _members(rows: list[Row]) -> list[str]:
    return [row.member for row in rows]


@_BOTH
@_SEGMENTS
@pytest.mark.parametrize("score", _SCORES)
def test_the_earlier_of_equal_scores_ranks_higher(
    caller: Caller, clock: Clock, sort_order: str, segments: int, score: float
) -> None:
    board = Board(Definition(sort_order, segments=segments))
    caller.create("b", board.definition)
    moments = [_FIRST, _FIRST + 1, -1, 0, 1, clock.now - 1, clock.now, clock.now + MICROS]
    # Neither the names nor the order of arrival follow the moments.
    names = random.Random(1).sample(range(100), len(moments))
    items = [
        Item(f"m{name}", score, b"", moment)
        for name, moment in zip(names, moments[::-1], strict=True)
    ]
    assert caller.batch([("b", item) for item in items], is_import=True) == ({}, False)
    found = caller.page("b", "all").rows
    assert [row.updated_at for row in found] == moments
    board.submit(zip(items, moments[::-1], strict=True))
    assert found == board.rows(ALL_TIME)
    for method in ("COMPETITION", "DENSE"):
        assert {row.rank for row in caller.page("b", "all", method).rows} == {1}


@_BOTH
@_SEGMENTS
@pytest.mark.parametrize("tie_break", ["EARLIEST", "MEMBER_ID"])
def test_equal_moments_rank_by_the_bytes_of_the_member(
    caller: Caller, clock: Clock, sort_order: str, segments: int, tie_break: str
) -> None:
    caller.create("b", Definition(sort_order, tie_break=tie_break, segments=segments))
    names = ["z", "ann", "an", "Ann", "zoë", "zoé", "\uffff", "\U0001f600", "a" * 256, "0", "~"]
    names += ["a" * length for length in range(1, 9)]
    for name in names:
        caller.submit("b", Item(name, 7.0))
    expected = sorted(names, key=str.encode, reverse=sort_order == "DESCENDING")
    assert _members(caller.page("b", "all").rows) == expected
    assert _members(caller.page("b", "all", reverse=True).rows) == expected[::-1]
    # Read one by one, an entry of one segment has to be placed among those of the others.
    rows, _, _, _ = caller.batch_get("b", "all", expected)
    assert [row.rank for row in rows] == list(range(1, len(names) + 1))
    for place, name in enumerate(expected):
        found = caller.around("b", "all", name, 2)
        assert _members(found.rows) == expected[max(0, place - 2) : place + 3]


@_BOTH
def test_scores_that_arrive_one_after_the_other_rank_in_that_order(
    caller: Caller, clock: Clock, sort_order: str
) -> None:
    caller.create("b", Definition(sort_order))
    names = [f"m{number}" for number in range(40)]
    random.Random(1).shuffle(names)
    for name in names[:20]:
        caller.submit("b", Item(name, 2.0**53))
        clock.now += 1
    # Within a batch too.
    caller.batch([("b", Item(name, 2.0**53)) for name in names[20:]])
    assert _members(caller.page("b", "all").rows) == names


@pytest.mark.parametrize("score", [1.0, 0.1, 2.0**52, 1e308, 5e-324, 2.2250738585072014e-308])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_next_double_is_another_score(
    caller: Caller, clock: Clock, score: float, sign: int
) -> None:
    caller.create("b", Definition())
    score *= sign
    above = math.nextafter(score, math.inf)
    caller.submit("b", Item("ann", score, moment=clock.now - 2 * MICROS))
    caller.submit("b", Item("bob", above, moment=clock.now))
    found = caller.page("b", "all", "DENSE").rows
    assert [(row.member, row.score, row.rank) for row in found] == [
        ("bob", above, 1),
        ("ann", score, 2),
    ]


@_BOTH
@_SEGMENTS
def test_minus_zero_is_zero(caller: Caller, clock: Clock, sort_order: str, segments: int) -> None:
    caller.create("b", Definition(sort_order, segments=segments))
    caller.submit("b", Item("ann", 0.0, moment=clock.now))
    caller.submit("b", Item("bob", -0.0, moment=clock.now - 1))
    caller.batch([("b", Item("cat", -0.0, moment=clock.now - 2))])
    caller.submit("b", Item("dan", -5e-324 if sort_order == "ASCENDING" else 5e-324))
    found = caller.page("b", "all", "COMPETITION").rows
    assert [(row.rank, row.member) for row in found] == [
        (1, "dan"),
        (2, "cat"),
        (2, "bob"),
        (2, "ann"),
    ]
    assert [str(row.score) for row in found[1:]] == ["0.0"] * 3


@_BOTH
@pytest.mark.parametrize(
    ("policy", "later", "earlier"),
    # Who is ahead after bob has submitted ann's score at a later and at an earlier moment again.
    [("BEST", "ann", "bob"), ("LATEST", "ann", "ann"), ("SUM", "ann", "ann")],
)
def test_a_score_reached_again(
    caller: Caller, clock: Clock, sort_order: str, policy: str, later: str, earlier: str
) -> None:
    caller.create("b", Definition(sort_order, policy))
    now = clock.now
    caller.submit("b", Item("ann", 0.0, moment=now - 5))
    caller.submit("b", Item("bob", 0.0, moment=now - 4))
    caller.submit("b", Item("bob", 0.0, b"later", moment=now))
    assert caller.page("b", "all").rows[0].member == later
    caller.submit("b", Item("bob", 0.0, b"earlier", moment=now - 9))
    assert caller.page("b", "all").rows[0].member == earlier
    row, _, _ = caller.get("b", "all", "bob")
    assert (row.metadata, row.updated_at) == (
        (b"earlier", now - 9) if policy == "BEST" else (b"later", now)
    )


@pytest.mark.parametrize("segments", [1, 16])
def test_ranks_of_ties_in_every_method(caller: Caller, clock: Clock, segments: int) -> None:
    caller.create("b", Definition(tie_break="MEMBER_ID", segments=segments))
    scores = {"ann": 9.0, "bob": 7.0, "cat": 7.0, "dan": 5.0, "eve": 5.0, "fay": 5.0, "gus": 1.0}
    caller.batch([("b", Item(name, score)) for name, score in scores.items()])
    ranks = {
        method: [row.rank for row in caller.page("b", "all", method).rows]
        for method in ("ORDINAL", "COMPETITION", "DENSE")
    }
    assert ranks == {
        "ORDINAL": [1, 2, 3, 4, 5, 6, 7],
        "COMPETITION": [1, 2, 2, 4, 4, 4, 7],
        "DENSE": [1, 2, 2, 3, 3, 3, 4],
    }
    some = ["fay", "cat", "gus", "bob", "dan", "nobody"]
    relative = {
        "ORDINAL": [3, 1, 5, 2, 4],
        "COMPETITION": [3, 1, 5, 1, 3],
        "DENSE": [2, 1, 3, 1, 2],
    }
    for method, expected in relative.items():
        rows, _, missing, _ = caller.batch_get("b", "all", some, method, relative=True)
        assert ([row.rank for row in rows], missing) == (expected, ["nobody"])
    for method, size in itertools.product(ranks, (1, 2, 3)):
        page, found = caller.page("b", "all", method, size=size), []
        while True:
            found += [row.rank for row in page.rows]
            if not page.token:
                break
            page = caller.page("b", "all", method, size=size, token=page.token)
        assert found == ranks[method]
