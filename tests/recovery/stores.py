"""Fixtures: a Redis and a database of a module's own. A test module takes those it needs:
`node, database = stores.node, stores.database`.
"""

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tallyboard_server.embedded import EmbeddedPostgres
from tests.postgres.support import new_database
from tests.redis.node import RedisNode


@pytest.fixture(scope="module")
def node(session_folder: Path) -> Iterator[RedisNode]:
    """A Redis of this module's own, that can be killed and stalled."""
    folder = session_folder / uuid.uuid4().hex[:8]
    folder.mkdir()
    with RedisNode(folder) as node:
        yield node


@pytest.fixture(scope="module")
def database(postgres_server: EmbeddedPostgres) -> Iterator[str]:
    """The URL of a database of this module's own."""
    with new_database(postgres_server) as url:
        yield url
