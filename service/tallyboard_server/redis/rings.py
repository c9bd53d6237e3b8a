"""What a slot of a producer's ring in Redis says: frame.lua writes it, this reads it.

A slot is for the sequences that leave the same remainder. It holds the newest one that was applied,
and the last gaps before it: `<before>after` is two sequences that were applied with none between
them. Sequences are applied in the order of their size, for a smaller one is refused. So for most of
those that come too late for the ring it is still known whether they were applied.
"""

import re
from typing import Final, NamedTuple

_SLOT: Final = re.compile(rb"(\d+)((?:<\d+>\d+)*)(\??)")
_GAP: Final = re.compile(rb"<(\d+)>(\d+)")


class Slot(NamedTuple):
    """A slot that something was applied to.

    Attributes:
        newest: the sequence that it holds.
        gaps: the last ones, the newest first.
        has_forgotten: whether there were more gaps before these.
        note: what is kept with the newest sequence.
    """

    newest: int
    gaps: tuple[tuple[int, int], ...]
    has_forgotten: bool
    note: bytes

    def applied(self, sequence: int) -> bool | None:
        """Whether a sequence of this slot was applied; None if that is no longer known."""
        if sequence > self.newest:
            return False
        for before, after in self.gaps:
            if sequence >= after:
                return True
            if sequence > before:
                return False
            if sequence == before:
                return True
        return None if self.has_forgotten else True


def parse_slot(held: bytes) -> Slot | None:
    """The slot that is kept as these bytes; None if they are not one."""
    found = _SLOT.match(held)
    if found is None:
        return None
    gaps = tuple((int(before), int(after)) for before, after in _GAP.findall(found[2]))
    return Slot(int(found[1]), gaps, bool(found[3]), held[found.end() :])
