"""One flush of a link: plans which commands to send for what is waiting, and reads the replies.

Pure: it opens no socket and starts no thread. Parts for the same partition become one script
call, with one operation a key however many callers asked (group commit).
"""

from collections import Counter
from collections.abc import Callable, Container, Iterator, Sequence
from typing import Any

import hiredis

from tallyboard_server.errors import Unavailable
from tallyboard_server.redis import scripts
from tallyboard_server.redis.calls import (
    LINK_RING,
    LinkSequences,
    Outcome,
    ScriptCall,
    is_elsewhere,
    pack,
    redis_said,
    settle_call,
)
from tallyboard_server.redis.entries import EntriesCall
from tallyboard_server.redis.fences import Fences
from tallyboard_server.redis.gets import Gets
from tallyboard_server.redis.keys import slot_of
from tallyboard_server.redis.operations import Command, Operation, Part, Read
from tallyboard_server.redis.rankings import EntriesRead
from tallyboard_server.redis.removals import RemovalCall
from tallyboard_server.redis.scores import ScoresCall

# Calls a partition and flush: the link's ring has to hold them all.
MAX_CALLS = LINK_RING // 2
# A transaction holds Redis up for about 2 µs an operation.
MAX_TRANSACTION_OPERATIONS = 8192
_WORTH_A_TRANSACTION = 256
MERGING = (scripts.ADD, scripts.SUBMIT)
_CALLS: dict[scripts.Script, type[ScriptCall]] = {
    scripts.SUBMIT: ScoresCall,
    scripts.REMOVE: RemovalCall,
}
MULTI, EXEC = pack("MULTI"), pack("EXEC")


class Flush:
    """The commands for a number of operations, and what their replies mean.

    Args:
        operations: what waits, in the order of arrival.
        fences: the incarnations expected.
        sequences: where link sequences come from.
        durability: a command to send behind the writes (WAIT or WAITAOF), or None, and
        durable: the check of its reply.
        keeps_tokens: whether tokens are part of checkpoints.
        is_cluster: whether a command, or a transaction, may name keys of one slot only.

    Attributes:
        data: the packed commands.
        count: how many replies will come.
        deferred: what has to wait for the next flush.
        stranded: what is for partitions that are closed.
        calls: the script calls that are sent.
    """

    def __init__(
        self,
        operations: Sequence[Operation | ScriptCall],
        fences: Fences,
        sequences: LinkSequences,
        durability: tuple[Any, ...] | None = None,
        durable: Callable[[Any], bool] = lambda reply: True,
        *,
        keeps_tokens: bool = False,
        is_cluster: bool = False,
    ) -> None:
        self._is_cluster = is_cluster
        self.deferred: list[Operation | ScriptCall] = []
        self.stranded: list[Part | ScriptCall] = []
        self._keeps_tokens = keeps_tokens
        self._fences = fences
        self._sequences = sequences
        self._calls_of: Counter[int] = Counter()
        self._entries: dict[Any, EntriesCall] = {}
        self._entry_calls: list[EntriesCall] = []
        self.calls, self._reads, self._commands = self._sort(operations, fences)
        self._pack(durability, durable)

    def renew(
        self,
        durability: tuple[Any, ...] | None,
        durable: Callable[[Any], bool],
        admitted: Container[int],
    ) -> list[ScriptCall]:
        """Packs it anew for a new connection, under the same tokens.

        What was found out about the Redis at its other end may have closed partitions, and
        changed what its writes wait for.

        Args:
            admitted: the partitions that were looked at.

        Returns:
            calls for partitions that are closed now, or not looked at; they are not part of it any
            more.
        """
        stranded: list[ScriptCall] = []
        calls, self.calls = self.calls, []
        for call in calls:
            expected = self._fences.expected(call.partition)
            is_open = expected is not None and (call.row is None or expected == call.incarnation)
            is_open = is_open and call.partition in admitted
            (self.calls if is_open else stranded).append(call)
        self._pack(durability, durable)
        return stranded

    def _pack(self, durability: tuple[Any, ...] | None, durable: Callable[[Any], bool]) -> None:
        self._durable = durable
        self._transactions: list[Sequence[ScriptCall]] = []
        packed = self._pack_calls()
        self._gets = self._pack_reads(self._reads)
        packed += [gets.pack() for gets in self._gets]
        packed += [call.pack() for call in self._entry_calls]
        packed += [pack(*command.arguments) for command in self._commands]
        self._has_durability = durability is not None and bool(self.calls)
        if durability is not None and self.calls:
            packed.append(pack(*durability))
        self.data = b"".join(packed)
        self.count = len(packed)

    def _sort(
        self, operations: Sequence[Operation | ScriptCall], fences: Fences
    ) -> tuple[list[ScriptCall], list[Read], list[Command]]:
        open_calls: dict[tuple[scripts.Script, int], ScriptCall] = {}
        calls: list[ScriptCall] = []
        reads: list[Read] = []
        commands: list[Command] = []
        for operation in operations:
            if isinstance(operation, Read):
                if operation.abandoned:
                    operation.on_done()
                else:
                    reads.append(operation)
            elif isinstance(operation, Command):
                commands.append(operation)
            elif isinstance(operation, EntriesRead):
                self._place_entries(operation)
            elif isinstance(operation, ScriptCall):
                self._place_call(operation, fences, calls)
            elif operation.write.abandoned and not operation.write.sent:
                operation.done(Unavailable("given up before it was sent"))
            elif fences.expected(operation.partition) is None:
                self.stranded.append(operation)
            else:
                self._place(operation, open_calls, calls)
        return calls, reads, commands

    def _place_entries(self, read: EntriesRead) -> None:
        ranking = read.ranking
        if read.abandoned:
            read.on_done()
            return
        name = (ranking.keys.ranking, ranking.method)
        call = self._entries.get(name)
        if call is None or not call.takes(read):
            self._entries[name] = call = EntriesCall(read)
            self._entry_calls.append(call)

    def _place_call(self, call: ScriptCall, fences: Fences, calls: list[ScriptCall]) -> None:
        """A call that is in the journal goes as it is, to the life that it was journaled for."""
        if fences.expected(call.partition) != call.incarnation:
            self.stranded.append(call)
        elif self._calls_of[call.partition] == MAX_CALLS:
            self.deferred.append(call)
        else:
            self._calls_of[call.partition] += 1
            calls.append(call)

    def _place(
        self,
        part: Part,
        open_calls: dict[tuple[scripts.Script, int], ScriptCall],
        calls: list[ScriptCall],
    ) -> None:
        part.write.sent = True
        partition = part.partition
        merges = part.script in MERGING
        open_call = open_calls.get((part.script, partition)) if merges else None
        if open_call is not None and open_call.takes(part):
            return
        if self._calls_of[partition] == MAX_CALLS:
            self.deferred.append(part)
            return
        self._calls_of[partition] += 1
        call = call_for(part)
        calls.append(call)
        if merges:
            open_calls[part.script, partition] = call

    def _pack_calls(self) -> list[bytes]:
        """The script calls, and MULTI and EXEC around them when they are large.

        Redis reads about 16 KiB a turn of its event loop, and syncs its file once a turn: calls
        that came over many turns would cost a sync each. In a transaction they cost one.
        """
        sizes = [call.size for call in self.calls]
        if sum(sizes) < _WORTH_A_TRANSACTION:
            self._transactions = [(call,) for call in self.calls]
            return [self._pack_call(call) for call in self.calls]
        packed = []
        for group in self._groups(sizes):
            self._transactions.append(group)
            calls = [self._pack_call(call) for call in group]
            packed += [MULTI, *calls, EXEC] if len(group) > 1 else calls
        return packed

    def _groups(self, sizes: Sequence[int]) -> Iterator[Sequence[ScriptCall]]:
        """The calls of each transaction; those of one partition stay in their order."""
        if not self._is_cluster:
            yield from in_groups(self.calls, sizes)
            return
        by_partition: dict[int, list[ScriptCall]] = {}
        for call in self.calls:
            by_partition.setdefault(call.partition, []).append(call)
        for calls in by_partition.values():
            yield from in_groups(calls, [call.size for call in calls])

    def _pack_call(self, call: ScriptCall) -> bytes:
        expected = self._fences.expected(call.partition) or ""
        return call.pack(self._sequences, expected, keeps_tokens=self._keeps_tokens)

    def _pack_reads(self, reads: list[Read]) -> list[Gets]:
        groups: list[Gets] = []
        filling: dict[int, Gets] = {}
        for read in reads:
            slot = slot_of(read.keys[0]) if self._is_cluster else 0
            gets = filling.get(slot)
            if gets is None or not gets.takes(read):
                filling[slot] = gets = Gets()
                groups.append(gets)
                gets.takes(read)
        return groups

    @property
    def others(self) -> list[Operation]:
        """Everything but script calls that was sent and waits for replies."""
        entries = [read for call in self._entry_calls for read in call.reads]
        return [*self._reads, *entries, *self._commands]

    def settle(self, replies: Sequence[Any]) -> Outcome:
        """Gives every operation its outcome.

        Args:
            replies: one reply a command, in order.

        Returns:
            what has to be sent again, and what was refused.
        """
        outcome = Outcome()
        durable = not self._has_durability or self._durable(replies[-1])
        found = iter(replies)
        for group in self._transactions:
            for script_call, reply in zip(group, replies_of(group, found), strict=True):
                settle_call(script_call, reply, durable, outcome)
        for gets in self._gets:
            gets.settle(next(found), self._fences, outcome)
        for call in self._entry_calls:
            call.settle(next(found), self._fences, outcome)
        for command in self._commands:
            _settle_command(command, next(found), outcome)
        return outcome


def call_for(part: Part) -> ScriptCall:
    """A call that carries the part; others may join it."""
    call = _CALLS.get(part.script, ScriptCall)(part.partition, part.script)
    call.takes(part)
    return call


def in_groups(calls: Sequence[ScriptCall], sizes: Sequence[int]) -> Iterator[Sequence[ScriptCall]]:
    """Calls in their order, in groups that hold Redis up only so long."""
    group: list[ScriptCall] = []
    total = 0
    for call, size in zip(calls, sizes, strict=True):
        if group and total + size > MAX_TRANSACTION_OPERATIONS:
            yield group
            group, total = [], 0
        group.append(call)
        total += size
    yield group


def replies_of(group: Sequence[ScriptCall], found: Iterator[Any]) -> list[Any]:
    """The replies to a group of calls; a transaction that was not run gives its error to all."""
    if len(group) == 1:
        return [next(found)]
    begun = next(found)
    queued = [next(found) for _ in group]
    executed = next(found)
    if isinstance(begun, Exception):
        return queued  # no transaction was begun, so each call was run by itself
    if isinstance(executed, list):
        return executed
    errors = [reply for reply in (*queued, executed) if isinstance(reply, Exception)]
    return [errors[0]] * len(group)


def _settle_command(command: Command, reply: Any, outcome: Outcome) -> None:
    if isinstance(reply, hiredis.ReplyError):
        outcome.reconnect |= str(reply).startswith(("NOSCRIPT", "READONLY"))
        if is_elsewhere(reply, outcome) or str(reply).startswith("NOSCRIPT"):
            outcome.again.append(command)
            return
        command.error = redis_said(reply)
    command.reply = reply
    command.on_done()
