"""Figures of an outage: availability and latency, by phase and by slice of time."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from tests.faults.outage.callers import Sample

#: Seconds within which a link has to give up on Redis; what fails later must not.
BREAKER: Final = 1.0
SLICE: Final = 0.1


@dataclass(frozen=True)
class Moments:
    """When what happened, in seconds since 1970.

    Attributes:
        killed: Redis.
        started: Redis, again.
        answered: the first answer of it.
        opened: all partitions; None if that took too long.
        ended: the last call.
        batches, updates: that were in the journal when Redis was started again.
    """

    began: float
    killed: float
    started: float
    answered: float
    opened: float | None
    ended: float
    batches: int
    updates: int


class Row(NamedTuple):
    """Calls of a stretch of time: how many, how many were answered, and quantiles in seconds."""

    attempts: int
    ok: int
    p50: float
    p99: float
    codes: dict[str, int]

    @property
    def availability(self) -> float:
        """The share that was answered; NaN if nobody called."""
        return self.ok / self.attempts if self.attempts else math.nan


def row(samples: Sequence[Sample]) -> Row:
    """What a number of calls come to; latencies are those of all, answered or not."""
    times = sorted(sample.seconds for sample in samples)
    codes = Counter(sample.code for sample in samples if not sample.is_ok)
    ok = sum(sample.is_ok for sample in samples)
    return Row(len(samples), ok, quantile(times, 0.5), quantile(times, 0.99), dict(codes))


def quantile(times: Sequence[float], share: float) -> float:
    """Of sorted times; NaN if there are none."""
    return times[min(len(times) - 1, int(share * len(times)))] if times else math.nan


def phases(moments: Moments) -> list[tuple[str, float, float]]:
    """Names, begins and ends of the stretches that matter."""
    opened = moments.opened or moments.ended
    return [
        ("before", moments.began, moments.killed),
        ("first second", moments.killed, moments.killed + BREAKER),
        ("during", moments.killed + BREAKER, moments.started),
        ("coming back", moments.started, opened),
        ("after", opened, moments.ended),
    ]


def within(samples: Sequence[Sample], begin: float, end: float) -> list[Sample]:
    """The calls that began in a stretch of time."""
    return [sample for sample in samples if begin <= sample.begin < end]


def slices(
    samples: Sequence[Sample], moments: Moments, wanted: Callable[[Sample], bool], length: float
) -> list[tuple[float, Row]]:
    """By the middle of each slice, in seconds since the begin, its calls."""
    count = math.ceil((moments.ended - moments.began) / length)
    found: list[list[Sample]] = [[] for _ in range(count)]
    for sample in samples:
        place = int((sample.begin - moments.began) / length)
        if wanted(sample) and 0 <= place < count:
            found[place].append(sample)
    return [((i + 0.5) * length, row(each)) for i, each in enumerate(found)]


def report(samples: Sequence[Sample], moments: Moments) -> str:
    """All of it for a person."""
    lines = ["                        calls  availability    p50 ms    p99 ms  errors"]
    for kind, wanted in (("writes", True), ("reads", False)):
        for name, begin, end in phases(moments):
            found = [s for s in within(samples, begin, end) if s.is_write is wanted]
            r = row(found)
            codes = ", ".join(f"{count} {code}" for code, count in sorted(r.codes.items()))
            lines.append(
                f"{kind:<7} {name:<13} {r.attempts:>7,}  {r.availability:>11.3%} "
                f"{r.p50 * 1e3:>9.1f} {r.p99 * 1e3:>9.1f}  {codes}"
            )
    late = within(samples, moments.killed + BREAKER, moments.ended)
    errors = sum(not sample.is_ok for sample in late)
    lines.append(f"errors later than {BREAKER:g} s after the kill (target 0): {errors}")
    lines.append(
        f"journal when Redis was started: {moments.batches:,} batches, {moments.updates:,} updates"
    )
    if moments.opened is None:
        lines.append("the partitions did not all open again")
    else:
        drained = max(0.001, moments.opened - moments.answered)
        lines.append(
            f"all partitions open {moments.opened - moments.started:.2f} s after the start of "
            f"Redis, {drained:.2f} s after its first answer"
        )
        lines.append(
            f"drained: {moments.batches / drained:,.0f} batches/s, "
            f"{moments.updates / drained:,.0f} updates/s"
        )
    return "\n".join(lines)


def table(samples: Sequence[Sample], moments: Moments) -> str:
    """Every kind of call in slices of 0.1 s, as CSV; times in seconds."""
    lines = ["kind,at,attempts,ok,p50,p99,errors"]
    for kind in sorted({sample.kind for sample in samples}):
        for at, r in slices(samples, moments, lambda s, k=kind: s.kind == k, SLICE):
            codes = " ".join(f"{code}:{count}" for code, count in sorted(r.codes.items()))
            lines.append(f"{kind},{at:.2f},{r.attempts},{r.ok},{r.p50:.5f},{r.p99:.5f},{codes}")
    return "\n".join(lines) + "\n"
