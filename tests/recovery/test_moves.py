"""What a worker makes of partitions that go from one node of a cluster to another."""

import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from tallyboard_server.embedded import EmbeddedPostgres
from tallyboard_server.postgres.pool import connect, open_pool
from tallyboard_server.recovery.drain import Drained, Drainer, NotReady
from tallyboard_server.recovery.restorer import Restorer
from tallyboard_server.redis import keys
from tallyboard_server.redis.connection import Connection, ConnectionLost
from tallyboard_server.redis.fences import Fences
from tallyboard_server.redis.nodes import RedisNodes
from tallyboard_server.redis.topology import Stay
from tests.postgres.support import new_database
from tests.recovery.journaling import Desk, add
from tests.redis.cluster import RedisCluster
from tests.redis.node import RedisNode

_PARTITIONS = 16


@pytest.fixture
def cluster(short_folder: Path) -> Iterator[RedisCluster]:
    """Two masters."""
    with RedisCluster(short_folder, masters=2) as cluster:
        yield cluster


@pytest.fixture
def desk(cluster: RedisCluster, postgres_server: EmbeddedPostgres) -> Iterator[Desk]:
    """A worker of theirs."""
    with (
        new_database(postgres_server) as database,
        Desk(cluster.url, database, partitions=_PARTITIONS, default_shards=1) as desk,
    ):
        yield desk


def move(cluster: RedisCluster, partition: int, source: int, target: int) -> None:
    """Gives a partition to another master."""
    slot = keys.slot_of(keys.incarnation_key(partition))
    nodes = cluster.masters[source], cluster.masters[target]
    cluster.begin_move(slot, *nodes)
    cluster.end_move(slot, *nodes)


def test_a_partition_that_comes_back_to_a_node_is_looked_at_again(
    cluster: RedisCluster, desk: Desk
) -> None:
    """A master that was replaced and takes over again may lack what its successor had."""
    partition, name = cluster.partitions_of(0, _PARTITIONS)[0], uuid.uuid4().hex
    desk.write(add(name, 1, partition=partition))
    move(cluster, partition, 0, 1)
    write = desk.write(add(name, 1, partition=partition))
    assert (write.error, write.journaled) == (None, False)
    with connect(desk.settings.postgres_url) as conn:
        conn.execute(
            "UPDATE tallyboard.partitions SET version = version + 1 WHERE partition = %s",
            [partition],
        )
    move(cluster, partition, 1, 0)
    write = desk.write(add(name, 1, partition=partition))
    assert (write.error, write.journaled) == (None, True)


def test_a_node_is_admitted_for_what_it_has_when_something_has_moved(
    cluster: RedisCluster, desk: Desk
) -> None:
    mine, other = (cluster.partitions_of(index, _PARTITIONS)[0] for index in range(2))
    node = cluster.masters[0].url
    with closing(Connection(node, 1.0)) as connection:
        admit = partial(desk.admission.admit, connection, node)
        assert admit([Stay(other, 0), Stay(mine, 0)]).command is None
        with pytest.raises(ConnectionLost):
            admit([Stay(other, 0)])


def test_a_late_look_at_a_node_that_was_replaced_closes_nothing(
    desk: Desk, short_folder: Path
) -> None:
    """It is older than the checkpoint, and nobody asks it any more."""
    with connect(desk.settings.postgres_url) as conn:
        conn.execute("UPDATE tallyboard.partitions SET version = 7 WHERE partition = 0")
    folder = short_folder / "replaced"
    folder.mkdir()
    with RedisNode(folder) as node, closing(Connection(node.url, 5.0)) as connection:
        desk.admission.admit(connection, node.url, [Stay(0, 0)])
    assert desk.expected()[0] is not None


def test_a_slot_that_nobody_has_takes_nothing_with_it(cluster: RedisCluster, desk: Desk) -> None:
    mine, lost = cluster.partitions_of(0, _PARTITIONS)[:2]
    name = uuid.uuid4().hex
    for node in cluster.masters:
        node.command("CLUSTER", "DELSLOTS", keys.slot_of(keys.incarnation_key(lost)))
    assert desk.write(add(name, 1, partition=lost)).journaled
    assert [desk.write(add(name, 1, partition=mine)).journaled for _ in range(3)] == [False] * 3


def test_a_row_that_needs_a_lost_node_does_not_keep_others_of_its_own_closed(
    cluster: RedisCluster, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as one for a wide counter, which has a home."""
    first, second, *_ = cluster.partitions_of(0, _PARTITIONS)
    home = cluster.partitions_of(1, _PARTITIONS)[0]
    drained: list[int] = []

    def run(drain: Any) -> int:
        if drain._partition == first:
            drain._drainer.connected(home)
        drained.append(drain._partition)
        return 0

    monkeypatch.setattr("tallyboard_server.recovery.drain._Drain.run", run)
    cluster.masters[1].kill()
    unused: Any = None
    with open_pool(desk.settings.postgres_url) as pool:
        drainer = Drainer(
            lambda node: Connection(node, 0.5),
            desk.store.topology,
            pool,
            unused,
            None,
            unused,
            _PARTITIONS,
            unused,
            keeps_tokens=False,
        )
        restorer = Restorer(
            unused, pool, drainer, unused, Fences({}), _PARTITIONS, threading.Event()
        )
        with closing(drainer), pytest.raises(NotReady):
            restorer._drain_all([first, second])
    assert drained == [second]


def test_a_window_on_a_lost_node_does_not_keep_others_closed() -> None:
    class NeedsWindow:
        drained: ClassVar[list[int]] = []

        def drain(self, partition: int) -> Drained:
            if partition == 0:
                raise RedisConnectionError("a node that has a segment of its board is away")
            self.drained.append(partition)
            return Drained(0, 0.0)

    unused: Any = None
    drainer: Any = NeedsWindow()
    restorer = Restorer(unused, unused, drainer, unused, Fences({}), _PARTITIONS, threading.Event())
    with pytest.raises(RedisConnectionError):
        restorer._drain_all([0, 1])
    assert drainer.drained == [1]


def test_a_rebuild_that_needs_a_lost_node_does_not_keep_others_from_theirs(
    cluster: RedisCluster, desk: Desk
) -> None:
    """Such as one of a board that has a segment there."""
    mine = cluster.partitions_of(0, _PARTITIONS)
    rebuilt: set[int] = set()

    def rebuild(partitions: Sequence[int]) -> None:
        if mine[0] in partitions:
            raise RedisConnectionError("a node that has a segment of its board is away")
        rebuilt.update(partitions)
        for partition in partitions:
            cluster.masters[0].command("SET", keys.incarnation_key(partition), lives[partition])

    lives = {p: cluster.masters[0].command("GETDEL", keys.incarnation_key(p)) for p in mine}
    unused: Any = None
    with (
        open_pool(desk.settings.postgres_url) as pool,
        RedisNodes.of_url(cluster.url, _PARTITIONS, 0.5) as nodes,
    ):
        cluster.masters[1].kill()
        restorer = Restorer(
            nodes, pool, unused, rebuild, Fences({}), _PARTITIONS, threading.Event()
        )
        for _ in range(len(mine) + 1):
            with suppress(RedisError):
                restorer.work()
    assert rebuilt == set(mine[1:])
