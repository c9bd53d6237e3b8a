"""A Redis that fails stops no writes: they are journaled, acknowledged, and count once."""

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any, Final

import grpc
import psycopg
import pytest

from tallyboard.v1 import counters_pb2, leaderboards_pb2
from tests.faults import breaks
from tests.faults.breaks import BREAKS, paused
from tests.faults.crowd import MachineLag
from tests.faults.ledger import CALL_TIMEOUT, read, reason_of, retried, stub_of
from tests.faults.score_ledger import SCORES, Rules, creation, entries
from tests.redis.node import RedisNode
from tests.service import RunningService
from tests.waiting import wait_for

#: Of a caller who does not wait long.
_SOON: Final = 2.0


@pytest.fixture(scope="module")
def service(redis_node: RedisNode, database: str) -> Iterator[RunningService]:
    """A service with one worker and the usual settings."""
    with RunningService(workers=1, redis_url=redis_node.url, postgres_url=database) as running:
        yield running


def _open_again(database: str) -> None:
    """Waits until every partition is."""
    query = "SELECT count(*) FROM tallyboard.partitions WHERE state <> 'OPEN'"
    with psycopg.connect(database, autocommit=True) as conn:
        wait_for(lambda: conn.execute(query).fetchone() == (0,), "all partitions to open", 20.0)


@pytest.fixture(params=BREAKS)
def broken(
    request: pytest.FixtureRequest, service: RunningService, redis_node: RedisNode, database: str
) -> Iterator[Callable[[], object]]:
    """Redis, broken in one way; call it to repair."""
    with breaks.broken(redis_node, request.param) as repair:
        yield repair
    _open_again(database)


def _request(delta: int = 1, *, with_id: bool = True) -> counters_pb2.IncrementRequest:
    request_id = str(uuid.uuid4()) if with_id else ""
    return counters_pb2.IncrementRequest(
        counter=uuid.uuid4().hex, delta=delta, request_id=request_id
    )


def _write(service: RunningService, request: Any, timeout: float = CALL_TIMEOUT) -> Any:
    with stub_of(service.target) as stub:
        return stub.Increment(request, timeout=timeout)


def test_a_write_is_acknowledged_as_journaled(
    service: RunningService, broken: Callable[[], object]
) -> None:
    answer = _write(service, _request())
    assert (answer.journaled, answer.duplicate) == (True, False)


@pytest.mark.parametrize("with_id", [False, True], ids=["without an id", "with an id"])
def test_a_write_counts_once_when_redis_is_back(
    service: RunningService, broken: Callable[[], object], database: str, with_id: bool
) -> None:
    request = _request(5, with_id=with_id)
    _write(service, request)
    broken()
    _open_again(database)
    assert read(service.target, [request.counter]) == {request.counter: 5}


def test_a_write_that_comes_again_counts_once(
    service: RunningService, broken: Callable[[], object]
) -> None:
    """Whether its repeats come while Redis is away or later."""
    request = _request(5)
    answers = [_write(service, request) for _ in range(3)]
    broken()
    again = retried(service.target, "Increment", request)
    assert ([answer.journaled for answer in answers], again.duplicate) == ([True] * 3, True)
    assert read(service.target, [request.counter]) == {request.counter: 5}


def test_a_large_delta_that_was_refused_counts_once_when_it_comes_again(
    service: RunningService, broken: Callable[[], object]
) -> None:
    """It makes its counter wide, which can't wait: it is refused until Redis is back."""
    request = _request(1 << 60)
    for _ in range(2):
        with pytest.raises(grpc.RpcError) as caught:
            _write(service, request)
        error: Any = caught.value
        assert error.code() == grpc.StatusCode.UNAVAILABLE
    broken()
    retried(service.target, "Increment", request)
    assert read(service.target, [request.counter]) == {request.counter: 1 << 60}


@pytest.mark.parametrize("policy", ["SUM", "BEST", "LATEST"])
def test_a_score_counts_once_when_redis_is_back(
    service: RunningService, redis_node: RedisNode, database: str, policy: str
) -> None:
    board = uuid.uuid4().hex
    retried(service.target, "CreateLeaderboard", creation(board, Rules(policy)), SCORES)
    request = leaderboards_pb2.SubmitScoreRequest(
        submission=leaderboards_pb2.Submission(leaderboard_id=board, member="ann", score=5),
        request_id=str(uuid.uuid4()),
    )
    with stub_of(service.target, SCORES) as stub, paused(redis_node):
        answers = [stub.SubmitScore(request, timeout=CALL_TIMEOUT) for _ in range(2)]
    _open_again(database)
    again = retried(service.target, "SubmitScore", request, SCORES)
    assert ([answer.journaled for answer in answers], again.duplicate) == ([True, True], True)
    found = entries(service.target, board)
    assert {member: score.score for member, score in found.items()} == {"ann": 5}


@pytest.mark.parametrize("verb", ["ResetCounter", "DeleteCounter"])
def test_what_can_not_wait_in_the_journal_is_refused(
    service: RunningService, redis_node: RedisNode, database: str, verb: str
) -> None:
    """A clear does not commute with increments, so it can't be applied later."""
    request = _request(5)
    _write(service, request)
    clear = getattr(counters_pb2, f"{verb}Request")(counter=request.counter)
    with stub_of(service.target) as stub, paused(redis_node):
        _write(service, request)  # now Redis is known to be away
        with pytest.raises(grpc.RpcError) as caught:
            getattr(stub, verb)(clear, timeout=CALL_TIMEOUT)
    _open_again(database)
    error: Any = caught.value
    assert error.code() == grpc.StatusCode.UNAVAILABLE
    assert reason_of(error) in ("REDIS_UNAVAILABLE", "PARTITION_UNAVAILABLE")
    assert read(service.target, [request.counter]) == {request.counter: 5}


def test_a_stalled_redis_is_given_up_before_a_short_deadline(
    service: RunningService, redis_node: RedisNode, database: str
) -> None:
    _write(service, _request())
    with paused(redis_node), MachineLag() as lag:
        started = time.monotonic()
        assert _write(service, _request(with_id=False)).journaled
        seconds = time.monotonic() - started
    _open_again(database)
    assert seconds - lag.worst < _SOON


def test_once_redis_is_known_to_stall_writes_are_journaled_at_once(
    service: RunningService, redis_node: RedisNode, database: str
) -> None:
    with paused(redis_node):
        _write(service, _request())
        with MachineLag() as lag, stub_of(service.target) as stub:
            stub.Increment(_request(), timeout=CALL_TIMEOUT)
            started = time.monotonic()
            stub.Increment(_request(), timeout=CALL_TIMEOUT)
            seconds = time.monotonic() - started
    _open_again(database)
    assert seconds - lag.worst < 0.3


def test_a_redis_that_is_gone_for_long_stops_nobody(
    service: RunningService, redis_node: RedisNode, database: str
) -> None:
    """Long enough for the pauses between attempts to reach their longest."""
    pid, counter, written = service.pid("worker-0"), uuid.uuid4().hex, 0
    redis_node.kill()
    gone_until = time.monotonic() + 3.0
    with stub_of(service.target) as stub:
        while time.monotonic() < gone_until:
            request = counters_pb2.IncrementRequest(counter=counter, delta=1)
            stub.Increment(request, timeout=CALL_TIMEOUT)
            written += 1
            threading.Event().wait(0.01)
    redis_node.start()
    _open_again(database)
    assert (read(service.target, [counter]), service.pid("worker-0")) == ({counter: written}, pid)
