"""Checkpoints: Postgres follows Redis, whoever dies, whoever else is at it."""

import random
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from redis import Redis

from tallyboard_server.checkpointer import Checkpointer, PartitionFenced
from tallyboard_server.embedded import EmbeddedRedis
from tallyboard_server.postgres.locks import lock_for_transaction
from tallyboard_server.postgres.partitions import partition_states
from tallyboard_server.postgres.pool import BoundedPool, connect, open_pool
from tallyboard_server.redis.keys import (
    checkpoint_id_key,
    dirty_key,
    in_flight_key,
    incarnation_key,
    shard_key,
    wide_key,
)
from tallyboard_server.redis.nodes import control_client
from tallyboard_server.stores import open_stores
from tests.checkpoints.scripts import forget, step, take
from tests.postgres.support import (
    PARTITIONS,
    RedisOfVersion,
    put,
    rows,
    settings_for,
    totals,
)
from tests.redis.nodes import nodes_of

Pool = BoundedPool


def test_a_total_is_the_sum_of_its_shards(
    redis: Redis, checkpointer: Checkpointer, database: str
) -> None:
    put(redis, 0, {"post:42": 5})
    put(redis, 3, {"post:42": -7})
    checkpointer.checkpoint_all()
    assert totals(database) == {"post:42": -2}


def test_follows_changes(redis: Redis, checkpointer: Checkpointer, database: str) -> None:
    put(redis, 0, {"post:42": 5})
    checkpointer.checkpoint_all()
    put(redis, 0, {"post:42": 12})
    checkpointer.checkpoint_all()
    assert totals(database) == {"post:42": 12}


def test_a_reset_counter_is_kept_with_zero(
    redis: Redis, checkpointer: Checkpointer, database: str
) -> None:
    put(redis, 0, {"post:42": 5})
    checkpointer.checkpoint_all()
    put(redis, 0, {"post:42": 0})
    checkpointer.checkpoint_all()
    assert totals(database) == {"post:42": 0}


def test_a_deleted_counter_goes(redis: Redis, checkpointer: Checkpointer, database: str) -> None:
    put(redis, 0, {"post:42": 5, "post:43": 1})
    checkpointer.checkpoint_all()
    put(redis, 0, {"post:42": None})
    checkpointer.checkpoint_all()
    assert totals(database) == {"post:43": 1}


def test_a_counter_stays_until_its_last_shard_goes(
    redis: Redis, checkpointer: Checkpointer, database: str
) -> None:
    put(redis, 0, {"post:42": 5})
    put(redis, 1, {"post:42": 3})
    checkpointer.checkpoint_all()
    put(redis, 0, {"post:42": None})
    checkpointer.checkpoint_all()
    assert totals(database) == {"post:42": 3}


def test_a_counter_deleted_before_its_first_checkpoint_leaves_nothing(
    redis: Redis, checkpointer: Checkpointer, database: str
) -> None:
    put(redis, 0, {"post:42": None})
    checkpointer.checkpoint_all()
    assert rows(database, "SELECT * FROM tallyboard.counter_shards") == []


def put_wide(redis: Redis, partition: int, value: int | str) -> None:
    redis.set(wide_key(partition, "acme", "post:42"), value)
    redis.sadd(dirty_key(partition), wide_key(partition, "acme", "post:42"))


def test_frozen_shards_count_until_there_is_a_wide_value(
    redis: Redis, checkpointer: Checkpointer, database: str
) -> None:
    put(redis, 0, {"post:42": "w5"})
    put(redis, 1, {"post:42": 6})
    checkpointer.checkpoint_all()
    assert totals(database) == {"post:42": 11}


def test_a_wide_value_is_the_total(redis: Redis, checkpointer: Checkpointer, database: str) -> None:
    put(redis, 0, {"post:42": "w5"})
    put(redis, 1, {"post:42": "w6"})
    put_wide(redis, 0, 2**63 - 1)
    checkpointer.checkpoint_all()
    assert totals(database) == {"post:42": 2**63 - 1}


def test_a_wide_value_of_a_later_checkpoint_takes_over(
    redis: Redis, checkpointer: Checkpointer, database: str
) -> None:
    put(redis, 1, {"post:42": "w6"})
    checkpointer.checkpoint_all()
    put_wide(redis, 0, -(2**63))
    checkpointer.checkpoint_all()
    assert totals(database) == {"post:42": -(2**63)}


def test_a_deleted_wide_counter_has_no_total(
    redis: Redis, checkpointer: Checkpointer, database: str
) -> None:
    put(redis, 1, {"post:42": "w6"})
    put_wide(redis, 0, 6)
    checkpointer.checkpoint_all()
    put_wide(redis, 0, "x")
    checkpointer.checkpoint_all()
    assert totals(database) == {"post:42": None}


def test_a_deleted_wide_counter_comes_back(
    redis: Redis, checkpointer: Checkpointer, database: str
) -> None:
    put(redis, 1, {"post:42": "w6"})
    put_wide(redis, 0, "x")
    checkpointer.checkpoint_all()
    put_wide(redis, 0, 3)
    checkpointer.checkpoint_all()
    assert totals(database) == {"post:42": 3}


def test_any_name_survives(redis: Redis, checkpointer: Checkpointer, database: str) -> None:
    names = [
        "a:b",
        "{tb:1}:d",
        "ä\u2028",
        "%s %(x)s",
        "\\x00",
        "'; --",
        '"{}",',
        "NULL",
        " ",
        "é" * 128,
    ]
    put(redis, 0, {name: i for i, name in enumerate(names)})
    checkpointer.checkpoint_all()
    assert totals(database) == {name: i for i, name in enumerate(names)}


def test_many_steps_copy_everything(
    redis: Redis, checkpointer: Checkpointer, database: str
) -> None:
    expected: dict[str, int | str | None] = {f"post:{i}": i for i in range(107)}
    put(redis, 2, expected)
    assert checkpointer.checkpoint_partition(2, limit=10).counters == 107
    assert totals(database) == expected


def test_random_changes_end_in_the_same_totals(
    redis: Redis, checkpointer: Checkpointer, database: str
) -> None:
    dice = random.Random(7)
    held: dict[tuple[int, str], int] = {}
    for _ in range(12):
        for _ in range(40):
            place = dice.randrange(PARTITIONS), f"post:{dice.randrange(30)}"
            value = dice.choice([None, dice.randrange(-(2**53), 2**53)])
            put(redis, place[0], {place[1]: value})
            held.pop(place, None)
            if value is not None:
                held[place] = value
        checkpointer.checkpoint_all()
    expected: dict[str, int] = {}
    for (_, counter), value in held.items():
        expected[counter] = expected.get(counter, 0) + value
    assert totals(database) == expected


def test_an_unreadable_key_does_not_stop_the_others(
    redis: Redis, checkpointer: Checkpointer, database: str
) -> None:
    put(redis, 0, {"good": 1, "bad": "12x"})
    redis.sadd(dirty_key(0), "nonsense")
    checkpointer.checkpoint_all()
    assert totals(database) == {"good": 1}


def test_nothing_stays_dirty_or_in_flight(redis: Redis, checkpointer: Checkpointer) -> None:
    put(redis, 0, {"post:42": 5})
    checkpointer.checkpoint_all()
    keys = (dirty_key(0), in_flight_key(0), checkpoint_id_key(0))
    assert redis.execute_command("EXISTS", *keys) == 0


def test_counts_what_it_copied(redis: Redis, checkpointer: Checkpointer) -> None:
    put(redis, 0, {"post:42": 5, "post:43": 1})
    put(redis, 2, {"post:42": 1})
    result = checkpointer.checkpoint_all()
    assert (result.counters, result.partitions) == (3, 2)


def test_a_second_checkpoint_copies_nothing(redis: Redis, checkpointer: Checkpointer) -> None:
    put(redis, 0, {"post:42": 5})
    checkpointer.checkpoint_all()
    assert checkpointer.checkpoint_all().counters == 0


def test_every_partition_is_up_to_date_afterwards(
    redis: Redis, checkpointer: Checkpointer, pool: Pool
) -> None:
    before = max(row.checkpointed_at for row in partition_states(pool))
    put(redis, 0, {"post:42": 5})
    checkpointer.checkpoint_all()
    assert all(row.checkpointed_at > before for row in partition_states(pool))


def test_a_checkpoint_that_ran_out_of_time_says_what_is_left(
    redis: Redis, checkpointer: Checkpointer
) -> None:
    put(redis, 1, {"post:42": 5})
    assert checkpointer.checkpoint_all(deadline=0.0).unfinished == (1,)


def test_a_keeper_that_died_after_taking_loses_nothing(
    redis: Redis, checkpointer: Checkpointer, database: str
) -> None:
    put(redis, 0, {"post:42": 5})
    take(redis, 0)
    checkpointer.checkpoint_all()
    assert totals(database) == {"post:42": 5}


def test_a_key_that_changed_after_a_dead_keeper_took_it_is_copied_once_more(
    redis: Redis, checkpointer: Checkpointer, database: str
) -> None:
    put(redis, 0, {"post:42": 5})
    take(redis, 0)
    put(redis, 0, {"post:42": 6})
    checkpointer.checkpoint_all()
    assert totals(database) == {"post:42": 6}


def test_a_keeper_that_died_after_committing_does_no_harm(
    redis: Redis, checkpointer: Checkpointer, database: str
) -> None:
    put(redis, 0, {"post:42": 5})
    checkpointer.checkpoint_all()
    put(redis, 0, {"post:42": 5})
    take(redis, 0)
    checkpointer.checkpoint_all()
    assert totals(database) == {"post:42": 5}


def test_a_failed_transaction_leaves_the_keys_for_the_next(
    redis: Redis, checkpointer: Checkpointer, database: str
) -> None:
    put(redis, 0, {"post:42": 5})
    with connect(database) as conn:
        conn.execute("ALTER TABLE tallyboard.counters RENAME TO elsewhere")
    with pytest.raises(psycopg.errors.UndefinedTable):
        checkpointer.checkpoint_all()
    with connect(database) as conn:
        conn.execute("ALTER TABLE tallyboard.elsewhere RENAME TO counters")
    checkpointer.checkpoint_all()
    assert totals(database) == {"post:42": 5}


def test_a_slow_keeper_does_not_drop_what_another_took_over(redis: Redis) -> None:
    put(redis, 0, {"post:42": 5})
    take(redis, 0, checkpoint="slow")
    take(redis, 0, checkpoint="quick")
    assert (forget(redis, 0, "slow"), redis.scard(in_flight_key(0))) == (0, 1)


def test_no_more_than_the_limit_is_in_flight(redis: Redis) -> None:
    put(redis, 0, {f"post:{i}": i for i in range(10)})
    take(redis, 0, limit=4, checkpoint="first")
    assert len(take(redis, 0, limit=6, checkpoint="second").keys) == 6


def test_two_checkpointers_at_once_agree(
    redis: Redis, checkpointer: Checkpointer, database: str
) -> None:
    """Eight rounds of changes to shared counters while two threads checkpoint all the time."""
    done, errors = threading.Event(), []

    def keep() -> None:
        with open_pool(database) as pool:
            other = Checkpointer(nodes_of(redis, PARTITIONS), pool, PARTITIONS)
            while not done.is_set():
                try:
                    other.checkpoint_all()
                except Exception as error:  # whatever it is, the test has to show it
                    errors.append(error)
                    return

    threads = [threading.Thread(target=keep) for _ in range(2)]
    for thread in threads:
        thread.start()
    for change in range(1, 9):
        for partition in range(PARTITIONS):
            put(redis, partition, {f"post:{i}": change * i for i in range(300)})
    done.set()
    for thread in threads:
        thread.join()
    checkpointer.checkpoint_all()
    assert (errors, totals(database)) == ([], {f"post:{i}": 32 * i for i in range(300)})


def test_a_partition_that_somebody_holds_is_left(
    redis: Redis,
    checkpointer: Checkpointer,
    database: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tallyboard_server.checkpointer.LOCK_WAIT", 0.1)
    put(redis, 1, {"post:42": 5})
    put(redis, 2, {"post:43": 6})
    with connect(database) as holder:
        lock_for_transaction(holder, 1, 1.0)
        assert checkpointer.checkpoint_all().unfinished == (1,)


def test_a_held_partition_does_not_keep_the_others(
    redis: Redis,
    checkpointer: Checkpointer,
    database: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tallyboard_server.checkpointer.LOCK_WAIT", 0.1)
    put(redis, 1, {"post:42": 5})
    put(redis, 2, {"post:43": 6})
    with connect(database) as holder:
        lock_for_transaction(holder, 1, 1.0)
        checkpointer.checkpoint_all()
    assert totals(database) == {"post:43": 6}


def test_waits_for_whoever_holds_a_partition(
    redis: Redis, checkpointer: Checkpointer, database: str
) -> None:
    put(redis, 1, {"post:42": 5})
    with connect(database) as holder:
        lock_for_transaction(holder, 1, 1.0)
        release = threading.Timer(0.3, holder.commit)
        release.start()
        checkpointer.checkpoint_all()
        release.join()
    assert totals(database) == {"post:42": 5}


def test_small_groups_copy_everything(
    redis: Redis, checkpointer: Checkpointer, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tallyboard_server.checkpointer.GROUP_KEYS", 25)
    monkeypatch.setattr("tallyboard_server.checkpointer.STEP", 10)
    for partition in range(PARTITIONS):
        put(redis, partition, {f"post:{i}": i for i in range(15)})
    checkpointer.checkpoint_all()
    assert totals(database) == {f"post:{i}": PARTITIONS * i for i in range(15)}


def test_another_life_of_a_partition_is_not_copied(
    redis: Redis, checkpointer: Checkpointer
) -> None:
    put(redis, 1, {"post:42": 5})
    redis.set(incarnation_key(1), uuid.uuid4().hex)
    with pytest.raises(PartitionFenced):
        checkpointer.checkpoint_partition(1)


def test_an_emptied_redis_does_not_empty_postgres(
    redis: Redis, checkpointer: Checkpointer, database: str
) -> None:
    put(redis, 1, {"post:42": 5})
    checkpointer.checkpoint_all()
    redis.flushdb()
    checkpointer.checkpoint_all()
    assert totals(database) == {"post:42": 5}


def test_an_emptied_redis_is_reported(redis: Redis, checkpointer: Checkpointer) -> None:
    redis.flushdb()
    assert checkpointer.checkpoint_all().fenced == tuple(range(PARTITIONS))


def test_an_emptied_redis_is_not_called_up_to_date(
    redis: Redis, checkpointer: Checkpointer, pool: Pool
) -> None:
    before = partition_states(pool)
    redis.flushdb()
    checkpointer.checkpoint_all()
    assert partition_states(pool) == before


@pytest.fixture(params=["6.2", "7", "8"])
def versioned_redis(request: pytest.FixtureRequest, short_folder: Path) -> Iterator[EmbeddedRedis]:
    with RedisOfVersion(short_folder, request.param) as server:
        client = control_client(server.url)
        client.set(incarnation_key(0), "life")
        client.close()
        yield server


@pytest.fixture
def versioned(versioned_redis: EmbeddedRedis) -> Iterator[Redis]:
    client = control_client(versioned_redis.url)
    yield client
    client.close()


def test_the_script_answers_values_and_gaps(versioned: Redis) -> None:
    put(versioned, 0, {"a": 1, "b": None, "c": "w3"})
    taken = take(versioned, 0)
    found = dict(zip(taken.keys, taken.values, strict=True))
    expected = {"a": b"1", "b": None, "c": b"w3"}
    assert found == {shard_key(0, "acme", k).encode(): v for k, v in expected.items()}


def test_the_script_takes_20000_keys_at_once(versioned: Redis) -> None:
    put(versioned, 0, {f"post:{i}": i for i in range(20_000)})
    assert len(take(versioned, 0, limit=20_000).keys) == 20_000


def test_the_script_refuses_another_life(versioned: Redis) -> None:
    put(versioned, 0, {"a": 1})
    versioned.delete(incarnation_key(0))
    assert step(versioned, 0, incarnation="life") == [b"fenced", b""]


def test_a_full_redis_can_be_checkpointed(versioned: Redis) -> None:
    put(versioned, 0, {f"post:{i}": i for i in range(100)})
    versioned.config_set("maxmemory", 1)
    assert len(take(versioned, 0).keys) == 100


def test_a_redis_killed_between_the_scripts_still_has_the_keys_in_flight(
    versioned: Redis, versioned_redis: EmbeddedRedis
) -> None:
    put(versioned, 0, {"a": 1, "b": 2})
    take(versioned, 0, limit=1)
    versioned_redis.kill()
    versioned_redis.start()
    assert len(take(versioned, 0, checkpoint="next").keys) == 2


def test_redis_killed_over_and_over_loses_no_checkpoint(
    short_folder: Path, database: str, pool: Pool
) -> None:
    with RedisOfVersion(short_folder, "6.2") as server:
        open_stores(settings_for(server.url, database))
        redis = control_client(server.url)
        checkpointer = Checkpointer(nodes_of(redis, PARTITIONS), pool, PARTITIONS)
        for change in range(1, 5):
            put(redis, change % PARTITIONS, {f"post:{change}": change})
            take(redis, change % PARTITIONS)
            server.kill()
            server.start()
            checkpointer.checkpoint_all()
        redis.close()
    assert totals(database) == {f"post:{change}": change for change in range(1, 5)}
