"""A Redis Cluster of a test's own: masters that share the slots, and replicas that are added."""

import itertools
import random
import socket
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Final, Self

from redis.exceptions import RedisError

from tallyboard_server.redis.keys import incarnation_key, slot_of
from tests.redis.node import RedisNode
from tests.waiting import wait_for

_SLOTS: Final = 16384
# How much higher the port is by which a node talks to the others.
_BUS: Final = 10_000
_TIMEOUT: Final = 20.0
# Milliseconds after which a node that does not answer counts as gone.
_NODE_TIMEOUT: Final = 1500


class RedisCluster:
    """Nodes on 127.0.0.1, each with an equal share of the slots; a context manager.

    A node that is lost takes only its own slots with it.

    Args:
        folder: of the nodes' data.
        masters: how many there are.
        extra_args: of every redis-server.
    """

    def __init__(self, folder: Path, masters: int = 3, extra_args: Sequence[str] = ()) -> None:
        self._folder = folder
        self._extra_args = extra_args
        self._numbers = itertools.count()
        self._own = ExitStack()
        self.masters = [self._make_node() for _ in range(masters)]

    @property
    def url(self) -> str:
        """All masters, as the setting `redis_url` takes them."""
        return "redis://" + ",".join(f"127.0.0.1:{node.port}" for node in self.masters)

    def __enter__(self) -> Self:
        with self._own:
            for node in self.masters:
                self._own.enter_context(node)
            for index, node in enumerate(self.masters):
                node.command("CLUSTER", "SET-CONFIG-EPOCH", index + 1)
                node.command("CLUSTER", "ADDSLOTS", *self.slots_at_first(index))
                self._introduce(node)
            self._wait_until_whole(self.masters)
            self._own = self._own.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._own.close()

    def slots_at_first(self, index: int) -> range:
        """The slots that a master begins with."""
        count = len(self.masters)
        return range(_SLOTS * index // count, _SLOTS * (index + 1) // count)

    def partitions_of(self, index: int, partitions: int) -> list[int]:
        """The partitions that a master begins with."""
        slots = self.slots_at_first(index)
        return [p for p in range(partitions) if slot_of(incarnation_key(p)) in slots]

    def announce(self, node: RedisNode, port: int) -> None:
        """Has a node that is not started yet tell everybody that it listens on another port."""
        node.add_arguments(
            "--cluster-announce-ip", "127.0.0.1",
            "--cluster-announce-port", str(port),
            "--cluster-announce-bus-port", str(node.port + _BUS),
        )  # fmt: skip

    def add_replica(self, index: int) -> RedisNode:
        """A new replica of a master, once it has all that the master has."""
        replica = self._own.enter_context(self._make_node())
        self._introduce(replica)
        master_id = self.masters[index].command("CLUSTER", "MYID")
        wait_for(
            lambda: master_id in replica.command("CLUSTER", "NODES"), "the nodes to meet", _TIMEOUT
        )
        replica.command("CLUSTER", "REPLICATE", master_id)
        wait_for(
            lambda: b"master_link_status:up" in info_of(replica, "replication"),
            "the replica to follow",
            _TIMEOUT,
        )
        self._wait_until_whole([*self.masters, replica])
        return replica

    def begin_move(self, slot: int, source: RedisNode, target: RedisNode) -> None:
        """Begins to move a slot: from now on neither node takes what is new in it."""
        target.command("CLUSTER", "SETSLOT", slot, "IMPORTING", _id(source))
        source.command("CLUSTER", "SETSLOT", slot, "MIGRATING", _id(target))

    def end_move(self, slot: int, source: RedisNode, target: RedisNode) -> None:
        """Moves the slot's keys, and says that it is the target's."""
        while keys := source.command("CLUSTER", "GETKEYSINSLOT", slot, 100):
            source.command(
                "MIGRATE", "127.0.0.1", target.port, "", 0, 10_000, "REPLACE", "KEYS", *keys
            )
        for node in (target, source):
            node.command("CLUSTER", "SETSLOT", slot, "NODE", _id(target))

    def _make_node(self) -> RedisNode:
        arguments = (
            "--cluster-enabled", "yes",
            "--cluster-node-timeout", str(_NODE_TIMEOUT),
            "--cluster-require-full-coverage", "no",
            "--cluster-replica-validity-factor", "0",
            *self._extra_args,
        )  # fmt: skip
        folder = self._folder / f"node-{next(self._numbers)}"
        folder.mkdir()
        return RedisNode(folder, extra_args=arguments, port=_free_ports())

    def _introduce(self, node: RedisNode) -> None:
        first = self.masters[0]
        if node is not first:
            node.command("CLUSTER", "MEET", "127.0.0.1", first.port, first.port + _BUS)

    def _wait_until_whole(self, nodes: Iterable[RedisNode]) -> None:
        nodes = list(nodes)
        wait_for(
            lambda: all(_is_whole(node, len(nodes)) for node in nodes), "the cluster", _TIMEOUT
        )


def _free_ports() -> int:
    """A port that nobody uses; nor the one that its node talks to the others by."""
    while True:
        port = random.randrange(20_000, 50_000)
        with socket.socket() as first, socket.socket() as second, suppress(OSError):
            first.bind(("127.0.0.1", port))
            second.bind(("127.0.0.1", port + _BUS))
            return port


def _is_whole(node: RedisNode, nodes: int) -> bool:
    try:
        info = node.command("CLUSTER", "INFO")
    except RedisError:
        return False
    said = info if isinstance(info, dict) else _parse(info)
    # Without full coverage the state is ok before a node knows of all slots.
    knows_all = (
        int(said.get("cluster_known_nodes", 0)) >= nodes
        and int(said.get("cluster_slots_assigned", 0)) == _SLOTS
    )
    return said.get("cluster_state") == "ok" and knows_all


def _parse(text: Any) -> dict[str, str]:
    lines = (text.decode() if isinstance(text, bytes) else str(text)).splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line)


def info_of(node: RedisNode, section: str) -> bytes:
    """What a node says of itself."""
    found: Any = node.command("INFO", section)
    return (
        found
        if isinstance(found, bytes)
        else "\n".join(f"{name}:{value}" for name, value in found.items()).encode()
    )


def _id(node: RedisNode) -> str:
    found = node.command("CLUSTER", "MYID")
    return found.decode() if isinstance(found, bytes) else str(found)
