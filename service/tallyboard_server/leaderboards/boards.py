"""Definitions of leaderboards: Postgres has the say, Redis serves them, a worker holds them.

A change is committed in Postgres and then told to Redis; the keeper tells it what was left out.
Every partition of a board holds a fence with its revision, and a submission that was made under
another one is refused by the script itself: a change is in force for writes at once. For reads it
is in force when the worker sees that definitions have changed, four times a second.
"""

import builtins
import hashlib
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any, Final

import psycopg
import structlog

from tallyboard_server.errors import (
    Aborted,
    DeadlineExceeded,
    FailedPrecondition,
    NotFound,
    TallyboardError,
    Unavailable,
)
from tallyboard_server.leaderboards.definitions import from_json, locked_changes, to_json
from tallyboard_server.leaderboards.model import (
    Fallback,
    Leaderboard,
    Window,
    WindowKind,
    WindowState,
)
from tallyboard_server.leaderboards.windows import WindowCache, resolve
from tallyboard_server.postgres import leaderboards as rows
from tallyboard_server.postgres.entries import window_rows
from tallyboard_server.postgres.pool import BoundedPool, postgres_unavailable
from tallyboard_server.recovery.durable_reads import DurableReads
from tallyboard_server.redis import definitions
from tallyboard_server.redis.fences import closed
from tallyboard_server.redis.keys import (
    definition_key,
    home_partition,
    window_keys,
    windows_key,
)
from tallyboard_server.redis.store import RedisStore

_POLL: Final = 0.25
_MISSING_FOR: Final = 1.0
_MOST_HELD: Final = 10_000
_MOST_RESOLVED: Final = 256
_PURGE_STEP: Final = 20_000
_PURGE_SECONDS: Final = 2.0
_log = structlog.get_logger(__name__)


class Board:
    """A definition as a worker holds it, with what is worked out from it.

    Attributes:
        windows: finds the windows of a moment.
        plans, notes: kept by whoever submits scores (see routes.py); gone with the revision.
    """

    __slots__ = ("_resolved", "checked", "definition", "notes", "plans", "windows")

    def __init__(self, definition: Leaderboard, checked: int) -> None:
        self.definition = definition
        self.windows = WindowCache(definition)
        self.plans: dict[Any, Any] = {}
        self.notes: dict[tuple[str, str], int] = {}
        self._resolved: dict[str, tuple[int, int, Window]] = {}
        self.checked = checked

    def resolve(self, text: str, now: int) -> Window:
        """The window that a request means now, as `windows.resolve` has it, from memory."""
        known = self._resolved.get(text)
        if known is not None and known[0] <= now < known[1]:
            return known[2]
        window = resolve(self.definition, text, now)
        # What is current or previous changes only where a stretch ends.
        stretch = self.windows.stretch(now)
        if len(self._resolved) >= _MOST_RESOLVED:
            self._resolved.clear()
        self._resolved[text] = (stretch.starts_at, stretch.ends_at, window)
        return window


class Boards:
    """Definitions for one worker. Deadlines are values of `time.monotonic()`.

    Args:
        partitions: how many there are; kept for those who place boards.
        clock: the time now in µs since the epoch.
        durable: reads from Postgres what Redis can't tell.
    """

    def __init__(
        self,
        store: RedisStore,
        pool: BoundedPool,
        partitions: int,
        clock: Callable[[], int],
        durable: DurableReads | None = None,
    ) -> None:
        self._store = store
        self._pool = pool
        self._durable = durable
        self.partitions = partitions
        self._clock = clock
        # Read and replaced item by item without a lock: at worst a definition is loaded twice.
        self._held: dict[tuple[str, str], Board] = {}
        self._missing: dict[tuple[str, str], float] = {}
        self._changes: bytes | None = None
        self._generation = 0
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="boards", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the thread that looks for changes."""
        self._closing.set()
        self._thread.join(5.0)

    def get(self, tenant: str, leaderboard_id: str, deadline: float) -> Leaderboard:
        """The definition.

        Raises:
            NotFound: there is no such leaderboard.
            Unavailable: it isn't known, and no store can be asked.
        """
        return self.held(tenant, leaderboard_id, deadline).definition

    def held(self, tenant: str, leaderboard_id: str, deadline: float) -> Board:
        """The same, with what is worked out from it."""
        board = self._held.get((tenant, leaderboard_id))
        if board is not None and board.checked == self._generation:
            return board
        return self._load(tenant, leaderboard_id, deadline)

    def forget(self, tenant: str, leaderboard_id: str) -> None:
        """Loads the definition anew for whoever asks next: it was found to be out of date."""
        self._held.pop((tenant, leaderboard_id), None)
        self._missing.pop((tenant, leaderboard_id), None)

    def create(
        self, board: Leaderboard, request_id: str, deadline: float
    ) -> tuple[Leaderboard, bool]:
        """Adds a definition; gives it as it is kept, and whether this was a repeat.

        Raises:
            AlreadyExists: the tenant has one of that id.
            InvalidArgument: the request id was used with other contents.
            Unavailable: a store is away; a repeat with the same request id is safe.
        """
        now = self._clock()
        # A deleted one of that id, by a clock that was ahead, must not outrank it.
        revision = max(now, self._known_revision(board, deadline) + 1)
        board = replace(
            board, board_key=secrets.token_hex(8), revision=revision, created_at=now, updated_at=now
        )
        contents = to_json(replace(board, board_key="", revision=0, created_at=0, updated_at=0))
        with self._transaction(deadline) as conn:
            known = self._claim(conn, board.tenant, request_id, f"create\0{contents}", board)
            if known is None:
                rows.insert(conn, row_of(board))
            else:
                board = _find_by_key(conn, known)
        self._publish(board, deadline)
        return board, known is not None

    def update(
        self,
        tenant: str,
        leaderboard_id: str,
        change: Callable[[Leaderboard], Leaderboard],
        etag: str,
        request_id: str,
        contents: str,
        deadline: float,
    ) -> tuple[Leaderboard, bool]:
        """Changes a definition.

        Args:
            change: makes the new definition from the one there is; may be called more than once.
            etag: if not empty, that of the definition that is to be changed.
            contents: what the request id stands for.

        Raises:
            NotFound: there is no such leaderboard.
            Aborted: it was changed in between.
            FailedPrecondition: stored scores would change their meaning.
            TallyboardError: what `change` raises; Unavailable, as in `create`.
        """
        claim = (request_id, f"update\0{contents}")
        try:
            new, duplicate = self._update(tenant, leaderboard_id, change, etag, claim, deadline)
        except _FencesFirst as first:
            # Committed first: whatever happens then, the keeper opens the fences again.
            with self._transaction(deadline) as conn:
                rows.unsync(conn, first.board_key)
            new, duplicate = self._update(
                tenant, leaderboard_id, change, etag, claim, deadline, may_fence=True
            )
        if not duplicate:
            self._publish(new, deadline)
        return new, duplicate

    def _update(
        self,
        tenant: str,
        leaderboard_id: str,
        change: Callable[[Leaderboard], Leaderboard],
        etag: str,
        claim: tuple[str, str],
        deadline: float,
        *,
        may_fence: bool = False,
    ) -> tuple[Leaderboard, bool]:
        """The transaction of an update. It holds the row, so that nobody else moves the fences."""
        with self._transaction(deadline) as conn:
            board_key = _find(conn, tenant, leaderboard_id).board_key
            row = rows.lock_board(conn, board_key, wait=True)
            if row is None or row.deleted_at is not None:
                raise _not_found(leaderboard_id)
            old = from_json(row.definition)
            known = self._claim(conn, tenant, *claim, old)
            if known is not None:
                return _find_by_key(conn, known), True
            _check_etag(old, etag)
            now = self._clock()
            new = replace(change(old), revision=max(old.revision + 1, now), updated_at=now)
            locked = locked_changes(old, new)
            if locked:
                self._check_open(old)
            if locked and not may_fence:
                raise _FencesFirst(board_key)
            if locked:
                self._fence(old, "-", deadline)
            try:
                if locked:
                    self._check_empty(old, locked, conn, deadline)
                rows.update(conn, row_of(new), old.revision, _seasons(new))
            except TallyboardError:
                if locked:
                    self._fence(old, "", deadline)
                raise
        return new, False

    def repair(self, tenant: str, leaderboard_id: str, deadline: float) -> None:
        """Tells Redis again what Postgres has: submissions are refused though nothing changes.

        That is what a server leaves behind that died between two steps of a change.
        """
        with suppress(NotFound), self._transaction(deadline) as conn:
            found = _find(conn, tenant, leaderboard_id)
            row = rows.lock_board(conn, found.board_key, wait=False)
            if row is not None and row.deleted_at is None:
                self._tell(from_json(row.definition), deadline)

    def list(
        self, tenant: str, prefix: str, page_size: int, page_token: str, deadline: float
    ) -> "tuple[builtins.list[Leaderboard], str]":
        """A page of definitions by id, from Postgres, and the token of the next one."""
        with self._transaction(deadline) as conn:
            page = rows.list_boards(conn, tenant, prefix, page_size, page_token or None)
        return [from_json(row.definition) for row in page.rows], page.next_cursor or ""

    def delete(
        self, tenant: str, leaderboard_id: str, etag: str, request_id: str, deadline: float
    ) -> tuple[int, bool]:
        """Deletes a leaderboard with all it has; gives how many entries, and whether a repeat.

        Raises:
            NotFound, Aborted, InvalidArgument, Unavailable: see `update`.
        """
        contents = f"delete\0{leaderboard_id}\0{etag}"
        with self._transaction(deadline) as conn:
            if request_id:
                known = rows.claim_request(conn, tenant, request_id, _fingerprint(contents), "")
                if known is not None:
                    return 0, True
            row = _find(conn, tenant, leaderboard_id)
            board = from_json(row.definition)
            _check_etag(board, etag)
            deleted = rows.mark_deleted(conn, row.board_key, row.revision, self._clock())
            archived = {
                held.window.window: held.entry_count or 0
                for held in window_rows(conn, row.board_key, 1_000_000)
                if held.state is WindowState.ARCHIVED
            }
        self._publish(replace(board, revision=deleted.revision), deadline, deleted=True)
        live = self._drop_windows(board, deadline)
        self._purge(board.board_key, deadline)
        return sum((live | archived).values()), False

    def live_windows(self, board: Leaderboard, deadline: float) -> dict[str, int]:
        """The windows that Redis has data of, and how many entries."""
        places = definitions.partitions_of(
            board.tenant, board.leaderboard_id, board.segments, self.partitions
        )
        commands = [("SMEMBERS", windows_key(p, board.board_key)) for p in places]
        found = [
            (p, window.decode())
            for p, windows in zip(places, self._store.commands(commands, deadline), strict=True)
            for window in windows
        ]
        if not found:
            return {}
        sizes = self._store.commands(
            [("ZCARD", window_keys(p, board.board_key, window).ranking) for p, window in found],
            deadline,
        )
        counts: dict[str, int] = {}
        for (_, window), size in zip(found, sizes, strict=True):
            counts[window] = counts.get(window, 0) + size
        return counts

    @contextmanager
    def _transaction(self, deadline: float) -> Iterator[psycopg.Connection[Any]]:
        with postgres_unavailable(), self._pool.until(deadline) as conn:
            yield conn

    def _known_revision(self, board: Leaderboard, deadline: float) -> int:
        """The revision that Redis has of this id, deleted or not; 0 for none."""
        home = home_partition(board.tenant, board.leaderboard_id, self.partitions)
        key = definition_key(home, board.tenant, board.leaderboard_id)
        return definitions.parse_revision(self._store.get([key], deadline)[0])

    def _claim(
        self, conn: Any, tenant: str, request_id: str, contents: str, board: Leaderboard
    ) -> str | None:
        if not request_id:
            return None
        fingerprint = _fingerprint(contents)
        return rows.claim_request(conn, tenant, request_id, fingerprint, board.board_key)

    def _publish(self, board: Leaderboard, deadline: float, *, deleted: bool = False) -> None:
        """Tells Redis of a revision, and Postgres that Redis knows."""
        self._tell(board, deadline, deleted=deleted)
        with self._transaction(deadline) as conn:
            rows.mark_synced(conn, board.board_key, board.revision)

    def _tell(self, board: Leaderboard, deadline: float, *, deleted: bool = False) -> None:
        commands = definitions.publish(
            board.tenant,
            board.leaderboard_id,
            board.board_key,
            board.revision,
            None if deleted else to_json(board),
            board.segments,
            self.partitions,
        )
        try:
            self._store.commands(commands, deadline)
        finally:
            self._generation += 1
            self.forget(board.tenant, board.leaderboard_id)

    def _fence(self, board: Leaderboard, mark: str, deadline: float) -> None:
        commands = definitions.fence(
            board.tenant,
            board.leaderboard_id,
            board.board_key,
            board.revision,
            mark,
            board.segments,
            self.partitions,
        )
        self._store.commands(commands, deadline)

    def _check_open(self, board: Leaderboard) -> None:
        """Checks that no scores wait in a journal: they were acknowledged under this definition.

        Raises:
            Unavailable: a partition of the board is not open.
        """
        for partition in definitions.partitions_of(
            board.tenant, board.leaderboard_id, board.segments, self.partitions
        ):
            if self._store.fences.expected(partition) is None:
                raise closed(partition)

    def _check_empty(
        self, board: Leaderboard, changes: "builtins.list[str]", conn: Any, deadline: float
    ) -> None:
        live = self.live_windows(board, deadline)
        if any(live.values()) or rows.has_entries(conn, board.board_key):
            raise FailedPrecondition(
                f"the leaderboard has entries: {', '.join(changes)} can't be changed",
                reason="DEFINITION_LOCKED",
            )

    def _drop_windows(self, board: Leaderboard, deadline: float) -> dict[str, int]:
        counts: dict[str, int] = {}
        for partition in definitions.partitions_of(
            board.tenant, board.leaderboard_id, board.segments, self.partitions
        ):
            left = 1
            while left:
                command = definitions.drop_windows(partition, board.board_key)
                left, dropped = self._store.commands([command], deadline)[0]
                for window, size in zip(dropped[::2], dropped[1::2], strict=True):
                    counts[window.decode()] = counts.get(window.decode(), 0) + size
        return counts

    def _purge(self, board_key: str, deadline: float) -> None:
        """Removes rows for a while; the keeper goes on with what is left."""
        until = time.monotonic() + _PURGE_SECONDS
        with suppress(DeadlineExceeded):
            while time.monotonic() < until:
                with self._transaction(deadline) as conn:
                    if rows.purge(conn, board_key, _PURGE_STEP):
                        return

    def _load(self, tenant: str, leaderboard_id: str, deadline: float) -> Board:
        name = (tenant, leaderboard_id)
        if self._missing.get(name, 0.0) > time.monotonic():
            raise _not_found(leaderboard_id)
        generation, before = self._generation, self._held.get(name)
        durable, until = self._durable, deadline
        if durable is not None:
            until = durable.live_deadline(Fallback.ANY_AGE, None, deadline)
        try:
            definition = self._read(tenant, leaderboard_id, until)
        except (DeadlineExceeded, Unavailable) as error:
            if before is not None:
                return before  # serving goes on with what is known
            if durable is None or not durable.may_answer(error, Fallback.ANY_AGE, None):
                raise
            with durable.reading(deadline) as conn:
                row = rows.find(conn, tenant, leaderboard_id)
            definition = None if row is None else from_json(row.definition)
        if definition is None:
            self._held.pop(name, None)
            if len(self._missing) >= _MOST_HELD:
                self._missing.clear()
            self._missing[name] = time.monotonic() + _MISSING_FOR
            raise _not_found(leaderboard_id)
        if before is not None and before.definition.revision == definition.revision:
            before.checked = generation
            return before
        if len(self._held) >= _MOST_HELD:
            self._held.clear()
        self._held[name] = board = Board(definition, generation)
        return board

    def _read(self, tenant: str, leaderboard_id: str, deadline: float) -> Leaderboard | None:
        """The definition as Redis has it, which has all of them: the keeper sees to it."""
        home = home_partition(tenant, leaderboard_id, self.partitions)
        key = definition_key(home, tenant, leaderboard_id)
        text = definitions.parse_definition(self._store.get([key], deadline, (home,))[0])
        return None if text is None else from_json(text)

    def _follow(self) -> None:
        """Looks whether definitions have changed, until closed."""
        while not self._closing.wait(_POLL):
            try:
                self._look()
            except TallyboardError:
                pass  # Redis is away: what is held stays in force
            except Exception:
                _log.exception("definitions could not be followed")

    def _look(self) -> None:
        changes = self._store.get([definitions.CHANGES_KEY], time.monotonic() + 1.0)[0]
        if changes != self._changes:
            self._changes = changes
            self._generation += 1
            self._missing.clear()


class _FencesFirst(Exception):
    """A change that is allowed only without entries wants submissions kept away first."""

    def __init__(self, board_key: str) -> None:
        super().__init__(board_key)
        self.board_key = board_key


def row_of(board: Leaderboard) -> rows.BoardRow:
    """A definition as Postgres keeps it."""
    return rows.BoardRow(
        board.board_key,
        board.tenant,
        board.leaderboard_id,
        to_json(board),
        board.revision,
        board.sort_order,
        board.tie_break,
        board.late_grace,
        board.retention,
        board.created_at,
        board.updated_at,
    )


def _seasons(board: Leaderboard) -> list[Window]:
    return [
        Window(season.name, WindowKind.SEASON, season.starts_at, season.ends_at)
        for season in board.seasons
    ]


def _find(conn: Any, tenant: str, leaderboard_id: str) -> rows.BoardRow:
    row = rows.find(conn, tenant, leaderboard_id)
    if row is None:
        raise _not_found(leaderboard_id)
    return row


def _find_by_key(conn: Any, board_key: str) -> Leaderboard:
    """The definition of a repeat's board."""
    for row in rows.find_by_keys(conn, [board_key]):
        if row.deleted_at is None:
            return from_json(row.definition)
    raise NotFound("the leaderboard of this request was deleted since")


def _not_found(leaderboard_id: str) -> NotFound:
    return NotFound(f"there is no leaderboard {leaderboard_id!r}")


def _check_etag(board: Leaderboard, etag: str) -> None:
    if etag and etag != board.etag:
        raise Aborted("the leaderboard has changed since its etag was read; read it again")


def _fingerprint(contents: str) -> bytes:
    return hashlib.blake2b(contents.encode(), digest_size=12).digest()
