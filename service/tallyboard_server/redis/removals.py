"""Removals of members from windows, as parts of a write (see remove.lua)."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from tallyboard_server.redis import scripts
from tallyboard_server.redis.calls import Outcome, ScriptCall
from tallyboard_server.redis.keys import WindowKeys
from tallyboard_server.redis.operations import Part, Token, Write

_WEIGHT = 4


class Removal(NamedTuple):
    """One member in one window."""

    keys: WindowKeys
    descending: bool
    earliest: bool
    member: str


class RemovalPart(Part):
    """A write's removals in one partition.

    Attributes:
        counts: of each removal, how many entries went (0 or 1); empty of a repeat.
    """

    __slots__ = ("counts", "removals")

    def __init__(
        self, write: Write, partition: int, removals: list[Removal], token: Token | None
    ) -> None:
        super().__init__(write, partition, {}, token, scripts.REMOVE)
        self.removals = removals
        self.counts: list[int] = []
        self.repeatable = True

    @property
    def items(self) -> int:
        """How many removals it has."""
        return len(self.removals) or 1

    @property
    def weight(self) -> int:
        """How long Redis works on it, in operations of a counter."""
        return _WEIGHT * self.items


@dataclass
class RemovalCall(ScriptCall):
    """A call of `remove.lua`, which carries one part."""

    def merges(self, part: Part) -> bool:
        """Takes the only part."""
        return not self.parts

    @property
    def size(self) -> int:
        """How many removals it has."""
        return sum(part.weight for part in self.parts)

    def names(self) -> list[str]:
        """The keys of each removal."""
        return [key for removal in self._removals() for key in removal.keys[:5]]

    def arguments(self) -> list[Any]:
        """The removals, as remove.lua has them."""
        removals = self._removals()
        arguments: list[Any] = [len(removals)]
        for _, descending, earliest, member in removals:
            arguments += ("d" if descending else "a", "e" if earliest else "m", 1, member)
        return arguments

    def answered(self, details: list[Any]) -> None:
        """Takes how many entries went."""
        for part in self.parts:
            assert isinstance(part, RemovalPart)
            part.counts = details

    def refused(self, details: list[Any], outcome: Outcome) -> None:
        """Nothing refuses a removal."""
        raise AssertionError(details)

    def _removals(self) -> list[Removal]:
        found: list[Removal] = []
        for part in self.parts:
            assert isinstance(part, RemovalPart)
            found += part.removals
        return found
