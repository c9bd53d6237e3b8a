"""CounterService does what the contract says."""

import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from tallyboard.v1 import consistency_pb2, operations_pb2
from tallyboard.v1 import counters_pb2 as pb
from tallyboard.v1.counters_pb2_grpc import CounterServiceStub
from tallyboard.v1.operations_pb2_grpc import OperationsServiceStub
from tallyboard_server.settings import Settings
from tests.rpc.errors import refusal
from tests.waiting import wait_for

EXACT = consistency_pb2.Consistency(exact=True)


def get(counters: CounterServiceStub, name: str, **consistency: Any) -> pb.Count:
    """One count."""
    request = pb.GetCounterRequest(counter=name)
    request.consistency.CopyFrom(consistency_pb2.Consistency(**consistency))
    return counters.GetCounter(request, timeout=10).count


def add(counters: CounterServiceStub, name: str, delta: int = 1, request_id: str = "") -> bool:
    """Increments; tells whether it was a duplicate."""
    request = pb.IncrementRequest(counter=name, delta=delta, request_id=request_id)
    return counters.Increment(request, timeout=10).duplicate


def batches(
    producer: str, first: int, last: int, name: str
) -> Iterator[pb.StreamIncrementsRequest]:
    """Batches of 100 increments of one counter."""
    for sequence in range(first, last + 1):
        yield pb.StreamIncrementsRequest(
            producer_id=producer, sequence=sequence, counters=[name], deltas=[1] * 100
        )


def last_acknowledged(answers: Iterator[pb.StreamIncrementsResponse]) -> int:
    """The last sequence that a stream acknowledged."""
    return [answer.acknowledged_sequence for answer in answers][-1]


def test_an_increment_answers_with_the_count(counters: CounterServiceStub, name: str) -> None:
    request = pb.IncrementRequest(counter=name, delta=-7, return_count=True)
    count = counters.Increment(request, timeout=10).count
    assert (count.counter, count.value, count.exists, count.source) == (
        name,
        -7,
        True,
        consistency_pb2.SOURCE_LIVE,
    )


def test_a_counter_never_written_reads_0(counters: CounterServiceStub, name: str) -> None:
    count = get(counters, name, exact=True)
    assert (count.value, count.exists) == (0, False)


def test_a_counter_back_at_0_exists(counters: CounterServiceStub, name: str) -> None:
    add(counters, name, 5)
    add(counters, name, -5)
    count = get(counters, name, exact=True)
    assert (count.value, count.exists) == (0, True)


def test_a_repeat_changes_nothing_and_says_so(counters: CounterServiceStub, name: str) -> None:
    request_id = str(uuid.uuid4())
    said = [add(counters, name, 3, request_id) for _ in range(3)]
    assert (said, get(counters, name, exact=True).value) == ([False, True, True], 3)


def test_a_request_id_is_one_in_any_spelling(counters: CounterServiceStub, name: str) -> None:
    request_id = uuid.uuid4()
    add(counters, name, 3, str(request_id))
    assert add(counters, name, 3, str(request_id).upper())


def test_a_repeated_batch_counts_once(counters: CounterServiceStub, name: str) -> None:
    deltas = [pb.CounterDelta(counter=f"{name}{i % 50}", delta=1) for i in range(1000)]
    request = pb.BatchIncrementRequest(deltas=deltas, request_id=str(uuid.uuid4()))
    said = [counters.BatchIncrement(request, timeout=10).duplicate for _ in range(2)]
    read = pb.BatchGetCountersRequest(counters=[f"{name}{i}" for i in range(50)], consistency=EXACT)
    values = {count.value for count in counters.BatchGetCounters(read, timeout=10).counts}
    assert (said, values) == ([False, True], {20})


def test_a_read_from_memory_says_so(counters: CounterServiceStub, name: str) -> None:
    add(counters, name)
    first = get(counters, name, max_staleness={"seconds": 60})
    add(counters, name)
    second = get(counters, name, max_staleness={"seconds": 60})
    assert (second.value, second.source, second.as_of) == (
        1,
        consistency_pb2.SOURCE_CACHE,
        first.as_of,
    )


def test_a_read_is_never_older_than_asked(counters: CounterServiceStub, name: str) -> None:
    add(counters, name)
    get(counters, name, max_staleness={"seconds": 60})
    add(counters, name)
    fresh = wait_for(
        lambda: get(counters, name, max_staleness={"nanos": 50_000_000}).value == 2,
        "a fresh count",
    )
    assert fresh


def test_max_staleness_0_asks_redis(counters: CounterServiceStub, name: str) -> None:
    get(counters, name, max_staleness={"seconds": 60})
    add(counters, name)
    assert get(counters, name, max_staleness={}).source == consistency_pb2.SOURCE_LIVE


def test_as_of_is_not_after_the_read(counters: CounterServiceStub, name: str) -> None:
    before = time.time()
    as_of = get(counters, name, exact=True).as_of.ToNanoseconds() / 1e9
    assert before - 0.01 <= as_of <= time.time()


@pytest.mark.parametrize("prefix", ["one:", "many:", "other:"])
def test_any_number_of_shards_adds_up(counters: CounterServiceStub, name: str, prefix: str) -> None:
    for _ in range(40):
        add(counters, prefix + name, 1, str(uuid.uuid4()))
    assert get(counters, prefix + name, exact=True).value == 40


def test_a_reset_counter_exists_at_0(counters: CounterServiceStub, name: str) -> None:
    for _ in range(20):
        add(counters, name, 1, str(uuid.uuid4()))
    count = counters.ResetCounter(pb.ResetCounterRequest(counter=name), timeout=10).count
    assert (count.value, count.exists) == (0, True)


def test_a_reset_makes_no_counter(counters: CounterServiceStub, name: str) -> None:
    answer = counters.ResetCounter(pb.ResetCounterRequest(counter=name), timeout=10)
    assert not answer.count.exists


def test_a_wide_counter_stays_whole_when_shards_are_added(
    counters: CounterServiceStub, name: str
) -> None:
    """`many:` has 64 shards and `one:` one: becoming wide freezes all there could be."""
    add(counters, f"one:{name}", 2**60)
    for _ in range(20):
        add(counters, f"one:{name}", 1, str(uuid.uuid4()))
    assert get(counters, f"one:{name}", exact=True).value == 2**60 + 20


def test_what_was_out_of_range_stays_so_for_its_request(
    counters: CounterServiceStub, name: str
) -> None:
    add(counters, name, 2**63 - 1)
    request = pb.IncrementRequest(counter=name, delta=1, request_id=str(uuid.uuid4()))
    first = refusal(counters.Increment, request).reason
    add(counters, name, -100)
    second = refusal(counters.Increment, request).reason
    value = get(counters, name, exact=True).value
    assert (first, second, value) == (
        "COUNTER_OUT_OF_RANGE",
        "COUNTER_OUT_OF_RANGE",
        2**63 - 101,
    )


def test_a_repeated_reset_spares_what_came_after(counters: CounterServiceStub, name: str) -> None:
    request = pb.ResetCounterRequest(counter=name, request_id=str(uuid.uuid4()))
    counters.ResetCounter(request, timeout=10)
    add(counters, name, 9)
    answer = counters.ResetCounter(request, timeout=10)
    assert (answer.duplicate, answer.count.value) == (True, 9)


def test_a_deleted_counter_is_gone(counters: CounterServiceStub, name: str) -> None:
    for _ in range(20):
        add(counters, name, 1, str(uuid.uuid4()))
    existed = counters.DeleteCounter(pb.DeleteCounterRequest(counter=name), timeout=10).existed
    assert (existed, get(counters, name, exact=True).exists) == (True, False)


def test_deleting_again_says_that_nothing_was_there(
    counters: CounterServiceStub, name: str
) -> None:
    answer = counters.DeleteCounter(pb.DeleteCounterRequest(counter=name), timeout=10)
    assert not answer.existed


@pytest.mark.parametrize("verb", ["reset", "delete"])
def test_a_wide_counter_can_be_cleared(counters: CounterServiceStub, name: str, verb: str) -> None:
    add(counters, name, 2**63 - 1)
    if verb == "reset":
        counters.ResetCounter(pb.ResetCounterRequest(counter=name), timeout=10)
    else:
        counters.DeleteCounter(pb.DeleteCounterRequest(counter=name), timeout=10)
    cleared = get(counters, name, exact=True)
    add(counters, name, 4)
    assert (cleared.value, cleared.exists, get(counters, name, exact=True).value) == (
        0,
        verb == "reset",
        4,
    )


def test_a_wide_counter_counts_a_request_once(counters: CounterServiceStub, name: str) -> None:
    request_id = str(uuid.uuid4())
    said = [add(counters, name, 2**62, request_id) for _ in range(2)]
    assert (said, get(counters, name, exact=True).value) == ([False, True], 2**62)


def test_a_stream_acknowledges_every_batch(counters: CounterServiceStub, name: str) -> None:
    answers = counters.StreamIncrements(batches(name, 1, 300, name), timeout=30)
    assert (last_acknowledged(answers), get(counters, name, exact=True).value) == (300, 30_000)


def test_a_resumed_stream_counts_once(counters: CounterServiceStub, name: str) -> None:
    last_acknowledged(counters.StreamIncrements(batches(name, 1, 20, name), timeout=30))
    answers = counters.StreamIncrements(batches(name, 11, 30, name), timeout=30)
    assert (last_acknowledged(answers), get(counters, name, exact=True).value) == (30, 3_000)


def test_a_sequence_long_gone_is_refused(counters: CounterServiceStub, name: str) -> None:
    last_acknowledged(counters.StreamIncrements(batches(name, 1, 300, name), timeout=30))
    error = refusal(counters.StreamIncrements, batches(name, 2, 2, name))
    assert (error.code, error.reason) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "SEQUENCE_TOO_OLD",
    )


def test_a_stream_must_count_up(counters: CounterServiceStub, name: str) -> None:
    twice = [*batches(name, 1, 2, name), *batches(name, 2, 2, name)]
    assert refusal(counters.StreamIncrements, iter(twice)).reason == "SEQUENCE_INVALID"


def test_producers_of_two_tenants_are_two(counters: CounterServiceStub, name: str) -> None:
    for tenant in ("acme", "ann"):
        metadata = [("x-tallyboard-tenant", tenant)]
        answers = counters.StreamIncrements(
            batches(name, 1, 1, name), timeout=30, metadata=metadata
        )
        last_acknowledged(answers)
    read = pb.GetCounterRequest(counter=name, consistency=EXACT)
    count = counters.GetCounter(read, timeout=9, metadata=[("x-tallyboard-tenant", "ann")]).count
    assert count.value == 100


def test_lists_follow_a_checkpoint(
    counters: CounterServiceStub, operations: OperationsServiceStub, name: str
) -> None:
    for index in range(7):
        add(counters, f"{name}:{index}", 10 + index)
    operations.Checkpoint(operations_pb2.CheckpointRequest(), timeout=10)
    found, token = [], ""
    while True:
        request = pb.ListCountersRequest(
            prefix=f"{name}:", page_size=3, page_token=token, order_by="value desc"
        )
        page = counters.ListCounters(request, timeout=10)
        found += [count.value for count in page.counts]
        token = page.next_page_token
        if not token:
            break
    assert found == [16, 15, 14, 13, 12, 11, 10]


def test_a_watch_sends_all_and_then_what_changes(counters: CounterServiceStub, name: str) -> None:
    request = pb.WatchCountersRequest(
        counters=[name, f"{name}2"], min_interval={"nanos": 100_000_000}
    )
    watch = counters.WatchCounters(request, timeout=20)
    first = [(count.counter, count.value) for count in next(watch).counts]
    add(counters, name, 5)
    second = [(count.counter, count.value) for count in next(watch).counts]
    watch.cancel()
    assert (first, second) == ([(name, 0), (f"{name}2", 0)], [(name, 5)])


def test_hundreds_of_watchers_cost_few_threads(counters: CounterServiceStub, name: str) -> None:
    before = threading.active_count()
    request = pb.WatchCountersRequest(counters=[name])
    watches = [counters.WatchCounters(request, timeout=60) for _ in range(300)]
    for watch in watches:
        next(watch)
    mine = [thread.name for thread in threading.enumerate()]
    for watch in watches:
        watch.cancel()
    assert len(mine) - before < 100


@pytest.fixture
def all_streams(counters: CounterServiceStub, settings: Settings, name: str) -> Iterator[None]:
    """Holds every stream that the worker serves."""
    release = threading.Event()

    def held(producer: str) -> Iterator[pb.StreamIncrementsRequest]:
        yield from batches(producer, 1, 1, name)
        release.wait(30)

    producers = [f"{name}{i}" for i in range(settings.stream_threads)]
    streams = [counters.StreamIncrements(held(producer), timeout=60) for producer in producers]
    for stream in streams:
        next(stream)
    yield
    release.set()
    for stream in streams:
        list(stream)


@pytest.mark.usefixtures("all_streams")
def test_one_stream_too_many_is_refused(counters: CounterServiceStub, name: str) -> None:
    error = refusal(counters.StreamIncrements, batches(name, 1, 1, name))
    assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "OVERLOADED")


@pytest.mark.usefixtures("all_streams")
def test_unary_calls_go_on_while_all_streams_are_taken(
    counters: CounterServiceStub, name: str
) -> None:
    add(counters, f"{name}:unary")
    assert get(counters, f"{name}:unary", exact=True).value == 1
