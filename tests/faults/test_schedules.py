"""A few schedules of the soak: whatever fails at once, nothing is lost and nothing counts twice."""

from collections.abc import Iterator
from itertools import product
from typing import Final

import pytest

from tests.faults.soak.play import play, shown
from tests.faults.soak.schedule import LEVELS, draw
from tests.faults.soak.stage import Stage

#: Between them stores, lines, workers, the keeper, a client and a season.
_SEEDS: Final = (2, 12, 19)
#: One server and one instance, or a cluster of three masters and two instances.
_SIZES: Final = ((1, 1), (3, 2))


@pytest.fixture(scope="module", params=product(LEVELS, _SIZES), ids=str)
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    """A stage that the schedules of a level share; each leaves it well."""
    level, (masters, instances) = request.param
    with Stage(level, masters=masters, instances=instances) as stage:
        yield stage


@pytest.mark.parametrize("seed", _SEEDS)
def test_a_schedule_of_faults_loses_and_doubles_nothing(stage: Stage, seed: int) -> None:
    outcome = play(stage, draw(seed, stage.durability))
    assert (outcome.wrong, len(outcome.faults) > 0) == ((), True), shown(outcome)
