"""What a link finds out about a Redis holds for everything that it sends there."""

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing

import pytest

from tallyboard_server.redis import keys
from tallyboard_server.redis.calls import ScriptCall
from tallyboard_server.redis.connection import Connection
from tallyboard_server.redis.durability import Durability
from tallyboard_server.redis.fences import Fences
from tallyboard_server.redis.link import Link
from tallyboard_server.redis.operations import Part, Read, Write
from tallyboard_server.redis.topology import Layout, Stay
from tests.redis.admission import REDIS_TIMEOUT, AdmitsAll
from tests.redis.node import RedisNode
from tests.redis.nodes import topology_of
from tests.waiting import wait_for

_LIFE = "life"
_PARTITIONS = itertools.count(1000)


class Closing(AdmitsAll):
    """Closes a partition at the admission of that number, from 1, and at all that follow."""

    def __init__(self, fences: Fences, partition: int, at: int) -> None:
        super().__init__()
        self._fences = fences
        self._partition = partition
        self._left = at

    def admit(self, connection: Connection, node: str, stays: Sequence[Stay]) -> Durability:
        self._left -= 1
        if self._left <= 0:
            self._fences.block(self._partition, _LIFE)
        return super().admit(connection, node, stays)


class Linked:
    """A link to one open partition of its own, and what it stranded; close it."""

    def __init__(self, node: RedisNode, closes_at: int) -> None:
        self.partition = next(_PARTITIONS)
        node.command("SET", keys.incarnation_key(self.partition), _LIFE)
        self._node = node
        self.stranded: list[Part | ScriptCall] = []
        fences = Fences({self.partition: _LIFE})
        self._topology = topology_of(node.url, self.partition + 1)
        self._link = Link(
            node.url,
            self._topology,
            fences,
            Closing(fences, self.partition, closes_at),
            timeout=REDIS_TIMEOUT,
            max_pending=100,
            on_refused=lambda part, names: part.done(),
            on_stranded=self._strand,
            name="test",
        )

    def add(self) -> None:
        """Adds 1, and waits until that is applied or stranded."""
        over = threading.Event()
        write = Write(over.set)
        write.add(Part(write, self.partition, {self._key: 1}))
        stranded = len(self.stranded)
        self._link.submit(write.parts)
        wait_for(lambda: over.is_set() or len(self.stranded) > stranded, "an outcome", 10.0)

    def retire(self) -> None:
        """Ends the thread, as of a node that has no partitions any more."""
        self._link.close()

    def add_unchecked(self) -> None:
        """Adds 1, as somebody who looked at the link before it ended; waits for nothing."""
        write = Write(lambda: None)
        write.add(Part(write, self.partition, {self._key: 1}))
        self._link.put(write.parts, 1)

    def forget_place(self) -> None:
        """From now on the partition is said to be on another node."""
        places = (*(0,) * self.partition, 1)
        self._topology._layout = Layout((self._node.url, "redis://127.0.0.1:1"), places)

    def forget_node(self) -> None:
        """From now on the node is said to have nothing."""
        self._topology._layout = Layout(("redis://127.0.0.1:1",), (0,) * (self.partition + 1))

    def admit_others(self) -> None:
        """Connects while the partition is said to be on another node."""
        layout = self._topology.layout
        self.forget_place()
        over = threading.Event()
        self._link.submit([Read(["none"], over.set)])
        assert over.wait(10.0)
        self._topology._layout = layout

    @property
    def value(self) -> int:
        """What was added in Redis."""
        return int(self._node.command("GET", self._key) or 0)

    def close(self) -> None:
        """Ends the link."""
        self._link.close()

    @property
    def _key(self) -> str:
        return keys.shard_key(self.partition, "acme", "post:42")

    def _strand(self, items: Sequence[Part | ScriptCall], why: str) -> None:
        self.stranded += items


@pytest.fixture
def linked(node: RedisNode) -> Iterator[Callable[[int], Linked]]:
    """Opens a link whose partition is closed at its admission of that number."""
    with ExitStack() as stack:
        yield lambda at: stack.enter_context(closing(Linked(node, at)))


def test_what_waited_for_the_first_connection_is_not_sent_to_a_partition_that_it_closed(
    linked: Callable[[int], Linked],
) -> None:
    link = linked(1)
    link.add()
    assert (link.value, len(link.stranded)) == (0, 1)


def test_what_is_sent_again_is_not_sent_to_a_partition_that_the_new_connection_closed(
    node: RedisNode, linked: Callable[[int], Linked]
) -> None:
    link = linked(2)
    link.add()
    node.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    link.add()
    assert (link.value, len(link.stranded)) == (1, 1)


def test_what_was_sent_and_then_closed_is_stranded_as_sent_under_its_token(
    node: RedisNode, linked: Callable[[int], Linked]
) -> None:
    """It may have been applied: only its own token tells."""
    link = linked(2)
    link.add()
    node.command("CLIENT", "PAUSE", 60_000, "WRITE")
    thread = threading.Thread(target=link.add)
    thread.start()
    wait_for(lambda: b"cmd=evalsha" in _blocked(node), "it to be under way")
    node.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    node.command("CLIENT", "UNPAUSE")
    thread.join()
    (call,) = link.stranded
    assert isinstance(call, ScriptCall)
    assert (call.sent, call.token and call.token.sequence) == (True, 2)


def test_what_was_not_sent_because_the_connection_had_ended_is_stranded_as_not_sent(
    node: RedisNode, linked: Callable[[int], Linked]
) -> None:
    link = linked(2)
    link.add()
    node.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    link.add()
    assert [isinstance(call, ScriptCall) and call.sent for call in link.stranded] == [False]


def test_what_comes_when_the_thread_has_ended_is_handed_over(
    linked: Callable[[int], Linked],
) -> None:
    link = linked(2)
    link.retire()
    link.add_unchecked()
    assert len(link.stranded) == 1


@pytest.mark.parametrize("is_connected", [True, False])
def test_what_is_for_a_partition_that_was_not_admitted_is_not_sent(
    linked: Callable[[int], Linked], is_connected: bool
) -> None:
    """It came by a layout of which nobody knows any more."""
    link = linked(3)
    if is_connected:
        link.admit_others()
    link.forget_place()
    link.add()
    assert (link.value, len(link.stranded)) == (0, 1)


def test_what_waits_for_a_node_without_partitions_is_handed_over_at_once(
    linked: Callable[[int], Linked],
) -> None:
    link = linked(1)
    link.forget_node()
    started = time.monotonic()
    link.add()
    assert (link.value, len(link.stranded)) == (0, 1)
    assert time.monotonic() - started < REDIS_TIMEOUT / 2


def _blocked(node: RedisNode) -> bytes:
    """The clients whose commands have to wait."""
    client = node.client()
    try:
        lines = client.connection_pool.get_connection()
        lines.send_command("CLIENT", "LIST")
        found: bytes = lines.read_response()
    finally:
        client.close()
    return b"\n".join(line for line in found.splitlines() if b"flags=b" in line)
