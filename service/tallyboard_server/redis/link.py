"""A link: one connection to a Redis node and the one thread that flushes it.

Everything that arrives while a flush is in flight becomes the next one. A flush whose replies were
lost is sent again with the same link tokens. When Redis does not answer in time the breaker opens:
what waits is handed over as stranded, reads fail, and so does what comes, until a connection works
again. The link has another name then: what is new must not push tokens of what was stranded out of
a ring.
"""

import random
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, Final, Protocol

import structlog
from prometheus_client import Counter

from tallyboard_server.errors import Overloaded, TallyboardError, Unavailable, shutting_down
from tallyboard_server.redis import scripts
from tallyboard_server.redis.calls import (
    LINK_RING,
    Amendment,
    CallToken,
    LinkSequences,
    Outcome,
    ScriptCall,
    unanswered,
)
from tallyboard_server.redis.connection import Connection, ConnectionLost, Identity, NoAnswer
from tallyboard_server.redis.durability import Durability
from tallyboard_server.redis.fences import Fences
from tallyboard_server.redis.flush import Flush
from tallyboard_server.redis.keys import link_key
from tallyboard_server.redis.operations import Command, Operation, Part, Read
from tallyboard_server.redis.rankings import EntriesRead
from tallyboard_server.redis.routing import items_of, node_for, weight_of
from tallyboard_server.redis.topology import Layout, Stay, Topology

_GONE_BACK = Counter(
    "tallyboard_redis_gone_back_partitions",
    "Partitions that Redis had in an earlier state when it came back.",
)
_log = structlog.get_logger(__name__)

# A quarter of a second of Redis' time: it has to answer in time on a busy machine too.
MAX_FLUSH_OPERATIONS = 131_072
_RECONNECT_FIRST = 0.05
#: Seconds between two attempts to reach Redis, at most.
RECONNECT_MOST = 0.5
_IDLE = 0.5
# With this much waiting, the next flush is planned while Redis works on this one. With less it is
# better to let more arrive: one larger flush costs less than two.
_PLAN_AHEAD = 16_384


_ENDED: Final = "its link has ended"

#: Why something is stranded that is for a partition that is closed.
CLOSED: Final = "the partition is closed"

Stranded = Callable[[Sequence[Part | ScriptCall], str], None]


class Admission(Protocol):
    """Decides whether a Redis may be written to, before anything is."""

    def admit(self, connection: Connection, node: str, stays: Sequence[Stay]) -> Durability:
        """What has to be true there before a write is acknowledged.

        Args:
            connection: to the node.
            node: its URL.
            stays: of the partitions that it has; at least one.

        Raises:
            ConnectionLost: it can't be used now.
        """
        ...


class Link:
    """A pipelined connection to one Redis node.

    Args:
        node: the node's URL.
        topology: which node has which partition.
        fences: the incarnations expected, shared with the worker.
        admission: is asked about every new connection.
        timeout: seconds without an answer, besides what the durability takes, after which the
            breaker opens.
        max_pending: operations (keys) that may wait; more are refused.
        on_refused: called on the link's thread with a part and the keys that a shard can't hold;
            takes over the part.
        on_stranded: called on the link's thread with what can't be sent, or was sent and never
            answered, and why; takes it over.
        on_again: called on the link's thread with parts that have to be sent again under another
            token; None sends them from here.
        on_amended: called on the link's thread with calls of the journal without some of their
            parts; takes them over. Needed only by whoever sends such calls.
        on_lost: called on the link's thread when Redis did not answer it, with why.
        on_moved: called on the link's thread when it is to be found out who has which partition,
            with whether the node itself can tell.
        on_elsewhere: called on the link's thread with what another node has to run; takes it over.
        keeps_tokens: whether tokens are part of checkpoints.
        name: for the thread and the log.

    `submit` may be called from any thread. All other state belongs to the link's thread.
    """

    def __init__(
        self,
        node: str,
        topology: Topology,
        fences: Fences,
        admission: Admission,
        *,
        timeout: float,
        max_pending: int,
        on_refused: Callable[[Part, list[str]], None],
        on_stranded: Stranded,
        on_again: Callable[[Part], None] | None = None,
        on_amended: Callable[[Sequence[Amendment]], None] | None = None,
        on_lost: Callable[[str], None] | None = None,
        on_moved: Callable[[bool], None] | None = None,
        on_elsewhere: Callable[[Sequence[Operation | ScriptCall]], None] | None = None,
        keeps_tokens: bool = False,
        name: str,
    ) -> None:
        self._node = node
        self._topology = topology
        self._layout: Layout | None = None  # the one whose partitions were admitted
        self._admitted: frozenset[Stay] = frozenset()
        self._places: frozenset[int] = frozenset()  # the partitions of these
        self._fences = fences
        self._admission = admission
        self._durability = Durability(None, lambda reply: True)
        self._patience = self._timeout = timeout
        self._max_pending = max_pending
        self._on_refused = on_refused
        self._on_stranded = on_stranded
        self._on_again = on_again
        self._on_amended = on_amended
        self._on_lost = on_lost
        self._on_moved = on_moved
        self._on_elsewhere = on_elsewhere
        self._keeps_tokens = keeps_tokens
        self._queue: SimpleQueue[Operation | ScriptCall | None] = SimpleQueue()
        self._waiting = 0  # about: read and written without a lock, bounds memory
        self._again: list[Operation | ScriptCall] = []
        self._sequences = _new_name()
        self._ahead: Flush | None = None
        self._lost: Identity | None = None
        self._applied: dict[int, CallToken] = {}
        self._connection: Connection | None = None
        self._down: str | None = None
        self._suspicion: str | None = None  # set by other threads, taken by the link's own
        self._not_ready_since: float | None = None
        self._closing = threading.Event()
        self._has_ended = False  # whether the thread takes nothing from the queue any more
        self._thread = threading.Thread(target=self._run, name=f"link-{name}", daemon=True)
        self._thread.start()

    @property
    def down(self) -> str | None:
        """Why the breaker is open, or None."""
        return self._down

    def submit(self, operations: Iterable[Operation | ScriptCall], size: int = 1) -> None:
        """Hands operations over; each one's `on_done` is called, whatever happens.

        Args:
            operations: parts, calls that are in the journal, reads and commands.
            size: how many keys they have, for the bound.

        Raises:
            Unavailable: the breaker is open or the link is closing; nothing was taken.
            Overloaded: too much waits; nothing was taken.
        """
        self.check(size)
        self.put(operations, size)

    def check(self, size: int = 1) -> None:
        """Whether it would take operations now.

        Raises:
            Unavailable, Overloaded: as `submit`.
        """
        if self._down is not None:
            raise Unavailable(f"Redis is away: {self._down}")
        if self._waiting + size > self._max_pending:
            raise Overloaded(f"more than {self._max_pending} operations wait for Redis")
        if self._closing.is_set():
            raise shutting_down()

    def put(self, operations: Iterable[Operation | ScriptCall], size: int) -> None:
        """Takes operations, whatever `check` says; each one's `on_done` is called."""
        self._waiting += size
        put = self._queue.put
        for operation in operations:
            put(operation)
        if self._has_ended:
            # It ended between the caller's look at it and this: nobody else will take these.
            self._hand_over(self._drain(), _ENDED)

    def retire(self) -> None:
        """Begins to end the thread, once it has given on what waits: its node has nothing now."""
        self._closing.set()
        self._queue.put(None)

    def suspect(self, why: str) -> None:
        """Says that another link to the same node had no answer: nobody has to wait again.

        May be called from any thread. The breaker opens before anything more is sent, and closes
        as soon as a connection works.
        """
        self._suspicion = why
        self._queue.put(None)

    def close(self) -> None:
        """Flushes what waits, then ends the thread. What can't be flushed fails."""
        self.retire()
        self._thread.join(self._timeout * 4)

    def _run(self) -> None:
        delay = _RECONNECT_FIRST
        while not (self._closing.is_set() and self._is_idle()):
            if self._down is not None:
                delay = self._try_to_close_breaker(delay)
                continue
            flush, self._ahead = self._ahead or self._plan(self._collect(_IDLE)), None
            why, self._suspicion = self._suspicion, None
            if why is not None:
                self._open_breaker(why, [*flush.calls, *flush.others] if flush is not None else [])
            elif flush is not None:
                self._complete(flush)
        if self._connection is not None:
            self._connection.close()
        self._has_ended = True
        self._hand_over(self._drain(), _ENDED)

    def _is_idle(self) -> bool:
        return self._queue.empty() and not self._again and self._ahead is None

    def _collect(self, patience: float) -> list[Operation | ScriptCall]:
        """What waits, or what comes within `patience` seconds."""
        operations, self._again = self._again, []
        queue, items, weight = self._queue, 0, 0
        try:
            if not operations and patience:
                first = queue.get(timeout=patience)
                if first is not None:
                    operations.append(first)
                    items, weight = items_of(first), weight_of(first)
            while weight < MAX_FLUSH_OPERATIONS:
                operation = queue.get_nowait()
                if operation is not None:
                    operations.append(operation)
                    items += items_of(operation)
                    weight += weight_of(operation)
        except Empty:
            pass
        self._waiting = 0 if queue.empty() else max(0, self._waiting - items)
        return operations

    def _plan(self, operations: list[Operation | ScriptCall]) -> Flush | None:
        """A flush of the operations; None when nothing is to be sent."""
        if not operations:
            return None
        try:
            flush = Flush(
                operations,
                self._fences,
                self._sequences,
                self._durability.command,
                self._durability.reached,
                keeps_tokens=self._keeps_tokens,
                is_cluster=self._topology.layout.is_cluster,
            )
        except Exception as error:  # the thread must live: whatever waits hangs without it
            self._failed(error, operations)
            return None
        self._again += flush.deferred
        if flush.stranded:
            self._on_stranded(flush.stranded, CLOSED)
        return flush if flush.count else None

    def _complete(self, flush: Flush) -> None:
        """Sends a flush, waits for its replies and gives every operation its outcome."""
        try:
            self._follow(flush.settle(self._exchange(flush)))
        except (ConnectionLost, NoAnswer) as error:
            self._open_breaker(str(error), [*flush.calls, *flush.others])
            if self._on_lost is not None:
                self._on_lost(str(error))
        except Exception as error:  # the thread must live
            self._failed(error, [*flush.calls, *flush.others])

    def _failed(self, error: Exception, operations: list[Operation | ScriptCall]) -> None:
        _log.exception("link failed", link=self._thread.name)
        self._open_breaker(f"internal error: {type(error).__name__}", operations)

    def _follow(self, outcome: Outcome) -> None:
        self._applied.update(outcome.applied)
        for part, refused in outcome.refused:
            self._on_refused(part, refused)
        if outcome.amendments and self._on_amended is not None:
            self._on_amended(outcome.amendments)
        for partition, incarnation in outcome.fenced.items():
            self._fences.block(partition, incarnation)
        if outcome.reconnect:
            self._disconnect()
        again = [operation for operation in outcome.again if not self._give_up(operation)]
        if outcome.away:
            self._open_breaker(outcome.away, [*outcome.stranded, *again])
            return
        if outcome.stranded:
            if any(call.sent for call in outcome.stranded):
                self._sequences = _new_name()
            self._on_stranded(outcome.stranded, CLOSED)
        if outcome.moved:
            again = self._send_elsewhere(again)
        not_ready = outcome.not_ready or (outcome.moved if again else "")
        if not not_ready:
            self._not_ready_since = None
        elif not self._is_patient():
            self._open_breaker(not_ready, again)
            return
        for operation in again:
            if self._on_again is not None and isinstance(operation, Part):
                self._on_again(operation)
            else:
                self._again.append(operation)

    def _send_elsewhere(
        self, operations: list[Operation | ScriptCall]
    ) -> list[Operation | ScriptCall]:
        """Gives on what another node has to run; what is left is for this one."""
        if self._on_moved is None or self._on_elsewhere is None:
            return operations
        self._on_moved(True)
        layout = self._topology.layout
        mine: list[Operation | ScriptCall] = []
        others: list[Operation | ScriptCall] = []
        for operation in operations:
            (mine if node_for(operation, layout) == self._node else others).append(operation)
        if others:
            self._on_elsewhere(others)
        return mine

    def _is_patient(self) -> bool:
        """Waits a little for a Redis that is not ready; False when it had its time."""
        now = time.monotonic()
        if self._not_ready_since is None:
            self._not_ready_since = now
        self._closing.wait(_RECONNECT_FIRST)
        return now - self._not_ready_since < self._timeout

    @staticmethod
    def _give_up(operation: Operation | ScriptCall) -> bool:
        if isinstance(operation, Part) and operation.write.abandoned:
            operation.done(Unavailable("given up"))
            return True
        return False

    def _exchange(self, flush: Flush) -> list[Any]:
        """Sends the flush until it is answered, over new connections if need be."""
        until = time.monotonic() + self._timeout
        while True:
            try:
                if not self._is_admitted():
                    self._disconnect()
                if self._connection is None:
                    self._connection = self._connect()
                    self._renew(flush)
                else:
                    self._connection.check()
                    if any(call.partition not in self._places for call in flush.calls):
                        self._renew(flush)
                for call in flush.calls:
                    call.sent = True
                self._connection.send(flush.data)
                if self._ahead is None and self._waiting > _PLAN_AHEAD:
                    self._ahead = self._plan(self._collect(0))
                return list(self._connection.receive(flush.count))
            except (ConnectionLost, NoAnswer) as error:
                self._disconnect()
                for call in flush.calls:
                    call.doubtful = call.sent
                has_partitions = self._topology.layout.partitions_of(self._node)
                if isinstance(error, NoAnswer) or time.monotonic() > until or not has_partitions:
                    raise
                self._closing.wait(_RECONNECT_FIRST)

    def _is_admitted(self) -> bool:
        """Whether all partitions that the node has by now were looked at on this connection."""
        layout = self._topology.layout
        if layout is not self._layout and self._connection is not None:
            if not self._admitted.issuperset(layout.stays_of(self._node)):
                return False
            self._layout = layout
        return True

    def _renew(self, flush: Flush) -> None:
        """Fits what was planned before to what the admission of this connection found.

        What came here by a layout that is no more true may be for a partition that was not looked
        at, though the node has it.
        """
        for planned in (flush, self._ahead):
            if planned is not None:
                stranded = planned.renew(
                    self._durability.command, self._durability.reached, self._places
                )
                if stranded:
                    self._on_stranded(stranded, CLOSED)

    def _connect(self) -> Connection:
        layout = self._topology.layout
        stays = layout.stays_of(self._node)
        if not stays:
            raise ConnectionLost("it has no partitions")
        connection = Connection(self._node, self._patience)
        try:
            self._durability = self._admission.admit(connection, self._node, stays)
            self._layout, self._admitted = layout, frozenset(stays)
            self._places = frozenset(stay.partition for stay in stays)
            self._timeout = self._patience + self._durability.patience
            connection.wait(self._timeout)
            if self._lost is not None and not connection.cut_off(self._lost):
                _log.warning(
                    "Redis does not allow CLIENT KILL: what was sent on the lost connection may "
                    "still be run late.",
                    link=self._thread.name,
                )
            self._look_for_losses(connection)
            self._lost = None
            for reply in connection.call([("SCRIPT", "LOAD", s.source) for s in scripts.ALL]):
                if isinstance(reply, Exception):
                    raise ConnectionLost(f"Redis is not ready: {reply}")
        except BaseException:
            connection.close()
            raise
        return connection

    def _look_for_losses(self, connection: Connection) -> None:
        """Tells people when Redis came back without something that it had acknowledged."""
        identity, lost, applied = connection.identity, self._lost, self._applied
        if identity is None or lost is None or identity.run_id == lost.run_id or not applied:
            return
        self._applied = {}
        replies = connection.call(
            [
                ("HGET", link_key(partition, token.link), token.sequence % LINK_RING)
                for partition, token in applied.items()
            ]
        )
        missing = [
            partition
            for (partition, token), held in zip(applied.items(), replies, strict=True)
            if not isinstance(held, Exception) and int(held or 0) < token.sequence
        ]
        if missing:
            _GONE_BACK.inc(len(missing))
            _log.error(
                "Redis came back without updates that it had acknowledged.",
                link=self._thread.name,
                partitions=missing,
            )

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._lost = self._connection.identity
            self._connection.close()
            self._connection = None

    def _open_breaker(self, why: str, sent: Sequence[Operation | ScriptCall]) -> None:
        """Hands over what was sent and not answered, and what waits."""
        self._down = why
        self._disconnect()
        _log.warning("redis away", link=self._thread.name, why=why)
        stranded = [item for item in sent if isinstance(item, Part | ScriptCall)]
        for operation in sent:
            if not isinstance(operation, Part | ScriptCall):
                _fail(operation, unanswered(operation, why))
        if stranded:
            self._on_stranded(stranded, why)
        self._sequences = _new_name()
        self._hand_over_waiting(why)

    def _hand_over_waiting(self, why: str) -> None:
        waiting, self._again = self._again, []
        if self._ahead is not None:
            waiting += [*self._ahead.calls, *self._ahead.others]
            self._ahead = None
        self._hand_over(waiting + self._drain(), why)
        self._waiting = 0

    def _drain(self) -> list[Operation | ScriptCall]:
        """Takes all that is in the queue."""
        found: list[Operation | ScriptCall] = []
        with suppress(Empty):
            while True:
                operation = self._queue.get_nowait()
                if operation is not None:
                    found.append(operation)
        return found

    def _hand_over(self, waiting: Iterable[Operation | ScriptCall], why: str) -> None:
        stranded: list[Part | ScriptCall] = []
        for operation in waiting:
            if isinstance(operation, Part | ScriptCall):
                stranded.append(operation)
            else:
                _fail(operation, Unavailable(f"Redis is away: {why}"))
        if stranded:
            self._on_stranded(stranded, why)

    def _try_to_close_breaker(self, delay: float) -> float:
        self._hand_over_waiting(self._down or "")
        if self._closing.wait(delay * random.uniform(0.8, 1.2)):
            self._hand_over_waiting("the server is shutting down")
            return delay
        try:
            if self._on_moved is not None:
                self._on_moved(False)
            self._connection = self._connect()
        except (ConnectionLost, NoAnswer) as error:
            self._down = str(error)
            return min(delay * 2, RECONNECT_MOST)
        except Exception as error:  # the thread must live
            _log.exception("link failed", link=self._thread.name)
            self._down = f"internal error: {type(error).__name__}"
            return RECONNECT_MOST
        self._down = self._suspicion = None
        _log.info("redis back", link=self._thread.name)
        return _RECONNECT_FIRST


def _new_name() -> LinkSequences:
    return LinkSequences(uuid.uuid4().hex[:16])


def _fail(operation: Read | EntriesRead | Command, error: TallyboardError) -> None:
    with suppress(RuntimeError):  # already answered
        operation.error = error
        operation.on_done()
