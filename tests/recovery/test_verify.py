"""Comparison of Redis with Postgres: what was planted is found and named, and nothing else."""

import dataclasses
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import Any

import grpc
import pytest

from tallyboard.v1 import operations_pb2 as ops
from tallyboard.v1.counters_pb2 import (
    BatchIncrementRequest,
    CounterDelta,
    DeleteCounterRequest,
    IncrementRequest,
)
from tallyboard.v1.counters_pb2_grpc import CounterServiceStub
from tallyboard_server.checkpointer import Checkpointer
from tallyboard_server.embedded import EmbeddedPostgres, EmbeddedRedis
from tallyboard_server.errors import Unavailable
from tallyboard_server.postgres.locks import lock_for_transaction
from tallyboard_server.postgres.pool import connect, open_pool
from tallyboard_server.recovery.findings import Difference, EntryName, Verified
from tallyboard_server.recovery.verify import Verifier
from tallyboard_server.redis.keys import (
    dirty_key,
    incarnation_key,
    shard_key,
    wide_key,
    window_keys,
)
from tallyboard_server.redis.nodes import control_client
from tallyboard_server.redis.scores import element_of, make_record
from tallyboard_server.settings import Settings
from tests.leaderboards import live
from tests.leaderboards.live import DAY, PARTITIONS, House, LiveBoard, at
from tests.postgres.support import new_database
from tests.waiting import wait_for

opened, house = live.opened, live.house

NOON = at("2026-03-10T12:00")
HOSTILE = [
    "}:c:",
    "{tb:1}:c:4:acme:x",
    "w5",
    "x",
    "a\tb".replace("\t", " "),
    "ünïcödé/☃",
    "'; --",
    "%s",
    "*?[a]",
]
ALL = range(PARTITIONS)
TOTAL = "the total in Postgres is not the sum of its parts"

Metadata = tuple[tuple[str, str], ...]


class Bench:
    """Stores of a service, its calls, and comparisons of the two."""

    def __init__(self, house: House, pool: Any, counters: CounterServiceStub) -> None:
        self.house = house
        self.redis = house.redis
        self.checkpointer = Checkpointer(house.nodes, pool, PARTITIONS)
        self.verifier = Verifier(house.nodes, pool, self.checkpointer, PARTITIONS, house.clock)
        self.counters = counters

    def verify(self, most: int = 100) -> list[Verified]:
        """What the comparison of all partitions finds."""
        return list(self.verifier.verify(ALL, most))

    def differences(self) -> list[Difference]:
        """The same, the differences only."""
        found = self.verify()
        differences = [one for result in found for one in result.differences]
        assert len(differences) == sum(result.difference_count for result in found)
        return differences

    def between_stores(self) -> list[Difference]:
        """The same without totals in Postgres, which change with their parts."""
        return [one for one in self.differences() if one.detail != TOTAL]

    def add(self, counter: str, delta: int, tenant: str = "acme") -> None:
        """Adds to a counter."""
        request = IncrementRequest(counter=counter, delta=delta)
        self.counters.Increment(request, timeout=10, metadata=_of(tenant))

    def sql(self, query: str, *arguments: Any) -> None:
        """Changes Postgres behind the back of everyone."""
        with connect(self.house.settings.postgres_url) as conn:
            assert conn.execute(query, arguments).rowcount > 0

    def shard(self, counter: str, tenant: str = "acme") -> tuple[int, str]:
        """Where a counter with one shard that holds something is."""
        ((partition, key),) = [
            (number, shard_key(number, tenant, counter))
            for number in ALL
            if self.redis.exists(shard_key(number, tenant, counter))
        ]
        return partition, key


def _of(tenant: str) -> Metadata:
    return (("x-tallyboard-tenant", tenant),)


@pytest.fixture
def bench(house: House) -> Iterator[Bench]:
    """Nothing but what the test puts there."""
    with cleared(house) as found:
        yield found


@pytest.fixture
def journaled(redis_server: EmbeddedRedis, postgres_server: EmbeddedPostgres) -> Iterator[Bench]:
    """The same where every write is journaled first."""
    url = f"{redis_server.url}?db=6"
    with new_database(postgres_server) as database, ExitStack() as own:
        settings = dataclasses.replace(
            Settings(),
            redis_url=url,
            postgres_url=database,
            partitions=PARTITIONS,
            durability="journaled",
        )
        own.enter_context(closing(control_client(url))).flushdb()
        yield own.enter_context(cleared(House(settings, own)))


@contextmanager
def cleared(house: House) -> Iterator[Bench]:
    """A bench without counters."""
    house.clock.now = NOON
    with connect(house.settings.postgres_url) as conn:
        conn.execute("TRUNCATE tallyboard.counter_shards, tallyboard.counters")
        conn.execute("UPDATE tallyboard.partitions SET state = 'OPEN'")
    keys = list(house.redis.scan_iter("{tb:*}:[cwd]*"))
    if keys:
        house.redis.delete(*keys)
    with (
        open_pool(house.settings.postgres_url) as pool,
        grpc.insecure_channel(house.site.address) as channel,
    ):
        yield Bench(house, pool, CounterServiceStub(channel))


def plant_score(board: LiveBoard, member: str, score: float, moment: int = NOON) -> None:
    """Sets an entry in Redis, ranking included, behind the back of everyone."""
    keys = _keys(board)
    board.house.redis.zadd(
        keys.ranking, {element_of(member, moment, descending=True, earliest=True): score}
    )
    board.house.redis.hset(keys.entries, member, make_record(moment, score, b"", True))


def _keys(board: LiveBoard, window: str = "all") -> Any:
    (partition,) = board.partitions
    return window_keys(partition, board.key, window)


# Counters


def test_counts_what_it_compared(bench: Bench) -> None:
    board = bench.house.new_board(windows="ALL_TIME DAILY")
    board.submit_all([("ann", 1), ("bob", 2)])
    for name in ("post:42", "post:43", "post:44"):
        bench.add(name, 1)
    found = bench.verify()
    assert [result.partition for result in found] == list(ALL)
    assert sum(result.counters for result in found) == 3
    assert sum(result.entries for result in found) == 4
    assert sum(result.difference_count for result in found) == 0


def test_a_difference_of_one_in_redis_is_named(bench: Bench) -> None:
    bench.add("post:42", 41)
    bench.add("post:43", 41)
    bench.verify()
    partition, key = bench.shard("post:42")
    bench.redis.set(key, 42)
    (found,) = [result for result in bench.verify() if result.difference_count]
    assert found.partition == partition
    assert found.differences == [Difference("acme", "post:42", "42", "41", "the values differ")]


def test_a_difference_of_one_in_postgres_is_named(bench: Bench) -> None:
    bench.add("post:42", 41)
    bench.verify()
    bench.sql("UPDATE tallyboard.counter_shards SET value = value - 1")
    assert bench.between_stores() == [
        Difference("acme", "post:42", "41", "40", "the values differ")
    ]


def test_a_counter_that_redis_lost_is_named(bench: Bench) -> None:
    bench.add("post:42", 41)
    bench.verify()
    bench.redis.delete(bench.shard("post:42")[1])
    assert bench.differences() == [Difference("acme", "post:42", None, "41", "Redis lacks it")]


def test_a_counter_that_postgres_lost_is_named(bench: Bench) -> None:
    bench.add("post:42", 41)
    bench.verify()
    bench.sql("DELETE FROM tallyboard.counter_shards")
    assert bench.between_stores() == [
        Difference("acme", "post:42", "41", None, "Postgres lacks it")
    ]


def test_an_extra_counter_is_named_once(bench: Bench) -> None:
    bench.redis.set(shard_key(3, "acme", "post:42"), 7)
    bench.redis.set(wide_key(4, "acme", "post:42"), 8)
    assert bench.differences() == [
        Difference("acme", "post:42", "7", None, "Postgres lacks it"),
        Difference("acme", "post:42", "8", None, "Postgres lacks it"),
    ]


def test_what_is_no_number_is_named(bench: Bench) -> None:
    bench.add("post:42", 41)
    bench.verify()
    bench.redis.set(bench.shard("post:42")[1], "many")
    (found,) = bench.differences()
    assert (found.redis, found.postgres) == (None, "41")


def test_wide_and_deleted_counters_agree(bench: Bench) -> None:
    bench.add("wide", 2**60)
    bench.add("gone", 2**60)
    bench.counters.DeleteCounter(
        DeleteCounterRequest(counter="gone"), timeout=10, metadata=_of("acme")
    )
    assert bench.differences() == []


def test_a_shard_that_was_thawed_is_named(bench: Bench) -> None:
    bench.add("wide", 5)
    bench.add("wide", 2**60)
    bench.verify()
    for number in ALL:
        if bench.redis.get(shard_key(number, "acme", "wide")) == b"w5":
            bench.redis.set(shard_key(number, "acme", "wide"), "5")
    (found,) = bench.differences()
    assert (found.redis, found.postgres) == ("5", "5")
    assert "wide" in found.detail


def test_a_wide_value_that_differs_is_named(bench: Bench) -> None:
    bench.add("wide", 2**60)
    bench.verify()
    (key,) = bench.redis.scan_iter("{tb:*}:w:*")
    bench.redis.incr(key)
    assert bench.differences() == [
        Difference("acme", "wide", str(2**60 + 1), str(2**60), "the values differ")
    ]


def test_what_is_dirty_is_merely_newer(bench: Bench) -> None:
    bench.add("post:42", 41)
    bench.verify()
    partition, key = bench.shard("post:42")
    result = Verified(partition, 100)
    steps = bench.verifier.compare(result)
    next(steps)  # the checkpoint
    bench.redis.set(key, 42)
    bench.redis.sadd(dirty_key(partition), key)
    for _ in steps:
        pass
    assert result.difference_count == 0
    bench.redis.srem(dirty_key(partition), key)
    assert len(bench.differences()) == 1


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_of_counters(bench: Bench, name: str) -> None:
    bench.add(name, 5, tenant="h:o:s")
    assert bench.between_stores() == []
    _, key = bench.shard(name, "h:o:s")
    bench.redis.set(key, 6)
    assert bench.between_stores() == [Difference("h:o:s", name, "6", "5", "the values differ")]
    bench.sql("DELETE FROM tallyboard.counter_shards")
    assert bench.between_stores() == [Difference("h:o:s", name, "6", None, "Postgres lacks it")]


def test_no_more_than_was_asked_for_is_listed(bench: Bench) -> None:
    for i in range(30):
        bench.redis.set(shard_key(3, "acme", f"post:{i}"), 7)
    found = bench.verify(most=10)[3]
    assert (found.difference_count, len(found.differences)) == (30, 10)


def test_more_counters_than_a_page(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tallyboard_server.recovery.counter_check._PAGE", 3)
    for i in range(40):
        bench.add(f"post:{i}", i + 1)
    bench.verify()
    bench.redis.set(bench.shard("post:39")[1], 0)
    bench.redis.set(shard_key(0, "acme", "extra"), 1)
    found = bench.verify()
    assert sum(result.counters for result in found) == 40
    assert sum(result.difference_count for result in found) == 2


@pytest.mark.parametrize(
    ("change", "parts", "total"),
    [
        ("UPDATE tallyboard.counters SET shards_value = shards_value + 1", "41", "42"),
        ("UPDATE tallyboard.counters SET wides = 1, deleted_wides = 1", "41", None),
        ("DELETE FROM tallyboard.counters", "41", None),
    ],
)
def test_a_wrong_total_is_named(
    bench: Bench, change: str, parts: str | None, total: str | None
) -> None:
    bench.add("post:42", 41)
    bench.verify()
    bench.sql(change)
    assert bench.differences() == [Difference("acme", "post:42", parts, total, TOTAL)]


def test_a_total_without_parts_is_named(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tallyboard_server.recovery.counter_check._PAGE", 3)
    for i in range(20):
        bench.add(f"post:{i}", i + 1)
    bench.verify()
    bench.sql(
        "INSERT INTO tallyboard.counters (tenant, counter, shards, shards_value, wides,"
        " wides_value, deleted_wides, updated_at) VALUES ('acme', 'zero', 1, 3, 0, 0, 0, now()),"
        " ('a', 'first', 1, 4, 0, 0, 0, now())"
    )
    bench.sql("UPDATE tallyboard.counters SET shards_value = 0 WHERE counter = 'post:7'")
    found = {(one.subject, one.redis, one.postgres) for one in bench.differences()}
    assert found == {("zero", None, "3"), ("first", None, "4"), ("post:7", "8", "0")}


# Entries


def test_a_difference_in_a_score_is_named(bench: Bench) -> None:
    board = bench.house.new_board(windows="ALL_TIME DAILY")
    board.submit("ann", 5, NOON)
    bench.verify()
    plant_score(board, "ann", 6)
    subject = EntryName("lives", "all", "ann")
    assert bench.differences() == [Difference(board.tenant, subject, "6", "5", "the scores differ")]


def test_a_difference_in_postgres_is_named(bench: Bench) -> None:
    board = bench.house.new_board(windows="ALL_TIME")
    board.submit("ann", 0.1, NOON)
    bench.verify()
    bench.sql("UPDATE tallyboard.leaderboard_entries SET score = 0.30000000000000004")
    (found,) = bench.differences()
    assert (found.redis, found.postgres) == ("0.1", "0.30000000000000004")


@pytest.mark.parametrize(
    ("change", "detail"),
    [
        ("updated_at = updated_at + interval '1 microsecond'", "the moments differ"),
        ("metadata = 'x'", "the metadata differ"),
    ],
)
def test_a_difference_beside_the_score_is_named(bench: Bench, change: str, detail: str) -> None:
    board = bench.house.new_board(windows="ALL_TIME")
    board.submit("ann", 5, NOON)
    bench.verify()
    bench.sql("UPDATE tallyboard.leaderboard_entries SET " + change)
    (found,) = bench.differences()
    assert (found.redis, found.postgres, found.detail) == ("5", "5", detail)


def test_an_entry_that_redis_lost_is_named(bench: Bench) -> None:
    board = bench.house.new_board(windows="ALL_TIME")
    board.submit_all([("ann", 5), ("bob", 6)])
    bench.verify()
    keys = _keys(board)
    bench.redis.hdel(keys.entries, "ann")
    bench.redis.zrem(
        keys.ranking, *[e for e in bench.redis.zrange(keys.ranking, 0, -1) if b"ann" in e]
    )
    (found,) = bench.differences()
    assert (found.subject, found.redis, found.postgres) == (
        EntryName("lives", "all", "ann"),
        None,
        "5",
    )


def test_an_entry_that_postgres_lost_is_named(bench: Bench) -> None:
    board = bench.house.new_board(windows="ALL_TIME")
    board.submit_all([("ann", 5), ("bob", 6)])
    bench.verify()
    bench.sql("DELETE FROM tallyboard.leaderboard_entries WHERE member = 'ann'")
    (found,) = bench.differences()
    assert (found.subject, found.redis, found.postgres) == (
        EntryName("lives", "all", "ann"),
        "5",
        None,
    )


def test_an_open_window_that_redis_lost_is_named(bench: Bench) -> None:
    board = bench.house.new_board(windows="ALL_TIME DAILY")
    board.submit_all([("ann", 5), ("bob", 6)])
    bench.verify()
    bench.redis.delete(*_keys(board))
    found = bench.differences()
    assert {one.subject for one in found} == {
        EntryName("lives", "all", "ann"),
        EntryName("lives", "all", "bob"),
    }
    assert {one.detail for one in found} == {"Redis lacks it"}


def test_a_window_that_postgres_lost_is_named(bench: Bench) -> None:
    board = bench.house.new_board(windows="ALL_TIME DAILY")
    board.submit_all([("ann", 5), ("bob", 6)])
    bench.verify()
    bench.sql("DELETE FROM tallyboard.leaderboard_entries")
    bench.sql("DELETE FROM tallyboard.leaderboard_windows WHERE kind = 'DAILY'")
    assert len(bench.differences()) == 4


@pytest.mark.parametrize("tie", ["EARLIEST", "MEMBER_ID"])
def test_a_ranking_that_lacks_an_entry_is_named(bench: Bench, tie: str) -> None:
    board = bench.house.new_board(windows="ALL_TIME", tie=tie)
    board.submit_all([("ann", 5), ("bob", 6)])
    bench.verify()
    keys = _keys(board)
    bench.redis.zpopmin(keys.ranking)
    (found,) = bench.differences()
    assert (found.subject, found.redis, found.postgres, found.detail) == (
        EntryName("lives", "all", "ann"),
        None,
        "5",
        "the ranking in Redis lacks it",
    )


@pytest.mark.parametrize("tie", ["EARLIEST", "MEMBER_ID"])
def test_a_ranking_with_another_score_is_named(bench: Bench, tie: str) -> None:
    board = bench.house.new_board(windows="ALL_TIME", tie=tie)
    board.submit_all([("ann", 5), ("bob", 6)])
    bench.verify()
    keys = _keys(board)
    (element, _) = bench.redis.zrange(keys.ranking, 0, 0, withscores=True)[0]
    bench.redis.zincrby(keys.ranking, 2, element)
    (found,) = bench.differences()
    assert (found.subject, found.redis, found.postgres) == (
        EntryName("lives", "all", "ann"),
        "7",
        "5",
    )


def test_a_stranger_is_named_beside_an_entry_that_is_not_ranked(bench: Bench) -> None:
    board = bench.house.new_board(windows="ALL_TIME", tie="MEMBER_ID")
    board.submit_all([("ann", 5), ("bob", 6)])
    bench.verify()
    bench.redis.zadd(_keys(board).ranking, {"cat": 7})
    bench.redis.hset(_keys(board).entries, "dan", make_record(NOON, 6, b"", True))
    assert {one.subject for one in bench.differences()} == {
        EntryName("lives", "all", "cat"),
        EntryName("lives", "all", "dan"),
    }


@pytest.mark.parametrize(("tie", "prefix"), [("EARLIEST", b"\x00" * 8), ("MEMBER_ID", b"")])
def test_a_ranking_with_a_stranger_is_named(bench: Bench, tie: str, prefix: bytes) -> None:
    board = bench.house.new_board(windows="ALL_TIME", tie=tie)
    board.submit_all([("ann", 5), ("bob", 6)])
    bench.verify()
    bench.redis.zadd(_keys(board).ranking, {prefix + b"cat": 7})
    (found,) = bench.differences()
    assert (found.subject, found.redis, found.postgres) == (
        EntryName("lives", "all", "cat"),
        "7",
        None,
    )


def test_a_ranking_and_an_entry_that_disagree_are_named_while_dirty(bench: Bench) -> None:
    board = bench.house.new_board(windows="ALL_TIME")
    board.submit_all([("ann", 5), ("bob", 6)])
    bench.verify()
    keys = _keys(board)
    (partition,) = board.partitions
    result = Verified(partition, 100)
    steps = bench.verifier.compare(result)
    next(steps)
    bench.redis.zpopmin(keys.ranking)
    bench.redis.sadd(keys.dirty, "ann")
    for _ in steps:
        pass
    assert [one.detail for one in result.differences] == ["the ranking in Redis lacks it"]


def test_a_member_that_is_dirty_is_merely_newer(bench: Bench) -> None:
    board = bench.house.new_board(windows="ALL_TIME")
    board.submit_all([("ann", 5, NOON), ("bob", 6, NOON)])
    bench.verify()
    (partition,) = board.partitions
    result = Verified(partition, 100)
    steps = bench.verifier.compare(result)
    next(steps)
    board.submit_all([("ann", 7, NOON), ("cat", 8, NOON)])
    board.remove("bob")
    for _ in steps:
        pass
    assert result.difference_count == 0


@pytest.mark.parametrize("name", [*HOSTILE, ":", "h:o:all"])
def test_hostile_names_of_members(bench: Bench, name: str) -> None:
    board = bench.house.new_board(windows="ALL_TIME")
    board.submit(name, 5, NOON)
    assert bench.differences() == []
    plant_score(board, name, 6)
    (found,) = bench.differences()
    assert found.subject == EntryName("lives", "all", name)


@pytest.mark.parametrize("member", [b"a\0b", b"\xff\xfe"])
def test_a_member_that_postgres_can_not_have_is_named(bench: Bench, member: bytes) -> None:
    board = bench.house.new_board(windows="ALL_TIME", tie="MEMBER_ID")
    board.submit("ann", 5, NOON)
    bench.redis.zadd(_keys(board).ranking, {member: 6})
    bench.redis.hset(_keys(board).entries, member, make_record(NOON, 6, b"", True))
    (found,) = bench.differences()
    assert isinstance(found.subject, EntryName)
    assert found.subject.member == member.decode("utf-8", "replace")


@pytest.mark.parametrize("segments", [1, 4])
@pytest.mark.parametrize(("policy", "order"), [("BEST", "ASCENDING"), ("SUM", "DESCENDING")])
def test_random_boards_agree(bench: Bench, policy: str, order: str, segments: int) -> None:
    dice = random.Random(f"{policy}{segments}")
    board = bench.house.new_board(
        windows="ALL_TIME HOURLY", policy=policy, order=order, segments=segments, max_entries=25
    )
    for _ in range(5):
        rows = [
            (
                f"m{dice.randrange(60)}",
                dice.choice([0.0, -0.0, -1.5, 2.0**53, 1e300, dice.random()]),
                bench.house.clock.now,
                dice.randbytes(dice.randrange(20)),
            )
            for _ in range(60)
        ]
        assert board.submit_all(rows) == []
        board.remove(f"m{dice.randrange(60)}")
        assert bench.differences() == []
        bench.house.clock.now += 3600 * 1_000_000


def test_the_life_of_a_window_makes_no_difference(bench: Bench) -> None:
    board = bench.house.new_board(windows="DAILY", segments=4, retention={"DAILY": 7 * 24 * 3600})
    board.submit_all([(f"m{i}", i) for i in range(20)])
    keeper = bench.house.new_keeper()
    for day in range(10):
        assert bench.differences() == [], day
        bench.house.clock.now += DAY
        assert bench.differences() == [], day
        keeper.round()
        if day == 1:
            assert board.imported(("m1", 100, NOON)) == []
        if day == 2:
            board.evict("2026-03-10")
        if day == 4:
            board.erase("m2")
    assert board.windows() == []


def test_an_archived_window_in_redis_is_compared(bench: Bench) -> None:
    board = bench.house.new_board(windows="DAILY")
    board.submit_all([("ann", 5), ("bob", 6)])
    keeper = bench.house.new_keeper()
    bench.house.clock.now += DAY
    keeper.round()
    assert [state for _, state, _ in board.windows()] == ["ARCHIVED"]
    bench.redis.hdel(_keys(board, "2026-03-10").entries, "ann")
    assert {one.subject for one in bench.differences()} == {EntryName("lives", "2026-03-10", "ann")}


def test_a_deleted_board_makes_no_difference(bench: Bench) -> None:
    board = bench.house.new_board(windows="ALL_TIME")
    board.submit("ann", 5)
    bench.verify()
    plant_score(board, "ann", 6)
    board.delete()
    assert bench.differences() == []


def test_more_entries_than_a_page(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tallyboard_server.recovery.entry_check._PAGE", 7)
    board = bench.house.new_board(windows="ALL_TIME")
    board.submit_all([(f"m{i}", i, NOON) for i in range(100)])
    bench.verify()
    plant_score(board, "m77", 1)
    plant_score(board, "new", 1)
    bench.redis.zrem(_keys(board).ranking, element_of("m77", NOON, descending=True, earliest=True))
    bench.redis.zadd(
        _keys(board).ranking, {element_of("m77", NOON, descending=True, earliest=True): 1}
    )
    found = bench.verify()
    assert sum(result.entries for result in found) == 100
    assert {one.subject.member for r in found for one in r.differences} == {"m77", "new"}  # type: ignore[union-attr]


def test_who_is_deleted_meanwhile_hides_no_stray(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tallyboard_server.recovery.entry_check._PAGE", 7)
    board = bench.house.new_board(windows="ALL_TIME")
    board.submit_all([(f"m{i}", i, NOON) for i in range(10)])
    bench.verify()
    plant_score(board, "stray", 1)
    (partition,) = board.partitions
    result = Verified(partition, 100)
    steps = bench.verifier.compare(result)
    while result.entries == 0:
        next(steps)
    bench.redis.hdel(_keys(board).entries, "m0")  # as remove.lua does
    bench.redis.zrem(_keys(board).ranking, element_of("m0", NOON, descending=True, earliest=True))
    bench.redis.sadd(_keys(board).dirty, "m0")
    for _ in steps:
        pass
    assert [one.subject for one in result.differences] == [EntryName("lives", "all", "stray")]


# Partitions that can't be compared


def test_a_partition_that_is_not_open_is_refused_after_the_others(bench: Bench) -> None:
    bench.sql("UPDATE tallyboard.partitions SET state = 'JOURNALING' WHERE partition = 3")
    results = bench.verifier.verify(ALL)
    found = [next(results).partition for _ in range(PARTITIONS - 1)]
    assert found == [number for number in ALL if number != 3]
    with pytest.raises(Unavailable, match=r"partition 3 .* journaling") as caught:
        next(results)
    assert caught.value.reason == "PARTITION_UNAVAILABLE"


def test_another_life_of_a_partition_is_refused(bench: Bench) -> None:
    held: Any = bench.redis.get(incarnation_key(3))
    bench.redis.set(incarnation_key(3), "other")
    try:
        with pytest.raises(Unavailable, match="partition 3"):
            bench.verify()
    finally:
        bench.redis.set(incarnation_key(3), held)


def test_a_partition_that_somebody_holds_is_refused(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tallyboard_server.recovery.partition._LOCK_WAIT", 0.1)
    monkeypatch.setattr("tallyboard_server.checkpointer.LOCK_WAIT", 0.1)
    with connect(bench.house.settings.postgres_url) as holder:
        lock_for_transaction(holder, 3, 1.0)
        with pytest.raises(Unavailable, match="somebody else"):
            bench.verify()


def test_a_partition_that_somebody_holds_ends_its_comparison(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tallyboard_server.recovery.partition._LOCK_WAIT", 0.1)
    bench.add("post:42", 41)
    bench.verify()
    partition, key = bench.shard("post:42")
    bench.redis.set(key, 42)
    result = Verified(partition, 100)
    steps = bench.verifier.compare(result)
    next(steps)  # the checkpoint
    with connect(bench.house.settings.postgres_url) as holder:
        lock_for_transaction(holder, partition, 1.0)
        for _ in steps:
            pass
    assert result.difference_count == 0
    assert result.problem is not None


# The call


def verify(bench: Bench, **fields: Any) -> list[ops.VerifyResponse]:
    """The answers of Verify."""
    stub = bench.house.site.operations
    return list(stub.Verify(ops.VerifyRequest(**fields), timeout=60))


def test_the_call_names_differences(bench: Bench) -> None:
    board = bench.house.new_board(windows="ALL_TIME")
    board.submit("ann", 5, NOON)
    bench.add("post:42", 41)
    verify(bench)
    plant_score(board, "ann", 6)
    bench.redis.delete(bench.shard("post:42")[1])
    found = [one for answer in verify(bench) for one in answer.differences]
    assert len(found) == 2
    for one in found:
        if one.WhichOneof("subject") == "counter":
            assert (one.tenant, one.counter, one.postgres_value) == ("acme", "post:42", "41")
            assert not one.HasField("redis_value")
        else:
            assert one.entry == ops.EntryReference(
                leaderboard_id="lives", window="all", member="ann"
            )
            assert (one.redis_value, one.postgres_value) == ("6", "5")


def test_the_call_takes_some_partitions(bench: Bench) -> None:
    assert [answer.partition for answer in verify(bench, partitions=[5, 2])] == [5, 2]


def test_the_call_lists_as_many_as_asked_for(bench: Bench) -> None:
    for i in range(30):
        bench.redis.set(shard_key(3, "acme", f"post:{i}"), 7)
    (found,) = verify(bench, partitions=[3], max_differences=10)
    assert (found.difference_count, len(found.differences)) == (30, 10)


# Under load


@contextmanager
def load(bench: Bench, board: LiveBoard) -> Iterator[Callable[[], int]]:
    """Two clients that write as fast as they can; gives how many calls got through."""
    over = threading.Event()
    errors: list[BaseException] = []
    done = [0, 0]

    def count() -> None:
        dice = random.Random(1)
        while not over.is_set():
            deltas = [
                CounterDelta(counter=f"post:{dice.randrange(400)}", delta=dice.choice([1, -1, 5]))
                for _ in range(50)
            ]
            bench.counters.BatchIncrement(
                BatchIncrementRequest(deltas=deltas), timeout=10, metadata=_of("acme")
            )
            victim = f"post:{dice.randrange(400)}"
            bench.counters.DeleteCounter(
                DeleteCounterRequest(counter=victim), timeout=10, metadata=_of("acme")
            )
            done[0] += 1

    def submit() -> None:
        dice = random.Random(2)
        while not over.is_set():
            board.submit_all([(f"m{dice.randrange(400)}", dice.random()) for _ in range(50)])
            board.remove(f"m{dice.randrange(400)}")
            done[1] += 1

    def guarded(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    def keep() -> None:
        while not over.wait(0.05):
            bench.checkpointer.checkpoint_all()

    threads = [threading.Thread(target=guarded, args=(one,)) for one in (count, submit, keep)]
    for thread in threads:
        thread.start()
    try:
        wait_for(lambda: min(done) > 20 or errors, "some calls")
        yield lambda: sum(done)
        assert errors == []
    finally:
        over.set()
        for thread in threads:
            thread.join(30)


def test_traffic_makes_no_difference(bench: Bench) -> None:
    board = bench.house.new_board(
        windows="ALL_TIME HOURLY", policy="SUM", segments=2, max_entries=150
    )
    with load(bench, board) as calls:
        until = time.monotonic() + 5.0
        rounds, before = 0, calls()
        while time.monotonic() < until:
            assert bench.differences() == []
            rounds += 1
        assert (rounds > 2, calls() > before) == (True, True)


def test_traffic_that_is_journaled_makes_no_difference(journaled: Bench) -> None:
    board = journaled.house.new_board(windows="ALL_TIME HOURLY", policy="BEST", max_entries=150)
    with load(journaled, board):
        for _ in range(5):
            assert journaled.differences() == []
    journaled.add("quiet", 41)
    journaled.verify()
    journaled.redis.set(journaled.shard("quiet")[1], 42)
    assert [one.subject for one in journaled.differences()] == ["quiet"]


def test_what_is_planted_is_found_under_traffic(bench: Bench) -> None:
    board = bench.house.new_board(windows="ALL_TIME HOURLY", policy="SUM")
    board.submit("quiet", 1)
    bench.add("quiet", 41)
    bench.verify()
    with load(bench, board):
        bench.redis.set(bench.shard("quiet")[1], 42)
        bench.redis.set(shard_key(2, "acme", "extra"), 1)
        bench.redis.hset(_keys(board).entries, "stray", make_record(NOON, 6, b"", True))
        bench.redis.hdel(_keys(board).entries, "quiet")
        for _ in range(3):
            found = {
                one.subject if isinstance(one.subject, str) else one.subject.member
                for one in bench.differences()
            }
            assert found == {"quiet", "extra", "stray"}
