"""What tests of rebuilds share: the last checkpoint, and pictures of Redis."""

import struct
from typing import Any, Final

from redis import Redis

from tallyboard_server.checkpointer import Checkpointer
from tallyboard_server.postgres.pool import BoundedConnection
from tallyboard_server.redis.keys import kind_of_key
from tests.redis.nodes import nodes_of

# What a rebuild makes anew: no marks of changes, nothing that ends by itself.
_COMPARED: Final = "cwbgozh"


class LastCheckpoint:
    """Makes last checkpoints, and can die of it.

    Attributes:
        made: the partitions that it was called for.
        fails: dies before it does anything; `late`: after it has committed.
    """

    def __init__(self, redis: Redis, partitions: int) -> None:
        self._redis = redis
        self._partitions = partitions
        self.made: list[int] = []
        self.fails = False
        self.late = False

    def __call__(self, conn: BoundedConnection, partition: int, mark: str) -> None:
        self.made.append(partition)
        if self.fails:
            raise Killed
        pool: Any = None  # the caller's connection is all it takes
        checkpointer = Checkpointer(nodes_of(self._redis, self._partitions), pool, self._partitions)
        if self.late:
            checkpointer._forget_keys = _die  # type: ignore[method-assign]
        checkpointer.checkpoint_fenced(conn, partition, mark)


def _die(*_: object) -> None:
    raise Killed


class Killed(Exception):
    """Stands for the death of a process."""


def picture(redis: Redis, partitions: set[int]) -> dict[bytes, Any]:
    """What some partitions hold, but for what changes by itself: by key, in one order."""
    found = {}
    for key in redis.scan_iter(count=1000):
        kind = kind_of_key(key)
        if kind and kind.partition in partitions and kind.kind in _COMPARED:
            found[key] = _content(redis, key)
    return dict(sorted(found.items()))


def lifetimes(redis: Redis, keys: dict[bytes, Any]) -> dict[bytes, int]:
    """The seconds that each key has left; -1: it stays."""
    return {key: int(redis.execute_command("TTL", key)) for key in keys}


def _content(redis: Redis, key: bytes) -> Any:
    kind = redis.execute_command("TYPE", key)
    if kind == b"string":
        return redis.execute_command("GET", key)
    if kind == b"set":
        return sorted(redis.execute_command("SMEMBERS", key))
    if kind == b"zset":
        return redis.execute_command("ZRANGE", key, 0, -1, "WITHSCORES")
    held = redis.execute_command("HGETALL", key)
    return sorted((field, value if field else _meta(value)) for field, value in held.items())


def _meta(value: bytes) -> bytes:
    """A window's meta with the sum as far as both ways to add up agree."""
    return value[:1] + f"{sum(struct.unpack('>dd', value[1:])):.12g}".encode()
