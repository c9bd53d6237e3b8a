"""A Redis Cluster: what a lost node, or a slot that moves, takes away, and what goes on."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import grpc
import pytest

from tallyboard.v1 import counters_pb2, operations_pb2, operations_pb2_grpc
from tallyboard.v1.consistency_pb2 import SOURCE_DURABLE, SOURCE_LIVE, Consistency
from tallyboard_server.embedded import EmbeddedPostgres
from tallyboard_server.postgres.pool import connect
from tallyboard_server.redis.keys import home_partition, incarnation_key, slot_of
from tests.faults.ledger import Load, Service, retried, stub_of
from tests.faults.proxy import Proxy
from tests.faults.score_ledger import ScoreLoad
from tests.faults.soak.actions import verify
from tests.faults.soak.staged_redis import StagedRedis
from tests.postgres.support import new_database, rows, totals
from tests.redis.cluster import RedisCluster, info_of
from tests.service import RunningService
from tests.waiting import wait_for

_PARTITIONS: Final = 64
_TENANT: Final = "default"
_OPERATIONS: Final[Service] = operations_pb2_grpc.OperationsServiceStub
_PATIENCE: Final = 60.0
# Seconds, long enough for a breaker to open on a busy machine.
_SOON: Final = 10.0


class Scene:
    """A cluster of three masters and a service that uses it.

    Attributes:
        cluster, service: the two.
        database: the URL of Postgres.
    """

    def __init__(self, cluster: RedisCluster, database: str, service: RunningService) -> None:
        self.cluster = cluster
        self.database = database
        self.service = service

    @property
    def target(self) -> str:
        """Where clients call."""
        return self.service.target

    def states(self) -> dict[int, str]:
        """What Postgres says of each partition."""
        return dict(rows(self.database, "SELECT partition, state FROM tallyboard.partitions"))

    def wait_until_open(self) -> None:
        """Waits until Postgres says that all partitions are open, and every worker knows."""
        wait_for(lambda: set(self.states().values()) == {"OPEN"}, "all to be open", _PATIENCE)
        wait_for(self._is_live_everywhere, "live reads of all partitions", _PATIENCE)

    def _is_live_everywhere(self) -> bool:
        names = [self.counter_in([p]) for p in range(_PARTITIONS)]
        request = counters_pb2.BatchGetCountersRequest(
            counters=names, consistency=Consistency(exact=True)
        )
        found = retried(self.target, "BatchGetCounters", request)
        return all(count.source == SOURCE_LIVE for count in found.counts)

    @staticmethod
    def counter_in(partitions: list[int]) -> str:
        """A counter of one shard, in one of the partitions, that nobody else writes to."""
        names = (f"one:{uuid.uuid4().hex}" for _ in range(100_000))
        return next(
            name for name in names if home_partition(_TENANT, name, _PARTITIONS) in partitions
        )

    def increment(self, counter: str, timeout: float = 5.0) -> counters_pb2.IncrementResponse:
        """Adds 1."""
        request = counters_pb2.IncrementRequest(
            counter=counter, delta=1, request_id=str(uuid.uuid4())
        )
        with stub_of(self.target) as stub:
            return stub.Increment(request, timeout=timeout)

    def count(self, counter: str, *, exact: bool = True) -> Any:
        """A count, an exact one only from Redis."""
        request = counters_pb2.GetCounterRequest(
            counter=counter, consistency=Consistency(exact=exact)
        )
        return retried(self.target, "GetCounter", request).count

    def check(self, counters: Load, scores: ScoreLoad | None = None) -> None:
        """Compares what clients were told with what there is, and that with Postgres."""
        assert counters.ledger.problems == []
        assert counters.ledger.differences(self.target) == {}
        if scores is not None:
            assert scores.book.problems == []
            assert scores.book.score_differences(self.target) == []
        with stub_of(self.target, _OPERATIONS) as stub:
            assert verify(stub) == []


@contextmanager
def scene_on(cluster: RedisCluster, postgres: EmbeddedPostgres, durability: str) -> Iterator[Scene]:
    """A scene whose counters have one shard each."""
    with (
        new_database(postgres) as database,
        RunningService(
            workers=2,
            redis_url=cluster.url,
            postgres_url=database,
            partitions=_PARTITIONS,
            durability=durability,
            default_shards=1,
            redis_timeout=0.5,
            checkpoint_interval=0.4,
        ) as service,
    ):
        yield Scene(cluster, database, service)


@pytest.fixture
def scene(short_folder: Path, postgres_server: EmbeddedPostgres) -> Iterator[Scene]:
    """One whose Redis writes everything to its disk."""
    with (
        RedisCluster(short_folder) as cluster,
        scene_on(cluster, postgres_server, "fsynced") as scene,
    ):
        yield scene


@pytest.fixture
def journaled(short_folder: Path, postgres_server: EmbeddedPostgres) -> Iterator[Scene]:
    """One that outlives the loss of what Redis has."""
    with (
        RedisCluster(short_folder) as cluster,
        scene_on(cluster, postgres_server, "journaled") as scene,
    ):
        yield scene


@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_without_one_node_the_others_serve_and_nothing_is_lost(scene: Scene, how: str) -> None:
    lost = set(scene.cluster.partitions_of(1, _PARTITIONS))
    here = scene.counter_in(scene.cluster.partitions_of(0, _PARTITIONS))
    there = scene.counter_in(sorted(lost))
    scene.increment(here), scene.increment(there)
    wait_for(lambda: totals(scene.database).get(there) == 1, "a checkpoint", _PATIENCE)
    node = scene.cluster.masters[1]
    counters, scores = Load(scene.target), ScoreLoad(scene.target)
    with counters, scores:
        counters.wait_for_more(50)
        node.kill() if how == "killed" else node.pause()
        assert scene.increment(there, timeout=_SOON).journaled
        assert not scene.increment(here, timeout=_SOON).journaled
        counters.wait_for_more(200)
        scores.wait_for_more(50)
        held = scene.count(here), scene.count(there, exact=False)
        assert [(count.value, count.source) for count in held] == [
            (2, SOURCE_LIVE),
            (2, SOURCE_DURABLE),
        ]
        assert {p for p, state in scene.states().items() if state != "OPEN"} == lost
        node.start() if how == "killed" else node.resume()
        scene.wait_until_open()
        counters.wait_for_more(50)
    scene.check(counters, scores)


def test_a_node_that_lost_its_data_is_filled_from_postgres(journaled: Scene) -> None:
    scene = journaled
    counters, scores = Load(scene.target), ScoreLoad(scene.target)
    with counters, scores, Proxy(scene.cluster.masters[2].port) as line:
        node = StagedRedis(scene.cluster.masters[2], line)
        counters.wait_for_more(200)
        node.wipe()
        counters.wait_for_more(100)
        node.start()
        scene.wait_until_open()
        counters.wait_for_more(50)
    scene.check(counters, scores)


def test_a_replica_takes_over(journaled: Scene) -> None:
    scene = journaled
    scene.cluster.add_replica(0)
    counters = Load(scene.target)
    name = scene.counter_in(scene.cluster.partitions_of(0, _PARTITIONS))
    scene.increment(name)
    with counters:
        counters.wait_for_more(100)
        scene.cluster.masters[0].kill()
        assert scene.increment(name, timeout=_SOON).journaled
        counters.wait_for_more(100)
        scene.wait_until_open()
        assert (scene.count(name).value, scene.count(name).source) == (2, SOURCE_LIVE)
        counters.wait_for_more(50)
    scene.check(counters)


def test_a_replica_that_lags_behind_the_checkpoint_is_filled_from_postgres(scene: Scene) -> None:
    replica = scene.cluster.add_replica(0)
    name = scene.counter_in(scene.cluster.partitions_of(0, _PARTITIONS))
    scene.increment(name)
    replica.pause()
    for _ in range(5):
        scene.increment(name)
    wait_for(lambda: totals(scene.database).get(name) == 6, "a checkpoint", _PATIENCE)
    scene.cluster.masters[0].kill()
    replica.resume()
    wait_for(lambda: b"role:master" in info_of(replica, "replication"), "it to lead", _PATIENCE)
    scene.wait_until_open()
    assert (scene.count(name).value, scene.count(name).source) == (6, SOURCE_LIVE)


def test_what_a_replica_has_outlives_its_master(
    short_folder: Path, postgres_server: EmbeddedPostgres
) -> None:
    with RedisCluster(short_folder) as cluster:
        for index in range(len(cluster.masters)):
            cluster.add_replica(index)
        with scene_on(cluster, postgres_server, "replicated:1") as scene:
            counters = Load(scene.target)
            with counters:
                counters.wait_for_more(200)
                cluster.masters[0].kill()
                counters.wait_for_more(100)
                # As a replica of the one that was its own: without one nothing is acknowledged
                # but by the journal.
                cluster.masters[0].start()
                scene.wait_until_open()
                counters.wait_for_more(50)
            scene.check(counters)


def test_a_slot_that_moves_takes_nothing_with_it(scene: Scene) -> None:
    source, target = scene.cluster.masters[0], scene.cluster.masters[1]
    partition = scene.cluster.partitions_of(0, _PARTITIONS)[0]
    slot = slot_of(incarnation_key(partition))
    name = scene.counter_in([partition])
    scene.increment(name)
    counters = Load(scene.target)
    with counters:
        counters.wait_for_more(100)
        scene.cluster.begin_move(slot, source, target)
        # What is new in the slot is on neither node.
        assert scene.increment(name, timeout=_SOON).journaled
        assert [p for p, state in scene.states().items() if state != "OPEN"] == [partition]
        counters.wait_for_more(100)
        scene.cluster.end_move(slot, source, target)
        scene.wait_until_open()
        assert not scene.increment(name).journaled
        counters.wait_for_more(100)
    assert scene.count(name).value == 3
    scene.check(counters)


def test_the_service_starts_without_one_node(scene: Scene) -> None:
    lost = scene.cluster.partitions_of(0, _PARTITIONS)
    here = scene.counter_in(scene.cluster.partitions_of(1, _PARTITIONS))
    there = scene.counter_in(lost)
    scene.increment(here), scene.increment(there)
    scene.service.stop()
    scene.cluster.masters[0].kill()
    scene.service.start()
    assert [scene.increment(here).journaled, scene.increment(there).journaled] == [False, True]
    scene.cluster.masters[0].start()
    scene.wait_until_open()
    assert [scene.count(here).value, scene.count(there).value] == [2, 2]


def test_a_partition_that_no_start_could_make_is_made_when_its_node_is_there(scene: Scene) -> None:
    """A start ended between the two stores, and the node was away at the next one."""
    node, partition = scene.cluster.masters[0], scene.cluster.partitions_of(0, _PARTITIONS)[0]
    scene.service.stop()
    node.command("DEL", incarnation_key(partition))
    query = "UPDATE tallyboard.partitions SET opened = false WHERE partition = %s RETURNING 1"
    with connect(scene.database) as conn:
        assert conn.execute(query, (partition,)).rowcount == 1
    node.kill()
    scene.service.start()
    node.start()
    scene.wait_until_open()
    assert not scene.increment(scene.counter_in([partition])).journaled


def test_status_names_every_node(scene: Scene) -> None:
    scene.cluster.masters[1].kill()

    def stores() -> list[tuple[str, bool]] | None:
        with stub_of(scene.target, _OPERATIONS) as stub, suppress(grpc.RpcError):
            answer = stub.GetStatus(operations_pb2.GetStatusRequest(), timeout=10)
            return [(store.name, store.available) for store in answer.stores]
        return None

    expected = [("redis", True), ("redis", False), ("redis", True), ("postgres", True)]
    assert wait_for(stores, "the status") == expected
