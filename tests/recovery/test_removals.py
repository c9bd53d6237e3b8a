"""What does not commute with other updates waits until everything that was journaled is applied."""

import uuid
from collections.abc import Iterator
from typing import Any, Final

import grpc
import pytest

from tallyboard.v1 import counters_pb2, counters_pb2_grpc
from tallyboard.v1 import leaderboards_pb2 as pb
from tests.faults.ledger import reason_of
from tests.leaderboards import live
from tests.leaderboards.live import EXACT, House, refusal
from tests.recovery import houses
from tests.recovery.houses import journaling, open_again
from tests.recovery.journaling import Keeper

opened, house = live.opened, live.house
keeper_of_module, keeper = houses.keeper_of_module, houses.keeper

_CLOSED: Final = "PARTITION_UNAVAILABLE"


@pytest.fixture
def counters(house: House) -> Iterator[Any]:
    """CounterService of the worker."""
    with grpc.insecure_channel(house.site.address) as channel:
        yield counters_pb2_grpc.CounterServiceStub(channel)


def _value(counters: Any, name: str) -> int:
    request = counters_pb2.GetCounterRequest(counter=name, consistency=EXACT)
    return int(counters.GetCounter(request).count.value)


@pytest.mark.parametrize("verb", ["ResetCounter", "DeleteCounter"])
def test_a_counter_is_cleared_when_all_is_applied(
    house: House, keeper: Keeper, counters: Any, verb: str
) -> None:
    name = uuid.uuid4().hex
    clear = getattr(counters_pb2, f"{verb}Request")(counter=name, request_id=str(uuid.uuid4()))
    add = counters_pb2.IncrementRequest(counter=name, delta=5)
    counters.Increment(add)
    with journaling(keeper, house):
        assert counters.Increment(add).journaled
        with pytest.raises(grpc.RpcError) as caught:
            getattr(counters, verb)(clear)
    before = _value(counters, name)
    getattr(counters, verb)(clear)
    assert (reason_of(caught.value), before, _value(counters, name)) == (_CLOSED, 10, 0)


@pytest.mark.parametrize("window", ["", "all"])
@pytest.mark.parametrize("is_stored", [False, True], ids=["journaled only", "stored"])
def test_an_entry_is_deleted_when_all_is_applied(
    house: House, keeper: Keeper, is_stored: bool, window: str
) -> None:
    """Also one that Redis has never seen: the score would come back behind the removal."""
    board = house.new_board(policy="SUM", windows="ALL_TIME DAILY")
    board.submit("bob", 1)
    request = pb.DeleteEntryRequest(
        leaderboard_id=board.leaderboard_id, member="ann", window=window, request_id=_id()
    )
    if is_stored:
        board.submit("ann", 1)
    with journaling(keeper, house):
        board.submit("ann", 10)
        with refusal(_CLOSED):
            board.call("DeleteEntry", request)
    before = board.scores("all")
    board.call("DeleteEntry", request)
    assert (before["ann"], board.scores("all")) == (10 + is_stored, {"bob": 1})


def test_a_member_is_erased_when_all_is_applied(house: House, keeper: Keeper) -> None:
    board = house.new_board(policy="SUM", windows="ALL_TIME DAILY")
    others = [board.sibling(f"other{i}", policy="SUM", segments=2) for i in range(4)]
    request = pb.EraseMemberRequest(member="ann", request_id=_id())
    for one in (board, *others):
        one.submit("ann", 1)
    with journaling(keeper, house):
        for one in (board, *others):
            one.submit("ann", 10)
        with refusal(_CLOSED):
            board.call("EraseMember", request)
    before = [one.scores("all") for one in (board, *others)]
    board.call("EraseMember", request)
    after = [one.scores("all") for one in (board, *others)]
    assert (before, after) == ([{"ann": 11}] * 5, [{}] * 5)


def test_a_member_is_erased_from_what_is_open_and_then_from_the_rest(
    house: House, keeper: Keeper
) -> None:
    """A repeat goes on where the first one ended."""
    board = house.new_board(policy="SUM")
    others = [board.sibling(f"other{i}", policy="SUM") for i in range(12)]
    request = pb.EraseMemberRequest(member="ann", request_id=_id())
    with journaling(keeper, house):
        for one in (board, *others):
            one.submit("ann", 10)
        keeper.drain(range(live.PARTITIONS // 2))
        with refusal(_CLOSED):
            board.call("EraseMember", request)
    board.call("EraseMember", request)
    open_again(keeper, house)
    assert [one.scores("all") for one in (board, *others)] == [{}] * 13


def _id() -> str:
    return str(uuid.uuid4())
