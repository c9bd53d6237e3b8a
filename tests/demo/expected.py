"""What every counter must hold: plain arithmetic over the file that knows nothing of events."""

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from tests.demo.events import UNKNOWN, Line


class Expected(NamedTuple):
    """By the name of a counter, its value and how many increments make it up."""

    values: dict[str, int]
    updates: dict[str, int]


def compute(lines: Iterable[Line]) -> Expected:
    """Add the lines up, column by column."""
    values: Counter[str] = Counter()
    updates: Counter[str] = Counter()
    for line in lines:
        keys = {
            "carrier": line.carrier,
            "airport": line.origin,
            "aircraft": line.tailnum,
            "route": line.origin + "-" + line.dest,
            "day": "-".join((line.year, line.month.zfill(2), line.day.zfill(2))),
        }
        departed = line.dep_time not in UNKNOWN
        minutes = int(line.dep_delay) if departed else 0
        for group, key in keys.items():
            if key in UNKNOWN:
                continue
            flown = ("departures:" if departed else "cancelled:") + group + ":" + key
            values[flown] += 1
            updates[flown] += 1
            if minutes != 0:
                late = "delay:" + group + ":" + key
                values[late] += minutes
                updates[late] += 1
    return Expected(dict(values), dict(updates))
