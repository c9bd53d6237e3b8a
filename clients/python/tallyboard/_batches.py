"""The updates of a producer that are not acknowledged: those being collected, and the batches.

Nothing here waits or locks: all of it belongs to the producer, whose lock guards it.
"""

import operator
from collections import deque
from collections.abc import Sequence
from typing import Final

from google.rpc import status_pb2

from tallyboard._errors import InvalidArgumentError, Violation, error_from_status
from tallyboard._failures import IncrementFailure
from tallyboard.v1 import counters_pb2

MAX_UPDATES: Final = 10_000
MAX_NAME_BYTES: Final = 256
_SMALLEST: Final = -(2**63)
_LARGEST: Final = 2**63 - 1


class Batches:
    """What a producer has taken and what of it is unacknowledged.

    Args:
        producer_id: goes into every batch.
        window: how many batches may be unacknowledged.
        first_sequence: the number of the first batch.

    Attributes:
        taken: updates taken so far.
        counted: updates that were acknowledged and counted.
        failed: updates that were acknowledged and could not count.
        sequence: the number of the newest batch.
    """

    def __init__(self, producer_id: str, window: int, first_sequence: int = 1) -> None:
        self._producer_id = producer_id
        self._window = window
        self._counters: list[str] = []
        self._deltas: list[int] = []
        self._unacknowledged: deque[counters_pb2.StreamIncrementsRequest] = deque()
        self.taken = 0
        self.counted = 0
        self.failed = 0
        self.sequence = first_sequence - 1

    @property
    def collected(self) -> int:
        """How many updates are in no batch yet."""
        return len(self._deltas)

    @property
    def pending(self) -> int:
        """How many updates were taken and not acknowledged."""
        return self.taken - self.counted - self.failed

    @property
    def full(self) -> bool:
        """Whether the window has no room for another batch."""
        return len(self._unacknowledged) >= self._window

    @property
    def acknowledged_through(self) -> int:
        """Every batch with this sequence or a smaller one is acknowledged."""
        return self.sequence - len(self._unacknowledged)

    def collect(self, counters: Sequence[str], deltas: Sequence[int]) -> None:
        """Take checked updates for the next batch, which must have room for them."""
        self._counters.extend(counters)
        self._deltas.extend(deltas)
        self.taken += len(deltas)

    def seal(self) -> None:
        """Make a batch of what is collected; the window must not be full."""
        message = message_of(self._counters, self._deltas)
        self._counters.clear()
        self._deltas.clear()
        self._append(message)

    def append(self, message: counters_pb2.StreamIncrementsRequest) -> int:
        """Take a batch made by `message_of` and give its sequence; the window must not be full."""
        self.taken += len(message.deltas)
        return self._append(message)

    def after(self, sequence: int) -> counters_pb2.StreamIncrementsRequest | None:
        """The first unacknowledged batch above this sequence."""
        index = max(0, sequence - self.acknowledged_through)
        return self._unacknowledged[index] if index < len(self._unacknowledged) else None

    def acknowledge(
        self, response: counters_pb2.StreamIncrementsResponse
    ) -> list[IncrementFailure]:
        """Drop what the response acknowledges; gives what of it did not count."""
        statuses: dict[int, dict[str, status_pb2.Status]] = {}
        for failure in response.failures:
            statuses.setdefault(failure.sequence, {})[failure.counter] = failure.status
        found = []
        while self.acknowledged_through < min(response.acknowledged_sequence, self.sequence):
            batch = self._unacknowledged.popleft()
            failures = _failures_of(batch, statuses.get(batch.sequence, {}))
            failed = sum(failure.updates for failure in failures)
            self.failed += failed
            self.counted += len(batch.deltas) - failed
            found += failures
        return found

    def _append(self, message: counters_pb2.StreamIncrementsRequest) -> int:
        self.sequence += 1
        message.producer_id = self._producer_id
        message.sequence = self.sequence
        self._unacknowledged.append(message)
        return self.sequence


def message_of(
    counters: Sequence[str], deltas: Sequence[int]
) -> counters_pb2.StreamIncrementsRequest:
    """A batch of checked updates that has no sequence yet."""
    return counters_pb2.StreamIncrementsRequest(counters=counters, deltas=deltas)


def check_updates(counters: Sequence[str], deltas: Sequence[int]) -> None:
    """Refuse what would spoil the updates beside it in a batch.

    Raises:
        InvalidArgumentError: the lists do not match; a name is empty, not UTF-8 or too long; a
            delta is 0 or does not fit in a signed 64-bit integer.
    """
    if len(counters) != len(deltas):
        detail = f"{len(counters):,} counters do not match {len(deltas):,} deltas"
        raise _invalid("FIELD_INVALID", "counters", detail)
    for counter in counters:
        check_counter(counter)
    for delta in deltas:
        check_delta(delta)


def check_batch(counters: Sequence[str], deltas: Sequence[int]) -> None:
    """Refuse a batch that the service would refuse; one counter may stand for all deltas.

    Raises:
        InvalidArgumentError: it has no or too many updates, or see `check_updates`.
    """
    if not deltas:
        raise _invalid("FIELD_INVALID", "deltas", "must not be empty")
    if len(deltas) > MAX_UPDATES:
        detail = f"has {len(deltas):,} items; at most {MAX_UPDATES:,} are allowed"
        raise _invalid("TOO_MANY_ITEMS", "deltas", detail)
    if len(counters) == 1:
        check_updates(counters, deltas[:1])
        for delta in deltas:
            check_delta(delta)
    else:
        check_updates(counters, deltas)


def check_counter(counter: str) -> None:
    """Refuse a name that is empty, not UTF-8 or too long, with InvalidArgumentError.

    Raises:
        TypeError: it is no string.
    """
    if not isinstance(counter, str):
        raise TypeError(f"a counter's name is a str, not {type(counter).__name__}")
    if 0 < len(counter) <= MAX_NAME_BYTES and counter.isascii():
        return
    try:
        size = len(counter.encode())
    except UnicodeEncodeError:
        raise _invalid("NAME_INVALID", "counter", "must be UTF-8") from None
    if not 0 < size <= MAX_NAME_BYTES:
        detail = f"must have 1 to {MAX_NAME_BYTES} bytes of UTF-8, not {size:,}"
        raise _invalid("NAME_INVALID", "counter", detail)


def check_delta(delta: int) -> None:
    """Refuse 0 and what does not fit in 64 bits, with InvalidArgumentError.

    Raises:
        TypeError: it is no integer.
    """
    operator.index(delta)
    if delta == 0:
        raise _invalid("DELTA_ZERO", "delta", "must not be 0")
    if not _SMALLEST <= delta <= _LARGEST:
        raise _invalid("FIELD_INVALID", "delta", "must fit in a signed 64-bit integer")


def _failures_of(
    batch: counters_pb2.StreamIncrementsRequest, statuses: dict[str, status_pb2.Status]
) -> list[IncrementFailure]:
    if not statuses:
        return []
    deltas: dict[str, list[int]] = {}
    same = len(batch.counters) == 1
    for index, delta in enumerate(batch.deltas):
        name = batch.counters[0 if same else index]
        if name in statuses:
            deltas.setdefault(name, []).append(delta)
    return [
        IncrementFailure(
            batch.sequence, name, len(own), sum(own), error_from_status(statuses[name])
        )
        for name, own in deltas.items()
    ]


def _invalid(reason: str, field: str, description: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        "the increment cannot be taken", reason, violations=[Violation(field, description)]
    )
