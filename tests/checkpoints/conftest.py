"""Stores, opened and empty, and their checkpointers."""

from collections.abc import Iterator

import pytest
from redis import Redis

from tallyboard_server.checkpointer import Checkpointer
from tallyboard_server.embedded import EmbeddedPostgres, EmbeddedRedis
from tallyboard_server.postgres.pool import BoundedPool, open_pool
from tallyboard_server.redis.nodes import control_client
from tallyboard_server.stores import open_stores
from tests.checkpoints.keepers import Mortal
from tests.postgres.support import PARTITIONS, empty_redis, new_database, settings_for
from tests.redis.nodes import nodes_of

Pool = BoundedPool


@pytest.fixture
def database(postgres_server: EmbeddedPostgres) -> Iterator[str]:
    with new_database(postgres_server) as url:
        yield url


@pytest.fixture
def pool(database: str) -> Iterator[Pool]:
    with open_pool(database) as pool:
        yield pool


@pytest.fixture
def redis(redis_server: EmbeddedRedis, database: str) -> Iterator[Redis]:
    """A client of opened, empty stores."""
    with empty_redis(redis_server) as url:
        open_stores(settings_for(url, database))
        client = control_client(url)
        yield client
        client.close()


@pytest.fixture
def checkpointer(redis: Redis, pool: Pool) -> Checkpointer:
    return Checkpointer(nodes_of(redis, PARTITIONS), pool, PARTITIONS)


@pytest.fixture
def mortal(redis: Redis, pool: Pool) -> Mortal:
    return Mortal(nodes_of(redis, PARTITIONS), pool, PARTITIONS)
