"""Which node has which partition, as a server and as a cluster tell it."""

import gc
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from tallyboard_server.embedded import EmbeddedPostgres
from tallyboard_server.redis import keys
from tallyboard_server.redis.connection import Connection
from tallyboard_server.redis.nodes import REDIS_TIMEOUT, RedisNodes
from tallyboard_server.redis.topology import Layout, Topology
from tallyboard_server.redis.urls import address_of, split_url, with_address
from tallyboard_server.startup import StartupError
from tallyboard_server.stores import open_stores
from tests.conftest import make_short_folder
from tests.postgres.support import new_database, settings_for
from tests.redis.cluster import RedisCluster
from tests.redis.node import RedisNode, free_port
from tests.waiting import wait_for

PARTITIONS = 16


@pytest.fixture(scope="module")
def cluster() -> Iterator[RedisCluster]:
    """Three masters that all tests here leave as they were."""
    with RedisCluster(make_short_folder()) as cluster:
        yield cluster


def layout_of(url: str) -> Layout:
    topology = Topology(url, PARTITIONS)
    topology.look()
    return topology.layout


def test_a_server_has_all_partitions(short_folder: Path) -> None:
    with RedisNode(short_folder) as node:
        assert layout_of(node.url) == Layout((node.url,), (0,) * PARTITIONS)


def test_a_slow_server_has_its_time_to_say_what_it_is(short_folder: Path) -> None:
    with RedisNode(short_folder) as node:
        node.pause()
        threading.Timer(2.0, node.resume).start()
        Topology(node.url, PARTITIONS, REDIS_TIMEOUT).look()


def test_masters_share_the_partitions(cluster: RedisCluster) -> None:
    layout = layout_of(cluster.masters[2].url)
    assert layout.is_cluster
    assert [layout.partitions_of(node.url) for node in cluster.masters] == [
        tuple(cluster.partitions_of(index, PARTITIONS)) for index in range(3)
    ]


def test_a_node_that_does_not_answer_is_left_out(cluster: RedisCluster) -> None:
    url = f"redis://127.0.0.1:{free_port()},127.0.0.1:{cluster.masters[0].port}"
    assert set(layout_of(url).nodes) == {node.url for node in cluster.masters}


def test_without_an_answer_what_was_known_stays(short_folder: Path) -> None:
    with RedisNode(short_folder) as node:
        topology = Topology(node.url, PARTITIONS)
        before = topology.layout
    with pytest.raises(RedisConnectionError):
        topology.look()
    topology.refresh()
    assert topology.layout is before


def test_a_socket_that_nobody_listens_at_is_closed_again(short_folder: Path) -> None:
    topology = Topology(f"unix://{short_folder}/none.sock", PARTITIONS)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always", ResourceWarning)
        with pytest.raises(RedisConnectionError):
            topology.look()
        gc.collect()
    assert [str(warning.message) for warning in warned] == []


@pytest.mark.parametrize(
    "key", [keys.PARTITION_META, "tb:boards", keys.shard_key(3, "acme", "post:42"), "{tb:99}:i"]
)
def test_every_key_has_the_node_that_takes_it(cluster: RedisCluster, key: str) -> None:
    node = layout_of(cluster.url).node_of_key(key)
    (home,) = [each for each in cluster.masters if each.url == node]
    assert home.command("EXISTS", key) == 0  # any other one would say MOVED


def test_a_server_in_the_place_of_a_node_does_not_get_everything(
    cluster: RedisCluster, short_folder: Path
) -> None:
    with RedisNode(short_folder) as stranger:
        topology = Topology(f"{stranger.url},127.0.0.1:{cluster.masters[0].port}", PARTITIONS)
        stranger.pause()
        topology.look()
        stranger.resume()
        before = topology.layout
        topology._layout = replace(before, nodes=(stranger.url, *before.nodes[1:]))
        topology.look()
    assert topology.layout == before


def test_a_node_that_is_cut_off_is_believed_only_when_it_is_the_only_one(
    cluster: RedisCluster, short_folder: Path
) -> None:
    with RedisCluster(short_folder, masters=2) as broken:
        cut_off = broken.masters[0]
        broken.masters[1].kill()
        wait_for(lambda: b"cluster_state:fail" in _state(cut_off), "it to be cut off", 20.0)
        alone = layout_of(cut_off.url)
        both = layout_of(f"{cut_off.url},127.0.0.1:{cluster.masters[0].port}")
    assert cut_off.url in alone.nodes
    assert set(both.nodes) == {node.url for node in cluster.masters}


def _state(node: RedisNode) -> bytes:
    with closing(Connection(node.url, 5.0)) as connection:
        found: bytes = connection.call([("CLUSTER", "INFO")])[0]
    return found


def test_commands_go_where_their_keys_are(cluster: RedisCluster) -> None:
    everywhere = range(PARTITIONS)
    with RedisNodes.of_url(cluster.url, PARTITIONS) as nodes:
        nodes.run([("SET", keys.probe_key(p), p, "EX", 60) for p in everywhere])
        held = nodes.run([("GET", keys.probe_key(p)) for p in everywhere])
        assert held == [str(p).encode() for p in everywhere]
        assert len(nodes.times()) == 3


def test_several_servers_that_are_no_cluster_stop_the_start(
    short_folder: Path, postgres_server: EmbeddedPostgres
) -> None:
    with new_database(postgres_server) as database, RedisNode(short_folder) as node:
        url = f"{node.url},127.0.0.1:{free_port()}"
        with pytest.raises(StartupError, match="no node of a cluster"):
            open_stores(settings_for(url, database))


def test_nodes_that_stop_together_are_named(
    cluster: RedisCluster, postgres_server: EmbeddedPostgres
) -> None:
    node = cluster.masters[1]
    node.command("CONFIG", "SET", "cluster-require-full-coverage", "yes")
    with new_database(postgres_server) as database:
        opened = open_stores(settings_for(cluster.url, database))
    node.command("CONFIG", "SET", "cluster-require-full-coverage", "no")
    assert opened.problems == (
        f"Redis at {node.url} has cluster-require-full-coverage yes, by which the loss of one "
        "node stops all others; set it to no.",
    )
    assert sorted(opened.incarnations) == list(range(len(opened.incarnations)))


@pytest.mark.parametrize(
    ("url", "nodes"),
    [
        ("redis://a:1", ["redis://a:1"]),
        ("redis://u:p@a:1,b:2/0", ["redis://u:p@a:1/0", "redis://u:p@b:2/0"]),
        ("unix:///a,b.sock?db=1", ["unix:///a,b.sock?db=1"]),
    ],
)
def test_a_url_names_one_node_or_several(url: str, nodes: list[str]) -> None:
    assert split_url(url) == nodes


def test_another_address_keeps_the_login() -> None:
    assert with_address("rediss://u:p@a:1/0", "::1", 7) == "rediss://u:p@[::1]:7/0"
    assert address_of("rediss://u:p@a:1/0") == "a:1"


def test_the_node_that_told_of_a_move_is_asked_first(cluster: RedisCluster) -> None:
    topology = Topology(cluster.url, PARTITIONS)
    topology.look()
    before = topology.layout
    silent = next(node for node in cluster.masters if node.url == before.nodes[0])
    silent.pause()
    try:
        wait_for(lambda: _looks_within(topology, before.nodes[1], 0.5), "a quick look")
    finally:
        silent.resume()


def _looks_within(topology: Topology, node: str, seconds: float) -> bool:
    before, started = topology.layout, time.monotonic()
    topology.refresh(told_by=node)
    return topology.layout is not before and time.monotonic() - started < seconds
