"""The demo as a command: what it starts, what it prints, and its exit status."""

import sys
import time
import uuid
from contextlib import ExitStack
from itertools import islice
from typing import Final

import click
import grpc
from rich.console import Console

from tallyboard import TallyboardError, open_channel
from tests.demo.board_part import run_boards
from tests.demo.compare import Comparison, compare, table_of
from tests.demo.events import flights, in_months, read_lines
from tests.demo.expected import compute
from tests.demo.progress import bar
from tests.demo.replay import Replayed, replay
from tests.service import RunningService

SHOWN_DIFFERENCES: Final = 20


class Months(click.ParamType):
    """Months as people write them: `3,11` or `1-12`."""

    name = "months"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> frozenset[int]:
        """The numbers of the months."""
        months: set[int] = set()
        for item in str(value).split(","):
            first, _, last = item.partition("-")
            if not (first.isdecimal() and (last or first).isdecimal()):
                self.fail(f"{value!r} is not like 3,11 or 1-12", param, ctx)
            months.update(range(int(first), int(last or first) + 1))
        if not months or not months <= set(range(1, 13)):
            self.fail(f"{value!r} is not like 3,11 or 1-12", param, ctx)
        return frozenset(months)


@click.command()
@click.option("--target", metavar="HOST:PORT", help="A service that runs; else one is started.")
@click.option("--streams", type=click.IntRange(1, 64), default=4, show_default=True)
@click.option("--limit", type=click.IntRange(1), help="Replay only the first so many flights.")
@click.option(
    "--months",
    type=Months(),
    default="3,11",
    show_default=True,
    help="Whose flights go to boards. These two have the days that clocks are changed; all twelve "
    "take some minutes.",
)
@click.option(
    "--part", type=click.Choice(["all", "counters", "boards"]), default="all", show_default=True
)
@click.option("--kill", is_flag=True, help="Kill a worker with SIGKILL half way of the counters.")
def main(
    target: str | None,
    streams: int,
    limit: int | None,
    months: frozenset[int],
    part: str,
    kill: bool,
) -> None:
    """Replay a year of flights as increments and scores, then check all there is in both stores."""
    if target and kill:
        raise click.UsageError("--kill is for a service that the demo starts itself.")
    console = Console(highlight=False, soft_wrap=True)
    with ExitStack() as stack:
        service = None
        if target is None:
            console.print("Starting a service on a folder of its own ...")
            service = stack.enter_context(RunningService())
            target = service.target
        passed = True
        try:
            if part != "boards":
                passed &= run(console, target, streams, limit, service if kill else None)
            if part != "counters":
                lines = list(islice(in_months(read_lines(), months), limit))
                passed &= run_boards(console, target, streams, lines, service)
        except TallyboardError as error:
            console.print(f"[bold red]The replay failed[/]: {error}")
            passed = False
        except grpc.RpcError as error:
            console.print(f"[bold red]The check failed[/]: {error}")
            passed = False
    sys.exit(0 if passed else 1)


def run(
    console: Console,
    target: str,
    streams: int,
    limit: int | None,
    victim: RunningService | None = None,
) -> bool:
    """Replay, compare and print; whether all counters are right.

    Args:
        victim: a service whose first worker is killed at half way.
    """
    started = time.monotonic()
    lines = list(read_lines(limit))
    expected = compute(lines)
    events = list(flights(lines))
    del lines
    total = sum(expected.updates.values())
    console.print(
        f"{len(events):,} flights give {total:,} updates of {len(expected.values):,} "
        f"counters; read and added up in {time.monotonic() - started:.1f} s."
    )
    tenant = f"flights-{uuid.uuid4()}"
    with bar(console) as shown:
        task = shown.add_task("acknowledged", total=total)
        killed = victim is None

        def progress(done: int) -> None:
            nonlocal killed
            shown.update(task, completed=done)
            if not killed and done * 2 >= total:
                killed = True
                _kill(console, victim, done)

        replayed = replay(events, target, tenant, streams, progress)
    with open_channel(target) as channel:
        comparison = compare(channel, tenant, expected)
    _report(console, replayed, comparison, streams)
    return not (comparison.differences or replayed.failures) and replayed.acknowledged == total


def _kill(console: Console, victim: RunningService | None, done: int) -> None:
    assert victim is not None
    pid = victim.kill_worker()
    console.print(f"Killed worker 0 (process {pid}) after {done:,} acknowledged updates.")


def _report(console: Console, replayed: Replayed, comparison: Comparison, streams: int) -> None:
    rate = replayed.acknowledged / replayed.seconds
    console.print(
        f"{replayed.acknowledged:,} updates acknowledged in {replayed.seconds:.1f} s over "
        f"{streams} connections and {replayed.streams_opened} streams: "
        f"[bold]{rate:,.0f} updates a second[/]"
    )
    console.print(table_of(comparison))
    for failure in replayed.failures[:SHOWN_DIFFERENCES]:
        console.print(f"did not count: {failure}", markup=False)
    for counter, expected, redis, postgres in comparison.differences[:SHOWN_DIFFERENCES]:
        console.print(
            f"{counter}: expected {expected}, in Redis {redis}, in Postgres {postgres}",
            markup=False,
        )
    if comparison.differences or replayed.failures:
        console.print(
            f"[bold red]{len(comparison.differences):,} counters differ, "
            f"{len(replayed.failures):,} increments did not count[/]"
        )
    else:
        console.print("[bold green]OK[/]: every counter is right, in Redis and in Postgres")
