"""Exceptions to gRPC statuses, with the details that the contract promises."""

from typing import NamedTuple

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from tallyboard_server.errors import (
    Aborted,
    AlreadyExists,
    DeadlineExceeded,
    FailedPrecondition,
    FieldViolation,
    InvalidArgument,
    MessageTooLarge,
    NotFound,
    NotImplementedYet,
    OutcomeUnknown,
    OutOfRange,
    Overloaded,
    SequenceTooOld,
    TallyboardError,
    Unavailable,
)

DOMAIN = "tallyboard"
_PUSHBACK = "grpc-retry-pushback-ms"
# With these no item of a batch takes more than 410 bytes: 10,000 are less than 4 MiB.
_MAX_MESSAGE_BYTES = 160
_MAX_DESCRIPTION_BYTES = 90
_CUT = "…"
_CODES: tuple[tuple[type[Exception], grpc.StatusCode], ...] = (
    (InvalidArgument, grpc.StatusCode.INVALID_ARGUMENT),
    (MessageTooLarge, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (NotFound, grpc.StatusCode.NOT_FOUND),
    (AlreadyExists, grpc.StatusCode.ALREADY_EXISTS),
    (FailedPrecondition, grpc.StatusCode.FAILED_PRECONDITION),
    (Aborted, grpc.StatusCode.ABORTED),
    (OutOfRange, grpc.StatusCode.OUT_OF_RANGE),
    (SequenceTooOld, grpc.StatusCode.FAILED_PRECONDITION),
    (Overloaded, grpc.StatusCode.UNAVAILABLE),
    (Unavailable, grpc.StatusCode.UNAVAILABLE),
    (DeadlineExceeded, grpc.StatusCode.DEADLINE_EXCEEDED),
    (OutcomeUnknown, grpc.StatusCode.DEADLINE_EXCEEDED),
    (NotImplementedYet, grpc.StatusCode.UNIMPLEMENTED),
)


class Status(NamedTuple):
    """What `ServicerContext.abort_with_status` takes (grpc.Status)."""

    code: grpc.StatusCode
    details: str
    trailing_metadata: tuple[tuple[str, str | bytes], ...]


def code_of(error: Exception) -> grpc.StatusCode:
    """The status code of an exception; INTERNAL for what nobody foresaw."""
    for kind, code in _CODES:
        if isinstance(error, kind):
            return code
    return grpc.StatusCode.INTERNAL


def item_status_of(error: Exception) -> status_pb2.Status:
    """The same of one item of a batch: its sentences are cut, so that a message can hold 10,000.

    They echo names of any length, and the item is known by its place anyway.
    """
    if isinstance(error, InvalidArgument):
        violations = [
            FieldViolation(field, _cut(description, _MAX_DESCRIPTION_BYTES))
            for field, description in error.violations
        ]
        error = InvalidArgument(error.reason, violations)
    status = proto_of(error)
    status.message = _cut(status.message, _MAX_MESSAGE_BYTES)
    return status


def _cut(text: str, most: int) -> str:
    """The text, or its beginning, in at most so many bytes."""
    encoded = text.encode()
    if len(encoded) <= most:
        return text
    return encoded[: most - len(_CUT.encode())].decode("utf-8", "ignore") + _CUT


def proto_of(error: Exception) -> status_pb2.Status:
    """A google.rpc.Status with ErrorInfo, and BadRequest or RetryInfo where they apply."""
    message = error.message if isinstance(error, TallyboardError) else "internal error"
    reason = error.reason if isinstance(error, TallyboardError) else "INTERNAL"
    details: list[Message] = [error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN)]
    if isinstance(error, InvalidArgument):
        details.append(
            error_details_pb2.BadRequest(
                field_violations=[
                    error_details_pb2.BadRequest.FieldViolation(
                        field=violation.field, description=violation.description
                    )
                    for violation in error.violations
                ]
            )
        )
    if isinstance(error, TallyboardError) and error.retry_after is not None:
        details.append(error_details_pb2.RetryInfo(retry_delay=_duration(error.retry_after)))
    number: int = code_of(error).value[0]
    return status_pb2.Status(code=number, message=message, details=[_packed(d) for d in details])


def status_of(error: Exception) -> Status:
    """The status that ends a call, details and retry pushback among its trailing metadata."""
    status = rpc_status.to_status(proto_of(error))
    trailing = tuple(status.trailing_metadata or ())
    if isinstance(error, TallyboardError) and error.retry_after is not None:
        trailing += ((_PUSHBACK, str(int(error.retry_after * 1000))),)
    return Status(code_of(error), status.details, trailing)


def _duration(seconds: float) -> duration_pb2.Duration:
    return duration_pb2.Duration(seconds=int(seconds), nanos=int(seconds % 1 * 1e9))


def _packed(message: Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed
