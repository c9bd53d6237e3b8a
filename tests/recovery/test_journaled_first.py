"""The durability `journaled`: a Redis that loses everything loses nothing acknowledged."""

import uuid
from collections.abc import Iterator

import pytest

from tallyboard_server.errors import OutOfRange, Unavailable
from tallyboard_server.redis import keys, scripts
from tallyboard_server.redis.operations import Part, Token
from tests.recovery import stores
from tests.recovery.journaling import (
    TENANT,
    Asked,
    Desk,
    Keeper,
    add,
    add_all,
    producer,
    request,
    wait_until_open,
)
from tests.redis.node import RedisNode
from tests.waiting import wait_for

node, database = stores.node, stores.database

_MOST = 1 << 52


@pytest.fixture(scope="module")
def desk(node: RedisNode, database: str) -> Iterator[Desk]:
    """A worker."""
    with Desk(node.url, database, durability="journaled") as desk:
        yield desk


@pytest.fixture(scope="module")
def keeper_of_module(desk: Desk) -> Iterator[Keeper]:
    desk.write(add(_name(), 1))  # the link finds out which life of Redis it is
    with Keeper(desk.settings) as keeper:
        yield keeper


@pytest.fixture
def keeper(keeper_of_module: Keeper, desk: Desk) -> Keeper:
    """A keeper; all partitions are open, and the journal is empty."""
    keeper_of_module.drain()
    keeper_of_module.checkpointer.checkpoint_all()
    keeper_of_module.query("DELETE FROM tallyboard.journal_rejected")
    wait_until_open(desk)
    return keeper_of_module


def _name() -> str:
    return uuid.uuid4().hex


def test_what_is_acknowledged_is_in_redis_and_in_the_journal(desk: Desk, keeper: Keeper) -> None:
    name = _name()
    write = desk.write(add(name, 5))
    assert (write.error, write.journaled, keeper.count(name), keeper.rows()) == (None, False, 5, 1)


def test_a_wiped_redis_loses_nothing_and_counts_nothing_twice(desk: Desk, keeper: Keeper) -> None:
    name, token = _name(), request()
    desk.write(add(name, 1))
    keeper.checkpointer.checkpoint_all()
    desk.write(add(name, 10, token), add_all({name: 100, _name(): 7}))
    keeper.wipe()
    wait_until_open(desk)
    again = desk.write(add(name, 10, token))
    assert (keeper.count(name), again.duplicate) == (111, True)


def test_tokens_outlive_a_wiped_redis_by_the_checkpoint(desk: Desk, keeper: Keeper) -> None:
    name, asked, batch = _name(), request(), producer(1, _name())
    desk.write(add(name, 1, asked))
    desk.write(add(name, 10, batch))
    keeper.checkpointer.checkpoint_all()
    keeper.wipe()
    wait_until_open(desk)
    found = [desk.write(add(name, 1, asked)), desk.write(add(name, 10, batch))]
    assert (keeper.count(name), [write.duplicate for write in found]) == (11, [True, True])


def _widen(desk: Desk, name: str) -> None:
    """A shard holds less than four times the largest delta.

    The counter's other shards are frozen, wherever they are: it is refused, with nothing counted,
    while the worker has not yet seen that a partition was made anew.
    """
    for delta in (_MOST, _MOST, _MOST, 1 - _MOST, -_MOST, -_MOST):
        write = add(name, delta)
        wait_for(lambda write=write: desk.write(write).error is None, "a wide counter")


@pytest.mark.parametrize("token", [None, request()], ids=["without a token", "with a token"])
def test_what_a_shard_refused_is_applied_once_though_redis_is_wiped(
    desk: Desk, keeper: Keeper, token: None
) -> None:
    """It left the row of its partition for one of the wide counter's."""
    name = _name()
    _widen(desk, name)
    keeper.checkpointer.checkpoint_all()
    assert desk.write(add(name, 5, token)).error is None
    assert desk.write(add_all({name: 5, f"{name}2": 3}), add(f"{name}3", 1)).error is None
    before = keeper.count(name)
    keeper.wipe()
    found = [keeper.count(name), keeper.count(f"{name}2"), keeper.count(f"{name}3")]
    assert (before, found) == (11, [11, 3, 1])


def test_what_shared_a_row_with_what_a_shard_refused_is_applied_once(
    desk: Desk, keeper: Keeper
) -> None:
    name, other = _name(), _name()
    _widen(desk, name)
    keeper.checkpointer.checkpoint_all()
    writes = [desk.submit(add(other, 1)) for _ in range(50)]
    writes += [desk.submit(add(name, 1)) for _ in range(50)]
    writes += [desk.submit(add(other, 1)) for _ in range(50)]
    wait_for(lambda: all(write.over for write in writes), "all writes")
    assert {write.error for write in writes} == {None}
    before = (keeper.count(name), keeper.count(other))
    keeper.wipe()
    after = (keeper.count(name), keeper.count(other))
    assert (before, after) == ((51, 100), (51, 100))


def test_what_is_out_of_range_is_in_no_row(desk: Desk, keeper: Keeper) -> None:
    """The caller was told that it does not count."""
    name = _name()
    _widen(desk, name)
    for _ in range(2047):
        assert desk.write(add(name, _MOST)).error is None
    refused = desk.write(add(name, _MOST))
    desk.write(add(name, -_MOST))
    before = keeper.count(name)
    keeper.wipe()
    assert isinstance(refused.error, OutOfRange) or refused.out_of_range
    assert (keeper.count(name), keeper.rejected()) == (before, [])


def test_reads_without_redis_see_what_was_refused_by_a_shard_once(
    desk: Desk, keeper: Keeper
) -> None:
    name = _name()
    _widen(desk, name)
    keeper.checkpointer.checkpoint_all()
    desk.write(add(name, 5))
    found = keeper.query(
        "SELECT sum(delta) FROM tallyboard.journal_increments WHERE counter = %s", name
    )
    assert found == [(5,)]


def test_a_row_that_redis_can_not_tell_about_closes_its_partition(
    desk: Desk, keeper: Keeper, node: RedisNode
) -> None:
    """It goes to Redis again behind more calls of its link than Redis remembers."""
    name, other, token = _name(), _name(), producer(1, _name())
    desk.write(add(name, 2, token))
    node.pause()
    desk.submit(add(other, 1))
    writes = [desk.submit(add(name, 2, token)), desk.submit(add(name, 100))]
    writes += [desk.submit(_add_wide(f"{other}{index}")) for index in range(150)]
    node.resume()
    wait_for(lambda: all(write.over for write in writes), "all writes")
    assert {write.error for write in writes} == {None}
    assert keeper.count(name) == 102 or desk.expected()[0] is None
    keeper.drain()
    assert keeper.count(name) == 102


@pytest.mark.parametrize("token", [None, request()], ids=["without a token", "with a token"])
def test_what_redis_answered_with_an_error_counts_once(
    desk: Desk, keeper: Keeper, token: Token | None
) -> None:
    """Its row is applied some time: a caller who is told to send it again would count it twice."""
    name, key = _name(), keys.journaled_key(0)
    keeper.checkpointer.checkpoint_all()
    keeper.redis.set(key, "not a set")
    write = desk.write(add(name, 5, token))
    keeper.redis.delete(key)
    if isinstance(write.error, Unavailable):
        desk.write(add(name, 5, token))
    keeper.close_all()
    keeper.drain()
    assert (keeper.count(name), write.error, write.journaled) == (5, None, True)


def test_a_partition_that_somebody_else_has_opened_is_not_drained(
    desk: Desk, keeper: Keeper
) -> None:
    """Its rows belong to the workers again, who may still rewrite them."""
    changes = "SELECT changes FROM tallyboard.partitions WHERE partition = 0"
    desk.write(add(_name(), 1))
    before = keeper.query(changes)
    assert (keeper.drain([0]), keeper.query(changes)) == (0, before)


def _add_wide(name: str) -> Asked:
    """A call of its own: those of wide counters do not merge."""
    deltas = {keys.wide_key(0, TENANT, name): 1}
    return lambda write: Part(write, 0, deltas, None, scripts.ADD_WIDE, bound=1)
