"""Bad input gets the error that the contract names, with field paths, and changes nothing."""

import uuid
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from tallyboard.v1 import counters_pb2 as pb
from tallyboard.v1.counters_pb2_grpc import CounterServiceStub
from tests.rpc.errors import Refusal, refusal

INVALID = grpc.StatusCode.INVALID_ARGUMENT
BAD_NAMES = {
    "empty": "",
    "257 bytes": "x" * 257,
    "257 bytes of two-byte letters": "é" * 128 + "x",
    "NUL": "post:\x0042",
    "newline": "post\n42",
    "delete": "post\x7f",
    "C1 control": "post\x85",
}


def exact(counters: CounterServiceStub, *names: str, tenant: str = "default") -> list[pb.Count]:
    """Live counts."""
    request = pb.BatchGetCountersRequest(counters=names)
    request.consistency.exact = True
    metadata = [("x-tallyboard-tenant", tenant)]
    return list(counters.BatchGetCounters(request, timeout=10, metadata=metadata).counts)


def value(counters: CounterServiceStub, name: str) -> int:
    """A live value."""
    return exact(counters, name)[0].value


def stream(*batches: pb.StreamIncrementsRequest) -> Iterator[pb.StreamIncrementsRequest]:
    """The requests of a stream."""
    return iter(batches)


@pytest.mark.parametrize("bad", BAD_NAMES.values(), ids=BAD_NAMES.keys())
def test_a_bad_counter_name_is_refused(counters: CounterServiceStub, bad: str) -> None:
    error = refusal(counters.Increment, pb.IncrementRequest(counter=bad, delta=1))
    assert (error.code, error.reason, error.fields) == (INVALID, "NAME_INVALID", ["counter"])


@pytest.mark.parametrize("bad", BAD_NAMES.values(), ids=BAD_NAMES.keys())
def test_a_bad_name_in_a_batch_changes_nothing(
    counters: CounterServiceStub, name: str, bad: str
) -> None:
    deltas = [pb.CounterDelta(counter=name, delta=1), pb.CounterDelta(counter=bad, delta=1)]
    error = refusal(counters.BatchIncrement, pb.BatchIncrementRequest(deltas=deltas))
    assert (error.code, error.reason, error.fields, value(counters, name)) == (
        INVALID,
        "NAME_INVALID",
        ["deltas[1].counter"],
        0,
    )


def test_a_bad_tenant_is_refused(counters: CounterServiceStub) -> None:
    request = pb.IncrementRequest(counter="post:42", delta=1)
    error = refusal(counters.Increment, request, metadata=[("x-tallyboard-tenant", "a" * 257)])
    assert (error.code, error.reason) == (INVALID, "TENANT_INVALID")


def test_delta_0_is_refused(counters: CounterServiceStub) -> None:
    error = refusal(counters.Increment, pb.IncrementRequest(counter="post:42", delta=0))
    assert (error.code, error.reason, error.fields) == (INVALID, "DELTA_ZERO", ["delta"])


def test_delta_0_in_a_batch_changes_nothing(counters: CounterServiceStub, name: str) -> None:
    deltas = [pb.CounterDelta(counter=name, delta=1), pb.CounterDelta(counter="b", delta=0)]
    error = refusal(counters.BatchIncrement, pb.BatchIncrementRequest(deltas=deltas))
    assert (error.reason, error.fields, value(counters, name)) == (
        "DELTA_ZERO",
        ["deltas[1].delta"],
        0,
    )


@pytest.mark.parametrize(("size", "reason"), [(0, "FIELD_INVALID"), (10_001, "TOO_MANY_ITEMS")])
def test_a_batch_of_a_wrong_size_changes_nothing(
    counters: CounterServiceStub, name: str, size: int, reason: str
) -> None:
    deltas = [pb.CounterDelta(counter=name, delta=1)] * size
    error = refusal(counters.BatchIncrement, pb.BatchIncrementRequest(deltas=deltas))
    assert (error.code, error.reason, error.fields, value(counters, name)) == (
        INVALID,
        reason,
        ["deltas"],
        0,
    )


def test_10_000_deltas_are_taken(counters: CounterServiceStub, name: str) -> None:
    deltas = [pb.CounterDelta(counter=name, delta=1)] * 10_000
    counters.BatchIncrement(pb.BatchIncrementRequest(deltas=deltas), timeout=10)
    assert value(counters, name) == 10_000


@pytest.mark.parametrize(
    "request_id",
    [
        "post:42",
        "0" * 31,
        "0" * 32,
        "{}",
        "\x00",
        "{7f1c3a52-0d3e-4a41-9c55-0b6f1f2a9d10}",
        "urn:uuid:7f1c3a52-0d3e-4a41-9c55-0b6f1f2a9d10",
        "7f1c3a520d3e-4a41-9c55-0b6f1f2a9d10-",
    ],
)
def test_a_request_id_that_is_no_uuid_is_refused(
    counters: CounterServiceStub, request_id: str
) -> None:
    request = pb.IncrementRequest(counter="post:42", delta=1, request_id=request_id)
    error = refusal(counters.Increment, request)
    assert (error.reason, error.fields) == ("REQUEST_ID_INVALID", ["request_id"])


@pytest.mark.parametrize("other", [{"delta": 2}, {"counter": "another"}])
def test_a_request_id_with_other_contents_changes_nothing(
    counters: CounterServiceStub, name: str, other: dict[str, Any]
) -> None:
    request = pb.IncrementRequest(counter=name, delta=1, request_id=str(uuid.uuid4()))
    counters.Increment(request, timeout=10)
    for field, changed in other.items():
        setattr(request, field, f"{name}{changed}" if field == "counter" else changed)
    error = refusal(counters.Increment, request)
    values = [count.value for count in exact(counters, name, f"{name}another")]
    assert (error.code, error.reason, values) == (INVALID, "REQUEST_ID_REUSED", [1, 0])


def test_a_request_id_of_another_rpc_is_refused(counters: CounterServiceStub, name: str) -> None:
    request_id = str(uuid.uuid4())
    counters.Increment(pb.IncrementRequest(counter=name, delta=1, request_id=request_id), timeout=9)
    reset = pb.ResetCounterRequest(counter=name, request_id=request_id)
    assert refusal(counters.ResetCounter, reset).reason == "REQUEST_ID_REUSED"


def test_a_message_of_20_mb_gets_the_same_code(counters: CounterServiceStub) -> None:
    error = refusal(counters.Increment, pb.IncrementRequest(counter="x" * 20_000_000, delta=1))
    assert error.code == grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_message_of_5_mb_gets_details(counters: CounterServiceStub, name: str) -> None:
    request = pb.IncrementRequest(counter=name + "x" * 5_000_000, delta=1)
    error = refusal(counters.Increment, request)
    assert (error.code, error.reason) == (
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "MESSAGE_TOO_LARGE",
    )


def test_bytes_that_are_no_message_are_refused(channel: grpc.Channel) -> None:
    raw = channel.unary_unary("/tallyboard.v1.CounterService/Increment")
    error = refusal(raw, b"\xff\xff\xff\xff")
    assert (error.code, error.reason, error.fields) == (INVALID, "FIELD_INVALID", ["message"])


def test_a_name_that_is_not_utf_8_is_refused(channel: grpc.Channel) -> None:
    raw = channel.unary_unary("/tallyboard.v1.CounterService/Increment")
    error = refusal(raw, b"\x0a\x02\xc3\x28\x10\x01")
    assert (error.code, error.reason) == (INVALID, "FIELD_INVALID")


def test_unknown_fields_are_ignored(channel: grpc.Channel, counters: CounterServiceStub) -> None:
    raw = channel.unary_unary("/tallyboard.v1.CounterService/Increment")
    known = pb.IncrementRequest(counter="unknown-fields", delta=3).SerializeToString()
    raw(known + b"\x92\x3e\x03new", timeout=10)
    assert value(counters, "unknown-fields") == 3


def test_names_like_our_own_keys_stay_apart(counters: CounterServiceStub) -> None:
    names = ["{tb:1}:c:7:default:a", "}", "{tb:1}:i", "{tb:0}:d", "tb:meta", "7:default:a", ":a"]
    for amount, name in enumerate(names, 1):
        counters.Increment(pb.IncrementRequest(counter=name, delta=amount), timeout=10)
    assert [count.value for count in exact(counters, *names)] == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize(
    ("tenant", "counter"), [("a:b", "c"), ("a", "b:c"), ("1:a", "c"), ("{tb:1}", "c")]
)
def test_tenants_do_not_collide(counters: CounterServiceStub, tenant: str, counter: str) -> None:
    request = pb.IncrementRequest(counter=counter, delta=1, return_count=True)
    metadata = [("x-tallyboard-tenant", tenant)]
    assert counters.Increment(request, timeout=10, metadata=metadata).count.value == 1


def test_another_tenant_reads_0(counters: CounterServiceStub, name: str) -> None:
    counters.Increment(pb.IncrementRequest(counter=name, delta=5), timeout=10)
    assert not exact(counters, name, tenant="acme")[0].exists


@pytest.mark.parametrize(
    ("first", "second"),
    [(2**63 - 1, 1), (-(2**63), -1), (2**62, 2**62), (2**53, 2**63 - 1), (1, 2**63 - 1)],
)
def test_past_64_bits_keeps_the_value(
    counters: CounterServiceStub, name: str, first: int, second: int
) -> None:
    counters.Increment(pb.IncrementRequest(counter=name, delta=first), timeout=10)
    error = refusal(counters.Increment, pb.IncrementRequest(counter=name, delta=second))
    assert (error.code, error.reason, value(counters, name)) == (
        grpc.StatusCode.OUT_OF_RANGE,
        "COUNTER_OUT_OF_RANGE",
        first,
    )


def test_one_item_past_64_bits_leaves_the_others(counters: CounterServiceStub, name: str) -> None:
    deltas = [pb.CounterDelta(counter=f"{name}{i}", delta=2**62 + i) for i in range(3)]
    deltas.append(pb.CounterDelta(counter=f"{name}1", delta=2**62))
    answer = counters.BatchIncrement(pb.BatchIncrementRequest(deltas=deltas), timeout=10)
    values = [count.value for count in exact(counters, *(f"{name}{i}" for i in range(3)))]
    failed = [failure.index for failure in answer.failures]
    assert (failed, values) == ([1, 3], [2**62, 0, 2**62 + 2])


@pytest.mark.parametrize(
    ("batch", "reason"),
    [
        ({"sequence": 1, "counters": ["a"], "deltas": [1]}, "PRODUCER_INVALID"),
        ({"producer_id": "ann", "counters": ["a"], "deltas": [1]}, "SEQUENCE_INVALID"),
        ({"producer_id": "ann", "sequence": 1, "counters": ["a"]}, "FIELD_INVALID"),
        ({"producer_id": "ann", "sequence": 1, "deltas": [1]}, "FIELD_INVALID"),
        (
            {"producer_id": "ann", "sequence": 1, "counters": ["a"] * 2, "deltas": [1] * 3},
            "FIELD_INVALID",
        ),
        (
            {"producer_id": "ann", "sequence": 1, "counters": ["a"], "deltas": [1] * 10_001},
            "TOO_MANY_ITEMS",
        ),
        ({"producer_id": "ann", "sequence": 2**60, "counters": ["a"], "deltas": [1]},
         "SEQUENCE_INVALID"),
    ],
)  # fmt: skip
def test_a_bad_batch_ends_the_stream(
    counters: CounterServiceStub, batch: dict[str, Any], reason: str
) -> None:
    error = refusal(counters.StreamIncrements, stream(pb.StreamIncrementsRequest(**batch)))
    assert (error.code, error.reason) == (INVALID, reason)


def test_a_bad_item_in_a_stream_is_a_failure(counters: CounterServiceStub, name: str) -> None:
    batch = pb.StreamIncrementsRequest(
        producer_id=name, sequence=1, counters=[name, "", f"{name}0"], deltas=[1, 1, 0]
    )
    failures = [
        failure.counter
        for answer in counters.StreamIncrements(stream(batch), timeout=10)
        for failure in answer.failures
    ]
    assert (sorted(failures), value(counters, name)) == (["", f"{name}0"], 1)


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (pb.GetCounterRequest(counter="a", consistency={"max_staleness": {"seconds": -1}}),
         "consistency.max_staleness"),
        (pb.GetCounterRequest(counter="a", consistency={"max_staleness": {"seconds": 3601}}),
         "consistency.max_staleness"),
    ],
)  # fmt: skip
def test_bad_staleness_is_refused(
    counters: CounterServiceStub, request_: pb.GetCounterRequest, field: str
) -> None:
    error: Refusal = refusal(counters.GetCounter, request_)
    assert (error.reason, error.fields) == ("CONSISTENCY_INVALID", [field])


@pytest.mark.parametrize("size", [0, 1_001])
def test_reads_of_a_wrong_size_are_refused(counters: CounterServiceStub, size: int) -> None:
    request = pb.BatchGetCountersRequest(counters=[f"c{i}" for i in range(size)])
    assert refusal(counters.BatchGetCounters, request).fields == ["counters"]


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (pb.ListCountersRequest(page_size=-1), "PAGE_INVALID"),
        (pb.ListCountersRequest(page_token="post:42"), "PAGE_INVALID"),
        (pb.ListCountersRequest(order_by="delta"), "FIELD_INVALID"),
        (pb.ListCountersRequest(prefix="\x00"), "NAME_INVALID"),
    ],
)
def test_bad_pages_are_refused(
    counters: CounterServiceStub, request_: pb.ListCountersRequest, reason: str
) -> None:
    error = refusal(counters.ListCounters, request_)
    assert (error.code, error.reason) == (INVALID, reason)


@pytest.mark.parametrize(
    "request_",
    [
        pb.WatchCountersRequest(),
        pb.WatchCountersRequest(counters=["a", "a"]),
        pb.WatchCountersRequest(counters=[f"c{i}" for i in range(101)]),
        pb.WatchCountersRequest(counters=["a"], min_interval={"nanos": 1}),
    ],
)
def test_bad_watches_are_refused(
    counters: CounterServiceStub, request_: pb.WatchCountersRequest
) -> None:
    assert refusal(counters.WatchCounters, request_).code == INVALID
