"""Enumerations of the contract and of the domain, each way."""

from collections.abc import Mapping
from enum import Enum
from typing import Any, TypeVar

from tallyboard.v1 import leaderboards_pb2 as pb
from tallyboard_server.leaderboards.model import (
    RankMethod,
    SortOrder,
    TieBreak,
    UpdatePolicy,
    WindowKind,
    WindowState,
)
from tallyboard_server.rpc.validation import invalid

Choice = TypeVar("Choice", bound=Enum)


def _choices(kind: type[Choice], enum: Any, prefix: str) -> dict[int, Choice]:
    return {enum.Value(prefix + choice.value): choice for choice in kind}


def _numbers(choices: Mapping[int, Choice]) -> dict[Choice, Any]:
    return {choice: number for number, choice in choices.items()}


SORT_ORDERS = _choices(SortOrder, pb.SortOrder, "SORT_ORDER_")
UPDATE_POLICIES = _choices(UpdatePolicy, pb.UpdatePolicy, "UPDATE_POLICY_")
TIE_BREAKS = _choices(TieBreak, pb.TieBreak, "TIE_BREAK_")
WINDOW_KINDS = _choices(WindowKind, pb.WindowKind, "WINDOW_KIND_")
SORT_ORDER_NUMBERS = _numbers(SORT_ORDERS)
UPDATE_POLICY_NUMBERS = _numbers(UPDATE_POLICIES)
TIE_BREAK_NUMBERS = _numbers(TIE_BREAKS)
WINDOW_KIND_NUMBERS = _numbers(WINDOW_KINDS)
WINDOW_STATE_NUMBERS = _numbers(_choices(WindowState, pb.WindowState, "WINDOW_STATE_"))
_RANK_METHODS = _choices(RankMethod, pb.RankMethod, "RANK_METHOD_")
_RANK_METHODS[pb.RANK_METHOD_UNSPECIFIED] = RankMethod.ORDINAL


def choice(field: str, choices: Mapping[int, Choice], number: int) -> Choice:
    """The choice that a number stands for; any other number is FIELD_INVALID."""
    found = choices.get(number)
    if found is None:
        raise invalid("FIELD_INVALID", field, f"must not be {number}")
    return found


def rank_method(number: int) -> RankMethod:
    """The rank method of a request; unspecified is ORDINAL."""
    return choice("rank_method", _RANK_METHODS, number)
