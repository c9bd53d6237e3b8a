"""Merging deltas keeps every counter's sum."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from tallyboard_server.counters.merge import in_range, merge

_NAMES = st.sampled_from(["post:42", "post:43", "a", "ä", "b" * 256])
_DELTAS = st.integers(-(1 << 63), (1 << 63) - 1)
_UPDATES = st.lists(st.tuples(_NAMES, _DELTAS), min_size=1)


@given(_UPDATES)
def test_each_counter_gets_the_sum_of_its_deltas(updates: list[tuple[str, int]]) -> None:
    expected: Counter[str] = Counter()
    for name, delta in updates:
        expected[name] += delta
    assert merge([n for n, _ in updates], [d for _, d in updates]) == dict(expected)


@given(_NAMES, st.lists(_DELTAS, min_size=1))
def test_a_single_name_gets_all_deltas(name: str, deltas: list[int]) -> None:
    assert merge([name], deltas) == {name: sum(deltas)}


@given(_UPDATES, st.integers(0, 100))
def test_a_split_changes_nothing(updates: list[tuple[str, int]], at: int) -> None:
    halves: Counter[str] = Counter()
    for part in (updates[:at], updates[at:]):
        for name, total in merge([n for n, _ in part], [d for _, d in part]).items():
            halves[name] += total
    assert merge([n for n, _ in updates], [d for _, d in updates]) == dict(halves)


@given(st.permutations([("a", 1), ("b", -2), ("a", 1 << 62), ("c", 5), ("a", 1 << 62)]))
def test_the_order_of_arrival_does_not_matter(updates: list[tuple[str, int]]) -> None:
    merged = merge([n for n, _ in updates], [d for _, d in updates])
    assert merged == {"a": (1 << 63) + 1, "b": -2, "c": 5}


def test_the_largest_value_is_in_range() -> None:
    assert in_range((1 << 63) - 1)


def test_one_more_than_the_largest_value_is_not_in_range() -> None:
    assert not in_range(1 << 63)


def test_the_smallest_value_is_in_range() -> None:
    assert in_range(-(1 << 63))


def test_one_less_than_the_smallest_value_is_not_in_range() -> None:
    assert not in_range(-(1 << 63) - 1)
