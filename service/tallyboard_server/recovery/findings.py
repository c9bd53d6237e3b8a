"""What a comparison of Redis with Postgres found."""

from dataclasses import dataclass, field
from typing import NamedTuple

from tallyboard_server.errors import Unavailable


class EntryName(NamedTuple):
    """Names an entry: the leaderboard, the window and the member."""

    leaderboard_id: str
    window: str
    member: str


class Difference(NamedTuple):
    """One value that is not the same in both stores.

    Attributes:
        subject: the name of a counter, whose part in the partition it is, or an entry.
        redis, postgres: the two values as decimal numbers (of an entry its score), None for none.
        detail: what differs, in a few words.
    """

    tenant: str
    subject: str | EntryName
    redis: str | None
    postgres: str | None
    detail: str


@dataclass
class Verified:
    """What the comparison of one partition found.

    Attributes:
        most: how many differences to keep; all are counted.
        counters, entries: how many values of counters, and entries, were compared.
        problem: why the comparison is not complete, None if it is.
    """

    partition: int
    most: int
    counters: int = 0
    entries: int = 0
    difference_count: int = 0
    differences: list[Difference] = field(default_factory=list)
    problem: Unavailable | None = None

    def note(self, difference: Difference) -> None:
        """Takes down a difference."""
        self.difference_count += 1
        if len(self.differences) < self.most:
            self.differences.append(difference)
