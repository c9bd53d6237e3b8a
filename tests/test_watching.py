"""The watch hub: who is read for, who is sent to, and that nobody holds up the others."""

import itertools
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial

import pytest

from tallyboard_server.counters.model import Count, Source
from tallyboard_server.counters.reads import CountReader
from tallyboard_server.counters.sharding import Sharding
from tallyboard_server.counters.watch import CountSource
from tallyboard_server.embedded import EmbeddedRedis
from tallyboard_server.errors import (
    DeadlineExceeded,
    NotFound,
    Overloaded,
    TallyboardError,
    Unavailable,
)
from tallyboard_server.leaderboards.model import (
    Entry,
    Leaderboard,
    Page,
    RankMethod,
    Window,
    WindowKind,
)
from tallyboard_server.leaderboards.watch import TopSource
from tallyboard_server.redis.fences import Fences
from tallyboard_server.redis.keys import incarnation_key
from tallyboard_server.redis.nodes import control_client
from tallyboard_server.redis.store import RedisStore
from tallyboard_server.watching import Watcher, Watches, WatchHub, WatchSource
from tests.postgres.support import empty_redis
from tests.redis.admission import AdmitsAll
from tests.redis.nodes import topology_of
from tests.waiting import wait_for

Subject = tuple[str, str]
TICK = 0.01
NEVER = 3600.0


class Numbers(WatchSource[Subject, int, str]):
    """Numbers that the test sets; one that it has not set counts how often it was read.

    Attributes:
        errors: what a read of a subject ends with.
        gates: a read of a subject waits for its gate to open.
        batches: the subjects of every read.
    """

    def __init__(self) -> None:
        self.values: dict[Subject, int] = {}
        self.errors: dict[Subject, Exception] = {}
        self.gates: dict[Subject, threading.Event] = {}
        self.batches: list[Sequence[Subject]] = []
        self.reads: dict[Subject, int] = {}

    def read(
        self, subjects: Sequence[Subject], timeout: float
    ) -> dict[Subject, int | TallyboardError]:
        """The numbers now."""
        self.batches.append(subjects)
        return {subject: self._read(subject) for subject in subjects}

    def news(self, state: int, sent: int | None) -> str | None:
        """The step from one number to the other."""
        return None if state == sent else f"{sent}>{state}"

    def _read(self, subject: Subject) -> int | TallyboardError:
        value = self.reads[subject] = self.reads.get(subject, 0) + 1
        if subject in self.gates:
            self.gates[subject].wait(30)
        error = self.errors.get(subject)
        if isinstance(error, TallyboardError):
            return error
        if error is not None:
            raise error
        return self.values.get(subject, value)


class Together(Numbers):
    """All numbers of a tenant are read together."""

    def group(self, subject: Subject) -> str:
        """The tenant."""
        return subject[0]


class Fresh(Numbers):
    """A state is another object at every read; `log` has what the hub asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.log: list[str] = []

    def read(
        self, subjects: Sequence[Subject], timeout: float
    ) -> dict[Subject, int | TallyboardError]:
        """The same large number, made anew."""
        self.log.append("read")
        return {subject: int("70000") for subject in subjects}

    def news(self, state: int, sent: int | None) -> str | None:
        """The step from one number to the other."""
        self.log.append("news")
        return super().news(state, sent)


class Listener:
    """Keeps what it is sent; a closed `gate` keeps `send` from returning until it is cancelled."""

    def __init__(
        self, subject: Subject = ("acme", "post:42"), interval: float = 0.0, is_stuck: bool = False
    ) -> None:
        self.messages: list[str] = []
        self.moments: list[float] = []
        self.errors: list[TallyboardError] = []
        self.gate = threading.Event()
        self.entered = threading.Event()
        self.is_cancelled = False
        if not is_stuck:
            self.gate.set()
        self.watch = Watcher(subject, interval, self._send, self.errors.append, self._cancel)

    def _send(self, message: str) -> None:
        self.moments.append(time.monotonic())
        self.entered.set()
        self.gate.wait(30)
        self.messages.append(message)

    def _cancel(self) -> None:
        self.is_cancelled = True
        self.gate.set()

    def got(self, count: int = 1) -> list[str]:
        """Its messages, once there are so many."""
        wait_for(lambda: len(self.messages) >= count, "a message")
        return self.messages

    def ended(self) -> list[TallyboardError]:
        """What it was ended with, once it was."""
        return wait_for(lambda: self.errors, "the end of a watch")


@pytest.fixture
def opened() -> Iterator[ExitStack]:
    """Closes what a test opens."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def hub(opened: ExitStack) -> WatchHub:
    """A hub that looks often and drops nobody."""
    return opened.enter_context(closing(WatchHub(10_000, tick=TICK, stall=NEVER)))


@pytest.fixture
def numbers() -> Numbers:
    """A source whose subjects are read each alone."""
    return Numbers()


@pytest.fixture
def watches(hub: WatchHub, numbers: Numbers) -> Watches[Subject, int, str]:
    """Watches of the numbers."""
    return hub.of(numbers)


Numbered = Watches[Subject, int, str]


def add(watches: Numbered, *listeners: Listener) -> None:
    """Starts watches."""
    for listener in listeners:
        watches.add(listener.watch)


def stuck(opened: ExitStack, subject: Subject) -> Listener:
    """A watcher that accepts nothing before the end of the test, or until it is cancelled."""
    listener = Listener(subject, is_stuck=True)
    opened.callback(listener.gate.set)
    return listener


def hold(watches: Numbered, opened: ExitStack) -> list[Listener]:
    """Listeners of two tenants that hold all senders until their gates open."""
    listeners = [stuck(opened, (tenant, "held")) for tenant in ("a", "a", "b", "b")]
    add(watches, *listeners)
    wait_for(lambda: all(each.entered.is_set() for each in listeners), "all senders to be held")
    return listeners


def watched_already(watches: Numbered, numbers: Numbers, *subjects: Subject) -> list[Listener]:
    """Listeners, one a subject, that have seen the number, so that it is read all the time."""
    numbers.values |= dict.fromkeys(subjects, 7)
    listeners = [Listener(subject) for subject in subjects]
    add(watches, *listeners)
    for listener in listeners:
        listener.got()
    return listeners


def settle(numbers: Numbers, subject: Subject) -> None:
    """Waits until messages to all who watch a subject by now are queued (see watched_already)."""
    # What was due at the first of these reads is in the queue by the third.
    seen = numbers.reads[subject]
    wait_for(lambda: numbers.reads[subject] >= seen + 3, "three reads")


def test_the_first_message_is_sent_and_then_what_changes(
    watches: Numbered, numbers: Numbers
) -> None:
    subject = ("acme", "post:42")
    numbers.values[subject] = 7
    listener = Listener(subject)
    add(watches, listener)
    listener.got()
    seen = numbers.reads[subject]
    wait_for(lambda: numbers.reads[subject] > seen + 5, "reads without a change")
    numbers.values[subject] = 8
    listener.got(2)
    seen = numbers.reads[subject]
    wait_for(lambda: numbers.reads[subject] > seen + 5, "reads without a change")
    assert listener.messages == ["None>7", "7>8"]


def test_thousands_of_watchers_of_one_subject_cost_one_read(
    watches: Numbered, numbers: Numbers
) -> None:
    subject = ("acme", "post:42")
    gate = numbers.gates[subject] = threading.Event()
    first = Listener(subject, NEVER)
    add(watches, first)
    wait_for(lambda: numbers.reads, "the first read")
    crowd = [Listener(subject, NEVER) for _ in range(5_000)]
    add(watches, *crowd)
    gate.set()
    for listener in crowd:
        listener.got()
    # A state is the number of its read: one read for all who came while the first was under way.
    assert {message for listener in crowd for message in listener.messages} == {"None>2"}
    assert numbers.reads[subject] == 2


def test_a_crowd_that_has_seen_the_same_shares_the_message(
    watches: Numbered, numbers: Numbers
) -> None:
    subject = ("acme", "post:42")
    numbers.values[subject] = 7
    early, late = Listener(subject), Listener(subject)
    add(watches, early)
    early.got()
    add(watches, late)
    late.got()
    numbers.values[subject] = 8
    assert early.got(2)[1] is late.got(2)[1]


def test_states_that_are_as_good_are_compared_once(hub: WatchHub) -> None:
    numbers = Fresh()
    watches = hub.of(numbers)
    for _ in range(5):
        listener = Listener()
        add(watches, listener)
        listener.got()  # each has seen the object of another read
    wait_for(lambda: "".join(numbers.log[-20:]) == "readnews" * 10, "one comparison a read")


def test_subjects_of_a_group_are_read_together(hub: WatchHub) -> None:
    numbers = Together()
    subjects = [(tenant, f"post:{i}") for tenant in ("acme", "ann") for i in range(3)]
    numbers.values = dict.fromkeys(subjects, 7)
    add(hub.of(numbers), *(Listener(subject) for subject in subjects))
    wait_for(lambda: {3} <= {len(batch) for batch in numbers.batches}, "a read of all")
    assert all(len({tenant for tenant, _ in batch}) == 1 for batch in numbers.batches)


def test_min_interval_lies_between_two_messages(watches: Numbered) -> None:
    patient, eager = Listener(interval=0.2), Listener()
    add(watches, patient, eager)
    patient.got(4)
    gaps = [b - a for a, b in zip(patient.moments, patient.moments[1:], strict=False)]
    assert min(gaps) >= 0.2
    assert len(eager.messages) > 4


def test_a_slow_send_does_not_shorten_the_interval(watches: Numbered, opened: ExitStack) -> None:
    slow = stuck(opened, ("acme", "post:42"))
    slow.watch.min_interval = 0.2
    add(watches, slow)
    slow.entered.wait(30)
    long = time.monotonic() + 0.3
    wait_for(lambda: time.monotonic() > long, "longer than the interval")
    accepted = time.monotonic()
    slow.gate.set()
    slow.got(2)
    assert slow.moments[1] >= accepted + 0.2


def test_a_watcher_that_stalls_is_dropped(opened: ExitStack, numbers: Numbers) -> None:
    hub = opened.enter_context(closing(WatchHub(10_000, tick=TICK, stall=0.3)))
    watches = hub.of(numbers)
    dead = [stuck(opened, ("acme", "post:42")) for _ in range(10)]
    healthy = Listener(("acme", "post:42"))
    add(watches, *dead)
    add(watches, healthy)
    wait_for(
        lambda: all(listener.is_cancelled for listener in dead), "the ends of the stalled ones"
    )
    before = len(healthy.messages)
    healthy.got(before + 10)
    assert not healthy.is_cancelled
    assert all(len(listener.moments) == 1 for listener in dead)


def test_stalled_watchers_of_a_tenant_do_not_hold_up_another(
    watches: Numbered, opened: ExitStack
) -> None:
    dead = [stuck(opened, ("acme", "post:42")) for _ in range(2_000)]
    add(watches, *dead)
    wait_for(lambda: sum(listener.entered.is_set() for listener in dead) >= 3, "senders to stall")
    healthy = Listener(("ann", "post:42"))
    add(watches, healthy)
    healthy.got(10)


def test_slow_reads_for_a_tenant_do_not_hold_up_another(
    watches: Numbered, numbers: Numbers, opened: ExitStack
) -> None:
    gate = threading.Event()
    opened.callback(gate.set)
    subjects = [("acme", f"post:{i}") for i in range(100)]
    numbers.gates = dict.fromkeys(subjects, gate)
    add(watches, *(Listener(subject) for subject in subjects))
    wait_for(lambda: len(numbers.reads) >= 3, "readers to wait")
    healthy = Listener(("ann", "post:42"))
    add(watches, healthy)
    healthy.got(10)


def test_slow_reads_of_a_kind_do_not_hold_up_another(
    hub: WatchHub, watches: Numbered, numbers: Numbers, opened: ExitStack
) -> None:
    gate = threading.Event()
    opened.callback(gate.set)
    subjects = [(f"tenant-{i}", "post:42") for i in range(100)]
    numbers.gates = dict.fromkeys(subjects, gate)
    add(watches, *(Listener(subject) for subject in subjects))
    wait_for(lambda: len(numbers.reads) >= 4, "readers to wait")
    healthy = Listener(("tenant-1", "post:42"))
    add(hub.of(Numbers()), healthy)
    healthy.got(10)


def test_tenants_take_turns(watches: Numbered, numbers: Numbers, opened: ExitStack) -> None:
    order: list[str] = []
    crowds = {("acme", "post:42"): 1_000, ("ann", "post:42"): 1}
    settled = watched_already(watches, numbers, *crowds)
    held = hold(watches, opened)
    for subject, size in crowds.items():
        for _ in range(size):
            listener = Listener(subject, NEVER)
            listener.watch.send = partial(lambda tenant, _: order.append(tenant), subject[0])
            add(watches, listener)
        settle(numbers, subject)
    for listener in held:
        listener.gate.set()
    wait_for(lambda: len(order) == 1_001, "all messages")
    assert order.index("ann") < 100
    assert [len(listener.messages) for listener in settled] == [1, 1]


def test_a_message_in_the_queue_is_not_sent_after_the_end(
    watches: Numbered, numbers: Numbers, opened: ExitStack
) -> None:
    subject = ("acme", "post:42")
    watched_already(watches, numbers, subject)
    held = hold(watches, opened)
    removed, last = Listener(subject), Listener(subject)
    add(watches, removed)
    settle(numbers, subject)
    add(watches, last)
    watches.remove(removed.watch)
    for listener in held:
        listener.gate.set()
    last.got()
    assert removed.moments == []


def test_an_error_of_a_subject_ends_its_watchers_only(hub: WatchHub) -> None:
    numbers = Together()
    watches = hub.of(numbers)
    gone = [Listener(("acme", "gone"), interval) for interval in (0.0, 0.0, NEVER)]
    others = [Listener(("acme", "post:42")), Listener(("ann", "gone"))]
    add(watches, *gone, *others)
    for listener in (*gone, *others):
        listener.got()
    error = numbers.errors["acme", "gone"] = NotFound("no such leaderboard")
    for listener in gone:
        listener.ended()
    for listener in others:
        listener.got(len(listener.messages) + 5)
    assert [listener.errors for listener in (*gone, *others)] == [[error]] * 3 + [[]] * 2


def test_a_broken_source_ends_the_watchers_of_what_it_broke_on(
    watches: Numbered, numbers: Numbers
) -> None:
    broken, healthy = Listener(("acme", "broken")), Listener()
    numbers.errors["acme", "broken"] = ValueError("a bug")
    add(watches, broken, healthy)
    broken.ended()
    healthy.got(5)
    assert [(error.reason, error.message) for error in broken.errors] == [
        ("INTERNAL", "internal error: ValueError")
    ]


@pytest.mark.parametrize(
    "error",
    [
        Unavailable("away"),
        Unavailable("closed", reason="PARTITION_UNAVAILABLE"),
        Unavailable("away", reason="POSTGRES_UNAVAILABLE"),
        DeadlineExceeded("silent"),
        Overloaded("busy"),
    ],
    ids=lambda error: str(error),
)
def test_watches_stay_open_and_silent_while_a_store_is_away(
    watches: Numbered, numbers: Numbers, error: TallyboardError
) -> None:
    subject = ("acme", "away")
    seen, new, other = Listener(subject), Listener(subject), Listener()
    add(watches, seen, other)
    seen.got()
    numbers.values[subject], numbers.errors[subject] = -5, error
    reads, messages = numbers.reads[subject], len(other.messages)
    add(watches, new)
    # Asked again, but not at every tick.
    wait_for(lambda: numbers.reads[subject] >= reads + 4, "four further reads")
    assert numbers.reads[subject] - reads < (len(other.messages) - messages) / 2
    assert (new.messages, seen.errors, new.errors) == ([], [], [])
    del numbers.errors[subject]
    new.got()
    assert new.messages[0] == "None>-5"


def test_a_send_that_fails_ends_its_watcher_only(watches: Numbered) -> None:
    broken, healthy = Listener(), Listener()
    broken.watch.send = lambda message: message.missing  # type: ignore[attr-defined]
    add(watches, broken, healthy)
    broken.ended()
    healthy.got(5)
    assert [error.reason for error in broken.errors] == ["INTERNAL"]


def test_a_watch_ends_once(watches: Numbered) -> None:
    ended, removed = Listener(), Listener()
    add(watches, ended, removed)
    watches.remove(removed.watch)
    for _ in range(2):
        watches.end((ended.watch, removed.watch), Unavailable("away"))
    assert (len(ended.errors), len(removed.errors)) == (1, 0)


def test_kinds_share_one_limit(opened: ExitStack) -> None:
    hub = opened.enter_context(closing(WatchHub(2, tick=TICK)))
    first, second = hub.of(Numbers()), hub.of(Numbers())
    one, two, three = Listener(), Listener(), Listener()
    add(first, one)
    add(second, two)
    with pytest.raises(Overloaded):
        add(second, three)
    first.remove(one.watch)
    first.remove(one.watch)
    add(second, three)
    three.got()
    with pytest.raises(Overloaded):
        add(first, Listener())


def test_a_watcher_that_was_ended_makes_room(opened: ExitStack, numbers: Numbers) -> None:
    hub = opened.enter_context(closing(WatchHub(1, tick=TICK)))
    watches = hub.of(numbers)
    numbers.errors["acme", "gone"] = NotFound("gone")
    for _ in range(3):
        listener = Listener(("acme", "gone"))
        add(watches, listener)
        listener.ended()


def test_a_removed_watcher_is_sent_nothing_more(watches: Numbered) -> None:
    listener, other = Listener(), Listener()
    add(watches, listener, other)
    listener.got()
    watches.remove(listener.watch)
    other.got(len(other.messages) + 2)
    before = len(listener.messages)
    other.got(len(other.messages) + 10)
    assert (len(listener.messages), listener.errors) == (before, [])


def test_a_subject_that_nobody_watches_is_not_read(watches: Numbered, numbers: Numbers) -> None:
    listener, other = Listener(("acme", "left")), Listener()
    add(watches, listener, other)
    listener.got()
    watches.remove(listener.watch)
    other.got(len(other.messages) + 2)
    before = numbers.reads["acme", "left"]
    other.got(len(other.messages) + 10)
    assert numbers.reads["acme", "left"] == before
    assert list(watches._topics) == [other.watch.subject]  # what is left takes no memory


def test_close_ends_all_of_all_kinds_once(opened: ExitStack) -> None:
    threads = set(threading.enumerate())
    hub = WatchHub(10_000, tick=TICK, stall=NEVER)
    kinds = [hub.of(Numbers()), hub.of(Together())]
    listeners = [Listener((tenant, "post:42")) for tenant in ("acme", "ann")]
    held = stuck(opened, ("acme", "held"))
    for kind, listener in zip(kinds, listeners, strict=True):
        add(kind, listener)
        listener.got()
    add(kinds[0], held)
    held.entered.wait(30)

    def end(error: TallyboardError) -> None:
        held.errors.append(error)
        held.gate.set()

    held.watch.end = end
    hub.close()
    hub.close()
    reasons = [[error.reason for error in listener.errors] for listener in (*listeners, held)]
    assert reasons == [["SHUTTING_DOWN"]] * 3
    assert set(threading.enumerate()) <= threads
    with pytest.raises(Unavailable, match="shutting down"):
        add(kinds[1], Listener())


CLOSED = 3
SHARDING = Sharding(8, 1, {}, [], 1, 0)


class RecordingReader(CountReader):
    """Remembers the names of every exact read."""

    def __init__(self, store: RedisStore) -> None:
        super().__init__(store, SHARDING, ttl=60, max_entries=100)
        self.close_store = store.close
        self.asked: list[list[str]] = []

    def exact(self, tenant: str, counters: Sequence[str], deadline: float) -> list[Count]:
        """A read of Redis."""
        self.asked.append(list(counters))
        return super().exact(tenant, counters, deadline)


@pytest.fixture
def reader(redis_server: EmbeddedRedis, opened: ExitStack) -> RecordingReader:
    """Reads a Redis with one closed partition."""
    url = opened.enter_context(empty_redis(redis_server))
    lives = {partition: f"life-{partition}" for partition in range(8) if partition != CLOSED}
    with closing(control_client(url)) as client:
        for partition, life in lives.items():
            client.set(incarnation_key(partition), life)
    store = RedisStore(
        topology_of(url, 8),
        Fences(lives),
        AdmitsAll("applied"),
        timeout=1.0,
        max_pending=100_000,
        on_refused=lambda part, keys: part.done(),
    )
    opened.enter_context(closing(store))
    return RecordingReader(store)


def names_in(*, closed: bool, count: int) -> list[str]:
    """Names of counters whose shard is in the closed partition, or is not."""
    every = (f"post:{i}" for i in itertools.count())
    found = (name for name in every if (SHARDING.home("acme", name) == CLOSED) == closed)
    return list(itertools.islice(found, count))


def count(name: str, value: int, *, exists: bool = True, as_of: float = 1.0) -> Count:
    """A count as a read gives it."""
    return Count(name, value, exists, as_of, Source.LIVE)


class TestCountSource:
    """What is sent of counters."""

    source = CountSource(None)  # type: ignore[arg-type]

    def test_the_first_message_has_all(self) -> None:
        state = (count("b", 1), count("a", 0, exists=False))
        assert self.source.news(state, None) == list(state)

    def test_then_those_with_another_value_or_existence(self) -> None:
        sent = (count("a", 1), count("b", 0), count("c", 0, exists=False))
        state = (count("a", 1, as_of=2.0), count("b", 5), count("c", 0))
        assert self.source.news(state, sent) == [count("b", 5), count("c", 0)]

    def test_a_later_read_of_the_same_is_no_news(self) -> None:
        assert self.source.news((count("a", 1, as_of=2.0),), (count("a", 1),)) is None

    def test_each_counter_is_read_once_and_a_thousand_at_a_time(
        self, reader: RecordingReader
    ) -> None:
        names = names_in(closed=False, count=2_500)
        subjects = [("acme", tuple(names[i : i + 100])) for i in range(0, 2_450, 50)]
        states = CountSource(reader).read(subjects, 5.0)
        assert [len(asked) for asked in reader.asked] == [1_000, 1_000, 500]
        assert [name for asked in reader.asked for name in asked] == names
        read = [tuple(c.counter for c in states[subject]) for subject in subjects]  # type: ignore[union-attr]
        assert read == [watched for _, watched in subjects]

    def test_a_closed_partition_ends_the_watches_of_its_counters_only(
        self, reader: RecordingReader
    ) -> None:
        good, bad = names_in(closed=False, count=50), names_in(closed=True, count=2)
        subjects = [("acme", (name,)) for name in (*good[:25], *bad, *good[25:])]
        mixed = ("acme", (good[0], bad[0]))
        states = CountSource(reader).read([*subjects, mixed], 5.0)
        failed = {s: e.reason for s, e in states.items() if isinstance(e, TallyboardError)}
        ended = [("acme", (name,)) for name in bad]
        assert failed == dict.fromkeys([*ended, mixed], "PARTITION_UNAVAILABLE")

    def test_a_redis_that_is_away_is_asked_once(self, reader: RecordingReader) -> None:
        subjects = [("acme", (f"post:{i}",)) for i in range(100)]
        reader.close_store()
        states = CountSource(reader).read(subjects, 5.0)
        assert all(isinstance(state, Unavailable) for state in states.values())
        assert len(reader.asked) == 1


class Boards:
    """Boards of one window a day, named after the day's number, in memory."""

    def __init__(self) -> None:
        self.now = 0
        self.page_of_day = {0: page("0", "ann")}
        self.boards = {("acme", "flights"): Leaderboard("acme", "flights")}
        self.asked: list[tuple[object, ...]] = []

    def get(self, tenant: str, leaderboard_id: str, deadline: float) -> Leaderboard:
        """A definition."""
        assert deadline > time.monotonic()
        if (tenant, leaderboard_id) not in self.boards:
            raise NotFound("no such leaderboard")
        return self.boards[tenant, leaderboard_id]

    def resolve(self, board: Leaderboard, text: str, now: int) -> Window:
        """The day of `now`, of `current:daily`."""
        assert text == "current:daily"
        return Window(str(now), WindowKind.DAILY)

    def page(self, board: Leaderboard, window: Window, *rest: object) -> Page:
        """The day's page."""
        self.asked.append(rest[:-1])
        return self.page_of_day[int(window.window)]


def page(window: str, *members: str, as_of: float = 1.0) -> Page:
    """The members with falling scores."""
    entries = tuple(Entry(i + 1, m, -float(i), b"", 0) for i, m in enumerate(members))
    return Page(window, entries, len(members), as_of, Source.LIVE)


TOP = ("acme", "flights", "current:daily", 10, RankMethod.DENSE)


class TestTopSource:
    """What is sent of leaderboards."""

    @pytest.fixture
    def boards(self) -> Boards:
        """A board with one entry."""
        return Boards()

    @pytest.fixture
    def source(self, boards: Boards) -> TopSource:
        """Reads it."""
        return TopSource(boards, boards, boards.resolve, lambda: boards.now)

    @pytest.mark.parametrize(
        "other",
        [
            page("0", "bob"),
            page("0", "ann", "bob"),
            replace(page("0", "ann"), total_size=2),
            page("1", "ann"),
        ],
    )
    def test_the_whole_page_is_sent_when_it_differs(self, source: TopSource, other: Page) -> None:
        assert source.news(other, page("0", "ann")) is other

    def test_a_later_read_of_the_same_is_no_news(self, source: TopSource) -> None:
        sent = page("0", "ann")
        later = replace(page("0", "ann", as_of=2.0), next_page_token="x")
        assert source.news(later, sent) is None
        assert source.news(sent, None) is sent

    def test_the_top_is_read_exactly(self, source: TopSource, boards: Boards) -> None:
        assert source.read([TOP], 2.0) == {TOP: boards.page_of_day[0]}
        assert boards.asked == [(10, "", 0, False, RankMethod.DENSE, None)]

    def test_a_watch_moves_on_and_ends_with_its_board(
        self, hub: WatchHub, source: TopSource, boards: Boards
    ) -> None:
        pages: list[Page] = []
        errors: list[TallyboardError] = []
        watcher = Watcher(TOP, 0.0, pages.append, errors.append, lambda: None)
        hub.of(source).add(watcher)
        wait_for(lambda: pages, "the first day")
        boards.page_of_day[1] = page("1")
        boards.now = 1
        wait_for(lambda: len(pages) > 1, "the next day")
        boards.boards.clear()
        wait_for(lambda: errors, "the end")
        assert pages == [page("0", "ann"), page("1")]
        assert [error.reason for error in errors] == ["LEADERBOARD_NOT_FOUND"]
