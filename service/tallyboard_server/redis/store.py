"""The way from a request's thread to Redis and back: submit to a link, wait for the outcome.

Two links: exact reads and claims do not wait behind a large flush of writes.
"""

import time
from collections.abc import Callable, Collection, Sequence
from threading import Lock
from typing import Any, Final, Protocol

from tallyboard_server.errors import DeadlineExceeded, TallyboardError, Unavailable
from tallyboard_server.redis import scripts
from tallyboard_server.redis.calls import Amendment, ScriptCall, Why, unanswered
from tallyboard_server.redis.fences import Fences, closed
from tallyboard_server.redis.link import CLOSED, Admission, Link
from tallyboard_server.redis.operations import Command, Part, Read, Write
from tallyboard_server.redis.rankings import EntriesRead, Found, Ranking

_NO_ANSWER = "Redis did not answer before the deadline of the call"
# Those whose operations commute with all others, so that they may be applied later.
JOURNALED: Final = (scripts.ADD, scripts.ADD_WIDE, scripts.SUBMIT)


class Journal(Protocol):
    """Keeps durable what Redis does not take, until it does."""

    def submit(self, parts: Sequence[Part], size: int) -> None:
        """Takes parts; each is over once it is durable, or applied.

        Raises:
            Unavailable, Overloaded: nothing was taken.
        """
        ...

    def take(self, items: Sequence[Part | ScriptCall], why: str) -> None:
        """Takes over what a link could not send, or sent without an answer."""
        ...

    def amend(self, amendments: Sequence[Amendment]) -> None:
        """Takes parts out of rows, sends what is left of the calls on, and then `turn_away`s them.

        When their rows were applied meanwhile, they are over instead.
        """
        ...

    def claim(self, tenant: str, request_id: str, fingerprint: bytes, deadline: float) -> bytes:
        """Notes what a request id stands for; gives what it stood for first.

        Raises:
            Unavailable: Postgres is away too.
        """
        ...


class RedisStore:
    """Reads and writes of one worker.

    Args:
        url: the Redis node.
        fences: the incarnations expected.
        admission: is asked about every new connection.
        timeout: seconds without an answer after which Redis counts as away.
        max_pending: operations that may wait in a link.
        on_refused: takes over parts with keys that a shard can't hold.
        journals_first: whether every write is journaled before it is sent.

    `attach` gives it a journal; without one, what Redis does not take fails.
    Deadlines are values of `time.monotonic()`.
    """

    def __init__(
        self,
        url: str,
        fences: Fences,
        admission: Admission,
        *,
        timeout: float,
        max_pending: int,
        on_refused: Callable[[Part, list[str]], None],
        journals_first: bool = False,
    ) -> None:
        self.fences = fences
        self._journal: Journal | None = None
        self._journals_first = journals_first
        self._on_refused = on_refused
        self._links = [
            Link(
                url,
                fences,
                admission,
                timeout=timeout,
                max_pending=max_pending,
                on_refused=on_refused,
                on_stranded=self._strand,
                on_again=self._journal_again if journals_first else None,
                on_lost=self._suspect,
                on_amended=self._amend,
                keeps_tokens=journals_first,
                name=name,
            )
            for name in ("writes", "reads")
        ]
        self._writes, self._reads = self._links

    def _suspect(self, why: str) -> None:
        """Tells the other link; the one that found out has its breaker open by now."""
        for link in self._links:
            if link.down is None:
                link.suspect(why)

    def attach(self, journal: Journal) -> None:
        """Gives it a journal, before anything is submitted."""
        self._journal = journal

    @property
    def away(self) -> str | None:
        """Why nothing can be written to Redis, or None."""
        return self._writes.down

    def submit(self, parts: Sequence[Part], size: int) -> None:
        """Submits parts of a write whose `on_done` tells when it is over.

        Raises:
            Unavailable, Overloaded: nothing was taken.
        """
        journal = self._journal
        if journal is None or any(part.script not in JOURNALED for part in parts):
            self._writes.submit(parts, size)
        elif self._journals_first or self._writes.down is not None or self._are_closed(parts):
            journal.submit(parts, size)
        else:
            try:
                self._writes.submit(parts, size)
            except Unavailable:  # since this moment
                journal.submit(parts, size)

    def _are_closed(self, parts: Sequence[Part]) -> bool:
        """Whether a link would hand some of these to the journal, which has bounds of its own."""
        expected = self.fences.expected
        return any(expected(part.partition) is None for part in parts)

    def send_on(self, items: Sequence[Part | ScriptCall], size: int) -> None:
        """Sends what the journal has, or has no need of.

        Raises:
            Unavailable: Redis is away; nothing was taken.
        """
        self._writes.submit(items, size)

    def claim_elsewhere(
        self, tenant: str, request_id: str, fingerprint: bytes, error: Unavailable, deadline: float
    ) -> bytes:
        """Claims a request id in the journal, where Redis did not take it.

        Raises:
            Unavailable: `error`, if there is no journal; or Postgres is away too.
        """
        if self._journal is None:
            raise error
        return self._journal.claim(tenant, request_id, fingerprint, deadline)

    def _strand(self, items: Sequence[Part | ScriptCall], why: str) -> None:
        """Hands to the journal what belongs there; the rest fails."""
        kept: list[Part | ScriptCall] = []
        for item in items:
            if self._journal is not None and item.script in JOURNALED:
                kept.append(item)
            else:
                fail(item, why)
        if kept and self._journal is not None:
            self._journal.take(kept, why)

    def _amend(self, amendments: Sequence[Amendment]) -> None:
        assert self._journal is not None, "only a journal gives calls a row"
        self._journal.amend(amendments)

    def turn_away(self, part: Part, why: Why) -> None:
        """Does with a part what has to be done when it is in no call any more."""
        if isinstance(why, TallyboardError):
            part.done(why)
        elif why is None:
            self._journal_again(part)
        else:
            self._on_refused(part, why)

    def _journal_again(self, part: Part) -> None:
        """A part that needs another token needs another row, too."""
        try:
            self.submit((part,), part.items)
        except TallyboardError as error:
            part.done(error)

    def write(
        self,
        parts: Callable[[Write], None],
        size: int | None,
        deadline: float,
        submit: Callable[[Write, int], None] | None = None,
        *,
        raises: bool = True,
    ) -> Write:
        """Submits a write and waits for it.

        Args:
            parts: adds the parts to the write; with none, nothing is sent.
            size: how many operations they have; None to ask them.
            deadline: when to stop waiting.
            submit: submits the parts; by default all of them as they are.
            raises: whether the error of a part is raised or left in the write.

        Raises:
            DeadlineExceeded: no answer yet; the write may still count.
            TallyboardError: the error of a part.
        """
        done = Lock()
        done.acquire()
        write = Write(done.release)
        parts(write)
        if not write.parts:
            write.over = True
            return write
        if size is None:
            size = sum(part.items for part in write.parts)
        if submit is None:
            self.submit(write.parts, size)
        else:
            submit(write, size)
        self._wait(done, write, deadline)
        if raises and write.error is not None:
            raise write.error
        return write

    def get(
        self, keys: list[str], deadline: float, partitions: Collection[int] = ()
    ) -> list[bytes | None]:
        """The values of keys, live, in their order.

        Args:
            partitions: those that must still have the incarnation expected.

        Raises:
            Unavailable: Redis or one of the partitions is away.
        """
        done = Lock()
        done.acquire()
        read = Read(keys, done.release, partitions)
        self._reads.submit((read,), len(keys))
        self._wait(done, read, deadline)
        if read.error is not None:
            raise read.error
        return read.values

    def entries(
        self, lookups: Sequence[tuple[Ranking, Sequence[str]]], deadline: float
    ) -> list[Found]:
        """What the rankings say of members, live.

        Raises:
            Unavailable: Redis or one of the partitions is away.
            Unbuilt: dense ranks want their index first.
        """
        done = _Countdown(len(lookups))
        reads = [EntriesRead(ranking, members, done.one_less) for ranking, members in lookups]
        self._reads.submit(reads, sum(len(members) for _, members in lookups))
        if not done.wait(deadline):
            for read in reads:
                read.abandoned = True
            raise DeadlineExceeded(_NO_ANSWER)
        found = []
        for read in reads:
            if read.error is not None:
                raise read.error
            assert read.found is not None
            found.append(read.found)
        return found

    def commands(self, commands: list[tuple[Any, ...]], deadline: float) -> list[Any]:
        """The replies to commands, which run in this order; they must be safe to repeat."""
        done = Lock()
        done.acquire()
        operations = [Command(arguments, _nothing) for arguments in commands]
        operations[-1].on_done = done.release
        self._reads.submit(operations, len(operations))
        self._wait(done, operations[-1], deadline)
        for operation in operations:
            if operation.error is not None:
                raise operation.error
        return [operation.reply for operation in operations]

    def send(self, command: tuple[Any, ...]) -> None:
        """Sends a command and does not wait for its reply."""
        self._reads.submit((Command(command, _nothing),))

    def close(self) -> None:
        """Flushes what waits and ends the links."""
        for link in self._links:
            link.close()

    @staticmethod
    def _wait(done: Any, operation: Write | Read | Command, deadline: float) -> None:
        if not done.acquire(timeout=max(0.0, deadline - time.monotonic())):
            operation.abandoned = True
            raise DeadlineExceeded(_NO_ANSWER)


def fail(item: Part | ScriptCall, why: str) -> None:
    """Ends what can't be kept: with an error that says whether it may be sent again."""
    is_sent = isinstance(item, ScriptCall) and item.sent
    for part in item.parts if isinstance(item, ScriptCall) else (item,):
        if is_sent:
            part.done(unanswered(part, why))
        elif why == CLOSED:
            part.done(closed(part.partition))
        else:
            part.done(Unavailable(f"Redis is away: {why}"))


class _Countdown:
    """Waits for a number of outcomes, which come on a link's thread."""

    def __init__(self, count: int) -> None:
        self._left = count
        self._done = Lock()
        self._done.acquire()

    def one_less(self) -> None:
        self._left -= 1  # all on one thread
        if not self._left:
            self._done.release()

    def wait(self, deadline: float) -> bool:
        return self._done.acquire(timeout=max(0.0, deadline - time.monotonic()))


def _nothing() -> None:
    pass
