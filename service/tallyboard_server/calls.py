"""The calls that the command line makes to a running service."""

import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import grpc

from tallyboard.v1 import (
    consistency_pb2,
    counters_pb2,
    counters_pb2_grpc,
    operations_pb2,
    operations_pb2_grpc,
)

_PAGE: Final = 1000
_Answer = TypeVar("_Answer")


class CallError(RuntimeError):
    """A call that failed; `str()` is one sentence for the person at the terminal."""


class Service:
    """A connection to one service as one tenant; every call may raise CallError."""

    def __init__(self, channel: grpc.Channel, server: str, tenant: str, timeout: float) -> None:
        self.channel = channel
        self._server = server
        self._counters = counters_pb2_grpc.CounterServiceStub(channel)
        self._operations = operations_pb2_grpc.OperationsServiceStub(channel)
        self._options: dict[str, Any] = {
            "timeout": timeout,
            "metadata": (("x-tallyboard-tenant", tenant),),
        }

    def increment(
        self, counter: str, delta: int, request_id: str | None
    ) -> counters_pb2.IncrementResponse:
        """Add `delta` to the counter; a request id is made up if none is given."""
        request = counters_pb2.IncrementRequest(
            counter=counter,
            delta=delta,
            request_id=request_id or str(uuid.uuid4()),
            return_count=True,
        )
        return self.call(self._counters.Increment, request)

    def get(self, counter: str, exact: bool) -> counters_pb2.Count:
        """The counter's count, from Redis now if `exact`."""
        request = counters_pb2.GetCounterRequest(counter=counter)
        if exact:
            request.consistency.CopyFrom(consistency_pb2.Consistency(exact=True))
        return self.call(self._counters.GetCounter, request).count

    def list_counters(
        self, prefix: str, limit: int, largest_first: bool
    ) -> Iterator[counters_pb2.Count]:
        """Up to `limit` counters as of the last checkpoint, page by page."""
        request = counters_pb2.ListCountersRequest(
            prefix=prefix, order_by="value desc" if largest_first else ""
        )
        return self.items(self._counters.ListCounters, request, "counts", limit)

    def checkpoint(self) -> operations_pb2.CheckpointResponse:
        """Copy what has changed from Redis to Postgres."""
        return self.call(self._operations.Checkpoint, operations_pb2.CheckpointRequest())

    def take_snapshots(self, leaderboard_id: str) -> operations_pb2.TakeSnapshotsResponse:
        """Take the daily standing of one leaderboard, or (empty) of all, now."""
        request = operations_pb2.TakeSnapshotsRequest(leaderboard_id=leaderboard_id)
        return self.call(self._operations.TakeSnapshots, request)

    def status(self) -> operations_pb2.GetStatusResponse:
        """How the service is."""
        return self.call(self._operations.GetStatus, operations_pb2.GetStatusRequest())

    def verify(
        self, partitions: Sequence[int], max_differences: int
    ) -> Iterator[operations_pb2.VerifyResponse]:
        """Compare Redis with Postgres; one answer a partition, as it is compared."""
        request = operations_pb2.VerifyRequest(
            partitions=partitions, max_differences=max_differences
        )
        try:
            yield from self._operations.Verify(request, **self._options)
        except grpc.RpcError as error:
            raise CallError(_sentence(error, self._server)) from None

    def rebuild(self, partition: int) -> operations_pb2.RebuildPartitionResponse:
        """Make a partition of Redis anew from Postgres."""
        request = operations_pb2.RebuildPartitionRequest(partition=partition)
        return self.call(self._operations.RebuildPartition, request)

    def call(self, method: Callable[..., _Answer], request: object) -> _Answer:
        """The answer of a method of a stub, asked as the tenant and within the timeout."""
        try:
            return method(request, **self._options)
        except grpc.RpcError as error:
            raise CallError(_sentence(error, self._server)) from None

    def items(
        self, method: Callable[..., Any], request: Any, field: str, limit: int | None = None
    ) -> Iterator[Any]:
        """The items of a list, page by page, up to `limit`; `field` holds those of a page.

        The request's paging is set here; every page may take the timeout.
        """
        left = sys.maxsize if limit is None else limit
        while left > 0:
            request.page_size = min(left, _PAGE)
            page = self.call(method, request)
            items = getattr(page, field)[:left]
            yield from items
            left -= len(items)
            request.page_token = page.next_page_token
            if not page.next_page_token:
                return


@contextmanager
def connect(server: str, tenant: str, timeout: float, ca: str | None) -> Iterator[Service]:
    """A connection to `server` for the `with` block, by TLS when `ca` names a PEM file.

    Every call may take `timeout` seconds. Raises CallError when the file cannot be read, or the
    tenant's name cannot be sent.
    """
    if not tenant.isascii() or not tenant.isprintable():
        raise CallError("The tenant's name must be printable ASCII to be sent.")
    with _channel(server, ca) as channel:
        yield Service(channel, server, tenant, timeout)


def _channel(server: str, ca: str | None) -> grpc.Channel:
    if ca is None:
        return grpc.insecure_channel(server)
    try:
        trusted = Path(ca).read_bytes()
    except OSError as error:
        raise CallError(f"The file {ca} cannot be read: {error.strerror}.") from None
    return grpc.secure_channel(server, grpc.ssl_channel_credentials(trusted))


def _sentence(error: Any, server: str) -> str:
    """What a failed call means, from its status; the service's own words where there are any."""
    code, details = error.code(), (error.details() or "").strip().rstrip(".")
    if code is grpc.StatusCode.UNAVAILABLE and "connect" in details.lower():
        return f"No service answers at {server}."
    if code is grpc.StatusCode.DEADLINE_EXCEEDED and details in ("", "Deadline Exceeded"):
        return f"The service at {server} did not answer in time; it may have counted all the same."
    if not details:
        return f"The service at {server} answered {code.name}."
    return f"{details} ({code.name})."
