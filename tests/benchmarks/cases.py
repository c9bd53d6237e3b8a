"""All that is measured, in the order of a round.

Each case runs a number of operations, checks that they counted, and gives a sample; cases of the
same setting share a server.
"""

from tests.benchmarks.base import ONE_4, Case
from tests.benchmarks.counter_cases import counter_cases
from tests.benchmarks.leaderboard_cases import leaderboard_cases

# A quick run goes without these.
_CAN_WAIT = ("stream-named", "stream-4", "stream-new", "submit-plain", "top-100", "naive-zincrby")


def all_cases(*, quick: bool = False) -> list[Case]:
    """Every case, or those of a quick run, which has smaller boards too."""
    cases = [*counter_cases(), *leaderboard_cases(quick=quick)]
    return [case for case in cases if not (quick and _can_wait(case))]


def _can_wait(case: Case) -> bool:
    return case.setting == ONE_4 or case.name.partition("/")[0] in _CAN_WAIT
