"""Leaderboards answer what plain sorted lists do, whatever is written and read in whatever order.

TALLYBOARD_TEST_STEPS says how many steps to take over all rules together; the default keeps the
suite short. Where it is set, a failure is also made smaller, which may take minutes.
"""

import itertools
import math
import os
import random
import struct
import sys
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, Phase, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    multiple,
    rule,
    run_state_machine_as_test,
)

from tallyboard.v1.leaderboards_pb2_grpc import LeaderboardServiceStub
from tests.leaderboards.calls import Caller, Clock, Refused, new_request_id, stream_batch
from tests.leaderboards.model import (
    ALL_TIME,
    DAY,
    MICROS,
    Board,
    Definition,
    Done,
    Item,
    Period,
    Row,
    Season,
    day_of,
)

_GIVEN_STEPS: Final = os.environ.get("TALLYBOARD_TEST_STEPS")
_STEPS: Final = int(_GIVEN_STEPS or 1920)
_PHASES: Final = (Phase.generate, Phase.shrink) if _GIVEN_STEPS else (Phase.generate,)
_STEPS_A_RUN: Final = 80
_SHAPES: Final = list(
    itertools.product(
        ("DESCENDING", "ASCENDING"), ("BEST", "LATEST", "SUM"), ("EARLIEST", "MEMBER_ID")
    )
)
# The boards of a run: segments and max_entries.
_BOARDS: Final = {
    "one": (1, 0),
    "two": (2, 0),
    "sixteen": (16, 0),
    "short": (1, 4),
    "shorts": (16, 4),
}

_HOUR: Final = 3600 * MICROS
_NAMES: Final = [
    *("ann", "an", "anna", "Ann", "bob", "zoë", "zoé", "\U0001f600", "\uffff", "a" * 256),
    *("}:z:x:all", "0", "o", "post:42", " ", "~"),
    *(f"m{number}" for number in range(12)),
]
_EDGES: Final = [
    *(sign * (2.0**53 + off) for sign in (1, -1) for off in (-2, -1, 0, 2)),
    *(sign * size for sign in (1, -1) for size in (5e-324, 1e-310, 2.3e-308, 1e308)),
    *(sys.float_info.max, -sys.float_info.max, 0.1, 0.1 + 2**-56, -0.0, 0.0),
]
# When a score was reached, seen from now.
_AGES: Final = [
    *(0, 0, 1, -1, -2, -7, 30 * MICROS, 61 * MICROS),
    *(-_HOUR, -DAY, -2 * DAY, -3 * DAY, -9 * DAY),
]
_METADATA: Final = [b"", b"", b"\0", b"one", b"\xff" * 2048]

# What is written comes from seeds: drawn value by value it would be too much for one run.
_seeds = st.integers(0, 2**32 - 1)
_members = st.sampled_from(_NAMES[:6]) | st.sampled_from(_NAMES)
_scores = (
    st.integers(-3, 3).map(float)
    | st.sampled_from(_EDGES)
    | st.floats(allow_nan=False, allow_infinity=False)
)
_methods = st.sampled_from(["ORDINAL", "COMPETITION", "DENSE"])
_boards = st.sampled_from(sorted(_BOARDS))
# Windows of reads; numbers are days from today.
_texts = st.sampled_from(
    [*2 * ("all", "current:daily"), "previous:daily", "spring", "autumn", "-2", "+1"]
)
_percentiles = st.floats(0, 100) | st.sampled_from([0.0, 25.0, 50.0, 90.0, 100.0])


def _any_score(chance: random.Random) -> float:
    kind = chance.random()
    if kind < 0.5:
        return float(chance.randint(-3, 3))
    if kind < 0.8:
        return chance.choice(_EDGES)
    while True:
        (score,) = struct.unpack("d", chance.randbytes(8))
        if math.isfinite(score):
            return float(score)


def _addend(chance: random.Random) -> float:
    """A score of which sums are exact, in any order."""
    return chance.choice(
        [-0.0, float(chance.randint(-3, 3)), float(chance.randint(-(2**44), 2**44))]
    )


@dataclass
class Batch:
    """A batch that can come again: what to send, and the failures there were."""

    send: Callable[[], Any]
    failures: Any


@dataclass
class Request:
    """A write with a request id that can come again."""

    kind: str
    send: Callable[[], Any]
    failures: dict[int, str] = field(default_factory=dict)
    board: str = ""
    item: Item | None = None
    ranks: bool = False


@dataclass(eq=False)
class Listing:
    """A list that goes on behind its last page."""

    board: str
    period: Period
    method: str
    reverse: bool
    least: float | None
    greatest: float | None
    next_page: Callable[[int, str], Any]
    last: Row | None = None
    token: str = ""

    def within(self, row: Row) -> bool:
        """Whether the row is within the bounds of the list."""
        return (self.least is None or row.score >= self.least) and (
            self.greatest is None or row.score <= self.greatest
        )


def _attempt(call: Callable[[], Any]) -> Any:
    """What a call answers, or the reason why it failed."""
    try:
        return call()
    except Refused as error:
        return error.reason


class AgainstLists(RuleBasedStateMachine):
    """Boards of one set of rules, each in another number of segments, and their models."""

    stub: LeaderboardServiceStub
    clock: Clock
    shape: tuple[str, str, str]

    requests = Bundle("requests")
    batches = Bundle("batches")
    listings = Bundle("listings")

    @initialize(
        early=st.sampled_from([3, 40, _HOUR]), seed=_seeds, size=st.sampled_from([8, 100, 400])
    )
    def start(self, early: int, seed: int, size: int) -> None:
        self.clock.to_eve(early)
        now = self.clock.now
        seasons = (
            Season("spring", now - 3 * _HOUR, now + DAY),
            Season("autumn", now - 10 * DAY, now + 20),
        )
        self.caller = Caller(self.stub, uuid.uuid4().hex)
        self.sequence = 0
        self.largest = 0.0
        self.open_listings: list[Listing] = []
        self.boards = {}
        for name, (segments, most) in _BOARDS.items():
            definition = Definition(*self.shape, segments, most, seasons)
            self.boards[name] = Board(definition)
            self.caller.create(name, definition)
        items = self._items(seed, size)
        failures = self._apply(items, is_import=True)
        assert self.caller.batch(items, is_import=True) == (failures, False)

    def teardown(self) -> None:
        if not hasattr(self, "caller"):
            return
        for listing in self.open_listings:
            self._go_on(listing, 3, to_the_end=True)
        for name, board in self.boards.items():
            assert self.caller.windows(name) == board.standings(self.clock.now)
            for period in board.windows:
                page = self.caller.page(name, period.window, "ORDINAL", size=1000)
                assert page.rows == board.rows(period)
            page = self.caller.page(name, "all", "DENSE", size=1000)
            assert page.rows == board.rows(ALL_TIME, "DENSE")

    # Drawing

    def _item(self, chance: random.Random, *, is_now: bool = False) -> Item:
        score = (_addend if self.shape[1] == "SUM" else _any_score)(chance)
        self.largest = max(self.largest, abs(score))
        is_now |= chance.random() < 0.4
        return Item(
            chance.choice(_NAMES[:6] if chance.random() < 0.4 else _NAMES),
            score,
            chance.choice(_METADATA),
            None if is_now else self.clock.now + chance.choice(_AGES),
        )

    def _items(self, seed: int, size: int) -> list[tuple[str, Item]]:
        """A batch: for one board and for now, or for several and with moments of its own."""
        chance = random.Random(seed)
        boards = list(_BOARDS)
        is_simple = chance.random() < 0.3
        if is_simple:
            boards = [chance.choice(boards)]
        items = [(chance.choice(boards), self._item(chance, is_now=is_simple)) for _ in range(size)]
        note(f"items: {items}")
        return items

    def _period(self, text: str) -> tuple[str, Period]:
        """What to call a window, and which one is meant."""
        now = self.clock.now
        if text in ("-2", "+1"):
            period = day_of(now + int(text) * DAY)
            return period.window, period
        if text == "all":
            return text, ALL_TIME
        if text.endswith(":daily"):
            return text, day_of(now - (0 if text.startswith("current") else DAY))
        seasons = {season.name: season for season in self.boards["one"].definition.seasons}
        return text, seasons[text].period

    # Time

    @rule(micros=st.sampled_from([1, 2, 5, 50, MICROS, _HOUR, 12 * _HOUR, DAY]))
    def advance(self, micros: int) -> None:
        self.clock.now += micros

    # Writes

    @rule(target=requests, seed=_seeds, name=_boards, ranks=st.booleans(), with_id=st.booleans())
    def submit(self, seed: int, name: str, ranks: bool, with_id: bool) -> Any:
        board, now = self.boards[name], self.clock.now
        item = self._item(random.Random(seed))
        note(f"item: {item}")
        request_id = new_request_id() if with_id else ""

        def send() -> tuple[list[Done], bool]:
            return self.caller.submit(name, item, request_id, ranks=ranks)

        refusal = board.refusal(item.moment, now)
        found = _attempt(send)
        if refusal is not None:
            assert found == refusal
            return multiple()
        expected = board.submit_one(item, now if item.moment is None else item.moment)
        assert found == (expected if ranks else _without_ranks(expected), False)
        if not with_id:
            return multiple()
        return Request("submit", send, board=name, item=item, ranks=ranks)

    @rule(
        target=requests, seed=_seeds, size=st.integers(1, 25), with_id=st.booleans(),
        is_import=st.booleans(),
    )  # fmt: skip
    def submit_batch(self, seed: int, size: int, with_id: bool, is_import: bool) -> Any:
        items = self._items(seed, size)
        request_id = new_request_id() if with_id else ""

        def send() -> tuple[dict[int, str], bool]:
            return self.caller.batch(items, request_id, is_import=is_import)

        found = send()
        failures = self._apply(items, is_import=is_import)
        assert found == (failures, False)
        return Request("batch", send, failures) if with_id else multiple()

    @rule(target=batches, seed=_seeds, size=st.integers(1, 25))
    def stream(self, seed: int, size: int) -> Any:
        self.sequence += 1
        items = self._items(seed, size)
        batch = stream_batch("ann", self.sequence, items)

        def send() -> dict[tuple[int, int], str]:
            return self.caller.stream([batch])

        found = send()
        failures = {(batch.sequence, at): reason for at, reason in self._apply(items).items()}
        assert found == failures
        return Batch(send, failures)

    def _apply(self, items: list[tuple[str, Item]], *, is_import: bool = False) -> dict[int, str]:
        """Applies a batch that arrives now; gives the reasons of what does not count."""
        now, failures = self.clock.now, {}
        good: dict[str, list[tuple[Item, int]]] = {}
        for index, (name, item) in enumerate(items):
            refusal = self.boards[name].refusal(item.moment, now, is_import=is_import)
            if refusal is not None:
                failures[index] = refusal
            else:
                moment = now + index if item.moment is None else item.moment
                good.setdefault(name, []).append((item, moment))
        for name, mine in good.items():
            self.boards[name].submit(mine)
        return failures

    @rule(
        target=requests, name=_boards, member=_members, text=st.just("") | _texts,
        with_id=st.booleans(),
    )  # fmt: skip
    def delete(self, name: str, member: str, text: str, with_id: bool) -> Any:
        board = self.boards[name]
        text, period = self._period(text) if text else ("", None)
        request_id = new_request_id() if with_id else ""

        def send() -> tuple[int, bool]:
            return self.caller.delete(name, member, text, request_id)

        found = _attempt(send)
        if period is not None and not board.is_known(period, self.clock.now):
            assert found == "WINDOW_NOT_FOUND"
            return multiple()
        assert found == (board.remove(member, period), False)
        return Request("delete", send) if with_id else multiple()

    @rule(target=requests, member=_members, with_id=st.booleans())
    def erase(self, member: str, with_id: bool) -> Any:
        request_id = new_request_id() if with_id else ""

        def send() -> tuple[int, int, bool]:
            return self.caller.erase(member, request_id)

        found = send()
        counts = [board.remove(member) for board in self.boards.values()]
        assert found == (sum(map(bool, counts)), sum(counts), False)
        return Request("erase", send) if with_id else multiple()

    @rule(request=requests)
    def repeat_request(self, request: Request) -> None:
        found = request.send()
        if request.kind == "submit":
            assert request.item is not None
            moment = self.clock.now if request.item.moment is None else request.item.moment
            standing = self.boards[request.board].standing(request.item.member, moment)
            assert found == (standing if request.ranks else _without_ranks(standing), True)
        elif request.kind == "batch":
            assert found == (request.failures, True)
        else:
            assert found[-1]
            assert not any(found[:-1])

    @rule(batch=batches)
    def repeat_batch(self, batch: Batch) -> None:
        assert batch.send() == batch.failures

    # Reads

    @rule(name=_boards, text=_texts, member=_members, method=_methods)
    def get(self, name: str, text: str, member: str, method: str) -> None:
        board = self.boards[name]
        text, period = self._period(text)
        found = _attempt(lambda: self.caller.get(name, text, member, method))
        rows = board.rows(period, method)
        if not board.is_known(period, self.clock.now):
            assert found == "WINDOW_NOT_FOUND"
        elif all(row.member != member for row in rows):
            assert found == "ENTRY_NOT_FOUND"
        else:
            (row,) = (row for row in rows if row.member == member)
            assert found == (row, board.percentiles(period)[member], len(rows))

    @rule(
        name=_boards, text=_texts, seed=_seeds, size=st.integers(1, len(_NAMES)), method=_methods,
        relative=st.booleans(),
    )  # fmt: skip
    def batch_get(
        self, name: str, text: str, seed: int, size: int, method: str, relative: bool
    ) -> None:
        board = self.boards[name]
        text, period = self._period(text)
        members = random.Random(seed).sample(_NAMES, size)
        found = _attempt(
            lambda: self.caller.batch_get(name, text, members, method, relative=relative)
        )
        if not board.is_known(period, self.clock.now):
            assert found == "WINDOW_NOT_FOUND"
            return
        ordered, percentiles = board.ordered(period), board.percentiles(period)
        rows = board.rows(period, method)
        if relative:
            rows = board.ranked([held for held in ordered if held.member in members], method)
        by_member = {row.member: row for row in rows}
        there = [member for member in members if member in by_member]
        assert found == (
            [by_member[member] for member in there],
            [percentiles[member] for member in there],
            [member for member in members if member not in by_member],
            len(ordered),
        )

    @rule(
        target=listings, name=_boards, text=_texts, method=_methods, size=st.integers(1, 8),
        skip=st.just(0) | st.integers(0, 12), reverse=st.booleans(), to_the_end=st.booleans(),
    )  # fmt: skip
    def list_entries(
        self,
        name: str,
        text: str,
        method: str,
        size: int,
        skip: int,
        reverse: bool,
        to_the_end: bool,
    ) -> Any:
        board = self.boards[name]
        text, period = self._period(text)

        def page(size: int, token: str = "") -> Any:
            return self.caller.page(
                name, text, method, size=size, token=token, skip=skip, reverse=reverse
            )

        found = _attempt(lambda: page(size))
        if not board.is_known(period, self.clock.now):
            assert found == "WINDOW_NOT_FOUND"
            return multiple()
        rows = board.rows(period, method)
        assert found.size == len(rows)
        rows = (rows[::-1] if reverse else rows)[skip:]
        listing = Listing(name, period, method, reverse, None, None, page)
        return self._take_pages(listing, found, rows, size, to_the_end)

    @rule(
        target=listings, name=_boards, text=_texts, method=_methods, size=st.integers(1, 8),
        bounds=st.tuples(st.none() | _scores, st.none() | _scores), reverse=st.booleans(),
        to_the_end=st.booleans(),
    )  # fmt: skip
    def list_by_score(
        self,
        name: str,
        text: str,
        method: str,
        size: int,
        bounds: tuple[float | None, float | None],
        reverse: bool,
        to_the_end: bool,
    ) -> Any:
        board = self.boards[name]
        text, period = self._period(text)
        least, greatest = bounds
        if least is not None and greatest is not None and least > greatest:
            least, greatest = greatest, least

        def page(size: int, token: str = "") -> Any:
            return self.caller.by_score(
                name, text, least, greatest, method, size=size, token=token, reverse=reverse
            )

        found = _attempt(lambda: page(size))
        if not board.is_known(period, self.clock.now):
            assert found == "WINDOW_NOT_FOUND"
            return multiple()
        listing = Listing(name, period, method, reverse, least, greatest, page)
        rows = [row for row in board.rows(period, method) if listing.within(row)]
        assert found.size == len(rows)
        rows = rows[::-1] if reverse else rows
        return self._take_pages(listing, found, rows, size, to_the_end)

    @rule(
        target=listings, listing=consumes(listings), size=st.integers(1, 8),
        to_the_end=st.booleans(),
    )  # fmt: skip
    def next_page(self, listing: Listing, size: int, to_the_end: bool) -> Any:
        self.open_listings.remove(listing)
        return self._go_on(listing, size, to_the_end=to_the_end)

    def _go_on(self, listing: Listing, size: int, *, to_the_end: bool) -> Any:
        """Reads on behind the last entry of a page, wherever that entry is by now."""
        found = listing.next_page(size, listing.token)
        board = self.boards[listing.board]
        assert listing.last is not None
        behind = board.behind(listing.period, listing.last, listing.method, reverse=listing.reverse)
        rows = [row for row in behind if listing.within(row)]
        return self._take_pages(listing, found, rows, size, to_the_end)

    def _take_pages(
        self, listing: Listing, found: Any, rows: list[Row], size: int, to_the_end: bool
    ) -> Any:
        """Compares a page, or all from it on, with the rows from its start on.

        Gives the list, to go on later, if there is more of it.
        """
        while True:
            assert found.window == listing.period.window
            assert found.rows == rows[:size]
            assert bool(found.token) == (len(rows) > size)
            if not found.token:
                return multiple()
            listing.last, listing.token = found.rows[-1], found.token
            if not to_the_end:
                self.open_listings.append(listing)
                return listing
            rows = rows[size:]
            found = listing.next_page(size, listing.token)

    @rule(name=_boards, text=_texts, member=_members, neighbors=st.integers(1, 6), method=_methods)
    def around_member(self, name: str, text: str, member: str, neighbors: int, method: str) -> None:
        board = self.boards[name]
        text, period = self._period(text)
        found = _attempt(lambda: self.caller.around(name, text, member, neighbors, method))
        if not board.is_known(period, self.clock.now):
            assert found == "WINDOW_NOT_FOUND"
            return
        expected = board.around_member(period, member, neighbors, method)
        if expected is None:
            assert found == "ENTRY_NOT_FOUND"
        else:
            assert (found.rows, found.rank) == expected
            assert found.size == len(board.ordered(period))

    @rule(name=_boards, text=_texts, score=_scores, neighbors=st.integers(1, 6), method=_methods)
    def around_score(self, name: str, text: str, score: float, neighbors: int, method: str) -> None:
        board = self.boards[name]
        text, period = self._period(text)
        found = _attempt(lambda: self.caller.around(name, text, score, neighbors, method))
        if not board.is_known(period, self.clock.now):
            assert found == "WINDOW_NOT_FOUND"
            return
        assert (found.rows, found.rank) == board.around_score(period, score, neighbors, method)
        assert found.size == len(board.ordered(period))

    @rule(name=_boards, text=_texts, percentiles=st.lists(_percentiles, max_size=4))
    def sum_up(self, name: str, text: str, percentiles: list[float]) -> None:
        board = self.boards[name]
        text, period = self._period(text)
        # Those of entries are where rounding would show.
        percentiles += list(board.percentiles(period).values())
        found = _attempt(lambda: self.caller.stats(name, text, percentiles))
        if not board.is_known(period, self.clock.now):
            assert found == "WINDOW_NOT_FOUND"
            return
        sums, mean = found
        expected = board.sums(period, percentiles)
        assert sums == expected._replace(mean=None)
        if expected.mean is None:
            assert mean is None
        else:
            # What rounding of the largest score there ever was leaves, and what is subnormal.
            allowed = max(abs(expected.mean) * 1e-9, self.largest * 1e-28, 1e-300)
            assert math.isfinite(mean)
            assert abs(expected.mean - type(expected.mean)(mean)) <= allowed

    @rule(name=_boards)
    def list_windows(self, name: str) -> None:
        assert self.caller.windows(name) == self.boards[name].standings(self.clock.now)


def _without_ranks(results: list[Done]) -> list[Done]:
    return [result._replace(previous_rank=None, rank=None) for result in results]


@pytest.mark.timeout(120 + _STEPS)
@pytest.mark.parametrize("shape", _SHAPES, ids="-".join)
def test_boards_answer_as_lists_do(
    shape: tuple[str, str, str], stub: LeaderboardServiceStub, clock: Clock
) -> None:
    machine = type("Machine", (AgainstLists,), {"stub": stub, "clock": clock, "shape": shape})
    run_state_machine_as_test(
        machine,
        settings=settings(
            # The first run is always the simplest one, which only takes the simplest step.
            max_examples=1 + math.ceil(_STEPS / len(_SHAPES) / _STEPS_A_RUN),
            stateful_step_count=_STEPS_A_RUN,
            phases=_PHASES,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
