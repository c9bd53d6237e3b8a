"""Watches: counts sent when they change, without a thread a watcher.

One ticker reads what is due, once for all who watch it. A few senders pass counts on; a watcher
that takes longer than `_STALL` to accept a message is dropped, so it can't hold up the others.
"""

import threading
import time
from collections.abc import Callable, Sequence
from queue import SimpleQueue

import structlog

from tallyboard_server.counters.model import Count
from tallyboard_server.counters.reads import CountReader
from tallyboard_server.errors import Overloaded, TallyboardError, shutting_down

_log = structlog.get_logger(__name__)
_TICK = 0.1
_READ_TIMEOUT = 2.0
_SENDERS = 4
_STALL = 5.0


class Watcher:
    """One watch.

    Args:
        counters: names, in the order of the request.
        min_interval: seconds between two messages at least.
        send: passes counts on; may block.
        end: ends the call with an error; must not block.
        cancel: cuts the call off, so that a `send` that blocks returns.
    """

    def __init__(
        self,
        tenant: str,
        counters: Sequence[str],
        min_interval: float,
        send: Callable[[list[Count]], None],
        end: Callable[[TallyboardError], None],
        cancel: Callable[[], object],
    ) -> None:
        self.tenant = tenant
        self.counters = tuple(counters)
        self.min_interval = min_interval
        self.send = send
        self.end = end
        self.cancel = cancel
        self.sent: dict[str, tuple[int, bool]] = {}
        self.due = 0.0
        self.is_queued = False
        self.busy_since: float | None = None

    def changed(self, counts: dict[str, Count]) -> list[Count]:
        """The counts that differ from what was sent last."""
        return [
            counts[name]
            for name in self.counters
            if name in counts and self.sent.get(name) != (counts[name].value, counts[name].exists)
        ]


class WatchHub:
    """All watches of a worker."""

    def __init__(self, reader: CountReader, max_watchers: int) -> None:
        self._reader = reader
        self._max = max_watchers
        self._watchers: set[Watcher] = set()
        self._lock = threading.Lock()  # guards _watchers
        self._closing = threading.Event()
        self._queue: SimpleQueue[tuple[Watcher, list[Count]] | None] = SimpleQueue()
        self._threads = [threading.Thread(target=self._tick, name="watch-ticker", daemon=True)]
        for index in range(_SENDERS):
            name = f"watch-sender-{index}"
            self._threads.append(threading.Thread(target=self._send, name=name, daemon=True))
        for thread in self._threads:
            thread.start()

    def add(self, watcher: Watcher) -> None:
        """Starts a watch; its first message holds all counts.

        Raises:
            Overloaded: there are too many.
            Unavailable: the server is stopping.
        """
        if self._closing.is_set():
            raise shutting_down()
        with self._lock:
            if len(self._watchers) >= self._max:
                raise Overloaded(f"this worker has its {self._max:,} watchers already")
            self._watchers.add(watcher)

    def remove(self, watcher: Watcher) -> None:
        """Ends a watch; unknown ones are ignored."""
        with self._lock:
            self._watchers.discard(watcher)

    def close(self) -> None:
        """Ends all watches with SHUTTING_DOWN, and the threads, within two seconds."""
        self._closing.set()
        self._end_all(self._snapshot(), shutting_down())
        for _ in range(_SENDERS):
            self._queue.put(None)
        until = time.monotonic() + 2.0
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))

    def _snapshot(self) -> list[Watcher]:
        with self._lock:
            return list(self._watchers)

    def _tick(self) -> None:
        while not self._closing.wait(_TICK):
            try:
                self._serve(self._snapshot())
            except Exception:
                _log.exception("watch tick failed")

    def _serve(self, watchers: list[Watcher]) -> None:
        now = time.monotonic()
        by_tenant: dict[str, list[Watcher]] = {}
        for watcher in watchers:
            busy_since = watcher.busy_since
            if busy_since is not None and now - busy_since > _STALL:
                self.remove(watcher)
                watcher.cancel()
            elif not watcher.is_queued and watcher.due <= now:
                by_tenant.setdefault(watcher.tenant, []).append(watcher)
        for tenant, due in by_tenant.items():
            self._serve_tenant(tenant, due, now)

    def _serve_tenant(self, tenant: str, watchers: list[Watcher], now: float) -> None:
        names = list(dict.fromkeys(name for watcher in watchers for name in watcher.counters))
        counts: dict[str, Count] = {}
        try:
            for start in range(0, len(names), 1000):
                deadline = time.monotonic() + _READ_TIMEOUT
                for count in self._reader.exact(tenant, names[start : start + 1000], deadline):
                    counts[count.counter] = count
        except TallyboardError as error:
            self._end_all(watchers, error)
            return
        for watcher in watchers:
            changed = watcher.changed(counts)
            if changed:
                watcher.due = now + watcher.min_interval
                watcher.is_queued = True
                self._queue.put((watcher, changed))

    def _end_all(self, watchers: list[Watcher], error: TallyboardError) -> None:
        for watcher in watchers:
            self.remove(watcher)
            watcher.end(error)

    def _send(self) -> None:
        while (item := self._queue.get()) is not None:
            watcher, counts = item
            watcher.busy_since = time.monotonic()
            try:
                watcher.send(counts)
                watcher.sent.update({c.counter: (c.value, c.exists) for c in counts})
            except Exception:
                _log.exception("watcher could not be served")
                self.remove(watcher)
            finally:
                watcher.busy_since = None
                watcher.is_queued = False
