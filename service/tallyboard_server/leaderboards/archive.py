"""Bringing back a window that only Postgres has: somebody wants to write to it."""

import math
import struct
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Final

from psycopg_pool import ConnectionPool

from tallyboard_server.errors import DeadlineExceeded
from tallyboard_server.leaderboards.model import Leaderboard, TieBreak, Window, WindowState
from tallyboard_server.postgres.checkpoints import lock_partition
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
# Seconds that a closed window stays after it was loaded, unless it is written to.
_TTL: Final = 24 * 3600
_LOCK_WAIT: Final = 5.0


class WindowLoader:
    """Loads windows for one worker. Several may load the same one: it is the same to all."""

    def __init__(
        self, store: RedisStore, pool: ConnectionPool[BoundedConnection], partitions: int
    ) -> None:
        self._store = store
        self._pool = pool
        self._partitions = partitions

    def load(self, board: Leaderboard, window: Window, deadline: float) -> bool:
        """Loads what Redis doesn't have of the window; False if Postgres has never had it.

        The partitions are locked meanwhile, for whoever is deleted from the window would come back
        with it.

        Raises:
            Unavailable: a store is away.
            DeadlineExceeded: it takes longer; the next one begins anew.
        """
        places = [
            segment_partition(board.tenant, board.leaderboard_id, segment, self._partitions)
            for segment in range(min(board.segments, self._partitions))
        ]
        with postgres_unavailable(), self._pool.connection() as conn:
            if find_window(conn, board.board_key, window.window) is None:
                return False
            for partition in sorted(places):
                lock_partition(conn, partition, _LOCK_WAIT)
            row = find_window(conn, board.board_key, window.window)
            if row is None:
                return False
            if not all(self._are_there(board, window, places, deadline)):
                is_open = row.state is WindowState.OPEN
                load = _Load(self._store, board, window, places, is_open, deadline)
                self._load_entries(conn, row.window_id, load)
        return True

    def _are_there(
        self, board: Leaderboard, window: Window, places: Sequence[int], deadline: float
    ) -> list[bool]:
        keys = [window_keys(place, board.board_key, window.window).entries for place in places]
        return self._store.commands([("HEXISTS", key, "") for key in keys], deadline)

    @staticmethod
    def _load_entries(conn: Any, window_id: int, load: "_Load") -> None:
        after = ""
        load.begin()
        while entries := entry_page(conn, window_id, after, _PAGE):
            load.add(entries)
            after = entries[-1].member
        load.finish()


class _Load:
    """One window on its way to the partitions in `places`, one a segment."""

    def __init__(
        self,
        store: RedisStore,
        board: Leaderboard,
        window: Window,
        places: Sequence[int],
        is_open: bool,
        deadline: float,
    ) -> None:
        self._store = store
        self._board = board
        self._window = window.window
        self._places = places
        self._is_open = is_open
        self._deadline = deadline
        self._sums: defaultdict[int, list[float]] = defaultdict(list)

    def begin(self) -> None:
        """Clears away what a load that was cut short has left."""
        for segment in range(len(self._places)):
            self._step(segment, [], "first")

    def add(self, entries: Sequence[StoredEntry]) -> None:
        """Loads some entries."""
        if time.monotonic() > self._deadline:
            raise DeadlineExceeded("the archived window was not loaded in time; try again")
        groups: defaultdict[int, list[StoredEntry]] = defaultdict(list)
        for entry in entries:
            groups[segment_of(entry.member, len(self._places))].append(entry)
        for segment, mine in groups.items():
            self._sums[segment] += [math.ldexp(entry.score, -32) for entry in mine]
            self._step(segment, mine, "more")

    def finish(self) -> None:
        """Makes it a window again."""
        state = b"o" if self._is_open else b"c"
        for segment in range(len(self._places)):
            total = math.fsum(self._sums[segment])
            self._step(segment, [], state + struct.pack(">dd", total, 0.0))

    def _step(self, segment: int, entries: Sequence[StoredEntry], what: bytes | str) -> None:
        board, partition = self._board, self._places[segment]
        incarnation = self._store.fences.expected(partition)
        if incarnation is None:
            raise closed(partition)
        keys = window_keys(partition, board.board_key, self._window)
        earliest = board.tie_break is TieBreak.EARLIEST
        descending = board.is_descending
        seconds = 0 if self._is_open else _TTL
        arguments: list[Any] = [incarnation, self._window, seconds, what]
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
        reply = self._store.commands([command], self._deadline)[0]
        if reply[0] == b"fenced":
            raise closed(partition)
