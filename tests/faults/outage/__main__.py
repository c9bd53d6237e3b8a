"""Kills Redis under load, starts it half a minute later, and says what callers saw."""

import argparse
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

import grpc

from tallyboard.v1 import operations_pb2 as pb
from tests.faults.ledger import read, retried, stub_of
from tests.faults.outage.callers import BATCH, COUNTERS, MEMBERS, Callers, Sample
from tests.faults.outage.figures import Moments, report, table
from tests.faults.outage.plot import write_png
from tests.faults.score_ledger import SCORES, Book, Rules, batch_request, new_score
from tests.faults.soak.check import OPERATIONS, settle
from tests.faults.soak.stage import Stage

_WARM_UP: Final = 3.0
_LONGEST: Final = 60.0
_TICK: Final = 0.02
_PREFIX: Final = "outage:"
_BOARD: Final = "outage"
#: As it is without any settings, unlike the stages of the soak.
_SETTINGS: Final[dict[str, object]] = {
    "redis_timeout": 1.0,
    "checkpoint_interval": 5.0,
    "archive_quiet": 5.0,
    "drain_timeout": 20.0,
}


def main(arguments: list[str] | None = None) -> int:
    """Runs it; the exit status is 1 if what was acknowledged was not kept."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.outage", description=__doc__)
    parser.add_argument("--before", type=float, default=10.0, help="seconds until Redis is killed")
    parser.add_argument("--outage", type=float, default=30.0, help="seconds without Redis")
    parser.add_argument("--after", type=float, default=10.0, help="seconds when all is well again")
    parser.add_argument("--durability", default="fsynced")
    parser.add_argument("--png", type=Path, default=Path("docs/outage.png"))
    parser.add_argument("--csv", type=Path, help="write the figures of each 0.1 s to this file")
    given = parser.parse_args(arguments)
    with Stage(given.durability, has_lines=False, **_SETTINGS) as stage:
        _fill(stage.target)
        with Callers(stage.target, _BOARD, _PREFIX) as callers:
            moments, samples = _observe(stage, callers, given)
        print(report(samples, moments))
        write_png(samples, moments, given.png)
        print(f"drawn: {given.png}")
        if given.csv:
            given.csv.write_text(table(samples, moments))
        return _check(stage, samples)


def _fill(target: str) -> None:
    """A board that holds every member, so that to ask for one is no error."""
    Book().create(target, _BOARD, Rules("BEST", windows=("all",)))
    scores = [new_score(_BOARD, f"member{i}", with_moment=False) for i in range(MEMBERS)]
    retried(target, "BatchSubmitScores", batch_request(scores), SCORES)


def _observe(
    stage: Stage, callers: Callers, given: argparse.Namespace
) -> tuple[Moments, list[Sample]]:
    _wait(stage, _WARM_UP)
    began = time.time()
    _wait(stage, given.before)
    killed = time.time()
    stage.nodes[0].kill()
    _wait(stage, given.outage)
    batches, updates = stage.sql(
        "SELECT count(*), coalesce(sum(updates), 0) FROM tallyboard.journal"
    )[0]
    started = time.time()
    stage.nodes[0].start()
    while not stage.redis.answers():
        time.sleep(_TICK)
    answered = time.time()
    opened = _wait_until_open(stage)
    _wait(stage, given.after)
    ended = time.time()
    samples = callers.finish()
    return Moments(began, killed, started, answered, opened, ended, batches, int(updates)), samples


def _wait(stage: Stage, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        stage.keep_up()
        time.sleep(_TICK)


def _wait_until_open(stage: Stage) -> float | None:
    deadline = time.monotonic() + _LONGEST
    with stub_of(stage.target, OPERATIONS) as stub:
        while time.monotonic() < deadline:
            with suppress(grpc.RpcError):
                status = stub.GetStatus(pb.GetStatusRequest(), timeout=2.0)
                if all(p.state == pb.PARTITION_STATE_OPEN for p in status.partitions):
                    return time.time()
            time.sleep(_TICK)
    return None


def _check(stage: Stage, samples: list[Sample]) -> int:
    """Whether the counters hold what was acknowledged, and no more than what was tried."""
    wrong = settle(stage)
    weights = {"increment": 1, "batch": BATCH}
    tried = sum(weights.get(sample.kind, 0) for sample in samples)
    sure = sum(weights.get(sample.kind, 0) for sample in samples if sample.is_ok)
    counted = sum(read(stage.target, [f"{_PREFIX}{i}" for i in range(COUNTERS)]).values())
    print(f"increments acknowledged: {sure:,}, counted: {counted:,}, tried: {tried:,}")
    if not sure <= counted <= tried:
        wrong.append("what was acknowledged was not kept")
    for each in wrong:
        print(each)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
