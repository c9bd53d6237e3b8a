"""How far a rebuild is: for logs, the metric, and whoever shows a bar."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import structlog
from prometheus_client import Gauge

_PROGRESS = Gauge(
    "tallyboard_rebuild_progress",
    "How much of the rebuild that is under way is done, from 0 to 1; 1 when none is.",
    multiprocess_mode="mostrecent",
)
_TOLD_EVERY: Final = 0.1
_LOGGED_EVERY: Final = 3.0
_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Progress:
    """How far a rebuild is.

    Attributes:
        partitions: those that are rebuilt together.
        phase: `checkpoint`, `empty`, `counters`, `leaderboards`, `tokens` or `journal`.
        done, total: partitions, keys looked at, counters, entries, tokens or partitions; a total is
            an estimate, and never less than what is done.
    """

    partitions: tuple[int, ...]
    phase: str
    done: int
    total: int


Listener = Callable[[Progress], None]


class Reporter:
    """Tells of a rebuild, not too often; for one thread.

    Args:
        partitions: those that are rebuilt together.
        listener: is told ten times a second at most, and of every phase's begin and end.
    """

    def __init__(self, partitions: tuple[int, ...], listener: Listener | None) -> None:
        self._partitions = partitions
        self._listener = listener
        self._phase = ""
        self._done = 0
        self._total = 0
        self._told = 0.0
        self._logged = time.monotonic()
        # Of all phases that count what a rebuild moves.
        self._moved = 0
        self._to_move = 0

    def expect(self, total: int) -> None:
        """Says how many counters, entries and tokens there are, about."""
        self._to_move = total

    def begin(self, phase: str, total: int) -> None:
        """Begins a phase; the one before is over."""
        self.end()
        self._phase, self._done, self._total = phase, 0, total
        self._tell()

    def add(self, count: int, *, moved: bool = False) -> None:
        """So much more is done; `moved` of what was expected."""
        self._done += count
        self._moved += count if moved else 0
        if time.monotonic() - self._told >= _TOLD_EVERY:
            self._tell()

    def end(self) -> None:
        """Ends the phase."""
        if self._phase:
            self._total = self._done
            self._tell()

    def over(self) -> None:
        """The rebuild is done, or given up."""
        _PROGRESS.set(1.0)

    def _tell(self) -> None:
        self._told = now = time.monotonic()
        total = max(self._total, self._done)
        _PROGRESS.set(self._moved / max(self._to_move, self._moved, 1))
        if self._listener is not None:
            self._listener(Progress(self._partitions, self._phase, self._done, total))
        if now - self._logged >= _LOGGED_EVERY:
            self._logged = now
            _log.info("Rebuild goes on.", phase=self._phase, done=self._done, total=total)
