"""Draining the journal: applies its rows to Redis, each once, and opens the partition.

A row goes to Redis as the call that it is, under its own link, sequence and number. Whoever died
between two rows, or before anything was noted, leaves nothing that the next one could apply twice.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import hiredis
import structlog
from prometheus_client import Counter

from tallyboard_server.counters.model import MakeDurable
from tallyboard_server.counters.wide import WideCounters
from tallyboard_server.errors import OutOfRange
from tallyboard_server.leaderboards.definitions import to_json
from tallyboard_server.leaderboards.model import Leaderboard
from tallyboard_server.postgres import journal as rows
from tallyboard_server.postgres.entries import WindowRow
from tallyboard_server.postgres.journal import Batch, Standing
from tallyboard_server.postgres.locks import locked
from tallyboard_server.postgres.pool import BoundedConnection, BoundedPool
from tallyboard_server.recovery.batches import decode, encode
from tallyboard_server.recovery.late import judge, make_late
from tallyboard_server.recovery.order import waves
from tallyboard_server.recovery.plans import ScorePlans
from tallyboard_server.redis import definitions, scripts
from tallyboard_server.redis.calls import (
    NOT_READY,
    TAKES_NO_WRITES,
    CallToken,
    LinkSequences,
    ScriptCall,
    empty_call,
    error_of,
)
from tallyboard_server.redis.connection import Connection, ConnectionLost, NoAnswer
from tallyboard_server.redis.flush import EXEC, MULTI, in_groups, replies_of
from tallyboard_server.redis.keys import (
    home_partition,
    incarnation_key,
    journaled_key,
    parse_counter_key,
    request_key,
    version_key,
    wide_key,
)
from tallyboard_server.redis.operations import Part, Token
from tallyboard_server.redis.scores import Columns, Refusal, ScorePart, ScoresCall
from tallyboard_server.redis.topology import Topology

_PAGE: Final = 256
# While the last rows are applied, nobody adds any: they must be few.
_LAST: Final = 64
_LOCK_WAIT: Final = 5.0
_ATTEMPTS: Final = 20
_TOKEN_TTL: Final = 24 * 3600

_DRAINED = Counter("tallyboard_drained_batches", "Batches of the journal that were applied.")
_REJECTED = Counter(
    "tallyboard_rejected_batches", "Batches of the journal that could not be applied, or not whole."
)
_log = structlog.get_logger(__name__)


class NotReady(Exception):
    """Redis can't take the journal of a partition now: it doesn't have its life, or is away."""


class RedisAway(NotReady):
    """The node can't take the journal of any of its partitions now."""


@dataclass(frozen=True)
class Drained:
    """How many rows were applied, and in how many seconds."""

    batches: int
    seconds: float


class _ToWiden(Exception):
    """Counters, as tenant and name, have to become wide before the journal can be applied."""

    def __init__(self, counters: set[tuple[str, str]]) -> None:
        super().__init__(counters)
        self.counters = counters


class _ToLoad(Exception):
    """A window of a board has to come back from Postgres before the journal can be applied."""

    def __init__(self, board: Leaderboard, row: WindowRow) -> None:
        super().__init__(row)
        self.board = board
        self.row = row


#: Brings a window that only Postgres has back into all partitions of its board.
LoadWindow = Callable[[Leaderboard, WindowRow], None]


class Drainer:
    """Drains partitions; for one thread.

    Args:
        connect: opens a connection to a node of Redis, by its URL.
        topology: which node has what.
        pool: connections to Postgres; two at a time are used.
        wide: applies what shards can't hold.
        make_durable: copies partitions to Postgres, or raises TallyboardError; None where nothing
            depends on it.
        load_window: see LoadWindow.
        partitions: how many there are.
        clock: the time now in µs since the epoch.
        keeps_tokens: whether tokens are part of checkpoints.
    """

    def __init__(
        self,
        connect: Callable[[str], Connection],
        topology: Topology,
        pool: BoundedPool,
        wide: WideCounters,
        make_durable: MakeDurable | None,
        load_window: LoadWindow,
        partitions: int,
        clock: Callable[[], int],
        *,
        keeps_tokens: bool,
    ) -> None:
        self._connect = connect
        self._topology = topology
        self._pool = pool
        self._wide = wide
        self._make_durable = make_durable
        self._load_window = load_window
        self._partitions = partitions
        self._clock = clock
        self.keeps_tokens = keeps_tokens
        self._connections: dict[str, Connection] = {}

    def drain(self, partition: int) -> Drained:
        """Applies the journal of a partition and opens it.

        Raises:
            psycopg.errors.LockNotAvailable: somebody else works on it.
            NotReady: see there.
        """
        started = time.monotonic()
        for _ in range(_ATTEMPTS):
            try:
                with self._pool.connection() as conn, locked(conn, [partition], _LOCK_WAIT):
                    batches = self._drain(partition)
                return Drained(batches, time.monotonic() - started)
            except _ToWiden as found:
                # Without the lock: it takes checkpoints of all its shards.
                for tenant, counter in found.counters:
                    self._wide.widen(tenant, counter)
            except _ToLoad as found:
                # Without the lock: it takes those of all segments, for reads take what Redis has
                # of a window for the whole.
                self._load_window(found.board, found.row)
        raise NotReady(f"the journal of partition {partition} asks for more again and again")

    def _drain(self, partition: int) -> int:
        try:
            with self._pool.connection() as conn:
                return _Drain(self, conn, partition).run()
        except (ConnectionLost, NoAnswer) as error:
            self.close()
            raise self._trouble(partition, f"Redis is away: {error}") from error

    def _trouble(self, partition: int, problem: str) -> NotReady:
        """Whether its own node is away; a row may have needed another one for a wide counter."""
        if len(self._topology.layout.nodes) > 1:
            with suppress(ConnectionLost, NoAnswer):
                self.connected(partition)
                return NotReady(problem)
        return RedisAway(problem)

    def close(self) -> None:
        """Ends the connections to Redis; the next drain opens others."""
        for connection in self._connections.values():
            connection.close()
        self._connections.clear()

    def connected(self, partition: int) -> Connection:
        """A connection to the node that has a partition, which knows the scripts."""
        return self._connected_to(self._topology.layout.node_of(partition))

    def _connected_to(self, node: str) -> Connection:
        if node not in self._connections:
            connection = self._connect(node)
            loads = [("SCRIPT", "LOAD", script.source) for script in scripts.ALL]
            for reply in connection.call(loads):
                if isinstance(reply, Exception):
                    connection.close()
                    raise ConnectionLost(f"Redis is not ready: {reply}")
            self._connections[node] = connection
        return self._connections[node]

    def pack(self, call: ScriptCall, incarnation: str) -> bytes:
        """The command of a call that has a token."""
        return call.pack(_NO_SEQUENCES, incarnation, keeps_tokens=self.keeps_tokens)

    def add_wide(self, part: Part, key: str) -> bool:
        """Adds to a wide counter; False if it would leave its range."""
        fits = self._wide.apply(part, key)
        _, partition, tenant, counter = parse_counter_key(key.encode())
        home = home_partition(tenant, counter, self._partitions)
        if self._make_durable is not None and home != partition:
            # The row goes with a checkpoint of its own partition.
            self._make_durable((home,))
        return fits

    def not_wide(self, keys: Iterable[str]) -> set[tuple[str, str]]:
        """Those counters among these shards, as tenant and name, that have no wide key yet."""
        names = [parse_counter_key(key.encode())[2:] for key in keys]
        found = self._call(
            [("EXISTS", wide_key(home_partition(*name, self._partitions), *name)) for name in names]
        )
        return {name for name, is_there in zip(names, found, strict=True) if is_there == 0}

    def plans(self, conn: BoundedConnection) -> ScorePlans:
        """Plans for journaled scores."""
        return ScorePlans(conn, self._clock)

    def reject(self, row: int, partition: int, reason: str, text: str) -> None:
        """Keeps what can't be applied, in a transaction of its own."""
        with self._pool.connection() as conn:
            rows.reject(conn, row, partition, reason, text)

    def publish(self, board: Leaderboard) -> list[Any]:
        """Tells Redis of a board's definition; gives the replies."""
        commands = definitions.publish(
            board.tenant, board.leaderboard_id, board.board_key, board.revision,
            to_json(board), board.segments, self._partitions,
        )  # fmt: skip
        return self._call(commands)

    def _call(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        return self._topology.layout.gather(
            commands, lambda node, these: self._connected_to(node).call(these)
        )


# Every call of the journal has a token of its own.
_NO_SEQUENCES: Final = LinkSequences("none")


class _Drain:
    """One go at one partition.

    Args:
        conn: a connection outside a transaction, or one whose transaction may be committed.
    """

    def __init__(self, drainer: Drainer, conn: BoundedConnection, partition: int) -> None:
        self._drainer = drainer
        self._conn = conn
        self._partition = partition
        self._applied: set[int] = set()
        self._numbers: dict[Part, int] = {}  # of the parts of rows that are being applied
        self._done = 0

    def run(self) -> int:
        """Applies all rows and opens the partition; gives how many."""
        conn = self._conn
        # Whoever has found it open before it was closed, and changes its rows, is waited for.
        rows.lock_alone(conn, self._partition)
        conn.commit()
        self._standing = self._check()
        if self._standing.state == rows.OPEN:
            return 0  # another keeper has opened it, so workers may rewrite its rows again
        self._plans = self._drainer.plans(conn)
        after = 0
        while page := rows.batches_of(conn, self._partition, after, _PAGE):
            conn.commit()
            self._apply(page)
            after = page[-1].journal_id
        # Rows are committed in any order: those that were missed are found by their numbers.
        while len(left := self._left()) > _LAST:
            self._apply(rows.batches_by_id(conn, sorted(left)[:_PAGE]))
            conn.commit()
        self._finish()
        return self._done

    def _check(self) -> Standing:
        """Looks whether Redis has the life that Postgres follows, and which rows it has."""
        found = rows.read_standings(self._conn, [self._partition])
        self._conn.commit()
        if not found:
            raise NotReady(f"Postgres doesn't know partition {self._partition}")
        standing = found[0]
        incarnation, version, applied = self._drainer.connected(self._partition).call(
            [
                ("GET", incarnation_key(self._partition)),
                ("GET", version_key(self._partition)),
                ("SMEMBERS", journaled_key(self._partition)),
            ]
        )
        for reply in (incarnation, version, applied):
            if isinstance(reply, Exception):
                raise NotReady(f"Redis said: {reply}")
        if incarnation != standing.incarnation.encode() or int(version or 0) < standing.version:
            raise NotReady(f"Redis doesn't have this life of partition {self._partition}")
        self._applied = {int(row) for row in applied}
        return standing

    def _left(self) -> set[int]:
        return rows.batch_ids(self._conn, self._partition) - self._applied

    def _finish(self) -> None:
        """Applies the last rows while nobody adds any, and opens the partition."""
        conn = self._conn
        rows.lock_alone(conn, self._partition)
        self._apply(rows.batches_by_id(conn, self._left()))
        rows.clear_scores_if_empty(conn, self._partition)
        opened = rows.open_partition(conn, self._partition, self._standing.incarnation)
        conn.commit()
        if not opened:
            raise NotReady(f"partition {self._partition} is being rebuilt")

    def _apply(self, batches: Sequence[Batch]) -> None:
        calls = []
        for batch in batches:
            if batch.journal_id not in self._applied:
                call = self._decode(batch)
                self._numbers.update((part, number) for number, part in enumerate(call.parts))
                calls.append(call)
        for wave in waves(calls):
            self._apply_wave(wave)
        self._numbers.clear()
        self._applied.update(batch.journal_id for batch in batches)
        self._done += len(calls)
        _DRAINED.inc(len(calls))

    def _decode(self, batch: Batch) -> ScriptCall:
        try:
            call = decode(self._partition, batch.text, self._plans.plan_of)
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise NotReady(f"row {batch.journal_id} can't be read: {error!r}") from error
        call.token, call.row = CallToken(batch.link, batch.sequence), batch.journal_id
        return call

    def _apply_wave(self, waiting: Sequence[ScriptCall]) -> None:
        for _ in range(_ATTEMPTS):
            waiting = self._send(waiting)
            if not waiting:
                return
        raise NotReady(f"the journal of partition {self._partition} is refused again and again")

    def _send(self, calls: Sequence[ScriptCall]) -> list[ScriptCall]:
        """Sends calls; gives those that have to be sent again, changed.

        Redis syncs its file once for a transaction, and otherwise once for a few of the calls.
        """
        connection = self._drainer.connected(self._partition)
        groups = list(in_groups(calls, [call.size for call in calls]))
        data, count = [], 0
        for group in groups:
            packed = [self._drainer.pack(call, self._standing.incarnation) for call in group]
            packed = [MULTI, *packed, EXEC] if len(group) > 1 else packed
            data += packed
            count += len(packed)
        connection.send(b"".join(data))
        found = iter(list(connection.receive(count)))
        answered = [
            pair for group in groups for pair in zip(group, replies_of(group, found), strict=True)
        ]
        again = (self._settle(call, reply) for call, reply in answered)
        return [call for call in again if call is not None]

    def _settle(self, call: ScriptCall, reply: Any) -> ScriptCall | None:
        if isinstance(reply, hiredis.ReplyError):
            # A new connection has the scripts, or finds the master.
            self._drainer.close()
            is_away = error_of(reply).startswith((*TAKES_NO_WRITES, *NOT_READY, "NOSCRIPT"))
            raise (RedisAway if is_away else NotReady)(f"Redis said: {reply}")
        verdict, details = reply[0], reply[1:]
        if verdict == b"ok":
            return None
        if verdict == b"fenced":
            raise NotReady(f"Redis doesn't have this life of partition {self._partition}")
        tokens = list(call.tokens.values())
        if verdict == b"seen":
            return call.without({tokens[index - 1] for index in details[::2]})
        if verdict == b"old":
            if details == [0]:
                return self._without_link(call)
            pairs = zip(details[::2], details[1::2], strict=True)
            return self._late(call, {tokens[index - 1]: slot for index, slot in pairs})
        if isinstance(call, ScoresCall):
            return self._replan(call, details)
        return self._widen(call, details)

    def _late(self, call: ScriptCall, slots: Mapping[Part, bytes]) -> ScriptCall:
        """Parts that are too old for their rings: those that are missing go again as they are."""
        verdicts = judge(
            self._conn, call, slots, self._applied, all_have_rows=self._drainer.keeps_tokens
        )
        if verdicts.unknown:
            others = set(call.parts) - verdicts.unknown
            self._reject(call.without(others), "SEQUENCE_TOO_OLD")
        for part in verdicts.missing:
            make_late(part)
        gone = verdicts.over | verdicts.unknown
        left = [part for part in call.parts if part not in gone]
        return _again(call, left) if left else call.without(gone)

    def _without_link(self, call: ScriptCall) -> ScriptCall:
        """A row whose link is far ahead of it goes again under a name of its own.

        Where all have rows, a row that Redis does not know was not applied. Otherwise nobody can
        tell any more, and it is kept for people to see.
        """
        left = call
        if not self._drainer.keeps_tokens:
            self._reject(call, "SEQUENCE_TOO_OLD")
            left = empty_call(self._partition)
        left.row, left.token = call.row, CallToken(f"journal-{call.row}", 1)
        return left

    def _widen(self, call: ScriptCall, details: Sequence[int]) -> ScriptCall:
        """Adds to wide counters what their shards can't hold, each with a token of its own."""
        if call.script is scripts.ADD_WIDE:
            self._reject(call, "COUNTER_OUT_OF_RANGE")
            return call.without(set(call.parts))
        refused = {call.names()[index - 1] for index in details}
        narrow = self._drainer.not_wide(refused)
        if narrow:
            raise _ToWiden(narrow)
        for part in call.parts:
            mine = [key for key in part.operations if key in refused]
            if not mine:
                continue
            stand_in = Part(
                part.write, self._partition, part.operations, self._wide_token(call, part)
            )
            for key in mine:
                try:
                    fits = self._drainer.add_wide(stand_in, key)
                except OutOfRange:
                    fits = False
                if not fits:
                    self._reject(call, "COUNTER_OUT_OF_RANGE")
            part.operations = {k: v for k, v in part.operations.items() if k not in mine}
        return _again(call, call.parts)

    def _wide_token(self, call: ScriptCall, part: Part) -> Token:
        """What makes wide additions of a part recognisable when its row is applied once more.

        It is the one that a worker would give them; it outlives the time until then.
        """
        if part.token is not None:
            return part.token._replace(ttl=max(part.token.ttl, _TOKEN_TTL))
        tenant = parse_counter_key(next(iter(part.operations)).encode()).tenant
        # Its number in the row as it was written: others may have left the call since.
        name = f"journal:{call.row}:{self._numbers[part]}"
        return Token("r", request_key(self._partition, tenant, name), "", _TOKEN_TTL)

    def _replan(self, call: ScoresCall, details: Sequence[bytes]) -> ScriptCall:
        """Does what the refusals ask for; the whole call goes again."""
        for refusal in call.refusals(details):
            self._learn(call, refusal)
        changed = decode(self._partition, encode(call), self._plans.plan_of)
        changed.token, changed.row = call.token, call.row
        return changed

    def _learn(self, call: ScoresCall, refusal: Refusal) -> None:
        if refusal.code == "s":
            self._reject(call, "SCORE_OUT_OF_RANGE")
            for part in call.parts:
                if isinstance(part, ScorePart):
                    _drop(part, refusal)
            return
        self._plans.forget()
        board = self._plans.board(refusal.plan.board_key)
        if board is None:
            return
        if refusal.code == "a":
            row = self._plans.window_row(board.board_key, refusal.subject)
            if row is not None:
                raise _ToLoad(board, row)
        elif refusal.code == "r":
            for reply in self._drainer.publish(board):
                if isinstance(reply, Exception):
                    raise NotReady(f"Redis said: {reply}")

    def _reject(self, call: ScriptCall, reason: str) -> None:
        assert call.row is not None
        _REJECTED.inc()
        _log.error(
            "A journaled batch can't be applied whole.",
            partition=self._partition, row=call.row, reason=reason,
        )  # fmt: skip
        self._drainer.reject(call.row, self._partition, reason, encode(call))


def _again(call: ScriptCall, parts: Sequence[Part]) -> ScriptCall:
    """The same call, made anew of parts that have changed."""
    fresh = type(call)(call.partition, call.script)
    for part in parts:
        fresh.takes(part)
    fresh.token, fresh.row = call.token, call.row
    return fresh


def _drop(part: ScorePart, refusal: Refusal) -> None:
    """Takes a member's scores out of a part."""
    columns = part.groups.get(refusal.plan)
    if columns is None or refusal.subject not in columns.members:
        return
    at = columns.members.index(refusal.subject)
    kept = [i for i in range(len(columns.members)) if i != at]
    part.groups[refusal.plan] = Columns(
        [columns.members[i] for i in kept],
        type(columns.scores)("d", [columns.scores[i] for i in kept]),
        type(columns.codes)("Q", [columns.codes[i] for i in kept]),
        [columns.metadata[i] for i in kept] if columns.metadata else [],
    )
