"""Submissions on their way to Redis: plans, columns of scores, and calls of `submit.lua`.

What arrives together for one board and the same windows becomes one group of one script call, with
one item a member however many submissions it had (group commit).
"""

import struct
import sys
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from tallyboard_server.errors import Unavailable
from tallyboard_server.redis import scripts
from tallyboard_server.redis.calls import Outcome as CallOutcome
from tallyboard_server.redis.calls import ScriptCall, Why
from tallyboard_server.redis.operations import Part, Token, Write

# A script call holds Redis up for about 6 µs an item and window.
MAX_CALL_ITEMS: Final = 2000
# What is merged into one call; a part that is heavier has a call of its own.
MAX_WEIGHT: Final = 20_000
# What an item costs Redis, in operations of a counter.
ITEM_WEIGHT: Final = 5

_BIAS: Final = 1 << 52
_INVERTED: Final = 1 << 53
_NOW: Final = struct.Struct(">cQdd")
_NOW_WITH_RANKS: Final = struct.Struct(">cQddQQ")
_HEADER: Final = struct.Struct(">Qd")
_unpack_header = _HEADER.unpack_from


def code_of(moment: int, descending: bool) -> int:
    """A moment as it is kept: biased, and inverted on descending boards (see submit.lua)."""
    return _INVERTED - (moment + _BIAS) if descending else moment + _BIAS


def moment_of(code: int, descending: bool) -> int:
    """The moment of a code: microseconds since the epoch."""
    return _INVERTED - code - _BIAS if descending else code - _BIAS


class Record(NamedTuple):
    """A member's record: the moment, the score and the metadata that stayed."""

    updated_at: int
    score: float
    metadata: bytes


def parse_record(record: bytes, descending: bool) -> Record:
    """The parts of a record as the scripts write it."""
    code, score = _unpack_header(record)
    moment = _INVERTED - code - _BIAS if descending else code - _BIAS
    return Record(moment, score, record[16:])


def make_record(moment: int, score: float, metadata: bytes, descending: bool) -> bytes:
    """A record as the scripts write it."""
    return _HEADER.pack(code_of(moment, descending), score) + metadata


def element_of(member: str, moment: int, *, descending: bool, earliest: bool) -> bytes:
    """A member's element in the sorted set: what ranks equal scores."""
    name = member.encode()
    return struct.pack(">Q", code_of(moment, descending)) + name if earliest else name


@dataclass(frozen=True, eq=False)
class Plan:
    """Where submissions to one board at one time go in one partition, and by which rules.

    Submissions under the same plan (the same object) merge.

    Attributes:
        keys: fence and windows set, then those of each window, as submit.lua has them.
        head: revision, sort, tie break, policy, as submit.lua has them.
        windows: id, seconds to live and mode of each window, flat.
        policy: "B", "L" or "S".
    """

    partition: int
    tenant: str
    leaderboard_id: str
    board_key: str
    keys: tuple[str, ...]
    head: tuple[str, ...]
    most: int
    windows: tuple[Any, ...]
    policy: str
    descending: bool

    @property
    def width(self) -> int:
        """How many windows an item changes."""
        return len(self.windows) // 3


class Columns:
    """Scores for one plan, as parallel columns; members are distinct.

    Attributes:
        codes: moments as they are kept (`code_of`).
        metadata: empty (there is none), or one for each member.
    """

    __slots__ = ("codes", "members", "metadata", "scores")

    def __init__(
        self,
        members: list[str],
        scores: "array[float]",
        codes: "array[int]",
        metadata: list[bytes],
    ) -> None:
        self.members = members
        self.scores = scores
        self.codes = codes
        self.metadata = metadata


class State(NamedTuple):
    """An entry as far as policies look at it."""

    score: float
    code: int
    metadata: bytes = b""


def merged(plan: Plan, held: State, coming: State) -> State:
    """What stays of two contributions of one member, the one that came first given first."""
    return merge_states(plan.policy, plan.descending, held, coming)


def merge_states(policy: str, descending: bool, held: State, coming: State) -> State:
    """The same by policy ("B", "L" or "S") and whether the greatest score ranks first.

    The same rules as in submit.lua; of SUM, contributions are added up.
    """
    is_later = coming.code <= held.code if descending else coming.code >= held.code
    if policy == "L":
        return coming if is_later else held
    if policy == "S":
        total = held.score + coming.score
        return (coming if is_later else held)._replace(score=total)
    if coming.score == held.score:
        return held if is_later else coming
    better = coming.score > held.score if descending else coming.score < held.score
    return coming if better else held


class Outcome(NamedTuple):
    """What the items of a part did in one window: one of each for every item.

    Attributes:
        before, now: scores; None without an entry.
        ranks_before, ranks: ordinal ranks in the partition, 0 for none; empty if not asked for.
    """

    before: list[float | None]
    now: list[float | None]
    ranks_before: list[int]
    ranks: list[int]


class Refusal(NamedTuple):
    """Why a group was refused: the codes of submit.lua.

    `subject` is a window ("c", "a") or a member ("s").
    """

    code: str
    subject: str
    plan: Plan


class ScoresRefused(Unavailable):
    """Redis did not take a part's scores; nothing of the part was applied."""

    def __init__(self, refusals: list[Refusal]) -> None:
        super().__init__(
            "the leaderboard is being changed; try again", reason="PARTITION_UNAVAILABLE"
        )
        self.refusals = refusals


class ScorePart(Part):
    """A write's scores in one partition, by plan.

    Attributes:
        alone: whether it has a call to itself: what it was merged with has a sum out of range.
        answer: "" (none wanted), "s" (scores before and now) or "r" (ranks too).
        outcomes: one a window of each plan, once it is applied and if an answer is wanted; empty
            when the answer was lost and the part turned out to be applied.
    """

    __slots__ = ("_items", "_weight", "alone", "answer", "groups", "outcomes")

    def __init__(
        self,
        write: Write,
        partition: int,
        groups: dict[Plan, Columns],
        token: Token | None,
        answer: str = "",
    ) -> None:
        super().__init__(write, partition, {}, token, scripts.SUBMIT)
        self.groups = groups
        self.alone = False
        self.answer = answer
        self.outcomes: list[Outcome] = []
        self._items = self._weight = 0
        self.repeatable = True
        for plan, columns in groups.items():
            items = len(columns.members)
            self._items += items
            self._weight += items * plan.width * ITEM_WEIGHT
            if plan.policy == "S":
                self.repeatable = False

    @property
    def items(self) -> int:
        """How many scores it has, at least 1."""
        return self._items or 1

    @property
    def weight(self) -> int:
        """How long Redis works on it, in operations of a counter."""
        return self._weight or 1


class Group:
    """The scores of one call for one plan: those of one part, or of several, merged."""

    def __init__(self, plan: Plan, part: ScorePart, columns: Columns) -> None:
        self.plan = plan
        self.parts = [(part, columns)]
        self.columns = columns
        self.answer = part.answer
        self._index: dict[str, int] | None = None
        self._has_merged = False

    def add(self, part: ScorePart, columns: Columns) -> None:
        """Merges a part's scores."""
        if self._index is None:
            own = self.columns
            self._index = {member: i for i, member in enumerate(own.members)}
            self.columns = Columns(own.members[:], own.scores[:], own.codes[:], own.metadata[:])
        if len(columns.members) == 1:
            self._merge_only(self._index, columns)
        else:
            self._merge(self._index, columns)
        self.answer = max(self.answer, part.answer)
        self.parts.append((part, columns))

    def _merge_only(self, index: dict[str, int], coming: Columns) -> None:
        """Merges a single score, as most calls bring."""
        own, member = self.columns, coming.members[0]
        if coming.metadata and not own.metadata:
            own.metadata.extend([b""] * len(own.members))
        if member in index:
            self._merge_one(index, member, _state(coming, 0))
            return
        index[member] = len(own.members)
        own.members.append(member)
        own.scores.append(coming.scores[0])
        own.codes.append(coming.codes[0])
        if own.metadata:
            own.metadata.append(coming.metadata[0] if coming.metadata else b"")

    def _merge(self, index: dict[str, int], coming: Columns) -> None:
        own, size = self.columns, len(self.columns.members)
        if coming.metadata and not own.metadata:
            own.metadata.extend([b""] * size)
        if index.keys().isdisjoint(coming.members):
            index.update(zip(coming.members, range(size, size + len(coming.members)), strict=True))
            own.members.extend(coming.members)
            own.scores.extend(coming.scores)
            own.codes.extend(coming.codes)
            if own.metadata:
                own.metadata.extend(coming.metadata or [b""] * len(coming.members))
            return
        for i, member in enumerate(coming.members):
            self._merge_one(index, member, _state(coming, i))

    def _merge_one(self, index: dict[str, int], member: str, coming: State) -> None:
        own, at = self.columns, index.get(member)
        if at is None:
            index[member] = len(own.members)
            own.members.append(member)
            own.scores.append(coming.score)
            own.codes.append(coming.code)
            if own.metadata:
                own.metadata.append(coming.metadata)
            return
        self._has_merged = True
        stays = merged(self.plan, _state(own, at), coming)
        own.scores[at], own.codes[at] = stays.score, stays.code
        if own.metadata:
            own.metadata[at] = stays.metadata

    def arguments(self) -> list[Any]:
        """What submit.lua wants of a group."""
        plan, columns = self.plan, self.columns
        return [
            *plan.head,
            self.answer,
            plan.most,
            plan.width,
            *plan.windows,
            len(columns.members),
            _big_endian(columns.codes),
            _big_endian(columns.scores),
            len(columns.metadata),
            *columns.members,
            *columns.metadata,
        ]

    def settle(self, answers: Sequence[bytes]) -> None:
        """Gives the parts that want it what happened in each window, in the order they came."""
        for answer in answers:
            layout = _NOW_WITH_RANKS if self.answer == "r" else _NOW
            rows = list(layout.iter_unpack(answer))
            if self._has_merged:
                self._replay(rows)
                continue
            at = 0
            for part, columns in self.parts:
                to = at + len(columns.members)
                if part.answer:
                    part.outcomes.append(_outcome(rows[at:to]))
                at = to

    def _replay(self, rows: Sequence[tuple[Any, ...]]) -> None:
        """Goes through the parts one after the other, as if each had been applied by itself."""
        index = self._index or {}
        states: dict[str, State | None] = {
            member: State(rows[i][2], rows[i][1]) if rows[i][0] == b"e" else None
            for member, i in index.items()
        }
        for part, columns in self.parts:
            before, now = [], []
            for i, member in enumerate(columns.members):
                held, coming = states[member], _state(columns, i)
                stays = coming if held is None else merged(self.plan, held, coming)
                states[member] = stays
                before.append(None if held is None else held.score)
                is_there = rows[index[member]][3] == rows[index[member]][3]
                now.append(stays.score if is_there else None)
            part.outcomes.append(Outcome(before, now, [], []))


@dataclass
class ScoresCall(ScriptCall):
    """A call of `submit.lua`: groups by plan, in the order they came."""

    groups: dict[Plan, Group] = field(default_factory=dict)
    items: int = 0
    weight: int = 0

    @property
    def size(self) -> int:
        """How long Redis works on it at most, in operations of a counter."""
        return self.weight

    def merges(self, part: Part) -> bool:
        """Adds the part to the groups of its plans, if it fits."""
        assert isinstance(part, ScorePart)
        if self.parts:
            held = self.parts[0]
            assert isinstance(held, ScorePart)
            if "r" in (held.answer, part.answer):
                return False  # ranks in between would be lost
            if held.alone or part.alone:
                return False
            if self.items + part.items > MAX_CALL_ITEMS or self.weight + part.weight > MAX_WEIGHT:
                return False
        self.items += part.items
        self.weight += part.weight
        for plan, columns in part.groups.items():
            group = self.groups.get(plan)
            if group is None:
                self.groups[plan] = Group(plan, part, columns)
            else:
                group.add(part, columns)
        return True

    def names(self) -> list[str]:
        """The keys of every group."""
        return [key for group in self.groups.values() for key in group.plan.keys]

    def arguments(self) -> list[Any]:
        """The groups, as submit.lua has them."""
        arguments: list[Any] = [len(self.groups)]
        for group in self.groups.values():
            arguments += group.arguments()
        return arguments

    def answered(self, details: list[Any]) -> None:
        """Hands each group the answers of its windows."""
        at = 0
        for group in self.groups.values():
            if group.answer and details:
                group.settle(details[at : at + group.plan.width])
                at += group.plan.width

    def refusals(self, details: Sequence[bytes]) -> Iterator[Refusal]:
        """What submit.lua refused."""
        groups = list(self.groups.values())
        for detail in details:
            number, code, *what = detail.decode().split(":", 2)
            group = groups[int(number) - 1]
            subject = what[0] if what else ""
            if code == "s":
                subject = group.columns.members[int(subject) - 1]
            yield Refusal(code, subject, group.plan)

    def refused(self, details: list[Any], outcome: CallOutcome) -> None:
        """Ends the parts with refused groups; the others are sent again.

        A sum out of range says nothing of those that were added up: each goes again by itself.
        """
        refusals: dict[Part, list[Refusal]] = {}
        for refusal in self.refusals(details):
            group = self.groups[refusal.plan]
            if refusal.code == "s" and len(self.parts) > 1:
                for holder, columns in group.parts:
                    holder.alone |= refusal.subject in columns.members
                continue
            for holder, _ in group.parts:
                refusals.setdefault(holder, []).append(refusal)
        over: dict[Part, Why] = {}
        for part in self.parts:
            assert isinstance(part, ScorePart)
            if part in refusals:
                over[part] = ScoresRefused(refusals[part])
            elif part.alone and self.row is not None:
                over[part] = None
        outcome.take_out(self, over)


def _outcome(rows: Sequence[tuple[Any, ...]]) -> Outcome:
    if len(rows) == 1 and len(rows[0]) == 4:
        before, _, old, new = rows[0]
        return Outcome([old if before == b"e" else None], [new if new == new else None], [], [])
    return Outcome(
        [row[2] if row[0] == b"e" else None for row in rows],
        [row[3] if row[3] == row[3] else None for row in rows],  # NaN: no entry
        [row[4] for row in rows] if len(rows[0]) > 4 else [],
        [row[5] for row in rows] if len(rows[0]) > 4 else [],
    )


def _state(columns: Columns, i: int) -> State:
    metadata = columns.metadata[i] if columns.metadata else b""
    return State(columns.scores[i], columns.codes[i], metadata)


def _big_endian(values: "array[Any]") -> bytes:
    if sys.byteorder == "little":
        values = values[:]
        values.byteswap()
    return values.tobytes()
