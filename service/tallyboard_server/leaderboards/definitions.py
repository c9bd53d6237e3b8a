"""Definitions of leaderboards: what they may say, what stays fixed, and how they are stored."""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import fields, replace
from itertools import islice
from typing import Any, NamedTuple

from tallyboard_server.leaderboards.model import (
    Leaderboard,
    Season,
    SortOrder,
    TieBreak,
    UpdatePolicy,
    WindowKind,
)
from tallyboard_server.leaderboards.windows import (
    DAY_SECONDS,
    FIRST_TIMESTAMP,
    LAST_TIMESTAMP,
    is_time_zone,
    kind_of_id,
)
from tallyboard_server.names import name_problem

MAX_SEASONS = 100
# A score changes every season that holds its moment, in one step of Redis.
MAX_OVERLAPPING = 8
MAX_SEGMENTS = 64
MAX_ATTRIBUTES = 64
MAX_ATTRIBUTE_KEY_BYTES = 256
MAX_ATTRIBUTE_VALUE_BYTES = 1024
MAX_LATE_GRACE = 7 * DAY_SECONDS
MIN_RETENTION = 3600
# As long as the longest ten years.
MAX_RETENTION = 3653 * DAY_SECONDS
# A definition with thousands of mistakes is answered with the first few.
_MAX_PROBLEMS = 20

_LOCKED = ("sort_order", "update_policy", "tie_break", "time_zone", "reset_offset", "segments")
_SEASON_NAME = re.compile("[A-Za-z0-9._-]{1,64}")


class Problem(NamedTuple):
    """A limit that is broken: the reason, the field's path in the definition, and what is wrong."""

    reason: str
    field: str
    description: str


def normalise(board: Leaderboard) -> Leaderboard:
    """The definition with the contract's defaults for what is empty or 0.

    No kinds and no seasons are ALL_TIME, no zone is UTC, 0 segments are 1.
    """
    return replace(
        board,
        windows=board.windows or (() if board.seasons else (WindowKind.ALL_TIME,)),
        time_zone=board.time_zone or "UTC",
        segments=board.segments or 1,
    )


def problems(board: Leaderboard) -> list[Problem]:
    """Which limits of the contract a normalised definition breaks, the first 20; none: it is good.

    Indexes of retention are places in the mapping.
    """
    return list(islice(_problems(board), _MAX_PROBLEMS))


def locked_changes(old: Leaderboard, new: Leaderboard) -> list[str]:
    """The fields that differ and can't be changed once a board has entries.

    Seasons may be changed, begun or not: scores that were counted stay in the window of their
    season's name, and only those that come later follow the new limits.
    """
    return [name for name in _LOCKED if getattr(old, name) != getattr(new, name)]


def to_json(board: Leaderboard) -> str:
    """The whole definition as ASCII JSON; equal definitions have equal texts."""
    document = {item.name: getattr(board, item.name) for item in fields(board)}
    document |= {
        "sort_order": board.sort_order.value,
        "update_policy": board.update_policy.value,
        "tie_break": board.tie_break.value,
        "windows": [kind.value for kind in board.windows],
        "retention": {kind.value: seconds for kind, seconds in board.retention.items()},
        "seasons": [
            {"name": season.name, "starts_at": season.starts_at, "ends_at": season.ends_at}
            for season in board.seasons
        ],
        "attributes": dict(board.attributes),
    }
    return json.dumps(document, sort_keys=True, separators=(",", ":"))


def from_json(text: str) -> Leaderboard:
    """The definition of a text of `to_json`, by this version, an older or a newer one.

    Keys that are not known are left out, missing ones have their defaults. Raises ValueError for
    what is no JSON or has a value of an enumeration that is not known, TypeError or KeyError for
    what lacks a part that has no default.
    """
    document = json.loads(text)
    known = {item.name for item in fields(Leaderboard)}
    values = {
        key: _READERS[key](value) if key in _READERS else value
        for key, value in document.items()
        if key in known
    }
    return Leaderboard(**values)


def _read_seasons(value: list[dict[str, Any]]) -> tuple[Season, ...]:
    return tuple(Season(item["name"], item["starts_at"], item["ends_at"]) for item in value)


_READERS: dict[str, Any] = {
    "sort_order": SortOrder,
    "update_policy": UpdatePolicy,
    "tie_break": TieBreak,
    "windows": lambda value: tuple(WindowKind(kind) for kind in value),
    "retention": lambda value: {WindowKind(kind): seconds for kind, seconds in value.items()},
    "seasons": _read_seasons,
}


def _problems(board: Leaderboard) -> Iterator[Problem]:
    name = name_problem(board.leaderboard_id)
    if name:
        yield Problem("NAME_INVALID", "leaderboard_id", name)
    yield from _window_problems(board)
    if not is_time_zone(board.time_zone):
        yield _invalid("time_zone", "must be the IANA name of a time zone, like Europe/Berlin")
    if not 0 <= board.reset_offset < DAY_SECONDS:
        yield _invalid("reset_offset", "must be from 0 to under 24 hours")
    yield from _retention_problems(board)
    if not 0 <= board.late_grace <= MAX_LATE_GRACE:
        yield _invalid("late_grace", "must be from 0 to 7 days")
    if board.max_entries < 0:
        yield _invalid("max_entries", "must not be negative")
    if not 1 <= board.segments <= MAX_SEGMENTS:
        yield _invalid("segments", f"must be from 1 to {MAX_SEGMENTS}")
    yield from _season_problems(board)
    yield from _attribute_problems(board)


def _window_problems(board: Leaderboard) -> Iterator[Problem]:
    seen = set()
    for index, kind in enumerate(board.windows):
        if kind is WindowKind.SEASON:
            yield _invalid(f"windows[{index}]", "must not be SEASON; name seasons in `seasons`")
        elif kind in seen:
            yield _invalid(f"windows[{index}]", f"names {kind.value} again")
        seen.add(kind)


def _retention_problems(board: Leaderboard) -> Iterator[Problem]:
    for index, (kind, seconds) in enumerate(board.retention.items()):
        if kind is WindowKind.ALL_TIME:
            yield _invalid(f"retention[{index}].kind", "must not be ALL_TIME, which never ends")
        if not MIN_RETENTION <= seconds <= MAX_RETENTION:
            yield _invalid(f"retention[{index}].duration", "must be from 1 hour to 10 years")


def _season_problems(board: Leaderboard) -> Iterator[Problem]:
    if len(board.seasons) > MAX_SEASONS:
        yield _too_many("seasons", len(board.seasons), MAX_SEASONS)
        return
    seen = set()
    for index, season in enumerate(board.seasons):
        path = f"seasons[{index}]"
        name = _season_name_problem(season.name)
        if name is None and season.name in seen:
            name = f"{season.name} is the name of another season"
        if name:
            yield _invalid(f"{path}.name", name)
        seen.add(season.name)
        yield from _season_time_problems(path, season)
    if _overlap(board.seasons) > MAX_OVERLAPPING:
        yield _invalid("seasons", f"must not have more than {MAX_OVERLAPPING} at the same time")


def _overlap(seasons: Iterable[Season]) -> int:
    """How many seasons there are at most at the same time."""
    turns = [(season.starts_at, 1) for season in seasons]
    turns += [(season.ends_at, -1) for season in seasons]
    most = now = 0
    for _, change in sorted(turns):  # an end before a start of the same moment
        now += change
        most = max(most, now)
    return most


def _season_name_problem(name: str) -> str | None:
    if not _SEASON_NAME.fullmatch(name):
        return "must be 1 to 64 letters, digits, `.`, `_` and `-`"
    kind = kind_of_id(name)
    return None if kind is None else f"must not read like the id of a window of {kind.value}"


def _season_time_problems(path: str, season: Season) -> Iterator[Problem]:
    for field, moment in (("starts_at", season.starts_at), ("ends_at", season.ends_at)):
        if not FIRST_TIMESTAMP <= moment <= LAST_TIMESTAMP:
            yield _invalid(f"{path}.{field}", "must be of the years 1 to 9999")
    if season.ends_at <= season.starts_at:
        yield _invalid(f"{path}.ends_at", "must be after `starts_at`")


def _attribute_problems(board: Leaderboard) -> Iterator[Problem]:
    if len(board.attributes) > MAX_ATTRIBUTES:
        yield _too_many("attributes", len(board.attributes), MAX_ATTRIBUTES)
        return
    for key, value in board.attributes.items():
        # A key may be as long as the whole message.
        path = f"attributes[{json.dumps(key[:64])}]"
        if not 1 <= len(key.encode()) <= MAX_ATTRIBUTE_KEY_BYTES:
            yield _invalid(path, f"must have a key of 1 to {MAX_ATTRIBUTE_KEY_BYTES} bytes")
        if len(value.encode()) > MAX_ATTRIBUTE_VALUE_BYTES:
            yield _invalid(path, f"must be at most {MAX_ATTRIBUTE_VALUE_BYTES:,} bytes")


def _invalid(field: str, description: str) -> Problem:
    return Problem("FIELD_INVALID", field, description)


def _too_many(field: str, size: int, most: int) -> Problem:
    return Problem("TOO_MANY_ITEMS", field, f"has {size:,} items; at most {most:,} are allowed")
