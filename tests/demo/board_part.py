"""The demo's second part: leaderboards, compared while they are live and once they are archived."""

import time
import uuid
from calendar import month_abbr
from collections.abc import Callable, Sequence
from typing import Final

from rich.console import Console

from tallyboard import open_channel
from tests.demo import board_report
from tests.demo.boards import boards
from tests.demo.events import Line, departures
from tests.demo.progress import bar
from tests.demo.standings import ALL_TIME, Standings, compute
from tests.demo.submit import Submitted, create, submit
from tests.demo.windows import Read, compare, ended, forget_archived, wait_until_archived
from tests.service import RunningService

ARCHIVE_TIMEOUT: Final = 120.0


def run_boards(
    console: Console,
    target: str,
    connections: int,
    lines: Sequence[Line],
    service: RunningService | None = None,
) -> bool:
    """Submit, compare, wait for the archive, compare again and print; whether all is right.

    Args:
        service: the one at `target` if nobody else uses it. Its Redis is made to forget what is
            archived, a day before it would, so that the second comparison reads Postgres; without
            it, both may read Redis, and the table says so.
    """
    started = time.monotonic()
    standings = compute(lines)
    flown = departures(lines)
    total = sum(1 for board in boards() for _ in board.scores(flown))
    sizes = [len(entries) for windows in standings.values() for entries in windows.values()]
    months = ", ".join(month_abbr[month] for month in sorted({int(line.month) for line in lines}))
    console.print(
        f"{len(flown):,} departures ({months}) give {total:,} scores on {len(standings)} boards, "
        f"{sum(sizes):,} entries in {len(sizes):,} windows; "
        f"ranked in {time.monotonic() - started:.1f} s."
    )
    tenant = f"boards-{uuid.uuid4()}"
    with open_channel(target) as channel:
        create(channel, tenant, boards())
        with bar(console) as shown:

            def task(description: str, size: int) -> Callable[[int], object]:
                added = shown.add_task(description, total=size)
                return lambda done: shown.update(added, completed=done)

            progress = task("scores submitted", total)
            submitted = submit(flown, boards(), target, tenant, connections, progress)
            progress = task("live entries compared", sum(sizes))
            live = compare(target, tenant, standings, connections, progress)
            progress = task("windows archived", len(list(ended(standings))))
            is_archived = wait_until_archived(channel, tenant, standings, progress, ARCHIVE_TIMEOUT)
            if service is not None:
                forget_archived(service.redis_url)
            progress = task("archived entries compared", sum(sizes))
            again = compare(target, tenant, standings, connections, progress)
        console.print(board_report.of_boards(standings, submitted, live, again))
        console.print(board_report.of_tops(channel, tenant, standings))
    problems = _problems(submitted, total, is_archived, again if service else [])
    return _conclude(console, standings, submitted, [*live, *again], problems)


def _problems(
    submitted: Submitted, total: int, is_archived: bool, from_postgres: Sequence[Read]
) -> list[str]:
    """What is wrong besides entries that differ."""
    problems = list(submitted.failures)
    count = sum(submitted.submissions.values())
    if count != total:
        problems.append(f"{count:,} of {total:,} scores were submitted")
    if not is_archived:
        problems.append(f"not all windows were archived within {ARCHIVE_TIMEOUT:.0f} s")
    live = [read for read in from_postgres if read.is_live and read.window != ALL_TIME]
    problems += [
        f"{read.board} {read.window} is archived, and was read from Redis" for read in live
    ]
    return problems


def _conclude(
    console: Console,
    standings: Standings,
    submitted: Submitted,
    reads: Sequence[Read],
    problems: Sequence[str],
) -> bool:
    count = sum(submitted.submissions.values())
    differences = [difference for read in reads for difference in read.differences]
    console.print(
        f"{count:,} scores in {submitted.seconds:.1f} s: "
        f"[bold]{count / submitted.seconds:,.0f} submissions a second[/]; "
        f"{len(standings)} boards, {len({read[:2] for read in reads}):,} windows, "
        f"{sum(read.entries for read in reads):,} entries compared, "
        f"differences: {len(differences):,}"
    )
    for line in board_report.of_problems(differences, problems):
        console.print(line, markup=False)
    if differences or problems:
        console.print(f"[bold red]{len(differences):,} entries differ[/]")
        return False
    console.print("[bold green]OK[/]: every entry of every window is right, live and archived")
    return True
