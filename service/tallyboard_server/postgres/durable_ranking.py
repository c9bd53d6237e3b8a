"""The ranking of a window that is not archived: stored entries, with those of the journal on top.

Callers hold the transaction, whose reads have to see one moment (see `durable.reading`). Moments
are microseconds since 1970-01-01T00:00:00Z, indexes count from 0.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, Final, LiteralString, NamedTuple

import psycopg

from tallyboard_server.leaderboards.model import SortOrder, TieBreak
from tallyboard_server.postgres.durable import BY_INDEX, BY_SCORE, BY_TABLE, has_journal
from tallyboard_server.postgres.entries import ranking
from tallyboard_server.postgres.statements import statement

_STORED_WEIGHTS: Final = (
    "(SELECT score, 1 AS weight FROM tallyboard.leaderboard_entries"
    " WHERE window_id = %(window_id)s) AS entry"
)
_NOT_REPLACED: Final = (
    "NOT EXISTS (SELECT FROM tallyboard.journal_entries AS newer"
    " WHERE newer.window_id = held.window_id AND newer.member = held.member)"
)
_SCALE: Final = 2.0**32

# Orders of whole rankings with the worst entry first, by whether the greatest score ranks first
# and whether who was earlier does.
_REVERSED: Final[Mapping[tuple[bool, bool], LiteralString]] = {
    (True, True): "score, updated_at DESC, member",
    (True, False): "score, member",
    (False, True): "score DESC, updated_at DESC, member DESC",
    (False, False): "score DESC, member DESC",
}
# By whether the greatest score ranks first.
_BETTER: Final[Mapping[bool, LiteralString]] = {True: ">", False: "<"}
_WORSE: Final[Mapping[bool, LiteralString]] = {True: "<", False: ">"}


class DurableEntry(NamedTuple):
    """An entry as of the last checkpoint, or as the journal has it."""

    member: str
    score: float
    updated_at: int
    metadata: bytes


class Tie(NamedTuple):
    """A score, and which indexes have it: from `first` to before `behind`."""

    score: float
    first: int
    behind: int


class Place(NamedTuple):
    """A place between two entries of a ranking.

    Attributes:
        kind: "u" (before all entries with the score), "s" (behind them), "b" and "a" (before and
            behind the entry with this score, moment and member, whether or not it is there).
        updated_at: counts only where the board's tie break is EARLIEST.
    """

    kind: str
    score: float
    updated_at: int = 0
    member: str = ""


class DurableRanking:
    """The ranking of one window, from its stored entries and those of the journal.

    Counts read an index as far as they go, pages only themselves.

    Args:
        conn: a connection of `reading`.
        window_id: which window.
        sort_order, tie_break: the board's.
    """

    def __init__(
        self,
        conn: psycopg.Connection[Any],
        window_id: int,
        sort_order: SortOrder,
        tie_break: TieBreak,
    ) -> None:
        self._conn = conn
        self._id = window_id
        self._descending = sort_order is SortOrder.DESCENDING
        self._earliest = tie_break is TieBreak.EARLIEST
        self._order = ranking(sort_order, tie_break)

    def size(self) -> int:
        """How many entries there are."""
        return self._count("true")

    def within(self, least: float | None, greatest: float | None) -> int:
        """How many entries have scores within bounds, both included; None is no bound."""
        condition, arguments = _bounds(least, greatest)
        return self._count(condition, **arguments)

    def ahead_of(self, place: Place) -> int:
        """How many entries rank before a place."""
        count = self.better([place.score])[0]
        if place.kind == "u":
            return count
        tied: LiteralString = "true" if place.kind == "s" else self._tied(place)
        return count + self._count(
            f"entry.score = %(score)s::float8 AND ({tied})", **place._asdict()
        )

    def better(self, scores: Sequence[float]) -> list[int]:
        """For each of these scores, how many entries have a better one."""
        if len(scores) == 1:
            better = f"entry.score {_BETTER[self._descending]} %(score)s::float8"
            return [self._count(better, score=scores[0])]
        return self._buckets("durable_better", scores)

    def distinct_better(self, scores: Sequence[float]) -> list[int]:
        """For each of these scores, how many different scores are better. Reads all of those."""
        with self._weights() as weights:
            return self._buckets("durable_distinct", scores, weights)

    def members(self, names: Sequence[str]) -> dict[str, DurableEntry]:
        """The entries of those members that have one."""
        rows = self._execute(statement("durable_members"), members=list(names))
        return {row[0]: DurableEntry(*row) for row in rows}

    def ties(self, entries: Iterable[DurableEntry]) -> dict[str, int]:
        """By member, how many entries with the same score rank before each of these."""
        found = list(entries)
        rows = self._execute(
            statement("durable_ties").format(order=self._order),
            members=[entry.member for entry in found],
            scores=list({entry.score for entry in found}),
        )
        return dict(rows.fetchall())

    def behind(
        self,
        place: Place | None,
        limit: int,
        bounds: tuple[float | None, float | None] = (None, None),
        skip: int = 0,
    ) -> list[DurableEntry]:
        """The entries behind a place, or (None) from the top, best first.

        Args:
            bounds: least and greatest score; others are left out.
            skip: how many to leave out first; they are read all the same.
        """
        condition: LiteralString = "true"
        if place is not None:
            worse = f"entry.score {_WORSE[self._descending]}"
            condition = f"{worse} %(score)s::float8"
            if place.kind == "u":
                condition = f"{worse}= %(score)s::float8"
            elif place.kind != "s":
                condition = (
                    f"{worse}= %(score)s::float8 AND ({condition} OR NOT ({self._tied(place)}))"
                )
        return self._page(condition, self._order, place, limit, bounds, skip)

    def before(
        self,
        place: Place | None,
        limit: int,
        bounds: tuple[float | None, float | None] = (None, None),
        skip: int = 0,
    ) -> list[DurableEntry]:
        """The entries before a place, or (None) up to the end, worst first.

        Otherwise as `behind`.
        """
        condition: LiteralString = "true"
        if place is not None:
            better = f"entry.score {_BETTER[self._descending]}"
            condition = f"{better} %(score)s::float8"
            if place.kind == "s":
                condition = f"{better}= %(score)s::float8"
            elif place.kind != "u":
                condition = f"{better}= %(score)s::float8 AND ({condition} OR {self._tied(place)})"
        order = _REVERSED[self._descending, self._earliest]
        return self._page(condition, order, place, limit, bounds, skip)

    def scores_at(self, indexes: Sequence[int], size: int) -> dict[int, Tie]:
        """The scores at these indexes, of which there are `size`; reads all scores.

        What is beyond the end is left out.
        """
        # Read in ascending order, as indexes have them, whichever is the best.
        held = {index for index in indexes if 0 <= index < size}
        asked = sorted(size - 1 - index if self._descending else index for index in held)
        if not asked:
            return {}
        with self._weights() as weights:
            query = statement("durable_scores").format(weights=weights)
            rows = self._execute(query, indexes=asked).fetchall()
        ties = [Tie(*row) for row in rows]
        if self._descending:
            ties = [Tie(score, size - behind, size - first) for score, first, behind in ties]
        return {index: tie for tie in ties for index in held if tie.first <= index < tie.behind}

    def mean(self, size: int) -> float | None:
        """The mean of all scores, of which there are `size`; reads the whole window."""
        if not size:
            return None
        query = statement("durable_sum")
        if self._is_journaled:
            with self._planned(BY_TABLE):
                row = self._execute(query.format(kept=_NOT_REPLACED)).fetchone()
        else:
            row = self._execute(query.format(kept="true")).fetchone()
        small, large = row or (0.0, 0.0)
        return float(large) / size * _SCALE + float(small) / size

    @cached_property
    def _is_journaled(self) -> bool:
        return has_journal(self._conn, self._id)

    @contextmanager
    def _weights(self) -> Iterator[LiteralString]:
        """What a statement can read all scores from."""
        if not self._is_journaled:
            yield _STORED_WEIGHTS
            return
        with self._planned(BY_SCORE):
            yield statement("durable_weights")

    @contextmanager
    def _planned(self, how: LiteralString) -> Iterator[None]:
        """Has the planner look for other ways."""
        self._conn.execute(how)
        yield
        self._conn.execute(BY_INDEX)

    def _tied(self, place: Place) -> LiteralString:
        """Whether an entry with the score of a place ("a" or "b") ranks before it."""
        by_member: LiteralString = "entry.member > " if self._descending else "entry.member < "
        if place.kind == "a":
            by_member = "entry.member >= " if self._descending else "entry.member <= "
        tied: LiteralString = f"{by_member} %(member)s"
        if not self._earliest:
            return tied
        moment = "tallyboard.moment(%(updated_at)s)"
        return f"(entry.updated_at < {moment} OR entry.updated_at = {moment} AND {tied})"

    def _page(
        self,
        condition: LiteralString,
        order: LiteralString,
        place: Place | None,
        limit: int,
        bounds: tuple[float | None, float | None],
        skip: int,
    ) -> list[DurableEntry]:
        if limit <= 0:
            return []
        within, arguments = _bounds(*bounds)
        arguments |= {"limit": limit, "offset": skip, "most": limit + skip}
        if place is not None:
            arguments |= place._asdict()
        query = statement("durable_page").format(
            condition=f"({condition}) AND {within}", order=order
        )
        return [DurableEntry(*row) for row in self._execute(query, **arguments)]

    def _count(self, condition: LiteralString, **arguments: Any) -> int:
        query = statement("durable_count").format(condition=f"({condition})")
        row = self._execute(query, **arguments).fetchone()
        return 0 if row is None else int(row[0])

    def _buckets(
        self, name: str, scores: Sequence[float], weights: LiteralString = ""
    ) -> list[int]:
        """Sums up what is better than each score, from counts of what is between them."""
        sign = -1.0 if self._descending else 1.0
        keys = sorted({sign * score for score in scores})
        if not keys:
            return []
        query = statement(name).format(
            key="-entry.score" if self._descending else "entry.score",
            better=f"entry.score {_BETTER[self._descending]} %(worst)s::float8",
            weights=weights,
        )
        counts = dict(self._execute(query, keys=keys, worst=sign * keys[-1]).fetchall())
        sums, total = {}, 0
        for bucket, key in enumerate(keys):
            total += int(counts.get(bucket, 0))
            sums[key] = total
        return [sums[sign * score] for score in scores]

    def _execute(self, query: LiteralString, **arguments: Any) -> psycopg.Cursor[Any]:
        return self._conn.execute(query, arguments | {"window_id": self._id})


def _bounds(least: float | None, greatest: float | None) -> tuple[LiteralString, dict[str, Any]]:
    """A condition on scores, and its arguments."""
    condition: LiteralString = "true"
    if least is not None:
        condition = "entry.score >= %(least)s::float8"
    if greatest is not None:
        condition += " AND entry.score <= %(greatest)s::float8"
    return condition, {"least": least, "greatest": greatest}
