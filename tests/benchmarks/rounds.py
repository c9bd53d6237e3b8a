"""Runs the cases round by round, A B C A B C, so that all meet the same moods of the machine."""

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from tests.benchmarks.base import Case
from tests.benchmarks.model import CheckFailed, Result, Sample
from tests.benchmarks.servers import Servers

_WARM_SECONDS = 0.5
_SHORTEST = 0.2
# What a measurement costs beside itself: start, latency at half of its length, checks, settling.
_FACTOR = 2.5

Outcome = TypeVar("Outcome")


class Rounds:
    """Measures cases.

    Args:
        cases: in the order of a round.
        rounds: how many are kept; a shorter one before them warms the servers.
        seconds: how long one measurement takes.
        budget: seconds that everything may take, about; measurements get shorter when the machine
            is too slow for it. None: no limit.
        tell: gets what is done next.
    """

    def __init__(
        self,
        cases: Sequence[Case],
        servers: Servers,
        *,
        rounds: int,
        seconds: float,
        budget: float | None,
        tell: Callable[[str], None],
    ) -> None:
        self._cases, self._servers, self._rounds = cases, servers, rounds
        self._seconds, self._tell = seconds, tell
        self._until = None if budget is None else time.monotonic() + budget
        self._left = len(cases) * (rounds + 1)
        self._rates = {case.name: case.first_rate for case in cases}
        self._results = {
            case.name: Result(case.name, case.title, case.conditions, case.unit, case.target)
            for case in cases
        }

    def run(self) -> list[Result]:
        """All rounds of all cases.

        Raises:
            CheckFailed: what was counted is not what was acknowledged.
            Unusable: something could not be started.
        """
        self._tell("starting servers")
        settings = {case.setting for case in self._cases if case.needs_service and case.setting}
        self._servers.start_services(sorted(settings))
        for case in self._cases:
            self._tell(f"warming up: {case.name}")
            self._sample(case, min(_WARM_SECONDS, self._seconds / 3))
        for number in range(1, self._rounds + 1):
            for case in self._cases:
                self._tell(f"round {number} of {self._rounds}: {case.name}")
                self._measure(case)
        for case in self._cases:
            self._finish(case)
            self._results[case.name].remark = case.remark
            if case.baseline is not None:
                self._results[case.name].baseline = self._results[case.baseline].rates
        return list(self._results.values())

    def _finish(self, case: Case) -> None:
        self._tell(f"checking: {case.name}")
        self._checked(case, lambda: case.finish(self._servers))

    def _measure(self, case: Case) -> None:
        result, seconds = self._results[case.name], self._affordable()
        sample = self._sample(case, seconds)
        result.samples.append(sample)
        latency = case.latency(self._servers, sample.rate / 2, seconds / 2)
        if latency is not None:
            result.latencies.append(latency)

    def _sample(self, case: Case, seconds: float) -> Sample:
        self._left -= 1
        operations = int(self._rates[case.name] * seconds)
        sample = self._checked(case, lambda: case.run(self._servers, operations))
        self._rates[case.name] = sample.rate
        return sample

    def _checked(self, case: Case, step: Callable[[], Outcome]) -> Outcome:
        """Takes a step, and names the case if it fails."""
        try:
            return step()
        except CheckFailed as error:
            said = self._servers.service(case.setting).complaints() if case.needs_service else []
            raise CheckFailed("\n".join([f"{case.name}: {error}", *said])) from error

    def _affordable(self) -> float:
        if self._until is None:
            return self._seconds
        share = (self._until - time.monotonic()) / max(1, self._left) / _FACTOR
        return max(_SHORTEST, min(self._seconds, share))
