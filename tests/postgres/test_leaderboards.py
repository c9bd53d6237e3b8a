"""Definitions: one of an id, changed by one at a time, and gone without a trace."""

import base64
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import date
from typing import Any

import psycopg
import pytest

from tallyboard_server.errors import Aborted, AlreadyExists, InvalidArgument, NotFound
from tallyboard_server.leaderboards.model import SortOrder, TieBreak, Window, WindowKind
from tallyboard_server.postgres import leaderboards, snapshots
from tallyboard_server.postgres.entries import write_entries
from tallyboard_server.postgres.pool import BoundedPool
from tests.postgres.boards import (
    ALL,
    DAILY,
    DAY,
    HOSTILE,
    MIDNIGHT,
    NOW,
    Standing,
    add_board,
    archive,
    board,
    fill,
    gone,
    values,
    window_of,
)

Pool = BoundedPool


@pytest.mark.parametrize("name", HOSTILE)
def test_a_definition_comes_back_as_it_went(pool: Pool, name: str) -> None:
    row = board(
        name,
        definition=json.dumps({"name": name}),
        sort_order=SortOrder.ASCENDING,
        tie_break=TieBreak.MEMBER_ID,
        late_grace=0,
        retention={WindowKind.DAILY: 86_400, WindowKind.HOURLY: 60},
        created_at=-2_208_988_800_000_001,
        updated_at=4_102_444_799_999_999,
    )
    with pool.connection() as conn:
        leaderboards.insert(conn, row)
        assert leaderboards.find(conn, "acme", name) == row
        assert leaderboards.find_by_keys(conn, [row.board_key, "none"]) == [row]


def test_another_tenant_finds_nothing(pool: Pool) -> None:
    with pool.connection() as conn:
        add_board(conn)
        assert leaderboards.find(conn, "acm", "post:42") is None


def test_an_id_is_taken_once(pool: Pool) -> None:
    with pool.connection() as conn:
        add_board(conn)
        with pytest.raises(AlreadyExists) as raised:
            leaderboards.insert(conn, board(board_key="other"))
    assert raised.value.reason == "LEADERBOARD_ALREADY_EXISTS"


def test_tenants_do_not_share_ids(pool: Pool) -> None:
    with pool.connection() as conn:
        add_board(conn)
        add_board(conn, tenant="ann")
        assert leaderboards.count_boards(conn, ["acme", "ann", "x"]) == {"acme": 1, "ann": 1}


def test_of_many_that_create_one_id_one_does(pool: Pool) -> None:
    def create(number: int) -> bool:
        with pool.connection() as conn:
            try:
                leaderboards.insert(conn, board(board_key=str(number)))
            except AlreadyExists:
                return False
            return True

    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(create, range(8))) == 1


def test_an_update_replaces_all(pool: Pool) -> None:
    with pool.connection() as conn:
        key = add_board(conn)
        leaderboards.mark_synced(conn, key, 1)
        changed = board(
            definition="{}", revision=2, late_grace=5, updated_at=7, retention={WindowKind.DAILY: 9}
        )
        leaderboards.update(conn, changed, 1)
        assert leaderboards.find(conn, "acme", "post:42") == changed


def test_an_update_of_another_revision_is_aborted(pool: Pool) -> None:
    with pool.connection() as conn:
        add_board(conn)
        with pytest.raises(Aborted) as raised:
            leaderboards.update(conn, board(revision=3), 2)
        assert leaderboards.find(conn, "acme", "post:42") == board()
    assert raised.value.reason == "ETAG_MISMATCH"


def test_of_many_updates_of_one_revision_one_counts(pool: Pool) -> None:
    with pool.connection() as conn:
        add_board(conn)

    def change(number: int) -> bool:
        with pool.connection() as conn:
            try:
                leaderboards.update(conn, board(revision=2, definition=str(number)), 1)
            except Aborted:
                return False
            return True

    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(change, range(8))) == 1


def test_an_update_moves_the_ends_of_windows(pool: Pool) -> None:
    season = Window("spring", WindowKind.SEASON, MIDNIGHT, MIDNIGHT + DAY)
    with pool.connection() as conn:
        key = add_board(conn, retention={WindowKind.DAILY: 100})
        for window in (DAILY, season, ALL):
            fill(conn, key, window, [Standing("ann", 1)])
        moved = replace(season, ends_at=MIDNIGHT + 3 * DAY)
        changed = board(revision=2, late_grace=10, retention={WindowKind.SEASON: 20})
        leaderboards.update(conn, changed, 1, [moved])
        rows = [window_of(conn, key, window) for window in (DAILY, season, ALL)]
    assert rows[1].window == moved
    assert [(row.closes_at, row.expires_at) for row in rows] == [
        (MIDNIGHT + DAY + 10_000_000, None),
        (MIDNIGHT + 3 * DAY + 10_000_000, MIDNIGHT + 3 * DAY + 20_000_000),
        (None, None),
    ]


def test_a_retention_beyond_the_calendar_is_for_long(pool: Pool) -> None:
    with pool.connection() as conn:
        key = add_board(conn, retention={WindowKind.DAILY: 10**18}, late_grace=10**18)
        row = fill(conn, key, DAILY, [Standing("ann", 1)])
    assert row.expires_at == MIDNIGHT + DAY + leaderboards.LONGEST * 10**6


def test_a_deleted_board_frees_its_id(pool: Pool) -> None:
    with pool.connection() as conn:
        key = add_board(conn)
        deleted = leaderboards.mark_deleted(conn, key, 1, MIDNIGHT + 3)
        assert (deleted.revision, deleted.synced, deleted.deleted_at) == (2, False, MIDNIGHT + 3)
        assert leaderboards.find(conn, "acme", "post:42") is None
        assert leaderboards.find_by_keys(conn, [key]) == [deleted]
        leaderboards.insert(conn, board(board_key="other"))


@pytest.mark.parametrize(
    ("revision", "error"), [(1, NotFound), (2, NotFound)], ids=["old", "deletion"]
)
def test_a_deleted_board_does_not_change(pool: Pool, revision: int, error: type[Exception]) -> None:
    with pool.connection() as conn:
        key = add_board(conn)
        leaderboards.mark_deleted(conn, key, 1, MIDNIGHT)
        with pytest.raises(error):
            leaderboards.update(conn, board(revision=3), revision)
        with pytest.raises(error):
            leaderboards.mark_deleted(conn, key, revision, MIDNIGHT)


def test_a_deletion_of_another_revision_is_aborted(pool: Pool) -> None:
    with pool.connection() as conn:
        key = add_board(conn)
        with pytest.raises(Aborted):
            leaderboards.mark_deleted(conn, key, 2, MIDNIGHT)


def ids(pool: Pool, prefix: str, size: int = 2) -> list[str]:
    found, cursor = [], None
    with pool.connection() as conn:
        while True:
            page = leaderboards.list_boards(conn, "acme", prefix, size, cursor)
            assert len(page.rows) == size or page.next_cursor is None
            found += [row.leaderboard_id for row in page.rows]
            cursor = page.next_cursor
            if cursor is None:
                return found


@pytest.mark.parametrize("prefix", ["", "a", "a%", "a_", "\U0010ffff", "zz"])
def test_lists_go_by_bytes_and_prefix(pool: Pool, prefix: str) -> None:
    given = ["a", "a%b", "a_b", "ab", "Ab", "äb", "\ud7ffb", "\ue000", "\U0010ffffb", "b"]
    with pool.connection() as conn:
        for name in given:
            add_board(conn, name)
        add_board(conn, "ac", tenant="ann")
        leaderboards.mark_deleted(conn, add_board(conn, "abc"), 1, MIDNIGHT)
    expected = sorted((name for name in given if name.startswith(prefix)), key=str.encode)
    assert ids(pool, prefix) == expected


def cursor_of(*parts: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(parts).encode()).decode()


@pytest.mark.parametrize(
    "cursor",
    ["x", "ä", cursor_of("p", "a"), cursor_of("", 5), cursor_of("", "\0"), cursor_of("", "\ud800")],
)
def test_a_foreign_cursor_is_refused(pool: Pool, cursor: str) -> None:
    with pool.connection() as conn, pytest.raises(InvalidArgument) as raised:
        leaderboards.list_boards(conn, "acme", "", 3, cursor)
    assert raised.value.reason == "PAGE_INVALID"


def test_redis_is_told_of_each_revision_once(pool: Pool) -> None:
    with pool.connection() as conn:
        key = add_board(conn)
        other = add_board(conn, "post:43")
        assert [row.board_key for row in leaderboards.unsynced(conn, "", 9)] == [key, other]
        assert [row.board_key for row in leaderboards.unsynced(conn, key, 9)] == [other]
        assert leaderboards.mark_synced(conn, key, 1)
        leaderboards.update(conn, board("post:43", revision=2), 1)
        assert not leaderboards.mark_synced(conn, other, 1)
        assert [row.revision for row in leaderboards.unsynced(conn, "", 9)] == [2]


def test_a_deletion_is_told_too(pool: Pool) -> None:
    with pool.connection() as conn:
        key = add_board(conn)
        leaderboards.mark_synced(conn, key, 1)
        leaderboards.mark_deleted(conn, key, 1, MIDNIGHT)
        assert not leaderboards.mark_synced(conn, key, 1)
        assert [row.deleted_at for row in leaderboards.unsynced(conn, "", 9)] == [MIDNIGHT]
        assert leaderboards.purgeable(conn, 9) == []
        leaderboards.mark_synced(conn, key, 2)
        assert [row.board_key for row in leaderboards.purgeable(conn, 9)] == [key]


def test_an_emptied_redis_is_told_all(pool: Pool) -> None:
    with pool.connection() as conn:
        keys = [add_board(conn, name) for name in "abc"]
        leaderboards.mark_synced(conn, keys[0], 1)
        assert leaderboards.mark_unsynced(conn) == 1
        leaderboards.mark_deleted(conn, keys[1], 1, MIDNIGHT)
        assert [row.board_key for row in leaderboards.live_boards(conn, "", 1)] == keys[:1]
        assert [row.board_key for row in leaderboards.live_boards(conn, keys[0], 9)] == keys[2:]
        assert len(leaderboards.unsynced(conn, "", 9)) == 3


def test_whether_there_are_entries(pool: Pool) -> None:
    with pool.connection() as conn:
        key = add_board(conn)
        assert not leaderboards.has_entries(conn, key)
        fill(conn, key, ALL, [Standing("ann", 1)])
        assert leaderboards.has_entries(conn, key)
        write_entries(conn, gone(key, ALL, "ann"), NOW)
        assert not leaderboards.has_entries(conn, key)


def test_a_repeat_is_recognised(pool: Pool) -> None:
    with pool.connection() as conn:
        assert leaderboards.claim_request(conn, "acme", "id", b"\0f", "first") is None
        assert leaderboards.claim_request(conn, "ann", "id", b"x", "hers") is None
    with pool.connection() as conn:
        assert leaderboards.claim_request(conn, "acme", "id", b"\0f", "second") == "first"
        with pytest.raises(InvalidArgument) as raised:
            leaderboards.claim_request(conn, "acme", "id", b"g", "second")
    assert raised.value.reason == "REQUEST_ID_REUSED"


def test_a_change_that_fails_claims_nothing(pool: Pool) -> None:
    with pool.connection() as conn:
        add_board(conn)

    def create() -> None:
        with pool.connection() as conn:
            leaderboards.claim_request(conn, "acme", "id", b"f", "first")
            leaderboards.insert(conn, board(board_key="first"))

    with pytest.raises(AlreadyExists):
        create()
    with pool.connection() as conn:
        assert leaderboards.claim_request(conn, "acme", "id", b"other", "second") is None


def test_of_repeats_at_the_same_time_one_is_the_first(pool: Pool) -> None:
    def claim(number: int) -> str | None:
        with pool.connection() as conn:
            return leaderboards.claim_request(conn, "acme", "id", b"f", str(number))

    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(claim, range(8)))
    first = found.index(None)
    assert [other for at, other in enumerate(found) if at != first] == [str(first)] * 7


def test_old_requests_are_forgotten(pool: Pool) -> None:
    with pool.connection() as conn:
        for name in "abc":
            leaderboards.claim_request(conn, "acme", name, b"f", "key")
        conn.execute(
            "UPDATE tallyboard.leaderboard_requests SET created_at = created_at - interval '1 hour'"
            " WHERE request_id <> 'c'"
        )
        assert leaderboards.forget_requests(conn, 600, 1) == 1
        assert leaderboards.forget_requests(conn, 600, 9) == 1
        assert leaderboards.claim_request(conn, "acme", "c", b"f", "other") == "key"


def counts(conn: psycopg.Connection[Any]) -> list[int]:
    tables = ("", "_windows", "_entries", "_snapshots", "_snapshot_entries")
    rows = [
        conn.execute(
            f"SELECT count(*) FROM tallyboard.leaderboard{table or 's'}".encode()
        ).fetchone()
        for table in tables
    ]
    return [row[0] for row in rows if row]


@pytest.mark.parametrize("limit", [1, 3, 1000])
def test_a_purged_board_leaves_nothing(pool: Pool, limit: int) -> None:
    with pool.connection() as conn:
        for name in ("post:42", "post:43"):
            key = add_board(conn, name)
            fill(conn, key, ALL, [Standing(member, 1) for member in HOSTILE])
            archive(conn, key, DAILY, [Standing(member, 1) for member in HOSTILE])
            snapshots.take(conn, key, "all", date(2026, 11, 23), MIDNIGHT)
        before = counts(conn)
        leaderboards.mark_deleted(conn, key, 1, MIDNIGHT)
    steps = 1
    while True:
        with pool.connection() as conn:
            rows = sum(counts(conn))
            finished = leaderboards.purge(conn, key, limit)
            assert rows - sum(counts(conn)) <= limit + 1
        if finished:
            break
        steps += 1
    assert steps >= 3 * len(HOSTILE) / limit
    with pool.connection() as conn:
        assert counts(conn) == [number // 2 for number in before]
        assert leaderboards.find_by_keys(conn, [key]) == []


def test_a_live_board_is_not_purged(pool: Pool) -> None:
    with pool.connection() as conn:
        key = add_board(conn)
        fill(conn, key, ALL, [Standing("ann", 1)])
        assert leaderboards.purge(conn, key, 9)
        assert counts(conn) == [1, 1, 1, 0, 0]


def test_a_checkpoint_from_before_the_deletion_is_waited_for(pool: Pool) -> None:
    with pool.connection() as conn:
        key = add_board(conn)
    with ThreadPoolExecutor(1) as threads:
        with pool.connection() as conn:
            write_entries(conn, values(key, ALL, [Standing("ann", 1)]), NOW)

            def delete() -> bool:
                with pool.connection() as other:
                    leaderboards.mark_deleted(other, key, 1, MIDNIGHT)
                    return leaderboards.purge(other, key, 9)

            deleting = threads.submit(delete)
        assert deleting.result(30)
    with pool.connection() as conn:
        assert counts(conn) == [0, 0, 0, 0, 0]
