"""Clients of Redis for the keeper, the start and the operators: one a node."""

import threading
import time
from collections.abc import Iterable, Sequence
from typing import Any, Final, Self

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import AskError, ClusterDownError, RedisError, TryAgainError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from tallyboard_server.redis.connection import Connection, ConnectionLost, NoAnswer
from tallyboard_server.redis.topology import Command, Topology
from tallyboard_server.redis.urls import address_of

REDIS_TIMEOUT: Final = 5.0
# Seconds that a node which was silent may take to say that it is back, and between two questions.
_SILENT_TIMEOUT: Final = 1.0
_SILENT_PAUSE: Final = 2.0


def control_client(url: str, timeout: float = REDIS_TIMEOUT) -> Redis:
    """A redis-py client of one node that never sends a command twice; close it.

    Args:
        url: redis://, rediss:// or unix://.
        timeout: seconds to wait for a connection, and for an answer.
    """
    return Redis.from_url(
        url,
        retry=Retry(NoBackoff(), 0),
        socket_timeout=timeout,
        socket_connect_timeout=timeout,
    )


def is_moving(replies: Iterable[Any]) -> bool:
    """Whether a node said of some keys that it can't answer for them, but perhaps for others."""
    return any(isinstance(reply, (AskError, TryAgainError, ClusterDownError)) for reply in replies)


def check_replies(replies: Iterable[Any]) -> None:
    """Raises what a node said instead of a reply."""
    for reply in replies:
        if isinstance(reply, Exception):
            raise reply


class RedisNodes:
    """A client of every node, made when it is needed; a context manager, for any thread.

    Its methods raise redis.RedisError when a node is away, or a partition has moved: `refresh`
    finds it then.

    Args:
        topology: which node has what.
        timeout: seconds to wait for a connection, and for an answer.
    """

    def __init__(self, topology: Topology, timeout: float = REDIS_TIMEOUT) -> None:
        self.topology = topology
        self._timeout = timeout
        self._clients: dict[str, Redis] = {}
        self._lock = threading.Lock()  # guards _clients
        # By node that was silent, when it was asked last whether it is back. Any thread changes it,
        # a key at a time.
        self._silent: dict[str, float] = {}

    @classmethod
    def of_url(cls, url: str, partitions: int, timeout: float = REDIS_TIMEOUT) -> Self:
        """Clients of a server or a cluster, whose nodes are looked for now if they can be."""
        topology = Topology(url, partitions, timeout)
        topology.refresh()
        return cls(topology, timeout)

    def note(self, node: str, error: RedisError) -> None:
        """Remembers what a node of several did: the others must not wait again for a silent one."""
        if isinstance(error, RedisTimeoutError) and len(self.topology.layout.nodes) > 1:
            self._silent.setdefault(node, 0.0)

    def at(self, node: str) -> Redis:
        """The client of a node, by its URL.

        Raises:
            redis.TimeoutError: it was silent, and still is.
        """
        if node in self._silent:
            self._ask_whether_back(node)
        return self._client(node)

    def _ask_whether_back(self, node: str) -> None:
        problem = "it did not answer a moment ago"
        if time.monotonic() - self._silent.get(node, 0.0) >= _SILENT_PAUSE:
            try:
                Connection(node, _SILENT_TIMEOUT).close()
            except (ConnectionLost, NoAnswer) as error:
                self._silent[node] = time.monotonic()
                problem = str(error)
            else:
                self._silent.pop(node, None)
                return
        raise RedisTimeoutError(f"{address_of(node)}: {problem}")

    def _client(self, node: str) -> Redis:
        with self._lock:
            client = self._clients.get(node)
            if client is None:
                self._clients[node] = client = control_client(node, self._timeout)
            return client

    def of(self, partition: int) -> Redis:
        """The client of the node that has a partition."""
        return self.at(self.topology.layout.node_of(partition))

    def group(self, partitions: Iterable[int]) -> list[tuple[Redis, list[int]]]:
        """Partitions with the client of the node that has them."""
        groups = self.topology.layout.group(partitions)
        return [(self._client(node), these) for node, these in groups.items()]

    def run(self, commands: Sequence[Command]) -> list[Any]:
        """The replies to commands, in their order; one round trip a node."""
        return self.topology.layout.gather(commands, self._ask)

    def _ask(self, node: str, commands: Sequence[Command]) -> list[Any]:
        pipeline = self.at(node).pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)
        replies: list[Any] = pipeline.execute()
        return replies

    def times(self) -> list[int]:
        """What the clocks of the nodes say, in µs since the epoch."""
        found = []
        for node in self.topology.layout.nodes:
            seconds, micros = self.at(node).time()
            found.append(int(seconds) * 1_000_000 + int(micros))
        return found

    def refresh(self) -> None:
        """Looks again who has what, if it may have changed."""
        self.topology.refresh(away=next(iter(self._silent), None))

    def close(self) -> None:
        """Closes all clients."""
        with self._lock:
            clients, self._clients = list(self._clients.values()), {}
        for client in clients:
            client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
