"""What the domain of counters hands out."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

MAX_VALUE = (1 << 63) - 1
MIN_VALUE = -(1 << 63)


class Source(Enum):
    """Where a count comes from; the values are the contract's names."""

    LIVE = "SOURCE_LIVE"
    CACHE = "SOURCE_CACHE"
    DURABLE = "SOURCE_DURABLE"


class Fallback(Enum):
    """Whether Postgres may answer a read where Redis can't: what it has may be older.

    NEVER; FRESH: if it is as fresh as was asked for; ANY_AGE: always, for the caller did not say.
    """

    NEVER = "NEVER"
    FRESH = "FRESH"
    ANY_AGE = "ANY_AGE"


class MakeDurable(Protocol):
    """Copies partitions to Postgres now, before what is not journaled is acknowledged."""

    def __call__(self, partitions: Iterable[int], deadline: float | None = None) -> None:
        """Copies them.

        Args:
            deadline: when to give up, of time.monotonic(); None: when a store doesn't answer.

        Raises:
            Unavailable: a store is away.
            DeadlineExceeded: it takes longer.
        """


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
