"""What a producer's ring says of sequences that it has gone past: never anything false."""

import itertools
import uuid
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tallyboard_server.redis import keys
from tallyboard_server.redis.calls import PRODUCER_RING
from tallyboard_server.redis.rings import parse_slot
from tests.redis.calls import TENANT, Caller
from tests.redis.node import RedisNode

_SHARED = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def caller(node: RedisNode) -> Iterator[Caller]:
    redis = node.client()
    yield Caller(redis)
    redis.close()


def _apply(caller: Caller, producer: str, cycles: list[int]) -> bytes:
    """Applies the sequences of one slot that come in these cycles; gives what the slot holds."""
    for cycle in cycles:
        token = caller.producer(7 + cycle * PRODUCER_RING, producer)
        assert caller.add("post:42", 1, token) == [b"ok"]
    ring = keys.producer_key(caller.partition, TENANT, producer)
    held = caller.redis.hget(ring, "7")
    assert held is not None
    return held


@pytest.mark.parametrize(
    ("cycles", "held"),
    [
        ([0, 1, 2], b"519"),
        ([1], b"263<0>263"),
        ([0, 2], b"519<7>519"),
        ([0, 2, 3, 4], b"1031<7>519"),
        ([0, 2, 4], b"1031<519>1031<7>519"),
        ([0, 2, 4, 6], b"1543<1031>1543<519>1031?"),
        ([0, 2, 4, 6, 7], b"1799<1031>1543<519>1031?"),
    ],
)
def test_a_slot_notes_its_last_gaps(caller: Caller, cycles: list[int], held: bytes) -> None:
    assert _apply(caller, "ann", cycles) == held


@_SHARED
@given(st.sets(st.integers(0, 20), min_size=1))
def test_a_slot_says_nothing_false(caller: Caller, cycles: set[int]) -> None:
    slot = parse_slot(_apply(caller, uuid.uuid4().hex, sorted(cycles)))
    assert slot is not None
    said = {cycle: slot.applied(7 + cycle * PRODUCER_RING) for cycle in range(22)}
    assert {c: known for c, known in said.items() if known not in (None, c in cycles)} == {}


@_SHARED
@given(st.sets(st.integers(0, 20), min_size=1))
def test_a_slot_knows_all_since_its_last_but_one_gap(caller: Caller, cycles: set[int]) -> None:
    slot = parse_slot(_apply(caller, uuid.uuid4().hex, sorted(cycles)))
    assert slot is not None
    gaps = [b for b, c in itertools.pairwise([-1, *sorted(cycles)]) if c - b > 1]
    asked = range(gaps[-2] if len(gaps) > 2 else 0, 22)
    assert None not in [slot.applied(7 + cycle * PRODUCER_RING) for cycle in asked]


def test_a_note_stays_with_the_newest_sequence(caller: Caller) -> None:
    for cycle in (0, 2):
        token = caller.producer(7 + cycle * PRODUCER_RING)._replace(note="\nkey")
        caller.add("post:42", 1, token)
    assert caller.add("post:42", 1, token) == [b"seen", 1, b"\nkey"]
    slot = parse_slot(caller.redis.hget(token.key, "7") or b"")
    assert slot is not None
    assert (slot.newest, slot.note) == (519, b"\nkey")


def test_what_is_no_slot_says_nothing() -> None:
    assert parse_slot(b"\n") is None
