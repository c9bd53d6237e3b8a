"""Streams of numbered batches: batches in, acknowledgements out, in the order of the sequences.

The reader hands batches over without waiting; the one who acknowledges waits here. What a batch is
and what becomes of it is the business of counters and leaderboards.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from queue import Empty, SimpleQueue
from typing import Generic, NamedTuple, Protocol, TypeVar

from tallyboard_server.errors import (
    FieldViolation,
    InvalidArgument,
    Overloaded,
    TallyboardError,
    Unavailable,
)
from tallyboard_server.names import name_problem

WINDOW = 256
_MAX_AHEAD = 64
_MAX_AHEAD_ITEMS = 400_000
# An acknowledgement with so many failures takes in no further batch: one batch has at most as many,
# and clients accept messages of up to 16 MiB.
_MANY_FAILURES = 10_000
_TICK = 0.25
_FULL = 0.01

Failure = TypeVar("Failure")


class Pending(Protocol[Failure]):
    """A batch that was submitted."""

    @property
    def over(self) -> bool:
        """Whether there is an outcome; `wake_up` of the stream is called when there is."""
        ...

    def failures(self) -> list[Failure]:
        """The items that did not count.

        Raises:
            TallyboardError: the batch, or a part of it, has to be sent again.
        """
        ...


class Acknowledgement(NamedTuple, Generic[Failure]):
    """Every batch up to `sequence` is dealt with; `failures` are (sequence, failure)."""

    sequence: int
    failures: list[tuple[int, Failure]]


class _Batch(NamedTuple, Generic[Failure]):
    sequence: int
    size: int
    pending: Pending[Failure]


class BatchStream(Generic[Failure]):
    """The state of one stream.

    Two threads use it: one calls `take` and `finish`, the other iterates `acknowledgements`.

    Args:
        patience: seconds that one batch may take.
    """

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self.producer = ""
        self._newest = 0
        self._lock = threading.Condition()  # guards _batches, _ahead, _finished, _error
        self._batches: deque[_Batch[Failure]] = deque()
        self._ahead = 0
        self._finished = False
        self._error: TallyboardError | None = None
        self._wake: SimpleQueue[None] = SimpleQueue()

    def take_batch(
        self,
        producer: str,
        sequence: int,
        size: int,
        submit: Callable[[], Pending[Failure]],
    ) -> None:
        """Takes one batch; waits while too many are ahead of their acknowledgement.

        Args:
            size: how many items it has.
            submit: submits it; called again while the server is full.

        Raises:
            TallyboardError: the stream is over; the batch was not taken.
        """
        self._check(producer, sequence)
        self._wait_for_room()
        pending = self._submit(submit)
        with self._lock:
            self._batches.append(_Batch(sequence, size, pending))
            self._ahead += size
        self._newest = sequence
        self.wake_up()  # it may have been over before it was in the list

    def finish(self, error: TallyboardError | None = None) -> None:
        """No more batches will come. With an error, the stream ends with it after what is ahead."""
        with self._lock:
            self._finished = True
            self._error = self._error or error
            self._lock.notify_all()
        self.wake_up()

    def acknowledgements(self) -> Iterator[Acknowledgement[Failure]]:
        """Acknowledgements until the stream is finished and all is acknowledged.

        Raises:
            TallyboardError: a batch failed, or the reader passed an error to `finish`.
        """
        while (found := self._next()) is not None:
            yield found

    def _next(self) -> Acknowledgement[Failure] | None:
        """Waits for the next acknowledgement; None when there will be no more."""
        waited_since = time.monotonic()
        while True:
            found = self._collect()
            if found is not None:
                return found
            with self._lock:
                idle = not self._batches
                if idle and self._finished:
                    if self._error is not None:
                        raise self._error
                    return None
            if idle:
                waited_since = time.monotonic()
            elif time.monotonic() - waited_since > self._patience:
                raise Unavailable("a batch was not durable in time; send it again")
            self._sleep()

    def _collect(self) -> Acknowledgement[Failure] | None:
        """Takes the batches at the head that are over, until they have many failures."""
        sequence = 0
        failures: list[tuple[int, Failure]] = []
        while len(failures) < _MANY_FAILURES:
            with self._lock:
                if not self._batches or not self._batches[0].pending.over:
                    break
                batch = self._batches.popleft()
                self._ahead -= batch.size
                self._lock.notify()
            sequence = batch.sequence
            failures += [(sequence, failure) for failure in batch.pending.failures()]
        return Acknowledgement(sequence, failures) if sequence else None

    def _sleep(self) -> None:
        wake = self._wake
        try:
            wake.get(timeout=_TICK)
            while True:
                wake.get_nowait()
        except Empty:
            pass

    def wake_up(self) -> None:
        """Says that a batch may be over."""
        self._wake.put(None)

    def _check(self, producer: str, sequence: int) -> None:
        if not self.producer:
            problem = name_problem(producer)
            if problem:
                raise _invalid("PRODUCER_INVALID", "producer_id", problem)
            self.producer = producer
        elif producer and producer != self.producer:
            raise _invalid("PRODUCER_INVALID", "producer_id", "must not change within a stream")
        if sequence <= self._newest:
            detail = f"must be above {self._newest}, the sequence before it in this stream"
            raise _invalid("SEQUENCE_INVALID", "sequence", detail)
        with self._lock:
            oldest = self._batches[0].sequence if self._batches else sequence
        if sequence - oldest >= WINDOW or sequence > 1 << 53:
            detail = f"must be less than {WINDOW} above the oldest unacknowledged one ({oldest})"
            raise _invalid("SEQUENCE_INVALID", "sequence", detail)

    def _wait_for_room(self) -> None:
        with self._lock:
            while len(self._batches) >= _MAX_AHEAD or self._ahead > _MAX_AHEAD_ITEMS:
                if self._finished:
                    break
                self._lock.wait(_TICK)
            if self._finished:
                raise self._error or Unavailable("the stream is over")

    def _submit(self, submit: Callable[[], Pending[Failure]]) -> Pending[Failure]:
        """Submits a batch; a stream waits where a unary call would be refused."""
        until = time.monotonic() + self._patience
        while True:
            try:
                return submit()
            except Overloaded:
                if time.monotonic() > until or self._finished:
                    raise
                with self._lock:
                    self._lock.wait(_FULL)


def _invalid(reason: str, field: str, description: str) -> InvalidArgument:
    return InvalidArgument(reason, [FieldViolation(field, description)])
