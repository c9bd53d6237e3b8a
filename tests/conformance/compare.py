"""Whether what was found holds what is expected; see README.md."""

from collections.abc import Mapping
from typing import Any, Final

ANY: Final = "$any"


def difference(expected: Any, found: Any, path: str = "") -> str:
    """What is not as expected, in words; empty if all is.

    Args:
        expected: a part of what must be there.
        found: what is there, as protobuf's JSON mapping has it.
    """
    if expected == ANY:
        return f"{path or 'it'} is missing" if _is_default(found) else ""
    if isinstance(expected, Mapping):
        held = found if isinstance(found, Mapping) else {}
        parts = (
            difference(value, held.get(name), f"{path}.{name}".lstrip("."))
            for name, value in expected.items()
        )
        return next(filter(None, parts), "")
    if isinstance(expected, list):
        items = found or []
        if len(items) != len(expected):
            return f"{path} has {len(items)} items instead of {len(expected)}: {items}"
        parts = (
            difference(value, item, f"{path}[{i}]")
            for i, (value, item) in enumerate(zip(expected, items, strict=True))
        )
        return next(filter(None, parts), "")
    is_equal = _is_default(found) if _is_default(expected) else _plain(expected) == _plain(found)
    return "" if is_equal else f"{path} is {found!r} instead of {expected!r}"


def _is_default(value: Any) -> bool:
    return value in (None, "", 0, False, "0") or value == [] or value == {}


def _plain(value: Any) -> Any:
    """64-bit integers are strings in JSON, and other numbers are not."""
    if isinstance(value, bool):
        return value
    if isinstance(value, str):
        try:
            return float(value) if "." in value or "e" in value else int(value)
        except ValueError:
            return value
    return value
