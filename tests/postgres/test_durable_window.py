"""A window with a journal reads as one that was archived with the same entries."""

import random
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from tallyboard_server.embedded import EmbeddedPostgres
from tallyboard_server.leaderboards.archived import ArchivedWindow
from tallyboard_server.leaderboards.durable import DurableWindow
from tallyboard_server.leaderboards.model import Leaderboard, RankMethod, SortOrder
from tallyboard_server.postgres.durable import reading
from tallyboard_server.postgres.migrations import migrate
from tallyboard_server.postgres.pool import BoundedPool, open_pool
from tallyboard_server.redis.rankings import Anchor
from tests.postgres.boards import (
    DAILY,
    MIDNIGHT,
    ORDERS,
    Standing,
    add_board,
    archive,
    fill,
    mixed,
    ranked,
)
from tests.postgres.support import new_database
from tests.postgres.test_durable import journal

Pool = BoundedPool
#: Entries that are stored, entries that the journal has instead, and new ones; the board's limit.
SHAPES = [(60, 0, 0, 0), (60, 20, 10, 0), (0, 0, 9, 0), (60, 20, 10, 25), (0, 0, 0, 0)]


class Pair:
    """A window with a journal, and the archive that it should read like."""

    def __init__(self, pool: Pool, order: Any, shape: tuple[int, int, int, int]) -> None:
        stored_count, changed, added, limit = shape
        sort_order, tie_break = order
        chance = random.Random(str((order, shape)))
        stored = mixed()[:stored_count]
        names = [entry.member for entry in chance.sample(stored, changed)]
        names += [f"new:{number}" for number in range(added)]
        newer = [
            Standing(name, chance.randrange(11) - 5.5, MIDNIGHT + chance.randrange(3), b"new")
            for name in names
        ]
        held = {entry.member: entry for entry in (*stored, *newer)}
        self.given = ranked(held.values(), sort_order, tie_break)[: limit or None]
        with pool.connection() as conn:
            keys = [
                add_board(conn, str(uuid.uuid4()), sort_order=sort_order, tie_break=tie_break)
                for _ in range(2)
            ]
            # A window gets its row with an entry.
            self.window_id = fill(conn, keys[0], DAILY, stored or [Standing("x", 0)]).window_id
            if not stored:
                conn.execute("DELETE FROM tallyboard.leaderboard_entries")
            journal(conn, self.window_id, newer)
            self.row = archive(conn, keys[1], DAILY, self.given or [Standing("x", 0)])
        self.is_empty = not self.given
        self.board = Leaderboard(
            "acme", "post:42", sort_order=sort_order, tie_break=tie_break, max_entries=limit
        )

    def windows(self, conn: Any, method: RankMethod) -> tuple[DurableWindow, ArchivedWindow]:
        """Both."""
        descending = self.board.sort_order is SortOrder.DESCENDING
        return (
            DurableWindow(conn, self.window_id, self.board, method),
            ArchivedWindow(conn, self.row, descending, method),
        )

    def anchors(self) -> Iterator[tuple[Anchor, dict[str, Any]]]:
        """Places of all kinds."""
        yield Anchor("e"), {}
        for index in (0, 1, 7, len(self.given) - 1, len(self.given), 500):
            yield Anchor("i", max(0, index)), {}
        for score in (-9.0, -5.5, 0.5, 4.5, 9.0):
            yield Anchor("u", score), {}
            yield Anchor("s", score), {}
            for kind in "ba":
                yield Anchor(kind, score, b"x"), {"updated_at": MIDNIGHT + 1, "member": "m"}
        for entry in self.given[::9]:
            place = {"updated_at": entry.updated_at, "member": entry.member}
            yield Anchor("m", 0, entry.member), {}
            yield Anchor("b", entry.score, b"x"), place
            yield Anchor("a", entry.score, b"x"), place
        yield Anchor("m", 0, "nobody"), {}


@pytest.fixture(scope="module")
def shared(postgres_server: EmbeddedPostgres) -> Iterator[Pool]:
    """A pool of a database for all pairs."""
    with new_database(postgres_server) as url:
        migrate(url)
        with open_pool(url) as pool:
            yield pool


@pytest.fixture(scope="module", params=[(o, s) for o in ORDERS for s in SHAPES[:4]], ids=str)
def pair(request: pytest.FixtureRequest, shared: Pool) -> Pair:
    """A pair in one order and of one shape."""
    return Pair(shared, *request.param)


@pytest.mark.parametrize("method", RankMethod)
def test_stretches(shared: Pool, pair: Pair, method: RankMethod) -> None:
    bounds = [(None, None), (-2.5, None), (None, 1.5), (-2.5, 1.5), (8.0, 9.0)]
    chance = random.Random(method.value)
    with reading(shared, 5, 30) as conn:
        durable, archived = pair.windows(conn, method)
        for anchor, place in pair.anchors():
            for ahead, count in chance.sample([(0, 5), (5, 0), (3, 4), (0, 0), (0, 1000)], 2):
                limits = (None, None) if anchor.kind == "i" else chance.choice(bounds)
                found = durable.around(anchor, ahead, count, *limits, **place)
                expected = archived.around(anchor, ahead, count, *limits, **place)
                assert found == expected, (anchor, place, ahead, count, limits)


@pytest.mark.parametrize("method", RankMethod)
def test_members(shared: Pool, pair: Pair, method: RankMethod) -> None:
    names = [entry.member for entry in mixed()[:60:2]] + ["new:0", "new:3", "nobody"]
    with reading(shared, 5, 30) as conn:
        durable, archived = pair.windows(conn, method)
        assert durable.members(names) == archived.members(names)
        assert durable.members(["nobody"]) == archived.members(["nobody"])


def test_sums(shared: Pool, pair: Pair) -> None:
    with reading(shared, 5, 30) as conn:
        durable, archived = pair.windows(conn, RankMethod.ORDINAL)
        indexes = [0, len(pair.given) - 1, 3, len(pair.given) // 2, 3, 500]
        assert durable.size == archived.size
        assert durable.scores_at(indexes) == archived.scores_at(indexes)
        if not pair.board.max_entries:
            assert durable.mean == pytest.approx(archived.mean)


def test_an_empty_window(shared: Pool) -> None:
    pair = Pair(shared, ORDERS[0], SHAPES[4])
    with reading(shared, 5, 30) as conn:
        durable, _ = pair.windows(conn, RankMethod.DENSE)
        assert (durable.size, durable.mean, durable.scores_at([0])) == (0, None, [])
        for anchor, place in pair.anchors():
            found = durable.around(anchor, 5, 5, **place)
            assert (found is None) == (anchor.kind == "m")
            if found is not None:
                assert (found.position, found.rank, found.before, found.behind) == (0, 1, [], [])


def test_a_place_far_from_the_top(shared: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tallyboard_server.leaderboards.durable._FAR", 3)
    pair = Pair(shared, ORDERS[0], SHAPES[1])
    with reading(shared, 5, 30) as conn:
        durable, archived = pair.windows(conn, RankMethod.COMPETITION)
        for index in range(len(pair.given) + 2):
            anchor = Anchor("i", index)
            assert durable.around(anchor, 2, 3) == archived.around(anchor, 2, 3)
