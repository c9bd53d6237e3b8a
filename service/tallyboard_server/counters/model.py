"""What the domain of counters hands out."""

from dataclasses import dataclass
from enum import Enum

MAX_VALUE = (1 << 63) - 1
MIN_VALUE = -(1 << 63)


class Source(Enum):
    """Where a count comes from; the values are the contract's names."""

    LIVE = "SOURCE_LIVE"
    CACHE = "SOURCE_CACHE"
    DURABLE = "SOURCE_DURABLE"


@dataclass(frozen=True, slots=True)
class Count:
    """A counter's total at a moment.

    Attributes:
        as_of: seconds since the epoch; the value was true then or later.
    """

    counter: str
    value: int
    exists: bool
    as_of: float
    source: Source
