"""Bringing back a window that only Postgres has: somebody wants to write to it."""

import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Final

from tallyboard_server.errors import DeadlineExceeded
from tallyboard_server.leaderboards.loads import Command, Values, WindowLoad
from tallyboard_server.leaderboards.model import Leaderboard, Window, WindowState
from tallyboard_server.postgres.checkpoints import lock_partition
from tallyboard_server.postgres.entries import StoredEntry, entry_page, find_window
from tallyboard_server.postgres.pool import BoundedPool, postgres_unavailable
from tallyboard_server.redis.fences import closed
from tallyboard_server.redis.keys import segment_of, segment_partition, window_keys
from tallyboard_server.redis.store import RedisStore

_PAGE: Final = 2_000
# Seconds that a closed window stays after it was loaded, unless it is written to.
_TTL: Final = 24 * 3600
_LOCK_WAIT: Final = 5.0


class WindowLoader:
    """Loads windows for one worker. Several may load the same one: it is the same to all."""

    def __init__(self, store: RedisStore, pool: BoundedPool, partitions: int) -> None:
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
        with postgres_unavailable(), self._pool.until(deadline) as conn:
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
        self._loads = [WindowLoad(board, window.window, place, is_open) for place in places]
        self._seconds = 0 if is_open else _TTL
        self._deadline = deadline

    def begin(self) -> None:
        """Clears away what a load that was cut short has left."""
        for load in self._loads:
            self._send(load, load.first(self._incarnation(load)))

    def add(self, entries: Sequence[StoredEntry]) -> None:
        """Loads some entries."""
        if time.monotonic() > self._deadline:
            raise DeadlineExceeded("the archived window was not loaded in time; try again")
        groups: defaultdict[int, list[Values]] = defaultdict(list)
        for entry in entries:
            values = (entry.member, entry.score, entry.updated_at, entry.metadata)
            groups[segment_of(entry.member, len(self._loads))].append(values)
        for segment, mine in groups.items():
            load = self._loads[segment]
            self._send(load, load.more(self._incarnation(load), mine))

    def finish(self) -> None:
        """Makes it a window again."""
        for load in self._loads:
            self._send(load, load.last(self._incarnation(load), self._seconds))

    def _incarnation(self, load: WindowLoad) -> str:
        incarnation = self._store.fences.expected(load.partition)
        if incarnation is None:
            raise closed(load.partition)
        return incarnation

    def _send(self, load: WindowLoad, command: Command) -> None:
        reply = self._store.commands([command], self._deadline)[0]
        if reply[0] == b"fenced":
            raise closed(load.partition)
