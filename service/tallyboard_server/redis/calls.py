"""Script calls: parts merged into one call a partition, and what its answer means for them."""

import re
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import hiredis

from tallyboard_server.errors import (
    OutcomeUnknown,
    OutOfRange,
    SequenceTooOld,
    TallyboardError,
    Unavailable,
)
from tallyboard_server.redis import keys, scripts
from tallyboard_server.redis.operations import Operation, Part

# A script call holds Redis up for about 2 µs an operation, and Lua's unpack() takes fewer than
# 8,000 values: two for each token.
MAX_CALL_OPERATIONS = 2048
LINK_RING = 64
# As frame.lua has it.
PRODUCER_RING = 256
LINK_TTL = 3 * 24 * 3600
# A sum of deltas beyond this is not exact in Lua; a shard could not hold it anyway.
MAX_DELTA = 1 << 52

# What Redis says while it runs no commands, for a while.
NOT_READY = ("LOADING", "BUSY", "MASTERDOWN")
# What a node says whose slot is on its way to another one, or is nobody's: nobody can run the
# command now.
MOVING = ("ASK", "TRYAGAIN", "CLUSTERDOWN Hash slot not served")
# What it says of a slot that another one has.
MOVED = "MOVED"
# What Redis says while it takes no writes at all; nothing was applied.
TAKES_NO_WRITES = ("OOM", "READONLY", "MISCONF", "NOREPLICAS", "CLUSTERDOWN", "NOAUTH", "NOPERM")
# A script that heard it says where it was; before Redis 7 so of every error of a command.
_FROM_SCRIPT = re.compile(f"^ERR .*?: -?(?=(?:{'|'.join(TAKES_NO_WRITES)}) )")
_TOO_OLD = (
    "the sequence is more than 256 behind the newest one of this producer: whether it was "
    "counted is no longer known"
)


class CallToken(NamedTuple):
    """What makes a call recognisable when it comes again: a link and its sequence."""

    link: str
    sequence: int


class LinkSequences:
    """A link's identity and its next sequence in each partition. Owned by the link's thread."""

    def __init__(self, link: str) -> None:
        self.link = link
        self._next: dict[int, int] = {}

    def take(self, partition: int) -> CallToken:
        """A token never used before in this partition; the first sequence is 1."""
        sequence = self._next.get(partition, 1)
        self._next[partition] = sequence + 1
        return CallToken(self.link, sequence)


@dataclass
class ScriptCall:
    """A call of a script for one partition and the parts it carries.

    Of counters: one operation a key. See scores.py for the call that carries scores.

    Attributes:
        tokens: the parts that have one, by key and, of a producer's, slot in its ring.
        token: its own, from the moment when it is packed, or journaled.
        row: its number in the journal, if it is there.
        changes: of its partition's state, when it was journaled (see postgres/journal.py).
        sent: whether Redis may have applied it.
        doubtful: whether it was sent before, on a connection that was lost: only its token can tell
            whether it was applied then.
        forgotten: whether Redis could not tell whether it was applied, or did not say; the journal
            has it.
        is_moving: whether its partition is on its way to another node, so that none takes it.
        incarnation: what it was packed with; of one that is in the journal, the only life of its
            partition that it is for.
    """

    partition: int
    script: scripts.Script
    parts: list[Part] = field(default_factory=list)
    operations: dict[str, Any] = field(default_factory=dict)
    bound: int = 0
    tokens: dict[tuple[str, int | str], Part] = field(default_factory=dict)
    token: CallToken | None = None
    row: int | None = None
    changes: int = 0
    sent: bool = False
    doubtful: bool = False
    forgotten: bool = False
    is_moving: bool = False
    incarnation: str = ""

    def without(self, parts: Collection[Part]) -> "ScriptCall":
        """The same call, under the same token, for the other parts: nothing of it was applied."""
        left = [part for part in self.parts if part not in parts]
        call = type(self)(self.partition, self.script) if left else empty_call(self.partition)
        for part in left:
            call.takes(part)
        call.token, call.row, call.changes = self.token, self.row, self.changes
        call.incarnation = self.incarnation
        call.sent, call.doubtful = self.sent, self.doubtful
        call.forgotten, call.is_moving = self.forgotten, self.is_moving
        return call

    @property
    def size(self) -> int:
        """How many operations it has."""
        return len(self.operations)

    def takes(self, part: Part) -> bool:
        """Adds the part, unless it needs another call. An empty call takes any part.

        The script looks at all tokens before it notes one: no two may have the same slot.
        """
        token = part.token
        if token is not None:
            slot = token.sequence % PRODUCER_RING if isinstance(token.sequence, int) else ""
            if (token.key, slot) in self.tokens:
                return False
        if not self.merges(part):
            return False
        if token is not None:
            self.tokens[token.key, slot] = part
        self.parts.append(part)
        return True

    def merges(self, part: Part) -> bool:
        """Adds the part's operations, if they fit. An empty call takes any."""
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

    def names(self) -> list[str]:
        """The operations' keys."""
        return list(self.operations)

    def arguments(self) -> list[Any]:
        """What belongs to the keys."""
        return list(self.operations.values())

    def pack(
        self, sequences: LinkSequences, incarnation: str, *, keeps_tokens: bool = False
    ) -> bytes:
        """The EVALSHA command, under its token, or a new one of the link's.

        Args:
            keeps_tokens: whether tokens are part of checkpoints.
        """
        partition, tokens = self.partition, [p.token for p in self.tokens.values() if p.token]
        if self.token is None:
            self.token = sequences.take(partition)
        if self.row is None or not self.incarnation:
            self.incarnation = incarnation
        named = [
            keys.incarnation_key(partition),
            keys.dirty_key(partition),
            keys.link_key(partition, self.token.link),
            keys.journaled_key(partition),
            *(token.key for token in tokens),
            *self.names(),
        ]
        arguments: list[Any] = [
            self.incarnation, self.token.sequence, LINK_RING, LINK_TTL,
            "" if self.row is None else self.row, "k" if keeps_tokens else "", len(tokens),
        ]  # fmt: skip
        for token in tokens:
            arguments += (token.kind, f"{token.sequence}{token.note}", token.ttl)
        arguments += self.arguments()
        return pack("EVALSHA", self.script.sha, len(named), *named, *arguments)

    def answered(self, details: list[Any]) -> None:
        """Takes the script's answer; it may be empty when a lost one can't be had again."""
        if details:
            for part in self.parts:
                part.write.existed += details[0]

    def refused(self, details: list[Any], outcome: "Outcome") -> None:
        """Takes the operations that can't be applied; nothing was."""
        names = list(self.operations)
        refused = {names[i - 1] for i in details}
        over: dict[Part, Why] = {}
        for part in self.parts:
            mine = [name for name in part.operations if name in refused]
            if mine:
                over[part] = mine
        outcome.take_out(self, over)


def empty_call(partition: int) -> ScriptCall:
    """A call that does nothing but remember its token, and its row in the journal."""
    return ScriptCall(partition, scripts.ADD)


#: Why a part has to leave a call: the keys that a shard can't hold; the error that it ends with;
#: or None, it is to be sent by itself.
Why = list[str] | TallyboardError | None


class Amendment(NamedTuple):
    """A call that is in the journal, and parts of which nothing was applied.

    They must not be in its row any more before anything becomes of them: whoever applies the row
    again would apply them too.
    """

    call: ScriptCall
    over: dict[Part, Why]


class Outcome:
    """What a flush leaves for its link to do.

    Attributes:
        again: to be sent again, without having been applied.
        applied: by partition, the token of the last call that was applied.
        stranded: calls that this Redis does not take now, to be kept elsewhere.
        fenced: partitions that are not what was expected, and what was.
        away: what Redis said if it takes no writes.
        refused: parts and the keys that a shard can't hold.
        amendments: calls of the journal without some of their parts.
        not_ready: what Redis said if it runs no commands for now.
        moved: what it said if another node has the keys: what is sent again is to go there.
        reconnect: whether a new connection may help: it loads the scripts, or finds the master.
    """

    def __init__(self) -> None:
        self.again: list[Operation | ScriptCall] = []
        self.applied: dict[int, CallToken] = {}
        self.stranded: list[ScriptCall] = []
        self.fenced: dict[int, str] = {}
        self.away = ""
        self.not_ready = ""
        self.moved = ""
        self.refused: list[tuple[Part, list[str]]] = []
        self.amendments: list[Amendment] = []
        self.reconnect = False

    def send_rest(self, call: ScriptCall, over: Collection[Part]) -> None:
        """Puts down what is left of a call that was not applied, without those that are over.

        A call that is in the journal stays what it is, so that its row is known to be dealt with,
        and so does one that may have been applied when it was sent before.
        """
        if call.row is not None or call.doubtful:
            self.again.append(call.without(over))
        else:
            self.again += [part for part in call.parts if part not in over]

    def take_out(self, call: ScriptCall, over: dict[Part, Why]) -> None:
        """Ends or passes on parts that can't be applied; the rest of the call goes again."""
        if call.row is not None:
            self.amendments.append(Amendment(call, over))
            return
        for part, why in over.items():
            if isinstance(why, list):
                self.refused.append((part, why))
            elif why is not None:
                part.done(why)
        self.send_rest(call, {part for part, why in over.items() if why is not None})


def pack(*command: Any) -> bytes:
    """A command as Redis reads it."""
    packed: bytes = hiredis.pack_command(command)
    return packed


def error_of(reply: Exception) -> str:
    """What went wrong, its kind first, also where a script was told."""
    return _FROM_SCRIPT.sub("", str(reply))


def settle_call(call: ScriptCall, reply: Any, durable: bool, outcome: Outcome) -> None:
    """Gives the parts of a call their outcomes, or puts them down to be sent again."""
    if isinstance(reply, hiredis.ReplyError):
        _settle_error(call, reply, outcome)
        return
    verdict, details = reply[0], reply[1:]
    if verdict == b"ok":
        _settle_applied(call, details, durable, outcome)
    elif verdict == b"fenced":
        call.sent = call.doubtful
        outcome.fenced[call.partition] = call.incarnation
        outcome.stranded.append(call)
    elif verdict == b"refused":
        call.sent = call.doubtful = False
        call.refused(details, outcome)
    else:
        _settle_known(call, verdict, details, durable, outcome)


def _settle_error(call: ScriptCall, reply: Exception, outcome: Outcome) -> None:
    said = error_of(reply)
    call.sent = call.doubtful
    outcome.reconnect |= said.startswith(("NOSCRIPT", "READONLY"))
    if is_elsewhere(reply, outcome):
        outcome.send_rest(call, ())
    elif said.startswith(MOVING):
        call.is_moving = True
        outcome.stranded.append(call)
    elif said.startswith(("NOSCRIPT", *NOT_READY)):
        if not said.startswith("NOSCRIPT"):
            outcome.not_ready = said
        outcome.send_rest(call, ())
    elif said.startswith(TAKES_NO_WRITES):
        outcome.away = said
        outcome.stranded.append(call)
    elif call.row is not None:
        # Its row is durable: it counts some time, and a repeat without a token would count again.
        call.forgotten = True
        outcome.stranded.append(call)
    else:
        for part in call.parts:
            part.done(unanswered(part, said) if call.sent else redis_said(reply))


def is_elsewhere(reply: Exception, outcome: Outcome) -> bool:
    """Whether another node has the keys of what was not run; noted in the outcome."""
    said = error_of(reply)
    if not said.startswith(MOVED):
        return False
    outcome.moved = said
    return True


def _settle_applied(call: ScriptCall, details: list[Any], durable: bool, outcome: Outcome) -> None:
    if not durable:
        call.sent = True
        outcome.stranded.append(call)
        return
    if call.token is not None:
        outcome.applied[call.partition] = call.token
    call.answered(details)
    for part in call.parts:
        part.done()


def _settle_known(
    call: ScriptCall, verdict: bytes, details: list[Any], durable: bool, outcome: Outcome
) -> None:
    """Ends the parts whose tokens were known; the others go again."""
    if verdict == b"old" and details == [0] and call.row is not None:
        # So many others of the link were applied since that nobody can tell whether it was.
        call.forgotten = True
        outcome.stranded.append(call)
        return
    if details != [0]:
        call.sent = call.doubtful = False
    tokens = list(call.tokens.values())
    notes: dict[Part, bytes] = {}
    if verdict == b"seen":
        indexes = zip(details[::2], details[1::2], strict=True)
        notes = {tokens[index - 1]: note for index, note in indexes}
    link_too_old = verdict == b"old" and details == [0]
    too_old: set[Part] = set()
    if verdict == b"old" and not link_too_old:
        too_old = {tokens[index - 1] for index in details[::2]}
    over: set[Part] = set()
    for part in call.parts:
        if part in notes:
            settle_seen(part, notes[part].decode(), durable)
        elif part in too_old:
            settle_too_old(part)
        elif link_too_old and part.token is None:
            part.done(unanswered(part, "the link's sequence was forgotten"))
        else:
            continue
        over.add(part)
    outcome.send_rest(call, over)


def settle_too_old(part: Part) -> None:
    """Ends a part of which nobody can tell any more whether it was applied."""
    part.done(SequenceTooOld(_TOO_OLD))


def settle_seen(part: Part, note: str, durable: bool = True) -> None:
    """Ends a part that is a repeat.

    Args:
        note: what was kept with its token.
        durable: whether the first one is as durable as configured.
    """
    if not durable:
        part.done(_not_durable(part))
    elif note and part.script is scripts.ADD_WIDE:
        part.done(OutOfRange("the counter would leave the signed 64-bit range"))
    else:
        part.note = note
        if part.script is scripts.ADD:
            part.write.out_of_range += note.split("\n")[1:]
        part.done(seen=True)


def redis_said(reply: Exception) -> Unavailable:
    """The error for a command that Redis refused to run: nothing was written."""
    return Unavailable(f"Redis refused the command: {str(reply)[:200]}")


def _not_durable(part: Part) -> TallyboardError:
    return unanswered(part, "applied, but not yet as durable as configured")


def unanswered(operation: Operation, why: str) -> TallyboardError:
    """The error for what was sent and is not known to be kept.

    A part with a token may be sent again by its caller, and counts once. One without may not,
    unless applying it twice changes nothing.
    """
    if isinstance(operation, Part) and operation.token is None and not operation.repeatable:
        return OutcomeUnknown(
            f"whether the write counted is not known ({why}). A write with a request_id can be "
            "sent again"
        )
    return Unavailable(f"Redis is away: {why}")
