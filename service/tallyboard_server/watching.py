"""Watches: what has changed is sent, without a thread a watcher.

A ticker finds out who may have a message by now. Readers read each subject once for all who watch
it. Senders pass on what a watcher has not seen; one that takes too long to accept a message is
dropped, so that it can't hold up the others.
"""

import threading
import time
from abc import ABC, abstractmethod
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, Final, Generic, NamedTuple, TypeVar

import structlog

from tallyboard_server.errors import (
    DeadlineExceeded,
    Overloaded,
    TallyboardError,
    Unavailable,
    shutting_down,
)

_log = structlog.get_logger(__name__)
_READ_TIMEOUT: Final = 2.0
_READERS: Final = 4
_SENDERS: Final = 4
_CLOSE_TIMEOUT: Final = 2.0
# Seconds until a subject is read again that a store could not tell of.
_RETRY: Final = 0.5
_PASSING: Final = frozenset({"REDIS_UNAVAILABLE", "PARTITION_UNAVAILABLE", "POSTGRES_UNAVAILABLE"})

Item = TypeVar("Item")
Subject = TypeVar("Subject", bound=tuple[Any, ...])
State = TypeVar("State")
Message = TypeVar("Message")


class WatchSource(ABC, Generic[Subject, State, Message]):
    """What one kind of subjects is read from, and what is sent of it.

    A subject is a tuple that begins with its tenant. It has a state at any moment; a message takes
    a watcher from the state it has seen to another.
    """

    def group(self, subject: Subject) -> Hashable:
        """Subjects of one tenant with equal groups are read together; each alone by default."""
        return subject

    @abstractmethod
    def read(
        self, subjects: Sequence[Subject], timeout: float
    ) -> Mapping[Subject, State | TallyboardError]:
        """The states of different subjects of one group now, or what ends their watches.

        An error that will pass ends none: the subject is read again a little later.

        Args:
            timeout: seconds that a question to a store may take.

        Raises:
            TallyboardError: ends the watches of all of these subjects.
        """

    @abstractmethod
    def news(self, state: State, sent: State | None) -> Message | None:
        """The message about `state` for those who have seen `sent`, or nothing yet.

        None says that `sent` is as good as `state`. Called once for all with the same `sent`,
        who then share the message.
        """


class Watcher(Generic[Subject, Message]):
    """One watch.

    Args:
        subject: what is watched; begins with the tenant.
        min_interval: seconds between two messages at least.
        send: passes a message on; may block.
        end: ends the call with an error; called once at most, must not block.
        cancel: cuts the call off, so that a `send` that blocks returns.
    """

    def __init__(
        self,
        subject: Subject,
        min_interval: float,
        send: Callable[[Message], None],
        end: Callable[[TallyboardError], None],
        cancel: Callable[[], object],
    ) -> None:
        self.subject = subject
        self.min_interval = min_interval
        self.send = send
        self.end = end
        self.cancel = cancel
        self.sent: Any = None
        self.due = 0.0
        self.is_queued = False
        self.is_over = False


def is_passing(error: TallyboardError) -> bool:
    """Whether an error says no more than that a subject can't be read now."""
    if isinstance(error, Unavailable):
        return error.reason in _PASSING
    return isinstance(error, DeadlineExceeded | Overloaded)


class WatchHub:
    """All watches of a worker, of any kind: they share its limit, ticker and senders.

    Args:
        max_watchers: watches at once, of all kinds together.
        tick: seconds between two looks at who is due.
        stall: seconds after which a `send` that has not returned gets its watcher dropped.
    """

    def __init__(self, max_watchers: int, *, tick: float = 0.1, stall: float = 5.0) -> None:
        self._places = _Places(max_watchers)
        self._tick = tick
        self._stall = stall
        self._kinds: tuple[Watches[Any, Any, Any], ...] = ()
        self._sending: dict[_Delivery, float] = {}
        self._senders = _Crew("watch-sender", _SENDERS, self._send)
        self._closing = threading.Event()
        self._ticker = threading.Thread(target=self._run, name="watch-ticker", daemon=True)
        self._ticker.start()

    def of(
        self, source: WatchSource[Subject, State, Message]
    ) -> "Watches[Subject, State, Message]":
        """The watches of a further kind. It has readers of its own: no kind waits for another."""
        kind = Watches(source, self._places, self._senders.put)
        self._kinds = (*self._kinds, kind)
        return kind

    def close(self) -> None:
        """Ends all watches with SHUTTING_DOWN, and the threads, within two seconds."""
        self._closing.set()
        until = time.monotonic() + _CLOSE_TIMEOUT
        for kind in self._kinds:
            kind.close()
        self._senders.close()
        self._ticker.join(max(0.0, until - time.monotonic()))
        for kind in self._kinds:
            kind.join(until)
        self._senders.join(until)

    def _run(self) -> None:
        while not self._closing.wait(self._tick):
            try:
                now = time.monotonic()
                self._drop_stalled(now)
                for kind in self._kinds:
                    kind.begin(now)
            except Exception:
                _log.exception("watch tick failed")

    def _drop_stalled(self, now: float) -> None:
        for delivery, since in self._sending.copy().items():
            if now - since > self._stall and self._sending.pop(delivery, None) is not None:
                delivery.kind.remove(delivery.watcher)
                delivery.watcher.cancel()

    def _send(self, delivery: "_Delivery") -> None:
        watcher = delivery.watcher
        if watcher.is_over:
            return
        self._sending[delivery] = time.monotonic()
        try:
            watcher.send(delivery.message)
        except Exception as error:
            delivery.kind.end((watcher,), _internal(error))
            raise
        finally:
            self._sending.pop(delivery, None)
        watcher.sent = delivery.state
        watcher.due = time.monotonic() + watcher.min_interval
        watcher.is_queued = False


class Watches(Generic[Subject, State, Message]):
    """The watches of one kind; `WatchHub.of` makes it.

    Args:
        source: what their subjects are read from.
        places: the limit shared with other kinds.
        deliver: takes the messages of a tenant to be sent.
    """

    def __init__(
        self,
        source: WatchSource[Subject, State, Message],
        places: "_Places",
        deliver: "Callable[[str, list[_Delivery]], None]",
    ) -> None:
        self._source = source
        self._places = places
        self._deliver = deliver
        self._topics: dict[Subject, _Topic] = {}
        self._is_closed = False
        self._lock = threading.Lock()  # guards _topics, what they hold, and _is_closed
        self._readers = _Crew(f"watch-reader-{type(source).__name__}", _READERS, self._read)

    def add(self, watcher: Watcher[Subject, Message]) -> None:
        """Starts a watch; a first message is always sent.

        Raises:
            Overloaded: there are too many.
            Unavailable: the server is stopping.
        """
        self._places.take()
        with self._lock:
            if not self._is_closed:
                self._topics.setdefault(watcher.subject, _Topic()).watchers.add(watcher)
                return
        self._places.give_back()
        raise shutting_down()

    def remove(self, watcher: Watcher[Subject, Message]) -> None:
        """Ends a watch without a word; unknown ones are ignored."""
        self._forget(watcher)

    def end(self, watchers: Iterable[Watcher[Subject, Message]], error: TallyboardError) -> None:
        """Ends watches with an error; those that are over are ignored."""
        for watcher in watchers:
            if self._forget(watcher):
                try:
                    watcher.end(error)
                except Exception:
                    _log.exception("a watch could not be ended")

    def begin(self, now: float) -> None:
        """Has the subjects read of those who may have a message at `now` (monotonic)."""
        jobs: dict[Hashable, _Job] = {}
        with self._lock:
            for subject, topic in self._topics.items():
                if topic.is_reading:
                    continue
                due = [w for w in topic.watchers if not w.is_queued and w.due <= now]
                if due:
                    topic.is_reading = True
                    jobs.setdefault(self._source.group(subject), {})[subject] = (topic, due)
        for job in jobs.values():
            self._readers.put(next(iter(job))[0], (job,))

    def close(self) -> None:
        """Ends all with SHUTTING_DOWN and takes no more."""
        with self._lock:
            self._is_closed = True
            watchers = [w for topic in self._topics.values() for w in topic.watchers]
        self._readers.close()
        self.end(watchers, shutting_down())

    def join(self, until: float) -> None:
        """Waits until then (monotonic) for the readers to end, after `close`."""
        self._readers.join(until)

    def _forget(self, watcher: Watcher[Subject, Message]) -> bool:
        with self._lock:
            topic = self._topics.get(watcher.subject)
            if topic is None or watcher not in topic.watchers:
                return False
            watcher.is_over = True
            topic.watchers.remove(watcher)
            if not topic.watchers:
                del self._topics[watcher.subject]
        self._places.give_back()
        return True

    def _read(self, job: "_Job") -> None:
        try:
            states = self._states(list(job))
            for subject, (topic, due) in job.items():
                state = states[subject]
                if isinstance(state, TallyboardError):
                    if is_passing(state):
                        self._put_off(due)
                    else:
                        self._end_topic(topic, state)
                else:
                    self._pass_on(subject, topic, state, due)
        finally:
            for topic, _ in job.values():
                topic.is_reading = False

    @staticmethod
    def _put_off(due: "list[Watcher[Any, Any]]") -> None:
        """Reads again in a while: watches stay open, and silent, while a store is away."""
        for watcher in due:
            watcher.due = time.monotonic() + _RETRY

    def _states(self, subjects: list[Subject]) -> Mapping[Subject, State | TallyboardError]:
        try:
            return self._source.read(subjects, _READ_TIMEOUT)
        except TallyboardError as error:
            return dict.fromkeys(subjects, error)
        except Exception as error:
            _log.exception("subjects could not be read")
            return dict.fromkeys(subjects, _internal(error))

    def _pass_on(
        self, subject: Subject, topic: "_Topic", state: State, due: "list[Watcher[Any, Any]]"
    ) -> None:
        try:
            deliveries = self._deliveries(state, due)
        except Exception as error:
            _log.exception("states could not be compared")
            self._end_topic(topic, _internal(error))
        else:
            self._deliver(subject[0], deliveries)

    def _deliveries(self, state: State, due: "list[Watcher[Any, Any]]") -> "list[_Delivery]":
        deliveries = []
        # Most have seen the very same state: compared once, it costs the same for thousands.
        news: dict[int, Message | None] = {}
        for watcher in due:
            seen = id(watcher.sent)
            if seen not in news:
                news[seen] = self._source.news(state, watcher.sent)
            message = news[seen]
            if message is None:
                watcher.sent = state
            else:
                watcher.is_queued = True
                deliveries.append(_Delivery(self, watcher, message, state))
        return deliveries

    def _end_topic(self, topic: "_Topic", error: TallyboardError) -> None:
        with self._lock:
            watchers = list(topic.watchers)
        self.end(watchers, error)


class _Topic:
    """A subject's watchers."""

    __slots__ = ("is_reading", "watchers")

    def __init__(self) -> None:
        self.watchers: set[Watcher[Any, Any]] = set()
        self.is_reading = False


# What is read at once, by subject: who watches it, and who of them is due.
_Job = dict[Any, tuple[_Topic, list[Watcher[Any, Any]]]]


class _Delivery:
    """A message on its way, and the state that its watcher has seen then."""

    __slots__ = ("kind", "message", "state", "watcher")

    def __init__(
        self, kind: Watches[Any, Any, Any], watcher: Watcher[Any, Any], message: Any, state: Any
    ) -> None:
        self.kind = kind
        self.watcher = watcher
        self.message = message
        self.state = state


class _Places:
    """So many watches, and no more."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._left = threading.BoundedSemaphore(most)

    def take(self) -> None:
        if not self._left.acquire(blocking=False):
            raise Overloaded(f"this worker has its {self._most:,} watchers already")

    def give_back(self) -> None:
        self._left.release()


class _Taken(NamedTuple, Generic[Item]):
    tenant: str
    item: Item


class _Crew(Generic[Item]):
    """Threads that work for the tenants in turn, and never all of them for the same one.

    Args:
        name: of the threads.
        size: how many, 2 or more.
        work: what to do with an item.
    """

    def __init__(self, name: str, size: int, work: Callable[[Item], None]) -> None:
        self._work = work
        self._most = size - 1
        self._waiting: OrderedDict[str, deque[Item]] = OrderedDict()  # whose turn it is first
        self._in_hand: Counter[str] = Counter()
        self._is_closed = False
        self._changed = threading.Condition()  # guards all of these
        self._threads = [
            threading.Thread(target=self._run, name=f"{name}-{index}", daemon=True)
            for index in range(size)
        ]
        for thread in self._threads:
            thread.start()

    def put(self, tenant: str, items: Sequence[Item]) -> None:
        """Adds work for a tenant."""
        if items:
            with self._changed:
                self._waiting.setdefault(tenant, deque()).extend(items)
                self._changed.notify(len(items))

    def close(self) -> None:
        """Drops what waits; the threads end after what they have in hand."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def join(self, until: float) -> None:
        """Waits for the threads to end, until then (monotonic) at most."""
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))

    def _run(self) -> None:
        while (taken := self._take()) is not None:
            try:
                self._work(taken.item)
            except Exception:
                _log.exception("a watcher could not be served")
            with self._changed:
                self._in_hand[taken.tenant] -= 1
                if not self._in_hand[taken.tenant]:
                    del self._in_hand[taken.tenant]
                self._changed.notify()

    def _take(self) -> _Taken[Item] | None:
        with self._changed:
            while not self._is_closed:
                for tenant, items in self._waiting.items():
                    if self._in_hand[tenant] < self._most:
                        item = items.popleft()
                        self._waiting.move_to_end(tenant)
                        if not items:
                            del self._waiting[tenant]
                        self._in_hand[tenant] += 1
                        return _Taken(tenant, item)
                self._changed.wait()
        return None


def _internal(error: Exception) -> TallyboardError:
    return TallyboardError(f"internal error: {type(error).__name__}")
