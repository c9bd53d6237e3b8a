"""Daily standings: as they were when they were taken, until they are purged."""

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import date

import pytest

from tallyboard_server.leaderboards.model import Entry, SortOrder, TieBreak, Window, WindowKind
from tallyboard_server.postgres import leaderboards
from tallyboard_server.postgres.entries import erase_member, write_entries
from tallyboard_server.postgres.pool import BoundedPool
from tallyboard_server.postgres.snapshots import (
    SnapshotRow,
    find_snapshot,
    list_snapshots,
    purge_before,
    snapshot_entries,
    take,
    taken_since,
)
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
    gone,
    mixed,
    ranked,
)
from tests.waiting import wait_for

Pool = BoundedPool
DAYS = [date(2026, 11, number) for number in range(20, 25)]


@pytest.mark.parametrize("limit", [None, 0, 1, 70, 10**6])
@pytest.mark.parametrize(("sort_order", "tie_break"), ORDERS)
def test_a_snapshot_is_the_ranking(
    pool: Pool, sort_order: SortOrder, tie_break: TieBreak, limit: int | None
) -> None:
    expected = [
        Entry(rank, entry.member, entry.score, entry.metadata, entry.updated_at)
        for rank, entry in enumerate(ranked(mixed(), sort_order, tie_break)[:limit], 1)
    ]
    with pool.connection() as conn:
        key = add_board(conn, sort_order=sort_order, tie_break=tie_break)
        fill(conn, key, ALL, mixed())
        row = take(conn, key, "all", DAYS[0], MIDNIGHT, limit)
        assert row is not None
        assert row == SnapshotRow(row.snapshot_id, key, "all", DAYS[0], MIDNIGHT, len(expected))
        assert find_snapshot(conn, key, "all", DAYS[0]) == row
        assert snapshot_entries(conn, row.snapshot_id, 0, 999) == expected
        assert snapshot_entries(conn, row.snapshot_id, 3, 7) == expected[3:10]


def test_later_scores_do_not_change_it(pool: Pool) -> None:
    with pool.connection() as conn:
        key = add_board(conn)
        fill(conn, key, ALL, [Standing("ann", 1), Standing("bob", 2)])
        row = take(conn, key, "all", DAYS[0], MIDNIGHT)
        assert row is not None
        fill(conn, key, ALL, [Standing("ann", 9)])
        write_entries(conn, gone(key, ALL, "bob"), NOW)
        found = snapshot_entries(conn, row.snapshot_id, 0, 9)
    assert [(entry.member, entry.score) for entry in found] == [("bob", 2), ("ann", 1)]


def test_the_day_has_one_snapshot_a_window(pool: Pool) -> None:
    with pool.connection() as conn:
        key = add_board(conn)
        fill(conn, key, ALL, mixed(30))
        fill(conn, key, DAILY, mixed(20))
        take(conn, key, "all", DAYS[0], MIDNIGHT)
        take(conn, key, DAILY.window, DAYS[0], MIDNIGHT)
        write_entries(conn, gone(key, ALL, *HOSTILE), NOW)
        again = take(conn, key, "all", DAYS[0], MIDNIGHT + 5)
        assert again is not None
        rows = list_snapshots(conn, key, 9)
        assert [(row.window, row.taken_at, row.entry_count) for row in rows] == [
            ("all", MIDNIGHT + 5, 30 - len(HOSTILE)),
            (DAILY.window, MIDNIGHT, 20),
        ]
        assert len(snapshot_entries(conn, again.snapshot_id, 0, 99)) == 30 - len(HOSTILE)


def test_a_snapshot_that_fails_leaves_the_earlier_one(pool: Pool) -> None:
    with pool.connection() as conn:
        key = add_board(conn)
        fill(conn, key, ALL, [Standing("ann", 1)])
        row = take(conn, key, "all", DAYS[0], MIDNIGHT)
        assert row is not None
    with pool.connection() as conn:
        fill(conn, key, ALL, mixed())
        take(conn, key, "all", DAYS[0], MIDNIGHT + 1)
        conn.rollback()
    with pool.connection() as conn:
        assert find_snapshot(conn, key, "all", DAYS[0]) == row
        assert len(snapshot_entries(conn, row.snapshot_id, 0, 9)) == 1


def test_there_is_none_of_what_is_not_there(pool: Pool) -> None:
    with pool.connection() as conn:
        key = add_board(conn)
        fill(conn, key, ALL, [Standing("ann", 1)])
        assert take(conn, key, "none", DAYS[0], MIDNIGHT) is None
        assert take(conn, "none", "all", DAYS[0], MIDNIGHT) is None
        assert find_snapshot(conn, key, "all", DAYS[0]) is None
        leaderboards.mark_deleted(conn, key, 1, MIDNIGHT)
        assert take(conn, key, "all", DAYS[0], MIDNIGHT) is None
        assert list_snapshots(conn, key, 9) == []


def test_an_archive_has_snapshots_too(pool: Pool) -> None:
    with pool.connection() as conn:
        key = add_board(conn)
        archive(conn, key, DAILY, [Standing("ann", 1)])
        row = take(conn, key, DAILY.window, DAYS[0], MIDNIGHT)
    assert row is not None
    assert row.entry_count == 1


def test_lists_have_the_latest_first(pool: Pool) -> None:
    windows = [ALL, DAILY, Window("Äther", WindowKind.SEASON, 1, 2)]
    with pool.connection() as conn:
        key = add_board(conn)
        fill(conn, other := add_board(conn, "post:43"), ALL, [Standing("ann", 1)])
        take(conn, other, "all", DAYS[0], MIDNIGHT)
        for window in windows:
            fill(conn, key, window, [Standing("ann", 1)])
            for day in DAYS:
                take(conn, key, window.window, day, MIDNIGHT)

        def listed(size: int, window: str | None) -> list[tuple[str, date]]:
            rows: list[SnapshotRow] = []
            while more := list_snapshots(
                conn, key, size, window=window, after=rows[-1] if rows else None
            ):
                rows += more
            return [(row.window, row.day) for row in rows]

        names = ["Äther", "all", DAILY.window]
        expected = [(name, day) for day in DAYS[::-1] for name in names]
        assert listed(2, None) == listed(99, None) == expected
        assert listed(2, "Äther") == [("Äther", day) for day in DAYS[::-1]]


def test_a_member_has_a_rank_over_time(pool: Pool) -> None:
    member = HOSTILE[2]
    with pool.connection() as conn:
        key = add_board(conn)
        for day, score in zip(DAYS, [1, 3, None, 2, 9], strict=True):
            fill(conn, key, ALL, [Standing("a", 2.5), Standing("b", 5)])
            if score is None:
                write_entries(conn, gone(key, ALL, member), NOW)
            else:
                fill(conn, key, ALL, [Standing(member, score)])
            take(conn, key, "all", day, MIDNIGHT)
        found = list_snapshots(conn, key, 9, member=member)
    assert [(row.rank, row.score) for row in found] == [
        (1, 9),
        (3, 2),
        (None, None),
        (2, 3),
        (3, 1),
    ]


def test_those_of_a_day_that_were_taken_since_a_moment_are_known(pool: Pool) -> None:
    with pool.connection() as conn:
        key = add_board(conn)
        for window in (ALL, DAILY):
            fill(conn, key, window, [Standing("ann", 1)])
        take(conn, key, "all", DAYS[1], MIDNIGHT)
        take(conn, key, DAILY.window, DAYS[1], MIDNIGHT - 1)
        take(conn, key, DAILY.window, DAYS[2], MIDNIGHT)
        assert taken_since(conn, key, DAYS[1], MIDNIGHT - 1) == {"all", DAILY.window}
        assert taken_since(conn, key, DAYS[1], MIDNIGHT) == {"all"}
        assert taken_since(conn, key, DAYS[1], MIDNIGHT + 1) == set()
        assert taken_since(conn, key, DAYS[0], 0) == set()


def test_old_ones_go_in_steps(pool: Pool) -> None:
    with pool.connection() as conn:
        key = add_board(conn)
        fill(conn, key, ALL, mixed(20))
        for at, day in enumerate(DAYS):
            take(conn, key, "all", day, MIDNIGHT + at)
    steps = 0
    while True:
        with pool.connection() as conn:
            if purge_before(conn, MIDNIGHT + 3, 8):
                break
        steps += 1
    assert steps == 9
    with pool.connection() as conn:
        assert [row.day for row in list_snapshots(conn, key, 9)] == DAYS[:2:-1]
        entries = conn.execute(
            "SELECT count(*) FROM tallyboard.leaderboard_snapshot_entries"
        ).fetchone()
    assert entries == (40,)


def test_an_erasure_waits_for_the_snapshot_it_can_not_see(pool: Pool) -> None:
    with pool.connection() as conn:
        key = add_board(conn)
        fill(conn, key, ALL, mixed())

    def erase() -> int:
        with pool.connection() as conn:
            conn.execute("SET application_name = 'erasure'")
            return erase_member(conn, "acme", "ann").snapshots

    with ThreadPoolExecutor(1) as threads:
        with pool.connection() as conn:
            row = take(conn, key, "all", DAYS[0], MIDNIGHT)
            assert row is not None
            erasing = threads.submit(erase)
            with pool.connection() as watcher:
                watcher.autocommit = True
                query = (
                    "SELECT FROM pg_stat_activity"
                    " WHERE application_name = 'erasure' AND wait_event_type = 'Lock'"
                )
                wait_for(lambda: watcher.execute(query).fetchone() is not None, "the erasure")
                watcher.autocommit = False
        assert erasing.result(30) == 1
    with pool.connection() as conn:
        members = [entry.member for entry in snapshot_entries(conn, row.snapshot_id, 0, 999)]
    assert (len(members), "ann" in members) == (199, False)


def test_snapshots_of_one_day_at_the_same_time_are_one(pool: Pool) -> None:
    with pool.connection() as conn:
        key = add_board(conn)
        fill(conn, key, ALL, mixed())
    ready = threading.Barrier(4)

    def snapshot(at: int) -> None:
        ready.wait(30)
        with pool.connection() as conn:
            take(conn, key, "all", DAYS[0], MIDNIGHT + at)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(snapshot, range(4)))
    with pool.connection() as conn:
        (row,) = list_snapshots(conn, key, 9)
        assert row.entry_count == 200
        assert len(snapshot_entries(conn, row.snapshot_id, 0, 999)) == 200
