"""Loading leaderboards from Postgres into Redis: windows that are not archived, and definitions.

An archived window is loaded only where another partition has a part of it still: reads take what
Redis has of a window for the whole.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from operator import itemgetter
from typing import Any, Final, NamedTuple

import psycopg
from redis.exceptions import RedisError

from tallyboard_server.leaderboards.definitions import from_json
from tallyboard_server.leaderboards.loads import Values, WindowLoad
from tallyboard_server.leaderboards.model import Leaderboard, WindowState
from tallyboard_server.leaderboards.windows import MICROS
from tallyboard_server.postgres.entries import WindowRow
from tallyboard_server.postgres.rebuild import (
    BoardPart,
    WindowPart,
    archived_among,
    board_page,
    entries_of,
    live_windows,
    lock_boards,
    lock_open_windows,
    reading,
)
from tallyboard_server.recovery.progress import Reporter
from tallyboard_server.redis import definitions, scripts, windows
from tallyboard_server.redis.keys import window_keys, windows_key
from tallyboard_server.redis.pipe import Pipe

_BOARDS: Final = 500
_WINDOWS: Final = 500
# Entries a script call, those that are put in order before, and all that wait for it.
_ENTRIES: Final = 500
_BATCH: Final = 40_000
_MOST_WAITING: Final = 80_000
# Seconds that an archived window stays, unless it is written to.
_ARCHIVED_FOR: Final = 24 * 3600

_score: Final = itemgetter(1)


class _Board(NamedTuple):
    """A board with the partitions that its segments are in."""

    part: BoardPart
    definition: Leaderboard
    places: Sequence[int]


class BoardLoader:
    """Loads leaderboards into some partitions, on one thread.

    Its methods raise redis.RedisError and psycopg.Error when a store is away, and `Fenced` when
    Redis holds something else by now in the place of the incarnation.

    Args:
        pipe: to Redis.
        conn: a connection that holds the partitions' locks.
        partitions: how many there are.
        clock: the time now in µs since the epoch.
    """

    def __init__(
        self,
        pipe: Pipe,
        conn: psycopg.Connection[Any],
        partitions: int,
        clock: Callable[[], int],
    ) -> None:
        self._pipe = pipe
        self._conn = conn
        self._partitions = partitions
        self._clock = clock
        pipe.prepare(scripts.LOAD)

    def load_all(self, marks: Mapping[int, str], reporter: Reporter) -> Counter[int]:
        """Loads all leaderboards into these partitions; gives how many entries, by partition.

        They have to be empty of leaderboards, and `conn` outside a transaction.

        Args:
            marks: by partition, what Redis holds in the place of the incarnation.
            reporter: is told of every entry.
        """
        loaded: Counter[int] = Counter()
        after = ""
        while page := board_page(self._conn, after, _BOARDS):
            boards = self._placed(page, marks)
            if boards:
                loaded += self._load_page(boards, marks, reporter)
            after = page[-1].board_key
        return loaded

    def load_window(
        self, board: Leaderboard, row: WindowRow, partition: int, incarnation: str
    ) -> int:
        """Loads one window into one partition that doesn't have it; gives how many entries.

        An archived one is then only closed, until it is archived again, and ends by itself if
        nobody writes to it.

        Args:
            incarnation: what Redis holds in its place.
        """
        is_archived = row.state is WindowState.ARCHIVED
        seconds = _ARCHIVED_FOR if is_archived else self._seconds_left(row.expires_at)
        load = WindowLoad(board, row.window.window, partition, row.state is WindowState.OPEN)
        return self._load_window(load, row.window_id, incarnation, seconds)

    def _load_window(self, load: WindowLoad, window_id: int, incarnation: str, seconds: int) -> int:
        count = 0
        self._pipe.send(*load.first(incarnation))
        with reading(self._conn):
            for rows in entries_of(self._conn, [window_id], [load.partition]):
                for low in range(0, len(rows), _ENTRIES):
                    values = [row[2:] for row in rows[low : low + _ENTRIES]]
                    self._pipe.send(*load.more(incarnation, values))
                count += len(rows)
        self._pipe.send(*load.last(incarnation, seconds))
        self._pipe.flush()
        return count

    def _placed(self, page: Sequence[BoardPart], marks: Mapping[int, str]) -> dict[str, _Board]:
        """Those boards that have a segment in one of the partitions."""
        found = {}
        for part in page:
            board = from_json(part.definition)
            places = definitions.partitions_of(
                part.tenant, part.leaderboard_id, board.segments, self._partitions
            )
            if not marks.keys().isdisjoint(places):
                found[part.board_key] = _Board(part, board, places)
        return found

    def _load_page(
        self, boards: Mapping[str, _Board], marks: Mapping[int, str], reporter: Reporter
    ) -> Counter[int]:
        loaded: Counter[int] = Counter()
        living = [key for key, board in boards.items() if not board.part.deleted]
        now = self._clock()
        found = [
            window
            for window in live_windows(self._conn, living)
            if window.expires_at is None or window.expires_at > now
        ]
        for low in range(0, len(found), _WINDOWS):
            filling = _Filling(self._pipe, boards, found[low : low + _WINDOWS], marks)
            ids = [window.window_id for window in found[low : low + _WINDOWS]]
            with reading(self._conn):
                for rows in entries_of(self._conn, ids, list(marks)):
                    filling.add(rows)
                    reporter.add(len(rows), moved=True)
            loaded += filling.finish(self._seconds_left)
        self._tell(boards, found, marks)
        self._settle_archived(boards, found, marks)
        return loaded

    def _tell(
        self, boards: Mapping[str, _Board], found: Sequence[WindowPart], marks: Mapping[int, str]
    ) -> None:
        """Tells Redis of definitions, and of windows that were closed meanwhile.

        Whoever is changing one of them is waited for. From then on they find the partition as it
        is here.
        """
        with self._conn.transaction():
            for part in lock_boards(self._conn, list(boards)):
                for command in definitions.restore(
                    part.tenant,
                    part.leaderboard_id,
                    part.board_key,
                    part.revision,
                    None if part.deleted else part.definition,
                    from_json(part.definition).segments,
                    self._partitions,
                    marks,
                ):
                    self._pipe.send(*command)
            still_open = {row.window_id for row in lock_open_windows(self._conn, list(boards))}
            for row in found:
                if row.is_open and row.window_id not in still_open:
                    for place in self._mine(boards[row.board_key], marks):
                        self._pipe.send(
                            *windows.close_window(place, marks[place], row.board_key, row.window)
                        )
            self._pipe.flush()
        # The node that counts the changes may be away: then workers learn of them by the fences.
        with suppress(RedisError):
            self._pipe.ask(("INCR", definitions.CHANGES_KEY))

    def _settle_archived(
        self, boards: Mapping[str, _Board], found: Sequence[WindowPart], marks: Mapping[int, str]
    ) -> None:
        """Makes archived windows what they are in the boards' other partitions: there, or not."""
        names = {(row.board_key, row.window) for row in found} | self._elsewhere(boards, marks)
        for row in archived_among(self._conn, sorted(names)):
            board = boards[row.board_key]
            ends_at = self._end_elsewhere(board, row.window, marks)
            for place in self._mine(board, marks):
                if ends_at is not None:
                    load = WindowLoad(board.definition, row.window, place, is_open=False)
                    self._load_window(load, row.window_id, marks[place], ends_at and _ARCHIVED_FOR)
                if ends_at != 0:
                    self._pipe.send(
                        *windows.expire_window(place, row.board_key, row.window, ends_at or 1)
                    )
                self._pipe.send(*windows.sweep_windows(place, row.board_key))
        self._pipe.flush()

    def _elsewhere(
        self, boards: Mapping[str, _Board], marks: Mapping[int, str]
    ) -> set[tuple[str, str]]:
        """The windows that the boards' other partitions have, by board_key and id."""
        asked = [
            (key, place)
            for key, board in boards.items()
            if not board.part.deleted
            for place in board.places
            if place not in marks
        ]
        replies = self._pipe.ask(*(("SMEMBERS", windows_key(p, key)) for key, p in asked))
        return {
            (key, window.decode())
            for (key, _), held in zip(asked, replies, strict=True)
            for window in held
        }

    def _end_elsewhere(self, board: _Board, window: str, marks: Mapping[int, str]) -> int | None:
        """When a window ends in the board's other partitions, in seconds since the epoch.

        0 for never, None if none has it.
        """
        others = [place for place in board.places if place not in marks]
        keys = [window_keys(place, board.part.board_key, window).entries for place in others]
        if not keys:
            return None
        seconds, micros = self._pipe.ask_nodes(others[:1], ("TIME",))[0]
        left = self._pipe.ask(*(("PTTL", key) for key in keys))
        there = [int(each) for each in left if each != -2]
        if not there:
            return None
        if min(there) == -1:
            return 0
        # They were given whole seconds.
        return round(int(seconds) + int(micros) / 1e6 + min(there) / 1e3)

    def _mine(self, board: _Board, marks: Mapping[int, str]) -> list[int]:
        return [place for place in board.places if place in marks]

    def _seconds_left(self, expires_at: int | None) -> int:
        """How long a window lives, as submissions would have it; 0: for good."""
        return 0 if expires_at is None else max(1, -((self._clock() - expires_at) // MICROS))


class _Filling:
    """Some windows on their way into some partitions, whose entries come in any order."""

    def __init__(
        self,
        pipe: Pipe,
        boards: Mapping[str, _Board],
        found: Sequence[WindowPart],
        marks: Mapping[int, str],
    ) -> None:
        self._pipe = pipe
        self._boards = boards
        self._marks = marks
        self._windows = {window.window_id: window for window in found}
        self._loads: dict[tuple[int, int], tuple[WindowLoad, list[Values]]] = {}
        self._waiting = 0
        self._loaded: Counter[int] = Counter()
        for window in found:
            # One that is closed is so in all partitions; an open one is where its entries are.
            if not window.is_open:
                for place in boards[window.board_key].places:
                    if place in marks:
                        self._start(window.window_id, place)

    def add(self, rows: Sequence[tuple[int, int, str, float, int, bytes]]) -> None:
        """Takes entries as `entries_of` gives them."""
        loads = self._loads
        for window_id, partition, member, score, moment, metadata in rows:
            held = loads.get((window_id, partition)) or self._start(window_id, partition)
            values = held[1]
            values.append((member, score, moment, metadata))
            if len(values) == _BATCH:
                self._waiting -= len(values) - 1
                self._send(*held)
            else:
                self._waiting += 1
        if self._waiting > _MOST_WAITING:
            self._send_all()

    def finish(self, seconds_left: Callable[[int | None], int]) -> Counter[int]:
        """Makes windows of them; gives how many entries each partition got."""
        self._send_all()
        for (window_id, partition), (load, _) in self._loads.items():
            seconds = seconds_left(self._windows[window_id].expires_at)
            self._pipe.send(*load.last(self._marks[partition], seconds))
        self._pipe.flush()
        return self._loaded

    def _start(self, window_id: int, partition: int) -> tuple[WindowLoad, list[Values]]:
        window = self._windows[window_id]
        board = self._boards[window.board_key].definition
        load = WindowLoad(board, window.window, partition, window.is_open)
        held: tuple[WindowLoad, list[Values]] = (load, [])
        self._loads[window_id, partition] = held
        return held

    def _send_all(self) -> None:
        for load, values in self._loads.values():
            if values:
                self._send(load, values)
        self._waiting = 0

    def _send(self, load: WindowLoad, values: list[Values]) -> None:
        # What is inserted in the order of its ranks finds its place sooner.
        values.sort(key=_score)
        for low in range(0, len(values), _ENTRIES):
            part = values[low : low + _ENTRIES]
            self._pipe.send(*load.more(self._marks[load.partition], part))
        self._loaded[load.partition] += len(values)
        values.clear()
