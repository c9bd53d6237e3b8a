"""Definitions of leaderboards: the contract's message, the domain's class, and field masks.

What the domain's class can't hold is refused here: unknown enumerators, fractions of a second,
repeated kinds of retention, missing moments. The domain knows the limits. Paths in errors start at
the message.
"""

from collections.abc import Callable, Collection
from dataclasses import replace
from operator import attrgetter
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask

from tallyboard.v1 import leaderboards_pb2 as pb
from tallyboard_server.errors import FieldViolation, InvalidArgument
from tallyboard_server.leaderboards.definitions import normalise, problems
from tallyboard_server.leaderboards.model import (
    Leaderboard,
    Season,
    SortOrder,
    TieBreak,
    UpdatePolicy,
    WindowKind,
)
from tallyboard_server.rpc import validation
from tallyboard_server.rpc.enums import (
    SORT_ORDER_NUMBERS,
    SORT_ORDERS,
    TIE_BREAK_NUMBERS,
    TIE_BREAKS,
    UPDATE_POLICIES,
    UPDATE_POLICY_NUMBERS,
    WINDOW_KIND_NUMBERS,
    WINDOW_KINDS,
    choice,
)
from tallyboard_server.rpc.stamps import set_moment

_DEFAULTS = Leaderboard("", "")
# What google.protobuf.Duration can say: 10,000 years, in seconds.
_LONGEST = 315_576_000_000
_PERIODIC = {number: kind for number, kind in WINDOW_KINDS.items() if kind is not WindowKind.SEASON}


def from_proto(message: pb.Leaderboard, tenant: str, leaderboard_id: str) -> Leaderboard:
    """A new definition, with a default for every field that has no value.

    Raises:
        InvalidArgument: FIELD_INVALID or TOO_MANY_ITEMS.
    """
    values = {field: read(message) for field, read in _READERS.items()}
    return _checked(Leaderboard(tenant, leaderboard_id, **values))


def change_of(message: pb.Leaderboard, mask: FieldMask) -> Callable[[Leaderboard], Leaderboard]:
    """What an update does to a definition: the fields that the mask names get the new values.

    Args:
        mask: without paths: every field that has a value; `*`: all fields (AIP-134, AIP-161).

    Raises:
        InvalidArgument: FIELD_INVALID, here for a path or for a value that a definition can't
            hold; the change itself raises it, or TOO_MANY_ITEMS, for a limit.
    """
    values = {field: _READERS[field](message) for field in _masked(message, mask.paths)}

    def change(board: Leaderboard) -> Leaderboard:
        return _checked(replace(board, **values))

    return change


def contents_of(request: pb.UpdateLeaderboardRequest) -> str:
    """A text by which a repeat of an update can be told from another one with the same id."""
    bare = pb.UpdateLeaderboardRequest()
    bare.CopyFrom(request)
    bare.ClearField("request_id")
    return bare.SerializeToString(deterministic=True).hex()


def error_within(error: InvalidArgument) -> InvalidArgument:
    """The same error, with fields of the definition under its path in the request."""
    return validation.within("leaderboard", error, pb.Leaderboard.DESCRIPTOR)


def to_proto(board: Leaderboard) -> pb.Leaderboard:
    """A definition with every field set."""
    message = pb.Leaderboard(
        leaderboard_id=board.leaderboard_id,
        sort_order=SORT_ORDER_NUMBERS[board.sort_order],
        update_policy=UPDATE_POLICY_NUMBERS[board.update_policy],
        tie_break=TIE_BREAK_NUMBERS[board.tie_break],
        windows=[WINDOW_KIND_NUMBERS[kind] for kind in board.windows],
        time_zone=board.time_zone,
        reset_offset=Duration(seconds=board.reset_offset),
        retention=[
            pb.WindowRetention(kind=WINDOW_KIND_NUMBERS[kind], duration=Duration(seconds=seconds))
            for kind, seconds in board.retention.items()
        ],
        late_grace=Duration(seconds=board.late_grace),
        max_entries=board.max_entries,
        segments=board.segments,
        attributes=board.attributes,
        etag=board.etag,
    )
    for season in board.seasons:
        added = message.seasons.add(name=season.name)
        set_moment(added.starts_at, season.starts_at)
        set_moment(added.ends_at, season.ends_at)
    set_moment(message.created_at, board.created_at)
    set_moment(message.updated_at, board.updated_at)
    return message


def _checked(board: Leaderboard) -> Leaderboard:
    board = normalise(board)
    found = problems(board)
    if found:
        reason = found[0].reason
        raise InvalidArgument(
            reason,
            [FieldViolation(p.field, p.description) for p in found if p.reason == reason],
        )
    return board


def _masked(message: pb.Leaderboard, paths: Collection[str]) -> Collection[str]:
    if not paths:
        return [field.name for field, _ in message.ListFields() if field.name in _READERS]
    if list(paths) == ["*"]:
        return _READERS.keys()
    wrong = ((f"update_mask.paths[{i}]", _path_problem(path)) for i, path in enumerate(paths))
    validation.check_all("FIELD_INVALID", wrong)
    return paths


def _path_problem(path: str) -> str | None:
    if path in _READERS:
        return None
    field, dot, _ = path.partition(".")
    if dot and field in _READERS:
        return f"must name {field!r} as a whole, not a part of it"
    if path == "*":
        return "must be the only path if it is '*'"
    if path in pb.Leaderboard.DESCRIPTOR.fields_by_name:
        return f"{path!r} can't be updated"
    return f"{path[:100]!r} is no field of a leaderboard"


def _sort_order(message: pb.Leaderboard) -> SortOrder:
    number = message.sort_order
    return choice("sort_order", SORT_ORDERS, number) if number else _DEFAULTS.sort_order


def _update_policy(message: pb.Leaderboard) -> UpdatePolicy:
    number = message.update_policy
    return choice("update_policy", UPDATE_POLICIES, number) if number else _DEFAULTS.update_policy


def _tie_break(message: pb.Leaderboard) -> TieBreak:
    number = message.tie_break
    return choice("tie_break", TIE_BREAKS, number) if number else _DEFAULTS.tie_break


def _windows(message: pb.Leaderboard) -> tuple[WindowKind, ...]:
    return tuple(
        choice(f"windows[{index}]", _PERIODIC, number)
        for index, number in enumerate(message.windows)
    )


def _reset_offset(message: pb.Leaderboard) -> int:
    return _whole("reset_offset", message.reset_offset)


def _retention(message: pb.Leaderboard) -> dict[WindowKind, int]:
    kept: dict[WindowKind, int] = {}
    for index, item in enumerate(message.retention):
        path = f"retention[{index}]"
        kind = choice(f"{path}.kind", WINDOW_KINDS, item.kind)
        if kind in kept:
            raise validation.invalid("FIELD_INVALID", f"{path}.kind", "must not be repeated")
        kept[kind] = _whole(f"{path}.duration", item.duration)
    return kept


def _late_grace(message: pb.Leaderboard) -> int:
    if not message.HasField("late_grace"):
        return _DEFAULTS.late_grace
    return _whole("late_grace", message.late_grace)


def _seasons(message: pb.Leaderboard) -> tuple[Season, ...]:
    return tuple(
        Season(
            season.name,
            _moment(f"seasons[{index}].starts_at", season, "starts_at"),
            _moment(f"seasons[{index}].ends_at", season, "ends_at"),
        )
        for index, season in enumerate(message.seasons)
    )


def _attributes(message: pb.Leaderboard) -> dict[str, str]:
    return dict(message.attributes)


_READERS: dict[str, Callable[[pb.Leaderboard], Any]] = {
    "sort_order": _sort_order,
    "update_policy": _update_policy,
    "tie_break": _tie_break,
    "windows": _windows,
    "time_zone": attrgetter("time_zone"),
    "reset_offset": _reset_offset,
    "retention": _retention,
    "late_grace": _late_grace,
    "max_entries": attrgetter("max_entries"),
    "segments": attrgetter("segments"),
    "seasons": _seasons,
    "attributes": _attributes,
}


def _whole(field: str, duration: Duration) -> int:
    return validation.whole_seconds(field, duration, -_LONGEST, _LONGEST)


def _moment(field: str, season: pb.Season, name: Any) -> int:
    if not season.HasField(name):
        raise validation.invalid("FIELD_INVALID", field, "must be set")
    return validation.moment(field, getattr(season, name))
