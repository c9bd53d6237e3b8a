"""The Python library of Tallyboard: live counters over gRPC.

`IncrementProducer` counts at a high rate, each update exactly once. The generated messages and
stubs of every RPC are in `tallyboard.v1`.
"""

from tallyboard._channel import open_channel
from tallyboard._errors import (
    AbortedError,
    AlreadyExistsError,
    DeadlineExceededError,
    FailedPreconditionError,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    OutcomeUnknownError,
    OutOfRangeError,
    PermissionDeniedError,
    ResourceExhaustedError,
    TallyboardError,
    UnauthenticatedError,
    UnavailableError,
    UnimplementedError,
    Violation,
    WindowFullError,
    error_from_call,
    error_from_status,
)
from tallyboard._failures import IncrementFailure
from tallyboard._producer import IncrementProducer

__all__ = [
    "AbortedError",
    "AlreadyExistsError",
    "DeadlineExceededError",
    "FailedPreconditionError",
    "IncrementFailure",
    "IncrementProducer",
    "InternalError",
    "InvalidArgumentError",
    "NotFoundError",
    "OutOfRangeError",
    "OutcomeUnknownError",
    "PermissionDeniedError",
    "ResourceExhaustedError",
    "TallyboardError",
    "UnauthenticatedError",
    "UnavailableError",
    "UnimplementedError",
    "Violation",
    "WindowFullError",
    "error_from_call",
    "error_from_status",
    "open_channel",
]
