"""Many commands to one Redis without a wait for each: what loads a partition."""

from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import hiredis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from tallyboard_server.redis import scripts
from tallyboard_server.redis.connection import Connection, ConnectionLost, NoAnswer

# What is packed before it is sent, and what may be under way: enough that neither side waits for
# the other, and little enough that Redis serves everybody else in between.
_SEND: Final = 1 << 18
_UNDER_WAY: Final = 1 << 21

Command = tuple[Any, ...]
_Result = TypeVar("_Result")


class Fenced(Exception):
    """A script found another incarnation, or another mark, than the caller expected."""


class Pipe:
    """A connection for one thread; a context manager.

    Replies are looked at later: an error is raised by one of the next calls. All raise
    redis.RedisError when Redis is away or refuses a command, and `Fenced`.

    Args:
        url: the Redis node.
        timeout: seconds without any progress after which a call gives up.
    """

    def __init__(self, url: str, timeout: float) -> None:
        self._connection = _translated(lambda: Connection(url, timeout))
        self._packed: list[bytes] = []
        self._size = 0
        self._count = 0
        # Of what was sent and not answered: bytes and number of commands of each piece.
        self._pieces: list[tuple[int, int]] = []
        self._under_way = 0

    def prepare(self, *needed: scripts.Script) -> None:
        """Makes sure that Redis has these scripts, for commands that name them by their hash."""
        for script in needed:
            self.send("SCRIPT", "LOAD", script.source)
        self.flush()

    def send(self, *command: Any) -> None:
        """Sends a command some time until `flush`."""
        packed = hiredis.pack_command(command)
        self._packed.append(packed)
        self._size += len(packed)
        self._count += 1
        if self._size >= _SEND:
            self._push()
            while self._under_way > _UNDER_WAY:
                self._take()

    def flush(self) -> None:
        """Sends all, and waits until all is done."""
        self._push()
        while self._pieces:
            self._take()

    def ask(self, *commands: Command) -> list[Any]:
        """The replies to these commands, after whatever was sent before."""
        self.flush()
        if not commands:
            return []
        replies = _translated(lambda: self._connection.call(commands))
        for reply in replies:
            _check(reply)
        return replies

    def close(self) -> None:
        """Closes the connection; what is under way may or may not be run."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _push(self) -> None:
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
