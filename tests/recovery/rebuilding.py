"""What tests of rebuilds share: the last checkpoint, and pictures of Redis."""

import struct
import uuid
from typing import Any, Final

from redis import Redis

from tallyboard_server.checkpointer import Checkpointer
from tallyboard_server.leaderboards.checkpoints import write_taken_entries
from tallyboard_server.postgres.checkpoints import write_values
from tallyboard_server.postgres.pool import BoundedConnection
from tallyboard_server.redis.keys import kind_of_key, version_key

# What a rebuild makes anew: no marks of changes, nothing that ends by itself.
_COMPARED: Final = "cwbgozh"


class LastCheckpoint:
    """Stands for `Checkpointer.checkpoint_fenced`: copies what a marked partition holds.

    Attributes:
        made: the partitions that it was called for.
        fails: raises before it does anything; `late`: after it has committed.
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
        checkpoint = uuid.uuid4().hex
        checkpointer: Any = Checkpointer(self._redis, None, self._partitions)  # type: ignore[arg-type]
        version = int(self._redis.incr(version_key(partition)))
        with conn.transaction():
            taken = checkpointer._take_keys({partition: mark}, checkpoint, 100_000)
            assert not taken.fenced
            write_values(conn, taken.values, taken.read_at)
            write_taken_entries(conn, taken.entries, taken.read_at)
            conn.execute(
                "UPDATE tallyboard.partitions SET version = %s WHERE partition = %s",
                (version, partition),
            )
        if self.late:
            raise Killed
        checkpointer._forget_keys([partition], checkpoint)


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
