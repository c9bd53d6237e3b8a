"""Loads of counts, each done once however many callers wait for it."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from tallyboard_server.counters.model import Count
from tallyboard_server.errors import DeadlineExceeded, TallyboardError

Name = tuple[str, str]
_Fetch = Callable[[list[str]], dict[str, Count]]


@dataclass
class _Load:
    """One load under way: `done` is set when `count` or `error` is there."""

    done: threading.Event = field(default_factory=threading.Event)
    count: Count | None = None
    error: TallyboardError | None = None


class SharedLoads:
    """Loads under way, and what they leave in memory.

    Args:
        keep: puts a count into memory; called under a lock that all loads share.
    """

    def __init__(self, keep: Callable[[str, Count], None]) -> None:
        self._keep = keep
        self._loads: dict[Name, _Load] = {}
        self._lock = threading.Lock()  # guards _loads, and calls of _keep

    def load(
        self,
        tenant: str,
        counters: list[str],
        deadline: float,
        fetch: _Fetch,
        is_good: Callable[[Count], bool],
    ) -> dict[str, Count]:
        """The counts of these counters, which are all different.

        Args:
            deadline: until when to wait for others, of `time.monotonic()`.
            fetch: loads counts.
            is_good: whether what another one loaded will do.

        Raises:
            TallyboardError: what `fetch` raises, here or there; DeadlineExceeded while another
                one loads.
        """
        mine: dict[str, _Load] = {}
        others: dict[str, _Load] = {}
        with self._lock:
            for counter in counters:
                load = self._loads.get((tenant, counter))
                if load is None:
                    mine[counter] = self._loads[tenant, counter] = _Load()
                else:
                    others[counter] = load
        counts = self._load_mine(tenant, mine, fetch) if mine else {}
        for counter, load in others.items():
            if not load.done.wait(max(0.0, deadline - time.monotonic())):
                raise DeadlineExceeded("the count was not loaded before the deadline of the call")
            if load.count is not None and is_good(load.count):
                counts[counter] = load.count
            elif load.count is None and not isinstance(load.error, DeadlineExceeded):
                raise load.error or TallyboardError("a load ended without a count")
        # Others asked for less, or had less time.
        left = [counter for counter in counters if counter not in counts]
        return counts | fetch(left) if left else counts

    def _load_mine(self, tenant: str, loads: dict[str, _Load], fetch: _Fetch) -> dict[str, Count]:
        counts: dict[str, Count] = {}
        error: TallyboardError | None = None
        try:
            counts = fetch(list(loads))
            return counts
        except TallyboardError as caught:
            error = caught
            raise
        finally:
            with self._lock:
                for counter in loads:
                    del self._loads[tenant, counter]
                    if counter in counts:
                        self._keep(tenant, counts[counter])
            for counter, load in loads.items():
                load.count, load.error = counts.get(counter), error
                load.done.set()
