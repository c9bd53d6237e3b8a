"""Reads of archived windows: as a plain sorted list answers, at the cost of a few look-ups."""

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import psycopg
import pytest

from tallyboard_server.leaderboards.model import Entry, RankMethod, SortOrder, TieBreak
from tallyboard_server.postgres.archive import (
    RankedEntry,
    archived_window,
    count_better,
    entries_of,
    page,
    ranked_before,
    scores_at,
    standing,
)
from tallyboard_server.postgres.entries import archive_window, close_window, write_entries
from tallyboard_server.postgres.pool import BoundedPool
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
    competition,
    dense,
    fill,
    mixed,
    ranked,
    values,
)

Pool = BoundedPool
in_every_order = pytest.mark.parametrize(("sort_order", "tie_break"), ORDERS)
LARGE = 100_000


def read(expected: list[Standing], method: RankMethod = RankMethod.ORDINAL) -> list[RankedEntry]:
    """What reads should give for a whole ranking."""
    ordinals = list(range(1, len(expected) + 1))
    ranks = {
        RankMethod.ORDINAL: ordinals,
        RankMethod.COMPETITION: competition(expected),
        RankMethod.DENSE: dense(expected),
    }[method]
    return [
        RankedEntry(
            ordinal, Entry(rank, entry.member, entry.score, entry.metadata, entry.updated_at)
        )
        for ordinal, rank, entry in zip(ordinals, ranks, expected, strict=True)
    ]


@in_every_order
def test_pages_are_slices_of_the_ranking(
    pool: Pool, sort_order: SortOrder, tie_break: TieBreak
) -> None:
    given = mixed(50)
    with pool.connection() as conn:
        key = add_board(conn, sort_order=sort_order, tie_break=tie_break)
        window_id = archive(conn, key, DAILY, given).window_id
        for method in RankMethod:
            expected = read(ranked(given, sort_order, tie_break), method)
            for start, count in [(0, 50), (0, 7), (7, 7), (49, 7), (50, 7), (20, 0), (0, 10**9)]:
                part = expected[start : start + count]
                assert page(conn, window_id, start, count, method) == part
                assert page(conn, window_id, start, count, method, reverse=True) == part[::-1]


@in_every_order
def test_members_are_found_with_their_ranks(
    pool: Pool, sort_order: SortOrder, tie_break: TieBreak
) -> None:
    given = mixed(50)
    with pool.connection() as conn:
        key = add_board(conn, sort_order=sort_order, tie_break=tie_break)
        window_id = archive(conn, key, DAILY, given).window_id
        for method in RankMethod:
            expected = read(ranked(given, sort_order, tie_break), method)
            wanted = [found for found in expected if found.entry.member in HOSTILE]
            members = [*HOSTILE[::-1], "nobody", "ann"]
            assert entries_of(conn, window_id, members, method) == wanted
        assert entries_of(conn, window_id, [], RankMethod.DENSE) == []


@in_every_order
@pytest.mark.parametrize("count", [1, 2, 3, 31, 64])
def test_positions_are_where_a_plain_sort_puts_them(
    pool: Pool, sort_order: SortOrder, tie_break: TieBreak, count: int
) -> None:
    given = mixed()[:count]
    scores = [-1e300, -5.5, -5.4, 0.0, 0.5, 4.5, 1e300]
    moments = [MIDNIGHT - 1, MIDNIGHT, MIDNIGHT + 2, MIDNIGHT + 3]
    places = list(product(scores, moments, ["ann", "Z", "\U0010ffff"])) + [
        (entry.score, entry.updated_at, entry.member) for entry in given
    ]
    with pool.connection() as conn:
        key = add_board(conn, sort_order=sort_order, tie_break=tie_break)
        window_id = archive(conn, key, DAILY, given).window_id
        for score, moment, member in places:
            place = Standing(member, score, moment, b"place")
            others = [entry for entry in given if not is_at(entry, place, tie_break)]
            expected = ranked([*others, place], sort_order, tie_break).index(place)
            assert ranked_before(conn, window_id, score, moment, member) == expected


def is_at(entry: Standing, place: Standing, tie_break: TieBreak) -> bool:
    """Whether an entry ranks neither before nor behind a place."""
    same = (entry.member, entry.score) == (place.member, place.score)
    return same and (tie_break is TieBreak.MEMBER_ID or entry.updated_at == place.updated_at)


@in_every_order
def test_better_scores_are_counted(pool: Pool, sort_order: SortOrder, tie_break: TieBreak) -> None:
    given = mixed(60)
    descending = sort_order is SortOrder.DESCENDING
    with pool.connection() as conn:
        key = add_board(conn, sort_order=sort_order, tie_break=tie_break)
        window_id = archive(conn, key, DAILY, given).window_id
        for score in [-1e300, -5.5, -5.0, 0.5, 4.5, 5.0, 1e300]:
            better = sum(
                entry.score > score if descending else entry.score < score for entry in given
            )
            equal = sum(entry.score == score for entry in given)
            assert count_better(conn, window_id, score) == better
            assert count_better(conn, window_id, score, or_equal=True) == better + equal


def test_scores_at_indexes(pool: Pool) -> None:
    with pool.connection() as conn:
        row = archive(conn, add_board(conn), DAILY, [Standing(str(at), at / 10) for at in range(9)])
        assert scores_at(conn, row.window_id, [0, 8, 4, 4, 9, -1]) == {0: 0.8, 4: 0.4, 8: 0.0}


def test_an_empty_archive_answers(pool: Pool) -> None:
    with pool.connection() as conn:
        key = add_board(conn)
        write_entries(conn, values(key, DAILY, [Standing("ann", 1)]), NOW)
        conn.execute("DELETE FROM tallyboard.leaderboard_entries")
        window_id = archive(conn, key, DAILY, []).window_id
        assert ranked_before(conn, window_id, 1.0, 1, "ann") == 0
        assert count_better(conn, window_id, 1.0) == 0
        assert scores_at(conn, window_id, [0]) == {}
        assert ranked_before(conn, 10**9, 1.0, 1, "ann") == count_better(conn, 10**9, 1.0) == 0


def test_only_archived_windows_are_archives(pool: Pool) -> None:
    with pool.connection() as conn:
        key = add_board(conn)
        fill(conn, key, ALL, [Standing("ann", 1)])
        row = archive(conn, key, DAILY, [Standing("ann", 1)])
        assert archived_window(conn, key, "all") is None
        assert archived_window(conn, key, "none") is None
        assert archived_window(conn, key, DAILY.window) == row
        fill(conn, key, DAILY, [Standing("bob", 1)])
        assert archived_window(conn, key, DAILY.window) is None


def test_the_reads_of_one_answer_see_one_moment(pool: Pool) -> None:
    with pool.connection() as conn:
        key = add_board(conn)
        row = archive(conn, key, DAILY, [Standing("ann", 1), Standing("bob", 2)])
    with standing(pool) as reader:
        assert archived_window(reader, key, DAILY.window) == row
        with pool.connection() as conn:
            fill(conn, key, DAILY, [Standing("ann", 3)])
            archive_window(conn, row.window_id, None)
        found = page(reader, row.window_id, 0, 9, RankMethod.ORDINAL)
        assert [at.entry.member for at in found] == ["bob", "ann"]
    with standing(pool) as reader:
        found = page(reader, row.window_id, 0, 9, RankMethod.ORDINAL)
        assert [at.entry.member for at in found] == ["ann", "bob"]
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            close_window(reader, row.window_id)


class Explained:
    """A connection that adds up the blocks its queries read, and collects their scans."""

    def __init__(self, conn: psycopg.Connection[Any]) -> None:
        self._conn = conn
        self.blocks = 0
        self.scans: set[str] = set()

    def execute(self, query: str, arguments: Any) -> psycopg.Cursor[Any]:
        explain = f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {query}".encode()
        row = self._conn.execute(explain, arguments).fetchone()
        assert row is not None
        plan = row[0][0]["Plan"]
        self.blocks += plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]
        for node in nodes(plan):
            if node.get("Relation Name") == "leaderboard_entries":
                self.scans.add(node["Node Type"])
        return self._conn.execute(query.encode(), arguments)


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from nodes(child)


READS: list[tuple[str, int, Callable[[Any, int], object]]] = [
    ("before", 150, lambda conn, at: ranked_before(conn, at, 500.0, MIDNIGHT + 50, "user:5")),
    ("better", 150, lambda conn, at: count_better(conn, at, 500.0)),
    ("or equal", 150, lambda conn, at: count_better(conn, at, 500.0, or_equal=True)),
    ("top", 150, lambda conn, at: page(conn, at, 0, 100, RankMethod.DENSE)),
    ("middle", 150, lambda conn, at: page(conn, at, LARGE // 2, 100, RankMethod.ORDINAL)),
    ("end", 150, lambda conn, at: page(conn, at, LARGE - 9, 100, RankMethod.ORDINAL, reverse=True)),
    ("one", 10, lambda conn, at: entries_of(conn, at, ["user:7"], RankMethod.ORDINAL)),
    (
        "friends",
        500,
        lambda conn, at: entries_of(
            conn, at, [f"user:{friend}" for friend in range(100)], RankMethod.ORDINAL
        ),
    ),
    ("scores", 40, lambda conn, at: scores_at(conn, at, [0, LARGE // 2, LARGE - 1])),
]


@pytest.fixture
def large(pool: Pool) -> int:
    """The id of an archived window with many entries, beside another one."""
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
        close_window(conn, window_id)
        assert archive_window(conn, window_id, None) == LARGE + 1
    return window_id


def test_no_read_costs_more_than_its_size(pool: Pool, large: int) -> None:
    with pool.connection() as conn:
        for analyzed in (False, True):
            if analyzed:
                conn.execute("ANALYZE tallyboard.leaderboard_entries")
            for name, most, call in READS:
                explained = Explained(conn)
                assert call(explained, large)
                assert explained.blocks <= most, (name, analyzed)
                assert "Seq Scan" not in explained.scans, (name, analyzed)
