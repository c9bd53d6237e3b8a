"""What the domain of leaderboards talks about.

Moments are microseconds since 1970-01-01T00:00:00Z, durations are seconds. The values of the
enumerations are the contract's names without their prefixes, and what definitions are stored with.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from tallyboard_server.counters.model import Fallback as Fallback
from tallyboard_server.counters.model import Source as Source


class SortOrder(Enum):
    """Which score ranks first."""

    DESCENDING = "DESCENDING"
    ASCENDING = "ASCENDING"


class UpdatePolicy(Enum):
    """What a further score does to a member's entry."""

    BEST = "BEST"
    LATEST = "LATEST"
    SUM = "SUM"


class TieBreak(Enum):
    """Who ranks higher with equal scores.

    EARLIEST: who reached the score first; with equal moments too, by the bytes of the member as
    MEMBER_ID has it. MEMBER_ID: ascending where the smallest score ranks first, else descending.
    """

    EARLIEST = "EARLIEST"
    MEMBER_ID = "MEMBER_ID"


class WindowKind(Enum):
    """The kinds of windows."""

    ALL_TIME = "ALL_TIME"
    HOURLY = "HOURLY"
    DAILY = "DAILY"
    WEEKLY = "WEEKLY"
    MONTHLY = "MONTHLY"
    SEASON = "SEASON"


class WindowState(Enum):
    """What has become of a window."""

    OPEN = "OPEN"
    CLOSED = "CLOSED"
    ARCHIVED = "ARCHIVED"


class RankMethod(Enum):
    """How ranks count where scores are equal."""

    ORDINAL = "ORDINAL"
    COMPETITION = "COMPETITION"
    DENSE = "DENSE"


@dataclass(frozen=True, slots=True)
class Season:
    """A window with a name and limits of its own: from `starts_at` to before `ends_at`."""

    name: str
    starts_at: int
    ends_at: int


@dataclass(frozen=True)
class Leaderboard:
    """A definition.

    Attributes:
        board_key: names the board's data in both stores; random, never used again, so that what
            is left of a deleted board can't be taken for a new one's.
        windows: the kinds, without SEASON.
        reset_offset: seconds after midnight at which days, weeks and months begin.
        retention: seconds that a window is kept after its end, by kind; others are kept for good.
        late_grace: seconds after a window's end during which it takes scores.
        max_entries: how many entries a window keeps; 0 is no limit.
        segments: over how many partitions a window is spread.
        revision: grows with every change, also over a deletion: the clock, in µs, at the change.
    """

    tenant: str
    leaderboard_id: str
    board_key: str = ""
    sort_order: SortOrder = SortOrder.DESCENDING
    update_policy: UpdatePolicy = UpdatePolicy.BEST
    tie_break: TieBreak = TieBreak.EARLIEST
    windows: tuple[WindowKind, ...] = (WindowKind.ALL_TIME,)
    time_zone: str = "UTC"
    reset_offset: int = 0
    retention: Mapping[WindowKind, int] = field(default_factory=dict)
    late_grace: int = 60
    max_entries: int = 0
    segments: int = 1
    seasons: tuple[Season, ...] = ()
    attributes: Mapping[str, str] = field(default_factory=dict)
    created_at: int = 0
    updated_at: int = 0
    revision: int = 1

    @property
    def etag(self) -> str:
        """The version of the definition, opaque to callers."""
        return f"{self.board_key}-{self.revision}"

    @property
    def is_descending(self) -> bool:
        """Whether the greatest score ranks first."""
        return self.sort_order is SortOrder.DESCENDING


@dataclass(frozen=True, slots=True)
class Window:
    """One period of a leaderboard: from `starts_at` to before `ends_at`; ALL_TIME has neither."""

    window: str
    kind: WindowKind
    starts_at: int | None = None
    ends_at: int | None = None


class Entry(NamedTuple):
    """A member's place in a window. A tuple, because answers are made of many.

    Attributes:
        rank: from 1, by the rank method of the read.
        updated_at: when the member reached the score.
    """

    rank: int
    member: str
    score: float
    metadata: bytes
    updated_at: int


@dataclass(frozen=True, slots=True)
class Submission:
    """One score of one member; `occurred_at` None is the moment of arrival."""

    leaderboard_id: str
    member: str
    score: float
    metadata: bytes = b""
    occurred_at: int | None = None


@dataclass(slots=True)
class WindowResult:
    """What one submission did in one window.

    Attributes:
        previous_score: the member's score before, None without an entry.
        score: the score now, None when `max_entries` others are better.
        improved: whether the entry is better than before, or new.
        previous_rank, rank: ordinal ranks before and now, if they were asked for.
    """

    window: Window
    previous_score: float | None
    score: float | None
    improved: bool
    previous_rank: int | None = None
    rank: int | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """Entries of one window in the order of its ranking.

    Attributes:
        total_size: how many entries the window has, or how many are within the bounds asked for.
        as_of: seconds since the epoch; the page was true then or later.
        next_page_token: empty when this is the last page.
        rank: the rank of the centre, of a page around a member or a score.
    """

    window: str
    entries: tuple[Entry, ...]
    total_size: int
    as_of: float
    source: Source
    next_page_token: str = ""
    rank: int = 0


@dataclass(frozen=True, slots=True)
class FoundEntries:
    """The entries of some members in one window, in the order of the request.

    Attributes:
        percentiles: of each entry: how many percent of the window's entries it ranks at or above.
        missing: the members without an entry.
    """

    window: str
    entries: tuple[Entry, ...]
    percentiles: tuple[float, ...]
    missing: tuple[str, ...]
    total_size: int
    as_of: float
    source: Source


@dataclass(frozen=True, slots=True)
class Stats:
    """One window summed up.

    Attributes:
        best, worst, mean: None without entries.
        percentile_scores: the score at each percentile asked for, none without entries.
    """

    window: str
    count: int
    best: float | None
    worst: float | None
    mean: float | None
    percentile_scores: tuple[float, ...]
    as_of: float
    source: Source


@dataclass(frozen=True, slots=True)
class WindowStanding:
    """A window that holds entries, and what has become of it."""

    window: Window
    state: WindowState
    entry_count: int
