"""The keeper: checkpoints by itself, through outages, and once more at its end."""

import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from redis import Redis
from structlog.testing import capture_logs

from tallyboard_server.embedded import EmbeddedPostgres, EmbeddedRedis
from tallyboard_server.keeper import Keeper
from tallyboard_server.postgres.pool import open_pool
from tallyboard_server.redis.nodes import control_client
from tallyboard_server.settings import Settings
from tallyboard_server.stores import open_stores
from tests.postgres.support import put, settings_for, totals
from tests.redis.nodes import nodes_of
from tests.waiting import wait_for

_PROGRAM = """
import sys
from tallyboard_server.keeper import main
from tallyboard_server.settings import Settings
sys.exit(main(Settings.from_json(sys.argv[1]), int(sys.argv[2])))
"""


@pytest.fixture
def own_postgres(short_folder: Path) -> Iterator[EmbeddedPostgres]:
    with EmbeddedPostgres(short_folder) as server:
        yield server


@pytest.fixture
def own_redis(short_folder: Path) -> Iterator[EmbeddedRedis]:
    with EmbeddedRedis(short_folder) as server:
        yield server


@pytest.fixture
def redis(own_redis: EmbeddedRedis) -> Iterator[Redis]:
    client = control_client(own_redis.url)
    yield client
    client.close()


def start_keeper(settings: Settings) -> "subprocess.Popen[bytes]":
    """A keeper process that says it is ready."""
    reading, writing = os.pipe()
    command = [sys.executable, "-c", _PROGRAM, settings.to_json(), str(writing)]
    process = subprocess.Popen(command, pass_fds=[writing])
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        assert select.select([pipe], [], [], 20)[0], "the keeper didn't become ready"
        assert pipe.readline() == b"ready\n"
    return process


def end(process: "subprocess.Popen[bytes]") -> int:
    process.send_signal(signal.SIGTERM)
    return process.wait(20)


def test_checkpoints_at_its_interval(own_redis: EmbeddedRedis, redis: Redis, database: str) -> None:
    settings = settings_for(own_redis.url, database, checkpoint_interval=0.1)
    open_stores(settings)
    keeper = start_keeper(settings)
    try:
        put(redis, 0, {"post:42": 1})
        wait_for(lambda: totals(database) == {"post:42": 1}, "a checkpoint")
        put(redis, 0, {"post:42": 2})
        wait_for(lambda: totals(database) == {"post:42": 2}, "the next checkpoint")
    finally:
        end(keeper)


def test_a_last_checkpoint_follows_sigterm(
    own_redis: EmbeddedRedis, redis: Redis, database: str
) -> None:
    settings = settings_for(own_redis.url, database, checkpoint_interval=3600.0)
    open_stores(settings)
    put(redis, 0, {"post:42": 1})
    keeper = start_keeper(settings)
    wait_for(lambda: totals(database) == {"post:42": 1}, "the first checkpoint")
    put(redis, 0, {"post:42": 2})
    assert (end(keeper), totals(database)) == (0, {"post:42": 2})


def test_ends_when_both_stores_are_away(short_folder: Path) -> None:
    settings = settings_for("redis://127.0.0.1:1", "postgresql://127.0.0.1:1/acme")
    assert end(start_keeper(settings)) == 0


def test_goes_on_after_postgres_was_killed(
    own_redis: EmbeddedRedis, redis: Redis, own_postgres: EmbeddedPostgres
) -> None:
    settings = settings_for(own_redis.url, own_postgres.url, checkpoint_interval=0.1)
    open_stores(settings)
    keeper = start_keeper(settings)
    try:
        own_postgres.kill()
        put(redis, 0, {"post:42": 1})
        own_postgres.start()
        wait_for(lambda: totals(own_postgres.url) == {"post:42": 1}, "a checkpoint")
    finally:
        end(keeper)


def test_goes_on_after_redis_was_killed(
    own_redis: EmbeddedRedis, redis: Redis, database: str
) -> None:
    settings = settings_for(own_redis.url, database, checkpoint_interval=0.1)
    open_stores(settings)
    keeper = start_keeper(settings)
    try:
        put(redis, 0, {"post:42": 1})
        own_redis.kill()
        own_redis.start()
        wait_for(lambda: totals(database) == {"post:42": 1}, "a checkpoint")
    finally:
        end(keeper)


def test_makes_the_schema_when_postgres_comes_late(
    own_redis: EmbeddedRedis, redis: Redis, own_postgres: EmbeddedPostgres, database: str
) -> None:
    open_stores(settings_for(own_redis.url, database))
    put(redis, 0, {"post:42": 1})
    settings = settings_for(own_redis.url, own_postgres.url, checkpoint_interval=0.1)
    own_postgres.stop()
    keeper = start_keeper(settings)
    try:
        own_postgres.start()
        wait_for(lambda: _totals_or_none(own_postgres.url) == {"post:42": 1}, "a checkpoint")
    finally:
        end(keeper)


def _totals_or_none(url: str) -> dict[str, int | None] | None:
    try:
        return totals(url)
    except Exception:  # the schema is on its way
        return None


def test_an_outage_is_logged_once_and_its_end_once(own_redis: EmbeddedRedis, database: str) -> None:
    settings = settings_for(own_redis.url, database)
    open_stores(settings)
    redis = control_client(own_redis.url)
    with closing(redis), open_pool(database) as pool, capture_logs() as logs:
        keeper = Keeper(settings, nodes_of(redis, settings.partitions), pool, threading.Event())
        own_redis.kill()
        outcomes = [keeper.attempt(), keeper.attempt()]
        own_redis.start()
        outcomes += [keeper.attempt(), keeper.attempt()]
    events = [log["event"] for log in logs if log["log_level"] != "debug"]
    assert (outcomes, events) == (
        [False, False, True, True],
        ["Checkpoints wait.", "Checkpoints go on."],
    )
