"""What a link carries: writes made of parts, reads, and single commands.

A write is what one caller asked for; a part is its share in one partition. All three call
`on_done` exactly once, on the link's thread, so it must be short and must not raise.
"""

import threading
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

from tallyboard_server.errors import OutcomeUnknown, TallyboardError
from tallyboard_server.redis import scripts
from tallyboard_server.redis.rankings import EntriesRead


class Token(NamedTuple):
    """What makes a part recognisable when it comes again.

    `kind` is "p" (producer: `sequence` counts) or "r" (request: `sequence` is empty). `note` is
    kept with it and begins with a newline: of counters, the keys of operations that were out of
    range, each behind a newline; of scores, see leaderboards/batches.py.
    """

    kind: str
    key: str
    sequence: int | str
    ttl: int
    note: str = ""


class Part:
    """A write's operations in one partition: key to delta, or to a verb for `clear.lua`.

    Attributes:
        bound: no delta is further from 0.
        repeatable: whether applying it twice does no harm, even without a token.
        counted: whether some of it has counted already.
        journaled: whether it is in the journal, durable and not yet applied.
        error: why it failed, once it is over.
        seen: whether it had been applied before; then `note` is what was kept with its token.
    """

    __slots__ = (
        "bound",
        "counted",
        "error",
        "journaled",
        "note",
        "operations",
        "partition",
        "repeatable",
        "script",
        "seen",
        "token",
        "write",
    )

    def __init__(
        self,
        write: "Write",
        partition: int,
        operations: dict[str, Any],
        token: Token | None = None,
        script: scripts.Script = scripts.ADD,
        bound: int = 0,
    ) -> None:
        self.write = write
        self.partition = partition
        self.operations = operations
        self.token = token
        self.script = script
        self.bound = bound
        self.repeatable = False
        self.counted = False
        self.journaled = False
        self.error: TallyboardError | None = None
        self.seen = False
        self.note = ""

    @property
    def items(self) -> int:
        """How many operations it has, at least 1: what it holds in memory."""
        return len(self.operations) or 1

    @property
    def weight(self) -> int:
        """How long Redis works on it, in operations of a counter."""
        return len(self.operations) or 1

    def done(self, error: TallyboardError | None = None, *, seen: bool = False) -> None:
        """Ends the part: applied, seen before, or failed. Called exactly once."""
        if error is not None and self.counted and self.token is None:
            error = OutcomeUnknown(f"some of the write counted, and then: {error}")
        self.error = error
        self.seen = seen
        self.write.part_done(error, seen=seen)


# Guards the fields of writes with several parts: they may end on several links.
_remaining_lock = threading.Lock()


class Write:
    """Collects the outcomes of its parts and calls `on_done` after the last.

    Attributes:
        error: the first error of a part, or None.
        out_of_range: keys whose counter would have left the 64-bit range.
        seen: how many parts turned out to be repeats.
        existed: how many cleared keys were there (clear.lua).
        over: whether all parts are.
        sent: whether any part was ever sent to Redis.
        abandoned: set by a caller that waits no more: parts not yet sent are dropped.
    """

    __slots__ = (
        "_remaining",
        "abandoned",
        "error",
        "existed",
        "on_done",
        "out_of_range",
        "over",
        "parts",
        "seen",
        "sent",
    )

    def __init__(self, on_done: Callable[[], object]) -> None:
        self.on_done = on_done
        self.parts: list[Part] = []
        self._remaining = 0
        self.error: TallyboardError | None = None
        self.out_of_range: list[str] = []
        self.seen = 0
        self.existed = 0
        self.over = False
        self.sent = False
        self.abandoned = False

    def add(self, part: Part) -> None:
        """Adds a part; all are added before the write is submitted."""
        self.parts.append(part)
        self._remaining += 1

    @property
    def duplicate(self) -> bool:
        """Whether all of it had been applied before."""
        return self.seen == len(self.parts)

    @property
    def journaled(self) -> bool:
        """Whether some of it is in the journal, and not applied yet."""
        return any(part.journaled for part in self.parts)

    def part_done(self, error: TallyboardError | None = None, *, seen: bool = False) -> None:
        """Takes the outcome of one part."""
        if len(self.parts) > 1:
            with _remaining_lock:
                self._note(error, seen)
                if self._remaining:
                    return
        else:
            self._note(error, seen)
        self.over = True
        self.on_done()

    def _note(self, error: TallyboardError | None, seen: bool) -> None:
        self._remaining -= 1
        self.seen += seen
        if error is not None:
            self.error = self.error or error


class Read:
    """Keys to get, and the partitions whose incarnation must be the expected one.

    Reads that wait together become one MGET, in a cluster one a slot.

    Attributes:
        keys: at least one; in a cluster all of one slot.
    """

    __slots__ = ("abandoned", "error", "keys", "on_done", "partitions", "values")

    def __init__(
        self, keys: list[str], on_done: Callable[[], object], partitions: Collection[int] = ()
    ) -> None:
        self.keys = keys
        self.partitions = partitions
        self.on_done = on_done
        self.values: list[bytes | None] = []
        self.error: TallyboardError | None = None
        self.abandoned = False


class Command:
    """One command whose repeat does no harm: it is sent again after a lost connection."""

    __slots__ = ("abandoned", "arguments", "error", "on_done", "reply")

    def __init__(self, arguments: tuple[Any, ...], on_done: Callable[[], object]) -> None:
        self.arguments = arguments
        self.on_done = on_done
        self.reply: Any = None
        self.error: TallyboardError | None = None
        self.abandoned = False


Operation = Part | Read | EntriesRead | Command
