"""Entries as reads see them without Redis: what was stored, and what was journaled since."""

import itertools
import random
import uuid
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import pytest

from tallyboard_server.leaderboards.model import (
    Leaderboard,
    SortOrder,
    TieBreak,
    UpdatePolicy,
    WindowKind,
)
from tallyboard_server.redis.scores import Plan
from tests.recovery import stores
from tests.recovery.journaling import (
    Desk,
    Keeper,
    Row,
    request,
    scores,
    wait_until_closed,
    wait_until_open,
)
from tests.redis.node import RedisNode
from tests.waiting import wait_for

node, database = stores.node, stores.database

_WINDOWS: Final = ("all", "2026-11-23")
_NOON: Final = 1_795_435_200_000_000
_MOMENTS: Final = itertools.count(_NOON)
_KINDS: Final = [
    (policy, order, segments)
    for policy in UpdatePolicy
    for order in SortOrder
    for segments in (1, 2)
]


class _Two:
    """Two workers and a keeper on the same stores."""

    def __init__(self, first: Desk, second: Desk, keeper: Keeper) -> None:
        self.desks = (first, second)
        self.keeper = keeper

    def close(self) -> None:
        """From now on everything is journaled."""
        self.keeper.close_all()
        for desk in self.desks:
            wait_until_closed(desk)

    def open(self) -> None:
        """What was journaled is applied."""
        self.keeper.drain()
        for desk in self.desks:
            wait_until_open(desk)

    def submit(self, plans: Sequence[Plan], rows: Iterable[Row], size: int = 5) -> None:
        """Submits scores through both at once, some in one write; waits for all."""
        waiting = list(rows)
        writes = []
        while waiting:
            batch, waiting = waiting[:size], waiting[size:]
            by_segment = {}
            for row in batch:
                members = by_segment.setdefault(len(row[0]) % len(plans), {})
                members.setdefault(row[0], row)
                if members[row[0]] is not row:
                    waiting.insert(0, row)  # a member is once in a part
            desk = random.choice(self.desks)
            asked = [scores(plans[i], list(found.values())) for i, found in by_segment.items()]
            writes.append(desk.submit(*asked))
        wait_for(lambda: all(write.over for write in writes), "all scores")
        assert {write.error for write in writes} == {None}


@pytest.fixture(scope="module", params=["fsynced", "journaled"])
def two(request: pytest.FixtureRequest, node: RedisNode, database: str) -> Iterator[_Two]:
    settings = {"durability": request.param}
    with (
        Desk(node.url, database, **settings) as first,
        Desk(node.url, database, **settings) as second,
        Keeper(first.settings) as keeper,
    ):
        two = _Two(first, second, keeper)
        board = _board(keeper, *_KINDS[0])
        two.submit(keeper.plans(board, _WINDOWS), _rows(20), 1)
        two.open()  # the links have found out which life of Redis it is
        keeper.checkpointer.checkpoint_all()
        yield two
        two.open()


def _board(keeper: Keeper, policy: UpdatePolicy, order: SortOrder, segments: int) -> Leaderboard:
    name = uuid.uuid4().hex
    board = Leaderboard(
        "acme",
        name,
        board_key=name[:16],
        sort_order=order,
        update_policy=policy,
        tie_break=random.choice(list(TieBreak)),
        windows=(WindowKind.ALL_TIME, WindowKind.DAILY),
        segments=segments,
    )
    return keeper.create(board)


def _rows(count: int) -> list[Row]:
    """Scores of a few members with moments that come in any order, some of equal score."""
    moments = random.sample([next(_MOMENTS) for _ in range(count)], count)
    return [
        (f"{'m' * random.randint(1, 6)}", float(random.randint(-5, 5)), moment, b"%d" % moment)
        for moment in moments
    ]


def _expected(board: Leaderboard, rows: Iterable[Row]) -> dict[str, Row]:
    kept: dict[str, Row] = {}
    for row in rows:
        held = kept.get(row[0])
        kept[row[0]] = row if held is None else _merged(board, held, row)
    return kept


def _merged(board: Leaderboard, held: Row, coming: Row) -> Row:
    latest = max(held, coming, key=lambda row: row[2])
    if board.update_policy is UpdatePolicy.SUM:
        return (held[0], held[1] + coming[1], *latest[2:])
    if board.update_policy is UpdatePolicy.LATEST:
        return latest
    sign = 1 if board.is_descending else -1
    return max(held, coming, key=lambda row: (sign * row[1], -row[2]))


def _all_of(keeper: Keeper, board: Leaderboard) -> list[dict[str, Row]]:
    return [keeper.durable_entries(board, window) for window in _WINDOWS]


@pytest.mark.parametrize(("policy", "order", "segments"), _KINDS)
def test_reads_find_what_was_stored_with_what_was_journaled(
    two: _Two, policy: UpdatePolicy, order: SortOrder, segments: int
) -> None:
    keeper = two.keeper
    board = _board(keeper, policy, order, segments)
    plans = keeper.plans(board, _WINDOWS)
    two.open()
    stored, journaled = _rows(30), _rows(60)
    two.submit(plans, stored)
    keeper.checkpointer.checkpoint_all()
    two.close()
    two.submit(plans, journaled)
    expected = _expected(board, [*stored, *journaled])
    assert _all_of(keeper, board) == [expected, expected]


@pytest.mark.parametrize("policy", list(UpdatePolicy))
def test_reads_find_each_score_once_however_often_a_partition_is_closed(
    two: _Two, policy: UpdatePolicy
) -> None:
    """With rows that are applied and not checkpointed, and a checkpoint in between."""
    keeper, rows = two.keeper, []
    board = _board(keeper, policy, SortOrder.DESCENDING, 2)
    plans = keeper.plans(board, _WINDOWS)
    found = []
    for round_ in range(4):
        more = _rows(20)
        rows += more
        if round_ % 2:
            two.open()
        two.submit(plans, more)
        two.close()
        if round_ == 2:
            keeper.checkpointer.checkpoint_all()
        # Otherwise what went to Redis alone is only seen with a checkpoint.
        if two.desks[0].settings.journals_first:
            found.append(_all_of(keeper, board) == [_expected(board, rows)] * 2)
    two.open()
    after = [keeper.entries(board, window) for window in _WINDOWS]
    assert (found, after) == ([True] * len(found), [_expected(board, rows)] * 2)


def test_a_repeat_is_seen_once(two: _Two) -> None:
    keeper, token = two.keeper, request()
    board = _board(keeper, UpdatePolicy.SUM, SortOrder.DESCENDING, 1)
    (plan,) = keeper.plans(board, _WINDOWS)
    two.close()
    for desk in two.desks:
        desk.write(scores(plan, [("ann", 5.0, _NOON, b"")], token))
    keeper.query("DELETE FROM tallyboard.journal_entries")
    keeper.query("UPDATE tallyboard.partitions SET state = 'OPEN'")
    two.close()  # what reads see is made anew from the rows
    assert keeper.durable_entries(board, "all") == {"ann": ("ann", 5.0, _NOON, b"")}


def test_what_redis_never_answered_is_seen_once(two: _Two, node: RedisNode) -> None:
    """Its partition was journaled for while it was on its way, row and all."""
    keeper, desk = two.keeper, two.desks[0]
    board = _board(keeper, UpdatePolicy.SUM, SortOrder.DESCENDING, 1)
    (plan,) = keeper.plans(board, _WINDOWS)
    two.open()
    keeper.checkpointer.checkpoint_all()
    node.pause()
    try:
        write = desk.submit(scores(plan, [("ann", 5.0, _NOON, b"")]))
        if desk.settings.journals_first:
            wait_for(lambda: keeper.rows() == 1, "its row")
        keeper.close_all()
        wait_for(lambda: write.over, "the write")
    finally:
        node.resume()
    expected = {"ann": ("ann", 5.0, _NOON, b"")}
    assert (write.journaled, keeper.durable_entries(board, "all")) == (True, expected)
    two.open()
    assert keeper.entries(board, "all") == expected


def test_nothing_is_left_when_all_is_applied_and_checkpointed(two: _Two) -> None:
    keeper = two.keeper
    board = _board(keeper, UpdatePolicy.SUM, SortOrder.DESCENDING, 1)
    two.close()
    two.submit(keeper.plans(board, _WINDOWS), _rows(20))
    two.open()
    keeper.checkpointer.checkpoint_all()
    assert keeper.query("SELECT count(*) FROM tallyboard.journal_entries") == [(0,)]


def test_scores_of_a_deleted_board_are_left_out(two: _Two) -> None:
    keeper = two.keeper
    board = _board(keeper, UpdatePolicy.SUM, SortOrder.DESCENDING, 1)
    plans = keeper.plans(board, _WINDOWS)
    two.close()
    keeper.query(
        "UPDATE tallyboard.leaderboards SET deleted_at = now() WHERE board_key = %s",
        board.board_key,
    )
    two.submit(plans, _rows(5))
    two.open()
    assert keeper.entries(board, "all") == {}
