"""Merging deltas: many updates of a counter become one."""

from collections.abc import Mapping, Sequence

from tallyboard_server.counters.model import MAX_VALUE, MIN_VALUE


def merge(counters: Sequence[str], deltas: Sequence[int]) -> dict[str, int]:
    """The sum of the deltas of each counter, in order of first appearance.

    Args:
        counters: one name a delta, or a single name that all deltas belong to.
        deltas: signed numbers.
    """
    if not counters:
        return {}
    first = counters[0]
    # One pass in C tells the hot case, where everything belongs to one counter.
    if len(counters) == 1 or counters.count(first) == len(counters):
        return {first: sum(deltas)}
    merged: dict[str, int] = {}
    get = merged.get
    for counter, delta in zip(counters, deltas, strict=True):
        merged[counter] = get(counter, 0) + delta
    return merged


def largest(merged: Mapping[str, int]) -> int:
    """How far from 0 the furthest sum is."""
    values = merged.values()
    return max(max(values, default=0), -min(values, default=0))


def in_range(value: int) -> bool:
    """Whether a signed 64-bit integer holds it."""
    return MIN_VALUE <= value <= MAX_VALUE
