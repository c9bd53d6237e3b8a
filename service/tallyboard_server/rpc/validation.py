"""Checks of request fields; each raises InvalidArgument with the paths of what is wrong."""

import math
import re
from collections.abc import Iterable, Sequence

from google.protobuf.descriptor import Descriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from tallyboard.v1.consistency_pb2 import Consistency
from tallyboard_server.counters.model import Fallback
from tallyboard_server.errors import FieldViolation, InvalidArgument
from tallyboard_server.names import are_plain, name_problem

MAX_ITEMS = 10_000
MAX_STALENESS = 3600.0
MAX_METADATA_BYTES = 2048
# What google.protobuf.Timestamp can say: years 1 to 9999, as seconds since the epoch.
FIRST_SECOND = -62_135_596_800
LAST_SECOND = 253_402_300_799
_UUID = re.compile("[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_NANOS = 1_000_000_000
# A message with thousands of wrong fields is answered with the first few.
_MAX_VIOLATIONS = 20


def check_name(field: str, name: str) -> None:
    """A name of 1 to 256 bytes without control characters."""
    problem = name_problem(name)
    if problem:
        raise invalid("NAME_INVALID", field, problem)


def check_names(field: str, names: Sequence[str], most: int) -> None:
    """1 to `most` names."""
    check_size(field, len(names), most)
    if are_plain(names):
        return
    check_all(
        "NAME_INVALID",
        ((f"{field}[{index}]", name_problem(name)) for index, name in enumerate(names)),
    )


def check_size(field: str, size: int, most: int) -> None:
    """A list of 1 to `most` items."""
    if not size:
        raise invalid("FIELD_INVALID", field, "must not be empty")
    if size > most:
        raise invalid("TOO_MANY_ITEMS", field, f"has {size:,} items; at most {most:,} are allowed")


def check_all(reason: str, problems: Iterable[tuple[str, str | None]]) -> None:
    """Raises if any of (field, problem) has a problem; names up to 20 of them."""
    violations = []
    for field, problem in problems:
        if problem:
            violations.append(FieldViolation(field, problem))
            if len(violations) == _MAX_VIOLATIONS:
                break
    if violations:
        raise InvalidArgument(reason, violations)


def check_delta(field: str, delta: int) -> None:
    """Anything but 0."""
    if delta == 0:
        raise invalid("DELTA_ZERO", field, "must not be 0")


def check_score(field: str, score: float) -> None:
    """Anything but NaN and the infinities."""
    if not math.isfinite(score):
        raise invalid("SCORE_INVALID", field, f"must be a finite number, not {score}")


def check_metadata(field: str, metadata: bytes) -> None:
    """Up to 2 KiB."""
    if len(metadata) > MAX_METADATA_BYTES:
        detail = f"has {len(metadata):,} bytes; at most {MAX_METADATA_BYTES:,} are allowed"
        raise invalid("METADATA_TOO_LARGE", field, detail)


def request_id(value: str) -> str:
    """A UUID of 36 characters, in lower case; or empty."""
    if value and not _UUID.fullmatch(value):
        raise invalid("REQUEST_ID_INVALID", "request_id", "must be a UUID of 36 characters")
    return value.lower()


def seconds(
    field: str, duration: Duration, low: float, high: float, reason: str = "FIELD_INVALID"
) -> float:
    """A duration in seconds, from `low` to `high`."""
    whole, nanos = duration.seconds, duration.nanos
    if not -_NANOS < nanos < _NANOS or whole * nanos < 0:
        raise invalid(reason, field, f"is no duration: {whole} seconds and {nanos} nanoseconds")
    value = whole + nanos / _NANOS
    if not low <= value <= high:
        raise invalid(reason, field, f"must be from {low:g} to {high:g} seconds, not {value:g}")
    return value


def whole_seconds(field: str, duration: Duration, low: int, high: int) -> int:
    """A duration of whole seconds, from `low` to `high`."""
    value = seconds(field, duration, low, high)
    if duration.nanos:  # of a long duration, a float has lost them
        raise invalid("FIELD_INVALID", field, "must be whole seconds")
    return int(value)


def moment(
    field: str, timestamp: Timestamp, first: int = FIRST_SECOND, last: int = LAST_SECOND
) -> int:
    """A timestamp in microseconds since the epoch, rounded down.

    Args:
        first, last: the seconds since the epoch that it may lie in.
    """
    whole, nanos = timestamp.seconds, timestamp.nanos
    if not first <= whole <= last or not 0 <= nanos < _NANOS:
        detail = f"is out of its limits: {whole} seconds and {nanos} nanoseconds since 1970"
        raise invalid("FIELD_INVALID", field, detail)
    return whole * 1_000_000 + nanos // 1000


def staleness(consistency: Consistency, default: float) -> float | None:
    """Seconds that an answer may be old; None asks Redis now. An unset message is the default."""
    if consistency.exact:
        return None
    if not consistency.HasField("max_staleness"):
        return default
    field, reason = "consistency.max_staleness", "CONSISTENCY_INVALID"
    return seconds(field, consistency.max_staleness, 0, MAX_STALENESS, reason) or None


def fallback(consistency: Consistency) -> Fallback:
    """Whether Postgres may answer: if the caller says how fresh the answer has to be, only then."""
    if consistency.exact or consistency.HasField("max_staleness"):
        return Fallback.FRESH
    return Fallback.ANY_AGE


def count(field: str, value: int, default: int, most: int, reason: str = "FIELD_INVALID") -> int:
    """How many to answer: 0 is the default, above the maximum is the maximum."""
    if value < 0:
        raise invalid(reason, field, "must not be negative")
    return min(value, most) or default


def page_size(value: int, default: int, most: int) -> int:
    """The page size asked for: 0 is the default, above the maximum is the maximum."""
    return count("page_size", value, default, most, "PAGE_INVALID")


def within(path: str, error: InvalidArgument, kind: Descriptor) -> InvalidArgument:
    """The same error, with the fields of a message of this kind under the path of that message."""
    violations = [
        FieldViolation(f"{path}.{field}", description)
        if re.split(r"[.[]", field, maxsplit=1)[0] in kind.fields_by_name
        else FieldViolation(field, description)
        for field, description in error.violations
    ]
    return InvalidArgument(error.reason, violations)


def invalid(reason: str, field: str, description: str) -> InvalidArgument:
    """The error for one wrong field."""
    return InvalidArgument(reason, [FieldViolation(field, description)])
