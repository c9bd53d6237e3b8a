"""A running service for the tests of the Python library, and a way to look at its counters."""

import uuid
from collections.abc import Iterator

import grpc
import pytest

from tallyboard import open_channel
from tallyboard.v1 import consistency_pb2, counters_pb2, counters_pb2_grpc
from tests.service import RunningService


class Reader:
    """Reads the counters of one tenant from Redis."""

    def __init__(self, channel: grpc.Channel, tenant: str) -> None:
        self._stub = counters_pb2_grpc.CounterServiceStub(channel)
        self._tenant = tenant

    def __call__(self, counter: str) -> int:
        """The exact count, waiting for the service to be there."""
        request = counters_pb2.GetCounterRequest(
            counter=counter, consistency=consistency_pb2.Consistency(exact=True)
        )
        metadata = (("x-tallyboard-tenant", self._tenant),)
        answer = self._stub.GetCounter(request, metadata=metadata, timeout=30, wait_for_ready=True)
        return answer.count.value


@pytest.fixture(scope="session")
def service() -> Iterator[RunningService]:
    """A service with two workers on embedded stores."""
    with RunningService(workers=2) as running:
        yield running


@pytest.fixture(scope="session")
def single_worker() -> Iterator[RunningService]:
    """A service with one worker, so that a test knows which one a stream has."""
    with RunningService(workers=1) as running:
        yield running


@pytest.fixture
def tenant() -> str:
    """A tenant that no other test uses."""
    return f"t-{uuid.uuid4()}"


@pytest.fixture
def channel(service: RunningService) -> Iterator[grpc.Channel]:
    """A connection of this test alone."""
    with open_channel(service.target) as opened:
        yield opened


@pytest.fixture
def count(service: RunningService, tenant: str) -> Iterator[Reader]:
    """Reads counters over another connection than the test's own."""
    with open_channel(service.target) as opened:
        yield Reader(opened, tenant)
