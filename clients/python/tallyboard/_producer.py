"""The high-volume way to count: a stream of batches that survives whatever breaks it.

A producer numbers its batches and keeps each one until the service has acknowledged it. When the
stream breaks it opens another and sends the same batches again, which the service recognises.
"""

import copy
import logging
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Final, Self

import grpc

from tallyboard._backoff import Backoff
from tallyboard._batches import (
    MAX_UPDATES,
    Batches,
    check_batch,
    check_counter,
    check_delta,
    check_updates,
    message_of,
)
from tallyboard._calls import metadata_of
from tallyboard._errors import (
    FailedPreconditionError,
    InternalError,
    OutcomeUnknownError,
    TallyboardError,
    WindowFullError,
    error_from_call,
)
from tallyboard._failures import IncrementFailure
from tallyboard._forks import refuse_after_fork
from tallyboard.v1 import counters_pb2, counters_pb2_grpc

#: How many batches the service lets be unacknowledged.
MAX_WINDOW: Final = 256
#: How many of the newest failures a producer keeps.
KEPT_FAILURES: Final = 1_000
_JOIN_TIMEOUT: Final = 5.0
_LOOK_INTERVAL: Final = 1.0
_LAST: Final = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.OUT_OF_RANGE,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.PERMISSION_DENIED,
    }
)

_log = logging.getLogger("tallyboard")


class _Stream:
    """One stream of a producer; the producer's lock guards what it says."""

    def __init__(self) -> None:
        self.over = False
        self.call: grpc.Call | None = None
        self.sent = 0


class IncrementProducer:
    """Counts in batches over one stream, each update exactly once; any thread may use it.

    Updates are collected into batches, sent by a background thread, and kept in memory until they
    are acknowledged. A broken stream is replaced, and what was not acknowledged is sent again. A
    call blocks only while `window` batches are unacknowledged, and never longer than its timeout.
    A process that forks makes its producers after that: a copy refuses everything.

    Args:
        channel: see `tallyboard.open_channel`. The producer does not close it.
        tenant: whose counters they are, 1 to 256 printable ASCII characters; None leaves it to
            the credentials.
        producer_id: a name that no other producer uses at the same time; a UUID if left out. An
            id that was used before needs a `first_sequence`.
        first_sequence: the number of the first batch, 1 or more. To go on for a producer that was
            lost with its process: that of its oldest batch without an acknowledgement, followed by
            the same batches through `send_batch`.
        batch_size: updates in a batch at most, 1 to 10,000.
        window: batches that may be unacknowledged, 1 to 256; with `batch_size` it bounds memory.
        linger: seconds that collected updates wait at most for others to share a batch with.
        timeout: seconds that a call may block unless it says otherwise.
        stall_timeout: seconds without an acknowledgement after which the stream counts as broken.
        idle_timeout: seconds without work after which the stream is closed until there is some.
        on_failure: called in the background thread with each failure; it must be quick.

    Raises:
        InvalidArgumentError: the tenant is outside its limits.
        ValueError: another argument is.
    """

    def __init__(
        self,
        channel: grpc.Channel,
        tenant: str | None = None,
        producer_id: str | None = None,
        *,
        first_sequence: int = 1,
        batch_size: int = MAX_UPDATES,
        window: int = 64,
        linger: float = 0.02,
        timeout: float = 60.0,
        stall_timeout: float = 30.0,
        idle_timeout: float = 60.0,
        on_failure: Callable[[IncrementFailure], object] | None = None,
    ) -> None:
        if not 1 <= batch_size <= MAX_UPDATES:
            raise ValueError(f"batch_size must be from 1 to {MAX_UPDATES:,}, not {batch_size}")
        if not 1 <= window <= MAX_WINDOW:
            raise ValueError(f"window must be from 1 to {MAX_WINDOW}, not {window}")
        if first_sequence < 1:
            raise ValueError(f"first_sequence must be 1 or more, not {first_sequence}")
        self.producer_id = str(uuid.uuid4()) if producer_id is None else producer_id
        self._open = counters_pb2_grpc.CounterServiceStub(channel).StreamIncrements
        self._metadata = tuple(metadata_of(tenant, None))
        self._batch_size = batch_size
        self._linger = linger
        self._timeout = timeout
        self._stall_timeout = stall_timeout
        self._idle_timeout = idle_timeout
        self._on_failure = on_failure
        self._backoff = Backoff()
        # Guards everything below, and is notified of every change that somebody may wait for.
        self._changed = threading.Condition()
        self._batches = Batches(self.producer_id, window, first_sequence)
        self._failures: deque[IncrementFailure] = deque(maxlen=KEPT_FAILURES)
        self._collected_since = 0.0
        self._progress_at = 0.0
        self._stream = _Stream()
        self._streams_opened = 0
        self._broken_by: TallyboardError | None = None
        self._fatal: TallyboardError | None = None
        self._takes = True  # until it is closed
        self._closing = False  # of the thread
        self._thread: threading.Thread | None = None
        refuse_after_fork(self)

    @property
    def acknowledged(self) -> int:
        """How many updates are acknowledged: they counted, and durably so."""
        with self._changed:
            return self._batches.counted

    @property
    def acknowledged_sequence(self) -> int:
        """Every batch with this sequence or a smaller one is acknowledged."""
        with self._changed:
            return self._batches.acknowledged_through

    @property
    def pending(self) -> int:
        """How many updates were taken and are not acknowledged yet."""
        with self._changed:
            return self._batches.pending

    @property
    def failed(self) -> int:
        """How many updates could not count; `failures` says why."""
        with self._changed:
            return self._batches.failed

    @property
    def failures(self) -> tuple[IncrementFailure, ...]:
        """The newest 1,000 failures, oldest first."""
        with self._changed:
            return tuple(self._failures)

    @property
    def streams_opened(self) -> int:
        """How many streams it took so far: 1 if nothing ever broke."""
        with self._changed:
            return self._streams_opened

    def add(self, counter: str, delta: int = 1, *, timeout: float | None = None) -> None:
        """Take one update; it counts soon, and is acknowledged after `flush` at the latest.

        Args:
            counter: 1 to 256 bytes of UTF-8 without control characters.
            delta: what to add, not 0, in the signed 64-bit range.
            timeout: seconds to wait for room at most.

        Raises:
            InvalidArgumentError: the name or the delta cannot be sent.
            WindowFullError: there was no room in time. The update was not taken.
            TallyboardError: the service has refused this producer for good.
        """
        check_counter(counter)
        check_delta(delta)
        with self._changed:
            self._take((counter,), (delta,), self._deadline(timeout))

    def add_many(
        self, counters: Sequence[str], deltas: Sequence[int], *, timeout: float | None = None
    ) -> None:
        """Take any number of updates, `deltas[i]` to `counters[i]`.

        Raises:
            InvalidArgumentError: the lists do not match, or an item cannot be sent. None of the
                updates was taken.
            WindowFullError: there was no room in time.
            FailedPreconditionError: the producer is closed, or was while this waited.
            TallyboardError: the service has refused this producer for good.

        The `taken` of all but the first says how many updates, from the first on, were taken.
        """
        check_updates(counters, deltas)
        with self._changed:
            self._take(counters, deltas, self._deadline(timeout))

    def send_batch(
        self, counters: Sequence[str], deltas: Sequence[int], *, timeout: float | None = None
    ) -> int:
        """Send exactly these updates as one batch and give its sequence.

        Args:
            counters: one for each of the 1 to 10,000 deltas, or one for all of them.
            deltas: what to add.
            timeout: seconds to wait for room at most.

        Raises:
            InvalidArgumentError: the batch cannot be sent. It was not taken.
            WindowFullError: there was no room in time. The batch was not taken.
            TallyboardError: the service has refused this producer for good.
        """
        check_batch(counters, deltas)
        message = message_of(counters, deltas)
        with self._changed:
            self._wait_for_room(self._deadline(timeout))
            self._start()
            sequence = self._batches.append(message)
            self._wake()
            return sequence

    def flush(self, timeout: float | None = None) -> None:
        """Wait until everything taken so far is acknowledged.

        Raises:
            OutcomeUnknownError: it was not in time. What is left stays pending, is sent again as
                often as it takes, and still counts once; `__cause__` is what broke the last stream.
            TallyboardError: the service has refused this producer for good.
        """
        deadline = self._deadline(timeout)
        with self._changed:
            batches = self._batches
            self._wait(
                lambda: not batches.full or not batches.collected, deadline, self._unacknowledged
            )
            if batches.collected:
                self._seal()
            last = batches.sequence
            self._wait(lambda: batches.acknowledged_through >= last, deadline, self._unacknowledged)

    def close(self, timeout: float | None = None) -> None:
        """Take nothing more, flush, and end the stream; does nothing the second time.

        Raises:
            TallyboardError: as `flush`. The producer is closed all the same, and will not send
                what is still pending again.
        """
        with self._changed:
            if self._closing:
                return
            self._takes = False
            self._changed.notify_all()
        try:
            self.flush(timeout)
        finally:
            self._end()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.close()
        except TallyboardError as found:
            if error is None:
                raise
            _log.warning("a producer was closed with updates pending: %s", found)

    def _take(self, counters: Sequence[str], deltas: Sequence[int], deadline: float) -> None:
        taken = 0
        while taken < len(deltas):
            try:
                self._make_room(deadline)
            except TallyboardError as error:
                raise _having_taken(taken, error) from error.__cause__
            upto = taken + self._batch_size - self._batches.collected
            self._collect(counters[taken:upto], deltas[taken:upto])
            taken = min(upto, len(deltas))

    def _make_room(self, deadline: float) -> None:
        """Wait until an update can be collected, and its sender runs."""
        batches, size = self._batches, self._batch_size
        if batches.collected >= size:
            self._wait_for_room(deadline)
            # Another thread may have sealed it meanwhile.
            if batches.collected >= size:
                self._seal()
        self._check_taking()
        self._start()

    def _collect(self, counters: Sequence[str], deltas: Sequence[int]) -> None:
        batches, first = self._batches, not self._batches.collected
        batches.collect(counters, deltas)
        if batches.collected >= self._batch_size and not batches.full:
            self._seal()
        elif first:
            self._collected_since = time.monotonic()
            self._wake()

    def _seal(self) -> None:
        self._batches.seal()
        self._wake()

    def _start(self) -> None:
        """Start the background thread, before anything is taken that only it can send."""
        if self._thread is None:
            name = f"tallyboard-{self.producer_id[:8]}"
            thread = threading.Thread(target=self._run, name=name, daemon=True)
            thread.start()
            self._thread = thread

    def _wake(self) -> None:
        """Something is to be sent."""
        if self._batches.acknowledged_through == self._batches.sequence - 1:
            self._progress_at = time.monotonic()
        self._cut_stalled()
        self._changed.notify_all()

    def _wait_for_room(self, deadline: float) -> None:
        self._check_taking()
        self._wait(
            lambda: not self._batches.full or not self._takes,
            deadline,
            lambda: WindowFullError(0),
        )
        self._check_taking()

    def _wait(
        self,
        done: Callable[[], bool],
        deadline: float,
        too_late: Callable[[], TallyboardError],
    ) -> None:
        """Wait until `done`; raise `too_late()` after the deadline, caused by what broke last."""
        self._check_usable()
        while not done():
            left = deadline - time.monotonic()
            if left <= 0:
                raise too_late() from self._broken_by
            self._cut_stalled()
            self._changed.wait(min(left, _LOOK_INTERVAL))
            self._check_usable()

    def _deadline(self, timeout: float | None) -> float:
        return time.monotonic() + (self._timeout if timeout is None else timeout)

    def _check_usable(self) -> None:
        if self._fatal is not None:
            raise self._fatal
        if self._closing:
            raise FailedPreconditionError("the producer is closed")

    def _check_taking(self) -> None:
        self._check_usable()
        if not self._takes:
            raise FailedPreconditionError("the producer is closed")

    def _forked(self, error: FailedPreconditionError) -> None:
        self._changed = threading.Condition()
        self._fatal, self._closing, self._thread = error, True, None

    def _unacknowledged(self) -> TallyboardError:
        return OutcomeUnknownError(
            f"{self._batches.pending:,} updates were not acknowledged in time", "OUTCOME_UNKNOWN"
        )

    def _cut_stalled(self) -> None:
        """Break a stream that has work and has been silent for too long."""
        call = self._stream.call
        silent = time.monotonic() - self._progress_at > self._stall_timeout
        if silent and call is not None and self._batches.after(0) is not None:
            self._progress_at = time.monotonic()
            call.cancel()

    def _end(self) -> None:
        with self._changed:
            self._closing = True
            call, thread = self._stream.call, self._thread
            abandoned = self._batches.pending > 0
            self._changed.notify_all()
        if call is not None and abandoned:
            call.cancel()
        if thread is not None:
            thread.join(_JOIN_TIMEOUT)
            if thread.is_alive() and call is not None:
                call.cancel()
                thread.join(_JOIN_TIMEOUT)

    def _run(self) -> None:
        """The background thread."""
        try:
            self._send_all()
        except Exception as error:  # whoever adds or flushes must hear of it
            _log.exception("a producer failed")
            with self._changed:
                self._fatal = InternalError(f"the producer ended with {type(error).__name__}")
                self._fatal.__cause__ = error
                self._changed.notify_all()

    def _send_all(self) -> None:
        """One stream after the other."""
        while self._wait_for_work():
            error = self._serve()
            with self._changed:
                self._broken_by = error or self._broken_by
                if error is not None and _is_final(error):
                    self._fatal = error
                    self._changed.notify_all()
                    return
                # A stream that ended well although work was left is a break, too.
                is_broken = error is not None or self._batches.after(0) is not None
                if is_broken and not self._closing:
                    self._pause(self._backoff.delay(error.retry_after if error else None))

    def _wait_for_work(self) -> bool:
        with self._changed:
            while not self._closing and not self._batches.pending:
                self._changed.wait(self._idle_timeout)
            return not self._closing

    def _pause(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not self._closing and (left := deadline - time.monotonic()) > 0:
            self._changed.wait(left)

    def _serve(self) -> TallyboardError | None:
        """One stream, from its start to its end; gives what broke it."""
        stream = _Stream()
        try:
            call = self._open(self._requests(stream), metadata=self._metadata)
        except ValueError as error:
            return FailedPreconditionError(f"the channel cannot be used: {error}")
        except Exception as error:  # such as too many threads: another attempt may work
            return _internal(error)
        with self._changed:
            self._stream, stream.call = stream, call
            self._streams_opened += 1
            self._progress_at = time.monotonic()
        try:
            for response in call:
                self._acknowledge(response)
        except grpc.RpcError as error:
            return error_from_call(error)
        except Exception as error:
            call.cancel()
            return _internal(error)
        finally:
            with self._changed:
                stream.over, stream.call = True, None
                self._changed.notify_all()
        return None

    def _acknowledge(self, response: counters_pb2.StreamIncrementsResponse) -> None:
        with self._changed:
            failures = self._batches.acknowledge(response)
            self._failures.extend(failures)
            self._progress_at = time.monotonic()
            if response.acknowledged_sequence:
                self._backoff.reset()
            self._changed.notify_all()
        for failure in failures if self._on_failure is not None else ():
            self._report(failure)

    def _report(self, failure: IncrementFailure) -> None:
        assert self._on_failure is not None
        try:
            self._on_failure(failure)
        except Exception:
            _log.exception("on_failure raised")

    def _requests(self, stream: _Stream) -> Iterator[counters_pb2.StreamIncrementsRequest]:
        """What one stream sends, each batch when it is there; a thread of gRPC iterates it."""
        while (batch := self._next(stream)) is not None:
            yield batch

    def _next(self, stream: _Stream) -> counters_pb2.StreamIncrementsRequest | None:
        """Wait for the stream's next batch; None when it has no more to send."""
        idle_since = time.monotonic()
        with self._changed:
            while not stream.over:
                batch = self._batches.after(stream.sent)
                if batch is not None:
                    stream.sent = batch.sequence
                    return batch
                wait = self._idle_timeout
                if self._batches.collected and not self._batches.full:
                    wait = self._collected_since + self._linger - time.monotonic()
                    if wait <= 0:
                        self._seal()
                        continue
                elif not self._batches.pending:
                    wait = idle_since + self._idle_timeout - time.monotonic()
                    if wait <= 0 or self._closing:
                        return None
                if self._batches.after(0) is not None:
                    wait = min(wait, _LOOK_INTERVAL)
                    self._cut_stalled()
                self._changed.wait(wait)
        return None


def _internal(error: Exception) -> InternalError:
    fault = InternalError(f"the stream ended with {type(error).__name__}")
    fault.__cause__ = error
    return fault


def _having_taken(taken: int, error: TallyboardError) -> TallyboardError:
    """The error for one call: what the service has refused the producer with is that of all."""
    own = copy.copy(error)
    own.taken = taken
    return own


def _is_final(error: TallyboardError) -> bool:
    """Whether the same batches would end another stream the same way."""
    return error.code in _LAST or error.reason == "MESSAGE_TOO_LARGE"
