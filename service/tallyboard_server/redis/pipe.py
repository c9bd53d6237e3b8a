"""Many commands to Redis without a wait for each: what loads a partition."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, Self, TypeVar

import hiredis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from tallyboard_server.redis import scripts
from tallyboard_server.redis.connection import Connection, ConnectionLost, NoAnswer
from tallyboard_server.redis.keys import key_of
from tallyboard_server.redis.topology import Command, Topology

# What is packed before it is sent, and what may be under way: enough that neither side waits for
# the other, and little enough that Redis serves everybody else in between.
_SEND: Final = 1 << 18
_UNDER_WAY: Final = 1 << 21

_Result = TypeVar("_Result")


class Fenced(Exception):
    """A script found another incarnation, or another mark, than the caller expected."""


class Pipe:
    """Connections for one thread, to the nodes that its commands are for; a context manager.

    Replies are looked at later: an error is raised by one of the next calls. All raise
    redis.RedisError when a node is away or refuses a command, and `Fenced`.

    Args:
        topology: which node has what.
        timeout: seconds without any progress after which a call gives up.
    """

    def __init__(self, topology: Topology, timeout: float) -> None:
        self._layout = topology.layout
        self._timeout = timeout
        self._needed: dict[scripts.Script, None] = {}
        self._pipes: dict[str, _NodePipe] = {}

    def prepare(self, *needed: scripts.Script) -> None:
        """Makes sure that the nodes have these scripts, for commands that name their hash."""
        new = [script for script in needed if script not in self._needed]
        self._needed |= dict.fromkeys(new)
        for pipe in self._pipes.values():
            pipe.prepare(new)

    def send(self, *command: Any) -> None:
        """Sends a command, to the node that has its first key, some time until `flush`."""
        self._pipe_at(self._layout.node_of_key(key_of(command))).send(*command)

    def flush(self) -> None:
        """Sends all, and waits until all is done."""
        for pipe in self._pipes.values():
            pipe.push()
        for pipe in self._pipes.values():
            pipe.flush()

    def ask(self, *commands: Command) -> list[Any]:
        """The replies to these commands, after whatever was sent before."""
        self.flush()
        return self._layout.gather(commands, lambda node, these: self._pipe_at(node).ask(these))

    def ask_nodes(self, partitions: Iterable[int], command: Command) -> list[Any]:
        """The replies of all nodes that have some of the partitions to a command without keys."""
        self.flush()
        nodes = self._layout.group(partitions)
        return [self._pipe_at(node).ask([command])[0] for node in nodes]

    def scan(self, partitions: Iterable[int], pattern: str, count: int) -> Iterator[list[bytes]]:
        """The keys like a pattern on all nodes that have some of the partitions, some at a time."""
        for node in self._layout.group(partitions):
            cursor: Any = 0
            while True:
                command = ("SCAN", cursor, "MATCH", pattern, "COUNT", count)
                cursor, keys = self._pipe_at(node).ask([command])[0]
                yield keys
                if int(cursor) == 0:
                    break

    def close(self) -> None:
        """Closes the connections; what is under way may or may not be run."""
        for pipe in self._pipes.values():
            pipe.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _pipe_at(self, node: str) -> "_NodePipe":
        pipe = self._pipes.get(node)
        if pipe is None:
            pipe = _NodePipe(node, self._timeout)
            self._pipes[node] = pipe
            pipe.prepare(self._needed)
        return pipe


class _NodePipe:
    """A connection to one node."""

    def __init__(self, node: str, timeout: float) -> None:
        self._connection = _translated(lambda: Connection(node, timeout))
        self._packed: list[bytes] = []
        self._size = 0
        self._count = 0
        # Of what was sent and not answered: bytes and number of commands of each piece.
        self._pieces: list[tuple[int, int]] = []
        self._under_way = 0

    def prepare(self, needed: Iterable[scripts.Script]) -> None:
        for script in needed:
            self.send("SCRIPT", "LOAD", script.source)
        self.flush()

    def send(self, *command: Any) -> None:
        packed = hiredis.pack_command(command)
        self._packed.append(packed)
        self._size += len(packed)
        self._count += 1
        if self._size >= _SEND:
            self.push()
            while self._under_way > _UNDER_WAY:
                self._take()

    def flush(self) -> None:
        self.push()
        while self._pieces:
            self._take()

    def ask(self, commands: Sequence[Command]) -> list[Any]:
        self.flush()
        replies = _translated(lambda: self._connection.call(commands))
        for reply in replies:
            _check(reply)
        return replies

    def close(self) -> None:
        self._connection.close()

    def push(self) -> None:
        """Sends what is packed."""
        if self._packed:
            data = b"".join(self._packed)
            _translated(lambda: self._connection.send(data))
            self._pieces.append((self._size, self._count))
            self._under_way += self._size
            self._packed, self._size, self._count = [], 0, 0

    def _take(self) -> None:
        """Waits for the replies to the oldest piece."""
        size, count = self._pieces.pop(0)
        for reply in _translated(lambda: list(self._connection.receive(count))):
            _check(reply)
        self._under_way -= size


def _check(reply: Any) -> None:
    if isinstance(reply, hiredis.ReplyError):
        raise ResponseError(str(reply))
    if isinstance(reply, list) and reply and reply[0] == b"fenced":
        raise Fenced(f"Redis holds another life of the partition: {reply[1]!r}")


def _translated(call: Callable[[], _Result]) -> _Result:
    """Calls, with redis-py's errors instead of the connection's."""
    try:
        return call()
    except NoAnswer as error:
        raise RedisTimeoutError(str(error)) from error
    except ConnectionLost as error:
        raise RedisConnectionError(str(error)) from error
