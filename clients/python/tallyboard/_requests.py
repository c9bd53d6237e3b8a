"""Makes requests; what can't be sent is refused here as the service would refuse it."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, ParamSpec, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from tallyboard._errors import InvalidArgumentError, Violation

_Fields = ParamSpec("_Fields")
_Made = TypeVar("_Made", bound=Message)
_Row = TypeVar("_Row")
_REASONS: Final = {
    "counter": "NAME_INVALID",
    "counters": "NAME_INVALID",
    "leaderboard_id": "NAME_INVALID",
    "member": "NAME_INVALID",
    "members": "NAME_INVALID",
    "page_size": "PAGE_INVALID",
    "request_id": "REQUEST_ID_INVALID",
    "score": "SCORE_INVALID",
}
_RANGES: Final = {
    FieldDescriptor.TYPE_INT32: "a signed 32-bit integer",
    FieldDescriptor.TYPE_INT64: "a signed 64-bit integer",
    FieldDescriptor.TYPE_DOUBLE: "a double",
}


def build(
    kind: Callable[_Fields, _Made], *arguments: _Fields.args, **fields: _Fields.kwargs
) -> _Made:
    """A message with these fields, given by name.

    Raises:
        InvalidArgumentError: text is not UTF-8, or a number does not fit; names the first field.
        TypeError: a value is of another type than its field.
    """
    try:
        return kind(*arguments, **fields)
    except (ValueError, OverflowError) as error:
        raise _fault_of(kind, fields) from error


def build_each(path: str, make: Callable[[_Row], _Made], rows: Iterable[_Row]) -> list[_Made]:
    """A message of each row; the error of one has the path `path[index]` before its own."""
    made: list[_Made] = []
    try:
        for row in rows:
            made.append(make(row))
    except InvalidArgumentError as error:
        raise within(f"{path}[{len(made)}]", error) from error
    return made


def within(path: str, error: InvalidArgumentError) -> InvalidArgumentError:
    """The same error of a message that is in the field `path` of another."""
    violations = [
        Violation(f"{path}.{field}", description) for field, description in error.violations
    ]
    return InvalidArgumentError(error.message, error.reason, violations=violations)


def refused(reason: str, field: str, description: str) -> InvalidArgumentError:
    """The error for one wrong field."""
    violations = [Violation(field, description)]
    return InvalidArgumentError("the request cannot be sent", reason, violations=violations)


def at_least_one(reason: str, field: str, value: int) -> int:
    """The value, where the service would take a 0 for its default.

    Raises:
        InvalidArgumentError: it is less than 1.
    """
    if value < 1:
        raise refused(reason, field, f"must be 1 or more, not {value}")
    return value


def _fault_of(kind: Any, fields: dict[str, Any]) -> InvalidArgumentError:
    """What is wrong, found by trying each field alone."""
    for name, value in fields.items():
        for path, part in _parts(name, value):
            try:
                kind(**{name: part})
            except UnicodeError:
                return refused(_REASONS.get(name, "FIELD_INVALID"), path, "must be UTF-8")
            except (ValueError, OverflowError):
                limit = _RANGES.get(kind.DESCRIPTOR.fields_by_name[name].type, "its range")
                return refused(_REASONS.get(name, "FIELD_INVALID"), path, f"must fit in {limit}")
    return refused("FIELD_INVALID", "", "has a value that can't be sent")


def _parts(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The value; of a list, each item as a list of its own."""
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        for index, item in enumerate(value):
            yield f"{name}[{index}]", [item]
    else:
        yield name, value
