"""One schedule from its first write to the verdict."""

import time
from dataclasses import dataclass
from typing import Final

from tests.faults.soak.actions import Scene
from tests.faults.soak.check import differences, settle
from tests.faults.soak.injector import Injector
from tests.faults.soak.schedule import WRITES, Fault, Schedule
from tests.faults.soak.stage import Stage
from tests.faults.soak.writers import Writers

#: Seconds that faults and writes may take; then faults are lifted, and the verdict follows.
_LONGEST: Final = 30.0
_LAST_WRITES: Final = 40
_LAST_WAIT: Final = 20.0
_TICK: Final = 0.02
_MOST_LINES: Final = 12
_LONGEST_LINE: Final = 400


@dataclass(frozen=True)
class Outcome:
    """How a schedule went.

    Attributes:
        schedule: which one.
        faults: those that happened.
        updates: how many were acknowledged.
        retries: how often a client sent something once more.
        seconds: how long it took.
        wrong: what is not as it must be, in words; empty if all is well.
    """

    schedule: Schedule
    faults: tuple[Fault, ...]
    updates: int
    retries: int
    seconds: float
    wrong: tuple[str, ...]


def play(stage: Stage, schedule: Schedule) -> Outcome:
    """Runs a schedule on a stage that is well; on the main thread.

    A stage whose outcome has something wrong must not be used again.
    """
    started = time.monotonic()
    prefix = f"s{schedule.seed}:"
    writers = Writers(stage, schedule, prefix)
    scene = Scene(stage, writers)
    injector = Injector(scene, schedule)
    wrong: list[str] = []
    try:
        writers.start()
        _run(stage, writers, injector, stops_early=schedule.stops_early)
        wrong += settle(stage)
        writers.finish()
        injector.finish()
        wrong += writers.problems + scene.problems + stage.problems
        wrong += differences(stage, writers, prefix)
    except Exception as error:
        wrong.append(f"the run itself failed: {error!r}")
    finally:
        injector.lift_all()
        writers.abandon()
    return Outcome(
        schedule,
        tuple(injector.injected),
        writers.updates,
        writers.retries,
        time.monotonic() - started,
        tuple(wrong),
    )


def _run(stage: Stage, writers: Writers, injector: Injector, *, stops_early: bool) -> None:
    """From the first fault until all are lifted."""
    deadline = time.monotonic() + _LONGEST
    while not injector.is_over and time.monotonic() < deadline:
        injector.step()
        stage.keep_up()
        if stops_early and injector.has_begun_all:
            writers.stop()
        time.sleep(_TICK)
    injector.lift_all()
    if not stops_early:
        _wait_for_writes(stage, writers)


def _wait_for_writes(stage: Stage, writers: Writers) -> None:
    """Some more writes after the last fault, as far as there are clients that still write."""
    enough = max(WRITES, writers.acknowledged + _LAST_WRITES)
    deadline = time.monotonic() + _LAST_WAIT
    while writers.acknowledged < enough and time.monotonic() < deadline:
        stage.keep_up()
        time.sleep(_TICK)


def shown(outcome: Outcome) -> str:
    """One line for a person, and one more for each thing that is wrong."""
    schedule = outcome.schedule
    verdict = "FAILED" if outcome.wrong else "OK"
    line = (
        f"{schedule.seed:>5} {schedule.durability:<9} {verdict:<6} {outcome.seconds:5.1f} s "
        f"{outcome.updates:>7,} updates {outcome.retries:>5,} retries  "
        + ", ".join(fault.name for fault in outcome.faults)
    )
    wrong = [" ".join(each.split())[:_LONGEST_LINE] for each in outcome.wrong]
    if len(wrong) > _MOST_LINES:
        wrong[_MOST_LINES:] = [f"and {len(wrong) - _MOST_LINES} more"]
    return "\n".join([line, *(f"      {each}" for each in wrong)])


def again(schedule: Schedule) -> str:
    """The command that runs a schedule once more."""
    return (
        f"python -m tests.faults.soak --seeds {schedule.seed} "
        f"--durability {schedule.durability} --masters {schedule.masters} "
        f"--instances {schedule.instances} --keep"
    )
