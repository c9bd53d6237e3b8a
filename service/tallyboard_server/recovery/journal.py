"""The journal as a worker writes it: one thread, one transaction for all that waits (group commit).

What comes while Redis is away, or a partition is not open, is over once it is committed. With the
durability `journaled` everything comes here first, and goes on to Redis with its row's number.
"""

import threading
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from queue import Empty, SimpleQueue
from types import MappingProxyType
from typing import Final

import psycopg
import structlog

from tallyboard_server.errors import DeadlineExceeded, Overloaded, Unavailable, shutting_down
from tallyboard_server.postgres import journal as rows
from tallyboard_server.postgres.pool import BoundedConnection, BoundedPool, TooLate, connect
from tallyboard_server.recovery.journal_flush import Entry, Item, JournalFlush, size_of
from tallyboard_server.recovery.standing import PartitionFollower
from tallyboard_server.redis.calls import (
    Amendment,
    CallToken,
    LinkSequences,
    ScriptCall,
    settle_seen,
    settle_too_old,
    unanswered,
)
from tallyboard_server.redis.flush import MERGING, call_for
from tallyboard_server.redis.operations import Part
from tallyboard_server.redis.store import RedisStore

#: Seconds that Postgres may take for one answer before it counts as away.
PATIENCE: Final = 3.0
MAX_UPDATES: Final = 20_000
_RETRY: Final = 0.5
_IDLE: Final = 0.5
_PAUSE: Final = 0.01
# Rows are applied late: a name must not outgrow its ring in Redis.
_MOST_SEQUENCES: Final = 60

_log = structlog.get_logger(__name__)


class JournalWriter:
    """Writes a worker's journal.

    `submit` and `take` may be called from any thread; all other state belongs to its own.

    Args:
        conninfo: Postgres, for a connection of its own.
        pool: more connections, for what need not be in order.
        store: where to send what is for an open partition.
        follower: is told what the transactions find.
        journals_first: whether everything is journaled before it is sent.
        max_pending: updates that may wait; more are refused.
        max_rows: rows that the journal may have; more are refused.
    """

    def __init__(
        self,
        conninfo: str,
        pool: BoundedPool,
        store: RedisStore,
        follower: PartitionFollower,
        *,
        journals_first: bool,
        max_pending: int,
        max_rows: int,
    ) -> None:
        self._conninfo = conninfo
        self._pool = pool
        self._store = store
        self._follower = follower
        self._journals_first = journals_first
        self._max_pending = max_pending
        self._max_rows = max_rows
        self._queue: SimpleQueue[Item | None] = SimpleQueue()
        self._waiting = 0  # about: read and written without a lock, bounds memory
        self._down: str | None = None
        self._is_full = False
        self._looked_at_depth = 0.0
        self._sequences = _new_name()
        self._conn: BoundedConnection | None = None
        self._connected_at = 0.0
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)
        self._thread.start()

    @property
    def down(self) -> str | None:
        """Why nothing can be journaled, or None."""
        return self._down

    def submit(self, parts: Sequence[Part], size: int) -> None:
        """Takes parts of a write.

        Raises:
            Unavailable: Postgres is away too; nothing was taken.
            Overloaded: too much waits, or the journal is full; nothing was taken.
        """
        if self._down is not None:
            raise _both_away(self._down)
        if self._is_full:
            raise Overloaded(f"the journal has {self._max_rows:,} batches, which is its limit")
        if self._waiting + size > self._max_pending:
            raise Overloaded(f"more than {self._max_pending} operations wait for the journal")
        if self._closing.is_set():
            raise shutting_down()
        self._waiting += size
        for part in parts:
            self._queue.put(part)

    def take(self, items: Sequence[Part | ScriptCall], why: str) -> None:
        """Takes over what a link could not send, or sent without an answer."""
        for item in items:
            if self._down is not None:
                _fail(item, f"{why}; {self._down}")
            else:
                self._waiting += size_of(item)
                self._queue.put(item)

    def amend(self, amendments: Sequence[Amendment]) -> None:
        """Takes parts out of the rows of their calls, before anything becomes of them."""
        for amendment in amendments:
            if self._down is not None:
                _fail(amendment, self._down)
            else:
                self._waiting += size_of(amendment)
                self._queue.put(amendment)

    def claim(self, tenant: str, request_id: str, fingerprint: bytes, deadline: float) -> bytes:
        """Notes what a request id stands for; gives what it stood for first.

        Raises:
            Unavailable: Postgres is away too.
            DeadlineExceeded: it has not answered by then, of time.monotonic().
        """
        if self._down is not None:
            raise _both_away(self._down)
        try:
            with self._pool.until(deadline) as conn:
                return rows.claim_request(conn, tenant, request_id, fingerprint)
        except TooLate as error:
            raise DeadlineExceeded(str(error)) from error
        except psycopg.Error as error:
            raise _both_away(str(error).strip()) from error

    def close(self) -> None:
        """Writes what waits, within a limit, and ends the thread."""
        self._closing.set()
        self._queue.put(None)
        self._thread.join(PATIENCE * 4)

    def _run(self) -> None:
        while not (self._closing.is_set() and self._queue.empty()):
            try:
                if self._down is not None:
                    self._try_again()
                    continue
                items = self._collect()
                if items:
                    self._write(self._plan(items))
                self._look_at_depth()
            except psycopg.Error as error:
                self._is_away(error)
            except Exception:  # the thread must live
                _log.exception("journal failed")
        self._disconnect()

    def _collect(self) -> list[Item]:
        """What waits, or what comes within a while."""
        items: list[Item] = []
        size = 0
        try:
            item = self._queue.get(timeout=_IDLE)
            while True:
                if item is not None:
                    items.append(item)
                    size += size_of(item)
                if size >= MAX_UPDATES:
                    break
                item = self._queue.get_nowait()
        except Empty:
            pass
        self._waiting = 0 if self._queue.empty() else max(0, self._waiting - size)
        return items

    def _plan(self, items: Iterable[Item]) -> JournalFlush:
        """Calls that carry all of it; those that have a token keep it."""
        entries: list[Entry] = []
        open_calls: dict[tuple[object, int], ScriptCall] = {}
        for item in items:
            if isinstance(item, Amendment):
                entries.append(Entry(item.call, over=item.over))
                continue
            if isinstance(item, ScriptCall):
                entries.append(Entry(item))
                continue
            if item.write.abandoned and not item.write.sent:
                item.done(Unavailable("given up before it was journaled"))
                continue
            item.write.sent = True
            place = (item.script, item.partition)
            held = open_calls.get(place) if item.script in MERGING else None
            if held is None or not held.takes(item):
                open_calls[place] = call = call_for(item)
                entries.append(Entry(call))
        for entry in entries:
            if entry.call.token is None:
                entry.call.token = self._take_token(entry.call.partition)
        return JournalFlush(
            entries, self._store, self._follower, journals_first=self._journals_first
        )

    def _take_token(self, partition: int) -> CallToken:
        token = self._sequences.take(partition)
        if not self._journals_first and token.sequence >= _MOST_SEQUENCES:
            self._sequences = _new_name()
        return token

    def _write(self, flush: JournalFlush) -> None:
        """Commits a flush, once more on a new connection if need be, and ends what is over."""
        for is_last in (False, True):
            try:
                conn = self._connected()
                flush.commit(conn, time.monotonic() - self._connected_at)
                break
            except psycopg.Error as error:
                self._disconnect()
                if is_last:
                    self._fail_all(flush, str(error).strip())
                    raise
            except Exception as error:
                self._disconnect()
                self._fail_all(flush, f"internal error: {type(error).__name__}")
                raise
        self._settle(flush)

    def _settle(self, flush: JournalFlush) -> None:
        """Ends what is over, and sends the rest.

        What was journaled is acknowledged when nobody takes Redis' word any more: a read must not
        miss it, and its stream must not go past it.
        """
        is_seen = self._is_seen_by_all(flush)
        for entry in flush.stays:
            if is_seen:
                _end(entry.call, flush.repeats)
            else:
                _fail(entry.call, "Postgres went away before every worker knew of it")
        for entry in flush.drained:
            _end(entry.call, flush.repeats)
        for entry in flush.lost:
            _fail(entry.item, "the answer to a commit was lost")
        self._send(flush.back)
        self._send([entry.call for entry in flush.goes_on])
        self._send([entry.call.without(entry.over or {}) for entry in flush.amended])
        for entry in flush.amended:
            for part, why in (entry.over or {}).items():
                self._store.turn_away(part, why)

    def _is_seen_by_all(self, flush: JournalFlush) -> bool:
        """Waits until every worker has seen that its partitions are closed.

        They have if Postgres was there for so long, and on this connection it was.
        """
        if not flush.hidden_for:
            return True
        time.sleep(flush.hidden_for)
        conn = self._conn
        try:
            if conn is None or conn.closed:
                return False
            conn.execute("SELECT")
            conn.rollback()
        except psycopg.Error:
            self._disconnect()
            return False
        return True

    def _send(self, items: Sequence[Part | ScriptCall]) -> None:
        if not items:
            return
        try:
            self._store.send_on(items, sum(size_of(item) for item in items))
        except (Unavailable, Overloaded) as error:
            for item in items:
                if self._closing.is_set():
                    _fail(item, str(error))
                else:
                    self._queue.put(item)
            self._closing.wait(_PAUSE)

    @staticmethod
    def _fail_all(flush: JournalFlush, why: str) -> None:
        for entry in flush.entries:
            entry.call.sent |= flush.may_be_committed and entry.row is not None
            _fail(entry.item, why)

    def _connected(self) -> BoundedConnection:
        if self._conn is None or self._conn.closed:
            self._conn = connect(self._conninfo, name="tallyboard journal")
            self._conn.answer_timeout = PATIENCE
            self._connected_at = time.monotonic()
        return self._conn

    def _disconnect(self) -> None:
        if self._conn is not None:
            self._conn.close()
            self._conn = None

    def _look_at_depth(self) -> None:
        """Once a second: whether the journal is full."""
        now = time.monotonic()
        if now - self._looked_at_depth > 1.0:
            self._looked_at_depth = now
            conn = self._connected()
            self._is_full = rows.is_full(conn, self._max_rows)
            conn.rollback()

    def _is_away(self, error: psycopg.Error) -> None:
        self._disconnect()
        if self._down is None:
            _log.warning("The journal can't be written.", why=str(error).strip())
        self._down = str(error).strip() or type(error).__name__

    def _try_again(self) -> None:
        """Fails what waits, and looks whether Postgres is back."""
        while not self._queue.empty():
            item = self._queue.get()
            if item is not None:
                _fail(item, self._down or "")
        self._waiting = 0
        if self._closing.wait(_RETRY):
            return
        self._looked_at_depth = 0.0
        self._look_at_depth()
        self._down = None
        _log.info("The journal can be written again.")


def _new_name() -> LinkSequences:
    return LinkSequences(uuid.uuid4().hex[:16])


def _both_away(why: str) -> Unavailable:
    return Unavailable(f"Redis does not take it, and neither does Postgres: {why}")


def _end(call: ScriptCall, repeats: Mapping[Part, str | None] = MappingProxyType({})) -> None:
    """Its row is committed: whatever happens, it will be applied, or was by another one.

    Args:
        repeats: see JournalFlush.
    """
    for part in call.parts:
        note = repeats.get(part, "")
        if note is None:
            settle_too_old(part)
            continue
        part.journaled = True
        if part in repeats:
            settle_seen(part, note)
        else:
            part.done()


def _fail(item: Item, why: str) -> None:
    """Ends what can't be journaled with an error that says whether it may be sent again.

    A row that is there is applied some time. But its partition is open for all that Postgres could
    be told, so reads would miss it until then: it is not acknowledged.
    """
    item = item.call if isinstance(item, Amendment) else item
    is_sent = isinstance(item, ScriptCall) and (item.sent or item.row is not None)
    for part in item.parts if isinstance(item, ScriptCall) else (item,):
        part.done(unanswered(part, why) if is_sent else _both_away(why))
