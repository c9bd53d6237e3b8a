"""Stores for one test each."""

from collections.abc import Iterator

import pytest

from tallyboard_server.embedded import EmbeddedPostgres
from tallyboard_server.postgres.migrations import migrate
from tallyboard_server.postgres.pool import BoundedPool, open_pool
from tests.postgres.support import new_database


@pytest.fixture
def database(postgres_server: EmbeddedPostgres) -> Iterator[str]:
    """The URL of an empty database."""
    with new_database(postgres_server) as url:
        yield url


@pytest.fixture
def pool(database: str) -> Iterator[BoundedPool]:
    """A pool of a migrated database."""
    migrate(database)
    with open_pool(database) as pool:
        yield pool
