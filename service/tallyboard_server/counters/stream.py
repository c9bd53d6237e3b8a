"""One stream of increments: batches in, acknowledgements out, in the order of the sequences.

The reader hands batches over without waiting; the one who acknowledges waits here. A producer's
token makes each batch count once, through whichever stream or worker it comes.
"""

import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from queue import Empty, SimpleQueue
from typing import NamedTuple

from tallyboard_server.counters.merge import merge
from tallyboard_server.counters.writes import CounterWriter, WriteResult
from tallyboard_server.errors import (
    FieldViolation,
    InvalidArgument,
    Overloaded,
    TallyboardError,
    Unavailable,
)
from tallyboard_server.names import are_plain, name_problem
from tallyboard_server.redis.keys import producer_key
from tallyboard_server.redis.operations import Token, Write

WINDOW = 256
_MAX_AHEAD = 64
_MAX_AHEAD_DELTAS = 400_000
_TICK = 0.25
_FULL = 0.01


class Acknowledgement(NamedTuple):
    """Every batch up to `sequence` is dealt with; `failures` are (sequence, counter, error)."""

    sequence: int
    failures: list[tuple[int, str, TallyboardError]]


class _Batch(NamedTuple):
    sequence: int
    size: int
    write: Write
    result: WriteResult


class IncrementStream:
    """The state of one stream.

    Two threads use it: one calls `take` and `finish`, the other iterates `acknowledgements`.

    Args:
        producer_ttl: seconds that a silent producer is remembered.
        patience: seconds that one batch may take.
    """

    def __init__(
        self, writer: CounterWriter, tenant: str, producer_ttl: int, patience: float
    ) -> None:
        self._writer = writer
        self._tenant = tenant
        self._ttl = producer_ttl
        self._patience = patience
        self._producer = ""
        self._newest = 0
        self._lock = threading.Condition()  # guards _batches, _ahead, _finished, _error
        self._batches: deque[_Batch] = deque()
        self._ahead = 0
        self._finished = False
        self._error: TallyboardError | None = None
        self._wake: SimpleQueue[None] = SimpleQueue()

    def take(
        self, producer: str, sequence: int, counters: Sequence[str], deltas: Sequence[int]
    ) -> None:
        """Takes one batch; waits while too many are ahead of their acknowledgement.

        Raises:
            TallyboardError: the stream is over; the batch was not taken.
        """
        self._check(producer, sequence, counters, deltas)
        self._wait_for_room()
        merged, failures = self._merged(counters, deltas)
        write, result = self._submit(sequence, merged)
        result.failures |= failures
        with self._lock:
            self._batches.append(_Batch(sequence, len(deltas), write, result))
            self._ahead += len(deltas)
        self._newest = sequence
        self._wake_up()  # it may have been over before it was in the list

    def finish(self, error: TallyboardError | None = None) -> None:
        """No more batches will come. With an error, the stream ends with it after what is ahead."""
        with self._lock:
            self._finished = True
            self._error = self._error or error
            self._lock.notify_all()
        self._wake_up()

    def acknowledgements(self) -> Iterator[Acknowledgement]:
        """Acknowledgements until the stream is finished and all is acknowledged.

        Raises:
            TallyboardError: a batch failed, or the reader passed an error to `finish`.
        """
        while (found := self._next()) is not None:
            yield found

    def _next(self) -> Acknowledgement | None:
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

    def _collect(self) -> Acknowledgement | None:
        """Takes the batches at the head that are over."""
        sequence, failures = 0, []
        while True:
            with self._lock:
                if not self._batches or not self._batches[0].write.over:
                    break
                batch = self._batches.popleft()
                self._ahead -= batch.size
                self._lock.notify()
            result = self._writer.outcome(batch.write, batch.result)
            sequence = batch.sequence
            failures += [(sequence, name, error) for name, error in result.failures.items()]
        return Acknowledgement(sequence, failures) if sequence else None

    def _sleep(self) -> None:
        wake = self._wake
        try:
            wake.get(timeout=_TICK)
            while True:
                wake.get_nowait()
        except Empty:
            pass

    def _wake_up(self) -> None:
        self._wake.put(None)

    def _check(
        self, producer: str, sequence: int, counters: Sequence[str], deltas: Sequence[int]
    ) -> None:
        if not self._producer:
            problem = name_problem(producer)
            if problem:
                raise _invalid("PRODUCER_INVALID", "producer_id", problem)
            self._producer = producer
        elif producer and producer != self._producer:
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
            while len(self._batches) >= _MAX_AHEAD or self._ahead > _MAX_AHEAD_DELTAS:
                if self._finished:
                    break
                self._lock.wait(_TICK)
            if self._finished:
                raise self._error or Unavailable("the stream is over")

    def _submit(self, sequence: int, merged: Mapping[str, int]) -> tuple[Write, WriteResult]:
        """Submits a batch; a stream waits where a unary call would be refused."""
        token_of = partial(self._token, sequence)
        until = time.monotonic() + self._patience
        while True:
            try:
                return self._writer.submit(
                    self._tenant, merged, self._producer, token_of, self._wake_up
                )
            except Overloaded:
                if time.monotonic() > until or self._finished:
                    raise
                with self._lock:
                    self._lock.wait(_FULL)

    def _merged(
        self, counters: Sequence[str], deltas: Sequence[int]
    ) -> tuple[Mapping[str, int], dict[str, TallyboardError]]:
        failures: dict[str, TallyboardError] = {}
        if 0 in deltas:
            names = counters if len(counters) > 1 else [counters[0]] * len(deltas)
            for name, delta in zip(names, deltas, strict=True):
                if delta == 0:
                    failures[name] = _invalid("DELTA_ZERO", "deltas", "must not be 0")
        merged = merge(counters, deltas)
        if not are_plain(merged):
            for name in merged:
                problem = name_problem(name)
                if problem:
                    failures[name] = _invalid("NAME_INVALID", "counters", problem)
        if failures:
            merged = {name: delta for name, delta in merged.items() if name not in failures}
        return merged, failures

    def _token(self, sequence: int, partition: int) -> Token:
        key = producer_key(partition, self._tenant, self._producer)
        return Token("p", key, sequence, self._ttl)


def _invalid(reason: str, field: str, description: str) -> InvalidArgument:
    return InvalidArgument(reason, [FieldViolation(field, description)])
