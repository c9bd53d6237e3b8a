"""The journal is applied once: with two keepers at it, with a Redis that dies, to wide counters."""

import threading
import uuid
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from typing import Final

import psycopg
import pytest

from tallyboard_server.errors import TallyboardError
from tallyboard_server.postgres.journal import JOURNALING
from tallyboard_server.recovery.drain import NotReady
from tallyboard_server.recovery.restorer import Restorer
from tallyboard_server.redis import keys
from tallyboard_server.redis.fences import Fences
from tests.recovery import stores
from tests.recovery.journaling import (
    PARTITIONS,
    TENANT,
    Desk,
    Keeper,
    add,
    add_all,
    producer,
    request,
    wait_until_closed,
    wait_until_open,
)
from tests.redis.node import RedisNode
from tests.redis.nodes import nodes_of
from tests.waiting import wait_for

node, database = stores.node, stores.database

_MOST: Final = 1 << 52
_LIMIT: Final = (1 << 63) - 1


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
def keeper(keeper_of_module: Keeper, desk: Desk) -> Iterator[Keeper]:
    """A keeper; all partitions are open, before the test and behind it."""
    _open(keeper_of_module, desk)
    keeper_of_module.query("DELETE FROM tallyboard.journal_rejected")
    yield keeper_of_module
    _open(keeper_of_module, desk)


def _open(keeper: Keeper, desk: Desk) -> None:
    """Drains until the worker writes to Redis: what it finds there may close partitions again."""

    def is_open() -> bool:
        keeper.drain()
        wait_until_open(desk)
        writes = [desk.write(add("warm", 1, partition=p)) for p in range(PARTITIONS)]
        return not any(write.journaled for write in writes)

    wait_for(is_open, "all partitions to be open")


def _close(keeper: Keeper, desk: Desk) -> None:
    keeper.close_all()
    wait_until_closed(desk)


def _name() -> str:
    return uuid.uuid4().hex


def _journal_many(desk: Desk, name: str, count: int = 400) -> int:
    """Rows in every partition, of one update each; gives what they add up to."""
    writes, stream = [], _name()
    for i in range(count):
        token = [None, request(), producer(i + 1, stream)][i % 3]
        writes.append(desk.write(add(name, i + 1, token, i % PARTITIONS)))
    assert {(write.error, write.journaled) for write in writes} == {(None, True)}
    return count * (count + 1) // 2


def test_an_empty_journal_just_opens(desk: Desk, keeper: Keeper) -> None:
    _close(keeper, desk)
    assert keeper.drain() == 0
    wait_until_open(desk)


def test_every_row_is_applied_once(desk: Desk, keeper: Keeper) -> None:
    name = _name()
    _close(keeper, desk)
    total = _journal_many(desk, name)
    keeper.drain()
    keeper.close_all()
    keeper.drain()
    assert (keeper.count(name), keeper.rejected()) == (total, [])


def test_rows_and_their_numbers_go_with_the_next_checkpoint(desk: Desk, keeper: Keeper) -> None:
    _close(keeper, desk)
    _journal_many(desk, _name(), 20)
    keeper.drain()
    before = keeper.rows()
    keeper.checkpointer.checkpoint_all()
    numbers = [keeper.redis.scard(keys.journaled_key(p)) for p in range(PARTITIONS)]
    noted = keeper.query(
        "SELECT (SELECT count(*) FROM tallyboard.journal_increments),"
        " (SELECT count(*) FROM tallyboard.journal_tokens)"
    )
    assert (before > 0, keeper.rows(), numbers, noted) == (True, 0, [0] * PARTITIONS, [(0, 0)])


def test_two_keepers_at_once_apply_every_row_once(desk: Desk, keeper: Keeper) -> None:
    name = _name()
    _close(keeper, desk)
    total = _journal_many(desk, name)
    with Keeper(desk.settings) as second:
        threads = [threading.Thread(target=_drain_all, args=(one,)) for one in (keeper, second)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    wait_until_open(desk)
    assert keeper.count(name) == total


def _drain_all(keeper: Keeper) -> None:
    with suppress(psycopg.errors.LockNotAvailable):
        keeper.drain()


def test_a_redis_that_dies_again_and_again_has_every_row_once(
    desk: Desk, keeper: Keeper, node: RedisNode
) -> None:
    name, total = _name(), 0
    for _ in range(3):
        _close(keeper, desk)
        total += _journal_many(desk, name, 200)
        over = threading.Event()
        thread = threading.Thread(target=_drain_until_over, args=(keeper, over))
        thread.start()
        wait_for(partial(_is_under_way, keeper, over), "a row")
        node.kill()
        node.start()
        thread.join(60)
        assert over.is_set()
        _open(keeper, desk)
    assert (keeper.count(name), keeper.rejected()) == (total, [])


def _is_under_way(keeper: Keeper, over: threading.Event) -> bool:
    return over.is_set() or bool(keeper.redis.exists(keys.journaled_key(0)))


def _drain_until_over(keeper: Keeper, over: threading.Event) -> None:
    def attempt() -> bool:
        with suppress(NotReady, TallyboardError):
            keeper.drain()
            return True
        return False

    wait_for(attempt, "the drain")
    over.set()


def test_a_stalled_redis_gets_every_row_once(desk: Desk, keeper: Keeper, node: RedisNode) -> None:
    """What was under way on the connection that was given up may be run late."""
    name = _name()
    _close(keeper, desk)
    total = _journal_many(desk, name, 200)
    node.pause()
    with pytest.raises(NotReady):
        keeper.drain()
    node.resume()
    keeper.drain()
    assert keeper.count(name) == total


def test_scripts_that_redis_forgets_come_back(desk: Desk, keeper: Keeper) -> None:
    name = _name()
    _close(keeper, desk)
    total = _journal_many(desk, name, 20)
    keeper.drain([0])
    keeper.redis.script_flush()
    over = threading.Event()
    _drain_until_over(keeper, over)
    assert keeper.count(name) == total


def test_a_full_redis_is_drained_when_it_has_room(desk: Desk, keeper: Keeper) -> None:
    name = _name()
    _close(keeper, desk)
    total = _journal_many(desk, name, 20)
    keeper.redis.config_set("maxmemory", 1)
    try:
        with pytest.raises(NotReady):
            keeper.drain()
    finally:
        keeper.redis.config_set("maxmemory", 0)
    keeper.drain()
    assert keeper.count(name) == total


def test_what_comes_while_it_is_drained_is_not_left_behind(desk: Desk, keeper: Keeper) -> None:
    """Writers never stop, and the partition opens all the same."""
    name, stop, acknowledged = _name(), threading.Event(), []

    def count() -> None:
        while not stop.is_set():
            if desk.write(add(name, 1)).error is None:
                acknowledged.append(1)

    _close(keeper, desk)
    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(5):
        seen = len(acknowledged)
        wait_for(lambda seen=seen: len(acknowledged) > seen + 20, "writes")  # type: ignore[misc]
        keeper.drain()
        keeper.close_all()
    stop.set()
    for thread in threads:
        thread.join(30)
    keeper.drain()
    assert keeper.count(name) == len(acknowledged)


def test_a_partition_that_can_not_be_drained_keeps_no_other_closed(
    desk: Desk, keeper: Keeper
) -> None:
    _close(keeper, desk)
    keeper.query(
        "INSERT INTO tallyboard.journal (partition, link, sequence, batch, updates)"
        " VALUES (1, 'from', 1, 'a later version', 1)"
    )
    restorer = Restorer(
        nodes_of(keeper.redis, PARTITIONS),
        keeper.pool,
        keeper.drainer,
        lambda lost: None,
        Fences({}),
        PARTITIONS,
        threading.Event(),
    )
    with pytest.raises(NotReady):
        restorer.work()
    found = keeper.query("SELECT partition FROM tallyboard.partitions WHERE state = %s", JOURNALING)
    keeper.query("DELETE FROM tallyboard.journal WHERE link = 'from'")
    assert found == [(1,)]


def _widen(desk: Desk, name: str) -> None:
    """A shard holds less than four times the largest delta."""
    for delta in (_MOST, _MOST, _MOST, 1 - _MOST, -_MOST, -_MOST):
        assert desk.write(add(name, delta)).error is None


def test_small_additions_to_a_wide_counter_are_applied_once(desk: Desk, keeper: Keeper) -> None:
    name, other = _name(), _name()
    _widen(desk, name)
    _close(keeper, desk)
    for partition in range(PARTITIONS):
        desk.write(add_all({name: 10, other: 1}, request(partition=partition), partition))
        desk.write(add_all({name: 100, other: 1}, None, partition))
    keeper.drain()
    keeper.close_all()
    keeper.drain()
    assert (keeper.count(name), keeper.count(other)) == (1 + PARTITIONS * 110, PARTITIONS * 2)


def test_a_counter_that_becomes_wide_in_the_journal_is_exact(desk: Desk, keeper: Keeper) -> None:
    name, other = _name(), _name()
    desk.write(add(name, 7))
    _close(keeper, desk)
    for _ in range(5):
        desk.write(add_all({name: _MOST, other: 1}), add(name, _MOST - 1, request()))
    keeper.drain()
    keeper.close_all()
    keeper.drain()
    assert (keeper.count(name), keeper.count(other)) == (7 + 5 * (2 * _MOST - 1), 5)


def test_additions_to_a_wide_counter_are_applied_once_though_redis_dies_in_between(
    desk: Desk, keeper: Keeper, node: RedisNode
) -> None:
    name, other = _name(), _name()
    _widen(desk, name)
    _close(keeper, desk)
    for i in range(60):
        desk.write(add_all({name: 1, other: 1}, producer(i + 1, name) if i % 2 else None))
    over = threading.Event()
    thread = threading.Thread(target=_drain_until_over, args=(keeper, over))
    thread.start()
    for after in (5, 20, 40):
        wait_for(lambda after=after: over.is_set() or _count(keeper, name) > after, "additions")  # type: ignore[misc]
        node.kill()
        node.start()
    thread.join(60)
    assert over.is_set()
    assert (keeper.count(name), keeper.count(other), keeper.rejected()) == (61, 60, [])


def _count(keeper: Keeper, name: str) -> int:
    with suppress(Exception):  # it may be down
        return keeper.count(name)
    return 0


def test_what_leaves_the_range_is_kept_for_people_and_the_rest_counts(
    desk: Desk, keeper: Keeper
) -> None:
    name, other = _name(), _name()
    _widen(desk, name)
    home = keys.home_partition(TENANT, name, PARTITIONS)
    keeper.redis.set(keys.wide_key(home, TENANT, name), _LIMIT - 10)
    _close(keeper, desk)
    desk.write(add_all({name: 100, other: 3}))
    desk.write(add(name, 10))
    keeper.drain()
    found = (keeper.count(name), keeper.count(other), set(keeper.rejected()))
    assert found == (_LIMIT, 3, {"COUNTER_OUT_OF_RANGE"})
    kept = keeper.query("SELECT batch FROM tallyboard.journal_rejected")
    assert all(name in text and "100" in text for (text,) in kept)
