"""Counting on a hot path: updates merge in memory and are streamed in the background.

An update costs a dictionary look-up under a lock. What was taken is merged by counter, so memory
grows with the number of counters that wait, not with the number of updates, however long the
service is away. A thread takes all of it every `linger` seconds, and gives it to an
`IncrementProducer`, which makes each batch count once.
"""

import atexit
import logging
import operator
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Final, Literal, Self

import grpc

from tallyboard._batches import MAX_UPDATES, check_counter, check_delta
from tallyboard._errors import (
    FailedPreconditionError,
    InternalError,
    OutcomeUnknownError,
    ResourceExhaustedError,
    TallyboardError,
    WindowFullError,
)
from tallyboard._failures import IncrementFailure
from tallyboard._forks import refuse_after_fork
from tallyboard._producer import IncrementProducer

#: Seconds that a process which ends waits for what is pending.
EXIT_TIMEOUT: Final = 10.0
_LARGEST: Final = 2**63 - 1
_TICK: Final = 1.0
_JOIN_TIMEOUT: Final = 5.0

_log = logging.getLogger("tallyboard")
# What is merged of a counter: its sum, and the number of updates.
_Merged = list[int]


class CounterBuffer:
    """Merges updates and streams them, each exactly once; made by `Client.buffered`.

    Any thread may use it. `add` blocks only while too many counters wait, and only if that was
    chosen. What it was given is pending until it is acknowledged, and is sent again until then; a
    process that ends takes it along, after `EXIT_TIMEOUT` seconds of trying. A process that forks
    makes its buffers after that: a copy refuses everything.

    Args:
        channel: see `open_channel`; the buffer does not close it.
        tenant: whose counters they are, 1 to 256 printable ASCII characters; None leaves it to
            the credentials.
        linger: seconds that updates wait for others to merge with.
        max_counters: how many different counters may wait.
        when_full: `block` waits until there is room, at most `timeout` seconds; `shed` does not
            take the update and counts it in `shed`.
        timeout: seconds that a call may block.
        on_failure: called in a background thread with each counter of a batch that could not
            count, and why; it must be quick. Its `delta` is a sum.

    Raises:
        InvalidArgumentError: the tenant is outside its limits.
        ValueError: another argument is.
    """

    def __init__(
        self,
        channel: grpc.Channel,
        tenant: str | None = None,
        *,
        linger: float = 0.02,
        max_counters: int = 100_000,
        when_full: Literal["block", "shed"] = "block",
        timeout: float = 60.0,
        on_failure: Callable[[IncrementFailure], object] | None = None,
    ) -> None:
        if linger < 0:
            raise ValueError(f"linger must be 0 or more, not {linger}")
        if max_counters < 1:
            raise ValueError(f"max_counters must be 1 or more, not {max_counters}")
        if when_full not in ("block", "shed"):
            raise ValueError(f"when_full must be 'block' or 'shed', not {when_full!r}")
        self._producer = IncrementProducer(channel, tenant, timeout=timeout, on_failure=on_failure)
        self._linger = linger
        self._max_counters = max_counters
        self._sheds = when_full == "shed"
        self._timeout = timeout
        # Guards everything below; notified when something waits, was given away, or is over.
        self._changed = threading.Condition(threading.Lock())
        self._open: dict[str, _Merged] = {}
        self._generation = 0  # of what is open
        self._given = 0  # generations up to this one were given to the producer
        self._in_hand = 0  # updates that were taken and not given yet
        self._sent: deque[tuple[int, int]] = deque()  # sequence and updates of what was given
        self._shed = 0
        self._is_hurried = False
        self._error: TallyboardError | None = None  # why the thread has ended
        self._takes = True  # until it is closed or has failed
        self._ending = False  # of the thread
        atexit.register(self._flush_at_exit)
        refuse_after_fork(self)
        self._thread = threading.Thread(target=self._run, name="tallyboard-buffer", daemon=True)
        self._thread.start()

    def counter(self, name: str) -> "BufferedCounter":
        """A counter for many updates.

        Raises:
            InvalidArgumentError: the name is empty, not UTF-8 or longer than 256 bytes.
        """
        check_counter(name)
        return BufferedCounter(self, name)

    def add(self, counter: str, delta: int = 1) -> bool:
        """Takes one update; it counts soon. False: it was not taken, for the buffer is full.

        Raises:
            InvalidArgumentError: the name or the delta can't be sent; nothing was taken.
            TypeError: it is no string, or no integer.
            WindowFullError: there was no room in time; nothing was taken.
            TallyboardError: the service refused the stream for good, or the buffer is closed;
                nothing was taken.
        """
        if delta.__class__ is not int or not delta or not -_LARGEST <= delta <= _LARGEST:
            check_delta(delta)
            delta = operator.index(delta)
        with self._changed:
            merged = self._open.get(counter)
            if merged is None or not self._takes:
                merged = self._admit(counter)
                if merged is None:
                    return False
            merged[0] += delta
            merged[1] += 1
        return True

    @property
    def pending(self) -> int:
        """How many updates were taken and are not acknowledged yet."""
        with self._changed:
            self._drop_acknowledged()
            waiting = sum(merged[1] for merged in self._open.values())
            return waiting + self._in_hand + sum(updates for _, updates in self._sent)

    @property
    def shed(self) -> int:
        """How many updates were not taken because the buffer was full."""
        with self._changed:
            return self._shed

    @property
    def failures(self) -> tuple[IncrementFailure, ...]:
        """The newest 1,000 that could not count, oldest first."""
        return self._producer.failures

    def flush(self, timeout: float | None = None) -> None:
        """Waits until everything taken so far is acknowledged.

        Raises:
            OutcomeUnknownError: it was not in time. What is left stays pending, is sent as often
                as it takes, and counts once.
            TallyboardError: the service has refused the stream for good.
        """
        limit = self._timeout if timeout is None else timeout
        deadline = time.monotonic() + limit
        with self._changed:
            wanted = self._generation if self._open else self._generation - 1
            if self._open:
                self._is_hurried = True
                self._changed.notify_all()
            while self._given <= wanted:
                if self._error is not None:
                    raise self._error
                left = deadline - time.monotonic()
                if left <= 0:
                    raise OutcomeUnknownError("not everything was sent in time", "OUTCOME_UNKNOWN")
                self._changed.wait(min(left, _TICK))
        self._producer.flush(max(0.0, deadline - time.monotonic()))

    def close(self, timeout: float | None = None) -> None:
        """Takes nothing more, flushes, and ends the stream; does nothing the second time.

        Raises:
            TallyboardError: as `flush`. It is closed all the same, and what is pending is lost.
        """
        with self._changed:
            if self._ending:
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
            _log.warning("a buffer was closed with updates pending: %s", found)

    def _admit(self, counter: str) -> _Merged | None:
        """Room for a counter that does not wait yet; None if the update is shed."""
        check_counter(counter)
        self._check_usable()
        if len(self._open) >= self._max_counters and not self._wait_for_room():
            self._shed += 1
            return None
        # Another thread may have let it in meanwhile.
        merged = self._open.setdefault(counter, [0, 0])
        if len(self._open) == 1:
            self._changed.notify_all()
        return merged

    def _wait_for_room(self) -> bool:
        if self._sheds:
            return False
        deadline = time.monotonic() + self._timeout
        while len(self._open) >= self._max_counters:
            left = deadline - time.monotonic()
            if left <= 0:
                raise WindowFullError(0)
            self._changed.wait(min(left, _TICK))
            self._check_usable()
        return True

    def _check_usable(self) -> None:
        if self._error is not None:
            raise self._error
        if not self._takes:
            raise FailedPreconditionError("the buffer is closed")

    def _forked(self, error: FailedPreconditionError) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._error, self._takes, self._ending = error, False, True

    def _run(self) -> None:
        """The background thread: gives away what has merged, time and again."""
        while (taken := self._take()) is not None:
            try:
                self._give(taken)
            except Exception as error:  # whoever adds or flushes must hear of it
                fault = error
                if not isinstance(fault, TallyboardError):
                    _log.exception("a buffer failed")
                    fault = InternalError(f"the buffer ended with {type(error).__name__}")
                with self._changed:
                    self._takes = False
                    self._error = fault
                    self._changed.notify_all()
                return

    def _take(self) -> dict[str, _Merged] | None:
        """All that has merged, when it has waited for its time; None at the end."""
        with self._changed:
            while not self._open:
                if self._ending:
                    return None
                self._changed.wait(_TICK)
            until = time.monotonic() + self._linger
            while not self._is_hurried and not self._ending:
                left = until - time.monotonic()
                if left <= 0 or len(self._open) >= self._max_counters:
                    break
                self._changed.wait(left)
            taken, self._open = self._open, {}
            self._in_hand = sum(merged[1] for merged in taken.values())
            self._generation += 1
            self._is_hurried = False
            self._changed.notify_all()
            return taken

    def _give(self, taken: dict[str, _Merged]) -> None:
        """Gives all of it to the producer, in batches."""
        names: list[str] = []
        sums: list[int] = []
        updates = 0
        for name, (total, number) in taken.items():
            updates += number
            while abs(total) > _LARGEST:  # more than one batch can say
                part = _LARGEST if total > 0 else -_LARGEST
                self._send([name], [part], 0)
                total -= part
            if total:
                names.append(name)
                sums.append(total)
            if len(names) == MAX_UPDATES:
                self._send(names, sums, updates)
                names, sums, updates = [], [], 0
        if names:
            self._send(names, sums, updates)
            updates = 0
        with self._changed:
            self._in_hand -= updates  # of those that add up to 0
            self._given += 1
            self._changed.notify_all()

    def _send(self, names: list[str], sums: list[int], updates: int) -> None:
        while True:
            with suppress(WindowFullError):
                sequence = self._producer.send_batch(names, sums, timeout=_TICK)
                break
            with self._changed:
                if self._ending:
                    raise ResourceExhaustedError("closed while the service took no more")
        with self._changed:
            self._in_hand -= updates
            self._sent.append((sequence, updates))
            self._drop_acknowledged()

    def _drop_acknowledged(self) -> None:
        acknowledged = self._producer.acknowledged_sequence
        while self._sent and self._sent[0][0] <= acknowledged:
            self._sent.popleft()

    def _end(self) -> None:
        atexit.unregister(self._flush_at_exit)
        with self._changed:
            self._ending = True
            self._changed.notify_all()
        self._thread.join(_JOIN_TIMEOUT)
        with suppress(TallyboardError):
            self._producer.close(0.0)

    def _flush_at_exit(self) -> None:
        try:
            self.close(EXIT_TIMEOUT)
        except TallyboardError as error:
            _log.warning("the process ends with updates pending: %s", error)


class BufferedCounter:
    """One counter of a buffer.

    Attributes:
        name: of the counter.
    """

    __slots__ = ("_buffer", "name")

    def __init__(self, buffer: CounterBuffer, name: str) -> None:
        self._buffer = buffer
        self.name = name

    def add(self, delta: int = 1) -> bool:
        """Takes one update; see `CounterBuffer.add`."""
        return self._buffer.add(self.name, delta)
