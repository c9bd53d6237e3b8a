"""The keeper's own verification: slow, one partition after the other, for as long as it runs."""

import random
import time
from collections.abc import Callable, Iterator
from typing import Final

import structlog
from prometheus_client import Gauge

from tallyboard_server.recovery.findings import Difference, EntryName, Verified
from tallyboard_server.recovery.verify import Verifier

# Seconds that one call may take: checkpoints wait for it.
_TURN: Final = 0.25
# Differences that are logged by name, a partition and verification.
_LOGGED: Final = 20

_DRIFT = Gauge(
    "tallyboard_drift_values",
    "Values that differed between Redis and Postgres when each partition was verified last.",
    multiprocess_mode="mostrecent",
)
_log = structlog.get_logger(__name__)


def note_drift(values: int) -> None:
    """Says how many values differ, over all partitions."""
    _DRIFT.set(values)


class DriftWatch:
    """Verifies one partition at a time, and looks for strays once a round; for one thread.

    Args:
        verifier: does the work.
        partitions: how many there are.
        interval: seconds from the start of one to the start of the next; 0 turns it off.
        clock: seconds, of any beginning.
    """

    def __init__(
        self,
        verifier: Verifier,
        partitions: int,
        interval: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._verifier = verifier
        self._partitions = partitions
        self._interval = interval
        self._clock = clock
        # Instances that start together don't follow each other around.
        self._next = random.randrange(partitions)
        self._due = clock() + interval
        self._steps: Iterator[None] | None = None
        self._revisits = False
        self._drift: dict[int, int] = {}
        self._strays: dict[int, int] = {}

    def work(self) -> None:
        """Goes on with what is under way, or begins what is due, for a quarter of a second.

        Raises redis.RedisError and psycopg.Error; the next call then begins with the next
        partition.
        """
        if not self._interval:
            return
        if self._steps is None:
            if self._clock() < self._due:
                return
            self._due = self._clock() + self._interval
            self._steps = self._begin()
        until = time.monotonic() + _TURN
        steps, self._steps = self._steps, None
        for _ in steps:
            if time.monotonic() > until:
                self._steps = steps
                return

    def _begin(self) -> Iterator[None]:
        # What differed is looked at again every other time, so that it is soon known to be mended.
        self._revisits = not self._revisits
        if self._revisits:
            drifting = [number for number, values in self._drift.items() if values]
            if drifting:
                return self._compare(random.choice(drifting))
            if any(self._strays.values()):
                return self._search()
        number, self._next = self._next, self._next + 1
        if number < self._partitions:
            return self._compare(number)
        self._next = 0
        return self._search()

    def _compare(self, number: int) -> Iterator[None]:
        found = Verified(number, _LOGGED)
        yield from self._verifier.compare(found)
        if found.problem is None:
            self._drift[number] = found.difference_count
            self._tell([found])

    def _search(self) -> Iterator[None]:
        found = {number: Verified(number, _LOGGED) for number in range(self._partitions)}
        yield from self._verifier.search(found)
        for number, result in found.items():
            if result.problem is None:
                self._strays[number] = result.difference_count
        self._tell(list(found.values()))

    def _tell(self, results: list[Verified]) -> None:
        note_drift(sum(self._drift.values()) + sum(self._strays.values()))
        for result in results:
            for difference in result.differences:
                _log.error(
                    "Redis and Postgres differ.",
                    partition=result.partition,
                    **_named(difference),
                )
            if result.difference_count > len(result.differences):
                _log.error(
                    "Redis and Postgres differ in more than that.",
                    partition=result.partition,
                    differences=result.difference_count,
                )


def _named(difference: Difference) -> dict[str, str | None]:
    tenant, subject, redis, postgres, detail = difference
    named: dict[str, str | None] = {"tenant": tenant}
    if isinstance(subject, EntryName):
        named |= subject._asdict()
    else:
        named["counter"] = subject
    return named | {"redis": redis, "postgres": postgres, "detail": detail}
