"""Leaderboards as plain lists: what the service must answer, worked out the long way.

Moments are microseconds since the epoch. Boards are those of one shape: an all-time window, one a
day in UTC, and seasons.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from typing import NamedTuple

MICROS = 1_000_000
DAY = 86_400 * MICROS
_MAX_AHEAD = 60 * MICROS
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Period(NamedTuple):
    """A window: its id, its kind and its limits."""

    window: str
    kind: str
    starts_at: int | None = None
    ends_at: int | None = None


class Season(NamedTuple):
    """A window with a name and limits of its own."""

    name: str
    starts_at: int
    ends_at: int

    @property
    def period(self) -> Period:
        """The window."""
        return Period(self.name, "SEASON", self.starts_at, self.ends_at)


@dataclass(frozen=True)
class Definition:
    """A board's rules, as in the contract; `grace` is µs, `most` is `max_entries`."""

    sort_order: str = "DESCENDING"
    update_policy: str = "BEST"
    tie_break: str = "EARLIEST"
    segments: int = 1
    most: int = 0
    seasons: tuple[Season, ...] = ()
    grace: int = DAY

    @property
    def descending(self) -> bool:
        """Whether the greatest score ranks first."""
        return self.sort_order == "DESCENDING"


class Item(NamedTuple):
    """One submission; `moment` None is the moment of arrival."""

    member: str
    score: float
    metadata: bytes = b""
    moment: int | None = None


class Held(NamedTuple):
    """What a window holds of a member."""

    member: str
    score: float
    moment: int
    metadata: bytes


class Row(NamedTuple):
    """An entry as a read answers it."""

    rank: int
    member: str
    score: float
    metadata: bytes
    updated_at: int


class Done(NamedTuple):
    """What a submission did in one window."""

    window: str
    kind: str
    previous_score: float | None
    score: float | None
    improved: bool
    previous_rank: int | None = None
    rank: int | None = None


class Sums(NamedTuple):
    """A window summed up; the mean is exact."""

    count: int
    best: float | None
    worst: float | None
    mean: Fraction | None
    percentile_scores: list[float]


def day_of(moment: int) -> Period:
    """The day that holds the moment."""
    number = moment // DAY
    name = (_EPOCH + timedelta(days=number)).strftime("%Y-%m-%d")
    return Period(name, "DAILY", number * DAY, (number + 1) * DAY)


ALL_TIME = Period("all", "ALL_TIME")


@dataclass
class Board:
    """One board: by window, what it holds of each member. A window once written to stays known."""

    definition: Definition
    windows: dict[Period, dict[str, Held]] = field(default_factory=dict)

    # Writes

    def periods_at(self, moment: int) -> list[Period]:
        """Every window that holds the moment."""
        seasons = [s.period for s in self.definition.seasons if s.starts_at <= moment < s.ends_at]
        return [ALL_TIME, day_of(moment), *seasons]

    def is_closed(self, period: Period, now: int) -> bool:
        """Whether the window takes no more scores."""
        return period.ends_at is not None and period.ends_at + self.definition.grace <= now

    def refusal(self, moment: int | None, now: int, *, is_import: bool = False) -> str | None:
        """Why a score of this moment does not count, if it does not."""
        if moment is None:
            return None
        if moment > now + _MAX_AHEAD:
            return "FIELD_INVALID"
        if not is_import and any(self.is_closed(p, now) for p in self.periods_at(moment)):
            return "WINDOW_CLOSED"
        return None

    def submit(self, items: Iterable[tuple[Item, int]]) -> None:
        """What one call does: items, each with its moment."""
        for item, moment in items:
            for period in self.periods_at(moment):
                window = self.windows.setdefault(period, {})
                coming = Held(item.member, item.score + 0.0, moment, item.metadata)
                window[item.member] = self._stays(window.get(item.member), coming)
        if self.definition.most:
            for period in self.windows:
                best = self.ordered(period)[: self.definition.most]
                self.windows[period] = {held.member: held for held in best}

    def _stays(self, held: Held | None, coming: Held) -> Held:
        policy, descending = self.definition.update_policy, self.definition.descending
        if held is None:
            return coming
        if policy == "LATEST":
            return coming if coming.moment >= held.moment else held
        if policy == "SUM":
            later = coming if coming.moment >= held.moment else held
            return later._replace(score=held.score + coming.score)
        if coming.score == held.score:
            return coming if coming.moment < held.moment else held
        return coming if (coming.score > held.score) == descending else held

    def submit_one(self, item: Item, moment: int) -> list[Done]:
        """What SubmitScore answers, with ranks."""
        before = self.standing(item.member, moment)
        self.submit([(item, moment)])
        after = self.standing(item.member, moment)
        return [
            Done(
                new.window,
                new.kind,
                old.score,
                new.score,
                self._is_better(new.score, old.score),
                old.rank,
                new.rank,
            )
            for old, new in zip(before, after, strict=True)
        ]

    def _is_better(self, now: float | None, before: float | None) -> bool:
        if now is None or before is None:
            return now is not None
        return now > before if self.definition.descending else now < before

    def standing(self, member: str, moment: int) -> list[Done]:
        """How the member stands in the windows of the moment: what a repeat answers."""
        found = []
        for period in self.periods_at(moment):
            rows = [row for row in self.rows(period) if row.member == member]
            score, rank = (rows[0].score, rows[0].rank) if rows else (None, None)
            found.append(Done(period.window, period.kind, None, score, False, None, rank))
        return found

    def remove(self, member: str, period: Period | None = None) -> int:
        """Takes a member's entries away, from one window or all; how many went."""
        chosen = [period] if period is not None else list(self.windows)
        return sum(self.windows.get(one, {}).pop(member, None) is not None for one in chosen)

    # Reads

    def is_known(self, period: Period, now: int) -> bool:
        """Whether the window can be read: it may be written to now, or it ever was."""
        started = period.starts_at is None or period.starts_at <= now
        return period in self.windows or (started and not self.is_closed(period, now))

    def place(self, held: Held) -> tuple[float, int, tuple[int, ...]]:
        """What the ranking sorts by: the least is the first."""
        rules, name = self.definition, held.member.encode()
        moment = held.moment if rules.tie_break == "EARLIEST" else 0
        if rules.descending:
            return -held.score, moment, (*(255 - byte for byte in name), 256)
        return held.score, moment, tuple(name)

    def ordered(self, period: Period) -> list[Held]:
        """The window's entries, best first."""
        return sorted(self.windows.get(period, {}).values(), key=self.place)

    def rows(self, period: Period, method: str = "ORDINAL") -> list[Row]:
        """The window's entries with their ranks, best first."""
        return self.ranked(self.ordered(period), method)

    @staticmethod
    def ranked(ordered: Sequence[Held], method: str) -> list[Row]:
        """These entries with their ranks among themselves."""
        scores = [held.score for held in ordered]
        distinct = list(dict.fromkeys(scores))
        ranks = {
            "ORDINAL": [index + 1 for index in range(len(scores))],
            "COMPETITION": [scores.index(score) + 1 for score in scores],
            "DENSE": [distinct.index(score) + 1 for score in scores],
        }[method]
        return [
            Row(rank, held.member, held.score, held.metadata, held.moment)
            for rank, held in zip(ranks, ordered, strict=True)
        ]

    def behind(self, period: Period, last: Row, method: str, *, reverse: bool) -> list[Row]:
        """What follows a page that ended with this entry, wherever the entry is by now."""
        rows = self.rows(period, method)
        end = self._place_of(last)
        if reverse:
            return [row for row in reversed(rows) if self._place_of(row) < end]
        return [row for row in rows if self._place_of(row) > end]

    def _place_of(self, row: Row) -> tuple[float, int, tuple[int, ...]]:
        return self.place(Held(row.member, row.score, row.updated_at, row.metadata))

    def around_member(
        self, period: Period, member: str, neighbors: int, method: str
    ) -> tuple[list[Row], int] | None:
        """A member's neighbours and its rank; None without an entry."""
        rows = self.rows(period, method)
        for index, row in enumerate(rows):
            if row.member == member:
                return rows[max(0, index - neighbors) : index + neighbors + 1], row.rank
        return None

    def around_score(
        self, period: Period, score: float, neighbors: int, method: str
    ) -> tuple[list[Row], int]:
        """The neighbours of the place behind all equal scores, and the rank there."""
        rows = self.rows(period, method)
        better = [row for row in rows if self._is_better(row.score, score)]
        place = len(better) + sum(row.score == score for row in rows)
        rank = {
            "ORDINAL": place + 1,
            "COMPETITION": len(better) + 1,
            "DENSE": len({row.score for row in better}) + 1,
        }[method]
        return rows[max(0, place - neighbors) : place + neighbors], rank

    def percentiles(self, period: Period) -> dict[str, float]:
        """How many percent of the entries each member ranks at or above."""
        ordered = self.ordered(period)
        size = len(ordered)
        return {held.member: 100 * (size - i) / size for i, held in enumerate(ordered)}

    def sums(self, period: Period, percentiles: Sequence[float]) -> Sums:
        """The window summed up."""
        ordered, own = self.ordered(period), self.percentiles(period)
        if not ordered:
            return Sums(0, None, None, None, [])
        scores = [held.score for held in ordered]
        at = [[h.score for h in ordered if own[h.member] >= p][-1] for p in percentiles]
        mean = sum(map(Fraction, scores)) / len(scores)
        return Sums(len(scores), scores[0], scores[-1], mean, at)

    def standings(self, now: int) -> list[tuple[Period, str, int]]:
        """The windows that hold entries, with their states, as ListWindows sorts them."""
        found = [
            (period, "CLOSED" if self.is_closed(period, now) else "OPEN", len(window))
            for period, window in self.windows.items()
            if window
        ]
        found.sort(key=lambda one: (one[0].kind, one[0].window))
        found.sort(key=lambda one: float("-inf") if one[0].starts_at is None else -one[0].starts_at)
        return found
