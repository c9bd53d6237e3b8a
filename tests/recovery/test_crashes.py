"""Processes that die while Redis is away, and floods while Postgres does not answer."""

import os
import shutil
import signal
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import grpc
import psutil
import pytest

from tallyboard.v1 import counters_pb2
from tallyboard_server.embedded import EmbeddedPostgres
from tests.faults.ledger import Load, read, reason_of, retried, stub_of
from tests.faults.score_ledger import ScoreLoad
from tests.postgres.support import new_database, rows
from tests.recovery import stores
from tests.recovery.commits import LossyPostgres
from tests.redis.node import RedisNode
from tests.service import RunningService
from tests.waiting import wait_for

node, database = stores.node, stores.database

_SETTINGS: Final = {"partitions": 8, "checkpoint_interval": 0.5, "redis_timeout": 0.5}
_MOST_GROWTH: Final = 150 * 1024 * 1024
_FLOOD: Final = 12.0


@pytest.fixture(scope="module")
def service(node: RedisNode, database: str) -> Iterator[RunningService]:
    """A service of the durability `journaled` with two workers."""
    with RunningService(
        workers=2, redis_url=node.url, postgres_url=database, durability="journaled", **_SETTINGS
    ) as running:
        yield running


def _wait_until_all_is_well(database: str) -> None:
    """Everything is open, applied and checkpointed."""
    states = "SELECT count(*) FROM tallyboard.partitions WHERE state <> 'OPEN'"
    wait_for(lambda: rows(database, states) == [(0,)], "all partitions to be open", 60)
    journal = "SELECT count(*) FROM tallyboard.journal"
    wait_for(lambda: rows(database, journal) == [(0,)], "the rows to go", 60)


def _wipe_redis(service: RunningService, node: RedisNode) -> None:
    node.kill()
    for entry in node.folder.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        elif "aof" in entry.name or entry.suffix == ".rdb":
            entry.unlink()
    node.start()


def _kill_redis(service: RunningService, node: RedisNode) -> None:
    node.kill()
    node.start()


def _kill_workers(service: RunningService, node: RedisNode) -> None:
    for index in (0, 1):
        service.kill_worker(index)


def _kill_all(service: RunningService, node: RedisNode) -> None:
    node.kill()
    service.kill()
    node.start()
    service.start()


@pytest.mark.parametrize(
    "deaths",
    [(_kill_workers, _kill_redis), (_wipe_redis,), (_kill_all,)],
    ids=["workers and Redis", "Redis, with all it had", "all of it"],
)
def test_what_is_journaled_first_counts_once_whoever_dies(
    service: RunningService, node: RedisNode, database: str, deaths: Any
) -> None:
    with Load(service.target, each=1) as load, ScoreLoad(service.target) as scores:
        for _ in range(2):
            load.wait_for_more(50)
            scores.wait_for_more(20)
            for die in deaths:
                die(service, node)
        load.wait_for_more(50)
        scores.wait_for_more(20)
        load.finish()
        scores.finish()
    _wait_until_all_is_well(database)
    assert (load.ledger.differences(service.target), load.ledger.problems) == ({}, [])
    assert scores.differences() == ([], [])


def test_the_row_of_a_worker_that_died_before_redis_had_it_is_applied(
    service: RunningService, node: RedisNode, database: str
) -> None:
    name = uuid.uuid4().hex
    retried(service.target, "Increment", counters_pb2.IncrementRequest(counter=name, delta=1))
    _wait_until_all_is_well(database)
    node.pause()
    try:
        request = counters_pb2.IncrementRequest(counter=name, delta=5)
        with stub_of(service.target) as stub:
            call = stub.Increment.future(request, timeout=20.0)
            journal = "SELECT count(*) FROM tallyboard.journal"
            wait_for(lambda: rows(database, journal) == [(1,)], "its row")
            _kill_workers(service, node)
            call.exception(20.0)
    finally:
        node.resume()
    wait_for(lambda: read(service.target, [name]) == {name: 6}, "it to be applied", 40)
    _wait_until_all_is_well(database)


def test_fsynced_survives_the_death_of_everything_during_an_outage() -> None:
    with RunningService(workers=2, **_SETTINGS) as embedded:
        with Load(embedded.target, each=1) as load:
            for _ in range(2):
                load.wait_for_more(50)
                pid = wait_for(partial(embedded.pid, "redis"), "Redis")
                assert pid is not None
                os.kill(pid, signal.SIGSTOP)
                load.wait_for_more(100)
                os.kill(pid, signal.SIGKILL)  # a stopped one does not end by itself
                embedded.kill()
                embedded.start()
            load.wait_for_more(50)
            load.finish()
        assert (load.ledger.differences(embedded.target), load.ledger.problems) == ({}, [])


class _Flood:
    """Large batches from many threads, each with a short deadline.

    Attributes:
        ends: how many ended how: code and reason.
        hinted: how many were told when to try again.
    """

    def __init__(self, target: str, name: str) -> None:
        self.ends: Counter[str] = Counter()
        self.hinted = 0
        self._request = counters_pb2.BatchIncrementRequest(
            deltas=[counters_pb2.CounterDelta(counter=f"{name}{i}", delta=1) for i in range(1000)]
        )
        self._stop = threading.Event()
        self._lock = threading.Lock()  # guards ends and hinted
        self._threads = [threading.Thread(target=self._run, args=(target,)) for _ in range(8)]

    def __enter__(self) -> "_Flood":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)

    def _run(self, target: str) -> None:
        with stub_of(target) as stub:
            while not self._stop.is_set():
                try:
                    stub.BatchIncrement(self._request, timeout=2.0)
                except grpc.RpcError as error:
                    self._failed(error)
                else:
                    with self._lock:
                        self.ends["OK"] += 1

    def _failed(self, error: Any) -> None:
        with self._lock:
            self.ends[f"{error.code().name} {reason_of(error)}"] += 1
            self.hinted += "grpc-retry-pushback-ms" in dict(error.trailing_metadata() or ())
        self._stop.wait(0.01)


def test_a_flood_without_both_stores_is_refused_and_takes_no_more_memory(
    session_folder: Path, postgres_server: EmbeddedPostgres
) -> None:
    """Postgres takes connections and says nothing; Redis is gone."""
    folder = session_folder / uuid.uuid4().hex[:8]
    folder.mkdir()
    with (
        new_database(postgres_server) as database,
        LossyPostgres(database) as postgres,
        RedisNode(folder) as node,
        RunningService(
            workers=1,
            redis_url=node.url,
            postgres_url=postgres.url,
            max_pending_operations=10_000,
            **_SETTINGS,
        ) as service,
    ):
        name = uuid.uuid4().hex
        retried(service.target, "Increment", counters_pb2.IncrementRequest(counter=name, delta=1))
        node.kill()
        retried(service.target, "Increment", counters_pb2.IncrementRequest(counter=name, delta=1))
        worker = psutil.Process(service.pid("worker-0"))
        with _Flood(service.target, name) as flood:
            wait_for(lambda: flood.ends["OK"] > 20, "batches to be journaled")
            most = before = worker.memory_info().rss
            postgres.flows.clear()
            until = time.monotonic() + _FLOOD
            while time.monotonic() < until:
                most = max(most, worker.memory_info().rss)
                threading.Event().wait(0.1)
            postgres.flows.set()
            seen = flood.ends["OK"]
            wait_for(lambda: flood.ends["OK"] > seen + 20, "batches to be journaled again")
    assert most - before < _MOST_GROWTH
    assert flood.hinted > 100
    assert {end.split()[0] for end in flood.ends} <= {"OK", "UNAVAILABLE", "DEADLINE_EXCEEDED"}
