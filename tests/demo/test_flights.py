"""The demo on a few flights: it passes, and a difference of one is found."""

import io
from collections.abc import Iterator

import grpc
import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from tallyboard import IncrementProducer, open_channel
from tests.demo.command import main, run
from tests.demo.compare import Difference, compare
from tests.demo.events import Flight, Line, add_updates, flights, read_lines
from tests.demo.expected import Expected, compute
from tests.demo.replay import Replayed, replay
from tests.service import RunningService

_FLIGHTS = 2_000
_TENANT = "flights"
_COUNTER = "departures:carrier:UA"


@pytest.fixture(scope="module")
def service() -> Iterator[RunningService]:
    """A service for the demo."""
    with RunningService(workers=2) as running:
        yield running


@pytest.fixture(scope="module")
def channel(service: RunningService) -> Iterator[grpc.Channel]:
    """A connection to it."""
    with open_channel(service.target) as opened:
        yield opened


@pytest.fixture(scope="module")
def expected() -> Expected:
    """What the flights add up to."""
    return compute(read_lines(_FLIGHTS))


@pytest.fixture(scope="module")
def replayed(service: RunningService) -> Replayed:
    """The flights, replayed once for all tests."""
    events = list(flights(read_lines(_FLIGHTS)))
    return replay(events, service.target, _TENANT, 2, lambda done: None)


def _updates(flight: Flight) -> dict[str, int]:
    counters: list[str] = []
    deltas: list[int] = []
    add_updates(flight, counters, deltas)
    return dict(zip(counters, deltas, strict=True))


def test_flight_counts_for_its_route() -> None:
    flight = Flight("UA", "JFK", "N14228", "JFK-LAX", "2013-01-01", 7)
    assert _updates(flight)["delay:route:JFK-LAX"] == 7


def test_flight_that_was_on_time_has_no_delay() -> None:
    flight = Flight("UA", "JFK", "N14228", "JFK-LAX", "2013-01-01", 0)
    assert not [name for name in _updates(flight) if name.startswith("delay:")]


def test_cancelled_flight_is_only_that() -> None:
    flight = Flight("UA", "JFK", "", "JFK-LAX", "2013-01-01", None)
    assert sorted(_updates(flight)) == [
        "cancelled:airport:JFK",
        "cancelled:carrier:UA",
        "cancelled:day:2013-01-01",
        "cancelled:route:JFK-LAX",
    ]


def test_whole_file_is_read() -> None:
    assert sum(1 for _ in read_lines()) == 336_776


def test_every_update_is_acknowledged(replayed: Replayed, expected: Expected) -> None:
    assert replayed.acknowledged == sum(expected.updates.values())


def test_every_counter_is_right(
    channel: grpc.Channel, replayed: Replayed, expected: Expected
) -> None:
    assert compare(channel, _TENANT, expected).differences == []


def test_difference_of_one_is_found(
    channel: grpc.Channel, replayed: Replayed, expected: Expected
) -> None:
    values = dict(expected.values)
    right = values[_COUNTER]
    values[_COUNTER] += 1
    planted = Expected(values, expected.updates)
    assert compare(channel, _TENANT, planted).differences == [
        Difference(_COUNTER, right + 1, right, right)
    ]


def test_counter_that_should_not_be_is_found(
    channel: grpc.Channel, service: RunningService
) -> None:
    with IncrementProducer(channel, "empty") as producer:
        producer.add("post:42", 3)
    assert compare(channel, "empty", Expected({}, {})).differences == [
        Difference("post:42", None, None, 3)
    ]


def test_run_prints_ok_also_when_a_worker_is_killed(service: RunningService) -> None:
    output = io.StringIO()
    run(Console(file=output), service.target, 2, _FLIGHTS, service)
    assert "OK: every counter is right" in output.getvalue()


@pytest.fixture
def wrong_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the demo expect one departure too many."""

    def compute_wrongly(lines: list[Line]) -> Expected:
        right = compute(lines)
        return right._replace(values={**right.values, _COUNTER: right.values[_COUNTER] + 1})

    monkeypatch.setattr("tests.demo.command.compute", compute_wrongly)


def _demo(service: RunningService) -> Result:
    return CliRunner().invoke(
        main, ["--target", service.target, "--part", "counters", "--limit", "500"]
    )


def test_right_counters_have_exit_status_0(service: RunningService) -> None:
    assert _demo(service).exit_code == 0


@pytest.mark.usefixtures("wrong_by_one")
def test_wrong_counter_has_exit_status_1(service: RunningService) -> None:
    assert _demo(service).exit_code == 1


@pytest.mark.usefixtures("wrong_by_one")
def test_wrong_counter_is_named(service: RunningService) -> None:
    assert f"{_COUNTER}: expected" in _demo(service).output


def test_kill_needs_a_service_of_its_own(service: RunningService) -> None:
    result = CliRunner().invoke(main, ["--target", service.target, "--kill"])
    assert "--kill is for a service that the demo starts itself" in result.output
