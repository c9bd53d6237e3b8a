"""One flush of a link: plans which commands to send for what is waiting, and reads the replies.

Pure: it opens no socket and starts no thread. Parts for the same partition become one script
call, with one operation a key however many callers asked (group commit).
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import hiredis

from tallyboard_server.errors import (
    OutcomeUnknown,
    OutOfRange,
    SequenceTooOld,
    TallyboardError,
    Unavailable,
)
from tallyboard_server.redis import keys, scripts
from tallyboard_server.redis.operations import Command, Operation, Part, Read

# A script call holds Redis up for about 2 µs an operation, and Lua's unpack() takes fewer than
# 8,000 values: two for each token.
MAX_CALL_OPERATIONS = 2048
MAX_MGET_KEYS = 8192
LINK_RING = 64
# Calls a partition and flush: the link's ring has to hold them all.
MAX_CALLS = LINK_RING // 2
LINK_TTL = 3 * 24 * 3600
# A sum of deltas beyond this is not exact in Lua; a shard could not hold it anyway.
MAX_DELTA = 1 << 52

_NOT_READY = ("LOADING", "BUSY", "TRYAGAIN", "MASTERDOWN")
_TOO_OLD = (
    "the sequence is more than 256 behind the newest one of this producer: whether it was "
    "counted is no longer known"
)


class Fences:
    """What this process expects of each partition: its incarnation, or that it is closed.

    Replaced as a whole by its owner, the worker; read by links without a lock.
    """

    def __init__(self, incarnations: Mapping[int, str]) -> None:
        self.incarnations = dict(incarnations)

    def expected(self, partition: int) -> str | None:
        """The incarnation, or None for a partition that is closed."""
        return self.incarnations.get(partition)


class LinkSequences:
    """A link's identity and its next sequence in each partition. Owned by the link's thread."""

    def __init__(self, link: str) -> None:
        self.link = link
        self._next: dict[int, int] = {}

    def take(self, partition: int) -> int:
        """A sequence never used before in this partition; the first is 1."""
        sequence = self._next.get(partition, 1)
        self._next[partition] = sequence + 1
        return sequence


@dataclass
class ScriptCall:
    """A call of a script for one partition and the parts it carries."""

    partition: int
    script: scripts.Script
    parts: list[Part] = field(default_factory=list)
    operations: dict[str, Any] = field(default_factory=dict)
    bound: int = 0
    tokens: dict[tuple[str, int | str], Part] = field(default_factory=dict)

    def takes(self, part: Part) -> bool:
        """Adds the part, unless it needs another call. An empty call takes any part."""
        token = part.token
        if token is not None and (token.key, token.sequence) in self.tokens:
            return False
        if not self._merge(part):
            return False
        if token is not None:
            self.tokens[token.key, token.sequence] = part
        self.parts.append(part)
        return True

    def _merge(self, part: Part) -> bool:
        merged, operations = self.operations, part.operations
        if not self.parts:
            self.operations = operations
            self.bound = part.bound
            return True
        if max(len(merged) + len(operations), len(self.parts)) > MAX_CALL_OPERATIONS:
            return False
        if self.bound + part.bound > MAX_DELTA:
            return False  # a sum may not be exact in Lua
        if len(self.parts) == 1:
            merged = self.operations = dict(merged)
        self.bound += part.bound
        get = merged.get
        for key, delta in operations.items():
            merged[key] = get(key, 0) + delta
        return True

    def pack(self, sequences: LinkSequences, incarnation: str) -> bytes:
        """The EVALSHA command, under a new link sequence."""
        partition, tokens = self.partition, [p.token for p in self.tokens.values() if p.token]
        named = [
            keys.incarnation_key(partition),
            keys.dirty_key(partition),
            keys.link_key(partition, sequences.link),
            *(token.key for token in tokens),
            *self.operations,
        ]
        arguments: list[Any] = [
            incarnation, sequences.take(partition), LINK_RING, LINK_TTL, len(tokens)
        ]  # fmt: skip
        for token in tokens:
            arguments += (token.kind, f"{token.sequence}{token.note}", token.ttl)
        arguments += self.operations.values()
        return _pack("EVALSHA", self.script.sha, len(named), *named, *arguments)


class _Gets:
    """Reads that share one MGET, with the incarnations of all their partitions behind them."""

    def __init__(self) -> None:
        self.reads: list[Read] = []
        self.size = 0
        self._partitions: set[int] = set()

    def add(self, read: Read) -> None:
        self.reads.append(read)
        self.size += len(read.keys)
        self._partitions.update(read.partitions)

    def pack(self) -> bytes:
        names = [key for read in self.reads for key in read.keys]
        names += [keys.incarnation_key(partition) for partition in self._partitions]
        return _pack("MGET", *names)

    def settle(self, reply: Any, fences: Fences) -> None:
        error = redis_said(reply) if isinstance(reply, hiredis.ReplyError) else None
        lost: set[int] = set()
        if error is None:
            found = zip(self._partitions, reply[self.size :], strict=True)
            lost = {p for p, value in found if not value or value.decode() != fences.expected(p)}
        at = 0
        for read in self.reads:
            read.error = error
            if error is None:
                read.values = reply[at : at + len(read.keys)]
                at += len(read.keys)
                closed = lost.intersection(read.partitions)
                if closed:
                    read.error = _closed(min(closed))
            read.on_done()


class Outcome:
    """What a flush leaves for its link to do.

    Attributes:
        again: to be sent again, without having been applied.
        refused: parts and the keys that a shard can't hold.
        not_ready: what Redis said if it runs no commands for now.
        reconnect: whether a new connection may help: it loads the scripts, or finds the master.
    """

    def __init__(self) -> None:
        self.again: list[Operation] = []
        self.not_ready = ""
        self.refused: list[tuple[Part, list[str]]] = []
        self.reconnect = False


class Flush:
    """The commands for a number of operations, and what their replies mean.

    Args:
        operations: what waits, in the order of arrival.
        fences: the incarnations expected.
        sequences: where link sequences come from.
        durability: a command to send behind the writes (WAIT or WAITAOF), or None, and
        durable: the check of its reply.

    Attributes:
        data: the packed commands.
        count: how many replies will come.
        deferred: parts that have to wait for the next flush.
    """

    def __init__(
        self,
        operations: Sequence[Operation],
        fences: Fences,
        sequences: LinkSequences,
        durability: tuple[Any, ...] | None = None,
        durable: Callable[[Any], bool] = lambda reply: True,
    ) -> None:
        self.deferred: list[Operation] = []
        self._durable = durable
        self._fences = fences
        self._calls_of: Counter[int] = Counter()
        self._calls, self._reads, self._commands = self._sort(operations, fences)
        packed = []
        for call in self._calls:
            incarnation = fences.expected(call.partition) or ""
            packed.append(call.pack(sequences, incarnation))
        self._mgets = self._pack_reads(packed)
        packed += [_pack(*command.arguments) for command in self._commands]
        self._has_durability = durability is not None and bool(self._calls)
        if durability is not None and self._calls:
            packed.append(_pack(*durability))
        self.data = b"".join(packed)
        self.count = len(packed)

    def _sort(
        self, operations: Sequence[Operation], fences: Fences
    ) -> tuple[list[ScriptCall], list[Read], list[Command]]:
        open_calls: dict[int, ScriptCall] = {}
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
            elif operation.write.abandoned and not operation.write.sent:
                operation.done(Unavailable("given up before it was sent"))
            elif fences.expected(operation.partition) is None:
                operation.done(_closed(operation.partition))
            else:
                self._place(operation, open_calls, calls)
        return calls, reads, commands

    def _place(
        self, part: Part, open_calls: dict[int, ScriptCall], calls: list[ScriptCall]
    ) -> None:
        part.write.sent = True
        partition = part.partition
        merges = part.script is scripts.ADD
        if merges and partition in open_calls and open_calls[partition].takes(part):
            return
        if self._calls_of[partition] == MAX_CALLS:
            self.deferred.append(part)
            return
        self._calls_of[partition] += 1
        call = ScriptCall(partition, part.script)
        call.takes(part)
        calls.append(call)
        if merges:
            open_calls[partition] = call

    def _pack_reads(self, packed: list[bytes]) -> list["_Gets"]:
        groups: list[_Gets] = []
        for read in self._reads:
            if not groups or groups[-1].size + len(read.keys) > MAX_MGET_KEYS:
                groups.append(_Gets())
            groups[-1].add(read)
        packed += [group.pack() for group in groups]
        return groups

    @property
    def operations(self) -> list[Operation]:
        """Everything that was sent and waits for replies."""
        parts = [part for call in self._calls for part in call.parts]
        return [*parts, *self._reads, *self._commands]

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
        for call, reply in zip(self._calls, found, strict=False):
            _settle_call(call, reply, durable, outcome)
        for group, reply in zip(self._mgets, replies[len(self._calls) :], strict=False):
            group.settle(reply, self._fences)
        start = len(self._calls) + len(self._mgets)
        for command, reply in zip(self._commands, replies[start:], strict=False):
            _settle_command(command, reply, outcome)
        return outcome


def _pack(*command: Any) -> bytes:
    packed: bytes = hiredis.pack_command(command)
    return packed


def _settle_call(call: ScriptCall, reply: Any, durable: bool, outcome: Outcome) -> None:
    if isinstance(reply, hiredis.ReplyError):
        said = str(reply)
        outcome.reconnect |= said.startswith(("NOSCRIPT", "READONLY"))
        if said.startswith("NOSCRIPT"):
            outcome.again += call.parts
        elif said.startswith(_NOT_READY):
            outcome.not_ready = said
            outcome.again += call.parts
        else:
            for part in call.parts:
                part.done(redis_said(reply))
        return
    verdict, details = reply[0], reply[1:]
    if verdict == b"ok":
        _settle_applied(call, details, durable)
    elif verdict == b"fenced":
        for part in call.parts:
            part.done(_closed(call.partition))
    elif verdict == b"refused":
        names = list(call.operations)
        _settle_refused(call, {names[i - 1] for i in details}, outcome)
    else:
        _settle_known(call, verdict, details, durable, outcome)


def _settle_applied(call: ScriptCall, details: list[int], durable: bool) -> None:
    for part in call.parts:
        if details:
            part.write.existed += details[0]
        part.done(None if durable else _not_durable(part))


def _settle_refused(call: ScriptCall, names: set[str], outcome: Outcome) -> None:
    for part in call.parts:
        mine = [name for name in part.operations if name in names]
        if mine:
            outcome.refused.append((part, mine))
        else:
            outcome.again.append(part)


def _settle_known(
    call: ScriptCall, verdict: bytes, details: list[Any], durable: bool, outcome: Outcome
) -> None:
    """Ends the parts whose tokens were known; the others go again."""
    tokens = list(call.tokens.values())
    notes: dict[Part, bytes] = {}
    if verdict == b"seen":
        indexes = zip(details[::2], details[1::2], strict=True)
        notes = {tokens[index - 1]: note for index, note in indexes}
    too_old = {tokens[index - 1] for index in details if index} if verdict == b"old" else set()
    link_too_old = verdict == b"old" and not too_old
    for part in call.parts:
        if part in notes:
            _settle_seen(part, notes[part].decode(), durable)
        elif part in too_old:
            part.done(SequenceTooOld(_TOO_OLD))
        elif link_too_old and part.token is None:
            part.done(unanswered(part, "the link's sequence was forgotten"))
        else:
            outcome.again.append(part)


def _settle_seen(part: Part, note: str, durable: bool) -> None:
    if not durable:
        part.done(_not_durable(part))
    elif note and part.script is scripts.ADD_WIDE:
        part.done(OutOfRange("the counter would leave the signed 64-bit range"))
    else:
        part.write.out_of_range += note.split("\n")[1:]
        part.done(seen=True)


def _settle_command(command: Command, reply: Any, outcome: Outcome) -> None:
    if isinstance(reply, hiredis.ReplyError):
        if str(reply).startswith("NOSCRIPT"):
            outcome.reconnect = True
            outcome.again.append(command)
            return
        command.error = redis_said(reply)
    command.reply = reply
    command.on_done()


def redis_said(reply: Exception) -> Unavailable:
    """The error for a command that Redis refused to run: nothing was written."""
    return Unavailable(f"Redis refused the command: {str(reply)[:200]}")


def _closed(partition: int) -> Unavailable:
    return Unavailable(
        f"partition {partition} is closed: its data in Redis is not the data we knew",
        reason="PARTITION_UNAVAILABLE",
    )


def _not_durable(part: Part) -> TallyboardError:
    return unanswered(part, "applied, but not yet as durable as configured")


def unanswered(operation: Operation, why: str) -> TallyboardError:
    """The error for what was sent and is not known to be kept.

    A part with a token may be sent again by its caller, and counts once. One without may not.
    """
    if isinstance(operation, Part) and operation.token is None:
        return OutcomeUnknown(
            f"whether the write counted is not known ({why}). A write with a request_id can be "
            "sent again"
        )
    return Unavailable(f"Redis is away: {why}")
