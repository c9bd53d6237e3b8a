"""Exactly once: whatever breaks under load, counts are what was acknowledged, to the unit."""

import os
import signal
import threading
import uuid
from collections.abc import Iterator
from functools import partial
from typing import Any, Final

import grpc
import pytest

from tallyboard.v1 import counters_pb2
from tests.faults.ledger import CALL_TIMEOUT, Ledger, Load, Producer, read, retried, stub_of
from tests.faults.proxy import Faults, Proxy
from tests.service import RunningService
from tests.waiting import wait_for

_CUTS: Final = 40
#: More writes than clients have under way: some of them began later.
_MORE_THAN_UNDER_WAY: Final = 200


@pytest.mark.parametrize(
    ("faults", "what"),
    [
        (Faults(lose_reply_every=7), "lost_replies"),
        (Faults(lose_request_every=7), "lost_requests"),
        (Faults(hold_every=7), "held"),
        (Faults(lose_reply_every=5, piece=11), "lost_replies"),
        (Faults(lose_reply_every=3, delay=0.01), "lost_replies"),
    ],
    ids=["replies lost", "requests lost", "requests late", "tiny pieces", "delays"],
)
def test_a_bad_line_to_redis_loses_and_doubles_nothing(
    behind_proxy: RunningService, proxy: Proxy, faults: Faults, what: str
) -> None:
    before = getattr(proxy, what)
    with Load(behind_proxy.target) as load:
        proxy.faults = faults
        wait_for(lambda: getattr(proxy, what) >= before + _CUTS, f"{_CUTS} {what}", 60)
        proxy.deliver_held()
        proxy.faults = Faults()
        load.finish()
    proxy.deliver_held()
    assert (load.ledger.differences(behind_proxy.target), load.ledger.problems) == ({}, [])


_NOTHING_PASSES = pytest.mark.parametrize(
    "faults", [Faults(mute=True), Faults(black_hole=True)], ids=["no replies", "nothing"]
)


@_NOTHING_PASSES
def test_a_line_that_passes_nothing_loses_and_doubles_nothing(
    refusing: RunningService, proxy: Proxy, faults: Faults
) -> None:
    """Redis counts as away after a second; what was sent without an id is not known to count."""
    with Load(refusing.target, each=3) as load:
        load.wait_for_more(50)
        proxy.faults = faults
        failed = load.ledger.retries + 20
        wait_for(lambda: load.ledger.retries >= failed, "failures")
        proxy.faults = Faults()
        proxy.cut()
        load.wait_for_more(50)
        load.finish()
    assert (load.ledger.differences(refusing.target), load.ledger.problems) == ({}, [])


@_NOTHING_PASSES
def test_a_line_that_passes_nothing_stops_no_writes(
    behind_proxy: RunningService, proxy: Proxy, faults: Faults
) -> None:
    """Redis counts as away after a second. What was sent is journaled under its own token, so that
    all of it is known to count, with an id or without.
    """
    with Load(behind_proxy.target, each=3) as load:
        load.wait_for_more(50)
        proxy.faults = faults
        load.wait_for_more(_MORE_THAN_UNDER_WAY)
        proxy.faults = Faults()
        proxy.cut()
        load.wait_for_more(50)
        load.finish()
    ledger = load.ledger
    assert (ledger.differences(behind_proxy.target), ledger.problems) == ({}, [])
    assert (ledger.retries, ledger.perhaps) == (0, {})


def test_a_repeat_after_a_lost_reply_counts_once(refusing: RunningService, proxy: Proxy) -> None:
    """Every single reply is lost, so the call fails; its repeat with the same id succeeds."""
    name = uuid.uuid4().hex
    request = counters_pb2.IncrementRequest(counter=name, delta=5, request_id=str(uuid.uuid4()))
    proxy.faults = Faults(lose_reply_every=1)
    with stub_of(refusing.target) as stub, pytest.raises(grpc.RpcError):
        stub.Increment(request, timeout=CALL_TIMEOUT)
    proxy.faults = Faults()
    retried(refusing.target, "Increment", request)
    assert read(refusing.target, [name]) == {name: 5}


@pytest.mark.parametrize("request_id", ["", str(uuid.uuid4())], ids=["without an id", "with an id"])
def test_what_was_applied_and_never_answered_is_journaled_and_counts_once(
    behind_proxy: RunningService, proxy: Proxy, request_id: str
) -> None:
    name = uuid.uuid4().hex
    request = counters_pb2.IncrementRequest(counter=name, delta=5, request_id=request_id)
    proxy.faults = Faults(lose_reply_every=1)
    with stub_of(behind_proxy.target) as stub:
        answer = stub.Increment(request, timeout=CALL_TIMEOUT)
    proxy.faults = Faults()
    again = retried(behind_proxy.target, "Increment", request) if request_id else None
    assert (answer.journaled, again is None or again.duplicate) == (True, True)
    assert read(behind_proxy.target, [name]) == {name: 5}


@pytest.fixture(scope="module")
def embedded() -> Iterator[RunningService]:
    """A service with two workers and stores of its own, which the supervisor restarts."""
    with RunningService(workers=2) as service:
        yield service


def test_killed_workers_lose_and_double_nothing(embedded: RunningService) -> None:
    with Load(embedded.target) as load:
        for index in (0, 1, 0):
            load.wait_for_more(100)
            embedded.kill_worker(index)
        load.finish()
    assert (load.ledger.differences(embedded.target), load.ledger.problems) == ({}, [])


@pytest.mark.parametrize("stalls_first", [False, True], ids=["at once", "after a stall"])
def test_a_killed_redis_loses_and_doubles_nothing(
    embedded: RunningService, stalls_first: bool
) -> None:
    """What a stalled one has not read yet dies with it."""
    with Load(embedded.target) as load:
        for _ in range(2):
            load.wait_for_more(100)
            if stalls_first:
                _stop(embedded, "redis")
                load.wait_for_more(_MORE_THAN_UNDER_WAY)
            embedded.kill_child("redis")
        load.finish()
    assert (load.ledger.differences(embedded.target), load.ledger.problems) == ({}, [])


def test_a_killed_keeper_stops_nobody(embedded: RunningService) -> None:
    with Load(embedded.target, each=1) as load:
        load.wait_for_more(20)
        embedded.kill_child("keeper")
        load.wait_for_more(50)
        load.finish()
    assert (load.ledger.differences(embedded.target), load.ledger.problems) == ({}, [])


def test_a_restart_of_everything_keeps_what_was_acknowledged(embedded: RunningService) -> None:
    with Load(embedded.target) as load:
        load.wait_for_more(100)
        embedded.stop()
        embedded.start()
        load.finish()
    assert (load.ledger.differences(embedded.target), load.ledger.problems) == ({}, [])


def test_a_crash_of_everything_keeps_what_was_acknowledged(embedded: RunningService) -> None:
    with Load(embedded.target) as load:
        load.wait_for_more(100)
        embedded.kill()
        embedded.start()
        load.finish()
    assert (load.ledger.differences(embedded.target), load.ledger.problems) == ({}, [])


@pytest.fixture(scope="module")
def two_services(behind_proxy: RunningService) -> Iterator[tuple[RunningService, RunningService]]:
    """Two services on the same stores, one of them behind the proxy."""
    with RunningService(
        workers=1,
        redis_url=behind_proxy.redis_url,
        postgres_url=behind_proxy.postgres_url,
    ) as second:
        yield behind_proxy, second


def test_two_services_on_the_same_stores_agree(
    two_services: tuple[RunningService, RunningService],
) -> None:
    first, second = two_services
    with Load(first.target, second.target) as load:
        load.wait_for_more(300)
        load.finish()
    found = (load.ledger.differences(first.target), load.ledger.differences(second.target))
    assert (found, load.ledger.problems) == (({}, {}), [])


def test_a_client_that_moves_on_without_reading_acknowledgements_counts_once(
    two_services: tuple[RunningService, RunningService],
) -> None:
    ledger = Ledger()
    producer = Producer(f"{uuid.uuid4().hex}:")
    for _ in range(60):
        producer.new_batch()
    wanted = _expected(producer)
    for attempt in range(6):
        producer.break_off(two_services[attempt % 2].target)
    _resume(two_services[1].target, producer, ledger)
    assert (ledger.sure, ledger.differences(two_services[0].target)) == (wanted, {})


def test_two_streams_of_one_producer_at_once_count_once(
    two_services: tuple[RunningService, RunningService], proxy: Proxy
) -> None:
    ledger = Ledger()
    producer = Producer(f"{uuid.uuid4().hex}:")
    for _ in range(60):
        producer.new_batch()
    proxy.faults = Faults(lose_reply_every=5)
    twin = Producer("")
    twin.id, twin.unacknowledged = producer.id, dict(producer.unacknowledged)
    threads = [
        threading.Thread(target=_resume, args=(service.target, who, book))
        for service, who, book in zip(
            two_services, (producer, twin), (ledger, Ledger()), strict=True
        )
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ledger.differences(two_services[0].target) == {}


@pytest.mark.parametrize("verb", ["ResetCounter", "DeleteCounter"])
def test_what_is_counted_after_a_clear_stays_whatever_is_repeated(
    behind_proxy: RunningService, proxy: Proxy, verb: str
) -> None:
    """Rounds of: count, clear, count again; every reply may be lost and everything is repeated."""
    name, target = uuid.uuid4().hex, behind_proxy.target
    kind = {"ResetCounter": counters_pb2.ResetCounterRequest}.get(
        verb, counters_pb2.DeleteCounterRequest
    )
    proxy.faults = Faults(lose_reply_every=2)
    found = []
    for delta in range(1, 11):
        clear = kind(counter=name, request_id=str(uuid.uuid4()))
        add = counters_pb2.IncrementRequest(counter=name, delta=delta, request_id=str(uuid.uuid4()))
        for method, request in (
            (verb, clear),
            ("Increment", add),
            (verb, clear),
            ("Increment", add),
        ):
            retried(target, method, request)
        found.append(read(target, [name])[name])
    assert found == list(range(1, 11))


def test_a_clear_during_increments_takes_each_whole_or_not_at_all(
    behind_proxy: RunningService, proxy: Proxy
) -> None:
    """Increments of 1,000 around resets: what is left is a multiple of 1,000, and no more."""
    name, target = uuid.uuid4().hex, behind_proxy.target
    stop, acknowledged = threading.Event(), []

    def count() -> None:
        while not stop.is_set():
            request = counters_pb2.IncrementRequest(
                counter=name, delta=1000, request_id=str(uuid.uuid4())
            )
            retried(target, "Increment", request)
            acknowledged.append(1000)

    threads = [threading.Thread(target=count) for _ in range(3)]
    for thread in threads:
        thread.start()
    proxy.faults = Faults(lose_reply_every=9)
    for _ in range(5):
        wait_for(partial(_is_longer, acknowledged, len(acknowledged) + 10), "increments")
        clear = counters_pb2.ResetCounterRequest(counter=name, request_id=str(uuid.uuid4()))
        retried(target, "ResetCounter", clear)
    at_reset = len(acknowledged)
    stop.set()
    for thread in threads:
        thread.join()
    value = read(target, [name])[name]
    assert (value % 1000, value >= (len(acknowledged) - at_reset - 3) * 1000) == (0, True)


def _expected(producer: Producer) -> dict[str, int]:
    ledger = Ledger()
    for deltas in producer.unacknowledged.values():
        for name, delta in deltas.items():
            ledger.counted(name, delta)
    return ledger.sure


def _resume(target: str, producer: Producer, ledger: Ledger) -> None:
    """Sends what is unacknowledged until all of it is acknowledged."""

    def note(batches: list[dict[str, int]], failures: list[Any]) -> None:
        for deltas in batches:
            for name, delta in deltas.items():
                ledger.counted(name, delta)
        for failure in failures:
            ledger.problem(str(failure))

    producer.resume(target, note)


def _is_longer(found: list[int], than: int) -> bool:
    return len(found) > than


def _stop(service: RunningService, name: str) -> None:
    pid = wait_for(partial(service.pid, name), f"{name} to run")
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
