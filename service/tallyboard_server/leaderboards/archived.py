"""One window as Postgres has it, archived with its ranks: the same reads as of a live one."""

from collections.abc import Sequence
from typing import Any, Final

from tallyboard_server.leaderboards.live import Members, Slice
from tallyboard_server.leaderboards.model import RankMethod
from tallyboard_server.postgres import archive
from tallyboard_server.postgres.entries import WindowRow
from tallyboard_server.redis.rankings import Anchor

_NO_MOMENT: Final = 0


class ArchivedWindow:
    """One archived window, for one read.

    Args:
        conn: a connection whose reads see one moment (`archive.standing`).
        row: the window.
    """

    def __init__(self, conn: Any, row: WindowRow, descending: bool, method: RankMethod) -> None:
        self._conn = conn
        self._id = row.window_id
        self._size = row.entry_count or 0
        self._mean = row.mean
        self._descending = descending
        self._method = method

    @property
    def size(self) -> int:
        """How many entries it has."""
        return self._size

    @property
    def mean(self) -> float | None:
        """The mean of its scores."""
        return self._mean

    def members(self, names: Sequence[str]) -> Members:
        """The entries of those members that have one."""
        found = archive.entries_of(self._conn, self._id, names, self._method)
        return Members(
            True,
            self._size,
            {ranked.entry.member: ranked.entry for ranked in found},
            {ranked.entry.member: ranked.ordinal - 1 for ranked in found},
        )

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
        first, last = self._bounds(least, greatest)
        place = self._place(anchor, updated_at, member)
        if place is None:
            return None
        position, rank = place
        start = max(position - ahead, first)
        stop = min(position + count, last)
        entries = []
        if stop > start:
            ranked = archive.page(self._conn, self._id, start, stop - start, self._method)
            entries = [row.entry for row in ranked]
        cut = max(0, position - start)
        return Slice(True, self._size, last - first, position, rank, entries[:cut], entries[cut:])

    def scores_at(self, indexes: Sequence[int]) -> list[float]:
        """The scores at these positions, which count from 0; those beyond the end are left out."""
        found = archive.scores_at(self._conn, self._id, indexes)
        return [found[index] for index in indexes if index in found]

    def _bounds(self, least: float | None, greatest: float | None) -> tuple[int, int]:
        best, worst = (greatest, least) if self._descending else (least, greatest)
        first = 0 if best is None else archive.count_better(self._conn, self._id, best)
        last = self._size
        if worst is not None:
            last = archive.count_better(self._conn, self._id, worst, or_equal=True)
        return first, max(first, last)

    def _place(self, anchor: Anchor, updated_at: int, member: str) -> tuple[int, int] | None:
        """Position and rank of a place."""
        if anchor.kind == "i":
            position = min(int(anchor.score), self._size)
            return position, position + 1
        if anchor.kind == "e":
            return self._size, self._size + 1
        if anchor.kind == "m":
            name = anchor.element
            assert isinstance(name, str)
            members = self.members([name])
            if name not in members.entries:
                return None
            return members.positions[name], members.entries[name].rank
        score = float(anchor.score)
        if anchor.kind in "us":
            better = archive.count_better(self._conn, self._id, score)
            position = better
            if anchor.kind == "s":
                position = archive.count_better(self._conn, self._id, score, or_equal=True)
            return position, self._rank_at(position, better)
        position = archive.ranked_before(self._conn, self._id, score, updated_at, member)
        if anchor.kind == "a":
            there = archive.page(self._conn, self._id, position, 1, self._method)
            position += bool(there) and there[0].entry.member == member
        return position, position + 1

    def _rank_at(self, position: int, better: int) -> int:
        """The rank that a new entry behind `better` entries with better scores would get."""
        if self._method is RankMethod.ORDINAL:
            return position + 1
        if self._method is RankMethod.COMPETITION:
            return better + 1
        if not better:
            return 1
        (last,) = archive.page(self._conn, self._id, better - 1, 1, self._method)
        return last.entry.rank + 1
