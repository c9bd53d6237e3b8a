"""The program behind `make bench`: rounds of all cases, then the table, JSON and a PNG."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import click
from rich.console import Console

from tests.benchmarks.base import Case
from tests.benchmarks.cases import all_cases
from tests.benchmarks.model import CheckFailed, Unusable
from tests.benchmarks.plot import write_png
from tests.benchmarks.processes import sync_us, tool
from tests.benchmarks.ranking_sizes import SIZES, RankingSizes, print_sizes, write_sizes
from tests.benchmarks.report import Run, print_table, write_json, write_markdown
from tests.benchmarks.rounds import Rounds
from tests.benchmarks.servers import Servers
from tests.benchmarks.sweep import Swept, sweep

_BUDGET, _QUICK_BUDGET = 900.0, 85.0
_SETTING_SECONDS = 0.8


@click.command()
@click.option("--rounds", type=click.IntRange(1, 100), help="Rounds; 3, or 1 with --quick.")
@click.option(
    "--seconds",
    type=click.FloatRange(0.2, 60),
    help="Seconds of one measurement; 2.5, or 0.8 with --quick.",
)
@click.option("--quick", is_flag=True, help="One short round of most cases: about 2 minutes.")
@click.option(
    "--only",
    multiple=True,
    help="Part of the name of a case to run, such as increment, /1x4 or stream; repeatable.",
)
@click.option(
    "--results",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("build/bench"),
    show_default=True,
    help="Folder for results.md, results.json and benchmarks.png.",
)
@click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Folder on the disk that the stores shall use; the system's temporary one by default.",
)
@click.option(
    "--sizes",
    is_flag=True,
    help="Measure rankings of 10,000 to 10,000,000 members instead: many minutes, 8 GB of memory.",
)
@click.option(
    "--largest",
    type=click.IntRange(min=10_000),
    default=SIZES[-1],
    show_default=True,
    help="Members of the largest of --sizes.",
)
@click.option("--list", "list_only", is_flag=True, help="Print the names of the cases.")
def main(
    rounds: int | None,
    seconds: float | None,
    quick: bool,
    only: tuple[str, ...],
    results: Path,
    data: Path | None,
    sizes: bool,
    largest: int,
    list_only: bool,
) -> None:
    """Measure the service beside a bare gRPC server and beside the naive way."""
    # A table in a file or a pipe needs no line breaks.
    console = Console(width=None if sys.stdout.isatty() else 200)
    if sizes:
        _measure_sizes(data, results, largest, rounds or 3, seconds or 1.5, console)
        return
    cases = _chosen(all_cases(quick=quick), only)
    if list_only:
        click.echo("\n".join(case.name for case in cases))
        return
    budget = None if rounds or seconds else _QUICK_BUDGET if quick else _BUDGET
    rounds, seconds = rounds or (1 if quick else 3), seconds or (0.8 if quick else 2.5)
    load, _, _ = os.getloadavg()
    try:
        for name in ("h2load", "redis-benchmark"):
            tool(name)
        with_postgres = any(case.needs_postgres for case in cases)
        with Servers(data, with_postgres=with_postgres) as servers:
            syncs = [sync_us(servers.data)]
            with console.status("") as status:
                measured = Rounds(
                    cases,
                    servers,
                    rounds=rounds,
                    seconds=seconds,
                    budget=budget,
                    tell=status.update,
                ).run()
            syncs.append(sync_us(servers.data))
        swept = [] if quick or only else _swept(console)
    except CheckFailed as error:
        sys.exit(f"The check failed: {error}")
    except Unusable as error:
        sys.exit(str(error))
    _write(Run(rounds, seconds, measured, swept, max(syncs), load), results, console)


def _measure_sizes(
    data: Path | None, folder: Path, largest: int, rounds: int, seconds: float, console: Console
) -> None:
    try:
        with Servers(data) as servers, console.status("starting servers") as status:
            sizes, ties = RankingSizes(
                servers, largest=largest, rounds=rounds, seconds=seconds, tell=status.update
            ).run()
    except CheckFailed as error:
        sys.exit(f"The check failed: {error}")
    except Unusable as error:
        sys.exit(str(error))
    write_sizes(sizes, ties, folder)
    print_sizes(sizes, ties, console)
    console.print(f"Written to {folder}: sizes.md, sizes.json")


def _chosen(cases: list[Case], only: Sequence[str]) -> list[Case]:
    """The cases that were asked for, and the echoes that they are compared with."""
    if not only:
        return cases
    wanted = {case.name for case in cases if any(part in case.name for part in only)}
    wanted |= {case.baseline for case in cases if case.name in wanted and case.baseline}
    if not wanted:
        raise click.BadParameter("no case has such a name; see --list", param_hint="--only")
    return [case for case in cases if case.name in wanted]


def _swept(console: Console) -> list[Swept]:
    with console.status("looking for the threads at which echo is best"):
        return sweep(_SETTING_SECONDS)


def _write(run: Run, folder: Path, console: Console) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_markdown(run, folder / "results.md")
    write_json(run, folder / "results.json")
    write_png(run, folder / "benchmarks.png")
    print_table(run, console)
    console.print(f"Written to {folder}: results.md, results.json, benchmarks.png")


if __name__ == "__main__":
    main()
