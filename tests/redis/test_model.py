"""Counters of two workers on a real Redis do what a dictionary would, whatever comes twice."""

import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
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
from tallyboard_server.counters.reads import CountReader
from tallyboard_server.counters.requests import RequestIds
from tallyboard_server.counters.sharding import Sharding
from tallyboard_server.counters.wide import WideCounters
from tallyboard_server.counters.writes import CounterWriter
from tallyboard_server.errors import OutOfRange, SequenceTooOld, TallyboardError
from tallyboard_server.redis.durability import durability
from tallyboard_server.redis.flush import Fences
from tallyboard_server.redis.keys import incarnation_key, producer_key
from tallyboard_server.redis.operations import Token
from tallyboard_server.redis.store import RedisStore
from tests.redis.node import RedisNode
from tests.waiting import wait_for

_PARTITIONS: Final = 4
_SHARDS: Final = 3
_WINDOW: Final = 256
_LIFE: Final = "model"


class Counters:
    """What a worker has between its RPCs and Redis."""

    def __init__(self, url: str, own_shard: int) -> None:
        fences = Fences(dict.fromkeys(range(_PARTITIONS), _LIFE))
        sharding = Sharding(_PARTITIONS, _SHARDS, {}, [], _SHARDS, own_shard)
        self.store = RedisStore(
            url,
            fences,
            durability("applied", 2.0),
            timeout=2.0,
            max_pending=10_000,
            on_refused=lambda part, names: self.wide.take_over(part, names),
        )
        self.wide = WideCounters(self.store, sharding, 5.0)
        requests = RequestIds(self.store, _PARTITIONS, 600)
        self.writer = CounterWriter(self.store, sharding, self.wide, requests)
        self.reader = CountReader(self.store, sharding, ttl=2.0, max_entries=100)

    def close(self) -> None:
        """Ends its threads."""
        self.wide.close()
        self.store.close()

    def stream_batch(
        self, tenant: str, producer: str, sequence: int, merged: dict[str, int]
    ) -> dict[str, TallyboardError]:
        """Submits a batch as a stream does, waits, and gives what did not count."""

        def token_of(partition: int) -> Token:
            return Token("p", producer_key(partition, tenant, producer), sequence, 600)

        over = threading.Event()
        write, result = self.writer.submit(tenant, merged, producer, token_of, over.set)
        assert over.wait(10.0)
        return self.writer.outcome(write, result).failures


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
            duplicate = self.workers[at].writer.increment(self.tenant, name, delta, "", _soon())
            assert counted
            assert not duplicate
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
        if verb == "reset":
            self.model[name] = 0
        else:
            self.model.pop(name, None)
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
            return writer.increment(self.tenant, name, delta, request.request_id, _soon())
        if request.verb == "batch":
            deltas = dict(request.deltas)
            return writer.batch(self.tenant, deltas, request.request_id, _soon()).duplicate
        return writer.clear(self.tenant, name, request.verb, request.request_id, _soon())[1]


def _soon() -> float:
    return time.monotonic() + 5.0


@pytest.fixture(scope="module")
def workers(node: RedisNode) -> Iterator[tuple[Counters, Counters]]:
    """Two workers on one Redis, which write to shards of their own."""
    for partition in range(_PARTITIONS):
        node.command("SET", incarnation_key(partition), _LIFE)
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
