"""What the demo prints about boards."""

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import islice
from typing import Final, Literal
from zoneinfo import ZoneInfo

import grpc
from rich import box
from rich.table import Table

from tallyboard.v1 import leaderboards_pb2 as pb
from tallyboard.v1.leaderboards_pb2_grpc import LeaderboardServiceStub
from tests.demo.boards import RACE
from tests.demo.events import ZONE
from tests.demo.standings import ALL_TIME, Entry, Standings
from tests.demo.submit import Submitted, metadata_of
from tests.demo.windows import Difference, Read

SHOWN: Final = 20
_TIMEOUT: Final = 60.0


def of_boards(
    standings: Standings, submitted: Submitted, live: Sequence[Read], again: Sequence[Read]
) -> Table:
    """Each board with what was compared: from Redis, and from Postgres."""
    table = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    table.add_column("board", no_wrap=True)
    for heading in ("windows", "scores", "entries", "Redis", "Postgres", "differ"):
        table.add_column(heading, justify="right", no_wrap=True)
    redis, postgres, differ = Counter[str](), Counter[str](), Counter[str]()
    for read in [*live, *again]:
        (redis if read.is_live else postgres)[read.board] += read.entries
        differ[read.board] += len(read.differences)
    rows = [
        (
            len(windows),
            submitted.submissions.get(board, 0),
            sum(map(len, windows.values())),
            redis[board],
            postgres[board],
            differ[board],
        )
        for board, windows in standings.items()
    ]
    for board, row in sorted(zip(standings, rows, strict=True)):
        table.add_row(board, *(f"{number:,}" for number in row))
    table.add_section()
    table.add_row("all", *(f"{sum(column):,}" for column in zip(*rows, strict=True)))
    return table


def of_tops(channel: grpc.Channel, tenant: str, standings: Standings) -> Table:
    """The first of some rankings, as the service has them; equal scores share a rank."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for heading in ("ranking", "member", "score", "metadata", "since"):
        justify: Literal["left", "right"] = "right" if heading == "score" else "left"
        table.add_column(heading, justify=justify, no_wrap=True)
    for heading, board, window, size, unit in _tops(standings):
        for entry in _top(channel, tenant, board, window, size):
            when = datetime.fromtimestamp(entry.updated_at.seconds, ZoneInfo(ZONE))
            table.add_row(
                heading,
                f"{entry.rank} {entry.member}",
                f"{entry.score:,.5g} {unit}",
                entry.metadata.decode(),
                f"{when:%m-%d %H:%M}",
            )
            heading = ""
        table.add_section()
    return table


def of_problems(differences: Sequence[Difference], problems: Sequence[str]) -> Iterator[str]:
    """The first of what is wrong, as sentences."""
    yield from islice(problems, SHOWN)
    for board, window, expected, found in differences[:SHOWN]:
        yield f"{board} {window}: expected {expected}, found {found}"


def _tops(standings: Standings) -> Iterator[tuple[str, str, str, int, str]]:
    """For each: what it shows, board, window, how many entries, and the unit of scores."""
    yield "most flights", "flights:carrier", ALL_TIME, 3, "flights"
    months = standings["delay:carrier:monthly"]
    # A month that only a few flights after midnight were in says little.
    for month in sorted(sorted(months, key=lambda id: -_flights(months[id]))[:2]):
        yield f"worst mean delay {month}", "delay:carrier:monthly", month, 3, "min"
    yield "fastest routes", "fastest:route", ALL_TIME, 5, "min"
    yield f"fastest on {RACE}", f"fastest:{RACE}", ALL_TIME, 6, "min"


def _flights(entries: Sequence[Entry]) -> int:
    """How many flights the means are over."""
    return sum(int(entry.metadata.split()[0]) for entry in entries)


def _top(
    channel: grpc.Channel, tenant: str, board: str, window: str, size: int
) -> Sequence[pb.Entry]:
    request = pb.ListEntriesRequest(
        leaderboard_id=board,
        window=window,
        page_size=size,
        rank_method=pb.RANK_METHOD_COMPETITION,
    )
    list_entries = LeaderboardServiceStub(channel).ListEntries
    answer = list_entries(request, metadata=metadata_of(tenant), timeout=_TIMEOUT)
    return answer.entries
