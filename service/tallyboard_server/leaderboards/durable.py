"""One window that is not archived, as Postgres has it with the journal: reads as of a live one."""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from tallyboard_server.leaderboards.live import Members, Slice
from tallyboard_server.leaderboards.model import Entry, Leaderboard, RankMethod
from tallyboard_server.postgres.durable_ranking import DurableEntry, DurableRanking, Place
from tallyboard_server.redis.rankings import Anchor

_NO_MOMENT: Final = 0
# Further from the top than this, a place is found from the scores alone.
_FAR: Final = 1_000


class _Spot(NamedTuple):
    """A place that was found: without one, the top or the end."""

    position: int
    rank: int
    place: Place | None = None


class DurableWindow:
    """One window, for one read.

    What the journal adds to a board's limit of entries is left out of answers, save the mean.

    Args:
        conn: a connection whose reads see one moment (`postgres.durable.reading`).
        window_id: which window.
    """

    def __init__(self, conn: Any, window_id: int, board: Leaderboard, method: RankMethod) -> None:
        self._ranking = DurableRanking(conn, window_id, board.sort_order, board.tie_break)
        self._descending = board.is_descending
        self._method = method
        self._total = self._ranking.size()
        self._size = min(self._total, board.max_entries or self._total)

    @property
    def size(self) -> int:
        """How many entries it has."""
        return self._size

    @property
    def mean(self) -> float | None:
        """The mean of its scores."""
        return self._ranking.mean(self._total)

    def members(self, names: Sequence[str]) -> Members:
        """The entries of those members that have one."""
        found = list(self._ranking.members(names).values())
        members = Members(True, self._size, {}, {})
        if not found:
            return members
        scores = [entry.score for entry in found]
        better = self._ranking.better(scores)
        distinct = better
        if self._method is RankMethod.DENSE:
            distinct = self._ranking.distinct_better(scores)
        ties = self._ranking.ties(found)
        for entry, ahead, different in zip(found, better, distinct, strict=True):
            position = ahead + ties[entry.member]
            if position < self._size:
                rank = (position if self._method is RankMethod.ORDINAL else different) + 1
                members.entries[entry.member] = _ranked(entry, rank)
                members.positions[entry.member] = position
        return members

    def around(
        self,
        anchor: Anchor,
        ahead: int,
        count: int,
        least: float | None = None,
        greatest: float | None = None,
        *,
        updated_at: int = _NO_MOMENT,
        member: str = "",
    ) -> Slice | None:
        """As LiveWindow.around; a place by element is given by its moment and member."""
        spot = self._spot(anchor, updated_at, member)
        if spot is None:
            return None
        bounds, position = (least, greatest), spot.position
        first, end = self._bounds(least, greatest)
        last = max(first, min(end, self._size))
        start = max(position - ahead, first)
        before: list[DurableEntry] = []
        behind: list[DurableEntry] = []
        if (wanted := min(position, last) - start) > 0:
            skip = end - last if spot.place is None else 0
            before = self._ranking.before(spot.place, wanted, bounds, skip)[::-1]
        if (wanted := min(position + count, last) - max(position, first)) > 0:
            behind = self._ranking.behind(spot.place, wanted, bounds)
        entries = self._rank([*before, *behind], start if before else max(position, first))
        cut = len(before)
        return Slice(
            True, self._size, last - first, position, spot.rank, entries[:cut], entries[cut:]
        )

    def scores_at(self, indexes: Sequence[int]) -> list[float]:
        """The scores at these positions, which count from 0; those beyond the end are left out."""
        if not self._size:
            return []
        last = self._size - 1
        (best,) = self._ranking.behind(None, 1)
        (worst,) = self._ranking.before(None, 1, skip=self._total - self._size)
        found = {0: best.score, last: worst.score}
        between = [index for index in indexes if 0 < index < last]
        found |= {
            at: tie.score for at, tie in self._ranking.scores_at(between, self._total).items()
        }
        return [found[index] for index in indexes if index in found]

    def _bounds(self, least: float | None, greatest: float | None) -> tuple[int, int]:
        """The indexes of what is within bounds, those above the board's limit included."""
        if least is None and greatest is None:
            return 0, self._total
        best = greatest if self._descending else least
        first = 0 if best is None else self._ranking.better([best])[0]
        return first, first + self._ranking.within(least, greatest)

    def _spot(self, anchor: Anchor, updated_at: int, member: str) -> _Spot | None:
        """Where a place is; None if it is a member's that has no entry."""
        if anchor.kind == "e":
            return _Spot(self._size, self._size + 1)
        if anchor.kind == "i":
            return self._spot_at(int(anchor.score))
        if anchor.kind == "m":
            name = anchor.element
            assert isinstance(name, str)
            members = self.members([name])
            entry = members.entries.get(name)
            if entry is None:
                return None
            place = Place("b", entry.score, entry.updated_at, name)
            return _Spot(members.positions[name], entry.rank, place)
        place = Place(anchor.kind, float(anchor.score), updated_at, member)
        position = self._ranking.ahead_of(place)
        rank = min(position, self._size) + 1
        if anchor.kind in "us":
            rank = self._rank_of(place.score, position)
        if position > self._size:
            return _Spot(self._size, rank)
        return _Spot(position, rank, place)

    def _spot_at(self, index: int) -> _Spot:
        if index >= self._size:
            return _Spot(self._size, self._size + 1)
        if index <= 0:
            return _Spot(0, 1)
        start, skip = None, index
        if index > _FAR:
            tie = self._ranking.scores_at([index], self._total)[index]
            start, skip = Place("u", tie.score), index - tie.first
        (entry,) = self._ranking.behind(start, 1, skip=skip)
        place = Place("b", entry.score, entry.updated_at, entry.member)
        return _Spot(index, index + 1, place)

    def _rank_of(self, score: float, position: int) -> int:
        """The rank of an entry with this score that has so many before it."""
        if self._method is RankMethod.ORDINAL or not position:
            return min(position, self._size) + 1
        if self._method is RankMethod.COMPETITION:
            return min(self._ranking.better([score])[0], self._size) + 1
        if position <= self._size:
            return self._ranking.distinct_better([score])[0] + 1
        (worst,) = self._ranking.before(None, 1, skip=self._total - self._size)
        # Behind the board's limit there are no further scores.
        different, most = self._ranking.distinct_better([score, worst.score])
        return min(different, most + 1) + 1

    def _rank(self, entries: Sequence[DurableEntry], position: int) -> list[Entry]:
        """Ranks entries that follow each other, the first of which has `position` before it."""
        ranked: list[Entry] = []
        rank = self._rank_of(entries[0].score, position) if entries else 0
        for i, entry in enumerate(entries):
            is_tied = i > 0 and entry.score == entries[i - 1].score
            if self._method is RankMethod.ORDINAL:
                rank = position + i + 1
            elif i > 0 and not is_tied:
                rank = position + i + 1 if self._method is RankMethod.COMPETITION else rank + 1
            ranked.append(_ranked(entry, rank))
        return ranked


def _ranked(entry: DurableEntry, rank: int) -> Entry:
    return Entry(rank, entry.member, entry.score, entry.metadata, entry.updated_at)
