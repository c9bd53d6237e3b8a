"""What the options of a channel do: pings, and repeats of large calls."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Final

import grpc
import pytest

from tallyboard import Client, _channel
from tallyboard.v1 import counters_pb2, counters_pb2_grpc
from tests.clients_python.proxy import CutProxy
from tests.service import RunningService

_SOON: Final = {
    "grpc.keepalive_time_ms": 200,
    "grpc.keepalive_timeout_ms": 200,
    "grpc.http2.ping_timeout_ms": 200,
}


class _SecondTime(counters_pb2_grpc.CounterServiceServicer):
    """Takes a batch when it comes again."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def BatchIncrement(
        self, request: counters_pb2.BatchIncrementRequest, context: Any
    ) -> counters_pb2.BatchIncrementResponse:
        self.sizes.append(request.ByteSize())
        if len(self.sizes) == 1:
            context.abort(grpc.StatusCode.UNAVAILABLE, "not now")
        return counters_pb2.BatchIncrementResponse()


@contextmanager
def _serving(servicer: counters_pb2_grpc.CounterServiceServicer) -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(2))
    counters_pb2_grpc.add_CounterServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


def test_a_call_above_256_kib_is_repeated() -> None:
    servicer = _SecondTime()
    with _serving(servicer) as target, Client(target, channels=1) as client:
        client.increment_many((f"post:{i}".ljust(200, "x"), 1) for i in range(10_000))
    first, second = servicer.sizes
    assert first == second > 2_000_000


def test_a_connection_that_swallows_everything_is_left(
    service: RunningService, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = tuple((key, _SOON.get(key, value)) for key, value in _channel._OPTIONS)
    monkeypatch.setattr(_channel, "_OPTIONS", options)
    with (
        CutProxy(service.target) as proxy,
        Client(proxy.target, tenant=tenant, channels=1) as client,
    ):
        counter = client.counter("post:42")
        counter.increment()
        proxy.swallow()
        counter.increment()
        assert counter.get(exact=True).value == 2
