"""Writes what was measured: a table on the terminal, Markdown and JSON."""

import json
import platform
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import grpc
from rich.console import Console
from rich.table import Table

from tests.benchmarks.leaderboard_cases import COSTS
from tests.benchmarks.model import Result
from tests.benchmarks.processes import usable_cores
from tests.benchmarks.sweep import Swept

_COLUMNS = (
    "case", "setting", "rate/s (min to max)", "of echo", "target",
    "CPU µs/op: server", "store", "generator, cores", "p50 / p99 ms at calls/s",
)  # fmt: skip


class Run(NamedTuple):
    """A whole run: its options, its rows, where echo is best, and how the machine was.

    Attributes:
        sync_us: µs that a small write takes to reach the disk.
        load: the load average before the run.
    """

    rounds: int
    seconds: float
    results: Sequence[Result]
    swept: Sequence[Swept]
    sync_us: float
    load: float


def print_table(run: Run, console: Console) -> None:
    """Prints the table."""
    table = Table(*_COLUMNS, title=f"medians of {run.rounds} round(s) of {run.seconds:g} s")
    for result in run.results:
        style = {True: "green", False: "red", None: None}[result.met]
        table.add_row(*_cells(result), style=style)
    console.print(table)
    for line in _notes(run):
        console.print(line, highlight=False)


def write_markdown(run: Run, path: Path) -> None:
    """Writes the same table as Markdown."""
    lines = [f"| {' | '.join(_COLUMNS)} |", f"|{' --- |' * len(_COLUMNS)}"]
    lines += [f"| {' | '.join(_cells(result))} |" for result in run.results]
    head = f"Medians of {run.rounds} round(s) of {run.seconds:g} s. {_versions()}"
    path.write_text("\n".join([head, "", *lines, "", *_notes(run), ""]))


def write_json(run: Run, path: Path) -> None:
    """Writes every sample, too."""
    document: dict[str, Any] = {
        "rounds": run.rounds,
        "seconds": run.seconds,
        "environment": {
            "python": platform.python_version(),
            "grpcio": grpc.__version__,
            "cores": len(usable_cores()),
            "load_average_before": run.load,
            "fdatasync_us": run.sync_us,
        },
        "results": [_as_dict(result) for result in run.results],
        "echo_sweep": [swept._asdict() for swept in run.swept],
    }
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def _as_dict(result: Result) -> dict[str, Any]:
    latency = result.latency
    return {
        "name": result.name,
        "title": result.title,
        "setting": result.setting,
        "unit": result.unit,
        "rate": result.rate,
        "ratio_to_echo": result.ratio,
        "target": str(result.target) if result.target else None,
        "met": result.met,
        "server_cpu_us": result.server_us,
        "store_cpu_us": result.store_us,
        "latency_ms": latency._asdict() if latency else None,
        "remark": result.remark,
        "samples": [sample._asdict() for sample in result.samples],
    }


def _cells(result: Result) -> list[str]:
    latency = result.latency
    target = (
        "" if result.target is None else f"{result.target}: {'met' if result.met else 'NOT met'}"
    )
    return [
        result.title,
        result.setting,
        f"{result.rate:,.0f} ({min(result.rates):,.0f} to {max(result.rates):,.0f})",
        "" if result.ratio is None else f"{result.ratio:.2f}",
        target,
        f"{result.server_us:.3g}" if result.server_us else "",
        f"{result.store_us:.3g}" if result.store_us else "",
        f"{result.generator_share:.2f}",
        f"{latency.p50:.2f} / {latency.p99:.2f} at {latency.offered:,.0f}" if latency else "",
    ]


def _notes(run: Run) -> list[str]:
    notes = [
        f"A small write takes {run.sync_us:,.0f} µs to reach the disk of the stores. The load "
        f"average before the run was {run.load:.1f}: well below 1 where nothing else runs."
    ]
    for result in run.results:
        if result.remark:
            notes += ["", f"{result.title}: {result.remark}"]
    notes += _costs(run.results)
    if not run.swept:
        return notes
    best = max(run.swept, key=lambda swept: swept.rate)
    rates = (f"{s.threads} threads {s.load}: {s.rate:,.0f}" for s in run.swept)
    return [
        *notes,
        "",
        f"Echo on one pinned core is best with {best.threads} threads and {best.load}: "
        f"{best.rate:,.0f}/s. All of its settings, one short run each: {'; '.join(rates)}.",
    ]


def _costs(results: Sequence[Result]) -> list[str]:
    by_name = {result.name: result for result in results}
    notes = []
    for name, other in COSTS:
        if name in by_name and other in by_name:
            one, two = by_name[name], by_name[other]
            cpu = (one.server_us + one.store_us) / (two.server_us + two.store_us)
            time = median(b / a for a, b in zip(one.rates, two.rates, strict=True))
            notes += [
                "",
                f"{one.title}: {cpu:.2f} times the CPU of {two.title} (server and store), and "
                f"{time:.2f} times the time.",
            ]
    return notes


def _versions() -> str:
    return (
        f"{len(usable_cores())} cores, Python {platform.python_version()}, "
        f"grpcio {grpc.__version__}."
    )
