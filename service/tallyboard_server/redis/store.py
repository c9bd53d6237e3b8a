"""The way from a request's thread to Redis and back: submit to a link, wait for the outcome.

Two links a node: exact reads and claims do not wait behind a large flush of writes.
"""

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from threading import Lock
from typing import Any, Final, NamedTuple, Protocol, TypeVar

from tallyboard_server.errors import DeadlineExceeded, TallyboardError, Unavailable
from tallyboard_server.redis import scripts
from tallyboard_server.redis.calls import Amendment, ScriptCall, Why, unanswered
from tallyboard_server.redis.fences import Fences, closed
from tallyboard_server.redis.keys import incarnation_key, key_of, slot_of
from tallyboard_server.redis.link import CLOSED, Admission, Link
from tallyboard_server.redis.operations import Command, Operation, Part, Read, Write
from tallyboard_server.redis.rankings import EntriesRead, Found, Ranking
from tallyboard_server.redis.routing import items_of, node_for
from tallyboard_server.redis.topology import Topology
from tallyboard_server.redis.urls import address_of

_Item = TypeVar("_Item")
_Name = TypeVar("_Name")
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


class NodeLinks(NamedTuple):
    """The links to one node."""

    writes: Link
    reads: Link


class RedisStore:
    """Reads and writes of one worker.

    Args:
        topology: which node has which partition.
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
        topology: Topology,
        fences: Fences,
        admission: Admission,
        *,
        timeout: float,
        max_pending: int,
        on_refused: Callable[[Part, list[str]], None],
        journals_first: bool = False,
    ) -> None:
        self.topology = topology
        self.fences = fences
        self._admission = admission
        self._timeout = timeout
        self._max_pending = max_pending
        self._journal: Journal | None = None
        self._journals_first = journals_first
        self._on_refused = on_refused
        self._links: dict[str, NodeLinks] = {}  # replaced as a whole
        self._is_closed = False
        self._lock = Lock()  # guards changes of _links, and _is_closed
        self._follow_layout()

    def _open_links(self, node: str) -> NodeLinks:
        def open_link(kind: str) -> Link:
            return Link(
                node,
                self.topology,
                self.fences,
                self._admission,
                timeout=self._timeout,
                max_pending=self._max_pending,
                on_refused=self._on_refused,
                on_stranded=self._strand,
                on_again=self._journal_again if self._journals_first else None,
                on_lost=lambda why: self._suspect(node, why),
                on_amended=self._amend,
                on_moved=lambda can_tell: self._find_moved(node, can_tell),
                on_elsewhere=self._reroute,
                keeps_tokens=self._journals_first,
                name=f"{kind}-{address_of(node)}",
            )

        return NodeLinks(open_link("writes"), open_link("reads"))

    def _follow_layout(self) -> None:
        """Has links to all nodes that have partitions, and to no others."""
        with self._lock:
            nodes = self.topology.layout.nodes
            if self._is_closed or set(nodes) == self._links.keys():
                return
            retired = [links for node, links in self._links.items() if node not in nodes]
            self._links = {node: self._links.get(node) or self._open_links(node) for node in nodes}
        for links in retired:
            for link in links:
                link.retire()

    def _find_moved(self, node: str, can_tell: bool) -> None:
        if can_tell:
            self.topology.refresh(told_by=node)
        else:
            self.topology.refresh(away=node)
        self._follow_layout()

    def _reroute(self, operations: Sequence[Operation | ScriptCall]) -> None:
        """Gives what another node has to run to its link, which has it in its queue in any case."""
        for operation in operations:
            if self._journals_first and isinstance(operation, Part):
                self._journal_again(operation)
                continue
            links = self._links_to(node_for(operation, self.topology.layout))
            is_write = isinstance(operation, Part | ScriptCall)
            (links.writes if is_write else links.reads).put((operation,), items_of(operation))

    def _links_to(self, node: str) -> NodeLinks:
        links = self._links.get(node)
        if links is None:  # the layout is another one since this moment
            self._follow_layout()
            links = self._links.get(node) or next(iter(self._links.values()))
        return links

    def _suspect(self, node: str, why: str) -> None:
        """Tells the other link; the one that found out has its breaker open by now."""
        for link in self._links.get(node, ()):
            if link.down is None:
                link.suspect(why)

    def attach(self, journal: Journal) -> None:
        """Gives it a journal, before anything is submitted."""
        self._journal = journal

    def away(self) -> set[int]:
        """The partitions that nothing can be written to, because their node is away."""
        layout, found = self.topology.layout, set[int]()
        for node in layout.nodes:
            if self._links_to(node).writes.down is not None:
                found.update(layout.partitions_of(node))
        return found

    def submit(self, parts: Sequence[Part], size: int) -> None:
        """Submits parts of a write whose `on_done` tells when it is over.

        Raises:
            Unavailable, Overloaded: nothing was taken.
        """
        journal = self._journal
        if journal is None or any(part.script not in JOURNALED for part in parts):
            self.send_on(parts, size)
        elif self._journals_first or self._are_closed(parts):
            journal.submit(parts, size)
        else:
            try:
                self.send_on(parts, size)
            except Unavailable:  # a node is away
                journal.submit(parts, size)

    def _are_closed(self, parts: Sequence[Part]) -> bool:
        """Whether a link would hand some of these to the journal, which has bounds of its own."""
        expected = self.fences.expected
        return any(expected(part.partition) is None for part in parts)

    def send_on(self, items: Sequence[Part | ScriptCall], size: int) -> None:
        """Sends what the journal has, or has no need of.

        Raises:
            Unavailable: a node is away; nothing was taken.
            Overloaded: too much waits; nothing was taken.
        """
        layout = self.topology.layout
        if len(layout.nodes) == 1:
            self._links_to(layout.nodes[0]).writes.submit(items, size)
            return
        by_node = group_by(items, lambda item: node_for(item, layout))
        sent = [
            (self._links_to(node).writes, group, sum(items_of(item) for item in group))
            for node, group in by_node.items()
        ]
        for link, _, of_these in sent:
            link.check(of_these)
        for link, group, of_these in sent:
            link.put(group, of_these)

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
        if not keys:
            return []
        layout = self.topology.layout
        if layout.is_cluster and len(keys) + len(partitions) > 1:
            return self._get_by_slot(keys, deadline, partitions)
        done = Lock()
        done.acquire()
        read = Read(keys, done.release, partitions)
        self._links_to(layout.node_of_key(keys[0])).reads.submit((read,), len(keys))
        self._wait(done, read, deadline)
        if read.error is not None:
            raise read.error
        return read.values

    def _get_by_slot(
        self, keys: list[str], deadline: float, partitions: Collection[int]
    ) -> list[bytes | None]:
        """One read a slot, for a command of a cluster may name no other keys."""
        checked = {incarnation_key(partition): partition for partition in partitions}
        by_slot = group_by([*dict.fromkeys(keys), *checked], slot_of)
        done = _Countdown(len(by_slot))
        reads = [
            Read(
                [key for key in group if key not in checked] or group,
                done.one_less,
                [checked[key] for key in group if key in checked],
            )
            for group in by_slot.values()
        ]
        self._run(reads, done, deadline)
        found = {
            key: value for read in reads for key, value in zip(read.keys, read.values, strict=True)
        }
        return [found[key] for key in keys]

    def _run(
        self,
        operations: Sequence[Read | EntriesRead | Command],
        done: "_Countdown",
        deadline: float,
    ) -> None:
        """Has operations run by their nodes, and waits for all.

        Raises:
            TallyboardError: the error of one.
        """
        layout = self.topology.layout
        by_node = group_by(operations, lambda operation: node_for(operation, layout))
        for node, group in by_node.items():
            size = sum(items_of(operation) for operation in group)
            self._links_to(node).reads.submit(group, size)
        if not done.wait(deadline):
            for operation in operations:
                operation.abandoned = True
            raise DeadlineExceeded(_NO_ANSWER)
        for operation in operations:
            if operation.error is not None:
                raise operation.error

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
        self._run(reads, done, deadline)
        return [read.found for read in reads if read.found is not None]

    def commands(self, commands: list[tuple[Any, ...]], deadline: float) -> list[Any]:
        """The replies to commands, each of which is safe to repeat.

        Those for one node run in this order.
        """
        done = _Countdown(len(commands))
        operations = [Command(arguments, done.one_less) for arguments in commands]
        self._run(operations, done, deadline)
        return [operation.reply for operation in operations]

    def send(self, command: tuple[Any, ...]) -> None:
        """Sends a command and does not wait for its reply."""
        node = self.topology.layout.node_of_key(key_of(command))
        self._links_to(node).reads.submit((Command(command, _nothing),))

    def close(self) -> None:
        """Flushes what waits and ends the links."""
        with self._lock:
            self._is_closed = True
        links = [link for each in self._links.values() for link in each]
        for link in links:
            link.retire()
        for link in links:
            link.close()

    @staticmethod
    def _wait(done: Any, operation: Write | Read, deadline: float) -> None:
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
    """Waits for a number of outcomes, which come on the links' threads."""

    def __init__(self, count: int) -> None:
        self._left = count
        self._counting = Lock()  # guards _left
        self._done = Lock()
        if count:
            self._done.acquire()

    def one_less(self) -> None:
        with self._counting:
            self._left -= 1
            if self._left:
                return
        self._done.release()

    def wait(self, deadline: float) -> bool:
        return self._done.acquire(timeout=max(0.0, deadline - time.monotonic()))


def group_by(items: Iterable[_Item], name: Callable[[_Item], _Name]) -> dict[_Name, list[_Item]]:
    """Items by what `name` says of each, in their order."""
    groups: dict[_Name, list[_Item]] = {}
    for item in items:
        groups.setdefault(name(item), []).append(item)
    return groups


def _nothing() -> None:
    pass
