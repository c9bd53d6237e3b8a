"""Reads without Redis: as a plain sorted list answers, with the journal on top."""

import random
import uuid
from collections.abc import Callable, Iterable, Iterator
from itertools import product
from typing import Any, cast

import psycopg
import pytest

from tallyboard_server.embedded import EmbeddedPostgres
from tallyboard_server.leaderboards.model import SortOrder, TieBreak
from tallyboard_server.postgres.checkpoints import ShardValue, write_values
from tallyboard_server.postgres.durable import (
    DurableCount,
    PartitionAge,
    partition_ages,
    read_counts,
    reading,
    window_sizes,
)
from tallyboard_server.postgres.durable_ranking import DurableEntry, DurableRanking, Place, Tie
from tallyboard_server.postgres.journal import begin_journaling
from tallyboard_server.postgres.migrations import migrate
from tallyboard_server.postgres.partitions import insert_partitions
from tallyboard_server.postgres.pool import BoundedConnection, BoundedPool, TooLate, open_pool
from tests.postgres.boards import (
    ALL,
    DAILY,
    HOSTILE,
    MIDNIGHT,
    NOW,
    ORDERS,
    Standing,
    add_board,
    archive,
    fill,
    mixed,
    ranked,
)
from tests.postgres.support import new_database
from tests.postgres.test_archive import nodes

Pool = BoundedPool
Bounds = tuple[float | None, float | None]
in_every_order = pytest.mark.parametrize(("sort_order", "tie_break"), ORDERS)
#: How many entries the journal has of a window, beside those in whose place it has others.
JOURNALED = [(0, 0), (0, 7), (9, 0), (25, 20), (60, 0)]
LARGE = 100_000


def journal(conn: psycopg.Connection[Any], window_id: int, standings: Iterable[Standing]) -> None:
    """Puts entries into the journal."""
    with conn.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO tallyboard.journal_entries"
            " (window_id, member, partition, score, updated_at, metadata)"
            " VALUES (%s, %s, 3, %s, tallyboard.moment(%s), %s)",
            [(window_id, *standing) for standing in standings],
        )


class Case:
    """A window with a journal, as it should be read."""

    def __init__(
        self, conn: psycopg.Connection[Any], order: SortOrder, tie: TieBreak, sizes: tuple[int, int]
    ) -> None:
        changed, added = sizes
        chance = random.Random(f"{order}{tie}{sizes}")
        stored = mixed(60)
        newer = [self._newer(chance, entry.member) for entry in chance.sample(stored, changed)]
        newer += [self._newer(chance, f"new:{number}") for number in range(added)]
        key = add_board(conn, str(uuid.uuid4()), sort_order=order, tie_break=tie)
        fill(conn, key, ALL, [Standing(entry.member, 99) for entry in stored])
        self.window_id = fill(conn, key, DAILY, stored).window_id
        journal(conn, self.window_id, newer)
        conn.commit()
        held = {entry.member: entry for entry in stored} | {entry.member: entry for entry in newer}
        self.order, self.tie = order, tie
        self.given = ranked(held.values(), order, tie)
        self.expected = [
            DurableEntry(entry.member, entry.score, entry.updated_at, entry.metadata)
            for entry in self.given
        ]

    @staticmethod
    def _newer(chance: random.Random, member: str) -> Standing:
        score = chance.randrange(11) - 5.5
        return Standing(member, score, MIDNIGHT + chance.randrange(3), b"new")

    def ranking(self, conn: psycopg.Connection[Any]) -> DurableRanking:
        """What is tested."""
        return DurableRanking(conn, self.window_id, self.order, self.tie)

    def better(self, score: float, than: float) -> bool:
        """Whether a score ranks before another one."""
        return score > than if self.order is SortOrder.DESCENDING else score < than

    def position(self, place: Place) -> int:
        """How many entries rank before a place."""
        better = sum(self.better(entry.score, place.score) for entry in self.given)
        equal = sum(entry.score == place.score for entry in self.given)
        if place.kind in "us":
            return better + (equal if place.kind == "s" else 0)
        probe = Standing(place.member, place.score, place.updated_at, b"probe")
        others = [entry for entry in self.given if not self._is_at(entry, place)]
        at = ranked([*others, probe], self.order, self.tie).index(probe)
        return at + (len(self.given) - len(others) if place.kind == "a" else 0)

    def _is_at(self, entry: Standing, place: Place) -> bool:
        same = (entry.member, entry.score) == (place.member, place.score)
        return same and (self.tie is TieBreak.MEMBER_ID or entry.updated_at == place.updated_at)

    def places(self) -> Iterator[Place]:
        """Places at entries, between them and beyond them."""
        for score in (-1e300, -5.5, -5.4, 0.5, 4.5, 1e300):
            yield Place("u", score)
            yield Place("s", score)
            for member, moment in product(["ann", "Z", "\U0010ffff"], [-1, 1, 3]):
                yield Place("b", score, MIDNIGHT + moment, member)
                yield Place("a", score, MIDNIGHT + moment, member)
        for entry in self.given:
            yield Place("b", entry.score, entry.updated_at, entry.member)
            yield Place("a", entry.score, entry.updated_at, entry.member)


@pytest.fixture(scope="module")
def shared(postgres_server: EmbeddedPostgres) -> Iterator[Pool]:
    """A pool of a database for all cases."""
    with new_database(postgres_server) as url:
        migrate(url)
        with open_pool(url) as pool:
            yield pool


@pytest.fixture(
    scope="module", params=[(*order, sizes) for order in ORDERS for sizes in JOURNALED], ids=str
)
def case(request: pytest.FixtureRequest, shared: Pool) -> Case:
    """A window in one order, with a journal of one size."""
    with shared.connection() as conn:
        return Case(conn, *request.param)


@pytest.fixture
def conn(shared: Pool, case: Case) -> Iterator[BoundedConnection]:
    """A connection that reads."""
    with reading(shared, 5, 10) as conn:
        yield conn


def test_positions_are_where_a_plain_sort_puts_them(case: Case, conn: BoundedConnection) -> None:
    ranking = case.ranking(conn)
    assert ranking.size() == len(case.given)
    for place in case.places():
        assert ranking.ahead_of(place) == case.position(place), place


def test_pages_are_slices_of_the_ranking(case: Case, conn: BoundedConnection) -> None:
    ranking, expected = case.ranking(conn), case.expected
    for limit, skip in [(1000, 0), (7, 0), (7, 7), (7, len(expected) - 3), (7, 1000), (0, 3)]:
        assert ranking.behind(None, limit, skip=skip) == expected[skip : skip + limit]
        assert ranking.before(None, limit, skip=skip) == expected[::-1][skip : skip + limit]
    for place in case.places():
        at = case.position(place)
        assert ranking.behind(place, 5) == expected[at : at + 5], place
        assert ranking.before(place, 5) == expected[:at][::-1][:5], place


BOUNDS: list[Bounds] = [(None, None), (-2.5, None), (None, 0.5), (-2.5, 0.5), (9, None), (0, 0)]


@pytest.mark.parametrize("bounds", BOUNDS)
def test_bounds_leave_others_out(case: Case, conn: BoundedConnection, bounds: Bounds) -> None:
    least, greatest = bounds
    ranking = case.ranking(conn)
    held = [
        entry
        for entry in case.expected
        if (least is None or entry.score >= least) and (greatest is None or entry.score <= greatest)
    ]
    assert ranking.within(least, greatest) == len(held)
    assert ranking.behind(None, 1000, bounds) == held
    assert ranking.before(None, 9, bounds) == held[::-1][:9]
    middle = case.given[len(case.given) // 2]
    place = Place("b", middle.score, middle.updated_at, middle.member)
    following = case.expected[case.position(place) :]
    assert ranking.behind(place, 1000, bounds) == [entry for entry in following if entry in held]


def test_scores_are_counted(case: Case, conn: BoundedConnection) -> None:
    ranking = case.ranking(conn)
    asked = [4.5, -1e300, 0.5, -5.5, 1e300, 0.5, -5.4]
    held = [entry.score for entry in case.given]
    better = [[score for score in held if case.better(score, than)] for than in asked]
    assert ranking.better(asked) == [len(scores) for scores in better]
    assert ranking.distinct_better(asked) == [len(set(scores)) for scores in better]
    assert ranking.better([]) == ranking.distinct_better([]) == []


def test_members_are_found_with_their_places_among_equals(
    case: Case, conn: BoundedConnection
) -> None:
    ranking = case.ranking(conn)
    names = [*HOSTILE, "nobody", "new:0", "user:3"]
    found = ranking.members(names)
    assert found == {entry.member: entry for entry in case.expected if entry.member in names}
    ahead = {
        entry.member: sum(e.score == entry.score for e in case.expected[:at])
        for at, entry in enumerate(case.expected)
        if entry.member in found
    }
    assert ranking.ties(found.values()) == ahead
    assert ranking.members([]) == ranking.ties([]) == {}


def test_windows_are_summed_up(case: Case, conn: BoundedConnection) -> None:
    ranking, size = case.ranking(conn), len(case.given)
    scores = [entry.score for entry in case.given]
    indexes = [0, size - 1, size // 2, size, size // 3]
    expected = {
        index: Tie(
            scores[index],
            scores.index(scores[index]),
            scores.index(scores[index]) + scores.count(scores[index]),
        )
        for index in indexes
        if index < size
    }
    assert ranking.scores_at(indexes, size) == expected
    assert ranking.scores_at([], size) == {}
    assert ranking.mean(size) == pytest.approx(sum(scores) / size)


def test_the_mean_of_extreme_scores(pool: Pool) -> None:
    greatest, least = 1.7e308, 5e-324
    with pool.connection() as conn:
        key = add_board(conn)
        huge = fill(conn, key, DAILY, [Standing(str(number), greatest) for number in range(9)])
        tiny = fill(conn, key, ALL, [Standing(str(number), least) for number in range(9)])
    with reading(pool, 5, 10) as conn:
        means = [
            DurableRanking(conn, row.window_id, SortOrder.DESCENDING, TieBreak.EARLIEST).mean(9)
            for row in (huge, tiny)
        ]
    assert means == [pytest.approx(greatest), least]


def test_a_window_without_entries_is_empty(pool: Pool) -> None:
    with reading(pool, 5, 10) as conn:
        ranking = DurableRanking(conn, 42, SortOrder.DESCENDING, TieBreak.EARLIEST)
        assert (ranking.size(), ranking.mean(0), ranking.scores_at([0], 0)) == (0, None, {})
        assert ranking.ahead_of(Place("b", 1, 1, "ann")) == 0
        assert ranking.behind(None, 9) == ranking.before(None, 9) == []


def test_sizes_of_windows(pool: Pool) -> None:
    with pool.connection() as conn:
        key, other = add_board(conn), add_board(conn, "post:43")
        held = fill(conn, key, ALL, [Standing("ann", 1), Standing("bob", 2)])
        journal(conn, held.window_id, [Standing("bob", 3), Standing("cid", 4)])
        archive(conn, key, DAILY, [Standing("ann", 1)])
        fill(conn, other, DAILY, [Standing("ann", 1)])
    with reading(pool, 5, 10) as conn:
        assert window_sizes(conn, key) == {"all": 3}


def shard(
    partition: int, counter: str, value: int, *, wide: bool = False, frozen: bool = False
) -> ShardValue:
    return ShardValue(partition, "acme", counter, wide, value, frozen)


def test_counts_are_checkpoints_and_journal(pool: Pool) -> None:
    most = (1 << 63) - 1
    with pool.connection() as conn:
        write_values(
            conn,
            [
                *(shard(0, "both", 5), shard(1, "both", -2), shard(1, "stored", 7)),
                *(shard(0, "zero", 0), shard(0, "wide", most - 9, wide=True)),
                shard(0, "gone", 5, frozen=True),
                *(shard(0, "gone", 0, wide=True, frozen=True),),
                *(shard(0, "back", 5, frozen=True), shard(0, "back", 0, wide=True, frozen=True)),
            ],
            NOW,
        )
        deltas = {"both": [10, -3], "new": [1], "back": [4], "wide": [9], "even": [1, -1]}
        for counter, parts in deltas.items():
            for number, delta in enumerate(parts):
                conn.execute(
                    "INSERT INTO tallyboard.journal_increments VALUES (%s, 'acme', %s, %s),"
                    " (%s, 'other', %s, 1000)",
                    (number, counter, delta, number, counter),
                )
    names = ["both", "stored", "zero", "gone", "back", "new", "wide", "even", "never", "both"]
    with reading(pool, 5, 10) as conn:
        assert read_counts(conn, "acme", names) == {
            "both": DurableCount(10, True),
            "stored": DurableCount(7, True),
            "zero": DurableCount(0, True),
            "gone": DurableCount(0, False),
            "back": DurableCount(4, True),
            "new": DurableCount(1, True),
            "wide": DurableCount(most, True),
            "even": DurableCount(0, True),
            "never": DurableCount(0, False),
        }


def test_the_age_of_partitions(pool: Pool) -> None:
    with pool.connection() as conn:
        insert_partitions(conn, {0: "life", 1: "life"}, opened=True, checkpointed_at=NOW)
        begin_journaling(conn, [1])
    with reading(pool, 5, 10) as conn:
        assert partition_ages(conn) == {
            0: PartitionAge(NOW.timestamp(), is_open=True),
            1: PartitionAge(NOW.timestamp(), is_open=False),
        }


def test_the_reads_of_one_answer_see_one_moment(pool: Pool) -> None:
    with pool.connection() as conn:
        key = add_board(conn)
        window_id = fill(conn, key, DAILY, [Standing("ann", 1)]).window_id
    with reading(pool, 5, 10) as reader:
        ranking = DurableRanking(reader, window_id, SortOrder.DESCENDING, TieBreak.EARLIEST)
        assert ranking.size() == 1
        with pool.connection() as conn:
            journal(conn, window_id, [Standing("bob", 2)])
        assert [entry.member for entry in ranking.behind(None, 9)] == ["ann"]
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            journal(reader, window_id, [Standing("cid", 2)])


def test_a_read_takes_no_longer_than_it_may(pool: Pool) -> None:
    with pytest.raises(TooLate), reading(pool, 5, 0.2) as conn:
        conn.execute("SELECT pg_sleep(20)")
    with reading(pool, 5, 30) as conn:
        shown = conn.execute("SHOW statement_timeout").fetchone()
    with pool.connection() as conn:
        assert (shown, conn.execute("SHOW statement_timeout").fetchone()) == (("10s",), ("10s",))
        assert conn.answer_by is None


class Explained:
    """A connection that adds up how many entries its queries look at, and collects their scans."""

    def __init__(self, conn: psycopg.Connection[Any]) -> None:
        self._conn = conn
        self.rows = 0
        self.scans: set[str] = set()

    def execute(self, query: str, arguments: Any) -> psycopg.Cursor[Any]:
        explain = f"EXPLAIN (ANALYZE, FORMAT JSON) {query}".encode()
        row = self._conn.execute(explain, arguments).fetchone()
        assert row is not None
        for node in nodes(row[0][0]["Plan"]):
            if node.get("Relation Name") in ("leaderboard_entries", "journal_entries"):
                rows = node["Actual Rows"] + node.get("Rows Removed by Filter", 0)
                self.rows += int(rows * node["Actual Loops"])
                self.scans.add(node["Node Type"])
        return self._conn.execute(query.encode(), arguments)


NEAR_TOP = Place("b", 995.0, MIDNIGHT + 50, "user:5")
MIDDLE = Place("b", 500.0, MIDNIGHT + 50, "user:5")
#: Reads, and how many entries each may look at: 100 of 100,000 have the same score.
READS: list[tuple[str, int, Callable[[DurableRanking], object]]] = [
    ("top", 600, lambda ranking: ranking.behind(None, 101)),
    ("end", 600, lambda ranking: ranking.before(None, 101)),
    ("behind", 600, lambda ranking: ranking.behind(MIDDLE, 101)),
    ("before", 600, lambda ranking: ranking.before(MIDDLE, 101)),
    ("rank near the top", 1_200, lambda ranking: ranking.ahead_of(NEAR_TOP)),
    ("rank", LARGE // 2 + 1_200, lambda ranking: ranking.ahead_of(MIDDLE)),
    ("one", 1, lambda ranking: ranking.members(["user:7"])),
    ("friends", 200, lambda ranking: ranking.members([f"user:{at}" for at in range(100)])),
]


@pytest.fixture
def large(pool: Pool) -> int:
    """The id of a window with many entries, some of them journaled, beside another one."""
    with pool.connection() as conn:
        key = add_board(conn)
        fill(conn, key, ALL, mixed())
        window_id = fill(conn, key, DAILY, [Standing("user:0", 0)]).window_id
        conn.execute(
            "INSERT INTO tallyboard.leaderboard_entries"
            " (window_id, member, partition, score, updated_at, metadata)"
            " SELECT %s, 'user:' || number, 1, number * 7919 %% 1000,"
            " tallyboard.moment(%s + number %% 100), '' FROM generate_series(1, %s) AS number",
            (window_id, MIDNIGHT, LARGE),
        )
        journal(conn, window_id, [Standing(f"user:{at * 997}", at % 1000) for at in range(100)])
    with pool.connection() as conn:
        conn.autocommit = True
        conn.execute("VACUUM tallyboard.leaderboard_entries")
        conn.autocommit = False
    return window_id


def test_reads_near_a_place_do_not_read_the_window(pool: Pool, large: int) -> None:
    for analyzed in (False, True):
        if analyzed:
            with pool.connection() as conn:
                conn.execute("ANALYZE tallyboard.leaderboard_entries, tallyboard.journal_entries")
        for name, most, call in READS:
            with reading(pool, 5, 10) as conn:
                explained = Explained(conn)
                ranking = DurableRanking(
                    cast(Any, explained), large, SortOrder.DESCENDING, TieBreak.EARLIEST
                )
                assert call(ranking)
                assert explained.rows <= most, (name, analyzed)
                assert explained.scans <= {"Index Scan", "Index Only Scan"}, (name, analyzed)
