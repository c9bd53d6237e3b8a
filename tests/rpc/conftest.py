"""A worker in this process, on stores of its own, and channels to it."""

import dataclasses
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from tallyboard.v1 import counters_pb2_grpc, leaderboards_pb2_grpc, operations_pb2_grpc
from tallyboard_server.embedded import EmbeddedPostgres, EmbeddedRedis
from tallyboard_server.settings import Settings
from tallyboard_server.stores import open_stores
from tallyboard_server.worker import Worker
from tests.conftest import make_short_folder


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@pytest.fixture(scope="package")
def stores() -> Iterator[tuple[EmbeddedRedis, EmbeddedPostgres]]:
    """A Redis and a Postgres for the tests of this folder."""
    folder: Path = make_short_folder()
    with EmbeddedRedis(folder) as redis, EmbeddedPostgres(folder) as postgres:
        yield redis, postgres
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="package")
def settings(stores: tuple[EmbeddedRedis, EmbeddedPostgres]) -> Settings:
    """The settings of the worker."""
    redis, postgres = stores
    return dataclasses.replace(
        Settings(),
        redis_url=redis.url,
        postgres_url=postgres.url,
        listen=f"127.0.0.1:{free_port()}",
        shards_by_prefix={"one:": 1, "many:": 64},
    )


@pytest.fixture(scope="package")
def worker(settings: Settings) -> Iterator[Worker]:
    """A worker that serves."""
    with Worker(settings, open_stores(settings)) as running:
        yield running


@pytest.fixture(scope="package")
def channel(worker: Worker, settings: Settings) -> Iterator[grpc.Channel]:
    """A channel to the worker that sends messages of any size."""
    options = [("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(settings.listen, options=options) as opened:
        yield opened


@pytest.fixture(scope="package")
def counters(channel: grpc.Channel) -> counters_pb2_grpc.CounterServiceStub:
    """CounterService."""
    return counters_pb2_grpc.CounterServiceStub(channel)


@pytest.fixture(scope="package")
def leaderboards(channel: grpc.Channel) -> leaderboards_pb2_grpc.LeaderboardServiceStub:
    """LeaderboardService."""
    return leaderboards_pb2_grpc.LeaderboardServiceStub(channel)


@pytest.fixture(scope="package")
def operations(channel: grpc.Channel) -> operations_pb2_grpc.OperationsServiceStub:
    """OperationsService."""
    return operations_pb2_grpc.OperationsServiceStub(channel)


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A name, of a counter for example, that no other test uses."""
    return f"{request.node.name}:{id(request)}"
