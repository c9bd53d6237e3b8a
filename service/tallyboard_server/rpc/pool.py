"""A thread pool for calls: what gRPC asks of `ThreadPoolExecutor`, with less to do for each call.

The standard pool makes a Future with a condition, takes three locks and counts idle threads for
every call. gRPC only wants to be told when a call is over. docs/benchmarks.md has the difference.
"""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any

import structlog

_log = structlog.get_logger(__name__)


class _Call:
    """A call under way: what gRPC uses of a Future."""

    __slots__ = ("_callback", "_lock", "_over")

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards _over and _callback
        self._over = False
        self._callback: Callable[[Any], object] | None = None

    def add_done_callback(self, callback: Callable[[Any], object]) -> None:
        """Calls back when the call is over, at once if it is."""
        with self._lock:
            if not self._over:
                self._callback = callback
                return
        callback(self)

    def end(self) -> None:
        """The call is over."""
        with self._lock:
            self._over = True
            callback = self._callback
        if callback is not None:
            callback(self)


class CallPool(ThreadPoolExecutor):
    """A fixed number of threads that run calls in the order of their arrival.

    A subclass only because gRPC asks for one: nothing of the parent's is used. How many calls may
    wait is bounded by the server's `maximum_concurrent_rpcs`.
    """

    def __init__(self, threads: int, name: str) -> None:
        super().__init__(1)
        self._calls: SimpleQueue[tuple[_Call, Callable[..., object], tuple[Any, ...]] | None]
        self._calls = SimpleQueue()
        self._pool = [
            threading.Thread(target=self._run, name=f"{name}-{index}", daemon=True)
            for index in range(threads)
        ]
        for thread in self._pool:
            thread.start()

    def submit(  # type: ignore[override]
        self, function: Callable[..., object], /, *arguments: Any
    ) -> _Call:
        """Runs the function on one of the threads."""
        call = _Call()
        self._calls.put((call, function, arguments))
        return call

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Ends the threads after what waits."""
        for _ in self._pool:
            self._calls.put(None)
        if wait:
            for thread in self._pool:
                thread.join()

    def _run(self) -> None:
        while (item := self._calls.get()) is not None:
            call, function, arguments = item
            try:
                function(*arguments)
            except Exception:
                _log.exception("a call failed outside its handler")
            finally:
                call.end()
            del item, call, function, arguments  # nothing of a call lives on while idle
