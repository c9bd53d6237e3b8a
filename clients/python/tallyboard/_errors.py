"""The exceptions of the library, made from the status and the details that the service sends.

Branch on the class or on `reason`, which is the name of a `tallyboard.v1.ErrorReason` without its
prefix; never on the text.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple, TypeVar

import grpc
from google.protobuf.any_pb2 import Any as Packed
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2

DOMAIN: Final = "tallyboard"
_DETAILS_KEY: Final = "grpc-status-details-bin"
_PUSHBACK_KEY: Final = "grpc-retry-pushback-ms"
_Detail = TypeVar("_Detail", bound=Message)


class Violation(NamedTuple):
    """What is wrong with one field of a request."""

    field: str
    description: str


class TallyboardError(Exception):
    """Any error of the service, or of this library on its behalf.

    Attributes:
        message: a sentence for a person.
        reason: which error it is, `NAME_INVALID` for example; empty if the error comes from the
            transport, which knows no reasons.
        code: the gRPC status code.
        violations: the fields at fault.
        retry_after: the least time in seconds to wait before trying again, or None.
        taken: how many updates of a producer's call, from the first on, were taken before the
            error; they are pending or acknowledged, and must not be given again.
    """

    default_code = grpc.StatusCode.UNKNOWN
    taken = 0

    def __init__(
        self,
        message: str,
        reason: str = "",
        *,
        code: grpc.StatusCode | None = None,
        violations: Sequence[Violation] = (),
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason
        self.code = code or self.default_code
        self.violations = tuple(violations)
        self.retry_after = retry_after

    def __str__(self) -> str:
        fields = "; ".join(f"{field}: {description}" for field, description in self.violations)
        name = self.reason or self.code.name
        return f"{name}: {self.message}" + (f" ({fields})" if fields else "")


class InvalidArgumentError(TallyboardError, ValueError):
    """The request is at fault; the same request will never succeed."""

    default_code = grpc.StatusCode.INVALID_ARGUMENT


class OutOfRangeError(TallyboardError):
    """A total would leave its range; it keeps its value."""

    default_code = grpc.StatusCode.OUT_OF_RANGE


class NotFoundError(TallyboardError):
    """What the request names does not exist."""

    default_code = grpc.StatusCode.NOT_FOUND


class AlreadyExistsError(TallyboardError):
    """What the request would make exists already."""

    default_code = grpc.StatusCode.ALREADY_EXISTS


class FailedPreconditionError(TallyboardError):
    """The state of what the request names does not allow it."""

    default_code = grpc.StatusCode.FAILED_PRECONDITION


class AbortedError(TallyboardError):
    """What the request would change was changed by somebody else."""

    default_code = grpc.StatusCode.ABORTED


class ResourceExhaustedError(TallyboardError):
    """A quota is used up, or a message is too large."""

    default_code = grpc.StatusCode.RESOURCE_EXHAUSTED


class UnavailableError(TallyboardError):
    """The service, or a store of it, is away; trying again with the same request id is safe.

    From the service it means that nothing was applied. A connection that broke is one, too, and
    then nobody knows.
    """

    default_code = grpc.StatusCode.UNAVAILABLE


class DeadlineExceededError(TallyboardError, TimeoutError):
    """The time was over before the work was done."""

    default_code = grpc.StatusCode.DEADLINE_EXCEEDED


class OutcomeUnknownError(DeadlineExceededError):
    """A write was sent and its answer did not come: it may or may not have been applied."""


class WindowFullError(DeadlineExceededError):
    """A producer had too much unacknowledged for as long as the caller would wait."""

    def __init__(self, taken: int) -> None:
        super().__init__(
            "too many updates are unacknowledged to take more", reason="DEADLINE_EXCEEDED"
        )
        self.taken = taken


class UnauthenticatedError(TallyboardError):
    """The credentials are missing, unknown or expired."""

    default_code = grpc.StatusCode.UNAUTHENTICATED


class PermissionDeniedError(TallyboardError):
    """The credentials do not allow this."""

    default_code = grpc.StatusCode.PERMISSION_DENIED


class UnimplementedError(TallyboardError):
    """The service does not have this RPC, or this option of it."""

    default_code = grpc.StatusCode.UNIMPLEMENTED


class InternalError(TallyboardError):
    """A fault of the service, whose log has the details."""

    default_code = grpc.StatusCode.INTERNAL


_BY_CODE: Final[dict[grpc.StatusCode, type[TallyboardError]]] = {
    kind.default_code: kind for kind in TallyboardError.__subclasses__()
}
_BY_REASON: Final[dict[str, type[TallyboardError]]] = {"OUTCOME_UNKNOWN": OutcomeUnknownError}
_CODES: Final[dict[int, grpc.StatusCode]] = {code.value[0]: code for code in grpc.StatusCode}


def error_from_status(status: status_pb2.Status) -> TallyboardError:
    """The exception for a status, such as that of one item of a batch."""
    code = _CODES.get(status.code, grpc.StatusCode.UNKNOWN)
    infos = _unpacked(status.details, error_details_pb2.ErrorInfo)
    reason = next((info.reason for info in infos if info.domain == DOMAIN), "")
    violations = [
        Violation(violation.field, violation.description)
        for request in _unpacked(status.details, error_details_pb2.BadRequest)
        for violation in request.field_violations
    ]
    delays = [
        retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9
        for retry in _unpacked(status.details, error_details_pb2.RetryInfo)
    ]
    kind = _BY_REASON.get(reason) or _BY_CODE.get(code, TallyboardError)
    return kind(
        status.message,
        reason,
        code=code,
        violations=violations,
        retry_after=max(delays, default=None),
    )


def error_from_call(error: grpc.RpcError) -> TallyboardError:
    """The exception for a call that failed; it has `error` as its cause.

    `retry_after` is the longer of RetryInfo and the metadata `grpc-retry-pushback-ms`.
    """
    # Every error that a call raises is a grpc.Call too, which no type says.
    call: Any = error
    status = status_pb2.Status(code=call.code().value[0], message=call.details() or "")
    pushback: float | None = None
    for key, value in call.trailing_metadata() or ():
        if key == _DETAILS_KEY:
            status = _parsed(value) or status
        elif key == _PUSHBACK_KEY:
            pushback = _seconds(value)
    found = error_from_status(status)
    if pushback is not None:
        found.retry_after = max(pushback, found.retry_after or 0.0)
    found.__cause__ = error
    return found


def _unpacked(details: Iterable[Packed], kind: type[_Detail]) -> list[_Detail]:
    found = []
    for packed in details:
        detail = kind()
        try:
            if packed.Unpack(detail):
                found.append(detail)
        except DecodeError:
            continue
    return found


def _parsed(data: str | bytes) -> status_pb2.Status | None:
    try:
        return status_pb2.Status.FromString(data if isinstance(data, bytes) else data.encode())
    except DecodeError:
        return None


def _seconds(milliseconds: str | bytes) -> float | None:
    try:
        return max(0, int(milliseconds)) / 1000
    except ValueError:
        return None
