"""What watches of counters are read from: all of a tenant's counters at once."""

import time
from collections.abc import Sequence
from typing import Final

from tallyboard_server.counters.model import Count
from tallyboard_server.counters.reads import CountReader
from tallyboard_server.errors import TallyboardError
from tallyboard_server.watching import WatchSource

MAX_READ: Final = 1_000

CountSubject = tuple[str, tuple[str, ...]]  # tenant, names in the order of the request
CountState = tuple[Count, ...]


class CountSource(WatchSource[CountSubject, CountState, list[Count]]):
    """Sends the counts that differ from what was sent last."""

    def __init__(self, reader: CountReader) -> None:
        self._reader = reader

    def group(self, subject: CountSubject) -> str:
        """The tenant."""
        return subject[0]

    def read(
        self, subjects: Sequence[CountSubject], timeout: float
    ) -> dict[CountSubject, CountState | TallyboardError]:
        """Counts as Redis has them now, each read once."""
        tenant = subjects[0][0]
        names = list(dict.fromkeys(name for _, watched in subjects for name in watched))
        found: dict[str, Count | TallyboardError] = {}
        for start in range(0, len(names), MAX_READ):
            found |= self._exact(tenant, names[start : start + MAX_READ], timeout)
        return {subject: _state_of(subject, found) for subject in subjects}

    def news(self, state: CountState, sent: CountState | None) -> list[Count] | None:
        """The counts whose value or existence is another, in the order of the request."""
        if sent is None:
            return list(state)
        pairs = zip(state, sent, strict=True)
        changed = [c for c, was in pairs if (c.value, c.exists) != (was.value, was.exists)]
        return changed or None

    def _exact(
        self, tenant: str, names: list[str], timeout: float
    ) -> dict[str, Count | TallyboardError]:
        try:
            counts = self._reader.exact(tenant, names, time.monotonic() + timeout)
            return {count.counter: count for count in counts}
        except TallyboardError as error:
            if len(names) == 1 or error.reason != "PARTITION_UNAVAILABLE":
                return dict.fromkeys(names, error)
        # A closed partition must not end the watches of counters that live in others.
        middle = len(names) // 2
        first = self._exact(tenant, names[:middle], timeout)
        return first | self._exact(tenant, names[middle:], timeout)


def _state_of(
    subject: CountSubject, found: dict[str, Count | TallyboardError]
) -> CountState | TallyboardError:
    counts = []
    for name in subject[1]:
        count = found[name]
        if isinstance(count, TallyboardError):
            return count
        counts.append(count)
    return tuple(counts)
