"""Fixtures: a house of `tests.leaderboards.live`, and a keeper that drains on its clock.

A test module takes them: `opened, house = live.opened, live.house`, and
`keeper_of_module, keeper = houses.keeper_of_module, houses.keeper`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import pytest

from tallyboard.v1 import leaderboards_pb2 as pb
from tests.leaderboards.live import House, LiveBoard, at
from tests.recovery.journaling import Keeper
from tests.waiting import wait_for

#: When every test begins.
NOON: Final = at("2026-02-10T12:00")


@pytest.fixture(scope="module")
def keeper_of_module(opened: House) -> Iterator[Keeper]:
    """A keeper of the house's stores."""
    with Keeper(opened.settings, opened.clock) as keeper:
        yield keeper


@pytest.fixture
def keeper(keeper_of_module: Keeper, house: House) -> Iterator[Keeper]:
    """The same; everything is open behind the test."""
    house.clock.now = NOON
    yield keeper_of_module
    open_again(keeper_of_module, house)
    keeper_of_module.query("DELETE FROM tallyboard.journal_rejected")


def open_again(keeper: Keeper, house: House) -> None:
    """Drains until the worker writes to Redis again."""
    probe = _probe(house)

    def is_open() -> bool:
        keeper.drain()
        return not any(_journals(probe))

    wait_for(is_open, "the worker to write to Redis")


@contextmanager
def journaling(keeper: Keeper, house: House) -> Iterator[None]:
    """Everything is journaled inside, and applied at the end."""
    probe = _probe(house)
    keeper.close_all()
    wait_for(lambda: all(_journals(probe)), "the worker to journal")
    yield
    open_again(keeper, house)


def _probe(house: House) -> LiveBoard:
    return house.new_board(segments=8)


def _journals(probe: LiveBoard) -> list[bool]:
    """Whether scores are journaled, of members in every partition."""
    requests = [pb.SubmitScoreRequest(submission=probe.submission(f"m{i}", 1)) for i in range(40)]
    return [probe.call("SubmitScore", request).journaled for request in requests]
