"""What a Redis can promise: by its settings, its version, and what it lets us ask."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis

from tallyboard_server.redis.durability import choose_durability, missing_replicas
from tallyboard_server.redis.nodes import control_client
from tallyboard_server.startup import StartupError
from tests.postgres.support import RedisOfVersion
from tests.redis.node import RedisNode
from tests.waiting import wait_for


@pytest.fixture(params=["6.2"])
def redis(request: pytest.FixtureRequest, short_folder: Path) -> Iterator[Redis]:
    with RedisOfVersion(short_folder, request.param) as server:
        client = control_client(server.url)
        yield client
        client.close()


newest = pytest.mark.parametrize("redis", ["8"], indirect=True)


@pytest.mark.parametrize(
    ("durability", "mode"),
    [("applied", "applied"), ("fsynced", "always"), ("replicated:2", "wait:2")],
)
def test_modes_of_a_redis_that_always_syncs(redis: Redis, durability: str, mode: str) -> None:
    assert choose_durability(redis, durability) == mode


def test_an_old_redis_that_syncs_each_second_is_refused(redis: Redis) -> None:
    redis.config_set("appendfsync", "everysec")
    with pytest.raises(StartupError, match=r"from Redis 6\.2.* while appendfsync is everysec"):
        choose_durability(redis, "fsynced")


@newest
def test_a_new_redis_that_syncs_each_second_is_waited_for(redis: Redis) -> None:
    redis.config_set("appendfsync", "everysec")
    assert choose_durability(redis, "fsynced") == "waitaof"


def test_a_redis_that_never_syncs_is_refused(redis: Redis) -> None:
    redis.config_set("appendfsync", "no")
    with pytest.raises(StartupError, match="appendfsync is no"):
        choose_durability(redis, "fsynced")


def test_a_redis_without_a_file_is_refused(redis: Redis) -> None:
    redis.config_set("appendonly", "no")
    with pytest.raises(StartupError, match="set appendonly yes"):
        choose_durability(redis, "fsynced")


def test_a_redis_without_a_file_will_do_for_applied(redis: Redis) -> None:
    redis.config_set("appendonly", "no")
    assert choose_durability(redis, "applied") == "applied"


def test_a_redis_that_evicts_is_refused(redis: Redis) -> None:
    redis.config_set("maxmemory-policy", "allkeys-lru")
    with pytest.raises(StartupError, match="maxmemory-policy allkeys-lru"):
        choose_durability(redis, "applied")


def test_a_redis_that_hides_its_settings_is_not_trusted(redis: Redis) -> None:
    redis.execute_command("ACL", "SETUSER", "default", "-config")
    with pytest.raises(StartupError, match="CONFIG GET appendfsync is not allowed"):
        choose_durability(redis, "fsynced")


def test_replicas_that_are_missing_are_named(redis: Redis) -> None:
    said = missing_replicas(redis, "replicated:2")
    assert said is not None
    assert "waits for 2 replicas of Redis, and 0 are connected" in said


@pytest.mark.parametrize("durability", ["applied", "fsynced", "journaled"])
def test_who_waits_for_no_replicas_misses_none(redis: Redis, durability: str) -> None:
    assert missing_replicas(redis, durability) is None


def test_replicas_that_are_there_are_not_missed(short_folder: Path) -> None:
    folders = [short_folder / name for name in ("primary", "replica")]
    for folder in folders:
        folder.mkdir()
    with RedisNode(folders[0]) as primary, RedisNode(folders[1]) as replica:
        replica.command("REPLICAOF", "127.0.0.1", str(primary.port))
        client = primary.client()
        wait_for(lambda: missing_replicas(client, "replicated:1") is None, "the replica")
        assert missing_replicas(client, "replicated:2") is not None
        client.close()
