"""Outages under load: what is acknowledged counts once, and callers hear of nothing else."""

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

import grpc
import psycopg
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from redis.exceptions import ResponseError

from tallyboard.v1 import counters_pb2
from tests.faults import breaks
from tests.faults.ledger import CALL_TIMEOUT, Load, Producer, read, reason_of, retried, stub_of
from tests.faults.proxy import Faults, Proxy
from tests.faults.score_ledger import ScoreLoad
from tests.postgres.support import new_database, rows
from tests.recovery import stores
from tests.recovery.commits import LossyPostgres
from tests.redis.node import RedisNode
from tests.service import RunningService
from tests.waiting import wait_for

node, database = stores.node, stores.database
# What is journaled while Redis is away takes as long again to drain.
pytestmark = pytest.mark.timeout(300)

#: Of a caller who does not wait long.
_SOON: Final = 2.0
_SETTINGS: Final = {"partitions": 8, "checkpoint_interval": 0.5, "redis_timeout": 0.5}


@pytest.fixture(autouse=True)
def _short_file(node: RedisNode) -> None:
    """All tests share a Redis; a file with all that they wrote would take seconds to load."""
    with suppress(ResponseError):  # one is under way
        node.command("BGREWRITEAOF")


@pytest.fixture(scope="module")
def proxy_of_module(node: RedisNode) -> Iterator[Proxy]:
    with Proxy(node.port) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def postgres_of_module(database: str) -> Iterator[LossyPostgres]:
    with LossyPostgres(database) as postgres:
        yield postgres


@pytest.fixture(scope="module")
def service(proxy_of_module: Proxy, postgres_of_module: LossyPostgres) -> Iterator[RunningService]:
    """A service with two workers that reaches both stores through proxies."""
    with RunningService(
        workers=2, redis_url=proxy_of_module.url, postgres_url=postgres_of_module.url, **_SETTINGS
    ) as running:
        yield running


@pytest.fixture
def proxy(proxy_of_module: Proxy, database: str) -> Iterator[Proxy]:
    """The way to Redis; harmless again after the test, and everything open."""
    yield proxy_of_module
    proxy_of_module.faults = Faults()
    proxy_of_module.cut()
    _wait_until_open(database)


@pytest.fixture
def postgres(postgres_of_module: LossyPostgres) -> Iterator[LossyPostgres]:
    """The way to Postgres; harmless again after the test."""
    yield postgres_of_module
    postgres_of_module.refuse = False


def _states(database: str) -> set[str]:
    return {row[0] for row in rows(database, "SELECT state FROM tallyboard.partitions")}


def _wait_until_open(database: str) -> None:
    wait_for(lambda: _states(database) == {"OPEN"}, "all partitions to be open", 60)


def _journaled(database: str) -> int:
    return int(rows(database, "SELECT count(*) FROM tallyboard.journal")[0][0])


def _increment(name: str, delta: int = 1, *, with_id: bool = True) -> counters_pb2.IncrementRequest:
    request_id = str(uuid.uuid4()) if with_id else ""
    return counters_pb2.IncrementRequest(counter=name, delta=delta, request_id=request_id)


def _send(target: str, request: Any, timeout: float = CALL_TIMEOUT) -> Any:
    with stub_of(target) as stub:
        return stub.Increment(request, timeout=timeout)


def _error(target: str, request: Any, timeout: float = CALL_TIMEOUT) -> Any:
    with pytest.raises(grpc.RpcError) as caught:
        _send(target, request, timeout)
    return caught.value


def _black_hole(proxy: Proxy, node: RedisNode) -> Callable[[], None]:
    proxy.faults = Faults(black_hole=True)

    def repair() -> None:
        proxy.faults = Faults()
        proxy.cut()

    return repair


_WAYS: Final = [*breaks.BREAKS, "is behind a black hole"]


def _break(how: str, proxy: Proxy, node: RedisNode) -> Callable[[], object]:
    if how in breaks.BREAKS:
        return breaks.BREAKS[how](node)
    return _black_hole(proxy, node)


@pytest.mark.parametrize("how", _WAYS)
def test_increments_go_on_and_count_once(
    service: RunningService, proxy: Proxy, node: RedisNode, database: str, how: str
) -> None:
    with Load(service.target) as load:
        load.wait_for_more(100)
        repair = _break(how, proxy, node)
        try:
            load.wait_for_more(300)
        finally:
            repair()
        _wait_until_open(database)
        load.wait_for_more(100)
        load.finish()
    assert (load.ledger.differences(service.target), load.ledger.problems) == ({}, [])


@pytest.mark.parametrize("how", ["refuses connections", "stalls"])
def test_scores_go_on_and_count_once(
    service: RunningService, proxy: Proxy, node: RedisNode, database: str, how: str
) -> None:
    with ScoreLoad(service.target) as load:
        load.wait_for_more(50)
        repair = _break(how, proxy, node)
        try:
            load.wait_for_more(150)
        finally:
            repair()
        _wait_until_open(database)
        load.wait_for_more(50)
        load.finish()
    assert load.differences() == ([], [])


def test_an_outage_after_the_other_with_scripts_forgotten_in_between(
    service: RunningService, proxy: Proxy, node: RedisNode, database: str
) -> None:
    with Load(service.target, each=1) as load:
        for _ in range(3):
            load.wait_for_more(30)
            node.kill()
            load.wait_for_more(60)
            node.start()
            for _ in range(5):
                node.command("SCRIPT", "FLUSH")
                load.wait_for_more(10)
            _wait_until_open(database)
        load.finish()
    assert (load.ledger.differences(service.target), load.ledger.problems) == ({}, [])


def test_an_answer_lost_at_the_moment_of_death_counts_once(
    service: RunningService, proxy: Proxy, database: str
) -> None:
    """Redis has run it; nobody knows, and it is journaled under the same token."""
    name = uuid.uuid4().hex
    for _ in range(5):
        lost = proxy.lost_replies
        proxy.faults = Faults(lose_reply_every=1)
        answers: list[Any] = []
        request = _increment(name, 5, with_id=False)
        thread = threading.Thread(target=lambda: answers.append(_send(service.target, request)))  # noqa: B023
        thread.start()
        wait_for(lambda: proxy.lost_replies > lost, "a lost reply")  # noqa: B023
        proxy.faults = Faults(black_hole=True)
        thread.join(CALL_TIMEOUT)
        proxy.faults = Faults()
        proxy.cut()
        assert [answer.journaled for answer in answers] == [True]
        _wait_until_open(database)
    assert read(service.target, [name]) == {name: 25}


def test_a_stream_goes_on_through_an_outage(
    service: RunningService, proxy: Proxy, node: RedisNode, database: str
) -> None:
    """Batches before, during and behind it; what was sent before is sent again during it."""
    load = Load(service.target, kinds=("stream",), each=4)
    with load:
        for _ in range(2):
            load.wait_for_more(100)
            node.pause()
            load.wait_for_more(400)
            node.resume()
            _wait_until_open(database)
        load.finish()
    assert (load.ledger.differences(service.target), load.ledger.problems) == ({}, [])


def test_batches_that_were_not_acknowledged_are_repeated_during_the_outage(
    service: RunningService, proxy: Proxy, node: RedisNode, database: str
) -> None:
    producer = Producer(f"{uuid.uuid4().hex}:")
    for _ in range(40):
        producer.new_batch()
    wanted: dict[str, int] = {}
    for deltas in producer.unacknowledged.values():
        for name, delta in deltas.items():
            wanted[name] = wanted.get(name, 0) + delta
    producer.break_off(service.target)
    node.kill()
    for _ in range(3):
        producer.break_off(service.target)
    producer.resume(service.target, lambda batches, failures: None)
    node.start()
    _wait_until_open(database)
    assert read(service.target, list(wanted)) == wanted


def test_an_id_with_other_contents_is_refused_during_the_outage(
    service: RunningService, proxy: Proxy, node: RedisNode, database: str
) -> None:
    node.kill()
    try:
        request = _increment(uuid.uuid4().hex, 5)
        first, again = (_send(service.target, request) for _ in range(2))
        other = counters_pb2.IncrementRequest(
            counter=request.counter, delta=6, request_id=request.request_id
        )
        error = _error(service.target, other)
    finally:
        node.start()
    _wait_until_open(database)
    late = _send(service.target, request)
    found = (first.duplicate, again.duplicate, late.duplicate, reason_of(error))
    assert found == (False, True, True, "REQUEST_ID_REUSED")
    assert read(service.target, [request.counter]) == {request.counter: 5}


def test_writes_are_acknowledged_within_a_short_deadline(
    service: RunningService, proxy: Proxy, node: RedisNode, database: str
) -> None:
    """Callers with 2 s hear of no outage that is known."""
    node.pause()
    try:
        retried(service.target, "Increment", _increment("warm"))
        threading.Event().wait(1.0)  # the other worker finds out by itself
        codes = [_outcome(service.target) for _ in range(100)]
    finally:
        node.resume()
    _wait_until_open(database)
    assert codes == ["OK"] * 100


def _outcome(target: str, name: str = "any") -> str:
    try:
        _send(target, _increment(name), _SOON)
    except grpc.RpcError as error:
        return str(error.code().name)
    return "OK"


def test_commits_cut_at_random_lose_and_double_nothing(
    service: RunningService, proxy: Proxy, node: RedisNode, database: str
) -> None:
    with Load(service.target) as load, psycopg.connect(database, autocommit=True) as conn:
        load.wait_for_more(50)
        node.kill()
        load.wait_for_more(50)
        for _ in range(25):
            conn.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name = 'tallyboard journal'"
            )
            load.wait_for_more(5)
        node.start()
        load.finish()
    _wait_until_open(database)
    assert (load.ledger.differences(service.target), load.ledger.problems) == ({}, [])


def test_lost_answers_to_commits_lose_and_double_nothing(
    service: RunningService, proxy: Proxy, postgres: LossyPostgres, node: RedisNode, database: str
) -> None:
    with Load(service.target) as load:
        load.wait_for_more(50)
        node.kill()
        load.wait_for_more(50)
        for _ in range(15):
            lost = postgres.lost
            postgres.lose_answers, postgres.lose_commits = 1, 1
            wait_for(partial(_has_lost, postgres, lost + 2), "lost commits")
        node.start()
        load.finish()
    _wait_until_open(database)
    assert (load.ledger.differences(service.target), load.ledger.problems) == ({}, [])


def _has_lost(postgres: LossyPostgres, count: int) -> bool:
    return postgres.lost >= count


def _retry_hints(error: Any) -> tuple[bool, bool]:
    """Whether an error says when to try again: in its details, and to gRPC."""
    status = rpc_status.from_call(error)
    info = error_details_pb2.RetryInfo()
    in_details = any(detail.Unpack(info) for detail in (status.details if status else ()))
    return in_details, "grpc-retry-pushback-ms" in dict(error.trailing_metadata() or ())


@pytest.mark.parametrize("first", ["redis", "postgres"])
def test_without_both_stores_calls_fail_at_once_and_with_either_they_do_not(
    service: RunningService,
    proxy: Proxy,
    postgres: LossyPostgres,
    node: RedisNode,
    database: str,
    first: str,
) -> None:
    name = uuid.uuid4().hex
    postgres.refuse = True
    postgres.cut()
    node.kill()
    wait_for(lambda: _outcome(service.target) == "UNAVAILABLE", "both to be known away")
    threading.Event().wait(1.0)  # the other worker finds out by itself
    seconds, errors = [], []
    with stub_of(service.target) as stub:
        for _ in range(20):
            started = time.monotonic()
            with pytest.raises(grpc.RpcError) as caught:
                stub.Increment(_increment(name, with_id=False), timeout=CALL_TIMEOUT)
            seconds.append(time.monotonic() - started)
            errors.append(caught.value)
    if first == "redis":
        node.start()
    else:
        postgres.refuse = False
    wait_for(lambda: _outcome(service.target) == "OK", "writes to go on")
    outcomes = [_outcome(service.target, name) for _ in range(10)]
    if first == "redis":
        postgres.refuse = False
    else:
        node.start()
    _wait_until_open(database)
    assert {(error.code().name, *_retry_hints(error)) for error in errors} == {
        ("UNAVAILABLE", True, True)
    }
    assert sorted(seconds)[10] < 0.1
    assert set(outcomes) <= {"OK", "UNAVAILABLE"}
    assert read(service.target, [name]) == {name: outcomes.count("OK")}


def test_a_large_delta_is_refused_and_a_small_one_to_its_counter_is_not(
    service: RunningService, proxy: Proxy, node: RedisNode, database: str
) -> None:
    name = uuid.uuid4().hex
    large = _increment(name, 1 << 60)
    retried(service.target, "Increment", _increment(name, 1 << 60))
    node.pause()
    try:
        retried(service.target, "Increment", _increment("warm"))
        error = _error(service.target, large)
        small = [_send(service.target, _increment(name, 3, with_id=i > 2)) for i in range(6)]
    finally:
        node.resume()
    _wait_until_open(database)
    retried(service.target, "Increment", large)
    assert error.code() == grpc.StatusCode.UNAVAILABLE
    assert {answer.journaled for answer in small} == {True}
    assert read(service.target, [name]) == {name: (1 << 61) + 18}


def test_killed_keepers_lose_and_double_nothing(
    service: RunningService, proxy: Proxy, node: RedisNode, database: str
) -> None:
    with Load(service.target) as load:
        for _ in range(3):
            load.wait_for_more(50)
            node.kill()
            load.wait_for_more(200)
            node.start()
            for _ in range(3):
                service.kill_child("keeper")
                load.wait_for_more(30)
            _wait_until_open(database)
        load.finish()
    assert (load.ledger.differences(service.target), load.ledger.problems) == ({}, [])


def test_two_services_on_the_same_stores_lose_and_double_nothing(
    service: RunningService, proxy: Proxy, node: RedisNode, database: str
) -> None:
    """Two keepers drain, and two sets of workers journal."""
    with (
        RunningService(workers=1, redis_url=node.url, postgres_url=database, **_SETTINGS) as second,
        Load(service.target, second.target) as load,
    ):
        for _ in range(2):
            load.wait_for_more(50)
            node.kill()
            load.wait_for_more(200)
            node.start()
            load.wait_for_more(50)
            _wait_until_open(database)
        # One of them alone does not reach Redis.
        proxy.faults = Faults(black_hole=True)
        load.wait_for_more(300)
        proxy.faults = Faults()
        proxy.cut()
        _wait_until_open(database)
        load.finish()
        found = load.ledger.differences(service.target), load.ledger.differences(second.target)
    assert (found, load.ledger.problems) == (({}, {}), [])


def test_a_worker_that_is_started_without_redis_journals_and_goes_live_by_itself(
    service: RunningService, proxy: Proxy, node: RedisNode, database: str
) -> None:
    name = uuid.uuid4().hex
    node.kill()
    try:
        for index in (0, 1):
            service.kill_worker(index)
        service.kill_child("keeper")
        service.wait_serving()
        answers = [retried(service.target, "Increment", _increment(name)) for _ in range(10)]
    finally:
        node.start()
    _wait_until_open(database)
    wait_for(lambda: not _send(service.target, _increment(name)).journaled, "live writes")
    assert {answer.journaled for answer in answers} == {True}
    assert read(service.target, [name])[name] > 10


def test_journaled_rows_and_their_numbers_go_in_the_end(
    service: RunningService, proxy: Proxy, node: RedisNode, database: str
) -> None:
    node.kill()
    retried(service.target, "Increment", _increment(uuid.uuid4().hex))
    node.start()
    _wait_until_open(database)
    wait_for(lambda: _journaled(database) == 0, "the rows to go")
    assert list(node.client().scan_iter(match="{tb:*}:j")) == []


@pytest.fixture
def own_node(session_folder: Path) -> Iterator[RedisNode]:
    folder = session_folder / uuid.uuid4().hex[:8]
    folder.mkdir()
    with RedisNode(folder) as node:
        yield node


def test_a_service_that_is_started_without_redis_journals_and_goes_live_by_itself(
    own_node: RedisNode, postgres_server: Any
) -> None:
    name = uuid.uuid4().hex
    with new_database(postgres_server) as database:
        with RunningService(
            workers=1, redis_url=own_node.url, postgres_url=database, **_SETTINGS
        ) as service:
            retried(service.target, "Increment", _increment(name, 5))
        own_node.kill()
        with RunningService(
            workers=1, redis_url=own_node.url, postgres_url=database, **_SETTINGS
        ) as service:
            journaled = retried(service.target, "Increment", _increment(name, 10)).journaled
            own_node.start()
            _wait_until_open(database)
            assert (journaled, read(service.target, [name])) == (True, {name: 15})


def test_refusing_is_a_choice(own_node: RedisNode, postgres_server: Any) -> None:
    with (
        new_database(postgres_server) as database,
        RunningService(
            workers=1,
            redis_url=own_node.url,
            postgres_url=database,
            redis_outage="refuse",
            **_SETTINGS,
        ) as service,
    ):
        request = _increment(uuid.uuid4().hex, 5)
        own_node.kill()
        errors = [_error(service.target, request) for _ in range(3)]
        rows_then = _journaled(database)
        own_node.start()
        retried(service.target, "Increment", request)
        assert {error.code() for error in errors} == {grpc.StatusCode.UNAVAILABLE}
        assert (rows_then, read(service.target, [request.counter])) == (0, {request.counter: 5})
