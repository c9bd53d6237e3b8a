"""Statuses to exceptions: class, reason, fields and the time to wait."""

from typing import Any

import grpc
import pytest
from google.protobuf.any_pb2 import Any as Packed
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from tallyboard import (
    DeadlineExceededError,
    InvalidArgumentError,
    OutcomeUnknownError,
    TallyboardError,
    UnavailableError,
    Violation,
    error_from_call,
    error_from_status,
)
from tallyboard.v1 import counters_pb2, counters_pb2_grpc

_INVALID, _DEADLINE, _UNAVAILABLE = 3, 4, 14


def _status(code: int, *details: Message) -> status_pb2.Status:
    packed = []
    for detail in details:
        packed.append(Packed())
        packed[-1].Pack(detail)
    return status_pb2.Status(code=code, message="no", details=packed)


def _info(reason: str, domain: str = "tallyboard") -> error_details_pb2.ErrorInfo:
    return error_details_pb2.ErrorInfo(reason=reason, domain=domain)


class _Failed(grpc.RpcError):
    """What a call raises, with only what the library looks at."""

    def __init__(self, *metadata: tuple[str, str | bytes]) -> None:
        self._metadata = metadata

    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.UNAVAILABLE

    def details(self) -> str:
        return "away"

    def trailing_metadata(self) -> Any:
        return self._metadata


def test_reason_is_that_of_the_error_info() -> None:
    assert error_from_status(_status(_INVALID, _info("DELTA_ZERO"))).reason == "DELTA_ZERO"


def test_reason_of_another_domain_is_none_of_ours() -> None:
    assert error_from_status(_status(_INVALID, _info("DELTA_ZERO", "acme"))).reason == ""


@pytest.mark.parametrize(
    ("code", "reason", "kind"),
    [
        (_INVALID, "DELTA_ZERO", InvalidArgumentError),
        (_UNAVAILABLE, "OVERLOADED", UnavailableError),
        (_DEADLINE, "DEADLINE_EXCEEDED", DeadlineExceededError),
        (_DEADLINE, "OUTCOME_UNKNOWN", OutcomeUnknownError),
        (99, "", TallyboardError),
    ],
)
def test_class_follows_code_and_reason(code: int, reason: str, kind: type[TallyboardError]) -> None:
    assert type(error_from_status(_status(code, _info(reason)))) is kind


def test_fields_at_fault_are_named() -> None:
    violation = error_details_pb2.BadRequest.FieldViolation(field="delta", description="is 0")
    request = error_details_pb2.BadRequest(field_violations=[violation])
    assert error_from_status(_status(_INVALID, request)).violations == (Violation("delta", "is 0"),)


def test_retry_info_is_in_seconds() -> None:
    retry = error_details_pb2.RetryInfo(retry_delay=Duration(seconds=1, nanos=500_000_000))
    assert error_from_status(_status(_UNAVAILABLE, retry)).retry_after == 1.5


def test_longer_pushback_wins() -> None:
    retry = error_details_pb2.RetryInfo(retry_delay=Duration(seconds=1))
    status = _status(_UNAVAILABLE, retry).SerializeToString()
    error = error_from_call(
        _Failed(("grpc-status-details-bin", status), ("grpc-retry-pushback-ms", "2500"))
    )
    assert error.retry_after == 2.5


def test_pushback_that_is_no_number_is_ignored() -> None:
    assert error_from_call(_Failed(("grpc-retry-pushback-ms", "soon"))).retry_after is None


def test_details_that_cannot_be_read_leave_the_code() -> None:
    error = error_from_call(_Failed(("grpc-status-details-bin", b"\xff\xff")))
    assert error.code is grpc.StatusCode.UNAVAILABLE


def test_transport_error_has_no_reason() -> None:
    assert error_from_call(_Failed()).reason == ""


def test_text_names_reason_and_fields() -> None:
    error = InvalidArgumentError("no", "DELTA_ZERO", violations=[Violation("delta", "is 0")])
    assert str(error) == "DELTA_ZERO: no (delta: is 0)"


def test_error_of_a_real_call(channel: grpc.Channel) -> None:
    stub = counters_pb2_grpc.CounterServiceStub(channel)
    with pytest.raises(grpc.RpcError) as caught:
        stub.Increment(counters_pb2.IncrementRequest(counter="post:42"), timeout=10)
    error = error_from_call(caught.value)
    assert (error.reason, error.code) == ("DELTA_ZERO", grpc.StatusCode.INVALID_ARGUMENT)
