"""A worker's Redis store on a Redis of its own."""

import shutil
from collections.abc import Iterator

import pytest

from tallyboard_server.embedded import EmbeddedRedis
from tallyboard_server.redis.fences import Fences
from tallyboard_server.redis.keys import incarnation_key
from tallyboard_server.redis.nodes import control_client
from tallyboard_server.redis.store import RedisStore
from tests.conftest import make_short_folder
from tests.redis.admission import AdmitsAll
from tests.redis.nodes import topology_of

PARTITIONS = 64


@pytest.fixture(scope="package")
def own_redis() -> Iterator[EmbeddedRedis]:
    """A Redis for this folder whose partitions are open."""
    folder = make_short_folder()
    with EmbeddedRedis(folder) as redis:
        client = control_client(redis.url)
        for partition in range(PARTITIONS):
            client.set(incarnation_key(partition), f"life-{partition}")
        client.close()
        yield redis
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def store(own_redis: EmbeddedRedis) -> Iterator[RedisStore]:
    """Links to it."""
    opened = RedisStore(
        topology_of(own_redis.url, PARTITIONS),
        Fences({partition: f"life-{partition}" for partition in range(PARTITIONS)}),
        AdmitsAll("always"),
        timeout=1.0,
        max_pending=100_000,
        on_refused=lambda part, keys: part.done(),
    )
    yield opened
    opened.close()
