"""Bringing back a window that only Postgres has: an import wants to write to it."""

import math
import struct
import time
from collections import defaultdict
from typing import Any, Final

from psycopg_pool import ConnectionPool

from tallyboard_server.errors import DeadlineExceeded
from tallyboard_server.leaderboards.model import Leaderboard, TieBreak, Window
from tallyboard_server.postgres.entries import StoredEntry, entry_page, find_window
from tallyboard_server.postgres.pool import BoundedConnection, postgres_unavailable
from tallyboard_server.redis import scripts
from tallyboard_server.redis.fences import closed
from tallyboard_server.redis.keys import (
    incarnation_key,
    segment_of,
    segment_partition,
    window_keys,
    windows_key,
)
from tallyboard_server.redis.scores import element_of, make_record
from tallyboard_server.redis.store import RedisStore

_PAGE: Final = 2_000
# How long a window that was loaded stays, unless it is written to.
_TTL: Final = 24 * 3600


class WindowLoader:
    """Loads windows for one worker. Several may load the same one: it is the same to all."""

    def __init__(
        self, store: RedisStore, pool: ConnectionPool[BoundedConnection], partitions: int
    ) -> None:
        self._store = store
        self._pool = pool
        self._partitions = partitions

    def load(self, board: Leaderboard, window: Window, deadline: float) -> bool:
        """Loads the window; False if Postgres has never had it.

        Raises:
            Unavailable: a store is away.
            DeadlineExceeded: it takes longer; the next one begins anew.
        """
        segments = min(board.segments, self._partitions)
        sums: defaultdict[int, list[float]] = defaultdict(list)
        with postgres_unavailable(), self._pool.connection() as conn:
            row = find_window(conn, board.board_key, window.window)
            if row is None:
                return False
            after = ""
            while entries := entry_page(conn, row.window_id, after, _PAGE):
                if time.monotonic() > deadline:
                    raise DeadlineExceeded("the archived window was not loaded in time; try again")
                after = entries[-1].member
                groups: defaultdict[int, list[StoredEntry]] = defaultdict(list)
                for entry in entries:
                    groups[segment_of(entry.member, segments)].append(entry)
                for segment, mine in groups.items():
                    sums[segment] += [math.ldexp(entry.score, -32) for entry in mine]
                    self._step(board, window, segment, mine, "", deadline)
        for segment in range(segments):
            meta = b"c" + struct.pack(">dd", math.fsum(sums[segment]), 0.0)
            self._step(board, window, segment, [], meta, deadline)
        return True

    def _step(
        self,
        board: Leaderboard,
        window: Window,
        segment: int,
        entries: list[StoredEntry],
        meta: bytes | str,
        deadline: float,
    ) -> None:
        partition = segment_partition(board.tenant, board.leaderboard_id, segment, self._partitions)
        incarnation = self._store.fences.expected(partition)
        keys = window_keys(partition, board.board_key, window.window)
        earliest = board.tie_break is TieBreak.EARLIEST
        descending = board.is_descending
        arguments: list[Any] = [incarnation, window.window, _TTL, meta]
        for entry in entries:
            at = entry.updated_at
            arguments += (
                element_of(entry.member, at, descending=descending, earliest=earliest),
                entry.member,
                make_record(at, entry.score, entry.metadata, descending),
            )
        named = (
            incarnation_key(partition),
            keys.ranking,
            keys.entries,
            windows_key(partition, board.board_key),
        )
        command = ("EVALSHA", scripts.LOAD.sha, len(named), *named, *arguments)
        reply = self._store.commands([command], deadline)[0]
        if incarnation is None or reply[0] == b"fenced":
            raise closed(partition)
