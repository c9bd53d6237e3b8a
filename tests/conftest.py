"""Fixtures that all tests may use: real stores, started once a session."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tallyboard_server.embedded import EmbeddedPostgres, EmbeddedRedis

# Stores and services are started while gRPC's threads run. Its handlers for forks can't cope with
# that and may end the child before it is a server.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

# How long an example takes says more about the machine than about what it shows.
settings.register_profile("tallyboard", deadline=None)
settings.load_profile("tallyboard")


def make_short_folder() -> Path:
    """A new folder with a short path that every user may enter, as Postgres below root needs."""
    folder = Path(tempfile.mkdtemp(prefix="tb-", dir="/tmp"))
    folder.chmod(0o755)
    return folder


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder of one test for the data of embedded stores."""
    folder = make_short_folder()
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def session_folder() -> Iterator[Path]:
    """The folder of the stores that live as long as the session."""
    folder = make_short_folder()
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def redis_server(session_folder: Path) -> Iterator[EmbeddedRedis]:
    """A Redis that all tests share: keep to keys or partitions of your own, or flush it."""
    with EmbeddedRedis(session_folder) as server:
        yield server


@pytest.fixture(scope="session")
def postgres_server(session_folder: Path) -> Iterator[EmbeddedPostgres]:
    """A Postgres that all tests share: make a schema or database of your own."""
    with EmbeddedPostgres(session_folder) as server:
        yield server
