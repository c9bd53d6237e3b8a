"""Checkpoints of entries: Postgres follows Redis, whoever dies, and copies only what changed."""

import random
import threading
from typing import Any

import psycopg
import pytest

from tallyboard.v1 import operations_pb2 as ops
from tallyboard.v1.counters_pb2 import IncrementRequest
from tallyboard.v1.counters_pb2_grpc import CounterServiceStub
from tallyboard_server.checkpointer import STEP, Checkpointer
from tallyboard_server.postgres.pool import connect, open_pool
from tallyboard_server.redis.keys import (
    window_keys,
    windows_key,
)
from tallyboard_server.redis.scores import parse_record
from tests.checkpoints.scripts import take
from tests.leaderboards import live
from tests.leaderboards.live import DAY, MICROS, PARTITIONS, House, LiveBoard, at

opened, house = live.opened, live.house

NOON = at("2026-03-10T12:00")


@pytest.fixture
def checkpointer(house: House) -> Any:
    """A checkpointer of its own, for looking at what one checkpoint did."""
    house.clock.now = NOON
    with open_pool(house.settings.postgres_url) as pool:
        made = Checkpointer(house.nodes, pool, PARTITIONS)
        made.checkpoint_all()
        yield made


def in_postgres(board: LiveBoard) -> dict[tuple[str, str], tuple[float, int, bytes]]:
    """Score, moment and metadata by window and member."""
    rows = board.house.rows(
        'SELECT held."window", member, score, tallyboard.micros(updated_at), metadata'
        " FROM tallyboard.leaderboard_entries"
        " JOIN tallyboard.leaderboard_windows AS held USING (window_id) WHERE board_key = %s",
        board.key,
    )
    return {(window, member): (score, moment, data) for window, member, score, moment, data in rows}


def in_redis(board: LiveBoard) -> dict[tuple[str, str], tuple[float, int, bytes]]:
    """The same."""
    redis, found = board.house.redis, {}
    descending = board.definition().sort_order == 1
    for partition in board.partitions:
        for window in redis.smembers(windows_key(partition, board.key)):
            keys = window_keys(partition, board.key, window.decode())
            for member, data in redis.hgetall(keys.entries).items():
                if member:
                    moment, score, metadata = parse_record(data, descending)
                    found[window.decode(), member.decode()] = (score, moment, metadata)
    return found


def test_only_what_changed_is_copied(house: House, checkpointer: Checkpointer) -> None:
    board = house.new_board(windows="ALL_TIME DAILY")
    board.submit_all([(f"m{i}", i) for i in range(100)])
    assert checkpointer.checkpoint_all().entries == 200
    assert checkpointer.checkpoint_all().entries == 0
    board.submit("m1", 1000)
    board.submit("m2", -1)
    assert checkpointer.checkpoint_all().entries == 2
    assert in_postgres(board) == in_redis(board)


def test_the_call_says_how_many_entries(house: House, checkpointer: Checkpointer) -> None:
    board = house.new_board(windows="ALL_TIME DAILY", segments=4)
    board.submit_all([(f"m{i}", i) for i in range(10)])
    assert board.call("Checkpoint", ops.CheckpointRequest()).entries == 20
    assert board.call("Checkpoint", ops.CheckpointRequest()).entries == 0


@pytest.mark.parametrize("segments", [1, 4])
@pytest.mark.parametrize(("policy", "order"), [("BEST", "ASCENDING"), ("SUM", "DESCENDING")])
def test_random_traffic_ends_the_same_in_both_stores(
    house: House, checkpointer: Checkpointer, policy: str, order: str, segments: int
) -> None:
    dice = random.Random(f"{policy}{segments}")
    board = house.new_board(
        windows="ALL_TIME HOURLY",
        policy=policy,
        order=order,
        segments=segments,
        max_entries=25,
        grace=24 * 3600,
    )
    for _ in range(6):
        rows = [
            (
                f"m{dice.randrange(60)}",
                dice.choice([0.0, -1.5, 2.0**53, dice.random()]),
                house.clock.now - dice.randrange(3600 * MICROS),
                dice.randbytes(dice.randrange(20)),
            )
            for _ in range(60)
        ]
        assert board.submit_all(rows) == []
        for _ in range(3):
            board.remove(f"m{dice.randrange(60)}", dice.choice(["", "all", "current:hourly"]))
        if dice.random() < 0.7:
            checkpointer.checkpoint_all()
        house.clock.now += 3600 * MICROS
    checkpointer.checkpoint_all()
    held = in_redis(board)
    assert in_postgres(board) == held
    assert 20 <= len([window for window, _ in held if window == "all"]) <= 25


def test_partitions_with_entries_alone_are_counted(
    house: House, checkpointer: Checkpointer
) -> None:
    board = house.new_board(windows="ALL_TIME")
    checkpointer.checkpoint_all()
    board.submit_all([("ann", 1.0)])
    assert checkpointer.checkpoint_all().partitions == 1
    assert checkpointer.checkpoint_all().partitions == 0


def test_named_partitions_without_changes_are_not_counted(house: House) -> None:
    board = house.new_board(windows="ALL_TIME")
    every = ops.CheckpointRequest(partitions=range(PARTITIONS))
    board.call("Checkpoint", every)
    board.submit_all([("ann", 1.0)])
    assert board.call("Checkpoint", every).partitions == 1


def test_more_entries_than_one_step_takes(house: House, checkpointer: Checkpointer) -> None:
    board = house.new_board(windows="ALL_TIME DAILY")
    board.submit_all([(f"m{i}", i) for i in range(STEP // 2 + 500)])
    assert checkpointer.checkpoint_all().entries == STEP + 1000
    assert len(in_postgres(board)) == STEP + 1000


def test_small_steps_copy_everything(house: House, checkpointer: Checkpointer) -> None:
    board = house.new_board(windows="ALL_TIME DAILY WEEKLY")
    board.submit_all([(f"m{i}", i) for i in range(37)])
    (partition,) = board.partitions
    assert checkpointer.checkpoint_partition(partition, limit=10).entries == 111
    assert in_postgres(board) == in_redis(board)


def test_more_windows_than_one_step_takes(house: House, checkpointer: Checkpointer) -> None:
    board = house.new_board(windows="HOURLY", grace=7 * 24 * 3600)
    board.submit_all([("ann", hour, NOON - hour * 3600 * MICROS) for hour in range(30)])
    (partition,) = board.partitions
    assert checkpointer.checkpoint_partition(partition, limit=5).entries == 30
    assert in_postgres(board) == in_redis(board)


def test_nothing_stays_marked(house: House, checkpointer: Checkpointer) -> None:
    board = house.new_board(windows="ALL_TIME DAILY", segments=4)
    board.submit_all([(f"m{i}", i) for i in range(50)])
    board.remove("m1")
    checkpointer.checkpoint_all()
    kinds = {key.partition(b"}:")[2][:1] for key in house.dump_redis()}
    assert b"h" in kinds
    assert kinds.isdisjoint({b"y", b"Y", b"d", b"f", b"F"})


def test_what_a_dead_keeper_took_is_copied_by_the_next(
    house: House, checkpointer: Checkpointer
) -> None:
    board = house.new_board(windows="ALL_TIME DAILY")
    board.submit_all([("ann", 1), ("bob", 2), ("cat", 3)])
    (partition,) = board.partitions
    take(house.redis, partition)
    board.submit("ann", 5)
    board.submit("dan", 6)
    board.remove("bob")
    take(house.redis, partition)
    board.submit("eve", 7)
    assert checkpointer.checkpoint_all().entries == 8
    assert in_postgres(board) == in_redis(board)
    assert {member for _, member in in_redis(board)} == {"ann", "cat", "dan", "eve"}


def test_what_a_dead_keeper_took_in_part_is_copied_by_the_next(
    house: House, checkpointer: Checkpointer
) -> None:
    board = house.new_board(windows="ALL_TIME DAILY")
    board.submit_all([(f"m{i}", i) for i in range(20)])
    (partition,) = board.partitions
    for limit in (3, 5, 2, 9):
        take(house.redis, partition, limit=limit)
    checkpointer.checkpoint_partition(partition, limit=4)
    assert in_postgres(board) == in_redis(board)


def test_a_failed_transaction_leaves_the_marks(house: House, checkpointer: Checkpointer) -> None:
    board = house.new_board(windows="ALL_TIME")
    board.submit("ann", 1)
    url = house.settings.postgres_url
    with connect(url) as conn:
        conn.execute("ALTER TABLE tallyboard.leaderboard_entries RENAME TO elsewhere")
    with pytest.raises(psycopg.errors.UndefinedTable):
        checkpointer.checkpoint_all()
    with connect(url) as conn:
        conn.execute("ALTER TABLE tallyboard.elsewhere RENAME TO leaderboard_entries")
    assert checkpointer.checkpoint_all().entries == 1
    assert in_postgres(board) == in_redis(board)


def test_a_dead_keeper_does_not_take_back_an_archive_for_nothing(
    house: House, checkpointer: Checkpointer
) -> None:
    board = house.new_board(windows="ALL_TIME DAILY")
    board.submit_all([("ann", 1), ("bob", 2)])
    keeper = house.new_keeper()
    house.clock.now += DAY
    keeper.round()
    board.remove("ann", "2026-03-10")
    assert checkpointer.checkpoint_all().entries == 0
    assert board.windows()[-1] == ("2026-03-10", "ARCHIVED", 1)


def test_counters_and_entries_share_partitions(house: House, checkpointer: Checkpointer) -> None:
    board = house.new_board(windows="ALL_TIME")
    (partition,) = board.partitions
    names = ["post:42", "x}:h:y", "{tb:1}:h:0123456789abcdef:all", "h:a:b", "}:h:", "tb:h:all"]
    with live.grpc.insecure_channel(house.site.address) as channel:
        counters = CounterServiceStub(channel)
        for i, name in enumerate(names):
            for _ in range(PARTITIONS * 2):
                metadata = (("x-tallyboard-tenant", board.tenant),)
                counters.Increment(IncrementRequest(counter=name, delta=i + 1), metadata=metadata)
    board.submit_all([(name, i) for i, name in enumerate(names)])
    for limit in (1, 2, 3):
        take(house.redis, partition, limit=limit)
    checkpointer.checkpoint_all()
    rows = house.rows(
        "SELECT counter, value FROM tallyboard.counters WHERE tenant = %s", board.tenant
    )
    assert {name: int(value) for name, value in rows} == {
        name: PARTITIONS * 2 * (i + 1) for i, name in enumerate(names)
    }
    assert in_postgres(board) == in_redis(board)
    assert len(in_redis(board)) == len(names)


def test_two_keepers_and_traffic(house: House, checkpointer: Checkpointer) -> None:
    board = house.new_board(windows="ALL_TIME DAILY", policy="SUM", segments=4)
    over = threading.Event()
    failures: list[BaseException] = []

    def keep() -> None:
        try:
            while not over.is_set():
                checkpointer.checkpoint_all()
        except BaseException as error:
            failures.append(error)

    keepers = [threading.Thread(target=keep) for _ in range(2)]
    for thread in keepers:
        thread.start()
    for _ in range(20):
        board.submit_all([(f"m{i}", 1) for i in range(50)])
        board.remove("m7")
    over.set()
    for thread in keepers:
        thread.join(30)
    assert failures == []
    checkpointer.checkpoint_all()
    held = in_redis(board)
    assert in_postgres(board) == held
    assert held["all", "m8"][0] == 20
