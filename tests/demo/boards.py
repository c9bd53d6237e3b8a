"""The leaderboards of the demo: how they are defined, and what a departure scores on each."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Final, NamedTuple

from tallyboard.v1 import leaderboards_pb2 as pb
from tests.demo.events import ZONE, Departure

RACE: Final = "JFK-LAX"  # the busiest route: some hundred aircraft, and a dozen equal best times

_DAILY: Final = pb.WINDOW_KIND_DAILY
_MONTHLY: Final = pb.WINDOW_KIND_MONTHLY
_ALL_KINDS: Final = (_DAILY, pb.WINDOW_KIND_WEEKLY, _MONTHLY, pb.WINDOW_KIND_ALL_TIME)

MembersOf = Callable[[Departure], Sequence[str]]


class Score(NamedTuple):
    """One submission; `moment` in seconds since the epoch."""

    member: str
    score: float
    metadata: bytes
    moment: int


class Board(NamedTuple):
    """A leaderboard, and its submissions, made from departures in the order of their moments."""

    leaderboard_id: str
    definition: pb.Leaderboard
    scores: Callable[[Sequence[Departure]], Iterator[Score]]


def boards() -> list[Board]:
    """All of them."""
    made = []
    for name, members_of in _SUBJECTS.items():
        made.append(_board(f"flights:{name}", pb.UPDATE_POLICY_SUM, partial(_flown, members_of)))
        # A mean is no SUM, and a score goes to every window of its board, in each of which the
        # mean is another. So each kind of window has a board of its own, to which a member's mean
        # so far in that window is submitted: LATEST keeps the last, which is over all flights. Two
        # SUM boards, of minutes and of flights, would give the mean to readers who divide, but no
        # ranking by it.
        for word, kind, length in (("daily", _DAILY, 10), ("monthly", _MONTHLY, 7)):
            made.append(
                _board(
                    f"delay:{name}:{word}",
                    pb.UPDATE_POLICY_LATEST,
                    partial(_mean_delays, members_of, length),
                    (kind,),
                )
            )
    for name, members_of in (("route", _route), (RACE, _racer)):
        made.append(
            _board(
                f"fastest:{name}",
                pb.UPDATE_POLICY_BEST,
                partial(_times, members_of),
                order=pb.SORT_ORDER_ASCENDING,
            )
        )
    return made


def _board(
    leaderboard_id: str,
    policy: "pb.UpdatePolicy.ValueType",
    scores: Callable[[Sequence[Departure]], Iterator[Score]],
    kinds: "Sequence[pb.WindowKind.ValueType]" = _ALL_KINDS,
    order: "pb.SortOrder.ValueType" = pb.SORT_ORDER_DESCENDING,
) -> Board:
    definition = pb.Leaderboard(
        sort_order=order,
        update_policy=policy,
        tie_break=pb.TIE_BREAK_EARLIEST,
        windows=kinds,
        time_zone=ZONE,
    )
    return Board(leaderboard_id, definition, scores)


def _carrier(departure: Departure) -> Sequence[str]:
    return (departure.carrier,)


def _airports(departure: Departure) -> Sequence[str]:
    return (departure.origin, departure.dest)


def _aircraft(departure: Departure) -> Sequence[str]:
    return (departure.aircraft,) if departure.aircraft else ()


def _route(departure: Departure) -> Sequence[str]:
    return (f"{departure.origin}-{departure.dest}",)


def _racer(departure: Departure) -> Sequence[str]:
    return _aircraft(departure) if _route(departure) == (RACE,) else ()


_SUBJECTS: Final[dict[str, MembersOf]] = {
    "carrier": _carrier,
    "airport": _airports,
    "aircraft": _aircraft,
}


def _flown(members_of: MembersOf, departures: Sequence[Departure]) -> Iterator[Score]:
    for departure in departures:
        for member in members_of(departure):
            yield Score(member, 1.0, departure.number.encode(), departure.moment)


def _mean_delays(
    members_of: MembersOf, length: int, departures: Sequence[Departure]
) -> Iterator[Score]:
    """Means so far, each with how many flights it is over as metadata.

    Args:
        length: so many characters of its date are the id of a departure's window.
    """
    sums: dict[tuple[str, str], tuple[int, int]] = {}
    for departure in departures:
        for member in members_of(departure):
            key = departure.day[:length], member
            minutes, flights = sums.get(key, (0, 0))
            minutes, flights = sums[key] = minutes + departure.delay, flights + 1
            yield Score(member, minutes / flights, b"%d flights" % flights, departure.moment)


def _times(members_of: MembersOf, departures: Sequence[Departure]) -> Iterator[Score]:
    for departure in departures:
        if departure.air_time is not None:
            for member in members_of(departure):
                number = departure.number.encode()
                yield Score(member, float(departure.air_time), number, departure.moment)
