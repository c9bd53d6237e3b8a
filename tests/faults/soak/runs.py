"""Many schedules one after the other, on stages that are used several times."""

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Final

from tests.faults.soak.play import Outcome, again, play, shown
from tests.faults.soak.schedule import LEVELS, draw
from tests.faults.soak.stage import Stage

#: Schedules on one stage; a new one takes seconds to start.
BLOCK: Final = 10


@dataclass(frozen=True)
class Plan:
    """What to run.

    Attributes:
        seeds: in order.
        durability: a level, or `both`: even seeds are of the first one, odd ones of the second.
        deadline: of time.time(); no schedule is begun after it.
        keep: whether data and logs stay also when all is well.
        package_path: see RunningService.
        masters: nodes of the Redis Cluster; 1 for a server that is no cluster.
        instances: of the service, which share the stores.
        only: names of kinds of faults to draw from, if not from all.
        ends_at_first: whether the rest of a block is left out when something is wrong, and
            nothing is kept of it: what went wrong was planted.
    """

    seeds: tuple[int, ...]
    durability: str
    deadline: float
    keep: bool = False
    package_path: Path | None = None
    masters: int = 1
    instances: int = 1
    only: tuple[str, ...] = ()
    ends_at_first: bool = False


@dataclass
class Totals:
    """What all schedules came to."""

    schedules: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    updates: int = 0
    failed: list[Outcome] = field(default_factory=list)
    differences: int = 0

    def add(self, outcome: Outcome) -> None:
        """Counts one more."""
        self.schedules[outcome.schedule.durability] += 1
        self.faults.update(fault.name for fault in outcome.faults)
        self.updates += outcome.updates
        self.differences += len(outcome.wrong)
        if outcome.wrong:
            self.failed.append(outcome)

    def shown(self, seconds: float) -> str:
        """For a person."""
        levels = ", ".join(f"{count} {level}" for level, count in sorted(self.schedules.items()))
        lines = [
            f"schedules: {sum(self.schedules.values())} ({levels})",
            f"acknowledged updates: {self.updates:,}",
            f"faults injected: {sum(self.faults.values()):,}",
            *(f"  {count:>5,}  {name}" for name, count in sorted(self.faults.items())),
            f"differences: {self.differences}",
            f"duration: {seconds:,.0f} s",
        ]
        return "\n".join([*lines, *(f"again: {again(each.schedule)}" for each in self.failed)])


def level_of(seed: int, durability: str) -> str:
    """The level that a seed is run at."""
    return LEVELS[seed % len(LEVELS)] if durability == "both" else durability


def blocks(plan: Plan) -> list[tuple[str, tuple[int, ...]]]:
    """The seeds by level, as many at a time as share a stage."""
    found = []
    for level in LEVELS:
        seeds = [seed for seed in plan.seeds if level_of(seed, plan.durability) == level]
        found += [
            (level, tuple(seeds[start : start + BLOCK])) for start in range(0, len(seeds), BLOCK)
        ]
    return found


def run_block(plan: Plan, block: tuple[str, Sequence[int]]) -> list[Outcome]:
    """The schedules of one block; prints a line for each. On the main thread of a process."""
    level, seeds = block
    outcomes: list[Outcome] = []
    while len(outcomes) < len(seeds) and time.time() < plan.deadline:
        with Stage(
            level,
            package_path=plan.package_path,
            masters=plan.masters,
            instances=plan.instances,
        ) as stage:
            stage.keep = plan.keep
            for seed in seeds[len(outcomes) :]:
                if time.time() > plan.deadline:
                    break
                outcome = play(stage, draw(seed, level, plan.only, plan.masters, plan.instances))
                outcomes.append(outcome)
                print(shown(outcome), flush=True)
                if outcome.wrong and plan.ends_at_first:
                    return outcomes
                if outcome.wrong:
                    stage.keep = True
                    print(
                        f"      data and logs: {stage.folder}\n"
                        f"      again: {again(outcome.schedule)}",
                        flush=True,
                    )
                    break
    return outcomes


def run(plan: Plan, jobs: int = 1) -> Iterator[Outcome]:
    """All schedules; each block as soon as it is done."""
    work = partial(run_block, plan)
    if jobs == 1:
        for block in blocks(plan):
            yield from work(block)
        return
    # Not forked: each process starts stores of its own from its main thread.
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        for outcomes in pool.map(work, blocks(plan)):
            yield from outcomes


def parse_seeds(text: str) -> tuple[int, ...]:
    """`1-200`, `137` or `1-20,137`; each number once.

    Raises:
        ValueError: it is none of these.
    """
    found: dict[int, None] = {}
    for part in text.split(","):
        first, _, last = part.partition("-")
        found |= dict.fromkeys(range(int(first), int(last or first) + 1))
    return tuple(found)


def total(outcomes: Iterable[Outcome]) -> Totals:
    """What they came to."""
    totals = Totals()
    for outcome in outcomes:
        totals.add(outcome)
    return totals
