"""Scores that were journaled count as if they had come through, whatever has changed by then."""

import itertools
import random
from typing import Any, Final

import pytest

from tallyboard.v1 import leaderboards_pb2 as pb
from tests.leaderboards import live
from tests.leaderboards.live import DAY, MICROS, House, LiveBoard, refusal
from tests.recovery import houses
from tests.recovery.houses import NOON, journaling
from tests.recovery.journaling import Keeper

opened, house = live.opened, live.house
keeper_of_module, keeper = houses.keeper_of_module, houses.keeper

TODAY: Final = "2026-02-10"
_KINDS: Final = list(
    itertools.product(
        ("BEST", "LATEST", "SUM"), ("DESCENDING", "ASCENDING"), ("EARLIEST", "MEMBER_ID")
    )
)


def _submissions(count: int, *, with_moments: bool) -> list[tuple[Any, ...]]:
    """Members, scores, moments and metadata; every moment is another."""
    dice = random.Random(count)
    moments = dice.sample(range(NOON - 1000 * MICROS, NOON, MICROS), count)
    return [
        (
            dice.choice(["ann", "bob", "çat", "d:1", "'; --", "x" * 256]),
            float(dice.randint(-3, 3)),
            moments[i] if with_moments else None,
            b"" if i % 3 else b"%d\0\xff" % i,
        )
        for i in range(count)
    ]


def _rows(board: LiveBoard, window: str, *, moments: bool = True) -> list[tuple[Any, ...]]:
    return [
        (e.rank, e.member, e.score, e.metadata, e.updated_at.ToMicroseconds() if moments else 0)
        for e in board.page(window, page_size=100).entries
    ]


@pytest.mark.parametrize("segments", [1, 4])
@pytest.mark.parametrize(("policy", "order", "tie"), _KINDS)
def test_a_board_is_what_it_would_be_without_an_outage(
    house: House, keeper: Keeper, policy: str, order: str, tie: str, segments: int
) -> None:
    rules = {"policy": policy, "order": order, "tie": tie, "segments": segments}
    board = house.new_board(windows="ALL_TIME DAILY", **rules)
    twin = board.sibling("twin", windows="ALL_TIME DAILY", **rules)
    rows = _submissions(60, with_moments=True)
    for one in (board, twin):
        assert one.submit_all(rows[:20]) == []
    assert twin.submit_all(rows[20:]) == []
    with journaling(keeper, house):
        for row in rows[20:30]:
            board.submit(*row)
        assert board.submit_all(rows[30:]) == []
    for window in ("all", TODAY):
        assert _rows(board, window) == _rows(twin, window)


def test_scores_without_moments_have_the_one_of_their_arrival(house: House, keeper: Keeper) -> None:
    board = house.new_board(policy="LATEST")
    with journaling(keeper, house):
        board.submit("ann", 1)
        house.clock.now += MICROS
        board.submit("ann", 2)
        house.clock.now += DAY
    assert _rows(board, "all") == [(1, "ann", 2.0, b"", NOON + MICROS)]


def test_several_boards_in_one_batch(house: House, keeper: Keeper) -> None:
    board = house.new_board(policy="SUM", windows="ALL_TIME DAILY")
    others = [board.sibling(f"other{i}", policy="SUM", segments=2) for i in range(3)]
    with journaling(keeper, house):
        messages = [
            one.submission(f"m{i}", i, NOON - i) for i in range(50) for one in (board, *others)
        ]
        request = pb.BatchSubmitScoresRequest(submissions=messages)
        assert not board.call("BatchSubmitScores", request).failures
    expected = {f"m{i}": float(i) for i in range(50)}
    found = [{row[1]: row[2] for row in _rows(one, "all")} for one in (board, *others)]
    assert found == [expected] * 4


def test_scores_from_before_a_season_and_from_behind_it_count(house: House, keeper: Keeper) -> None:
    """Both times the board has the same windows, and a batch may have both."""
    board = house.new_board(
        policy="SUM", windows="ALL_TIME", seasons={"s1": (NOON - 60 * MICROS, NOON - 30 * MICROS)}
    )
    with journaling(keeper, house):
        rows = [("ann", 1, NOON - 90 * MICROS), ("ann", 10, NOON - 45 * MICROS), ("ann", 100, NOON)]
        assert board.submit_all(rows) == []
    assert board.scores("all") == {"ann": 111}
    assert board.scores("s1") == {"ann": 10}


def test_a_window_that_ended_meanwhile_is_archived_with_what_was_journaled(
    house: House, keeper: Keeper
) -> None:
    board = house.new_board(policy="SUM", windows="ALL_TIME DAILY", segments=4)
    board.submit("ann", 1)
    house.new_keeper().round()
    with journaling(keeper, house):
        board.submit("ann", 10)
        board.submit("bob", 5)
        house.clock.now += 2 * DAY
        house.new_keeper().round()
    house.new_keeper().round()
    board.evict(TODAY)
    assert board.windows()[1] == (TODAY, "ARCHIVED", 2)
    assert board.scores(TODAY) == {"ann": 11, "bob": 5}


@pytest.mark.parametrize("is_gone", [False, True], ids=["in Redis", "gone from Redis"])
@pytest.mark.parametrize("segments", [1, 4])
def test_what_is_imported_into_an_archived_window_counts(
    house: House, keeper: Keeper, segments: int, is_gone: bool
) -> None:
    board = house.new_board(policy="SUM", windows="ALL_TIME DAILY", segments=segments)
    board.submit_all([("ann", 1), ("bob", 2), ("cat", 3)])
    house.clock.now += 2 * DAY
    house.new_keeper().round()
    if is_gone:
        board.evict(TODAY)
    with journaling(keeper, house):
        assert board.imported(("ann", 10, NOON), ("zoe", 7, NOON)) == []
    expected = {"ann": 11, "bob": 2, "cat": 3, "zoe": 7}
    assert board.scores(TODAY) == expected
    house.new_keeper().round()
    board.evict(TODAY)
    assert board.scores(TODAY) == expected


def test_what_is_imported_into_a_window_that_never_was_makes_it(
    house: House, keeper: Keeper
) -> None:
    board = house.new_board(policy="SUM", windows="DAILY")
    house.clock.now += 2 * DAY
    with journaling(keeper, house):
        assert board.imported(("ann", 10, NOON)) == []
    house.new_keeper().round()
    assert board.windows() == [(TODAY, "ARCHIVED", 1)]
    assert board.scores(TODAY) == {"ann": 10}


def test_a_definition_that_changed_meanwhile_is_the_one_that_holds(
    house: House, keeper: Keeper
) -> None:
    board = house.new_board(policy="SUM", windows="ALL_TIME DAILY", segments=4)
    with journaling(keeper, house):
        board.submit_all([(f"m{i}", i) for i in range(20)])
        board.update(attributes={"colour": "red"})
        board.submit_all([(f"m{i}", 100) for i in range(20)])
    assert board.scores("all") == {f"m{i}": 100 + i for i in range(20)}


def test_scores_of_a_board_that_was_deleted_meanwhile_are_gone(
    house: House, keeper: Keeper
) -> None:
    board = house.new_board(policy="SUM")
    other = board.sibling("other", policy="SUM")
    with journaling(keeper, house):
        request = pb.BatchSubmitScoresRequest(
            submissions=[one.submission("ann", 1) for one in (board, other)]
        )
        assert not board.call("BatchSubmitScores", request).failures
        board.delete()
        board.create(policy="SUM")
    assert (board.scores("all"), other.scores("all"), keeper.rejected()) == ({}, {"ann": 1}, [])


def test_scores_for_a_window_past_its_retention_are_gone(house: House, keeper: Keeper) -> None:
    board = house.new_board(
        policy="SUM", windows="ALL_TIME DAILY", retention={"DAILY": DAY // MICROS}
    )
    with journaling(keeper, house):
        board.submit("ann", 1)
        house.clock.now += 10 * DAY
    assert board.scores("all") == {"ann": 1}
    with refusal("WINDOW_NOT_FOUND"):
        board.page(TODAY)


def test_a_sum_that_overflows_is_kept_for_people_and_the_rest_counts(
    house: House, keeper: Keeper
) -> None:
    board = house.new_board(policy="SUM")
    board.submit("ann", 1.7e308)
    with journaling(keeper, house):
        assert board.submit_all([("ann", 1.7e308), ("bob", 5), ("cat", 6)]) == []
        board.submit("bob", 7)
    assert keeper.rejected() == ["SCORE_OUT_OF_RANGE"]
    assert board.scores("all") == {"ann": 1.7e308, "bob": 12, "cat": 6}


@pytest.mark.parametrize("segments", [1, 4])
def test_a_board_keeps_its_limit(house: House, keeper: Keeper, segments: int) -> None:
    board = house.new_board(max_entries=10, segments=segments)
    board.submit_all([(f"m{i}", i) for i in range(20)])
    with journaling(keeper, house):
        board.submit_all([(f"n{i}", i + 0.5) for i in range(20)])
        for i in range(20, 25):
            board.submit(f"o{i}", i)
    board.submit("last", 100)  # the limit is kept over all segments with the next write
    best = {"last": 100.0} | {f"o{i}": float(i) for i in range(20, 25)}
    best |= {"n19": 19.5, "m19": 19.0, "n18": 18.5, "m18": 18.0}
    assert board.scores("all") == best


def test_scores_to_a_season_that_was_made_longer_count(house: House, keeper: Keeper) -> None:
    """It ends while its scores are in the journal, and then goes on."""
    end = NOON + 60 * MICROS
    board = house.new_board(policy="SUM", grace=0, seasons={"s1": (NOON - MICROS, end)})
    with journaling(keeper, house):
        board.submit("ann", 1)
        house.clock.now = end + MICROS
        house.new_keeper().round()
        board.update(seasons={"s1": (NOON - MICROS, end + DAY)})
        board.submit("ann", 10)
    assert board.scores("s1") == {"ann": 11}
