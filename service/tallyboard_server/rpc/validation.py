"""Checks of request fields; each raises InvalidArgument with the paths of what is wrong."""

import uuid
from collections.abc import Iterable, Sequence

from google.protobuf.duration_pb2 import Duration

from tallyboard_server.errors import FieldViolation, InvalidArgument
from tallyboard_server.names import name_problem

MAX_ITEMS = 10_000
MAX_STALENESS = 3600.0
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


def request_id(value: str) -> str:
    """A UUID in its canonical form, or empty."""
    if not value:
        return ""
    try:
        return str(uuid.UUID(value))
    except ValueError:
        raise invalid("REQUEST_ID_INVALID", "request_id", "must be a UUID") from None


def seconds(
    field: str, duration: Duration, low: float, high: float, reason: str = "FIELD_INVALID"
) -> float:
    """A duration in seconds, from `low` to `high`."""
    value = duration.seconds + duration.nanos / 1e9
    if not low <= value <= high:
        raise invalid(reason, field, f"must be from {low:g} to {high:g} seconds, not {value:g}")
    return value


def page_size(value: int, default: int, most: int) -> int:
    """The page size asked for: 0 is the default, above the maximum is the maximum."""
    if value < 0:
        raise invalid("PAGE_INVALID", "page_size", "must not be negative")
    return min(value, most) or default


def invalid(reason: str, field: str, description: str) -> InvalidArgument:
    """The error for one wrong field."""
    return InvalidArgument(reason, [FieldViolation(field, description)])
