"""The journal as a worker writes it: one thread, one transaction for all that waits (group commit).

What comes while Redis is away, or a partition is not open, is over once it is committed. With the
durability `journaled` everything comes here first, and goes on to Redis with its row's number.
"""

import threading
import time
import uuid
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from types import MappingProxyType
from typing import Final

import psycopg
import structlog
from prometheus_client import Counter
from psycopg_pool import ConnectionPool

from tallyboard_server.errors import Overloaded, Unavailable, shutting_down
from tallyboard_server.postgres import journal as rows
from tallyboard_server.postgres.journal import OPEN, Batch, Standing, TokenOf
from tallyboard_server.postgres.pool import BoundedConnection, connect
from tallyboard_server.recovery import overlay
from tallyboard_server.recovery.batches import encode, increments_of, scores_of, tokens_in
from tallyboard_server.recovery.standing import FOUND_BY_ALL, SEEN_BY_ALL, PartitionFollower
from tallyboard_server.redis import scripts
from tallyboard_server.redis.calls import (
    PRODUCER_RING,
    Amendment,
    CallToken,
    LinkSequences,
    ScriptCall,
    Why,
    settle_seen,
    unanswered,
)
from tallyboard_server.redis.flush import MERGING, call_for
from tallyboard_server.redis.operations import Part
from tallyboard_server.redis.rings import parse_slot
from tallyboard_server.redis.store import RedisStore

#: Seconds that Postgres may take for one answer before it counts as away.
PATIENCE: Final = 3.0
MAX_UPDATES: Final = 20_000
_RETRY: Final = 0.5
_IDLE: Final = 0.5
_PAUSE: Final = 0.01
# Rows are applied late: a name must not outgrow its ring in Redis.
_MOST_SEQUENCES: Final = 60

_BATCHES = Counter("tallyboard_journaled_batches", "Batches that were written to the journal.")
_UPDATES = Counter("tallyboard_journaled_updates", "Updates that were written to the journal.")
_log = structlog.get_logger(__name__)


_Item = Part | ScriptCall | Amendment


@dataclass(eq=False)
class _Entry:
    """A call on its way to the journal.

    Attributes:
        row: the number of its row.
        over: of a call that has a row, parts that have to leave it.
        may_be_amended: whether a transaction that takes them out may be committed.
    """

    call: ScriptCall
    row: int | None = None
    over: dict[Part, Why] | None = None
    may_be_amended: bool = False

    @property
    def number(self) -> int:
        """The number of the row that it has."""
        number = self.call.row or self.row
        assert number is not None
        return number


@dataclass
class _Flush:
    """What one transaction writes, and what becomes of it.

    Attributes:
        stays: over once it is committed.
        goes_on: sent to Redis then.
        drained: in the journal for so long that the keeper has applied them.
        back: not journaled, for Redis takes it after all.
        amended: calls whose rows lose some of their parts; what is left goes on.
        lost: calls of which nobody can tell whether their rows have these parts.
        repeats: parts whose tokens the journal has already, and the notes that it keeps with them;
            they are written all the same, for only Redis can tell whether the first one was
            applied, and count for reads once.
        may_be_committed: whether a commit was begun.
        closed: what Postgres says of the partitions that it closes.
        hidden_for: seconds for which some worker may still think that a partition is open.
    """

    entries: list[_Entry]
    stays: list[_Entry] = field(default_factory=list)
    goes_on: list[_Entry] = field(default_factory=list)
    drained: list[_Entry] = field(default_factory=list)
    back: list[Part] = field(default_factory=list)
    amended: list[_Entry] = field(default_factory=list)
    lost: list[_Entry] = field(default_factory=list)
    repeats: dict[Part, str] = field(default_factory=dict)
    may_be_committed: bool = False
    closed: list[Standing] = field(default_factory=list)
    hidden_for: float = 0.0


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
        pool: ConnectionPool[BoundedConnection],
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
        self._queue: SimpleQueue[_Item | None] = SimpleQueue()
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
                self._waiting += _size(item)
                self._queue.put(item)

    def amend(self, amendments: Sequence[Amendment]) -> None:
        """Takes parts out of the rows of their calls, before anything becomes of them."""
        for amendment in amendments:
            if self._down is not None:
                _fail(amendment, self._down)
            else:
                self._waiting += _size(amendment)
                self._queue.put(amendment)

    def claim(self, tenant: str, request_id: str, fingerprint: bytes) -> bytes:
        """Notes what a request id stands for; gives what it stood for first.

        Raises:
            Unavailable: Postgres is away too.
        """
        if self._down is not None:
            raise _both_away(self._down)
        try:
            with self._pool.connection() as conn:
                return rows.claim_request(conn, tenant, request_id, fingerprint)
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
                    self._write(_Flush(self._plan(items)))
                self._look_at_depth()
            except psycopg.Error as error:
                self._is_away(error)
            except Exception:  # the thread must live
                _log.exception("journal failed")
        self._disconnect()

    def _collect(self) -> list[_Item]:
        """What waits, or what comes within a while."""
        items: list[_Item] = []
        size = 0
        try:
            item = self._queue.get(timeout=_IDLE)
            while True:
                if item is not None:
                    items.append(item)
                    size += _size(item)
                if size >= MAX_UPDATES:
                    break
                item = self._queue.get_nowait()
        except Empty:
            pass
        self._waiting = 0 if self._queue.empty() else max(0, self._waiting - size)
        return items

    def _plan(self, items: Iterable[_Item]) -> list[_Entry]:
        """Calls that carry all of it; those that have a token keep it."""
        entries: list[_Entry] = []
        open_calls: dict[tuple[object, int], ScriptCall] = {}
        for item in items:
            if isinstance(item, Amendment):
                entries.append(_Entry(item.call, over=item.over))
                continue
            if isinstance(item, ScriptCall):
                entries.append(_Entry(item))
                continue
            if item.write.abandoned and not item.write.sent:
                item.done(Unavailable("given up before it was journaled"))
                continue
            item.write.sent = True
            place = (item.script, item.partition)
            held = open_calls.get(place) if item.script in MERGING else None
            if held is None or not held.takes(item):
                open_calls[place] = call = call_for(item)
                entries.append(_Entry(call))
        for entry in entries:
            if entry.call.token is None:
                entry.call.token = self._take_token(entry.call.partition)
        return entries

    def _take_token(self, partition: int) -> CallToken:
        token = self._sequences.take(partition)
        if not self._journals_first and token.sequence >= _MOST_SEQUENCES:
            self._sequences = _new_name()
        return token

    def _write(self, flush: _Flush) -> None:
        """Commits a flush, once more on a new connection if need be, and ends what is over."""
        for is_last in (False, True):
            try:
                self._commit(flush)
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

    def _commit(self, flush: _Flush) -> None:
        """The transaction; after a commit whose fate is unknown it changes nothing twice."""
        flush.stays, flush.goes_on, flush.drained = [], [], []
        flush.back, flush.amended, flush.lost = [], [], []
        conn = self._connected()
        partitions = {entry.call.partition for entry in flush.entries}
        rows.lock_shared(conn, partitions)
        # Without Redis all partitions are closed at once, so that only the first batch waits.
        which = None if self._store.away is not None else partitions
        self._sort(conn, flush, rows.read_standings(conn, which))
        new = [entry for entry in [*flush.stays, *flush.goes_on] if entry.call.row is None]
        is_new = not (flush.may_be_committed and self._are_there(conn, new))
        if is_new:
            self._add(conn, flush, new)
        self._show(conn, flush, new if is_new else ())
        for entry in flush.amended:
            self._rewrite(conn, entry)
        flush.may_be_committed = True
        conn.commit()
        self._follower.notice(flush.closed)
        for entry in new:
            entry.call.row = entry.row
        _BATCHES.inc(len(new))
        _UPDATES.inc(sum(_size(entry.call) for entry in new))

    def _sort(self, conn: BoundedConnection, flush: _Flush, standings: Sequence[Standing]) -> None:
        """Decides what stays, and has its partitions journaled for."""
        self._follower.notice(standings)
        open_ones = {standing.partition for standing in standings if standing.state == OPEN}
        usable = {
            standing.partition: standing
            for standing in standings
            if standing.partition in open_ones
            and self._store.away is None
            and self._store.fences.expected(standing.partition) == standing.incarnation
        }
        for entry in flush.entries:
            call = entry.call
            standing = usable.get(call.partition)
            is_as_it_was = standing is not None and standing.changes == call.changes
            if entry.over is not None and is_as_it_was:
                flush.amended.append(entry)
            elif entry.may_be_amended:
                flush.lost.append(entry)
            elif standing is None or entry.over is not None:
                # A row that is whole is applied whole, or was, when its partition was drained.
                flush.stays.append(entry)
            elif call.row is not None and not is_as_it_was:
                # Its partition was drained since, and the row may be gone: in another life of it
                # nothing would tell that it was applied.
                flush.drained.append(entry)
            elif self._journals_first:
                call.changes, call.incarnation = standing.changes, standing.incarnation
                flush.goes_on.append(entry)
            elif call.sent or (flush.may_be_committed and entry.row is not None):
                # Redis or the journal may have it: under another token it could count twice.
                flush.stays.append(entry)
            else:
                flush.back += call.parts
        staying = {entry.call.partition for entry in flush.stays}
        ages = [0.0 if s.state == OPEN else s.age for s in standings if s.partition in staying]
        since_found = time.monotonic() - self._connected_at
        flush.hidden_for = 0.0
        if staying:
            flush.hidden_for = max(
                0.0, SEEN_BY_ALL - min(ages, default=0.0), FOUND_BY_ALL - since_found
            )
        is_away = bool(staying) and self._store.away is not None
        began = overlay.begin(conn, open_ones if is_away else staying & open_ones)
        flush.closed = rows.read_standings(conn, began) if began else []

    def _add(self, conn: BoundedConnection, flush: _Flush, new: Sequence[_Entry]) -> None:
        """Adds the rows."""
        if not new:
            return
        unnumbered = [entry for entry in new if entry.row is None]
        for entry, number in zip(unnumbered, rows.new_ids(conn, len(unnumbered)), strict=True):
            entry.row = number
        flush.repeats = _repeats(conn, new)
        if self._journals_first:
            flush.repeats |= _checkpointed(conn, new)
        batches, increments = [], []
        for entry in new:
            call, token = entry.call, entry.call.token
            assert entry.row is not None
            assert token is not None
            batches.append(
                Batch(
                    entry.row,
                    call.partition,
                    token.link,
                    token.sequence,
                    encode(call, flush.repeats),
                    _size(call),
                )
            )
            increments += [
                (entry.row, increment) for increment in increments_of(call, flush.repeats)
            ]
        rows.add_batches(conn, batches, increments, {e.row for e in flush.stays if e.row})

    @staticmethod
    def _show(conn: BoundedConnection, flush: _Flush, new: Sequence[_Entry]) -> None:
        """Adds the scores of what stays to what reads see, each row once."""
        scored = [entry for entry in flush.stays if entry.call.script is scripts.SUBMIT]
        # A row that was there may have been added when its partition was first journaled for.
        added = {entry.number for entry in new}
        hidden = added | rows.show(conn, {entry.number for entry in scored} - added)
        overlay.add(
            conn,
            [
                (entry.call.partition, scores)
                for entry in scored
                if entry.number in hidden
                for scores in scores_of(entry.call, flush.repeats)
            ],
        )

    @staticmethod
    def _rewrite(conn: BoundedConnection, entry: _Entry) -> None:
        """Takes parts out of a row.

        Nobody applies it meanwhile: whoever drains a partition waits first for all who found it
        open, and since the row was written it has been open.
        """
        over = entry.over or {}
        left = entry.call.without(over)
        rows.rewrite_batch(
            conn, entry.number, encode(left), _size(left), list(increments_of(left)),
            [_token_of(part) for part in over if part.token is not None],
        )  # fmt: skip
        entry.may_be_amended = True

    @staticmethod
    def _are_there(conn: BoundedConnection, entries: Sequence[_Entry]) -> bool:
        ids = [entry.row for entry in entries if entry.row is not None]
        return bool(ids) and bool(rows.batches_by_id(conn, ids))

    def _settle(self, flush: _Flush) -> None:
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
            _fail(Amendment(entry.call, entry.over or {}), "the answer to a commit was lost")
        self._send(flush.back)
        self._send([entry.call for entry in flush.goes_on])
        self._send([entry.call.without(entry.over or {}) for entry in flush.amended])
        for entry in flush.amended:
            for part, why in (entry.over or {}).items():
                self._store.turn_away(part, why)

    def _is_seen_by_all(self, flush: _Flush) -> bool:
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
            self._store.send_on(items, sum(_size(item) for item in items))
        except (Unavailable, Overloaded) as error:
            for item in items:
                if self._closing.is_set():
                    _fail(item, str(error))
                else:
                    self._queue.put(item)
            self._closing.wait(_PAUSE)

    @staticmethod
    def _fail_all(flush: _Flush, why: str) -> None:
        for entry in flush.entries:
            entry.call.sent |= flush.may_be_committed and entry.row is not None
            _fail(entry.call if entry.over is None else Amendment(entry.call, entry.over), why)

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


def _size(item: _Item) -> int:
    if isinstance(item, Amendment):
        item = item.call
    if isinstance(item, ScriptCall):
        return sum(part.items for part in item.parts)
    return item.items


def _token_of(part: Part) -> TokenOf:
    assert part.token is not None
    return TokenOf(part.token.key, int(part.token.sequence or 0))


def _repeats(conn: BoundedConnection, entries: Sequence[_Entry]) -> dict[Part, str]:
    """Parts whose tokens another row, or another part of these, has already; with their notes."""
    parts = [
        (part, entry.row)
        for entry in entries
        for part in entry.call.parts
        if part.token is not None and entry.row is not None
    ]
    claimed: dict[TokenOf, tuple[Part, int]] = {}
    for part, row in parts:
        claimed.setdefault(_token_of(part), (part, row))
    if not claimed:
        return {}
    held = rows.claim_tokens(conn, [(token, row) for token, (_, row) in claimed.items()])
    notes = _notes(conn, {row for token, row in held.items() if claimed[token][1] != row})
    repeats, others = {}, []
    for part, row in parts:
        token = _token_of(part)
        first = claimed[token][0]
        if held[token] != row:
            repeats[part] = notes.get(token, "")
            others.append((token, row))
        elif first is not part and first.token is not None:
            repeats[part] = first.token.note
    if others:
        rows.note_repeats(conn, others)
    return repeats


def _checkpointed(conn: BoundedConnection, entries: Sequence[_Entry]) -> dict[Part, str]:
    """Parts that a checkpoint has already, as their tokens say; with their notes.

    Their rows are gone, and reads would count them a second time.
    """
    parts = [(part, part.token) for entry in entries for part in entry.call.parts if part.token]
    if not parts:
        return {}
    held = rows.checkpointed_tokens(conn, {(part.partition, token.key) for part, token in parts})
    repeats = {}
    for part, token in parts:
        slot = str(int(token.sequence) % PRODUCER_RING).encode() if token.kind == "p" else b""
        value = held.get(token.key, {}).get(slot)
        if value is None:
            continue
        if token.kind != "p":
            repeats[part] = value.decode()
        elif (held_slot := parse_slot(value)) and held_slot.newest == int(token.sequence):
            repeats[part] = held_slot.note.decode()
    return repeats


def _notes(conn: BoundedConnection, ids: Collection[int]) -> dict[TokenOf, str]:
    """What is kept with the tokens of rows."""
    batches = rows.batches_by_id(conn, ids) if ids else []
    return {
        TokenOf(token.key, int(token.sequence or 0)): token.note
        for batch in batches
        for token in tokens_in(batch.text)
    }


def _end(call: ScriptCall, repeats: Mapping[Part, str] = MappingProxyType({})) -> None:
    """Its row is committed: whatever happens, it will be applied."""
    for part in call.parts:
        part.journaled = True
        if part in repeats:
            settle_seen(part, repeats[part])
        else:
            part.done()


def _fail(item: _Item, why: str) -> None:
    """Ends what can't be journaled with an error that says whether it may be sent again.

    A row that is there is applied some time. But its partition is open for all that Postgres could
    be told, so reads would miss it until then: it is not acknowledged.
    """
    item = item.call if isinstance(item, Amendment) else item
    is_sent = isinstance(item, ScriptCall) and (item.sent or item.row is not None)
    for part in item.parts if isinstance(item, ScriptCall) else (item,):
        part.done(unanswered(part, why) if is_sent else _both_away(why))
