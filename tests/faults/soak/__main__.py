"""`python -m tests.faults.soak`: many schedules of faults, or a check that they find faults."""

import argparse
import sys
import time

from tests.faults.soak.mutations import check_mutations
from tests.faults.soak.runs import Plan, parse_seeds, run, total
from tests.faults.soak.schedule import LEVELS


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak", description=__doc__)
    parser.add_argument(
        "--seeds", type=parse_seeds, default=parse_seeds("1-200"), help="such as 1-200 or 7,12"
    )
    parser.add_argument("--durability", choices=[*LEVELS, "both"], default="both")
    parser.add_argument(
        "--seconds", type=float, default=3600.0, help="no schedule begins after so many"
    )
    parser.add_argument(
        "--masters", type=int, default=1, help="nodes of a Redis Cluster; 1 for no cluster"
    )
    parser.add_argument(
        "--instances", type=int, default=1, help="of the service, which share the stores"
    )
    parser.add_argument("--jobs", type=int, default=1, help="processes that run schedules at once")
    parser.add_argument(
        "--keep", action="store_true", help="keep data and logs also when all is well"
    )
    parser.add_argument(
        "--mutations", action="store_true", help="plant bugs, and see that each one is found"
    )
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Runs what the arguments say; the exit status is 1 on any difference."""
    given = _parser().parse_args(arguments)
    started = time.time()
    plan = Plan(
        given.seeds,
        given.durability,
        started + given.seconds,
        given.keep,
        masters=given.masters,
        instances=given.instances,
    )
    if given.mutations:
        return check_mutations(plan.deadline)
    totals = total(run(plan, given.jobs))
    print(totals.shown(time.time() - started))
    done = sum(totals.schedules.values())
    if done < len(plan.seeds):
        print(f"Time was over: {done} of {len(plan.seeds)} schedules were run.")
    return 1 if totals.failed or not done else 0


if __name__ == "__main__":
    sys.exit(main())
