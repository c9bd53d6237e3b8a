"""Counters, one at a time and many in one call."""

import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import timedelta

from tallyboard._answers import BatchResult, Count, consistency_of, count_of
from tallyboard._calls import Calls
from tallyboard._errors import TallyboardError, error_from_status
from tallyboard._requests import build, build_each
from tallyboard.v1 import counters_pb2, counters_pb2_grpc


class CounterCalls:
    """The calls of CounterService."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._stubs = calls.stubs(counters_pb2_grpc.CounterServiceStub)

    def increment(
        self, counter: str, delta: int, request_id: str | None, timeout: float | None
    ) -> bool:
        """Adds; tells whether the request id was seen before."""
        request = build(
            counters_pb2.IncrementRequest,
            counter=counter,
            delta=delta,
            request_id=request_id or new_id(),
        )
        return self._calls.call(next(self._stubs).Increment, request, timeout).duplicate

    def increment_many(
        self, deltas: Iterable[tuple[str, int]], request_id: str | None, timeout: float | None
    ) -> BatchResult:
        """Adds to many counters in one call."""
        request = build(
            counters_pb2.BatchIncrementRequest,
            deltas=build_each("deltas", _delta, deltas),
            request_id=request_id or new_id(),
        )
        answer = self._calls.call(next(self._stubs).BatchIncrement, request, timeout)
        failures: dict[int, TallyboardError] = {
            failure.index: error_from_status(failure.status) for failure in answer.failures
        }
        return BatchResult(failures, answer.duplicate)

    def get_many(
        self,
        counters: Sequence[str],
        max_staleness: float | timedelta | None,
        exact: bool,
        timeout: float | None,
    ) -> list[Count]:
        """The counts, in the order of the names."""
        wanted = consistency_of(max_staleness, exact)
        if len(counters) == 1:
            request = build(counters_pb2.GetCounterRequest, counter=counters[0], consistency=wanted)
            answer = self._calls.call(next(self._stubs).GetCounter, request, timeout)
            return [count_of(answer.count)]
        many = build(counters_pb2.BatchGetCountersRequest, counters=counters, consistency=wanted)
        found = self._calls.call(next(self._stubs).BatchGetCounters, many, timeout)
        return [count_of(count) for count in found.counts]

    def list(self, prefix: str, order_by: str, timeout: float | None) -> Iterator[Count]:
        """All counters as of the last checkpoint, fetched page by page."""
        request = build(
            counters_pb2.ListCountersRequest, prefix=prefix, order_by=order_by, page_size=1000
        )
        while True:
            page = self._calls.call(next(self._stubs).ListCounters, request, timeout)
            yield from map(count_of, page.counts)
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def reset(self, counter: str, request_id: str | None, timeout: float | None) -> Count:
        """Sets a counter to 0."""
        request = build(
            counters_pb2.ResetCounterRequest, counter=counter, request_id=request_id or new_id()
        )
        return count_of(self._calls.call(next(self._stubs).ResetCounter, request, timeout).count)

    def delete(self, counter: str, request_id: str | None, timeout: float | None) -> bool:
        """Deletes a counter; tells whether there was one."""
        request = build(
            counters_pb2.DeleteCounterRequest, counter=counter, request_id=request_id or new_id()
        )
        return self._calls.call(next(self._stubs).DeleteCounter, request, timeout).existed

    def watch(self, counters: Sequence[str], min_interval: float) -> Iterator[Mapping[str, Count]]:
        """The counts that have changed, as they do."""
        request = build(counters_pb2.WatchCountersRequest, counters=counters)
        request.min_interval.FromTimedelta(timedelta(seconds=min_interval))
        for answer in self._calls.stream(next(self._stubs).WatchCounters, request):
            yield {count.counter: count_of(count) for count in answer.counts}


class Counter:
    """One counter of the client's tenant; made by `Client.counter`.

    Every write has a request id, so it counts once however often it has to be repeated. Give one of
    your own (a UUID) to repeat a write from another process.

    Attributes:
        name: 1 to 256 bytes of UTF-8 without control characters.
    """

    def __init__(self, calls: CounterCalls, name: str) -> None:
        self._calls = calls
        self.name = name

    def increment(
        self, delta: int = 1, *, request_id: str | None = None, timeout: float | None = None
    ) -> bool:
        """Adds; returns once that is durable. Tells whether the request id was seen before.

        Args:
            delta: what to add, not 0; negative to subtract.
            request_id: a UUID; one is made if it is left out.
            timeout: seconds that it may take, instead of the client's.

        Raises:
            InvalidArgumentError: the name, the delta or the request id is at fault.
            OutOfRangeError: the total would leave the signed 64-bit range; it keeps its value.
            UnavailableError: the service is away; try again, with the same request id.
            DeadlineExceededError: it may count or not; try again with the same request id.
        """
        return self._calls.increment(self.name, delta, request_id, timeout)

    def get(
        self,
        *,
        max_staleness: float | timedelta | None = None,
        exact: bool = False,
        timeout: float | None = None,
    ) -> Count:
        """The count; of a counter that was never written 0.

        Args:
            max_staleness: how many seconds old the answer may be, up to an hour; the service
                decides if it is left out (2 s).
            exact: whether it has to hold every update acknowledged before this call.
            timeout: seconds that it may take, instead of the client's.

        Raises:
            InvalidArgumentError: the name or `max_staleness` is at fault.
            UnavailableError: nothing that fresh can be had now.
        """
        return self._calls.get_many((self.name,), max_staleness, exact, timeout)[0]

    def reset(self, *, request_id: str | None = None, timeout: float | None = None) -> Count:
        """Sets it to 0; the count behind that, with what came since."""
        return self._calls.reset(self.name, request_id, timeout)

    def delete(self, *, request_id: str | None = None, timeout: float | None = None) -> bool:
        """Deletes it; tells whether it was there. It comes back with the next increment."""
        return self._calls.delete(self.name, request_id, timeout)

    def watch(self, *, min_interval: float = 1.0) -> Iterator[Count]:
        """The count now, and whenever it changes, until the iterator is closed.

        Args:
            min_interval: seconds between two counts, at least 0.1.

        Raises:
            UnavailableError: the stream ended; watch again.
        """
        for counts in self._calls.watch((self.name,), min_interval):
            yield counts[self.name]


def _delta(pair: tuple[str, int]) -> counters_pb2.CounterDelta:
    counter, delta = pair
    return build(counters_pb2.CounterDelta, counter=counter, delta=delta)


def new_id() -> str:
    """A request id of its own."""
    return str(uuid.uuid4())
