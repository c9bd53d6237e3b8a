"""What one transaction of a worker's journal writes, and what becomes of it after the commit."""

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass

from prometheus_client import Counter

from tallyboard_server.postgres import journal as rows
from tallyboard_server.postgres.journal import OPEN, Batch, Standing, TokenOf
from tallyboard_server.postgres.pool import BoundedConnection
from tallyboard_server.recovery import overlay, repeats
from tallyboard_server.recovery.batches import encode, increments_of, scores_in, scores_of
from tallyboard_server.recovery.standing import FOUND_BY_ALL, SEEN_BY_ALL, PartitionFollower
from tallyboard_server.redis import scripts
from tallyboard_server.redis.calls import Amendment, ScriptCall, Why
from tallyboard_server.redis.operations import Part
from tallyboard_server.redis.store import RedisStore

_BATCHES = Counter("tallyboard_journaled_batches", "Batches written to the journal.")
_UPDATES = Counter("tallyboard_journaled_updates", "Updates written to the journal.")

Item = Part | ScriptCall | Amendment


@dataclass(eq=False)
class Entry:
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

    @property
    def item(self) -> Item:
        """What it was made for."""
        return self.call if self.over is None else Amendment(self.call, self.over)


class JournalFlush:
    """Entries that are written together. It belongs to the journal's thread.

    Args:
        entries: all calls with tokens.
        store: tells which partitions' nodes are away, and which lives of partitions it expects.
        follower: is told what the transaction finds.
        journals_first: whether everything is journaled before it is sent.

    Attributes:
        stays: over once it is committed.
        goes_on: sent to Redis then.
        drained: in the journal for so long that the keeper has applied them.
        back: not journaled, for Redis takes it after all.
        amended: calls whose rows lose some of their parts; what is left goes on.
        lost: calls of which nobody can tell whether their rows have these parts.
        repeats: parts whose tokens the journal or a checkpoint has already, and the notes that are
            kept with them; None of those that are too old for anybody to tell.
        may_be_committed: whether a commit was begun.
        hidden_for: seconds for which some worker may still think that a partition is open.
    """

    def __init__(
        self,
        entries: list[Entry],
        store: RedisStore,
        follower: PartitionFollower,
        *,
        journals_first: bool,
    ) -> None:
        self.entries = entries
        self._store = store
        self._follower = follower
        self._journals_first = journals_first
        self.repeats: dict[Part, str | None] = {}
        self.may_be_committed = False
        self._clear()

    def _clear(self) -> None:
        self.stays: list[Entry] = []
        self.goes_on: list[Entry] = []
        self.drained: list[Entry] = []
        self.back: list[Part] = []
        self.amended: list[Entry] = []
        self.lost: list[Entry] = []
        self.hidden_for = 0.0

    def commit(self, conn: BoundedConnection, connected_for: float) -> None:
        """The transaction; after a commit whose fate is unknown it changes nothing twice.

        Args:
            conn: in no transaction.
            connected_for: seconds since it was made.

        Raises:
            psycopg.Error: Postgres is away. Call it again, on another connection, or give up.
        """
        self._clear()
        partitions = {entry.call.partition for entry in self.entries}
        rows.lock_shared(conn, partitions)
        # Without a node all its partitions are closed at once, so that only the first batch waits.
        away = self._store.away()
        standings = rows.read_standings(conn, partitions | away)
        self._sort(standings, away)
        closed = self._close_partitions(conn, standings, away, connected_for)
        new = [entry for entry in [*self.stays, *self.goes_on] if entry.call.row is None]
        is_new = not (self.may_be_committed and _are_there(conn, new))
        if is_new:
            self._add(conn, new)
        # Before any row is locked, as whoever removes rows has it.
        rows.release_tokens(conn, [pair for entry in self.amended for pair in _leaving(entry)])
        self._show(conn, new if is_new else ())
        for entry in self.amended:
            _rewrite(conn, entry)
        rows.stamp(conn, [standing.partition for standing in closed])
        self.may_be_committed = True
        conn.commit()
        self._follower.notice(closed)
        for entry in new:
            entry.call.row = entry.row
        _BATCHES.inc(len(new))
        _UPDATES.inc(sum(size_of(entry.call) for entry in new))

    def _sort(self, standings: Sequence[Standing], away: Set[int]) -> None:
        """Decides what becomes of each entry."""
        self._follower.notice(standings)
        usable = {
            standing.partition: standing
            for standing in standings
            if standing.state == OPEN
            and standing.partition not in away
            and self._store.fences.expected(standing.partition) == standing.incarnation
        }
        for entry in self.entries:
            call = entry.call
            standing = usable.get(call.partition)
            is_as_it_was = standing is not None and standing.changes == call.changes
            if entry.over is not None and is_as_it_was:
                self.amended.append(entry)
            elif entry.may_be_amended:
                self.lost.append(entry)
            elif standing is None or entry.over is not None or (call.forgotten and is_as_it_was):
                # A row that is whole is applied whole, or was, when its partition was drained. Of
                # one that Redis can't tell about, nobody may take Redis' word until it is.
                self.stays.append(entry)
            elif call.is_moving and (call.row is None or is_as_it_was):
                self.stays.append(entry)
            elif call.row is not None and not is_as_it_was:
                # Its partition was drained since, and the row may be gone: in another life of it
                # nothing would tell that it was applied.
                self.drained.append(entry)
            elif self._journals_first:
                call.changes, call.incarnation = standing.changes, standing.incarnation
                self.goes_on.append(entry)
            elif call.sent or (self.may_be_committed and entry.row is not None):
                # Redis or the journal may have it: under another token it could count twice.
                self.stays.append(entry)
            else:
                self.back += call.parts

    def _close_partitions(
        self,
        conn: BoundedConnection,
        standings: Sequence[Standing],
        away: Set[int],
        connected_for: float,
    ) -> list[Standing]:
        """Has the partitions of what stays journaled for; gives what Postgres says of them now."""
        staying = {entry.call.partition for entry in self.stays}
        if not staying:
            return []
        open_ones = {standing.partition for standing in standings if standing.state == OPEN}
        ages = [0.0 if s.state == OPEN else s.age for s in standings if s.partition in staying]
        self.hidden_for = max(
            0.0, SEEN_BY_ALL - min(ages, default=0.0), FOUND_BY_ALL - connected_for
        )
        began = overlay.begin(conn, (staying | away) & open_ones)
        return rows.read_standings(conn, began) if began else []

    def _add(self, conn: BoundedConnection, new: Sequence[Entry]) -> None:
        """Adds the rows."""
        if not new:
            return
        unnumbered = [entry for entry in new if entry.row is None]
        for entry, number in zip(unnumbered, rows.new_ids(conn, len(unnumbered)), strict=True):
            entry.row = number
        parts = [(part, entry.number) for entry in new for part in entry.call.parts]
        claimed = repeats.claim(conn, parts)
        self.repeats = dict(claimed)
        if self._journals_first:
            for part, note in repeats.checkpointed(conn, [part for part, _ in parts]).items():
                # What the ring has forgotten, the journal may know.
                self.repeats[part] = claimed.get(part) if note is None else note
        increments = [
            (entry.number, increment)
            for entry in new
            for increment in increments_of(entry.call, self.repeats)
        ]
        batches = [self._batch(entry) for entry in new]
        rows.add_batches(conn, batches, increments, {e.row for e in self.stays if e.row})

    def _batch(self, entry: Entry) -> Batch:
        call, token = entry.call, entry.call.token
        assert token is not None
        text = encode(call, self.repeats)
        return Batch(entry.number, call.partition, token.link, token.sequence, text, size_of(call))

    def _show(self, conn: BoundedConnection, new: Sequence[Entry]) -> None:
        """Adds the scores of what stays to what reads see, each row once."""
        scored = [entry for entry in self.stays if entry.call.script is scripts.SUBMIT]
        # A row that was there may have been added when its partition was first journaled for.
        added = {entry.number for entry in new}
        found = [
            (entry.call.partition, scores)
            for entry in scored
            if entry.number in added
            for scores in scores_of(entry.call, self.repeats)
        ]
        # Which parts of others are repeats, their texts say: checkpoints may have marked some.
        hidden = rows.show(conn, {entry.number for entry in scored} - added)
        found += [
            (batch.partition, scores)
            for batch in rows.batches_by_id(conn, hidden)
            for scores in scores_in(batch.text)
        ]
        overlay.add(conn, found)


def _rewrite(conn: BoundedConnection, entry: Entry) -> None:
    """Takes parts out of a row.

    Nobody applies it meanwhile: whoever drains a partition waits first for all who found it open,
    and since the row was written it has been open.
    """
    left = entry.call.without(entry.over or {})
    known = repeats.of_row(conn, entry.number)
    again = [part for part in left.parts if part.token and repeats.token_of(part) in known]
    increments = list(increments_of(left, again))
    rows.rewrite_batch(conn, entry.number, encode(left, again), size_of(left), increments)
    entry.may_be_amended = True


def _leaving(entry: Entry) -> Iterator[tuple[TokenOf, int]]:
    """The tokens of parts that leave a row, with its number: another row may have them."""
    for part in entry.over or {}:
        if part.token is not None:
            yield repeats.token_of(part), entry.number


def _are_there(conn: BoundedConnection, entries: Sequence[Entry]) -> bool:
    ids = [entry.row for entry in entries if entry.row is not None]
    return bool(ids) and bool(rows.batches_by_id(conn, ids))


def size_of(item: Item) -> int:
    """How many updates it has: for the bound on what waits."""
    if isinstance(item, Amendment):
        item = item.call
    if isinstance(item, ScriptCall):
        return sum(part.items for part in item.parts)
    return item.items
