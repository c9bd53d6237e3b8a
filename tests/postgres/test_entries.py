"""Windows and entries: what checkpoints write, how windows are ranked, and who is removed."""

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import date, timedelta

import psycopg
import pytest

from tallyboard_server.leaderboards.model import (
    RankMethod,
    SortOrder,
    TieBreak,
    Window,
    WindowKind,
    WindowState,
)
from tallyboard_server.postgres import leaderboards, snapshots
from tallyboard_server.postgres.archive import RankedEntry, page
from tallyboard_server.postgres.entries import (
    StoredEntry,
    WindowRow,
    archive_window,
    close_window,
    delete_member,
    delete_window,
    due_windows,
    entry_page,
    erase_member,
    expired_windows,
    find_window,
    patience,
    window_rows,
    write_entries,
)
from tallyboard_server.postgres.pool import BoundedConnection, BoundedPool
from tests.postgres.boards import (
    ALL,
    DAILY,
    DAY,
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
    gone,
    mixed,
    ranked,
    values,
    window_of,
)
from tests.waiting import wait_for

Pool = BoundedPool
LATER = NOW + timedelta(seconds=5)
NOW_MICROS = int(NOW.timestamp()) * 1_000_000
MOMENTS = [-2_208_988_800_000_001, -1, 0, 1_763_899_999_999_999, 4_102_444_799_999_999]
SCORES = [0.1, -1.7976931348623157e308, 5e-324, 2.0**53 + 2, 1e-300, 0.0]


def stored(conn: psycopg.Connection[tuple[object, ...]], row: WindowRow) -> list[Standing]:
    """All entries of a window, by page."""
    found: list[StoredEntry] = []
    while more := entry_page(conn, row.window_id, found[-1].member if found else "", 7):
        found += more
    return [
        Standing(entry.member, entry.score, entry.updated_at, entry.metadata) for entry in found
    ]


def wait_until_locked_out(pool: Pool, name: str) -> None:
    """Returns once the connection of this application name waits for a lock."""
    query = "SELECT FROM pg_stat_activity WHERE application_name = %s AND wait_event_type = 'Lock'"
    with pool.connection() as conn:
        conn.autocommit = True
        wait_for(lambda: conn.execute(query, (name,)).fetchone() is not None, name)
        conn.autocommit = False


def by_member(standings: list[Standing]) -> list[Standing]:
    return sorted(standings, key=lambda entry: entry.member.encode())


def test_entries_come_back_as_they_went(pool: Pool) -> None:
    given = [
        Standing(member, SCORES[at % len(SCORES)], MOMENTS[at % len(MOMENTS)], bytes(range(256)))
        for at, member in enumerate(HOSTILE)
    ]
    with pool.connection() as conn:
        row = fill(conn, add_board(conn), DAILY, given)
        assert stored(conn, row) == by_member(given)
        assert entry_page(conn, row.window_id, "", 1)[0].partition == 3


def test_a_window_has_the_limits_of_its_definition(pool: Pool) -> None:
    with pool.connection() as conn:
        key = add_board(conn, late_grace=30, retention={WindowKind.DAILY: 70, WindowKind.HOURLY: 1})
        row = fill(conn, key, DAILY, [Standing("ann", 1)])
    end = MIDNIGHT + DAY
    assert row == WindowRow(
        row.window_id,
        key,
        DAILY,
        WindowState.OPEN,
        NOW_MICROS,
        end + 30_000_000,
        end + 70_000_000,
        None,
        None,
        None,
    )


def test_a_window_that_takes_scores_is_kept(pool: Pool) -> None:
    with pool.connection() as conn:
        key = add_board(conn, late_grace=30, retention={WindowKind.DAILY: 7})
        row = fill(conn, key, DAILY, [Standing("ann", 1)])
    assert row.expires_at == row.closes_at == MIDNIGHT + DAY + 30_000_000


def test_entries_change_come_and_go(pool: Pool) -> None:
    with pool.connection() as conn:
        key = add_board(conn)
        fill(conn, key, ALL, [Standing("ann", 1), Standing("bob", 2), Standing("cy", 3)])
    with pool.connection() as conn:
        changes = values(key, ALL, [Standing("bob", 5, 9, b"m"), Standing("dan", 4)])
        assert write_entries(conn, [*changes, *gone(key, ALL, "ann", "nobody")], LATER) == 4
        row = window_of(conn, key, ALL)
        assert stored(conn, row) == [
            Standing("bob", 5, 9, b"m"),
            Standing("cy", 3),
            Standing("dan", 4),
        ]
        assert row.changed_at == NOW_MICROS + 5_000_000


@pytest.mark.parametrize(
    "changed",
    [Standing("ann", 2, 5, b"m"), Standing("ann", 1, 6, b"m"), Standing("ann", 1, 5, b"n")],
)
def test_each_part_of_an_entry_may_change_alone(pool: Pool, changed: Standing) -> None:
    with pool.connection() as conn:
        key = add_board(conn)
        fill(conn, key, ALL, [Standing("ann", 1, 5, b"m")])
        assert stored(conn, fill(conn, key, ALL, [changed])) == [changed]


def test_what_is_written_again_costs_no_rows(pool: Pool) -> None:
    with pool.connection() as conn:
        key = add_board(conn)
        fill(conn, key, ALL, mixed())
    query = "SELECT member, ctid::text FROM tallyboard.leaderboard_entries ORDER BY member"
    with pool.connection() as conn:
        before = conn.execute(query).fetchall()
        fill(conn, key, ALL, mixed())
        assert conn.execute(query).fetchall() == before


def test_unknown_and_deleted_boards_are_left_out(pool: Pool) -> None:
    with pool.connection() as conn:
        key, deleted = add_board(conn), add_board(conn, "post:43")
        leaderboards.mark_deleted(conn, deleted, 1, MIDNIGHT)
        ann = [Standing("ann", 1)]
        given = [*values("none", ALL, ann), *values(deleted, ALL, ann), *values(key, ALL, ann)]
        assert write_entries(conn, given, NOW) == 1
        assert write_entries(conn, values(deleted, ALL, ann), NOW) == 0
        assert find_window(conn, deleted, "all") is None
        assert stored(conn, window_of(conn, key, ALL)) == ann


def test_a_transaction_that_fails_leaves_nothing(pool: Pool) -> None:
    with pool.connection() as conn:
        key = add_board(conn)
    with pool.connection() as conn:
        fill(conn, key, ALL, mixed())
        conn.rollback()
    with pool.connection() as conn:
        assert find_window(conn, key, "all") is None
        assert stored(conn, fill(conn, key, ALL, [Standing("ann", 1)])) == [Standing("ann", 1)]


def test_a_second_call_in_a_transaction_writes_its_own(pool: Pool) -> None:
    with pool.connection() as conn:
        key = add_board(conn)
        fill(conn, key, ALL, [Standing("ann", 1), Standing("bob", 1)])
        write_entries(conn, gone(key, ALL, "bob"), NOW)
        assert stored(conn, fill(conn, key, ALL, [Standing("ann", 2)])) == [Standing("ann", 2)]


def test_the_staging_table_is_made_once_a_connection(pool: Pool) -> None:
    with pool.connection() as conn:
        key = add_board(conn)
        query = (
            "SELECT oid, pg_relation_filenode(oid) FROM pg_class WHERE relname = 'staged_entries'"
        )
        found = []
        for number in range(3):
            fill(conn, key, ALL, [Standing("ann", number)])
            conn.commit()
            found.append(conn.execute(query).fetchall())
    assert found[0] == found[1] == found[2] != []


def test_checkpoints_of_segments_do_not_deadlock(pool: Pool) -> None:
    """Each of them writes to the same new and old windows of two boards."""
    with pool.connection() as conn:
        keys = [add_board(conn, name) for name in ("post:42", "post:43")]
        fill(conn, keys[0], ALL, [Standing("ann", 1)])
    windows = [Window(f"2025-11-{day}", WindowKind.DAILY, day, day + 1) for day in range(10, 20)]
    ready = threading.Barrier(4)

    def checkpoint(partition: int) -> None:
        shuffled = random.Random(partition)
        ready.wait(30)
        for turn in range(10):
            given = [
                value
                for key in keys
                for window in [ALL, *windows]
                for value in values(key, window, [Standing(f"user:{partition}", turn)], partition)
            ]
            shuffled.shuffle(given)
            with pool.connection() as conn:
                write_entries(conn, given, NOW)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(checkpoint, range(4)))
    with pool.connection() as conn:
        for key in keys:
            rows = window_rows(conn, key, 99)
            assert len(rows) == 11
            for row in rows:
                found = [entry for entry in stored(conn, row) if entry.member != "ann"]
                assert found == [Standing(f"user:{number}", 9) for number in range(4)]


def test_segments_write_to_one_window_at_the_same_time(pool: Pool) -> None:
    with pool.connection() as conn:
        key = add_board(conn)
        fill(conn, key, ALL, [Standing("ann", 1)])
    entered, proceed = threading.Event(), threading.Event()

    def slow() -> None:
        with pool.connection() as conn:
            # What write_entries does before its last statement.
            conn.execute("SELECT FROM tallyboard.leaderboard_windows FOR KEY SHARE")
            entered.set()
            assert proceed.wait(30)

    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(slow)
        assert entered.wait(30)
        with pool.connection() as conn:
            conn.execute("SET LOCAL lock_timeout = '1s'")
            fill(conn, key, ALL, [Standing("bob", 1)])
        proceed.set()
        waiting.result(30)


@pytest.mark.parametrize(("sort_order", "tie_break"), ORDERS)
def test_a_window_is_ranked_as_by_a_plain_sort(
    pool: Pool, sort_order: SortOrder, tie_break: TieBreak
) -> None:
    given = [*mixed(), Standing("most", 1.7e308), Standing("least", -1.7e308), Standing("zero", 0)]
    expected = ranked(given, sort_order, tie_break)
    with pool.connection() as conn:
        key = add_board(conn, sort_order=sort_order, tie_break=tie_break)
        other = fill(conn, key, ALL, given)
        row = archive(conn, key, DAILY, given)
        assert row.entry_count == len(given)
        found = page(conn, row.window_id, 0, 999, RankMethod.ORDINAL)
        assert [at.entry.member for at in found] == [entry.member for entry in expected]
        assert [at.ordinal for at in found] == list(range(1, len(given) + 1))
        for method, ranks in (
            (RankMethod.COMPETITION, competition(expected)),
            (RankMethod.DENSE, dense(expected)),
        ):
            entries = page(conn, row.window_id, 0, 999, method)
            assert [at.entry.rank for at in entries] == ranks
        assert page(conn, other.window_id, 0, 999, RankMethod.ORDINAL) == []


@pytest.mark.parametrize(
    ("scores", "mean"),
    [
        ([1.0, 2.0, 6.0], 3.0),
        ([-1.5], -1.5),
        ([1e308, 1e308, 1e308], 1e308),
        ([1.7976931348623157e308] * 7, 1.7976931348623157e308),
        ([-1.7976931348623157e308, 1.7976931348623157e308, 5e-324], 0.0),
        ([5e-324, 0.0, 0.0], 0.0),
        ([1e200, 3e200], 2e200),
        ([1e-310, 3e-310], 2e-310),
    ],
)
def test_the_mean_is_kept(pool: Pool, scores: list[float], mean: float) -> None:
    given = [Standing(f"user:{at}", score) for at, score in enumerate(scores)]
    with pool.connection() as conn:
        row = archive(conn, add_board(conn), DAILY, given)
    assert row.mean == pytest.approx(mean, rel=1e-12, abs=0)


def test_an_empty_window_is_archived_too(pool: Pool) -> None:
    with pool.connection() as conn:
        key = add_board(conn)
        fill(conn, key, DAILY, [Standing("ann", 1)])
        write_entries(conn, gone(key, DAILY, "ann"), NOW)
        row = archive(conn, key, DAILY, [])
    assert (row.state, row.entry_count, row.mean) == (WindowState.ARCHIVED, 0, None)


def test_only_a_closed_window_is_archived(pool: Pool) -> None:
    with pool.connection() as conn:
        row = fill(conn, add_board(conn), DAILY, [Standing("ann", 1)])
        assert archive_window(conn, row.window_id, None) is None
        assert close_window(conn, row.window_id)
        assert not close_window(conn, row.window_id)
        assert archive_window(conn, row.window_id, row.changed_at - 1) is None
        assert archive_window(conn, row.window_id, row.changed_at, archived_at=77) == 1
        assert archive_window(conn, row.window_id, None) is None
        assert not close_window(conn, row.window_id)
        assert archive_window(conn, 10**9, None) is None
        archived = window_of(conn, row.board_key, DAILY)
    assert (archived.state, archived.archived_at) == (WindowState.ARCHIVED, 77)


def test_an_import_reopens_an_archive_until_it_is_ranked_again(pool: Pool) -> None:
    with pool.connection() as conn:
        key = add_board(conn)
        archive(conn, key, DAILY, [Standing("ann", 1), Standing("bob", 2), Standing("cy", 3)])
    with pool.connection() as conn:
        late = values(key, DAILY, [Standing("dan", 2.5), Standing("ann", 9)])
        write_entries(conn, [*late, *gone(key, DAILY, "cy")], LATER)
        row = window_of(conn, key, DAILY)
        assert (row.state, row.archived_at, row.entry_count, row.mean) == (
            WindowState.CLOSED,
            None,
            None,
            None,
        )
        assert archive_window(conn, row.window_id, row.changed_at) == 3
        found = page(conn, row.window_id, 0, 9, RankMethod.DENSE)
    assert [(at.ordinal, at.entry.member) for at in found] == [(1, "ann"), (2, "dan"), (3, "bob")]


def test_ranking_again_rewrites_only_what_moved(pool: Pool) -> None:
    with pool.connection() as conn:
        key = add_board(conn)
        archive(conn, key, DAILY, [Standing(f"user:{at}", -at) for at in range(100)])
    query = (
        "SELECT member FROM tallyboard.leaderboard_entries WHERE xmin = pg_current_xact_id()::xid"
    )
    with pool.connection() as conn:
        archive(conn, key, DAILY, [Standing("late", -97.5)])
        assert {row[0] for row in conn.execute(query)} == {"late", "user:98", "user:99"}


def test_an_archive_that_is_not_committed_leaves_nothing(pool: Pool) -> None:
    with pool.connection() as conn:
        key = add_board(conn)
        row = fill(conn, key, DAILY, mixed())
        close_window(conn, row.window_id)
    with pool.connection() as conn:
        assert archive_window(conn, row.window_id, None) == 200
        conn.rollback()
    with pool.connection() as conn:
        assert window_of(conn, key, DAILY).state is WindowState.CLOSED
        assert page(conn, row.window_id, 0, 9, RankMethod.ORDINAL) == []


def test_a_checkpoint_waits_for_the_ranking_and_reopens(pool: Pool) -> None:
    with pool.connection() as conn:
        key = add_board(conn)
        row = fill(conn, key, DAILY, mixed())
        close_window(conn, row.window_id)

    def checkpoint() -> int:
        with pool.connection() as conn:
            conn.execute("SET application_name = 'late checkpoint'")
            return write_entries(conn, values(key, DAILY, mixed()[::-1]), LATER)

    with ThreadPoolExecutor(1) as threads:
        with pool.connection() as conn:
            assert archive_window(conn, row.window_id, None) == 200
            waiting = threads.submit(checkpoint)
            wait_until_locked_out(pool, "late checkpoint")
        assert waiting.result(30) == 200
    with pool.connection() as conn:
        assert window_of(conn, key, DAILY).state is WindowState.CLOSED


@pytest.mark.parametrize("changed_at", [None, NOW_MICROS])
def test_the_ranking_waits_for_a_checkpoint(pool: Pool, changed_at: int | None) -> None:
    with pool.connection() as conn:
        key = add_board(conn)
        row = fill(conn, key, DAILY, mixed())
        close_window(conn, row.window_id)

    def rank() -> int | None:
        with pool.connection() as conn:
            conn.execute("SET application_name = 'ranking'")
            return archive_window(conn, row.window_id, changed_at)

    with ThreadPoolExecutor(1) as threads:
        with pool.connection() as conn:
            write_entries(conn, values(key, DAILY, [Standing("late", 0)]), LATER)
            ranking = threads.submit(rank)
            wait_until_locked_out(pool, "ranking")
        assert ranking.result(30) == (201 if changed_at is None else None)
    with pool.connection() as conn:
        entries = page(conn, row.window_id, 0, 999, RankMethod.ORDINAL)
    assert len(entries) == (201 if changed_at is None else 0)


def test_more_patience_ends_with_the_block(pool: Pool) -> None:
    with pool.connection() as conn:
        with patience(conn, 55):
            inside = conn.execute("SHOW statement_timeout").fetchone(), conn.answer_timeout
        outside = conn.execute("SHOW statement_timeout").fetchone(), conn.answer_timeout
    assert (inside, outside) == ((("55s",), 57.0), (("10s",), 12.0))


def test_patience_has_an_end(pool: Pool) -> None:
    with pool.connection() as conn:
        key = add_board(conn)
        row = fill(conn, key, DAILY, [Standing(f"user:{at}", at) for at in range(20_000)])
        close_window(conn, row.window_id)
    with pytest.raises(psycopg.errors.QueryCanceled), pool.connection() as conn:
        archive_window(conn, row.window_id, None, timeout=0.001)
    with pool.connection() as conn:
        assert conn.execute("SHOW statement_timeout").fetchone() == ("10s",)


def test_windows_are_due_when_their_grace_is_over(pool: Pool) -> None:
    end = MIDNIGHT + DAY
    hour = Window("2025-11-23T08", WindowKind.HOURLY, MIDNIGHT, MIDNIGHT + DAY // 24)
    with pool.connection() as conn:
        key = add_board(conn, late_grace=60)
        for window in (ALL, DAILY, hour):
            fill(conn, key, window, [Standing("ann", 1)])
        deleted = add_board(conn, "post:43")
        fill(conn, deleted, DAILY, [Standing("ann", 1)])
        leaderboards.mark_deleted(conn, deleted, 1, MIDNIGHT)

        def due(now: int, unchanged_since: int = NOW_MICROS) -> list[str]:
            return [row.window.window for row in due_windows(conn, now, unchanged_since, 9)]

        assert due(end + 60_000_000 - 1) == [hour.window]
        assert due(end + 60_000_000) == [hour.window, DAILY.window]
        assert due(end + 60_000_000, NOW_MICROS - 1) == []
        first = due_windows(conn, 2 * end, NOW_MICROS, 1)
        assert [row.window for row in first] == [hour]
        second = due_windows(conn, 2 * end, NOW_MICROS, 1, first[0])
        assert [row.window for row in second] == [DAILY]
        assert due_windows(conn, 2 * end, NOW_MICROS, 1, second[0]) == []
        close_window(conn, first[0].window_id)
        assert due(2 * end) == [hour.window, DAILY.window]
        archive_window(conn, first[0].window_id, None)
        assert due(2 * end) == [DAILY.window]


def test_expired_windows_go_in_steps(pool: Pool) -> None:
    end = MIDNIGHT + DAY
    with pool.connection() as conn:
        key = add_board(conn, late_grace=5, retention={WindowKind.DAILY: 10})
        fill(conn, key, ALL, mixed(20))
        row = archive(conn, key, DAILY, mixed(20))
        assert expired_windows(conn, end + 10_000_000 - 1, 9) == []
        assert expired_windows(conn, end + 10_000_000, 9) == [row]
        assert expired_windows(conn, end + 10_000_000, 9, row) == []
    steps = []
    while not steps or not steps[-1]:
        with pool.connection() as conn:
            steps.append(delete_window(conn, row.window_id, 8))
    assert steps == [False, False, True]
    with pool.connection() as conn:
        assert find_window(conn, key, DAILY.window) is None
        assert stored(conn, row) == []
        assert stored(conn, window_of(conn, key, ALL)) == by_member(mixed(20))
        assert delete_window(conn, row.window_id, 8)


def test_windows_are_listed_newest_first(pool: Pool) -> None:
    hours = [Window(f"2025-11-23T{at:02}", WindowKind.HOURLY, at, at + 1) for at in range(5)]
    twins = [Window(name, WindowKind.SEASON, 2, 9) for name in ("spring", "Äther")]
    with pool.connection() as conn:
        key = add_board(conn)
        for window in [*hours, *twins, ALL, DAILY]:
            fill(conn, key, window, [Standing("ann", 1)])
        fill(conn, add_board(conn, "post:43"), ALL, [Standing("ann", 1)])

        def listed(size: int, kind: WindowKind | None) -> list[Window]:
            found: list[Window] = []
            while more := window_rows(conn, key, size, kind, found[-1] if found else None):
                found += [row.window for row in more]
            return found

        expected = [ALL, DAILY, hours[4], hours[3], twins[1], twins[0], *hours[2::-1]]
        assert listed(2, None) == listed(99, None) == expected
        assert listed(2, WindowKind.HOURLY) == hours[::-1]
        assert listed(2, WindowKind.ALL_TIME) == [ALL]
        assert listed(2, WindowKind.MONTHLY) == []


def ranking_of(conn: BoundedConnection, row: WindowRow) -> list[tuple[str, int, int, int]]:
    """Member and all three ranks of each entry, by reading them."""
    methods = [page(conn, row.window_id, 0, 9999, method) for method in RankMethod]
    assert [at.ordinal for at in methods[0]] == list(range(1, len(methods[0]) + 1))

    def ranks(*found: RankedEntry) -> tuple[str, int, int, int]:
        ordinal, by_competition, by_density = (at.entry.rank for at in found)
        return found[0].entry.member, ordinal, by_competition, by_density

    return [ranks(*found) for found in zip(*methods, strict=True)]


@pytest.mark.parametrize(("sort_order", "tie_break"), ORDERS)
def test_ranks_close_up_behind_those_who_go(
    pool: Pool, sort_order: SortOrder, tie_break: TieBreak
) -> None:
    left = [*mixed(40), Standing("top", 99), Standing("bottom", -99)]
    chance = random.Random(5)
    with pool.connection() as conn:
        key = add_board(conn, sort_order=sort_order, tie_break=tie_break)
        row = archive(conn, key, DAILY, left)
        while left:
            leaver = left.pop(chance.randrange(len(left)))
            erased = delete_member(conn, key, DAILY.window, leaver.member)
            assert erased == (1, 0, 0, {key})
            expected = ranked(left, sort_order, tie_break)
            ranks = zip(
                [entry.member for entry in expected],
                range(1, len(left) + 1),
                competition(expected),
                dense(expected),
                strict=True,
            )
            assert ranking_of(conn, row) == list(ranks)
            now = window_of(conn, key, DAILY)
            assert (now.state, now.entry_count) == (WindowState.ARCHIVED, len(left))
        assert now.mean is None


def test_the_mean_follows_a_deletion_and_the_moment_stays(pool: Pool) -> None:
    with pool.connection() as conn:
        key = add_board(conn)
        before = archive(
            conn, key, DAILY, [Standing("ann", 1), Standing("bob", 2), Standing("cy", 6)]
        )
        conn.commit()
        delete_member(conn, key, DAILY.window, "bob")
        after = window_of(conn, key, DAILY)
    assert (before.mean, after.mean) == (3.0, 3.5)
    assert before.archived_at == after.archived_at


@pytest.mark.parametrize("member", HOSTILE)
def test_a_member_goes_from_one_window_or_all(pool: Pool, member: str) -> None:
    with pool.connection() as conn:
        key, other = add_board(conn), add_board(conn, "post:43")
        given = [Standing(name, 1) for name in HOSTILE]
        for board_key in (key, other):
            fill(conn, board_key, ALL, given)
            archive(conn, board_key, DAILY, given)
        assert delete_member(conn, key, "all", member) == (0, 1, 0, {key})
        assert delete_member(conn, key, "all", member) == (0, 0, 0, frozenset())
        assert delete_member(conn, key, "none", member) == (0, 0, 0, frozenset())
        assert delete_member(conn, other, None, member) == (1, 1, 0, {other})
        assert stored(conn, window_of(conn, key, DAILY)) == by_member(given)
        left = by_member([entry for entry in given if entry.member != member])
        assert stored(conn, window_of(conn, other, ALL)) == left


@pytest.mark.parametrize("member", ["ann", HOSTILE[2], "\\N"])
def test_an_erased_member_is_nowhere(pool: Pool, member: str) -> None:
    given = [Standing(name, 1, MIDNIGHT, b"m") for name in HOSTILE]
    with pool.connection() as conn:
        keys = [add_board(conn, name) for name in ("post:42", "post:43", "post:44", "post:45")]
        theirs = add_board(conn, tenant="ann")
        for key in (*keys[:3], theirs):
            fill(conn, key, ALL, given)
            archive(conn, key, DAILY, given)
            for day in (22, 23):
                snapshots.take(conn, key, "all", date(2026, 11, day), MIDNIGHT)
        fill(conn, keys[3], ALL, [Standing("other", 1)])
        leaderboards.mark_deleted(conn, keys[2], 1, MIDNIGHT)
    with pool.connection() as conn:
        assert erase_member(conn, "acme", member) == (3, 3, 6, set(keys[:3]))
        assert erase_member(conn, "acme", member) == (0, 0, 0, frozenset())
        tables = conn.execute(
            "SELECT relname FROM pg_class WHERE relnamespace = 'tallyboard'::regnamespace"
            " AND relkind = 'r' AND relname LIKE 'leaderboard%entries'"
        ).fetchall()
        assert len(tables) == 2
        for (table,) in tables:
            query = f"SELECT count(*) FROM tallyboard.{table} WHERE member = %s"
            # Another tenant keeps its own.
            expected = 2
            assert conn.execute(query.encode(), (member,)).fetchone() == (expected,)
        for row in snapshots.list_snapshots(conn, keys[0], 9):
            found = snapshots.snapshot_entries(conn, row.snapshot_id, 0, 99)
            assert [entry.rank for entry in found] == list(range(1, len(HOSTILE)))
            assert row.entry_count == len(HOSTILE) - 1


def test_erasures_at_the_same_time_leave_no_gaps(pool: Pool) -> None:
    with pool.connection() as conn:
        keys = [add_board(conn, name) for name in ("post:42", "post:43")]
        for key in keys:
            archive(conn, key, DAILY, mixed())
            snapshots.take(conn, key, DAILY.window, date(2026, 11, 23), MIDNIGHT)

    def erase(member: str) -> int:
        with pool.connection() as conn:
            return erase_member(conn, "acme", member).archived

    with ThreadPoolExecutor(4) as threads:
        assert set(threads.map(erase, HOSTILE)) == {2}
    expected = ranked(
        [entry for entry in mixed() if entry.member not in HOSTILE],
        SortOrder.DESCENDING,
        TieBreak.EARLIEST,
    )
    with pool.connection() as conn:
        for key in keys:
            ranks = ranking_of(conn, window_of(conn, key, DAILY))
            assert [member for member, *_ in ranks] == [entry.member for entry in expected]
            assert [found[2] for found in ranks] == competition(expected)
            assert [found[3] for found in ranks] == dense(expected)
            row = snapshots.list_snapshots(conn, key, 1)[0]
            kept = snapshots.snapshot_entries(conn, row.snapshot_id, 0, 999)
            assert [entry.rank for entry in kept] == list(range(1, len(expected) + 1))


def test_erasures_from_snapshots_alone_leave_no_gaps(pool: Pool) -> None:
    days = [date(2026, 11, number) for number in range(1, 9)]
    with pool.connection() as conn:
        key = add_board(conn)
        row = archive(conn, key, DAILY, mixed())
        for day in days:
            snapshots.take(conn, key, DAILY.window, day, MIDNIGHT)
        assert delete_window(conn, row.window_id, 999)

    def erase(member: str) -> int:
        with pool.connection() as conn:
            return erase_member(conn, "acme", member).snapshots

    with ThreadPoolExecutor(4) as threads:
        assert set(threads.map(erase, HOSTILE)) == {len(days)}
    left = len(mixed()) - len(HOSTILE)
    with pool.connection() as conn:
        for head in snapshots.list_snapshots(conn, key, 99):
            kept = snapshots.snapshot_entries(conn, head.snapshot_id, 0, 999)
            assert [entry.rank for entry in kept] == list(range(1, left + 1))
            assert head.entry_count == left
