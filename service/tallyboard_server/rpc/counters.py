"""CounterService: protobuf in, plain calls of the domain, protobuf out."""

from collections.abc import Callable, Iterator
from datetime import datetime
from functools import lru_cache
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from tallyboard.v1 import consistency_pb2, status_pb2
from tallyboard.v1 import counters_pb2 as pb
from tallyboard_server.counters.merge import merge
from tallyboard_server.counters.model import Count, Fallback
from tallyboard_server.counters.service import Counters
from tallyboard_server.errors import OutcomeUnknown, TallyboardError
from tallyboard_server.names import name_problem
from tallyboard_server.rpc import validation
from tallyboard_server.rpc.stack import Caller, Stack
from tallyboard_server.rpc.stamps import SOURCES, set_as_of
from tallyboard_server.rpc.status import item_status_of
from tallyboard_server.rpc.streams import reading
from tallyboard_server.rpc.watches import WatchCall, interval_of
from tallyboard_server.streaming import WINDOW

MAX_READ = 1_000
MAX_WATCHED = 100


class CounterServicer:
    """The service over one worker's `Counters`."""

    def __init__(self, counters: Counters, stack: Stack, default_staleness: float) -> None:
        self._counters = counters
        self._stack = stack
        self._default_staleness = default_staleness

    def increment(self, request: pb.IncrementRequest, caller: Caller) -> pb.IncrementResponse:
        """Adds to one counter."""
        counter, delta = request.counter, request.delta
        validation.check_name("counter", counter)
        validation.check_delta("delta", delta)
        request_id = validation.request_id(request.request_id)
        result = self._counters.writer.increment(
            caller.tenant, counter, delta, request_id, caller.deadline
        )
        response = pb.IncrementResponse(duplicate=result.duplicate, journaled=result.journaled)
        if request.return_count:
            count = self._exact_after_write(caller, counter, request_id, result.journaled)
            response.count.CopyFrom(count)
        return response

    def batch_increment(
        self, request: pb.BatchIncrementRequest, caller: Caller
    ) -> pb.BatchIncrementResponse:
        """Adds to many counters."""
        validation.check_size("deltas", len(request.deltas), validation.MAX_ITEMS)
        request_id = validation.request_id(request.request_id)
        counters = [item.counter for item in request.deltas]
        deltas = [item.delta for item in request.deltas]
        if 0 in deltas:
            zeros = (i for i, delta in enumerate(deltas) if delta == 0)
            validation.check_all(
                "DELTA_ZERO", ((f"deltas[{i}].delta", "must not be 0") for i in zeros)
            )
        validation.check_all(
            "NAME_INVALID",
            ((f"deltas[{i}].counter", name_problem(n)) for i, n in enumerate(counters)),
        )
        result = self._counters.writer.batch(
            caller.tenant, merge(counters, deltas), request_id, caller.deadline
        )
        failures = [
            status_pb2.ItemStatus(index=index, status=item_status_of(result.failures[counter]))
            for index, counter in enumerate(counters if result.failures else ())
            if counter in result.failures
        ]
        return pb.BatchIncrementResponse(
            failures=failures, duplicate=result.duplicate, journaled=result.journaled
        )

    def stream_increments(
        self, requests: Iterator[Any], caller: Caller
    ) -> Iterator[pb.StreamIncrementsResponse]:
        """Batches in on a thread of their own, acknowledgements out on this one."""
        stream = self._counters.open_stream(caller.tenant)

        def take(batch: pb.StreamIncrementsRequest) -> None:
            counters, deltas = list(batch.counters), list(batch.deltas)
            _check_lists(counters, deltas)
            stream.take(batch.producer_id, batch.sequence, counters, deltas)

        try:
            with reading(stream, requests, caller.context, take, "increments-reader"):
                yield pb.StreamIncrementsResponse(window=WINDOW)
                for sequence, failures in stream.acknowledgements():
                    yield pb.StreamIncrementsResponse(
                        acknowledged_sequence=sequence,
                        window=WINDOW,
                        failures=[
                            pb.SequenceFailure(
                                sequence=at, counter=name, status=item_status_of(error)
                            )
                            for at, (name, error) in failures
                        ],
                    )
        finally:
            self._counters.close_stream(stream)

    def get_counter(
        self, request: pb.GetCounterRequest, caller: Caller
    ) -> pb.GetCounterResponse | bytes:
        """Reads one counter; the response of a count in memory is encoded once."""
        counter = request.counter
        validation.check_name("counter", counter)
        consistency, reader = request.consistency, self._counters.reader
        staleness = validation.staleness(consistency, self._default_staleness)
        if staleness is not None:
            count = reader.cached(caller.tenant, counter, staleness)
            if count is not None:
                return _encoded(count)
        fallback = validation.fallback(consistency)
        count = reader.get(caller.tenant, (counter,), staleness, caller.deadline, fallback)[0]
        return (
            pb.GetCounterResponse(count=to_proto(count)) if staleness is None else _encoded(count)
        )

    def batch_get_counters(
        self, request: pb.BatchGetCountersRequest, caller: Caller
    ) -> pb.BatchGetCountersResponse:
        """Reads many counters."""
        names = list(request.counters)
        validation.check_names("counters", names, MAX_READ)
        staleness = validation.staleness(request.consistency, self._default_staleness)
        fallback = validation.fallback(request.consistency)
        reader = self._counters.reader
        counts = reader.get(caller.tenant, names, staleness, caller.deadline, fallback)
        return pb.BatchGetCountersResponse(counts=[to_proto(count) for count in counts])

    def list_counters(
        self, request: pb.ListCountersRequest, caller: Caller
    ) -> pb.ListCountersResponse:
        """Lists counters as of the last checkpoint."""
        if request.prefix:
            validation.check_name("prefix", request.prefix)
        page = self._counters.list(
            caller.tenant,
            request.prefix,
            request.order_by or "counter",
            validation.page_size(request.page_size, 100, 1_000),
            request.page_token,
            caller.deadline,
        )
        as_of = _timestamp_of(page.as_of)
        counts = [
            pb.Count(
                counter=row.counter,
                value=row.value,
                exists=True,
                as_of=as_of,
                source=consistency_pb2.SOURCE_DURABLE,
            )
            for row in page.rows
        ]
        return pb.ListCountersResponse(counts=counts, next_page_token=page.next_cursor or "")

    def reset_counter(
        self, request: pb.ResetCounterRequest, caller: Caller
    ) -> pb.ResetCounterResponse:
        """Sets a counter to 0."""
        _, duplicate = self._clear(request, caller, "reset")
        count = self._exact_after_write(caller, request.counter, request.request_id)
        return pb.ResetCounterResponse(count=count, duplicate=duplicate)

    def delete_counter(
        self, request: pb.DeleteCounterRequest, caller: Caller
    ) -> pb.DeleteCounterResponse:
        """Deletes a counter."""
        existed, duplicate = self._clear(request, caller, "delete")
        if duplicate:
            existed = self._exact(caller, request.counter).exists
        return pb.DeleteCounterResponse(existed=existed, duplicate=duplicate)

    def watch_counters(
        self,
        request: pb.WatchCountersRequest,
        caller: Caller,
        send: Callable[[pb.WatchCountersResponse | None], None],
    ) -> None:
        """Starts a watch and returns; the hub sends from then on, and None ends the call."""
        validation.check_names("counters", request.counters, MAX_WATCHED)
        if len(set(request.counters)) < len(request.counters):
            raise validation.invalid("FIELD_INVALID", "counters", "must not repeat a name")
        interval = interval_of(request)
        subject = (caller.tenant, tuple(request.counters))
        call = WatchCall(self._stack, "WatchCounters", caller, send)
        call.follow(self._counters.hub, subject, interval, _watch_response)

    def _clear(
        self, request: pb.ResetCounterRequest | pb.DeleteCounterRequest, caller: Caller, verb: str
    ) -> tuple[bool, bool]:
        validation.check_name("counter", request.counter)
        request_id = validation.request_id(request.request_id)
        return self._counters.writer.clear(
            caller.tenant, request.counter, verb, request_id, caller.deadline
        )

    def _exact(self, caller: Caller, counter: str, journaled: bool = False) -> pb.Count:
        """The count as of now; where a write to it was journaled, Postgres may answer."""
        fallback = Fallback.ANY_AGE if journaled else Fallback.NEVER
        reader = self._counters.reader
        counts = reader.get(
            caller.tenant, (counter,), None, caller.deadline, fallback, anew=journaled
        )
        return to_proto(counts[0])

    def _exact_after_write(
        self,
        caller: Caller,
        counter: str,
        request_id: str,
        journaled: bool = False,
    ) -> pb.Count:
        """The count behind a write. Its failure must not invite a caller to write again."""
        try:
            return self._exact(caller, counter, journaled)
        except TallyboardError as error:
            if request_id:
                raise
            raise OutcomeUnknown(f"it counted, but the count can't be read: {error}") from error


@lru_cache(maxsize=8192)
def _encoded(count: Count) -> bytes:
    return pb.GetCounterResponse(count=to_proto(count)).SerializeToString()


def _watch_response(counts: list[Count]) -> pb.WatchCountersResponse:
    return pb.WatchCountersResponse(counts=[to_proto(count) for count in counts])


def to_proto(count: Count) -> pb.Count:
    """A count as the contract has it."""
    message = pb.Count(
        counter=count.counter,
        value=count.value,
        exists=count.exists,
        source=SOURCES[count.source],
    )
    set_as_of(message.as_of, count.as_of)
    return message


def _timestamp_of(moment: datetime) -> Timestamp:
    timestamp = Timestamp()
    timestamp.FromDatetime(moment)
    return timestamp


def _check_lists(counters: list[str], deltas: list[int]) -> None:
    validation.check_size("deltas", len(deltas), validation.MAX_ITEMS)
    validation.check_size("counters", len(counters), validation.MAX_ITEMS)
    if len(counters) not in (1, len(deltas)):
        detail = f"has {len(counters):,} names for {len(deltas):,} deltas; one each, or one name"
        raise validation.invalid("FIELD_INVALID", "counters", detail)
