"""What every window of every board must hold: plain arithmetic over the file, and a sort.

It knows nothing of events, policies or time zones: the windows of a departure come from the local
times that the file has, where the service gets moments in UTC and a zone to put them in.
"""

from collections import defaultdict
from collections.abc import Iterable
from datetime import date, datetime, timedelta
from typing import Final, NamedTuple

from tests.demo.boards import RACE
from tests.demo.events import UNKNOWN, Line

ALL_TIME: Final = "all"
_MICROS: Final = 1_000_000


class Entry(NamedTuple):
    """A member's place in a window; `updated_at` in microseconds since the epoch."""

    rank: int
    member: str
    score: float
    metadata: bytes
    updated_at: int


class _Flown(NamedTuple):
    """A line of a flight that took off."""

    moment: int
    day: str
    week: str
    month: str
    number: str
    line: Line


class _Held(NamedTuple):
    """What a member has in a window: a sum or a time, over how many flights, and of which one."""

    value: int
    flights: int
    moment: int
    number: str


# By board and window, what each member has.
_Tables = defaultdict[tuple[str, str], dict[str, _Held]]
Standings = dict[str, dict[str, list[Entry]]]


def compute(lines: Iterable[Line]) -> Standings:
    """The entries by board and window, in the order of their ranks."""
    tables: _Tables = defaultdict(dict)
    for flown in _in_order(lines):
        line = flown.line
        subjects = (
            ("carrier", line.carrier),
            ("airport", line.origin),
            ("airport", line.dest),
            ("aircraft", line.tailnum),
        )
        for subject, member in subjects:
            if member in UNKNOWN:
                continue
            for window in (flown.day, flown.week, flown.month, ALL_TIME):
                _add(tables["flights:" + subject, window], member, 1, flown)
            minutes = int(line.dep_delay)
            _add(tables["delay:" + subject + ":daily", flown.day], member, minutes, flown)
            _add(tables["delay:" + subject + ":monthly", flown.month], member, minutes, flown)
        if line.air_time not in UNKNOWN:
            route = line.origin + "-" + line.dest
            for window in (flown.day, flown.week, flown.month, ALL_TIME):
                _keep_fastest(tables["fastest:route", window], route, flown)
                if route == RACE and line.tailnum not in UNKNOWN:
                    _keep_fastest(tables["fastest:" + RACE, window], line.tailnum, flown)
    standings: Standings = defaultdict(dict)
    for (board, window), table in tables.items():
        standings[board][window] = _ranked(board, table)
    return dict(standings)


def _in_order(lines: Iterable[Line]) -> list[_Flown]:
    """Those that took off, by departure; of one minute, as they are in the file."""
    found = []
    for line in lines:
        if line.dep_time in UNKNOWN:
            continue
        delay = timedelta(minutes=int(line.dep_delay))
        planned = timedelta(hours=int(line.hour), minutes=int(line.minute))
        midnight = datetime(int(line.year), int(line.month), int(line.day))
        day = (midnight + planned + delay).date()
        utc = datetime.fromisoformat(line.time_hour) + timedelta(minutes=int(line.minute)) + delay
        found.append(
            _Flown(
                int(utc.timestamp()),
                str(day),
                _week(day),
                str(day)[:7],
                line.carrier + " " + line.flight,
                line,
            )
        )
    return sorted(found, key=lambda flown: flown.moment)


def _week(day: date) -> str:
    year, week, _ = day.isocalendar()
    return f"{year}-W{week:02}"


def _add(table: dict[str, _Held], member: str, value: int, flown: _Flown) -> None:
    held = table.get(member)
    total, flights = (held.value, held.flights) if held else (0, 0)
    table[member] = _Held(total + value, flights + 1, flown.moment, flown.number)


def _keep_fastest(table: dict[str, _Held], member: str, flown: _Flown) -> None:
    minutes, held = int(flown.line.air_time), table.get(member)
    # Lines come by departure, so of equal times the one that stays is the earliest.
    if held is None or minutes < held.value:
        table[member] = _Held(minutes, 1, flown.moment, flown.number)


def _ranked(board: str, table: dict[str, _Held]) -> list[Entry]:
    rows = [_row(board, member, held) for member, held in table.items()]
    # Sorting is stable: last of all by member, before that by moment, and first by score.
    is_ascending = board.startswith("fastest:")
    rows.sort(key=lambda row: row.member.encode(), reverse=not is_ascending)
    rows.sort(key=lambda row: row.updated_at)
    rows.sort(key=lambda row: row.score, reverse=not is_ascending)
    return [row._replace(rank=rank) for rank, row in enumerate(rows, start=1)]


def _row(board: str, member: str, held: _Held) -> Entry:
    score, metadata = float(held.value), held.number.encode()
    if board.startswith("delay:"):
        score, metadata = held.value / held.flights, f"{held.flights} flights".encode()
    return Entry(0, member, score, metadata, held.moment * _MICROS)
