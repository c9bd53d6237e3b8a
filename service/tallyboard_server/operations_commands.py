"""The commands that compare the stores and mend them, for the people who run the service."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

from tallyboard.v1 import operations_pb2 as pb
from tallyboard_server import calls
from tallyboard_server.command_options import long_call_options
from tallyboard_server.operations_report import print_differences, print_verified

_NOT_VERIFIED = 2


class _Bar:
    """Progress over partitions: a bar on a terminal, nothing anywhere else."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress = progress
        self._task = task

    def doing(self, what: str) -> None:
        """Says what is done now."""
        self._progress.update(self._task, description=what)

    def advance(self) -> None:
        """One partition is done."""
        self._progress.advance(self._task)

    def print(self, line: str) -> None:
        """A line above the bar."""
        self._progress.console.print(line, highlight=False, markup=False, soft_wrap=True)


@contextmanager
def _bar(what: str, partitions: int) -> Iterator[_Bar]:
    console = Console()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        yield _Bar(progress, progress.add_task(what, total=partitions))


@click.command()
@long_call_options
@click.option(
    "--partition",
    "partitions",
    type=click.IntRange(0),
    multiple=True,
    help="Only this one; may be repeated.",
)
@click.option(
    "--max-differences",
    type=click.IntRange(1, 1000),
    default=100,
    show_default=True,
    help="How many to list a partition; all are counted.",
)
def verify(partitions: tuple[int, ...], max_differences: int, **target: Any) -> None:
    """Compare Redis with Postgres while the service runs, and list what differs.

    Exit status 0: nothing differs. 1: something does. 2: not everything could be compared.
    """
    found: list[pb.VerifyResponse] = []
    problem = ""
    try:
        with calls.connect(**target) as service:
            wanted = partitions or range(len(service.status().partitions))
            with _bar("looking for strays", len(wanted)) as bar:
                for answer in service.verify(partitions, max_differences):
                    found.append(answer)
                    bar.doing("comparing")
                    bar.advance()
    except calls.CallError as error:
        problem = str(error)
    print_differences(found)
    print_verified(found)
    if problem:
        click.echo(f"Error: {problem}", err=True)
        sys.exit(_NOT_VERIFIED)
    sys.exit(any(answer.difference_count for answer in found))


@click.command()
@click.argument("partitions", type=click.IntRange(0), nargs=-1, metavar="PARTITION...")
@long_call_options
@click.option("--all", "everything", is_flag=True, help="All partitions, one after the other.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def rebuild(partitions: tuple[int, ...], everything: bool, yes: bool, **target: Any) -> None:
    """Make partitions of Redis anew from Postgres.

    A partition that is open is checkpointed first, so nothing is lost. Until it is open again,
    its writes are journaled and its reads come from Postgres.
    """
    if everything == bool(partitions):
        raise click.UsageError("Name partitions, or give --all.")
    with calls.connect(**target) as service:
        numbers = range(len(service.status().partitions)) if everything else sorted({*partitions})
        which = "partition" if len(numbers) == 1 else "partitions"
        shown = ", ".join(map(str, partitions)) if partitions else f"all {len(numbers):,}"
        if not yes:
            question = (
                f"Make {shown} {which} anew?" if everything else f"Make {which} {shown} anew?"
            )
            click.confirm(question, abort=True, err=True)
        with _bar("rebuilding", len(numbers)) as bar:
            for number in numbers:
                bar.doing(f"partition {number}")
                done = service.rebuild(number)
                bar.advance()
                bar.print(
                    f"partition {number}: {done.counters:,} counters, {done.entries:,} entries, "
                    f"{done.journaled_batches:,} batches of the journal "
                    f"in {done.elapsed.ToTimedelta().total_seconds():.3f} s"
                )
