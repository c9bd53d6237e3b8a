"""Whoever is erased is nowhere; whoever stays closes up."""

import uuid

import pytest

from tallyboard.v1 import leaderboards_pb2 as pb
from tallyboard.v1 import operations_pb2 as ops
from tallyboard_server.postgres.pool import connect
from tallyboard_server.redis import scripts
from tallyboard_server.redis.keys import incarnation_key, segment_of, window_keys, windows_key
from tallyboard_server.redis.scores import element_of, make_record
from tests.checkpoints.scripts import take
from tests.leaderboards import live
from tests.leaderboards.live import DAY, House, LiveBoard, at, refusal

opened, house = live.opened, live.house

NOON = at("2026-03-10T12:00")
OTHERS = ["ann", "bob", "cat", "dan"]


@pytest.fixture
def gone() -> str:
    """A member that no other test has."""
    return f"zoë:{uuid.uuid4().hex}"


def fill(board: LiveBoard, gone: str) -> None:
    """Scores of all, the one who goes in the middle, with a tie."""
    for i, member in enumerate([*OTHERS, gone]):
        score = 2 if member == gone else i
        board.submit(member, score, metadata=f"metadata of {member}".encode())


def lived_in(house: House, gone: str, segments: int) -> list[LiveBoard]:
    """Boards in every state: archived and gone from Redis, archived, open, in flight, dirty."""
    house.clock.now = NOON
    first = house.new_board(windows="ALL_TIME DAILY", segments=segments)
    boards = [first, first.sibling("other", windows="WEEKLY", segments=1, order="ASCENDING")]
    boards.append(first.sibling("idle"))
    keeper = house.new_keeper()
    keeper.round()
    for _ in range(3):
        for board in boards[:2]:
            fill(board, gone)
        keeper.round()
        house.clock.now += DAY
        keeper.round()
    first.evict("2026-03-10")
    first.call("TakeSnapshots", ops.TakeSnapshotsRequest())
    for board in boards[:2]:
        fill(board, gone)
        for partition in board.partitions:
            take(house.redis, partition)
        board.submit(gone, 2.5)
    return boards


@pytest.mark.parametrize("segments", [1, 4])
def test_erase_leaves_nothing_in_any_key_or_table(house: House, gone: str, segments: int) -> None:
    boards = lived_in(house, gone, segments)
    stranger = house.new_board()
    fill(stranger, gone)
    house.new_keeper().round()
    for board, better in zip(boards[:2], (10, -10), strict=True):
        board.submit(gone, better)
        for partition in board.partitions:
            take(house.redis, partition)
        board.submit(gone, 2 * better)  # in flight, and changed again
    erased = boards[0].erase(gone)
    where = [place for place in house.found(gone) if stranger.key not in place]
    assert stranger.scores("all")[gone] == 2
    stranger.erase(gone)
    assert house.found(gone) == [], where
    assert erased[0] == 2
    # all and today; the week of the other board.
    assert erased[1] == 3
    assert erased[2] > 3
    house.new_keeper().round()
    house.new_keeper().round()
    assert house.found(gone) == []


@pytest.mark.parametrize("segments", [1, 4])
def test_ranks_close_up_everywhere(house: House, gone: str, segments: int) -> None:
    first, other, _ = lived_in(house, gone, segments)
    first.erase(gone)
    days = ["2026-03-10", "2026-03-11", "2026-03-12", "2026-03-13", "all"]
    for window in days:
        page = first.page(window, rank_method=3)
        assert [(e.member, e.rank) for e in page.entries] == [
            ("dan", 1),
            ("cat", 2),
            ("bob", 3),
            ("ann", 4),
        ]
        assert page.total_size == 4
    assert list(other.scores("2026-W11")) == ["ann", "bob", "cat", "dan"]
    for snapshot in first.snapshots():
        request = ops.GetSnapshotRequest(
            leaderboard_id="lives", window=snapshot.window, day=snapshot.day
        )
        answer = first.call("GetSnapshot", request)
        assert [entry.rank for entry in answer.entries] == list(range(1, 5))
        assert answer.snapshot.entry_count == 4
    house.new_keeper().round()
    assert list(first.scores("2026-03-10")) == ["dan", "cat", "bob", "ann"]


def test_a_second_erase_finds_nothing(house: House, gone: str) -> None:
    boards = lived_in(house, gone, 1)
    request = pb.EraseMemberRequest(member=gone, request_id="6d1e6c1e-3c59-4c8e-9f0e-b1a6c2e0a001")
    assert not boards[0].call("EraseMember", request).duplicate
    assert boards[0].call("EraseMember", request).duplicate
    assert boards[0].erase(gone) == (0, 0, 0)


def test_who_was_erased_may_come_back(house: House, gone: str) -> None:
    board = lived_in(house, gone, 1)[0]
    board.erase(gone)
    assert board.submit(gone, 100) == ["all", "2026-03-13"]
    assert next(iter(board.scores("all"))) == gone
    house.new_keeper().round()
    assert board.get("all", gone).entry.rank == 1


@pytest.mark.parametrize("segments", [1, 4])
def test_a_load_that_was_cut_short_hides_nobody(house: House, gone: str, segments: int) -> None:
    """An import loads an archived window; what it left half way is looked at, too."""
    house.clock.now = NOON
    board = house.new_board(windows="ALL_TIME DAILY", segments=segments)
    fill(board, gone)
    keeper = house.new_keeper()
    keeper.checkpoint()
    house.clock.now += DAY
    keeper.round()
    board.evict("2026-03-10")
    keeper.round()
    load_one(board, "2026-03-10", gone)
    assert board.get("2026-03-10", "ann").total_size == 5
    board.erase(gone)
    assert house.found(gone) == []
    assert board.imported(("fay", 10, NOON)) == []
    assert list(board.scores("2026-03-10")) == ["fay", "dan", "cat", "bob", "ann"]


def load_one(board: LiveBoard, window: str, member: str) -> None:
    """What a worker leaves that ends after it has loaded one entry."""
    redis = board.house.redis
    partition = board.partitions[segment_of(member, len(board.partitions))]
    keys = window_keys(partition, board.key, window)
    named = (
        incarnation_key(partition),
        keys.ranking,
        keys.entries,
        windows_key(partition, board.key),
    )
    redis.srem(named[-1], window)
    incarnation = redis.get(named[0])
    entry = (
        element_of(member, NOON, descending=True, earliest=True),
        member,
        make_record(NOON, 2.0, b"", True),
    )
    for step in (("first",), ("more", *entry)):
        arguments = (incarnation, window, 3600, *step)
        assert redis.eval(scripts.LOAD.source, len(named), *named, *arguments) == [b"ok"]


@pytest.mark.parametrize("segments", [1, 4])
def test_an_erase_that_failed_half_way_is_completed_by_the_next_checkpoint(
    house: House, gone: str, segments: int
) -> None:
    house.clock.now = NOON
    board = house.new_board(windows="ALL_TIME DAILY", segments=segments)
    fill(board, gone)
    keeper = house.new_keeper()
    keeper.round()
    with connect(house.settings.postgres_url) as conn:
        conn.execute("ALTER TABLE tallyboard.leaderboard_entries RENAME TO elsewhere")
    with refusal("INTERNAL"):
        board.erase(gone)
    with connect(house.settings.postgres_url) as conn:
        conn.execute("ALTER TABLE tallyboard.elsewhere RENAME TO leaderboard_entries")
    assert gone not in board.scores("all")
    assert house.found(gone) != []
    keeper.round()
    assert house.found(gone) == []


@pytest.mark.parametrize("segments", [1, 4])
def test_delete_entry_of_one_window_and_of_all(house: House, gone: str, segments: int) -> None:
    board = lived_in(house, gone, segments)[0]
    assert board.remove(gone, "2026-03-10") == (0, 1)
    assert board.remove(gone, "2026-03-10") == (0, 0)
    assert board.remove(gone, "2026-03-12") == (0, 1)
    assert board.remove(gone, "current:daily") == (1, 0)
    assert gone in board.scores("2026-03-11")
    assert gone in board.scores("all")
    assert board.remove(gone) == (1, 1)
    for window in ("2026-03-10", "2026-03-11", "2026-03-12", "2026-03-13", "all"):
        assert list(board.scores(window)) == ["dan", "cat", "bob", "ann"]
    assert any(snapshot.rank for snapshot in board.snapshots(member=gone))
    with refusal("WINDOW_NOT_FOUND"):
        board.remove(gone, "2020-01-01")
    with refusal("WINDOW_INVALID"):
        board.remove(gone, "2026-W10")
    house.new_keeper().round()
    for window in ("2026-03-10", "2026-03-12", "all"):
        assert list(board.scores(window)) == ["dan", "cat", "bob", "ann"]


def test_a_deleted_board_leaves_nothing(house: House, gone: str) -> None:
    boards = lived_in(house, gone, 4)
    key = boards[0].key
    boards[1].delete()
    answer = boards[0].delete()
    # 5 in all time and in each of 4 days.
    assert answer.deleted_entries == 25
    house.new_keeper().round()
    left = [place for place in house.found(key) if "leaderboard_requests" not in place]
    assert all(":g:" in place for place in left), left  # the fence, for a day
    assert house.found(gone) == []
    assert all(house.redis.ttl(k) > 0 for k in house.dump_redis() if key.encode() in k)
    with refusal("LEADERBOARD_NOT_FOUND"):
        boards[0].page("all")
    boards[0].create(windows="ALL_TIME DAILY")
    assert boards[0].windows() == []
    assert boards[0].snapshots() == []
    assert boards[0].submit("ann", 1) == ["all", "2026-03-13"]
    assert boards[0].scores("all") == {"ann": 1}
    house.new_keeper().round()
    assert boards[0].windows() == [("all", "OPEN", 1), ("2026-03-13", "OPEN", 1)]
