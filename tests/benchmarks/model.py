"""What a benchmark hands out: samples of rounds, latencies, targets, and their medians."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import NamedTuple


class CheckFailed(Exception):
    """What was counted is not what was acknowledged, or calls failed; `str()` says which."""


class Unusable(Exception):
    """The benchmark can't run; `str()` is one sentence for the person at the terminal."""


class Sample(NamedTuple):
    """One round of one case.

    Attributes:
        operations: how many, all acknowledged and checked.
        rate: operations a second.
        server_cpu: CPU seconds of the worker or bare server processes.
        store_cpu: CPU seconds of Redis; of Postgres for what asks that.
        generator_share: cores that the load generator used; near 1 it is what was measured.
    """

    operations: int
    rate: float
    server_cpu: float
    store_cpu: float
    generator_share: float


class Latency(NamedTuple):
    """Percentiles in milliseconds at an offered rate of calls a second."""

    offered: float
    p50: float
    p99: float


class Target(NamedTuple):
    """What a case has to reach: a ratio to its echo, or operations a second."""

    ratio: float | None = None
    rate: float | None = None

    def __str__(self) -> str:
        return f"≥ {self.ratio:g} of echo" if self.ratio is not None else f"≥ {self.rate:,.0f}/s"


@dataclass
class Result:
    """All rounds of one case.

    Attributes:
        baseline: the rates of its echo, one a round, or empty.
        remark: a sentence about what was measured, or empty.
    """

    name: str
    title: str
    setting: str
    unit: str
    target: Target | None
    samples: list[Sample] = field(default_factory=list)
    latencies: list[Latency] = field(default_factory=list)
    baseline: Sequence[float] = ()
    remark: str = ""

    @property
    def rates(self) -> list[float]:
        """Operations a second, one a round."""
        return [sample.rate for sample in self.samples]

    @property
    def rate(self) -> float:
        """The median rate."""
        return median(self.rates)

    @property
    def ratio(self) -> float | None:
        """The median of the rounds' ratios to the echo of the same round."""
        if not self.baseline:
            return None
        pairs = zip(self.rates, self.baseline, strict=True)
        return median(rate / echo for rate, echo in pairs)

    @property
    def server_us(self) -> float:
        """Median CPU of the server processes, µs an operation."""
        return median(s.server_cpu / s.operations * 1e6 for s in self.samples)

    @property
    def store_us(self) -> float:
        """Median CPU of the store, µs an operation."""
        return median(s.store_cpu / s.operations * 1e6 for s in self.samples)

    @property
    def generator_share(self) -> float:
        """Median cores that the load generator used."""
        return median(s.generator_share for s in self.samples)

    @property
    def latency(self) -> Latency | None:
        """Medians of the rounds' percentiles, or None if not measured."""
        if not self.latencies:
            return None
        offered, p50, p99 = zip(*self.latencies, strict=True)
        return Latency(median(offered), median(p50), median(p99))

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None without one."""
        if self.target is None:
            return None
        if self.target.ratio is not None:
            return self.ratio is not None and self.ratio >= self.target.ratio
        return self.target.rate is not None and self.rate >= self.target.rate
