"""The number of a checkpoint tells a Redis that has gone back, wherever it went back to."""

from importlib import resources
from typing import Any

import psycopg
import pytest
from redis import Redis

from tallyboard_server.checkpointer import Checkpointer, PartitionFenced
from tallyboard_server.redis.keys import (
    checkpoint_id_key,
    dirty_key,
    in_flight_key,
    incarnation_key,
    journaled_key,
    version_key,
)
from tests.postgres.support import put, rows


def _step(redis: Redis, what: str, limit: int = 5_000) -> Any:
    """One step of a checkpoint of partition 0 whose keeper dies behind it."""
    source = (resources.files("tallyboard_server.redis") / "lua" / "checkpoint.lua").read_text()
    keys = [key(0) for key in (dirty_key, in_flight_key, checkpoint_id_key, incarnation_key)]
    keys += [version_key(0), journaled_key(0)]
    incarnation = redis.execute_command("GET", incarnation_key(0))
    return redis.eval(source, len(keys), *keys, "dead", limit, incarnation, 0, what)


def _number_in_redis(redis: Redis) -> int:
    return int(redis.execute_command("GET", version_key(0)) or 0)


def _number_in_postgres(database: str) -> int:
    ((version,),) = rows(database, "SELECT version FROM tallyboard.partitions WHERE partition = 0")
    return int(version)


def test_both_stores_have_the_number_of_the_last_checkpoint(
    redis: Redis, checkpointer: Checkpointer, database: str
) -> None:
    for value in (1, 2, 3):
        put(redis, 0, {"post:42": value})
        checkpointer.checkpoint_all()
    assert (_number_in_redis(redis), _number_in_postgres(database)) == (3, 3)


def test_a_redis_that_went_back_into_the_middle_of_a_checkpoint_is_older(
    redis: Redis, checkpointer: Checkpointer, database: str
) -> None:
    put(redis, 0, {"a": 1, "b": 2, "c": 3})
    _step(redis, "first", limit=1)
    in_the_middle = _number_in_redis(redis)
    checkpointer.checkpoint_all()
    assert in_the_middle < _number_in_postgres(database)


def test_a_redis_that_went_back_to_a_checkpoint_that_was_never_committed_is_older(
    redis: Redis, checkpointer: Checkpointer, database: str
) -> None:
    put(redis, 0, {"a": 1})
    _step(redis, "first")
    uncommitted = _number_in_redis(redis)
    put(redis, 0, {"a": 2})
    checkpointer.checkpoint_all()
    assert uncommitted < _number_in_postgres(database)


def test_nothing_is_copied_from_a_redis_that_has_gone_back(
    redis: Redis, checkpointer: Checkpointer, database: str
) -> None:
    put(redis, 0, {"a": 1})
    checkpointer.checkpoint_all()
    redis.delete(version_key(0))
    put(redis, 0, {"a": 0})
    with pytest.raises(PartitionFenced):
        checkpointer.checkpoint_partition(0)
    assert rows(database, "SELECT value FROM tallyboard.counters") == [(1,)]


def test_rows_go_with_the_checkpoint_that_has_them(
    redis: Redis, checkpointer: Checkpointer, database: str
) -> None:
    with psycopg.connect(database, autocommit=True) as conn:
        conn.execute(
            "INSERT INTO tallyboard.journal (partition, link, sequence, batch, updates)"
            " VALUES (0, 'link', 1, '', 1), (0, 'link', 2, '', 1)"
        )
        first, second = (
            row[0] for row in conn.execute("SELECT journal_id FROM tallyboard.journal ORDER BY 1")
        )
    redis.sadd(journaled_key(0), first)
    checkpointer.checkpoint_all()
    left = rows(database, "SELECT journal_id FROM tallyboard.journal")
    assert (left, redis.smembers(journaled_key(0))) == ([(second,)], set())


def test_rows_stay_while_a_checkpoint_is_not_over(redis: Redis) -> None:
    put(redis, 0, {"a": 1, "b": 2})
    redis.sadd(journaled_key(0), 7)
    assert (_step(redis, "first", limit=1)[-1], _step(redis, "more", limit=1)[-1]) == ([], [b"7"])
