"""Metrics of calls, for Prometheus."""

from functools import lru_cache
from typing import Any

from prometheus_client import Histogram

_CALLS = Histogram(
    "tallyboard_rpc_seconds",
    "Duration of calls, by method and status.",
    ("method", "status"),
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10),
)


@lru_cache(maxsize=1024)
def _child(method: str, status: str) -> Any:
    return _CALLS.labels(method, status)


def observe(method: str, status: str, seconds: float) -> None:
    """Counts one call. Methods and statuses come from fixed sets, so labels stay few."""
    _child(method, status).observe(seconds)
