"""Checkpoints of a cluster: what moves, or is silent, does not keep the others from Postgres."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tallyboard_server.checkpointer import Checkpointer
from tallyboard_server.postgres.pool import open_pool
from tallyboard_server.recovery.restorer import _ask
from tallyboard_server.redis import keys
from tallyboard_server.redis.nodes import REDIS_TIMEOUT, RedisNodes
from tallyboard_server.stores import open_stores
from tests.postgres.support import rows, settings_for, totals
from tests.redis.cluster import RedisCluster
from tests.waiting import wait_for

_PARTITIONS = 16


@pytest.fixture
def cluster(short_folder: Path) -> Iterator[RedisCluster]:
    """Three masters, so that two know that the third is lost."""
    with RedisCluster(short_folder, masters=3) as cluster:
        yield cluster


def test_a_slot_that_moves_does_not_keep_the_others_from_the_keeper(
    cluster: RedisCluster, database: str
) -> None:
    open_stores(settings_for(cluster.url, database, partitions=_PARTITIONS))
    moving, staying, *_ = cluster.partitions_of(0, _PARTITIONS)
    source, target, _ = cluster.masters
    for partition, name in ((moving, "moving"), (staying, "staying")):
        key = keys.shard_key(partition, "acme", name)
        source.command("SET", key, 5)
        source.command("SADD", keys.dirty_key(partition), key)
    slot = keys.slot_of(keys.incarnation_key(moving))
    cluster.begin_move(slot, source, target)
    with (
        RedisNodes.of_url(cluster.url, _PARTITIONS) as nodes,
        open_pool(database) as pool,
    ):
        checkpointer = Checkpointer(nodes, pool, _PARTITIONS)
        assert checkpointer.checkpoint_all().away == (moving,)
        assert totals(database) == {"staying": 5}
        held = _ask(nodes.of(staying), [moving, staying])
        assert held.keys() == {staying}
        assert rows(database, "SELECT DISTINCT state FROM tallyboard.partitions") == [("OPEN",)]
        cluster.end_move(slot, source, target)
        wait_for(lambda: _has_arrived(nodes, moving, target.url), "the new place")
        assert checkpointer.checkpoint_all().away == ()
        assert totals(database) == {"moving": 5, "staying": 5}


def test_a_silent_node_delays_the_checkpoints_of_the_others_once(
    cluster: RedisCluster, database: str
) -> None:
    open_stores(settings_for(cluster.url, database, partitions=_PARTITIONS))
    lost = tuple(cluster.partitions_of(0, _PARTITIONS))
    with (
        RedisNodes.of_url(cluster.url, _PARTITIONS) as nodes,
        open_pool(database) as pool,
    ):
        checkpointer = Checkpointer(nodes, pool, _PARTITIONS)
        cluster.masters[0].pause()
        assert checkpointer.checkpoint_all().away == lost
        started = time.monotonic()
        for _ in range(3):
            nodes.refresh()
            assert checkpointer.checkpoint_all().away == lost
        assert time.monotonic() - started < REDIS_TIMEOUT
        cluster.masters[0].resume()
        wait_for(lambda: checkpointer.checkpoint_all().away == (), "the node to be back")


def _has_arrived(nodes: RedisNodes, partition: int, node: str) -> bool:
    nodes.refresh()
    return nodes.topology.layout.node_of(partition) == node
