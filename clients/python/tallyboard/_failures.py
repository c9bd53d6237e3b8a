"""What a producer tells of increments that could not count."""

from typing import NamedTuple

from tallyboard._errors import TallyboardError


class IncrementFailure(NamedTuple):
    """The increments of one counter in one batch, none of which counted.

    Attributes:
        sequence: the number of the batch.
        counter: the name of the counter.
        updates: how many increments they were.
        total: the sum of their deltas.
        error: why; its reason is NAME_INVALID, DELTA_ZERO or COUNTER_OUT_OF_RANGE.
    """

    sequence: int
    counter: str
    updates: int
    total: int
    error: TallyboardError
