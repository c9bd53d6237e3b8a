"""Taking entries away: from windows that Redis has, and from archives and snapshots in Postgres.

Redis goes first, and the marks of what has changed stay until Postgres has let go of the member
too: a server that dies in between leaves a member that the next checkpoint removes.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

from tallyboard_server.counters.model import MakeDurable
from tallyboard_server.counters.requests import RequestIds
from tallyboard_server.errors import NotFound
from tallyboard_server.leaderboards.boards import Boards
from tallyboard_server.leaderboards.listing import ALL_WINDOWS
from tallyboard_server.leaderboards.model import Leaderboard, TieBreak, Window, WindowState
from tallyboard_server.leaderboards.windows import has_started, is_open, resolve
from tallyboard_server.postgres.checkpoints import lock_partition
from tallyboard_server.postgres.entries import (
    RANKING_TIMEOUT,
    Erased,
    delete_member,
    erase_member,
    find_window,
    window_rows,
)
from tallyboard_server.postgres.pool import BoundedPool, postgres_unavailable
from tallyboard_server.redis import scripts
from tallyboard_server.redis.fences import closed
from tallyboard_server.redis.keys import (
    dirty_key,
    segment_of,
    segment_partition,
    window_keys,
    windows_key,
)
from tallyboard_server.redis.operations import Write
from tallyboard_server.redis.removals import Removal, RemovalPart
from tallyboard_server.redis.store import RedisStore

_BOARDS_A_PAGE: Final = 1_000
_LOCK_WAIT: Final = 5.0


class _Place(NamedTuple):
    """Where Redis has, or may have, an entry of the member."""

    board: Leaderboard
    partition: int
    window: str

    @property
    def name(self) -> tuple[str, str]:
        """The window among all boards."""
        return self.board.board_key, self.window


class _Erased:
    """What an erasure has removed so far."""

    def __init__(self) -> None:
        self.live = self.archived = self.parts = self.repeats = 0
        self.boards: set[str] = set()

    def add(self, found: Erased) -> None:
        """Counts what went from Postgres alone."""
        self.archived += found.archived + found.snapshots
        self.boards |= found.boards


class Removals:
    """Deletions for one worker. Deadlines are values of `time.monotonic()`."""

    def __init__(
        self,
        store: RedisStore,
        pool: BoundedPool,
        boards: Boards,
        requests: RequestIds,
        clock: Callable[[], int],
        make_durable: MakeDurable | None = None,
    ) -> None:
        self._store = store
        self._pool = pool
        self._boards = boards
        self._requests = requests
        self._clock = clock
        self._make_durable = make_durable

    def delete(
        self,
        tenant: str,
        leaderboard_id: str,
        member: str,
        text: str,
        request_id: str,
        deadline: float,
    ) -> tuple[int, int, bool]:
        """Deletes a member's entry from one window of a board, or (text empty) from all.

        Returns:
            how many entries went from live windows, how many from archives, whether a repeat.

        Raises:
            NotFound: no such leaderboard, or nothing is kept of the window.
            InvalidArgument: WINDOW_INVALID, REQUEST_ID_REUSED.
            Unavailable: a store is away.
        """
        contents = f"delete-entry\0{leaderboard_id}\0{member}\0{text}"
        if request_id and self._requests.claim(tenant, request_id, contents, deadline):
            return 0, 0, True
        board = self._boards.get(tenant, leaderboard_id, deadline)
        window = resolve(board, text, self._clock()) if text else None
        partition = self._partition(board, member)
        self._check_open(partition)
        self._settle_journal(partition, deadline)
        with self._locked([partition], deadline) as conn:
            archived = _archived(conn, board, window)
            places = list(self._places([board], member, deadline))
            if window is not None:
                places = [place for place in places if place.window == window.window]
                if not places:
                    self._check_known(conn, board, window, deadline)
            counts, duplicate = self._remove(places, tenant, member, request_id, deadline)
            name = None if window is None else window.window
            left = _left(deadline)
            erased = delete_member(conn, board.board_key, name, member, timeout=left)
        self._forget(places, member, deadline)
        if request_id:
            self._requests.complete(tenant, request_id, contents, deadline)
        if duplicate:
            return 0, 0, True
        live = sum(count for (_, held), count in counts.items() if held not in archived)
        return live, erased.archived, False

    def erase(
        self, tenant: str, member: str, request_id: str, deadline: float
    ) -> tuple[int, int, int, bool]:
        """Erases a member from every board of the tenant, archives and snapshots included.

        Returns:
            from how many boards something went, how many entries from live windows, how many from
            archives and snapshots, whether this was a repeat.

        Raises:
            Unavailable: a store is away; a repeat goes on where it ended.
        """
        contents = f"erase\0{member}"
        if request_id and self._requests.claim(tenant, request_id, contents, deadline):
            return 0, 0, 0, True
        by_partition: defaultdict[int, list[Leaderboard]] = defaultdict(list)
        for board in self._all_boards(tenant, deadline):
            by_partition[self._partition(board, member)].append(board)
        erased = _Erased()
        for partition in sorted(by_partition):
            self._erase_in(partition, by_partition[partition], member, request_id, deadline, erased)
        with self._locked([], deadline) as conn:
            # No entries are left; what this finds is in snapshots and in boards just deleted.
            erased.add(erase_member(conn, tenant, member, timeout=_left(deadline)))
        if request_id:
            self._requests.complete(tenant, request_id, contents, deadline)
        if erased.parts and erased.repeats == erased.parts:
            return 0, 0, 0, True
        return len(erased.boards), erased.live, erased.archived, False

    def _erase_in(
        self,
        partition: int,
        boards: list[Leaderboard],
        member: str,
        request_id: str,
        deadline: float,
        erased: "_Erased",
    ) -> None:
        """Erases a member from the boards that have it in one partition."""
        self._check_open(partition)
        self._settle_journal(partition, deadline)
        with self._locked([partition], deadline) as conn:
            places = list(self._places(boards, member, deadline))
            archived = {
                (board.board_key, window) for board in boards for window in _archived(conn, board)
            }
            counts, repeat = self._remove(places, boards[0].tenant, member, request_id, deadline)
            for board in boards:
                left = _left(deadline)
                erased.add(delete_member(conn, board.board_key, None, member, timeout=left))
        self._forget(places, member, deadline)
        erased.parts += bool(places)
        erased.repeats += repeat
        for name, count in counts.items():
            if count:
                erased.boards.add(name[0])
                erased.live += name not in archived

    def _all_boards(self, tenant: str, deadline: float) -> Iterator[Leaderboard]:
        token = ""
        while True:
            boards, token = self._boards.list(tenant, "", _BOARDS_A_PAGE, token, deadline)
            yield from boards
            if not token:
                return

    def _partition(self, board: Leaderboard, member: str) -> int:
        partitions = self._boards.partitions
        segments = min(board.segments, partitions)
        return segment_partition(
            board.tenant, board.leaderboard_id, segment_of(member, segments), partitions
        )

    def _places(
        self, boards: Iterable[Leaderboard], member: str, deadline: float
    ) -> Iterator[_Place]:
        homes = [(board, self._partition(board, member)) for board in boards]
        if not homes:
            return
        commands = [("SMEMBERS", windows_key(p, board.board_key)) for board, p in homes]
        for (board, partition), windows in zip(
            homes, self._store.commands(commands, deadline), strict=True
        ):
            for window in windows:
                yield _Place(board, partition, window.decode())

    def _check_open(self, partition: int) -> None:
        """Checks that no scores wait in the journal: they would come back behind the removal.

        Raises:
            Unavailable: the partition is not open.
        """
        if self._store.fences.expected(partition) is None:
            raise closed(partition)

    def _settle_journal(self, partition: int, deadline: float) -> None:
        """Has the journal let go of what Redis has applied.

        Otherwise a rebuild would apply scores of the member again that came before the removal.
        """
        if self._make_durable is not None:
            self._make_durable((partition,), deadline)

    def _remove(
        self, places: list[_Place], tenant: str, member: str, request_id: str, deadline: float
    ) -> tuple[dict[tuple[str, str], int], bool]:
        """Removes the member in Redis; gives how many entries went, by board_key and window."""
        by_partition: defaultdict[int, list[_Place]] = defaultdict(list)
        for place in places:
            by_partition[place.partition].append(place)
        parts: list[RemovalPart] = []

        def add(write: Write) -> None:
            for partition, mine in by_partition.items():
                token = None
                if request_id:
                    token = self._requests.token(partition, tenant, request_id)
                removals = [_removal(place, member) for place in mine]
                part = RemovalPart(write, partition, removals, token)
                parts.append(part)
                write.add(part)

        write = self._store.write(add, None, deadline)
        counts: dict[tuple[str, str], int] = {}
        for part, mine in zip(parts, by_partition.values(), strict=True):
            counts.update(zip((place.name for place in mine), part.counts, strict=False))
        return counts, bool(parts) and write.duplicate

    def _forget(self, places: list[_Place], member: str, deadline: float) -> None:
        """Takes back the marks: Postgres knows."""
        commands: list[tuple[Any, ...]] = []
        for board, partition, window in places:
            keys = window_keys(partition, board.board_key, window)
            named = (keys.entries, keys.dirty, keys.in_flight, dirty_key(partition))
            commands.append(("EVALSHA", scripts.FORGET.sha, len(named), *named, member))
        if commands:
            self._store.commands(commands, deadline)

    @contextmanager
    def _locked(self, partitions: list[int], deadline: float) -> Iterator[Any]:
        """A transaction that keeps checkpoints off these partitions."""
        with postgres_unavailable(), self._pool.until(deadline) as conn:
            for partition in partitions:
                lock_partition(conn, partition, _LOCK_WAIT)
            yield conn

    def _check_known(self, conn: Any, board: Leaderboard, window: Window, deadline: float) -> None:
        """Checks a window that the member's segment does not have: another may."""
        now = self._clock()
        if has_started(window, now) and is_open(board, window, now):
            return
        if find_window(conn, board.board_key, window.window) is not None:
            return
        if window.window not in self._boards.live_windows(board, deadline):
            raise NotFound("nothing is kept of this window", reason="WINDOW_NOT_FOUND")


def _left(deadline: float) -> float:
    """Seconds that a statement may take: until the deadline, within limits."""
    return min(RANKING_TIMEOUT, max(0.1, deadline - time.monotonic()))


def _removal(place: _Place, member: str) -> Removal:
    board = place.board
    return Removal(
        window_keys(place.partition, board.board_key, place.window),
        board.is_descending,
        board.tie_break is TieBreak.EARLIEST,
        member,
    )


def _archived(conn: Any, board: Leaderboard, window: Window | None = None) -> set[str]:
    """The board's archived windows, or the one if it is."""
    if window is not None:
        row = find_window(conn, board.board_key, window.window)
        rows = [] if row is None else [row]
    else:
        rows = window_rows(conn, board.board_key, ALL_WINDOWS)
    return {row.window.window for row in rows if row.state is WindowState.ARCHIVED}
