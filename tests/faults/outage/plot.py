"""Draws an outage as a PNG."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot
from matplotlib.axes import Axes

from tests.faults.outage.callers import DEADLINE, Sample
from tests.faults.outage.figures import Moments, slices

_KINDS: Final = (("writes", True, "#c8553d"), ("reads", False, "#2a6f9d"))
#: Quantiles of a tenth of a second would be those of a few calls.
_SLICE: Final = 0.5


def write_png(samples: Sequence[Sample], moments: Moments, path: Path) -> None:
    """Three panels over time: availability, p99, and calls a second."""
    figure, panels = pyplot.subplots(
        3, 1, figsize=(11, 8), sharex=True, height_ratios=(2, 2, 1), layout="constrained"
    )
    available, latency, rate = panels
    for name, is_write, color in _KINDS:
        found = slices(samples, moments, lambda s, w=is_write: s.is_write is w, _SLICE)
        at = [middle for middle, _ in found]
        rows = [row for _, row in found]
        available.step(at, [100 * r.availability for r in rows], color=color, where="mid", lw=1.6)
        latency.plot(at, [1e3 * r.p99 for r in rows], color=color, lw=1.6, label=f"{name}, p99")
        latency.plot(
            at, [1e3 * r.p50 for r in rows], color=color, lw=1.0, ls=":", label=f"{name}, p50"
        )
        rate.step(at, [r.attempts / _SLICE for r in rows], color=color, where="mid", label=name)
        available.plot([], [], color=color, label=name)
    available.set_ylabel("answered, %")
    available.set_ylim(-4, 104)
    latency.set_ylabel("latency, ms")
    latency.set_yscale("log")
    latency.axhline(DEADLINE * 1e3, color="#7a8ba0", lw=0.8, ls="--")
    rate.set_ylabel("calls/s")
    rate.set_xlabel("seconds")
    for axes in panels:
        _shade(axes, moments)
        axes.legend(loc="center right", fontsize=8)
    figure.suptitle(
        f"Redis killed at {moments.killed - moments.began:.0f} s and started at "
        f"{moments.started - moments.began:.0f} s. Callers wait {DEADLINE:g} s and repeat nothing"
    )
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _shade(axes: Axes, moments: Moments) -> None:
    """Grey while Redis is away, lighter until all partitions are open."""
    start = moments.started - moments.began
    axes.axvspan(moments.killed - moments.began, start, color="#7a8ba0", alpha=0.25, lw=0)
    if moments.opened is not None:
        axes.axvspan(start, moments.opened - moments.began, color="#e9c46a", alpha=0.35, lw=0)
    axes.grid(alpha=0.25)
