"""The boards of the demo on a few days: they pass, and what differs is found."""

import io
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import grpc
import pytest
from click.testing import CliRunner
from rich.console import Console

from tallyboard import open_channel
from tests.demo import board_part
from tests.demo.board_part import run_boards
from tests.demo.boards import boards
from tests.demo.command import main
from tests.demo.events import Departure, Line, departures, read_lines
from tests.demo.standings import Entry, Standings, compute
from tests.demo.submit import create, submit
from tests.demo.windows import Difference, compare, wait_until_archived
from tests.service import RunningService

# Both days on which clocks are changed, and the ends of a week and of a month.
_DAYS = {("3", "10"), ("3", "11"), ("10", "31"), ("11", "1"), ("11", "3")}
_TENANT = "few"


@pytest.fixture(scope="module")
def service() -> Iterator[RunningService]:
    """A service that nobody else uses, whose keeper is quick."""
    with RunningService(workers=2, checkpoint_interval=0.2) as running:
        yield running


@pytest.fixture(scope="module")
def channel(service: RunningService) -> Iterator[grpc.Channel]:
    """A connection to it."""
    with open_channel(service.target) as opened:
        yield opened


@pytest.fixture(scope="module")
def lines() -> list[Line]:
    """Some flights of those days."""
    return [line for line in read_lines() if (line.month, line.day) in _DAYS][::4]


class Ran(NamedTuple):
    """A run of the demo, and what it printed."""

    passed: bool
    output: str


def _run(service: RunningService, lines: list[Line]) -> Ran:
    output = io.StringIO()
    console = Console(file=output, width=200)
    passed = run_boards(console, service.target, 2, lines, service)
    return Ran(passed, output.getvalue())


@pytest.fixture(scope="module")
def ran(service: RunningService, lines: list[Line]) -> Ran:
    """The run of all those flights."""
    return _run(service, lines)


@pytest.fixture(scope="module")
def few(service: RunningService, channel: grpc.Channel, lines: list[Line]) -> Standings:
    """What must be in the windows of a tenant with some of the flights."""
    create(channel, _TENANT, boards())
    flown = departures(lines[:200])
    submit(flown, boards(), service.target, _TENANT, 2, lambda done: None)
    return compute(lines[:200])


@pytest.fixture
def differences(service: RunningService) -> Callable[[Standings], list[Difference]]:
    """Compares what is expected with the windows of that tenant."""

    def compared(standings: Standings) -> list[Difference]:
        reads = compare(service.target, _TENANT, standings, 2, lambda done: None)
        return [difference for read in reads for difference in read.differences]

    return compared


def _departure(lines: list[Line], **changes: str) -> Departure:
    """The first flight of the days, changed."""
    (departure,) = departures([lines[0]._replace(**changes)])
    return departure


def test_departure_after_midnight_is_of_the_next_day(lines: list[Line]) -> None:
    late = _departure(
        lines, hour="23", minute="59", time_hour="2013-03-10T04:00:00Z", dep_delay="2"
    )
    early = _departure(
        lines, hour="23", minute="59", time_hour="2013-03-10T04:00:00Z", dep_delay="0"
    )
    assert (early.day, late.day) == ("2013-03-09", "2013-03-10")


def test_flights_that_were_cancelled_are_no_departures(lines: list[Line]) -> None:
    assert departures([lines[0]._replace(dep_time="NA")]) == []


def test_last_mean_is_over_all_flights(lines: list[Line]) -> None:
    delays = ((0, "3"), (1, "4"), (2, "8"))
    flown = [_departure(lines, minute=str(20 + i), dep_delay=delay) for i, delay in delays]
    (board,) = (b for b in boards() if b.leaderboard_id == "delay:carrier:daily")
    *_, last = board.scores(flown)
    assert (last.score, last.metadata) == (5.0, b"3 flights")


def test_every_entry_is_right_live_and_archived(ran: Ran) -> None:
    assert ran.passed, ran.output
    assert "differences: 0\n" in ran.output


def test_both_stores_were_read(ran: Ran, lines: list[Line]) -> None:
    windows = compute(lines)["delay:carrier:daily"]
    size = str(sum(map(len, windows.values())))
    rows = [line.split() for line in ran.output.splitlines()]
    (row,) = (row for row in rows if row[:1] == ["delay:carrier:daily"])
    assert [row[1], *row[3:]] == [str(len(windows)), size, size, size, "0"]


def test_tops_are_shown(ran: Ran, lines: list[Line]) -> None:
    first = compute(lines)["flights:carrier"]["all"][0]
    assert f"1 {first.member}" in ran.output


def test_right_entries_do_not_differ(
    few: Standings, differences: Callable[[Standings], list[Difference]]
) -> None:
    assert differences(few) == []


@pytest.mark.parametrize(
    "changes",
    [{"rank": 9}, {"member": "ann"}, {"score": 0.5}, {"metadata": b"x"}, {"updated_at": 1}],
    ids=lambda changes: next(iter(changes)),
)
def test_wrong_field_is_found(
    few: Standings,
    differences: Callable[[Standings], list[Difference]],
    changes: dict[str, Any],
) -> None:
    right, *others = few["fastest:route"]["all"]
    wrong = right._replace(**changes)
    planted = few | {"fastest:route": few["fastest:route"] | {"all": [wrong, *others]}}
    assert differences(planted) == [Difference("fastest:route", "all", wrong, right)]


def test_entry_that_is_missing_is_found(
    few: Standings, differences: Callable[[Standings], list[Difference]]
) -> None:
    entries = few["flights:carrier"]["all"]
    more = Entry(len(entries) + 1, "ann", 1.0, b"", 0)
    planted = few | {"flights:carrier": few["flights:carrier"] | {"all": [*entries, more]}}
    assert differences(planted) == [Difference("flights:carrier", "all", more, None)]


def test_window_that_is_missing_is_found(
    few: Standings, differences: Callable[[Standings], list[Difference]]
) -> None:
    more = Entry(1, "ann", 1.0, b"", 0)
    planted = few | {"flights:carrier": few["flights:carrier"] | {"2013-05": [more]}}
    assert differences(planted) == [Difference("flights:carrier", "2013-05", more, None)]


def test_window_that_should_not_be_is_found(
    few: Standings, differences: Callable[[Standings], list[Difference]]
) -> None:
    windows = dict(few["delay:carrier:monthly"])
    month, (first, *_) = windows.popitem()
    found = differences(few | {"delay:carrier:monthly": windows})
    assert found[0] == Difference("delay:carrier:monthly", month, None, first)


def test_windows_that_are_not_archived_are_waited_for(
    channel: grpc.Channel, few: Standings
) -> None:
    planted = few | {"flights:carrier": few["flights:carrier"] | {"2013-05": []}}
    assert not wait_until_archived(channel, _TENANT, planted, lambda done: None, 0.1)


@pytest.fixture
def wrong_and_hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the demo expect another carrier in front, and not wait for the archive."""

    def compute_wrongly(lines: list[Line]) -> Standings:
        standings = compute(lines)
        first = standings["flights:carrier"]["all"][0]
        standings["flights:carrier"]["all"][0] = first._replace(member="ann")
        return standings

    monkeypatch.setattr(board_part, "compute", compute_wrongly)
    monkeypatch.setattr(board_part, "ARCHIVE_TIMEOUT", 0.0)


@pytest.mark.usefixtures("wrong_and_hasty")
def test_wrong_boards_have_exit_status_1_and_are_named(service: RunningService) -> None:
    arguments = ["--target", service.target, "--part", "boards", "--limit", "50"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1
    assert "flights:carrier all: expected Entry(rank=1, member='ann'" in result.output
    assert "not all windows were archived within 0 s" in result.output


@pytest.mark.parametrize("months", ["0", "13", "3,", "x", "5-4"])
def test_months_that_are_none_are_refused(months: str) -> None:
    result = CliRunner().invoke(main, ["--months", months])
    assert result.exit_code == 2
    assert "is not like 3,11 or 1-12" in result.output
