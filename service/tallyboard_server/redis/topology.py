"""Which node of Redis has which partition: one server has them all, a cluster's masters share them.

All keys of a partition are in one slot of a cluster, by their hash tag. What was found out stays in
force until somebody who knows better is asked: `refresh`.
"""

import re
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

import structlog
from redis.exceptions import ConnectionError as RedisConnectionError

from tallyboard_server.redis.connection import Connection, ConnectionLost, NoAnswer
from tallyboard_server.redis.keys import incarnation_key, key_of, kind_of_key, slot_of
from tallyboard_server.redis.urls import address_of, split_url, with_address

# Seconds between two looks, however many ask for one, and that one node may take to answer.
_PAUSE: Final = 0.2
_PATIENCE: Final = 1.0
Command = tuple[Any, ...]
_log = structlog.get_logger(__name__)


class Stay(NamedTuple):
    """The time of a partition on one node: when it comes back there, that is another one."""

    partition: int
    number: int


@dataclass(frozen=True)
class Layout:
    """Who has what at one moment.

    Attributes:
        nodes: URLs of the nodes that have slots, in a fixed order.
        places: by partition, the index of its node.
        slots: first slot, last slot and the node's index; none of a server that is no cluster.
        moves: by partition, how often it has gone to another node; none as yet if left out.
    """

    nodes: tuple[str, ...]
    places: tuple[int, ...]
    slots: tuple[tuple[int, int, int], ...] = ()
    moves: tuple[int, ...] = field(default=(), compare=False)

    @property
    def is_cluster(self) -> bool:
        """Whether a command may name keys of one partition only."""
        return bool(self.slots)

    def node_of(self, partition: int) -> str:
        """The URL of the node that has a partition."""
        return self.nodes[self.places[partition]]

    def node_of_key(self, key: str | bytes) -> str:
        """The URL of the node that has a key, be it of a partition or not."""
        if not self.slots:
            return self.nodes[0]
        name = key.encode() if isinstance(key, str) else key
        found = kind_of_key(name)
        if found is not None and found.partition < len(self.places):
            return self.node_of(found.partition)
        slot = slot_of(name)
        return next((self.nodes[n] for low, high, n in self.slots if low <= slot <= high),
                    self.nodes[0])  # fmt: skip

    def partitions_of(self, node: str) -> tuple[int, ...]:
        """The partitions that a node has; none of a node that is not in it."""
        if node not in self.nodes:
            return ()
        index = self.nodes.index(node)
        return tuple(p for p, place in enumerate(self.places) if place == index)

    def stays_of(self, node: str) -> tuple[Stay, ...]:
        """The stays of the partitions that a node has."""
        moves = self.moves
        return tuple(Stay(p, moves[p] if moves else 0) for p in self.partitions_of(node))

    def after(self, former: "Layout") -> "Layout":
        """The same, with the moves that lead here counted."""
        before = former.moves or (0,) * len(self.places)
        moves = tuple(
            count + (self.node_of(partition) != former.node_of(partition))
            for partition, count in enumerate(before)
        )
        return replace(self, moves=moves)

    def gather(
        self, commands: Sequence[Command], ask: Callable[[str, list[Command]], list[Any]]
    ) -> list[Any]:
        """The replies to commands, in their order.

        Args:
            commands: each with a key, which says which node has to run it.
            ask: gives the replies of a node, by its URL, to its commands; called once a node.
        """
        by_node: dict[str, list[int]] = {}
        for index, command in enumerate(commands):
            by_node.setdefault(self.node_of_key(key_of(command)), []).append(index)
        replies: list[Any] = [None] * len(commands)
        for node, indexes in by_node.items():
            answers = ask(node, [commands[index] for index in indexes])
            for index, reply in zip(indexes, answers, strict=True):
                replies[index] = reply
        return replies

    def group(self, partitions: Iterable[int]) -> dict[str, list[int]]:
        """Partitions by the URL of their node."""
        groups: dict[str, list[int]] = {}
        for partition in partitions:
            groups.setdefault(self.node_of(partition), []).append(partition)
        return groups


class Topology:
    """Keeps a layout up to date; any thread may read it, and ask to refresh it.

    Args:
        url: a server, or nodes of a cluster, of which one that answers is enough.
        partitions: how many there are.
        timeout: seconds that one node may take to answer `look`; `refresh` is less patient.
    """

    def __init__(self, url: str, partitions: int, timeout: float = _PATIENCE) -> None:
        self._seeds = split_url(url)
        self._partitions = partitions
        self._timeout = timeout
        self._layout = Layout((self._seeds[0],), (0,) * partitions)  # replaced as a whole
        self._is_alone: bool | None = None  # whether it is no cluster; None: nobody knows yet
        self._looked = 0.0
        self._lock = threading.Lock()  # held by the one who looks; guards _is_alone and _looked

    @property
    def layout(self) -> Layout:
        """What is known now."""
        return self._layout

    def look(self) -> None:
        """Finds out who has what.

        With several nodes a silent one must not hold up the start; a slow one alone has its time.

        Raises:
            redis.ConnectionError: no node answers, or none can say; what was known stays.
        """
        patience = min(self._timeout, _PATIENCE)
        with self._lock:
            try:
                self._look(patience)
            except RedisConnectionError:
                if patience == self._timeout:
                    raise
                self._look(self._timeout)

    def refresh(self, told_by: str | None = None, away: str | None = None) -> None:
        """Looks again, unless there is nothing to look for, or somebody has done so just now.

        A cluster of which no node answers stays what it was.

        Args:
            told_by: a node that has just said that something has moved; asked first, for it
                answers, and others may learn of it later.
            away: a node that does not answer; asked last.
        """
        if self._is_alone or not self._lock.acquire(blocking=False):
            return
        try:
            if time.monotonic() - self._looked >= _PAUSE:
                self._look(min(self._timeout, _PATIENCE), told_by, away)
        except RedisConnectionError as error:
            _log.debug("no node of Redis says who has what", why=str(error))
        finally:
            self._lock.release()

    def _look(self, timeout: float, told_by: str | None = None, away: str | None = None) -> None:
        problem, cut_off = "there is no address", None
        known = dict.fromkeys([*self._layout.nodes, *self._seeds])
        asked = sorted(known, key=lambda node: (node == away, node != told_by))
        try:
            for node in asked:
                try:
                    found, is_whole = self._ask(node, timeout)
                except (ConnectionLost, NoAnswer) as error:
                    problem = f"{address_of(node)}: {error}"
                    continue
                if self._is_alone is False and not found.is_cluster:
                    # Somebody else has the address now, or it was started without its settings.
                    problem = f"{address_of(node)}: it is no node of a cluster any more"
                    continue
                if is_whole:
                    self._take(found)
                    return
                # It may not know who has taken over from whom, so it is believed only for want of
                # a better one.
                cut_off = cut_off or found
        finally:
            self._looked = time.monotonic()
        if cut_off is None:
            raise RedisConnectionError(problem)
        self._take(cut_off)

    def _take(self, found: Layout) -> None:
        if found != self._layout and self._is_alone is not None:
            nodes = list(map(address_of, found.nodes))
            _log.info("Partitions have moved in Redis.", nodes=nodes)
        self._is_alone = not found.is_cluster
        self._layout = found.after(self._layout)

    def _ask(self, node: str, timeout: float) -> tuple[Layout, bool]:
        """Who has what, and whether the node is in touch with most of its cluster."""
        connection = Connection(node, timeout)
        try:
            info, slots, state = connection.call(
                [("INFO", "cluster"), ("CLUSTER", "SLOTS"), ("CLUSTER", "INFO")]
            )
        finally:
            connection.close()
        if isinstance(info, Exception):
            raise ConnectionLost(f"Redis is not ready: {info}")
        if not re.search(rb"^cluster_enabled:1", info, re.M):
            return Layout((node,), (0,) * self._partitions), True
        if isinstance(slots, Exception):
            raise ConnectionLost(f"Redis does not say who has which slot: {slots}")
        is_whole = isinstance(state, Exception) or b"cluster_state:fail" not in state
        return self._parse(node, slots), is_whole

    def _parse(self, asked: str, answer: Sequence[Any]) -> Layout:
        """The layout that CLUSTER SLOTS tells; slots that nobody has stay where they were."""
        nodes: dict[str, int] = {}
        slots = []
        own_host = urlsplit(asked).hostname
        if own_host is None:
            raise ConnectionLost("a cluster has to be named by a host and a port of a node")
        for first, last, (host, port, *_), *_ in sorted(answer, key=lambda each: int(each[0])):
            # One that does not know its address has the one by which it was asked.
            node = with_address(asked, host.decode() if host else own_host, port)
            slots.append((first, last, nodes.setdefault(node, len(nodes))))
        if not slots:
            raise ConnectionLost("the cluster has no slots yet")
        places = []
        for partition in range(self._partitions):
            slot = slot_of(incarnation_key(partition))
            place = next((n for low, high, n in slots if low <= slot <= high), None)
            if place is None:
                former = self._layout.node_of(partition)
                place = nodes.setdefault(former, len(nodes))
            places.append(place)
        return Layout(tuple(nodes), tuple(places), tuple(slots))
