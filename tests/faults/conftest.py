"""Fixtures: a service behind a proxy, and one with stores of its own that can be killed."""

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest

from tallyboard_server.embedded import EmbeddedPostgres
from tests.faults.proxy import Faults, Proxy
from tests.redis.node import RedisNode
from tests.service import RunningService


@pytest.fixture(scope="module")
def database(postgres_server: EmbeddedPostgres) -> Iterator[str]:
    """The URL of an empty database."""
    name = f"faults_{uuid4().hex[:12]}"
    with psycopg.connect(postgres_server.url, autocommit=True) as conn:
        conn.execute(f'CREATE DATABASE "{name}"'.encode())
        yield postgres_server.url.replace("/tallyboard?", f"/{name}?")
        conn.execute(f'DROP DATABASE "{name}" WITH (FORCE)'.encode())


@pytest.fixture(scope="module")
def redis_node(session_folder: Path) -> Iterator[RedisNode]:
    """A Redis of this module's own that can be stalled and killed."""
    folder = session_folder / uuid4().hex[:8]
    folder.mkdir()
    with RedisNode(folder) as node:
        yield node


@pytest.fixture(scope="module")
def proxy_of_module(redis_node: RedisNode) -> Iterator[Proxy]:
    with Proxy(redis_node.port) as proxy:
        yield proxy


@pytest.fixture
def proxy(proxy_of_module: Proxy) -> Iterator[Proxy]:
    """The proxy between `behind_proxy` and its Redis; harmless again after the test."""
    proxy_of_module.faults = Faults()
    yield proxy_of_module
    proxy_of_module.faults = Faults()
    proxy_of_module.deliver_held()


@pytest.fixture(scope="module")
def behind_proxy(proxy_of_module: Proxy, database: str) -> Iterator[RunningService]:
    """A service with two workers that reaches Redis through the proxy only."""
    with RunningService(workers=2, redis_url=proxy_of_module.url, postgres_url=database) as service:
        yield service


@pytest.fixture(scope="module")
def refusing(proxy_of_module: Proxy, database: str) -> Iterator[RunningService]:
    """A service behind the same proxy that refuses what Redis does not take."""
    with RunningService(
        workers=1, redis_url=proxy_of_module.url, postgres_url=database, redis_outage="refuse"
    ) as service:
        yield service
