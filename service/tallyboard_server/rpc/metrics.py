"""Metrics of calls, for Prometheus.

Calls only note what they took; one thread adds it up twice a second. The library's values share one
lock, and dozens of threads that meet at it for every call cost more than the call's own work.
"""

import threading
from collections import deque
from functools import lru_cache
from typing import Any

from prometheus_client import Histogram

_CALLS = Histogram(
    "tallyboard_rpc_seconds",
    "Duration of calls, by method and status.",
    ("method", "status"),
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10),
)
_INTERVAL = 0.5
_MAX_NOTED = 200_000


@lru_cache(maxsize=1024)
def _child(method: str, status: str) -> Any:
    return _CALLS.labels(method, status)


class CallMetrics:
    """Takes what calls took and counts it; `close` counts the rest.

    Methods and statuses come from fixed sets, so labels stay few. What is noted beyond 200,000
    calls in half a second is lost.
    """

    def __init__(self) -> None:
        self._noted: deque[tuple[str, str, float]] = deque(maxlen=_MAX_NOTED)
        self.note = self._noted.append
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="call-metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the thread."""
        self._closing.set()
        self._thread.join(_INTERVAL * 4)

    def _run(self) -> None:
        while not self._closing.wait(_INTERVAL):
            self._count()
        self._count()

    def _count(self) -> None:
        for _ in range(len(self._noted)):
            method, status, seconds = self._noted.popleft()
            _child(method, status).observe(seconds)
