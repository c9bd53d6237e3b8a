"""Fixtures: one running Redis of each version that is installed."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.redis.node import RedisNode, installed_servers

_SERVERS = installed_servers()


@pytest.fixture(scope="session", params=_SERVERS)
def node(request: pytest.FixtureRequest, session_folder: Path) -> Iterator[RedisNode]:
    """A Redis, not flushed between tests: take names of your own.

    Its file is written without fsync on every write: what is tested here does not depend on it.
    """
    folder = session_folder / str(request.param)
    folder.mkdir()
    with RedisNode(folder, _SERVERS[request.param], ("--appendfsync", "everysec")) as server:
        yield server
