"""Loading partitions from Postgres into Redis: counters, tokens, and first of all emptying them.

Everything is sent under a mark that stands in the place of the incarnation, and refused when
somebody else has put another there. What is loaded is not dirty: Postgres has it. A load that was
cut short is begun anew, with `empty`.
"""

from collections import Counter, defaultdict
from collections.abc import Container, Mapping
from typing import Any, Final

import psycopg

from tallyboard_server.postgres.rebuild import counters_of, reading, tokens_of
from tallyboard_server.recovery.progress import Reporter
from tallyboard_server.redis import scripts
from tallyboard_server.redis.keys import (
    incarnation_key,
    kind_of_key,
    shard_key,
    version_key,
    wide_key,
)
from tallyboard_server.redis.pipe import Pipe

# Keys a script call: Redis serves others in between.
_KEYS_A_CALL: Final = 1_000
_SCAN: Final = 1_000
# Whose life it is, and how old the data are: what a rebuild that was cut short is judged by.
_KEPT_KINDS: Final = frozenset("iv")

_Row = tuple[int, str, str, bool, int, bool]


class PartitionLoader:
    """Loads some partitions at once, on one thread.

    Its methods raise redis.RedisError and psycopg.Error when a store is away, and `Fenced` when
    Redis holds another mark by now.

    Args:
        pipe: to Redis.
        conn: a connection outside a transaction that holds the partitions' locks.
        marks: by partition, what Redis holds in the place of the incarnation.
        reporter: is told of every key and row.
    """

    def __init__(
        self,
        pipe: Pipe,
        conn: psycopg.Connection[Any],
        marks: Mapping[int, str],
        reporter: Reporter,
    ) -> None:
        self._pipe = pipe
        self._conn = conn
        self._marks = dict(marks)
        self._reporter = reporter
        pipe.prepare(scripts.EMPTY, scripts.LOAD_VALUES, scripts.LOAD_TOKEN)

    def empty(self, keep_tokens: Container[int] = ()) -> None:
        """Deletes what the partitions hold, in one walk through all keys of their nodes.

        Args:
            keep_tokens: the partitions whose tokens stay.
        """
        doomed: defaultdict[int, list[bytes]] = defaultdict(list)
        for keys in self._pipe.scan(self._marks, "{tb:*}:*", _SCAN):
            for key in keys:
                kind = kind_of_key(key)
                if kind is None or kind.partition not in self._marks or kind.kind in _KEPT_KINDS:
                    continue
                if not (kind.is_token and kind.partition in keep_tokens):
                    chunk = doomed[kind.partition]
                    chunk.append(key)
                    if len(chunk) == _KEYS_A_CALL:
                        self._unlink(kind.partition, doomed.pop(kind.partition))
            self._reporter.add(len(keys))
        for partition, chunk in doomed.items():
            self._unlink(partition, chunk)
        self._pipe.flush()

    def load_counters(self) -> Counter[int]:
        """Loads shards and wide counters; gives how many, by partition."""
        loaded: Counter[int] = Counter()
        chunks = {partition: _Values() for partition in self._marks}
        names = _Names()
        with reading(self._conn):
            for rows in counters_of(self._conn, list(self._marks)):
                for partition, tenant, counter, wide, value, frozen in rows:
                    chunk = chunks[partition]
                    chunk.keys.append(names[partition, tenant, wide] + counter)
                    if not frozen:
                        chunk.values.append(value)
                    else:
                        chunk.values.append("x" if wide else f"w{value}")
                    if len(chunk.keys) == _KEYS_A_CALL:
                        loaded[partition] += self._set(partition, chunk)
                self._reporter.add(len(rows), moved=True)
        for partition, chunk in chunks.items():
            loaded[partition] += self._set(partition, chunk)
        self._pipe.flush()
        return loaded

    def load_tokens(self, kept: Container[int] = ()) -> Counter[int]:
        """Loads tokens that have time left; gives how many, by partition.

        Args:
            kept: the partitions whose tokens have stayed: they are younger than Postgres'.
        """
        loaded: Counter[int] = Counter()
        wanted = [partition for partition in self._marks if partition not in kept]
        sha = scripts.LOAD_TOKEN.sha
        with reading(self._conn):
            for rows in tokens_of(self._conn, wanted):
                for partition, token, is_ring, held, left in rows:
                    named, mark = incarnation_key(partition), self._marks[partition]
                    kind = "h" if is_ring else "s"
                    self._pipe.send("EVALSHA", sha, 2, named, token, mark, left, kind, *held)
                    loaded[partition] += 1
                self._reporter.add(len(rows), moved=True)
        self._pipe.flush()
        return loaded

    def set_versions(self, versions: Mapping[int, int]) -> None:
        """Says of which checkpoint the data are."""
        for partition, version in versions.items():
            self._set(partition, _Values([version_key(partition)], [version]))
        self._pipe.flush()

    def _set(self, partition: int, chunk: "_Values") -> int:
        """Sets what a chunk holds, and empties it; gives how many."""
        count = len(chunk.keys)
        if count:
            named, mark = incarnation_key(partition), self._marks[partition]
            sha = scripts.LOAD_VALUES.sha
            self._pipe.send("EVALSHA", sha, count + 1, named, *chunk.keys, mark, *chunk.values)
            chunk.keys.clear()
            chunk.values.clear()
        return count

    def _unlink(self, partition: int, keys: list[bytes]) -> None:
        named, mark = incarnation_key(partition), self._marks[partition]
        self._pipe.send("EVALSHA", scripts.EMPTY.sha, len(keys) + 1, named, *keys, mark)


class _Values:
    """Keys and their values on their way to one partition."""

    def __init__(
        self, keys: list[str] | None = None, values: list[int | str] | None = None
    ) -> None:
        self.keys: list[str] = keys or []
        self.values: list[int | str] = values or []


class _Names(dict[tuple[int, str, bool], str]):
    """What the keys of counters begin with, by partition, tenant and whether they are wide."""

    def __missing__(self, name: tuple[int, str, bool]) -> str:
        partition, tenant, wide = name
        begin = (wide_key if wide else shard_key)(partition, tenant, "")
        self[name] = begin
        return begin
