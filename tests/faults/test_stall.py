"""A Redis that stalls, is gone or refuses: memory is bounded, deadlines are kept, errors are
clear where nothing is journaled, and the service recovers by itself.
"""

import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

import grpc
import psutil
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from tallyboard.v1 import counters_pb2
from tests.faults import breaks
from tests.faults.breaks import BREAKS, counts_again, paused
from tests.faults.crowd import Crowd, MachineLag
from tests.faults.ledger import CALL_TIMEOUT, Load, read, reason_of, retried, stub_of
from tests.redis.node import RedisNode
from tests.service import RunningService
from tests.waiting import wait_for

_CROWD: Final = 10_000
#: Long enough to send all of them before the first is due.
_CROWD_WAIT: Final = 9.0
_CROWD_SPREAD: Final = 2.5
_PROBES: Final = 24
_LATE: Final = 0.05
_MAX_RSS_GROWTH: Final = 400 * 1024 * 1024


@dataclass
class Stall:
    """What was seen while Redis was stalled, and after."""

    late: list[float] = field(default_factory=list)
    lag: float = 0.0
    probes: set[str] = field(default_factory=set)
    cached: list[float] = field(default_factory=list)
    cached_values: set[int] = field(default_factory=set)
    most_memory: int = 0
    memory_before: int = 0
    crowd: Counter[str] = field(default_factory=Counter)
    same_worker: bool = False
    recovered: bool = False


def _warm(target: str) -> None:
    with stub_of(target) as stub:
        stub.Increment(counters_pb2.IncrementRequest(counter="warm", delta=7))
        stub.GetCounter(counters_pb2.GetCounterRequest(counter="warm"))


def _cached(target: str) -> tuple[int, float]:
    """The value of `warm` that a worker remembers, and the seconds that it took."""
    request = counters_pb2.GetCounterRequest(counter="warm")
    request.consistency.max_staleness.FromSeconds(60)
    with stub_of(target) as stub:
        started = time.monotonic()
        value = stub.GetCounter(request, timeout=CALL_TIMEOUT).count.value
        return value, time.monotonic() - started


def _probe(target: str, index: int, stall: Stall) -> None:
    """One call with a deadline from 0.5 to 3 s; notes how late it ended, and how."""
    request = counters_pb2.IncrementRequest(counter="probe", delta=1)
    seconds = 0.5 + 2.5 * index / _PROBES
    with stub_of(target) as stub:
        due = time.monotonic() + seconds
        try:
            stub.Increment(request, timeout=seconds)
            stall.probes.add("OK")
        except grpc.RpcError as error:
            stall.probes.add(error.code().name)
        stall.late.append(time.monotonic() - due)


def _observe(service: RunningService, node: RedisNode) -> Stall:
    stall = Stall()
    pid = service.pid("worker-0")
    worker = psutil.Process(pid)
    _warm(service.target)
    stall.memory_before = worker.memory_info().rss
    with (
        paused(node),
        Crowd(service.target, _CROWD, _CROWD_WAIT, _CROWD_SPREAD) as crowd,
    ):
        crowd.wait_until_sent()
        with MachineLag() as lag:
            threads = [
                threading.Thread(target=_probe, args=(service.target, i, stall))
                for i in range(_PROBES)
            ]
            for thread in threads:
                thread.start()
            while any(thread.is_alive() for thread in threads):
                value, seconds = _cached(service.target)
                stall.cached.append(seconds)
                stall.cached_values.add(value)
                stall.most_memory = max(stall.most_memory, worker.memory_info().rss)
                threads[-1].join(0.1)
        stall.lag = lag.worst
        stall.crowd = crowd.outcomes()
    stall.recovered = counts_again(service.target)
    stall.same_worker = service.pid("worker-0") == pid
    return stall


@pytest.fixture(scope="module")
def stall(redis_node: RedisNode, database: str) -> Iterator[Stall]:
    """Ten thousand calls behind a Redis that does not answer, with a link that keeps waiting."""
    with RunningService(
        workers=1,
        redis_url=redis_node.url,
        postgres_url=database,
        redis_timeout=30,
        max_concurrent_calls=_CROWD + 1_000,
    ) as service:
        yield _observe(service, redis_node)


def test_deadlines_are_kept_within_50_ms(stall: Stall) -> None:
    assert max(stall.late) - stall.lag <= _LATE


def test_calls_behind_a_stalled_redis_end_with_a_clear_status(stall: Stall) -> None:
    assert stall.probes <= {"DEADLINE_EXCEEDED", "UNAVAILABLE"}


def test_all_of_the_crowd_is_answered(stall: Stall) -> None:
    expected = {"DEADLINE_EXCEEDED", "UNAVAILABLE+"}
    assert (stall.crowd.total(), stall.crowd.keys() - expected) == (_CROWD, set())


def test_memory_stays_bounded(stall: Stall) -> None:
    assert stall.most_memory - stall.memory_before <= _MAX_RSS_GROWTH


def test_cached_reads_work_during_a_stall(stall: Stall) -> None:
    assert stall.cached_values == {7}


def test_cached_reads_do_not_wait_for_a_stalled_redis(stall: Stall) -> None:
    assert sorted(stall.cached)[len(stall.cached) // 2] <= 0.25


def test_the_service_recovers_from_a_stall(stall: Stall) -> None:
    assert stall.recovered


def test_the_service_recovers_without_a_restart(stall: Stall) -> None:
    assert stall.same_worker


@pytest.fixture(scope="module")
def service(redis_node: RedisNode, database: str, stall: Stall) -> Iterator[RunningService]:
    """A service with one worker that refuses what Redis does not take."""
    with RunningService(
        workers=1, redis_url=redis_node.url, postgres_url=database, redis_outage="refuse"
    ) as running:
        yield running


def _failure(target: str, request: counters_pb2.IncrementRequest) -> Any:
    """The error of a call that must fail."""
    with stub_of(target) as stub, pytest.raises(grpc.RpcError) as caught:
        stub.Increment(request, timeout=CALL_TIMEOUT)
    return caught.value


def _request(name: str = "any", delta: int = 1) -> counters_pb2.IncrementRequest:
    return counters_pb2.IncrementRequest(counter=name, delta=delta, request_id=str(uuid.uuid4()))


def _retry_delay(error: Any) -> float:
    """The seconds that RetryInfo asks to wait; 0 if there is none."""
    status = rpc_status.from_call(error)
    for detail in status.details if status is not None else ():
        info = error_details_pb2.RetryInfo()
        if detail.Unpack(info):
            return float(info.retry_delay.ToTimedelta().total_seconds())
    return 0.0


def test_a_stalled_redis_is_given_up_long_before_the_deadline(
    service: RunningService, redis_node: RedisNode
) -> None:
    with paused(redis_node):
        started = time.monotonic()
        _failure(service.target, _request())
        seconds = time.monotonic() - started
    counts_again(service.target)
    assert seconds < CALL_TIMEOUT / 2


def test_once_redis_is_known_to_stall_calls_fail_at_once(
    service: RunningService, redis_node: RedisNode
) -> None:
    with paused(redis_node):
        _failure(service.target, _request())
        with MachineLag() as lag, stub_of(service.target) as stub:
            with suppress(grpc.RpcError):
                stub.Increment(_request(), timeout=CALL_TIMEOUT)
            started = time.monotonic()
            with suppress(grpc.RpcError):
                stub.Increment(_request(), timeout=CALL_TIMEOUT)
            seconds = time.monotonic() - started
    counts_again(service.target)
    assert seconds - lag.worst < 0.3


@pytest.fixture(params=BREAKS)
def broken(
    request: pytest.FixtureRequest, service: RunningService, redis_node: RedisNode
) -> Iterator[Callable[[], object]]:
    """Redis, broken in one way; call it to repair."""
    counts_again(service.target)
    with breaks.broken(redis_node, request.param) as repair:
        yield repair
    counts_again(service.target)


def test_a_redis_that_fails_is_unavailable(
    service: RunningService, broken: Callable[[], object]
) -> None:
    error = _failure(service.target, _request())
    assert (error.code(), reason_of(error)) == (
        grpc.StatusCode.UNAVAILABLE,
        "REDIS_UNAVAILABLE",
    )


def test_a_redis_that_fails_comes_with_a_hint_when_to_try_again(
    service: RunningService, broken: Callable[[], object]
) -> None:
    assert _retry_delay(_failure(service.target, _request())) > 0


def test_a_call_that_failed_counts_once_when_it_comes_again(
    service: RunningService, broken: Callable[[], object]
) -> None:
    request = _request(uuid.uuid4().hex, 5)
    for _ in range(3):
        _failure(service.target, request)
    broken()
    retried(service.target, "Increment", request)
    assert read(service.target, [request.counter]) == {request.counter: 5}


def test_a_large_delta_that_failed_counts_once_when_it_comes_again(
    service: RunningService, broken: Callable[[], object]
) -> None:
    request = _request(uuid.uuid4().hex, 1 << 60)
    _failure(service.target, request)
    broken()
    retried(service.target, "Increment", request)
    assert read(service.target, [request.counter]) == {request.counter: 1 << 60}


def test_a_redis_that_is_gone_for_long_comes_back(
    service: RunningService, redis_node: RedisNode
) -> None:
    """Long enough for the pauses between attempts to reach their longest."""
    pid = service.pid("worker-0")
    redis_node.kill()
    with stub_of(service.target) as stub:
        gone_until = time.monotonic() + 3.0

        def still_failing() -> bool:
            with suppress(grpc.RpcError):
                stub.Increment(_request(), timeout=CALL_TIMEOUT)
            return time.monotonic() > gone_until

        wait_for(still_failing, "3 s of failures")
    redis_node.start()
    counts_again(service.target)
    assert service.pid("worker-0") == pid


def test_scripts_that_redis_forgets_come_back(
    service: RunningService, redis_node: RedisNode
) -> None:
    with Load(service.target) as load:
        for _ in range(10):
            redis_node.command("SCRIPT", "FLUSH")
            load.wait_for_more(20)
        load.finish()
    assert (load.ledger.differences(service.target), load.ledger.problems) == ({}, [])
