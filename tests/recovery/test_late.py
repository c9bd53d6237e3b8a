"""Rows that come to Redis when their producer is far ahead: each counts once all the same."""

import uuid
from collections.abc import Iterable, Iterator

import pytest

from tallyboard_server.redis.calls import PRODUCER_RING
from tests.recovery import stores
from tests.recovery.journaling import (
    PARTITIONS,
    Desk,
    Keeper,
    add,
    producer,
    wait_until_closed,
    wait_until_open,
)
from tests.redis.node import RedisNode
from tests.waiting import wait_for

node, database = stores.node, stores.database


@pytest.fixture(scope="module", params=["fsynced", "journaled"])
def desk(request: pytest.FixtureRequest, node: RedisNode, database: str) -> Iterator[Desk]:
    """A worker."""
    with Desk(node.url, database, durability=request.param) as desk:
        desk.write(add("warm", 1))  # the link finds out which life of Redis it is
        yield desk


@pytest.fixture(scope="module")
def keeper_of_module(desk: Desk) -> Iterator[Keeper]:
    with Keeper(desk.settings) as keeper:
        yield keeper


@pytest.fixture
def keeper(keeper_of_module: Keeper, desk: Desk) -> Keeper:
    """A keeper; all partitions are open, and nothing was rejected."""
    keeper_of_module.drain()
    wait_until_open(desk)
    keeper_of_module.query("DELETE FROM tallyboard.journal_rejected")
    return keeper_of_module


def _close(keeper: Keeper, desk: Desk) -> None:
    keeper.close_all()
    wait_until_closed(desk)


def _go_past_the_journal(keeper: Keeper, desk: Desk) -> None:
    """As a worker does that doesn't know that partitions are journaled for."""
    keeper.query("UPDATE tallyboard.partitions SET state = 'OPEN', changes = changes + 1")
    wait_until_open(desk)


def _write(desk: Desk, name: str, sequences: Iterable[int], *, journaled: bool) -> None:
    writes = [desk.submit(add(name, i, producer(i, name))) for i in sequences]
    wait_for(lambda: all(write.over for write in writes), "all batches")
    assert {(write.error, write.journaled) for write in writes} == {(None, journaled)}


def _name() -> str:
    return uuid.uuid4().hex


@pytest.mark.parametrize("ahead", [1, 2, 5], ids="{} rings ahead".format)
def test_what_was_journaled_counts_though_its_stream_went_on_without_it(
    desk: Desk, keeper: Keeper, ahead: int
) -> None:
    name, last = _name(), 40 + ahead * PRODUCER_RING
    _write(desk, name, range(1, 11), journaled=False)
    _close(keeper, desk)
    _write(desk, name, range(11, 21), journaled=True)
    _go_past_the_journal(keeper, desk)
    _write(desk, name, range(21, last), journaled=False)
    _close(keeper, desk)
    keeper.drain()
    assert (keeper.count(name), keeper.rejected()) == (sum(range(1, last)), [])


def test_what_is_applied_late_counts_once_though_its_row_comes_twice(
    desk: Desk, keeper: Keeper
) -> None:
    name, last = _name(), 40 + PRODUCER_RING
    _close(keeper, desk)
    for _ in range(2):
        _write(desk, name, range(1, 11), journaled=True)
    _go_past_the_journal(keeper, desk)
    _write(desk, name, range(11, last), journaled=False)
    _close(keeper, desk)
    keeper.drain()
    keeper.redis.delete(*(f"{{tb:{p}}}:j" for p in range(PARTITIONS)))
    _close(keeper, desk)
    keeper.drain()
    assert (keeper.count(name), keeper.rejected()) == (sum(range(1, last)), [])


def test_a_row_of_what_was_sent_again_elsewhere_counts_once(desk: Desk, keeper: Keeper) -> None:
    name, last = _name(), 40 + PRODUCER_RING
    _close(keeper, desk)
    _write(desk, name, range(1, 11), journaled=True)
    _go_past_the_journal(keeper, desk)
    _write(desk, name, range(1, last), journaled=False)
    _close(keeper, desk)
    keeper.drain()
    assert (keeper.count(name), keeper.rejected()) == (sum(range(1, last)), [])


def _behind_all_gaps(desk: Desk, keeper: Keeper, name: str, *, again: bool) -> int:
    """Rows of which their slots have forgotten everything; gives what all adds up to."""
    _close(keeper, desk)
    _write(desk, name, range(1, 4), journaled=True)
    _go_past_the_journal(keeper, desk)
    cycles = [0] if again else []
    later = [i + c * PRODUCER_RING for c in [*cycles, 2, 4, 6, 8] for i in range(1, 4)]
    _write(desk, name, later, journaled=False)
    _close(keeper, desk)
    keeper.drain()
    return sum(later) + (0 if again else 6)


def test_a_row_of_which_nothing_is_known_any_more_is_kept_for_people(
    desk: Desk, keeper: Keeper
) -> None:
    """With the durability journaled the journal itself knows."""
    name = _name()
    total = _behind_all_gaps(desk, keeper, name, again=False)
    if desk.settings.journals_first:
        assert (keeper.count(name), keeper.rejected()) == (total, [])
    else:
        assert (keeper.count(name), set(keeper.rejected())) == (total - 6, {"SEQUENCE_TOO_OLD"})


def test_a_row_of_which_only_the_journal_knows_that_it_was_sent_again_counts_once(
    desk: Desk, keeper: Keeper
) -> None:
    name = _name()
    total = _behind_all_gaps(desk, keeper, name, again=True)
    assert keeper.count(name) == total
    assert set(keeper.rejected()) == (
        set() if desk.settings.journals_first else {"SEQUENCE_TOO_OLD"}
    )
