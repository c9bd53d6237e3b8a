"""Fixtures: one running Redis of each kind that is installed."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.redis.node import RedisNode, installed_servers


def _version(binary: str) -> str:
    shown = subprocess.run(
        [binary, "--version"], capture_output=True, text=True, timeout=30, check=True
    )
    return next(word for word in shown.stdout.split() if word.startswith("v=")).removeprefix("v=")


@pytest.fixture(scope="session", params=installed_servers(), ids=_version)
def node(request: pytest.FixtureRequest, session_folder: Path) -> Iterator[RedisNode]:
    """A Redis, not flushed between tests: take names of your own.

    Its file is written without fsync on every write: what is tested here does not depend on it.
    """
    folder = session_folder / _version(request.param)
    folder.mkdir()
    with RedisNode(folder, request.param, ("--appendfsync", "everysec")) as server:
        yield server
