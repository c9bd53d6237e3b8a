"""What can go wrong, as one tree of exceptions. The RPC layer turns each into a status.

TallyboardError
├── InvalidArgument     the caller's message is wrong; nothing changed
├── MessageTooLarge     the message has more bytes than are accepted
├── NotFound            there is no such thing
├── AlreadyExists       there is one of that name
├── FailedPrecondition  the state of the thing does not allow it; nothing changed
├── Aborted             somebody else changed it in between; nothing changed
├── OutOfRange          a total would leave its range; it keeps its value
├── SequenceTooOld      a stream's batch is too far behind to tell whether it was counted
├── Overloaded          a limit is reached; nothing changed; try again later
├── Unavailable         something is away; safe to try again
├── DeadlineExceeded    the caller's deadline passed; the outcome of a write is not known
├── OutcomeUnknown      a write without a token was sent and never answered
└── NotImplementedYet   the contract has it, this version does not
"""

from collections.abc import Sequence
from typing import NamedTuple


class FieldViolation(NamedTuple):
    """One wrong field: its path in the request, such as `deltas[3].counter`, and what is wrong."""

    field: str
    description: str


class TallyboardError(Exception):
    """Base of all of them; `reason` is one of the contract's ErrorReason names."""

    reason = "INTERNAL"
    retry_after: float | None = None

    def __init__(self, message: str, *, reason: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        if reason is not None:
            self.reason = reason


class InvalidArgument(TallyboardError):
    """The request breaks the contract; `violations` says where."""

    reason = "FIELD_INVALID"

    def __init__(self, reason: str, violations: Sequence[FieldViolation]) -> None:
        first = violations[0]
        super().__init__(f"{first.field}: {first.description}", reason=reason)
        self.violations = tuple(violations)


class MessageTooLarge(TallyboardError):
    """More bytes than are accepted; the transport's own limit answers with the same code."""

    reason = "MESSAGE_TOO_LARGE"


class NotFound(TallyboardError):
    """A leaderboard, an entry, a window or a snapshot is not there; `reason` says which."""

    reason = "LEADERBOARD_NOT_FOUND"


class AlreadyExists(TallyboardError):
    """The id is taken."""

    reason = "LEADERBOARD_ALREADY_EXISTS"


class FailedPrecondition(TallyboardError):
    """The window is closed, or the definition locked; `reason` says which."""

    reason = "WINDOW_CLOSED"


class Aborted(TallyboardError):
    """The resource has changed since its etag was read."""

    reason = "ETAG_MISMATCH"


class OutOfRange(TallyboardError):
    """The counter would leave the signed 64-bit range, or the sum of scores that of a double."""

    reason = "COUNTER_OUT_OF_RANGE"


class SequenceTooOld(TallyboardError):
    """The batch is further behind the producer's newest than the window remembers."""

    reason = "SEQUENCE_TOO_OLD"


class Overloaded(TallyboardError):
    """A queue or a quota is full; `retry_after` is in seconds."""

    reason = "OVERLOADED"
    retry_after = 0.5


class Unavailable(TallyboardError):
    """A store or a partition is away, and nothing was counted twice by saying so."""

    reason = "REDIS_UNAVAILABLE"
    retry_after = 1.0


def shutting_down() -> Unavailable:
    """The error for what comes while the server ends."""
    return Unavailable("the server is shutting down", reason="SHUTTING_DOWN")


class DeadlineExceeded(TallyboardError):
    """Time ran out before there was an answer."""

    reason = "DEADLINE_EXCEEDED"


class OutcomeUnknown(TallyboardError):
    """A write that carries no request id or sequence was sent, and no answer came."""

    reason = "OUTCOME_UNKNOWN"


class NotImplementedYet(TallyboardError):
    """This RPC is part of the contract and not of this version."""

    reason = "NOT_IMPLEMENTED"
