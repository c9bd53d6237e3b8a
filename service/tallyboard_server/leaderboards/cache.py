"""Answers kept for a little while: one loads, however many ask for the same."""

import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from tallyboard_server.errors import DeadlineExceeded, TallyboardError

Value = TypeVar("Value")


@dataclass
class _Load(Generic[Value]):
    """One load under way: `done` is set when `value` or `error` is there."""

    begun: float
    done: threading.Event = field(default_factory=threading.Event)
    value: Value | None = None
    error: TallyboardError | None = None


class LoadingCache(Generic[Value]):
    """Values by name, the oldest dropped first.

    Args:
        most: how many values are kept.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        # Read without the lock, changed under it: when a load began, and what it gave.
        self._values: dict[Hashable, tuple[float, Value]] = {}
        self._loads: dict[Hashable, _Load[Value]] = {}
        self._lock = threading.Lock()  # guards _values' changes and _loads

    def get(
        self,
        name: Hashable,
        staleness: float,
        deadline: float,
        load: Callable[[], Value],
        is_kept: Callable[[Value], bool],
    ) -> Value:
        """The value, at most `staleness` seconds old, loaded if need be.

        Args:
            is_kept: whether a value that was loaded is kept.

        Raises:
            TallyboardError: what `load` raises; DeadlineExceeded while another one loads.
        """
        oldest = time.time() - staleness
        held = self._values.get(name)
        if held is not None and held[0] >= oldest:
            return held[1]
        with self._lock:
            under_way = self._loads.get(name)
            if under_way is None:
                mine = self._loads[name] = _Load[Value](time.time())
        if under_way is None:
            return self._load(name, mine, load, is_kept)
        if not under_way.done.wait(max(0.0, deadline - time.monotonic())):
            raise DeadlineExceeded("the page was not loaded before the deadline of the call")
        if under_way.value is not None and under_way.begun >= oldest:
            return under_way.value
        if under_way.error is not None and not isinstance(under_way.error, DeadlineExceeded):
            raise under_way.error
        return load()  # the other one had less time, or began too early for us

    def _load(
        self,
        name: Hashable,
        mine: _Load[Value],
        load: Callable[[], Value],
        is_kept: Callable[[Value], bool],
    ) -> Value:
        try:
            value = mine.value = load()
            return value
        except TallyboardError as error:
            mine.error = error
            raise
        finally:
            with self._lock:
                del self._loads[name]
                if mine.value is not None and is_kept(mine.value):
                    self._keep(name, mine.begun, mine.value)
            mine.done.set()

    def _keep(self, name: Hashable, begun: float, value: Value) -> None:
        self._values.pop(name, None)
        while len(self._values) >= self._most:
            del self._values[next(iter(self._values))]
        self._values[name] = (begun, value)
