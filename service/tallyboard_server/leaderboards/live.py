"""One window as Redis has it, read over all its segments as if it were one ranking.

With one segment, a script answers all. With more, each is asked the same question about its own
part, in one flush, and the answers are merged: how many entries rank before a place is a sum, and
the entries next to it are among those next to it in each segment.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from functools import lru_cache
from heapq import merge
from itertools import islice
from typing import Any, Final, NamedTuple, TypeVar

from tallyboard_server.errors import Unavailable
from tallyboard_server.leaderboards.distinct import DistinctIndexes
from tallyboard_server.leaderboards.model import Entry, Leaderboard, RankMethod, TieBreak
from tallyboard_server.redis.fences import closed
from tallyboard_server.redis.keys import segment_of, segment_partition, window_keys
from tallyboard_server.redis.rankings import (
    Anchor,
    Found,
    Places,
    Ranking,
    Stretch,
    Unbuilt,
    better_scores_command,
    page_command,
    parse_places,
    parse_stretch,
    parse_sum,
    places_command,
    trim_command,
)
from tallyboard_server.redis.scores import element_of, parse_record
from tallyboard_server.redis.store import RedisStore

_SCORES_A_PAGE: Final = 5_000
_SELECT_ROUNDS: Final = 200
_FEW: Final = 64
_TRIM_ROUNDS: Final = 1000

Answer = TypeVar("Answer")


class Slice(NamedTuple):
    """Entries next to a place.

    Attributes:
        exists: whether the window was ever written to, and is still in Redis.
        size: how many entries the window has.
        within: how many are within the bounds asked for.
        position: how many entries rank before the place.
        rank: the rank of what is, or would be, at the place.
        before, behind: the entries on either side, best first.
        sums: of the scores of each segment, as `parse_sum` has them.
    """

    exists: bool
    size: int
    within: int
    position: int
    rank: int
    before: list[Entry]
    behind: list[Entry]
    sums: tuple[tuple[float, ...], ...] = ()


class Members(NamedTuple):
    """Members that were looked up: their entries, and how many entries rank before each."""

    exists: bool
    size: int
    entries: dict[str, Entry]
    positions: dict[str, int]


class LiveWindow:
    """One window in Redis, for one read.

    Args:
        partitions: how many there are.
        deadline: of `time.monotonic()`.
    """

    def __init__(
        self,
        store: RedisStore,
        indexes: DistinctIndexes,
        board: Leaderboard,
        window: str,
        method: RankMethod,
        partitions: int,
        deadline: float,
    ) -> None:
        self._store = store
        self._indexes = indexes
        self._descending = board.is_descending
        self._earliest = board.tie_break is TieBreak.EARLIEST
        self._method = method
        self._deadline = deadline
        self._segments = _rankings(
            board.tenant,
            board.leaderboard_id,
            board.board_key,
            window,
            self._descending,
            self._earliest,
            method,
            min(board.segments, partitions),
            partitions,
        )

    def members(self, names: Sequence[str]) -> Members:
        """The entries of those members that have one."""
        groups: list[Sequence[str]] = [names]
        if len(self._segments) > 1:
            lists: list[list[str]] = [[] for _ in self._segments]
            for name in names:
                lists[segment_of(name, len(lists))].append(name)
            groups = list(lists)
        lookups = list(zip(self._segments, groups, strict=True))
        found = self._ask(lambda: self._store.entries(lookups, self._deadline))
        members = Members(any(f.exists for f in found), sum(f.size for f in found), {}, {})
        for group, segment in zip(groups, found, strict=True):
            self._take(members, group, segment)
        if len(self._segments) > 1 and members.entries:
            self._rank_members(members)
        return members

    def around(
        self,
        anchor: Anchor,
        ahead: int,
        count: int,
        least: float | None = None,
        greatest: float | None = None,
    ) -> Slice | None:
        """Up to `ahead` entries before a place and `count` behind it, within bounds.

        None when the anchor is a member that has no entry.
        """
        if len(self._segments) > 1:
            placed = self._place(anchor)
            if placed is None:
                return None
            return self._around_all(placed, ahead, count, (least, greatest))
        (stretch,) = self._ask(lambda: self._stretches(anchor, ahead, count, (least, greatest)))
        if stretch is None:
            return None
        entries = self._entries(stretch)
        cut = max(0, stretch.position - stretch.start)
        return Slice(
            stretch.meta is not None,
            stretch.size,
            stretch.within,
            stretch.position,
            stretch.rank,
            entries[:cut],
            entries[cut:],
            (parse_sum(stretch.meta),),
        )

    def scores_at(self, indexes: Sequence[int]) -> list[float]:
        """The scores at these positions, which count from 0; those beyond the end are left out."""
        if len(self._segments) > 1:
            placed = [self._select(index) for index in indexes]
            return [entry.score for entry in placed if entry is not None]
        segment = self._segments[0]
        commands = [page_command(segment, Anchor("i", index), 0, 1) for index in indexes]
        found: list[float] = []
        for reply in self._store.commands(commands, self._deadline):
            stretch = parse_stretch(reply, segment.partition, self._store.fences)
            assert stretch is not None
            found += [entry.score for entry in self._entries(stretch)]
        return found

    def exists(self) -> bool:
        """Whether Redis has the window."""
        commands = [("HEXISTS", segment.keys.entries, "") for segment in self._segments]
        return any(self._store.commands(commands, self._deadline))

    def _ask(self, question: Callable[[], Answer]) -> Answer:
        """The answer; builds the index of distinct scores first if it needs one."""
        while True:
            try:
                answer = question()
            except Unbuilt:
                self._indexes.build(self._segments, self._deadline)
                continue
            if self._method is RankMethod.DENSE:
                self._indexes.keep(self._segments)
            return answer

    def _stretches(
        self, anchor: Anchor, ahead: int, count: int, bounds: tuple[float | None, float | None]
    ) -> list[Stretch | None]:
        commands = [page_command(s, anchor, ahead, count, *bounds) for s in self._segments]
        replies = self._store.commands(commands, self._deadline)
        return [
            parse_stretch(reply, segment.partition, self._store.fences)
            for reply, segment in zip(replies, self._segments, strict=True)
        ]

    def _entries(self, stretch: Stretch) -> list[Entry]:
        descending, earliest = self._descending, self._earliest
        entries = []
        rows = zip(stretch.elements[::2], stretch.records, stretch.ranks, strict=True)
        for element, data, rank in rows:
            updated_at, score, metadata = parse_record(data, descending)
            member = (element[8:] if earliest else element).decode()
            entries.append(Entry(rank, member, score, metadata, updated_at))
        return entries

    def _take(self, members: Members, names: Sequence[str], found: Found) -> None:
        _, _, entries, positions = members
        descending = self._descending
        for name, data, rank, position in zip(
            names, found.records, found.ranks, found.positions, strict=True
        ):
            if data is not None:
                updated_at, score, metadata = parse_record(data, descending)
                entries[name] = Entry(rank, name, score, metadata, updated_at)
                positions[name] = position

    # What follows is for windows of several segments.

    def trim(self, most: int) -> None:
        """Drops all but the best `most` entries of all segments together."""
        for _ in range(_TRIM_ROUNDS):
            sizes = [self._size(stretch) for stretch in self._ask_sizes()]
            if sum(sizes) <= most:
                return
            place = self._select(most)
            if place is None:
                continue
            element = self._element(place)
            commands = []
            for segment, size in zip(self._segments, sizes, strict=True):
                incarnation = self._store.fences.expected(segment.partition)
                if incarnation is None:
                    raise closed(segment.partition)
                commands.append(trim_command(segment, incarnation, size, place.score, element))
            self._store.commands(commands, self._deadline)
        raise _too_fast()

    def _rank_members(self, members: Members) -> None:
        """Ranks entries among those of all segments."""
        entries = list(members.entries.values())
        places = self._places(entries)
        distinct: list[float] = []
        if self._method is RankMethod.DENSE:
            scores = [entry.score for entry in entries]
            distinct = self._distinct_better(min(scores) if self._descending else max(scores))
        for i, entry in enumerate(entries):
            position = sum(place.before[i] for place in places)
            members.positions[entry.member] = position
            better = sum(place.better[i] for place in places)
            rank = self._rank_of(entry.score, position, better, distinct)
            members.entries[entry.member] = _ranked(entry, rank)

    def _rank_of(self, score: float, position: int, better: int, distinct: list[float]) -> int:
        """The rank of an entry; `distinct` holds at least all scores better than its own."""
        if self._method is RankMethod.COMPETITION:
            return better + 1
        if self._method is RankMethod.DENSE:
            if self._descending:
                return len(distinct) - bisect_right(distinct, score) + 1
            return bisect_left(distinct, score) + 1
        return position + 1

    def _places(self, entries: Sequence[Entry]) -> list[Places]:
        anchors = [(entry.score, self._element(entry)) for entry in entries]
        commands = [places_command(segment, anchors) for segment in self._segments]
        replies = self._store.commands(commands, self._deadline)
        return [
            parse_places(reply, segment.partition, self._store.fences)
            for reply, segment in zip(replies, self._segments, strict=True)
        ]

    def _element(self, entry: Entry) -> bytes:
        return element_of(
            entry.member, entry.updated_at, descending=self._descending, earliest=self._earliest
        )

    def _place(self, anchor: Anchor) -> Anchor | None:
        """The same place by score and element, which every segment understands."""
        entry: Entry | None = None
        if anchor.kind == "m":
            name = anchor.element
            assert isinstance(name, str)
            entry = self.members([name]).entries.get(name)
            if entry is None:
                return None
        elif anchor.kind == "i" and anchor.score:
            entry = self._select(int(anchor.score))
            if entry is None:
                return Anchor("e")
        if entry is None:
            return anchor
        return Anchor("b", entry.score, self._element(entry))

    def _around_all(
        self, anchor: Anchor, ahead: int, count: int, bounds: tuple[float | None, float | None]
    ) -> Slice:
        stretches = self._stretches(anchor, ahead, count, bounds)
        before: list[list[Entry]] = []
        behind: list[list[Entry]] = []
        size = within = position = 0
        exists = False
        for stretch in stretches:
            assert stretch is not None
            entries = self._entries(stretch)
            cut = max(0, stretch.position - stretch.start)
            before.append(entries[:cut])
            behind.append(entries[cut:])
            size, within = size + stretch.size, within + stretch.within
            position, exists = position + stretch.position, exists or stretch.meta is not None
        first = self._merge(before)
        first = first[len(first) - min(ahead, len(first)) :]
        then = list(islice(self._merge(behind), count))
        rank = self._rank_at(anchor, position)
        ranked = self._rank_list([*first, *then], position - len(first))
        return Slice(
            exists,
            size,
            within,
            position,
            rank,
            ranked[: len(first)],
            ranked[len(first) :],
            tuple(parse_sum(stretch.meta) for stretch in stretches if stretch),
        )

    def _merge(self, lists: list[list[Entry]]) -> list[Entry]:
        return list(
            merge(*lists, key=lambda e: (e.score, self._element(e)), reverse=self._descending)
        )

    def _rank_at(self, anchor: Anchor, position: int) -> int:
        """The rank of what is, or would be, at a place among several segments."""
        if self._method is RankMethod.ORDINAL or anchor.kind in "ie":
            return position + 1
        score = float(anchor.score)
        commands = [places_command(segment, [(score, b"")]) for segment in self._segments]
        replies = self._store.commands(commands, self._deadline)
        better = sum(
            parse_places(reply, segment.partition, self._store.fences).better[0]
            for reply, segment in zip(replies, self._segments, strict=True)
        )
        is_dense = self._method is RankMethod.DENSE
        distinct = self._distinct_better(score) if is_dense else []
        return self._rank_of(score, position, better, distinct)

    def _rank_list(self, entries: list[Entry], position: int) -> list[Entry]:
        """Ranks entries that follow each other, the first of which has `position` before it."""
        if not entries:
            return []
        ordinal = self._method is RankMethod.ORDINAL
        rank = position + 1 if ordinal else self._rank_at(self._anchor_of(entries[0]), position)
        ranked = [_ranked(entries[0], rank)]
        for i, entry in enumerate(entries[1:], start=1):
            if ordinal or (
                entry.score != entries[i - 1].score and self._method is RankMethod.COMPETITION
            ):
                rank = position + i + 1
            elif entry.score != entries[i - 1].score:
                rank += 1
            ranked.append(_ranked(entry, rank))
        return ranked

    def _anchor_of(self, entry: Entry) -> Anchor:
        return Anchor("b", entry.score, self._element(entry))

    def _distinct_better(self, score: float) -> list[float]:
        """The different scores that are better than one, in all segments together, in order.

        The same score may be in several segments, so they have to be looked at: the one read whose
        cost follows a rank.
        """
        states = [("GET", segment.keys.distinct_state) for segment in self._segments]
        if any(state != b"done" for state in self._store.commands(states, self._deadline)):
            self._indexes.build(self._segments, self._deadline)
        self._indexes.keep(self._segments)
        scores: set[float] = set()
        for segment in self._segments:
            page: list[bytes] = []
            after = None
            while after is None or len(page) == _SCORES_A_PAGE:
                command = better_scores_command(segment, score, after, _SCORES_A_PAGE)
                page = self._store.commands([command], self._deadline)[0]
                scores.update(map(float, page))
                after = page[-1].decode() if page else ""
        return sorted(scores)

    def _select(self, index: int) -> Entry | None:
        """The entry at a position among all segments; None beyond the end.

        Narrows the range of every segment by a median of their medians until few are left.
        """
        sizes = [self._size(stretch) for stretch in self._ask_sizes()]
        if not 0 <= index < sum(sizes):
            return None
        low, high = [0] * len(sizes), sizes
        for _ in range(_SELECT_ROUNDS):
            if sum(high) - sum(low) <= _FEW:
                break
            pivot = self._median(low, high)
            places = [place.before[0] for place in self._places([pivot])]
            if sum(places) <= index:
                low = [max(a, b) for a, b in zip(low, places, strict=True)]
            else:
                high = [min(a, b) for a, b in zip(high, places, strict=True)]
        else:
            raise _too_fast()
        left = self._merge(self._ranges(low, [b - a for a, b in zip(low, high, strict=True)]))
        at = index - sum(low)
        if 0 <= at < len(left):
            return left[at]
        raise _too_fast()

    def _ask_sizes(self) -> list[Stretch | None]:
        return self._stretches(Anchor("e"), 0, 0, (None, None))

    @staticmethod
    def _size(stretch: Stretch | None) -> int:
        assert stretch is not None
        return stretch.size

    def _median(self, low: list[int], high: list[int]) -> Entry:
        """The weighted median of the segments' medians."""
        middles = [(a + b) // 2 for a, b in zip(low, high, strict=True)]
        counts = [int(b > a) for a, b in zip(low, high, strict=True)]
        weights = {}
        for entries, a, b in zip(self._ranges(middles, counts), low, high, strict=True):
            if entries:
                weights[entries[0].member] = (entries[0], b - a)
        ordered = self._merge([[entry] for entry, _ in weights.values()])
        half, seen = sum(weight for _, weight in weights.values()) / 2, 0
        for entry in ordered:
            seen += weights[entry.member][1]
            if seen >= half:
                return entry
        raise _too_fast()

    def _ranges(self, starts: list[int], counts: list[int]) -> list[list[Entry]]:
        """The entries of each segment from a position of its own on."""
        commands: list[tuple[Any, ...]] = [
            page_command(segment, Anchor("i", start), 0, count)
            for segment, start, count in zip(self._segments, starts, counts, strict=True)
        ]
        replies = self._store.commands(commands, self._deadline)
        ranges = []
        for reply, segment in zip(replies, self._segments, strict=True):
            stretch = parse_stretch(reply, segment.partition, self._store.fences)
            assert stretch is not None
            ranges.append(self._entries(stretch))
        return ranges


def _too_fast() -> Unavailable:
    return Unavailable("the ranking changes faster than it can be read; try again")


def _ranked(entry: Entry, rank: int) -> Entry:
    return Entry(rank, entry.member, entry.score, entry.metadata, entry.updated_at)


@lru_cache(maxsize=8192)
def _rankings(
    tenant: str,
    leaderboard_id: str,
    board_key: str,
    window: str,
    descending: bool,
    earliest: bool,
    method: RankMethod,
    segments: int,
    partitions: int,
) -> tuple[Ranking, ...]:
    """What the scripts have to know of each segment."""
    places = [
        segment_partition(tenant, leaderboard_id, segment, partitions)
        for segment in range(segments)
    ]
    return tuple(
        Ranking(
            place,
            window_keys(place, board_key, window),
            descending,
            earliest,
            # Ranks among several segments are worked out here.
            method.value[0].lower() if segments == 1 else "o",
        )
        for place in places
    )
