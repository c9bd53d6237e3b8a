"""The unacknowledged updates of a producer: nothing is lost, repeated or counted wrongly."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallyboard._batches import Batches, message_of
from tallyboard.v1 import counters_pb2

_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.integers(1, 5)),
        st.tuples(st.just("collect"), st.integers(1, 5)),
        st.tuples(st.just("seal"), st.just(0)),
        st.tuples(st.just("acknowledge"), st.integers(0, 20)),
    )
)


def _acknowledging(sequence: int) -> counters_pb2.StreamIncrementsResponse:
    return counters_pb2.StreamIncrementsResponse(acknowledged_sequence=sequence)


def _after_steps(steps: list[tuple[str, int]]) -> tuple[Batches, int]:
    """The batches after the steps, and the number of updates that went in."""
    batches, taken = Batches("ann", 4), 0
    for step, number in steps:
        if step == "acknowledge":
            batches.acknowledge(_acknowledging(number))
        elif step == "collect":
            batches.collect(["post:42"] * number, [1] * number)
            taken += number
        elif step == "send" and not batches.full:
            batches.append(message_of(["post:42"], [1] * number))
            taken += number
        elif step == "seal" and batches.collected and not batches.full:
            batches.seal()
    return batches, taken


def _unacknowledged(batches: Batches) -> list[counters_pb2.StreamIncrementsRequest]:
    found, sequence = [], 0
    while (batch := batches.after(sequence)) is not None:
        found.append(batch)
        sequence = batch.sequence
    return found


@given(_STEPS)
def test_every_update_is_acknowledged_or_pending(steps: list[tuple[str, int]]) -> None:
    batches, taken = _after_steps(steps)
    assert batches.counted + batches.pending == taken


@given(_STEPS)
def test_what_would_be_sent_again_is_what_is_pending(steps: list[tuple[str, int]]) -> None:
    batches, _ = _after_steps(steps)
    again = sum(len(batch.deltas) for batch in _unacknowledged(batches))
    assert again + batches.collected == batches.pending


@given(_STEPS)
def test_sequences_sent_again_have_no_gap(steps: list[tuple[str, int]]) -> None:
    batches, _ = _after_steps(steps)
    sequences = [batch.sequence for batch in _unacknowledged(batches)]
    assert sequences == list(range(batches.acknowledged_through + 1, batches.sequence + 1))


@given(_STEPS)
def test_no_more_batches_than_the_window_holds(steps: list[tuple[str, int]]) -> None:
    batches, _ = _after_steps(steps)
    assert len(_unacknowledged(batches)) <= 4


@pytest.mark.parametrize("counters", [["post:42", "post:43", "post:42"], ["post:42"]])
def test_failure_sums_up_its_counter(counters: list[str]) -> None:
    batches = Batches("ann", 4)
    batches.append(message_of(counters, [5, 6, 7]))
    response = _acknowledging(1)
    response.failures.add(sequence=1, counter="post:42")
    failure = batches.acknowledge(response)[0]
    expected = (2, 12) if len(counters) > 1 else (3, 18)
    assert (failure.updates, failure.total) == expected


def test_old_acknowledgement_changes_nothing() -> None:
    batches = Batches("ann", 4)
    batches.append(message_of(["post:42"], [1]))
    batches.acknowledge(_acknowledging(1))
    batches.acknowledge(_acknowledging(0))
    assert batches.counted == 1
