"""Draws the rates of one run as a PNG."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot
from matplotlib.axes import Axes

from tests.benchmarks.model import Result
from tests.benchmarks.report import Run

_COLORS = {True: "#2a9d5c", False: "#c8553d", None: "#7a8ba0"}


def write_png(run: Run, path: Path) -> None:
    """Two panels: calls a second, and updates a second on a logarithmic scale."""
    calls = [result for result in run.results if result.unit == "calls"]
    updates = [result for result in run.results if result.unit != "calls"]
    heights = [max(1, len(calls)), max(1, len(updates))]
    figure, (upper, lower) = pyplot.subplots(
        2, 1, figsize=(11, 2 + 0.36 * sum(heights)), height_ratios=heights, layout="constrained"
    )
    _bars(upper, calls, "calls a second")
    _bars(lower, updates, "updates a second", log=True)
    figure.suptitle(
        f"Medians of {run.rounds} round(s), bars from the slowest to the fastest. "
        "Line: target. Green: met, red: not met, grey: no target"
    )
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _bars(axes: Axes, results: Sequence[Result], label: str, *, log: bool = False) -> None:
    for place, result in enumerate(results):
        axes.barh(place, result.rate, color=_COLORS[result.met], height=0.7)
        axes.plot([min(result.rates), max(result.rates)], [place, place], color="black", lw=1.5)
        goal = _goal(result)
        if goal is not None:
            axes.plot([goal, goal], [place - 0.4, place + 0.4], color="black", lw=1.2, ls=":")
        ratio = (
            ""
            if result.ratio is None or result.unit != "calls"
            else f"  {result.ratio:.2f} of echo"
        )
        axes.text(
            max(*result.rates, goal or 0.0, 1.0), place, f"  {result.rate:,.0f}{ratio}", va="center"
        )
    names = [f"{result.title}\n{result.setting}" for result in results]
    axes.set_yticks(range(len(results)), names, fontsize=7)
    axes.invert_yaxis()
    if log:
        axes.set_xscale("log")
    axes.margins(x=0.2)
    axes.set_xlabel(label)


def _goal(result: Result) -> float | None:
    """The rate that would meet the target in the median."""
    if result.target is None:
        return None
    if result.target.ratio is None:
        return result.target.rate
    return result.rate / result.ratio * result.target.ratio if result.ratio else None
