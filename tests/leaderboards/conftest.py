"""A worker in this process, on stores of its own, whose clock the tests set."""

import dataclasses
import shutil
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from tallyboard.v1 import leaderboards_pb2_grpc
from tallyboard_server.embedded import EmbeddedPostgres, EmbeddedRedis
from tallyboard_server.settings import Settings
from tallyboard_server.stores import open_stores
from tallyboard_server.worker import Worker
from tests.conftest import make_short_folder
from tests.leaderboards.calls import Caller, Clock


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@pytest.fixture(scope="package")
def clock() -> Clock:
    """The worker's clock."""
    return Clock()


@pytest.fixture(scope="package")
def stores() -> Iterator[tuple[EmbeddedRedis, EmbeddedPostgres]]:
    """A Redis and a Postgres for the tests of this folder."""
    folder: Path = make_short_folder()
    with EmbeddedRedis(folder) as redis, EmbeddedPostgres(folder) as postgres:
        yield redis, postgres
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="package")
def stub(
    stores: tuple[EmbeddedRedis, EmbeddedPostgres], clock: Clock
) -> Iterator[leaderboards_pb2_grpc.LeaderboardServiceStub]:
    """LeaderboardService of a worker."""
    redis, postgres = stores
    settings = dataclasses.replace(
        Settings(),
        redis_url=redis.url,
        postgres_url=postgres.url,
        listen=f"127.0.0.1:{_free_port()}",
    )
    with (
        Worker(settings, open_stores(settings), clock=clock),
        grpc.insecure_channel(settings.listen) as channel,
    ):
        yield leaderboards_pb2_grpc.LeaderboardServiceStub(channel)


@pytest.fixture
def caller(stub: leaderboards_pb2_grpc.LeaderboardServiceStub) -> Caller:
    """Calls of a tenant that no other test has."""
    return Caller(stub, uuid.uuid4().hex)
