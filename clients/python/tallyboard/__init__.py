"""The Python library of Tallyboard: live counters and leaderboards over gRPC.

`Client` is where to begin. `IncrementProducer` counts at a high rate, each update exactly once. The
generated messages and stubs of every RPC are in `tallyboard.v1`.
"""

from tallyboard._answers import BatchResult, Count, Entry, Submitted, WindowResult
from tallyboard._buffer import BufferedCounter, CounterBuffer
from tallyboard._channel import open_channel
from tallyboard._client import Client
from tallyboard._counters import Counter
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
from tallyboard._leaderboards import Leaderboard, ReadOptions, Score
from tallyboard._producer import IncrementProducer
from tallyboard._service_config import SERVICE_CONFIG

__all__ = [
    "SERVICE_CONFIG",
    "AbortedError",
    "AlreadyExistsError",
    "BatchResult",
    "BufferedCounter",
    "Client",
    "Count",
    "Counter",
    "CounterBuffer",
    "DeadlineExceededError",
    "Entry",
    "FailedPreconditionError",
    "IncrementFailure",
    "IncrementProducer",
    "InternalError",
    "InvalidArgumentError",
    "Leaderboard",
    "NotFoundError",
    "OutOfRangeError",
    "OutcomeUnknownError",
    "PermissionDeniedError",
    "ReadOptions",
    "ResourceExhaustedError",
    "Score",
    "Submitted",
    "TallyboardError",
    "UnauthenticatedError",
    "UnavailableError",
    "UnimplementedError",
    "Violation",
    "WindowFullError",
    "WindowResult",
    "error_from_call",
    "error_from_status",
    "open_channel",
]
