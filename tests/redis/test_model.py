"""Counters of two workers on a real Redis do what a dictionary would, whatever comes twice."""

import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from tallyboard_server.counters.model import MAX_VALUE, MIN_VALUE
from tallyboard_server.counters.writes import CounterWriter
from tallyboard_server.errors import OutOfRange, SequenceTooOld, TallyboardError, Unavailable
from tallyboard_server.redis.keys import wide_key
from tests.redis.model import Counters, prepare
from tests.redis.node import RedisNode
from tests.waiting import wait_for

_WINDOW: Final = 256


@dataclass(frozen=True)
class Request:
    """A request with an id that can come again."""

    request_id: str
    verb: str
    deltas: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Batch:
    """A batch of a stream that can come again."""

    sequence: int
    deltas: tuple[tuple[str, int], ...]


_NAMES = st.sampled_from(["post:42", "post:43", "}:c:4:acme"])
_EDGES = [
    sign * ((1 << bits) + off)
    for bits in (52, 53, 62, 63)
    for sign in (1, -1)
    for off in (-1, 0, 1)
]
_DELTAS = (st.integers(-5, 5) | st.sampled_from(_EDGES)).filter(
    lambda delta: delta != 0 and MIN_VALUE <= delta <= MAX_VALUE
)
_MERGED = st.dictionaries(_NAMES, _DELTAS, min_size=1).map(lambda found: tuple(found.items()))


class AgainstDictionary(RuleBasedStateMachine):
    """Operations through one of two workers; the model is a dictionary."""

    workers: tuple[Counters, Counters]
    requests = Bundle("requests")
    batches = Bundle("batches")

    @initialize()
    def start(self) -> None:
        self.tenant = uuid.uuid4().hex
        self.producer = "ann"
        self.newest = 0
        self.model: dict[str, int] = {}

    @rule(at=st.integers(0, 1), name=_NAMES, delta=_DELTAS)
    def increment(self, at: int, name: str, delta: int) -> None:
        counted = self._fits(name, delta)
        try:
            result = self.workers[at].writer.increment(self.tenant, name, delta, "", _soon())
            assert counted
            assert (result.duplicate, result.journaled) == (False, False)
        except OutOfRange:
            assert not counted

    @rule(target=requests, at=st.integers(0, 1), name=_NAMES, delta=_DELTAS)
    def increment_with_id(self, at: int, name: str, delta: int) -> Any:
        request = Request(str(uuid.uuid4()), "add", ((name, delta),))
        counted = self._fits(name, delta)
        try:
            assert not self._send(at, request)
            assert counted
        except OutOfRange:
            assert not counted
            return multiple()
        return request

    @rule(at=st.integers(0, 1), deltas=_MERGED)
    def batch(self, at: int, deltas: tuple[tuple[str, int], ...]) -> None:
        failed = {name for name, delta in deltas if not self._fits(name, delta)}
        result = self.workers[at].writer.batch(self.tenant, dict(deltas), "", _soon())
        assert set(result.failures) == failed

    @rule(target=requests, at=st.integers(0, 1), deltas=_MERGED)
    def batch_with_id(self, at: int, deltas: tuple[tuple[str, int], ...]) -> Any:
        request = Request(str(uuid.uuid4()), "batch", deltas)
        fits = [self._fits(name, delta) for name, delta in deltas]
        assert not self._send(at, request)
        return request if all(fits) else multiple()

    @rule(
        target=requests,
        at=st.integers(0, 1),
        name=_NAMES,
        verb=st.sampled_from(["reset", "delete"]),
    )
    def clear(self, at: int, name: str, verb: str) -> Request:
        request = Request(str(uuid.uuid4()), verb, ((name, 0),))
        self._send(at, request)
        if verb == "delete":
            self.model.pop(name, None)
        elif name in self.model:
            self.model[name] = 0
        return request

    @rule(at=st.integers(0, 1), request=requests)
    def repeat(self, at: int, request: Request) -> None:
        assert self._send(at, request)

    @rule(target=batches, at=st.integers(0, 1), deltas=_MERGED, gap=st.sampled_from([1, 1, 2, 9]))
    def stream(self, at: int, deltas: tuple[tuple[str, int], ...], gap: int) -> Any:
        self.newest += gap
        failed = {name for name, delta in deltas if not self._fits(name, delta)}
        found = self.workers[at].stream_batch(self.tenant, "ann", self.newest, dict(deltas))
        assert set(found) == failed
        return multiple() if failed else Batch(self.newest, deltas)

    @rule(at=st.integers(0, 1), batch=batches)
    def stream_again(self, at: int, batch: Batch) -> None:
        try:
            self.workers[at].stream_batch(self.tenant, "ann", batch.sequence, dict(batch.deltas))
        except SequenceTooOld:
            assert self.newest - batch.sequence >= _WINDOW

    @rule(batch=consumes(batches))
    def forget_old_sequences(self, batch: Batch) -> None:
        self.newest += _WINDOW

    @invariant()
    def counts_agree(self) -> None:
        if not hasattr(self, "model"):
            return
        names = ["post:42", "post:43", "}:c:4:acme"]
        expected = [(self.model.get(name, 0), name in self.model) for name in names]
        for worker in self.workers:
            found = worker.reader.exact(self.tenant, names, _soon())
            assert [(count.value, count.exists) for count in found] == expected

    def _fits(self, name: str, delta: int) -> bool:
        """Counts it in the model, unless it would leave the range."""
        total = self.model.get(name, 0) + delta
        if not MIN_VALUE <= total <= MAX_VALUE:
            return False
        self.model[name] = total
        return True

    def _send(self, at: int, request: Request) -> bool:
        """Sends a request; whether it was a repeat."""
        writer = self.workers[at].writer
        (name, delta), *_ = request.deltas
        if request.verb == "add":
            result = writer.increment(self.tenant, name, delta, request.request_id, _soon())
            return result.duplicate
        if request.verb == "batch":
            deltas = dict(request.deltas)
            return writer.batch(self.tenant, deltas, request.request_id, _soon()).duplicate
        return writer.clear(self.tenant, name, request.verb, request.request_id, _soon())[1]


def _soon() -> float:
    return time.monotonic() + 5.0


@pytest.fixture(scope="module")
def workers(node: RedisNode) -> Iterator[tuple[Counters, Counters]]:
    """Two workers on one Redis, which write to shards of their own."""
    prepare(node)
    with ExitStack() as stack:
        first, second = (stack.enter_context(closing(Counters(node.url, i))) for i in (0, 1))
        yield first, second


def test_counters_do_what_a_dictionary_would(workers: tuple[Counters, Counters]) -> None:
    class Machine(AgainstDictionary):
        pass

    Machine.workers = workers
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=30,
            stateful_step_count=20,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_a_repeat_of_what_was_out_of_range_does_not_look_counted(
    workers: tuple[Counters, Counters],
) -> None:
    tenant, request_id = uuid.uuid4().hex, str(uuid.uuid4())
    writer = workers[0].writer
    writer.increment(tenant, "post:42", MAX_VALUE, "", _soon())
    for _ in range(2):
        with pytest.raises(OutOfRange):
            writer.increment(tenant, "post:42", 1, request_id, _soon())


def test_a_large_delta_that_a_batch_says_is_safe_to_repeat_did_not_count(
    node: RedisNode, workers: tuple[Counters, Counters]
) -> None:
    """Two large deltas of one partition, the second of which Redis refuses."""
    tenant, sharding = uuid.uuid4().hex, workers[0].sharding
    names = (f"c{i}" for i in range(1000))
    first, second = islice((n for n in names if sharding.place(tenant, n)[0] == 1), 2)
    home = sharding.home(tenant, second)
    node.command("LPUSH", wide_key(home, tenant, second), "not a number")
    told: TallyboardError | None
    try:
        batch = {first: 1 << 60, second: 1 << 60}
        told = workers[0].writer.batch(tenant, batch, "", _soon()).failures.get(first)
    except TallyboardError as error:
        told = error
    count = workers[0].reader.exact(tenant, [first], _soon())[0]
    assert count.value == 0 or not isinstance(told, Unavailable)


def test_scripts_that_redis_forgot_come_back_for_large_deltas(
    node: RedisNode, workers: tuple[Counters, Counters]
) -> None:
    tenant, writer = uuid.uuid4().hex, workers[0].writer
    writer.increment(tenant, "post:42", 1, "", _soon())
    node.command("SCRIPT", "FLUSH")
    wait_for(lambda: _counts(writer, tenant), "a large delta to count", 3.0)
    assert workers[1].reader.exact(tenant, ["post:42"], _soon())[0].value == (1 << 60) + 1


def _counts(writer: CounterWriter, tenant: str) -> bool:
    try:
        writer.increment(tenant, "post:42", 1 << 60, "", _soon())
    except TallyboardError:
        return False
    return True
