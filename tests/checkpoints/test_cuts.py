"""Checkpoints are cuts: what Postgres holds is one moment of Redis, with the journal's rows that
are not in it; whoever dies, whoever writes meanwhile, and whatever Redis loses.
"""

import itertools
import random
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Final

import psycopg
import pytest
from redis import Redis

from tallyboard_server.checkpointer import Checkpointer, PartitionFenced
from tallyboard_server.postgres.pool import BoundedPool, connect
from tallyboard_server.redis import scripts
from tallyboard_server.redis.keys import (
    dirty_key,
    in_flight_key,
    incarnation_key,
    version_key,
    window_keys,
)
from tests.checkpoints.keepers import (
    Died,
    Mortal,
    caller_of,
    die,
    running,
    version_in_postgres,
    version_in_redis,
)
from tests.checkpoints.scripts import forget, step, take
from tests.postgres.support import PARTITIONS, put, totals
from tests.redis.nodes import nodes_of

Pool = BoundedPool
_ROUNDS: Final = 6


def twins(redis: Redis, seed: int) -> Callable[[], None]:
    """Adds the same to both of two counters of partition 0 in one call, and to their sum."""
    dice, caller = random.Random(seed), caller_of(redis)

    def add() -> None:
        which, delta = dice.randrange(20), dice.randrange(1, 100)
        names = (f"left:{which}", f"right:{which}", "all")
        caller.call(scripts.ADD, dict.fromkeys(map(caller.shard, names), delta))

    return add


def assert_is_a_moment(found: Mapping[str, int | None]) -> None:
    """Fails unless these counters, which `twins` added to, are as they were at some moment."""
    counted = Counter({name: value for name, value in found.items() if value})
    for which in range(20):
        assert counted[f"left:{which}"] == counted[f"right:{which}"]
    assert counted["all"] == sum(counted[f"left:{which}"] for which in range(20))


@pytest.mark.parametrize("limit", [1, 3, 5_000])
def test_a_checkpoint_is_one_moment_of_redis(
    redis: Redis, checkpointer: Checkpointer, database: str, limit: int
) -> None:
    with running(twins(redis, 1), twins(redis, 2)):
        for _ in range(_ROUNDS):
            checkpointer.checkpoint_partition(0, limit=limit)
            assert_is_a_moment(totals(database))
    assert totals(database)


def test_two_checkpointers_at_once_make_one_moment_of_redis(
    redis: Redis, checkpointer: Checkpointer, database: str, pool: Pool
) -> None:
    """Each is looked at while the other may be at work."""
    other = Checkpointer(nodes_of(redis, PARTITIONS), pool, PARTITIONS)
    with running(
        twins(redis, 1),
        lambda: other.checkpoint_partition(0, limit=2),
        lambda: other.checkpoint_all(),
    ):
        for _ in range(_ROUNDS):
            checkpointer.checkpoint_partition(0, limit=1)
            assert_is_a_moment(totals(database))
    checkpointer.checkpoint_all()
    assert totals(database) == values_in(redis)


def values_in(redis: Redis, partition: int = 0) -> dict[str, int]:
    """Counters whose shard is in this partition of Redis."""
    prefix = caller_of(redis, partition).shard("")
    found = list(redis.scan_iter(match=f"{prefix}*", count=1_000))
    return {key.decode().removeprefix(prefix): int(redis.get(key) or 0) for key in found}


def test_a_partition_that_changes_as_fast_as_it_is_copied_still_ends(
    redis: Redis, mortal: Mortal
) -> None:
    steps = itertools.count(1)

    def change() -> None:
        assert next(steps) < 50, "it never ends"
        put(redis, 0, {f"post:{i}": 1 for i in range(8)})

    mortal.between = change
    put(redis, 0, {f"post:{i}": 1 for i in range(3)})
    assert mortal.checkpoint_partition(0, limit=1).counters >= 8


@pytest.mark.parametrize("moment", ["between", "before_commit", "after_commit"])
def test_a_checkpoint_that_died_loses_nothing(
    redis: Redis, mortal: Mortal, checkpointer: Checkpointer, database: str, moment: str
) -> None:
    put(redis, 0, {f"post:{i}": i for i in range(5)})
    setattr(mortal, moment, die)
    with pytest.raises(Died):
        mortal.checkpoint_partition(0, limit=2)
    put(redis, 0, {"post:1": 100, "post:9": 9})
    checkpointer.checkpoint_all()
    expected = {f"post:{i}": i for i in range(5)} | {"post:1": 100, "post:9": 9}
    assert totals(database) == expected


@pytest.mark.parametrize("moment", ["between", "before_commit"])
def test_a_checkpoint_that_died_before_its_commit_copies_nothing(
    redis: Redis, mortal: Mortal, database: str, moment: str
) -> None:
    put(redis, 0, {f"post:{i}": i for i in range(5)})
    setattr(mortal, moment, die)
    with pytest.raises(Died):
        mortal.checkpoint_partition(0, limit=2)
    assert (totals(database), version_in_postgres(database)) == ({}, 0)


def test_the_next_checkpoint_leaves_nothing_in_flight(
    redis: Redis, mortal: Mortal, checkpointer: Checkpointer
) -> None:
    put(redis, 0, {f"post:{i}": i for i in range(5)})
    mortal.between = die
    with pytest.raises(Died):
        mortal.checkpoint_partition(0, limit=2)
    checkpointer.checkpoint_partition(0)
    assert redis.exists(dirty_key(0), in_flight_key(0)) == 0


def test_what_a_dead_checkpoint_took_is_taken_again(redis: Redis) -> None:
    put(redis, 0, {f"post:{i}": i for i in range(5)})
    first = take(redis, 0, limit=2)
    second = take(redis, 0, checkpoint="next")
    assert (len(first.keys), first.left, len(second.keys), second.left) == (2, 3, 5, 0)


def put_entries(redis: Redis, window: str, members: list[str]) -> bytes:
    """Makes a window with changed entries in partition 0; gives the key of its entries."""
    names = window_keys(0, "0123456789abcdef", window)
    redis.hset(names.entries, mapping={"": "o", **{member: f"of {member}" for member in members}})
    redis.sadd(names.dirty, *members)
    redis.sadd(dirty_key(0), names.entries)
    return names.entries.encode()


def test_members_that_a_dead_checkpoint_took_are_taken_again(redis: Redis) -> None:
    key = put_entries(redis, "all", ["ann", "bob", "cleo", "dan"])
    ((_, members, _),) = take(redis, 0, limit=3).entries
    assert len(members) == 3
    redis.sadd(window_keys(0, "0123456789abcdef", "all").dirty, members[0])  # changed since
    ((found, members, records),) = take(redis, 0, checkpoint="next").entries
    taken = dict(zip(members, records, strict=True))
    assert (found, taken) == (key, {m: b"of " + m for m in (b"ann", b"bob", b"cleo", b"dan")})


def test_members_of_several_windows_go_back(redis: Redis) -> None:
    expected = {put_entries(redis, window, ["ann", "bob"]): 2 for window in ("all", "2026-11-23")}
    take(redis, 0, limit=3)
    entries = take(redis, 0, checkpoint="next").entries
    assert {key: len(members) for key, members, _ in entries} == expected


def test_members_are_forgotten_with_their_checkpoint(redis: Redis) -> None:
    put_entries(redis, "all", ["ann", "bob"])
    take(redis, 0)
    forget(redis, 0, "dead")
    assert redis.exists(window_keys(0, "0123456789abcdef", "all").in_flight, in_flight_key(0)) == 0


def test_a_step_of_a_checkpoint_that_another_one_followed_takes_nothing(redis: Redis) -> None:
    put(redis, 0, {f"post:{i}": i for i in range(5)})
    take(redis, 0, limit=2, checkpoint="slow")
    take(redis, 0, limit=2, checkpoint="quick")
    assert step(redis, 0, checkpoint="slow", what="more") == [b"taken"]
    assert redis.scard(dirty_key(0)) == 3


def test_a_slow_checkpoint_is_not_committed_when_another_one_followed(
    redis: Redis, mortal: Mortal, database: str
) -> None:
    """Its lock was lost with its connection, say."""
    mortal.between = lambda: take(redis, 0, checkpoint="quick")
    put(redis, 0, {f"post:{i}": i for i in range(5)})
    with pytest.raises(psycopg.errors.LockNotAvailable):
        mortal.checkpoint_partition(0, limit=2)
    assert totals(database) == {}


def test_both_stores_have_the_number_of_a_checkpoint(
    redis: Redis, checkpointer: Checkpointer, database: str
) -> None:
    for number in (1, 2, 3):
        put(redis, 0, {"post:42": number})
        checkpointer.checkpoint_all()
        assert (version_in_redis(redis), version_in_postgres(database)) == (number, number)


def test_the_number_comes_with_the_cut(redis: Redis, mortal: Mortal, database: str) -> None:
    """A Redis that is set back to a moment before it is older than the checkpoint."""
    before: list[int] = []
    mortal.between = lambda: before.append(version_in_redis(redis))
    put(redis, 0, {f"post:{i}": i for i in range(3)})
    mortal.checkpoint_partition(0, limit=1)
    assert before
    assert max(before) < version_in_postgres(database)


def test_a_checkpoint_that_was_never_committed_uses_its_number_up(
    redis: Redis, mortal: Mortal, database: str
) -> None:
    """A Redis that is set back to that moment lacks what the next one has."""
    put(redis, 0, {"post:42": 5})
    mortal.before_commit = die
    with pytest.raises(Died):
        mortal.checkpoint_partition(0)
    taken = version_in_redis(redis)
    mortal.before_commit = lambda: None
    mortal.checkpoint_partition(0)
    assert taken < version_in_postgres(database) == version_in_redis(redis)


@pytest.fixture
def older(redis: Redis, checkpointer: Checkpointer, database: str) -> Redis:
    """A Redis whose partition 0 has gone back to before its last checkpoint, and counted since."""
    put(redis, 0, {"post:42": 5})
    checkpointer.checkpoint_all()
    redis.set(version_key(0), version_in_postgres(database) - 1)
    put(redis, 0, {"post:42": 3})
    put(redis, 1, {"post:43": 1})
    return redis


def test_an_older_redis_is_not_copied(
    older: Redis, checkpointer: Checkpointer, database: str
) -> None:
    result = checkpointer.checkpoint_all()
    assert (result.older, totals(database)) == ((0,), {"post:42": 5, "post:43": 1})


def test_nothing_is_taken_from_an_older_redis(older: Redis, checkpointer: Checkpointer) -> None:
    checkpointer.checkpoint_all()
    assert (older.scard(dirty_key(0)), older.exists(in_flight_key(0))) == (1, 0)


def test_an_older_redis_stays_older(
    older: Redis, checkpointer: Checkpointer, database: str
) -> None:
    for _ in range(3):
        checkpointer.checkpoint_all()
    assert version_in_redis(older) < version_in_postgres(database)


def test_a_checkpoint_of_an_older_partition_is_refused(
    older: Redis, checkpointer: Checkpointer
) -> None:
    with pytest.raises(PartitionFenced):
        checkpointer.checkpoint_partition(0)


def empty(redis: Redis) -> None:
    """Redis loses everything."""
    redis.flushdb()


def renew(redis: Redis) -> None:
    """Redis has another life of partition 0."""
    redis.set(incarnation_key(0), "another")


def set_back(redis: Redis) -> None:
    """Redis has an earlier state of partition 0."""
    redis.set(version_key(0), 0)


@pytest.mark.parametrize("lose", [empty, renew, set_back])
def test_a_partition_that_redis_loses_midway_is_not_copied_in_part(
    redis: Redis, mortal: Mortal, database: str, lose: Callable[[Redis], None]
) -> None:
    """A part of it may have effects of rows of the journal that stay."""
    put(redis, 0, {"post:0": 1})
    mortal.checkpoint_partition(0)
    put(redis, 0, {f"post:{i}": 5 for i in range(5)})
    mortal.between = lambda: lose(redis)
    with pytest.raises(PartitionFenced):
        mortal.checkpoint_partition(0, limit=2)
    assert totals(database) == {"post:0": 1}


@pytest.mark.parametrize("lose", [empty, renew, set_back])
def test_a_partition_that_redis_loses_midway_is_left_for_later(
    redis: Redis,
    mortal: Mortal,
    database: str,
    lose: Callable[[Redis], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tallyboard_server.checkpointer.STEP", 2)
    put(redis, 0, {"post:0": 1})
    mortal.checkpoint_partition(0)
    put(redis, 0, {f"post:{i}": 5 for i in range(5)})
    mortal.between = lambda: lose(redis)
    assert mortal.checkpoint_all().unfinished == (0,)
    assert totals(database) == {"post:0": 1}


def test_the_last_checkpoint_of_a_marked_partition(
    redis: Redis, checkpointer: Checkpointer, database: str
) -> None:
    put(redis, 0, {"post:42": 5})
    redis.set(incarnation_key(0), "-mark")
    with connect(database) as conn:
        conn.commit()
        assert checkpointer.checkpoint_fenced(conn, 0, "-mark").counters == 1
    assert (totals(database), redis.exists(in_flight_key(0))) == ({"post:42": 5}, 0)


def test_a_last_checkpoint_needs_its_mark(
    redis: Redis, checkpointer: Checkpointer, database: str
) -> None:
    put(redis, 0, {"post:42": 5})
    with connect(database) as conn:
        conn.commit()
        with pytest.raises(PartitionFenced):
            checkpointer.checkpoint_fenced(conn, 0, "-mark")
    assert totals(database) == {}
