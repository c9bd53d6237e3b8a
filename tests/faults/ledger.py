"""Clients that write under load and put down what was acknowledged, to compare it afterwards.

Those of counters are here; those of leaderboards (score_ledger.py) share what both need.
"""

import itertools
import random
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from itertools import cycle, islice
from typing import Any, Final, Generic, Self, TypeVar

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from tallyboard.v1 import consistency_pb2, counters_pb2, counters_pb2_grpc
from tests.waiting import wait_for

CALL_TIMEOUT: Final = 5.0
PATIENCE: Final = 40.0
#: How calls end that a repeat may help.
TRANSIENT: Final = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
)
_WINDOW: Final = 32
_READ_AT_ONCE: Final = 1000
#: More than one of these, and a counter is wide; 2,000 of them are in the 64-bit range.
_WIDE_DELTA: Final = 1 << 52
_TICK: Final = 0.05
_PAUSE: Final = 0.02
_OPTIONS: Final = (("grpc.use_local_subchannel_pool", 1),)

#: What makes a stub over a channel.
Service = Callable[[grpc.Channel], Any]
COUNTERS: Final[Service] = counters_pb2_grpc.CounterServiceStub
Batch = TypeVar("Batch")


def reason_of(error: Any) -> str:
    """The service's own reason for an error; empty when the transport made it."""
    status = rpc_status.from_call(error)
    for detail in status.details if status is not None else ():
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            return str(info.reason)
    return ""


@contextmanager
def stub_of(target: str, service: Service = COUNTERS) -> Iterator[Any]:
    """A stub over a connection of its own, and so of some worker."""
    with grpc.insecure_channel(target, _OPTIONS) as channel:
        yield service(channel)


def read(target: str, counters: list[str]) -> dict[str, int]:
    """Exact counts; asks again until the service is back."""
    found: dict[str, int] = {}
    for start in range(0, len(counters), _READ_AT_ONCE):
        request = counters_pb2.BatchGetCountersRequest(
            counters=counters[start : start + _READ_AT_ONCE],
            consistency=consistency_pb2.Consistency(exact=True),
        )
        answer = retried(target, "BatchGetCounters", request)
        found |= {count.counter: count.value for count in answer.counts}
    return found


def retried(target: str, method: str, request: Any, service: Service = COUNTERS) -> Any:
    """Calls until it is answered with OK; raises what no repeat helps, or after long."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            with stub_of(target, service) as stub:
                return call(method, request, stub)
        except grpc.RpcError as error:
            if error.code() not in TRANSIENT or time.monotonic() > deadline:
                raise
        threading.Event().wait(_PAUSE)


class Ledger:
    """What clients know: counted for sure, and perhaps counted. Any thread may write."""

    def __init__(self) -> None:
        self.sure: Counter[str] = Counter()
        self.perhaps: Counter[str] = Counter()
        self.problems: list[str] = []
        self.retries = 0
        self._lock = threading.Lock()  # guards all of these

    def counted(self, counter: str, delta: int) -> None:
        """It was acknowledged."""
        with self._lock:
            self.sure[counter] += delta

    def unknown(self, counter: str, delta: int) -> None:
        """Nobody can tell."""
        with self._lock:
            self.perhaps[counter] += delta

    def problem(self, what: str) -> None:
        """Something that must not happen."""
        with self._lock:
            self.problems.append(what)

    def retried(self) -> None:
        """Something is sent once more."""
        with self._lock:
            self.retries += 1

    @property
    def names(self) -> list[str]:
        """Everything that anybody wrote to."""
        return sorted(self.sure.keys() | self.perhaps.keys())

    def differences(self, target: str) -> dict[str, tuple[int, int, int]]:
        """Counters that are not what was acknowledged: (found, least, most)."""
        return self.wrong(read(target, self.names))

    def wrong(self, found: Mapping[str, int]) -> dict[str, tuple[int, int, int]]:
        """Those of the counts found that are not what was acknowledged, as `differences` does."""
        wrong = {}
        for name in self.names:
            least = self.sure[name]
            most = least + self.perhaps[name]
            if not least <= found.get(name, 0) <= most:
                wrong[name] = (found.get(name, 0), least, most)
        return wrong


class Clients:
    """Clients of several kinds, a thread each, from `with` to `finish`.

    Each kind is a method `_kind` that takes the service to call first. Clients whose writes can be
    sent again do so until they are acknowledged.

    Args:
        targets: services; clients are spread over them.
        kinds: of clients; each is started `each` times.
        moves: whether a client goes to the next service when a call fails.

    Attributes:
        ledger: what is known to count.
        acknowledged, updates: how many writes were acknowledged, and the updates in them.
    """

    service: Service = COUNTERS

    def __init__(
        self, targets: Sequence[str], ledger: "Ledger", kinds: Iterable[str], each: int, moves: bool
    ) -> None:
        self.ledger = ledger
        self.acknowledged = 0
        self.updates = 0
        self._counting = threading.Lock()  # guards these two
        self._targets = targets
        self._moves = moves
        self._stop = threading.Event()
        self._give_up = time.monotonic() + 100.0
        self._threads = [
            threading.Thread(
                target=self._run, args=(kind, targets[i % len(targets)]), name=kind, daemon=True
            )
            for kind in kinds
            for i in range(each)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.finish()

    def wait_for_more(self, count: int) -> None:
        """Wait until so many more writes are acknowledged."""
        seen = self.acknowledged
        wait_for(lambda: self.acknowledged >= seen + count, f"{count} more writes", PATIENCE)

    def stop(self) -> None:
        """No new writes from now on; does not wait for those under way."""
        self._stop.set()

    def finish(self) -> None:
        """No new writes; those under way are sent until they are acknowledged."""
        self._stop.set()
        self._give_up = min(self._give_up, time.monotonic() + PATIENCE)
        for thread in self._threads:
            thread.join(PATIENCE + CALL_TIMEOUT)
            if thread.is_alive():
                self.ledger.problem(f"{thread.name} did not end")

    def _wrote(self, updates: int) -> None:
        with self._counting:
            self.acknowledged += 1
            self.updates += updates

    def _run(self, kind: str, target: str) -> None:
        try:
            getattr(self, f"_{kind}")(target)
        except Exception as error:
            self.ledger.problem(f"{kind}: {error!r}")

    def _places(self, first: str) -> Iterator[str]:
        """Where to send a write, attempt by attempt."""
        if not self._moves:
            return cycle((first,))
        return islice(cycle(self._targets), self._targets.index(first), None)

    def _until_acknowledged(self, target: str, call: Callable[[Any], Any]) -> Any:
        for place in self._places(target):
            try:
                with stub_of(place, self.service) as stub:
                    return call(stub)
            except grpc.RpcError as error:
                self._retry(error)
        raise AssertionError("there is always another place")

    def _retry(self, error: Any) -> None:
        if error.code() not in TRANSIENT:
            raise error
        if time.monotonic() > self._give_up:
            raise TimeoutError(f"never acknowledged: {error}")
        self.ledger.retried()
        threading.Event().wait(_PAUSE)

    def _run_stream(
        self,
        producer: "BatchProducer[Batch]",
        target: str,
        on_acknowledged: Callable[[list[Batch], list[Any]], None],
    ) -> None:
        """Streams new batches until the stop, and then until all are acknowledged."""
        for place in self._places(target):
            if self._stop.is_set() and not producer.unacknowledged:
                return
            try:
                with stub_of(place, self.service) as stub:
                    producer.run(stub, self._stop, on_acknowledged)
            except grpc.RpcError as error:
                self._retry(error)

    def _failed_without_id(self, error: Any, name: str, delta: int) -> None:
        """UNAVAILABLE from the service itself promises that nothing was counted."""
        self.ledger.retried()
        reason = reason_of(error)
        if error.code() == grpc.StatusCode.UNAVAILABLE and reason:
            return
        self.ledger.unknown(name, delta)
        if error.code() not in TRANSIENT:
            self.ledger.problem(f"{error.code()} {error.details()}")


class Load(Clients):
    """Clients of counters.

    All deltas are positive, so that a lost one and one counted twice can't make up for each other.

    Args:
        targets, kinds, each: see Clients.
        prefix: of the names of the counters.
    """

    def __init__(
        self,
        *targets: str,
        prefix: str = "",
        kinds: tuple[str, ...] = ("with_id", "without_id", "batch", "stream"),
        each: int = 2,
    ) -> None:
        super().__init__(targets, Ledger(), kinds, each, moves=False)
        self._prefix = prefix or f"{uuid.uuid4().hex[:8]}:"

    def _with_id(self, target: str) -> None:
        name = f"{self._prefix}with_id"
        while not self._stop.is_set():
            delta = random.randint(1, 1000)
            request = counters_pb2.IncrementRequest(
                counter=name, delta=delta, request_id=str(uuid.uuid4())
            )
            self._until_acknowledged(target, partial(call, "Increment", request))
            self._counted({name: delta})

    def _batch(self, target: str) -> None:
        while not self._stop.is_set():
            deltas = {
                f"{self._prefix}batch{random.randint(0, 99)}": random.randint(1, 1000)
                for _ in range(20)
            }
            request = counters_pb2.BatchIncrementRequest(
                deltas=[counters_pb2.CounterDelta(counter=n, delta=d) for n, d in deltas.items()],
                request_id=str(uuid.uuid4()),
            )
            answer = self._until_acknowledged(target, partial(call, "BatchIncrement", request))
            for failure in answer.failures:
                self.ledger.problem(f"batch item failed: {failure}")
            self._counted(deltas)

    def _wide(self, target: str) -> None:
        """Counters that soon are too large for a shard."""
        while not self._stop.is_set():
            name = f"{self._prefix}wide{random.randint(0, 9)}"
            delta = _WIDE_DELTA + random.randint(1, 1000)
            if self.ledger.sure[name] > _WIDE_DELTA * 1000:
                return
            request = counters_pb2.IncrementRequest(
                counter=name, delta=delta, request_id=str(uuid.uuid4())
            )
            self._until_acknowledged(target, partial(call, "Increment", request))
            self._counted({name: delta})

    def _once(self, target: str) -> None:
        """Counters that are written once each: nothing later makes up for what is lost."""
        for number in itertools.count():
            if self._stop.is_set():
                return
            deltas = {f"{self._prefix}once{number}-{i}": random.randint(1, 1000) for i in range(5)}
            request = counters_pb2.BatchIncrementRequest(
                deltas=[counters_pb2.CounterDelta(counter=n, delta=d) for n, d in deltas.items()],
                request_id=str(uuid.uuid4()),
            )
            self._until_acknowledged(target, partial(call, "BatchIncrement", request))
            self._counted(deltas)
            self._stop.wait(_PAUSE)

    def _without_id(self, target: str) -> None:
        name = f"{self._prefix}without_id"
        with ExitStack() as stack:
            stub = stack.enter_context(stub_of(target))
            while not self._stop.is_set():
                delta = random.randint(1, 1000)
                request = counters_pb2.IncrementRequest(counter=name, delta=delta)
                try:
                    stub.Increment(request, timeout=CALL_TIMEOUT)
                except grpc.RpcError as error:
                    self._failed_without_id(error, name, delta)
                    stack.close()
                    stub = stack.enter_context(stub_of(target))
                    self._stop.wait(_PAUSE)
                else:
                    self._counted({name: delta})

    def _stream(self, target: str) -> None:
        self._run_stream(Producer(f"{self._prefix}stream"), target, self._acknowledged)

    def _acknowledged(self, batches: list[dict[str, int]], failures: list[Any]) -> None:
        for failure in failures:
            self.ledger.problem(f"stream item failed: {failure}")
        for deltas in batches:
            self._counted(deltas)

    def _counted(self, deltas: dict[str, int]) -> None:
        for name, delta in deltas.items():
            self.ledger.counted(name, delta)
        self._wrote(len(deltas))


def call(method: str, request: Any, stub: Any) -> Any:
    """One call, by the name of its method."""
    return getattr(stub, method)(request, timeout=CALL_TIMEOUT)


class BatchProducer(Generic[Batch]):
    """A producer of batches: sends, remembers what is not acknowledged, and sends that again.

    Attributes:
        service, method: of the stream.
        unacknowledged: batches by their sequence.
    """

    service: Service
    method: str

    def __init__(self) -> None:
        self.id = str(uuid.uuid4())
        self.unacknowledged: dict[int, Batch] = {}
        self._sequence = 0
        self._changed = threading.Condition()  # guards all of these

    def make(self) -> Batch:
        """What a new batch holds."""
        raise NotImplementedError

    def message(self, sequence: int) -> Any:
        """The message of a batch; the same each time."""
        raise NotImplementedError

    def new_batch(self) -> int:
        """Makes the next batch; its sequence."""
        with self._changed:
            self._sequence += 1
            self.unacknowledged[self._sequence] = self.make()
            return self._sequence

    def run(
        self,
        stub: Any,
        stop: threading.Event,
        on_acknowledged: Callable[[list[Batch], list[Any]], None],
    ) -> None:
        """One stream: what is unacknowledged, then new batches until `stop`, then all acks.

        Raises:
            grpc.RpcError: the stream broke.
        """
        over = threading.Event()

        def batches() -> Iterator[Any]:
            for sequence in sorted(self.unacknowledged):
                if sequence in self.unacknowledged:
                    yield self.message(sequence)
            while not stop.is_set() and not over.is_set():
                with self._changed:
                    if len(self.unacknowledged) >= _WINDOW:
                        self._changed.wait(_TICK)
                        continue
                yield self.message(self.new_batch())

        try:
            for answer in getattr(stub, self.method)(batches(), timeout=PATIENCE):
                on_acknowledged(self.acknowledge(answer.acknowledged_sequence), answer.failures)
        finally:
            over.set()

    def acknowledge(self, sequence: int) -> list[Batch]:
        """Forgets what is acknowledged, and gives it."""
        with self._changed:
            done = [s for s in self.unacknowledged if s <= sequence]
            batches = [self.unacknowledged.pop(s) for s in done]
            self._changed.notify_all()
            return batches

    def break_off(self, target: str) -> None:
        """Sends everything and breaks off at the first acknowledgement, taking no note of it."""
        messages = [self.message(sequence) for sequence in sorted(self.unacknowledged)]
        with stub_of(target, self.service) as stub:
            answers = getattr(stub, self.method)(iter(messages), timeout=CALL_TIMEOUT)
            with suppress(grpc.RpcError):
                for answer in answers:
                    if answer.acknowledged_sequence:
                        break
            answers.cancel()

    def resume(
        self, target: str, on_acknowledged: Callable[[list[Batch], list[Any]], None]
    ) -> None:
        """Sends what is unacknowledged until all of it is acknowledged."""
        stop = threading.Event()
        stop.set()

        def attempt() -> bool:
            with suppress(grpc.RpcError), stub_of(target, self.service) as stub:
                self.run(stub, stop, on_acknowledged)
            return not self.unacknowledged

        wait_for(attempt, "all batches to be acknowledged", PATIENCE)


class Producer(BatchProducer[dict[str, int]]):
    """A producer of increments."""

    service = COUNTERS
    method = "StreamIncrements"

    def __init__(self, prefix: str, size: int = 20) -> None:
        super().__init__()
        self._prefix = prefix
        self._size = size

    def make(self) -> dict[str, int]:
        """Deltas of some of a hundred counters."""
        return {
            f"{self._prefix}{random.randint(0, 99)}": random.randint(1, 1000)
            for _ in range(self._size)
        }

    def message(self, sequence: int) -> counters_pb2.StreamIncrementsRequest:
        """The message of a batch; the same each time."""
        deltas = self.unacknowledged[sequence]
        return counters_pb2.StreamIncrementsRequest(
            producer_id=self.id, sequence=sequence, counters=list(deltas), deltas=deltas.values()
        )
