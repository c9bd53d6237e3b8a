"""The number of a checkpoint tells a Redis that has gone back, wherever it went back to."""

import psycopg
import pytest
from redis import Redis

from tallyboard_server.checkpointer import Checkpointer, PartitionFenced
from tallyboard_server.redis.keys import (
    journaled_key,
    version_key,
)
from tests.checkpoints.keepers import version_in_postgres, version_in_redis
from tests.checkpoints.scripts import step
from tests.postgres.support import put, rows


def test_both_stores_have_the_number_of_the_last_checkpoint(
    redis: Redis, checkpointer: Checkpointer, database: str
) -> None:
    for value in (1, 2, 3):
        put(redis, 0, {"post:42": value})
        checkpointer.checkpoint_all()
    assert (version_in_redis(redis), version_in_postgres(database)) == (3, 3)


def test_a_redis_that_went_back_into_the_middle_of_a_checkpoint_is_older(
    redis: Redis, checkpointer: Checkpointer, database: str
) -> None:
    put(redis, 0, {"a": 1, "b": 2, "c": 3})
    step(redis, 0, limit=1)
    in_the_middle = version_in_redis(redis)
    checkpointer.checkpoint_all()
    assert in_the_middle < version_in_postgres(database)


def test_a_redis_that_went_back_to_a_checkpoint_that_was_never_committed_is_older(
    redis: Redis, checkpointer: Checkpointer, database: str
) -> None:
    put(redis, 0, {"a": 1})
    step(redis, 0)
    uncommitted = version_in_redis(redis)
    put(redis, 0, {"a": 2})
    checkpointer.checkpoint_all()
    assert uncommitted < version_in_postgres(database)


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
    assert (step(redis, 0, limit=1)[-1], step(redis, 0, limit=1, what="more")[-1]) == ([], [b"7"])
