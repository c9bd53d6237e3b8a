"""Rebuilds that die between any two steps, and rebuilds that may not be: nothing is lost."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from redis import Redis

from tallyboard_server.embedded import EmbeddedPostgres, EmbeddedRedis
from tallyboard_server.postgres.locks import lock_for_session
from tallyboard_server.postgres.pool import connect
from tallyboard_server.postgres.rebuild import read_lives
from tallyboard_server.recovery import rebuild as module
from tallyboard_server.recovery.loading import PartitionLoader
from tallyboard_server.recovery.progress import Progress, Reporter
from tallyboard_server.recovery.rebuild import (
    ForeignPartition,
    PartitionBusy,
    Rebuild,
    Rebuilder,
    UnknownPartition,
)
from tallyboard_server.redis.keys import (
    dirty_key,
    incarnation_key,
    link_key,
    request_key,
    shard_key,
    version_key,
)
from tallyboard_server.redis.nodes import control_client
from tallyboard_server.redis.pipe import Fenced, Pipe
from tallyboard_server.stores import open_stores
from tests.postgres.support import PARTITIONS, empty_redis, new_database, put, rows, settings_for
from tests.recovery.rebuilding import Killed, LastCheckpoint
from tests.redis.nodes import topology_of

LINK = link_key(0, "link")
REQUEST = request_key(0, "acme", "request")


class Stores:
    """Both stores, opened, with five things counted in partition 0 and not checkpointed.

    Attributes:
        last: the last checkpoint of the rebuilder's.
    """

    def __init__(self, redis_url: str, postgres_url: str, redis: Redis) -> None:
        self.redis_url = redis_url
        self.postgres_url = postgres_url
        self.redis = redis
        self.topology = topology_of(redis_url, PARTITIONS)
        self.last = LastCheckpoint(redis, PARTITIONS)
        self.rebuilder = Rebuilder(
            self.topology, postgres_url, PARTITIONS, last_checkpoint=self.last, drain=None
        )
        put(redis, 0, {"post:42": 5})
        redis.hset(LINK, "1", "1")
        redis.set(REQUEST, "", ex=60)

    def held(self, partition: int = 0) -> str:
        """What is in the place of the incarnation."""
        return (self.redis.execute_command("GET", incarnation_key(partition)) or b"").decode()

    def value(self, partition: int = 0) -> int:
        """The shard of the counter; 0 if it is not there."""
        return int(self.redis.get(shard_key(partition, "acme", "post:42")) or 0)

    def remembers(self) -> bool:
        """Whether the tokens are there."""
        return bool(self.redis.exists(LINK, REQUEST) == 2)

    def life(self, partition: int = 0) -> Any:
        """The partition as Postgres has it."""
        with connect(self.postgres_url) as conn:
            return read_lives(conn, [partition])[partition]

    def going(self) -> Rebuild:
        """A rebuild of partition 0 by hand."""
        return Rebuild(self.rebuilder, [0])

    def is_whole(self) -> bool:
        """Whether the partition is open with all that was counted, and nothing is dirty."""
        life = self.life()
        assert self.held() == life.incarnation
        assert int(self.redis.get(version_key(0)) or 0) == life.version
        assert not self.redis.exists(dirty_key(0))
        return bool(life.state == "OPEN" and self.value() == 5)


@pytest.fixture
def stores(redis_server: EmbeddedRedis, postgres_server: EmbeddedPostgres) -> Iterator[Stores]:
    with new_database(postgres_server) as database, empty_redis(redis_server) as url:
        open_stores(settings_for(url, database))
        client = control_client(url)
        yield Stores(url, database, client)
        client.close()


def killed_after_begin(stores: Stores) -> None:
    old = stores.held()
    with stores.going() as going:
        going.begin()
    assert stores.held() == old


def killed_after_fence(stores: Stores) -> None:
    with stores.going() as going:
        going.begin()
        going.fence()
    assert stores.held() == f"-k{stores.life().incarnation}"


def killed_before_the_copy(stores: Stores) -> None:
    stores.last.fails = True
    with pytest.raises(Killed):
        stores.rebuilder.rebuild([0])
    stores.last.fails = False


def killed_when_the_copy_was_committed(stores: Stores) -> None:
    stores.last.late = True
    with pytest.raises(Killed):
        stores.rebuilder.rebuild([0])
    stores.last.late = False
    assert stores.held().startswith("-k")


def killed_after_the_copy(stores: Stores) -> None:
    with stores.going() as going:
        going.begin()
        going.fence()
        going.copy()
    assert stores.held().startswith("-t")


def killed_while_emptying(stores: Stores) -> None:
    with pytest.raises(Killed):
        stores.rebuilder.rebuild([0], progress=killer("counters"))
    assert stores.held().startswith("-t")
    assert stores.value() == 0


def killed_while_loading(stores: Stores) -> None:
    with pytest.raises(Killed):
        stores.rebuilder.rebuild([0], progress=killer("leaderboards"))
    assert stores.held().startswith("-t")
    # As if only some of it had come: nobody may take it for good.
    stores.redis.set(shard_key(0, "acme", "post:42"), 3)


def killed_before_opening(stores: Stores) -> None:
    with stores.going() as going:
        going.begin()
        going.fence()
        going.copy()
        going.load()
    assert stores.held() == stores.life().incarnation
    assert stores.life().state == "REBUILDING"


def killer(phase: str) -> Any:
    """Dies where a phase begins."""

    def listen(progress: Progress) -> None:
        if progress.phase == phase:
            raise Killed

    return listen


EARLY = [
    killed_after_begin,
    killed_after_fence,
    killed_before_the_copy,
    killed_when_the_copy_was_committed,
]
LATE = [
    killed_after_the_copy,
    killed_while_emptying,
    killed_while_loading,
]


@pytest.mark.parametrize("killed", [*EARLY, *LATE, killed_before_opening])
def test_a_rebuild_that_dies_is_begun_anew_and_loses_nothing(stores: Stores, killed: Any) -> None:
    old = stores.held()
    killed(stores)
    assert stores.life().state == "REBUILDING"
    stores.last.made.clear()
    (done,) = stores.rebuilder.rebuild([0])
    assert stores.is_whole()
    assert stores.remembers()
    assert done.kept
    assert done.incarnation not in (old, "")
    # What was emptied, or may have been, is never copied to Postgres.
    assert stores.last.made == ([] if killed in LATE else [0])


@pytest.mark.parametrize("first", [*EARLY, *LATE, killed_before_opening])
def test_one_that_dies_twice(stores: Stores, first: Any) -> None:
    first(stores)
    for _ in range(2):
        with pytest.raises(Killed):
            stores.rebuilder.rebuild([0], progress=killer("tokens"))
    stores.rebuilder.rebuild([0])
    assert stores.is_whole()
    assert stores.remembers()


def test_many_that_die_before_they_reach_redis(stores: Stores) -> None:
    for _ in range(12):
        killed_after_begin(stores)
    (done,) = stores.rebuilder.rebuild([0])
    assert done.kept
    assert stores.is_whole()
    assert len(stores.life().earlier) == 8


def test_one_that_was_loaded_is_only_opened_when_asked_so(stores: Stores) -> None:
    killed_before_opening(stores)
    loaded = stores.held()
    stores.last.made.clear()
    (done,) = stores.rebuilder.rebuild([0], resume=True)
    assert (done.incarnation, stores.last.made) == (loaded, [])
    assert stores.is_whole()


@pytest.mark.parametrize("killed", [killed_after_begin, killed_after_the_copy])
def test_what_was_not_loaded_is_not_just_opened(stores: Stores, killed: Any) -> None:
    killed(stores)
    stores.rebuilder.rebuild([0], resume=True)
    assert stores.is_whole()


def test_what_redis_has_by_now_is_left_alone_when_asked_so(stores: Stores) -> None:
    stores.rebuilder.rebuild([0])
    old = stores.held()
    stores.rebuilder.rebuild([0], resume=True)
    assert stores.held() == old
    assert stores.is_whole()


def test_an_empty_redis_has_nothing_to_copy(stores: Stores) -> None:
    stores.rebuilder.rebuild([0])
    stores.last.made.clear()
    stores.redis.flushdb()
    (done,) = stores.rebuilder.rebuild([0])
    assert stores.is_whole()
    assert (done.kept, done.counters, stores.last.made) == (False, 1, [])


@pytest.mark.parametrize("killed", [*EARLY, *LATE, killed_before_opening])
def test_a_redis_that_is_emptied_during_a_rebuild(stores: Stores, killed: Any) -> None:
    stores.rebuilder.rebuild([0])
    killed(stores)
    stores.redis.flushdb()
    stores.rebuilder.rebuild([0])
    assert stores.is_whole()


@pytest.mark.parametrize("killed", [None, killed_after_begin, killed_after_fence])
def test_a_redis_that_has_gone_back_is_not_copied(stores: Stores, killed: Any) -> None:
    stores.rebuilder.rebuild([0])
    if killed:
        killed(stores)
    stores.redis.set(version_key(0), 0)
    put(stores.redis, 0, {"post:42": 3})
    stores.last.made.clear()
    (done,) = stores.rebuilder.rebuild([0])
    assert stores.is_whole()
    assert (done.kept, stores.last.made) == (False, [])


def test_an_earlier_incarnation_that_is_not_older_is_copied(stores: Stores) -> None:
    old = stores.held()
    stores.rebuilder.rebuild([0])
    stores.rebuilder.rebuild([0])
    stores.redis.set(incarnation_key(0), old)
    put(stores.redis, 0, {"post:42": 6})
    stores.rebuilder.rebuild([0])
    assert stores.value() == 6


def test_somebody_elses_data_are_left_alone(stores: Stores) -> None:
    stores.rebuilder.rebuild([0])
    stores.redis.set(incarnation_key(0), "stranger")
    before = stores.life()
    with pytest.raises(ForeignPartition) as caught:
        stores.rebuilder.rebuild([0, 1])
    assert caught.value.partitions == (0,)
    assert stores.life() == before
    assert (stores.held(), stores.value()) == ("stranger", 5)


@pytest.mark.parametrize("stranger", ["stranger", "-kstranger", "-tstranger", "-estranger"])
def test_somebody_elses_data_go_when_an_operator_says_so(stores: Stores, stranger: str) -> None:
    stores.rebuilder.rebuild([0])
    stores.redis.set(incarnation_key(0), stranger)
    put(stores.redis, 0, {"post:42": 77, "post:43": 1})
    stores.last.made.clear()
    stores.rebuilder.rebuild([0], force=True)
    assert stores.is_whole()
    assert not stores.redis.exists(shard_key(0, "acme", "post:43"))
    assert stores.last.made == []


def test_an_operator_does_not_lose_what_is_good(stores: Stores) -> None:
    stores.rebuilder.rebuild([0], force=True)
    assert stores.is_whole()


def test_a_partition_that_somebody_works_on(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOCK_WAIT", 0.05)
    before = stores.life(1)
    with connect(stores.postgres_url) as conn:
        conn.autocommit = True
        lock_for_session(conn, 1, 1.0)
        with pytest.raises(PartitionBusy):
            stores.rebuilder.rebuild([0, 1])
    assert stores.life(1) == before
    stores.rebuilder.rebuild([0, 1])


def test_nobody_else_has_the_partition_meanwhile(stores: Stores) -> None:
    with stores.going() as going, connect(stores.postgres_url) as conn:
        conn.autocommit = True
        with pytest.raises(psycopg.errors.LockNotAvailable):
            lock_for_session(conn, 0, 0.05)
        lock_for_session(conn, 1, 0.05)
        going.begin()
        going.fence()
        going.copy()
        going.load()
        going.open()
        lock_for_session(conn, 0, 0.05)


def test_a_partition_that_postgres_does_not_know(stores: Stores) -> None:
    with pytest.raises(UnknownPartition):
        stores.rebuilder.rebuild([PARTITIONS])


def test_one_that_was_overtaken_writes_nothing_more(stores: Stores) -> None:
    stores.rebuilder.rebuild([0])
    with stores.going() as late:
        late.begin()
        late.fence()
        mark = stores.held()
    stores.rebuilder.rebuild([0])
    with Pipe(stores.topology, 5) as pipe, connect(stores.postgres_url) as conn:
        conn.autocommit = True
        conn.execute("UPDATE tallyboard.counter_shards SET value = 4")
        loader = PartitionLoader(pipe, conn, {0: mark}, Reporter((0,), None))
        for work in (loader.empty, loader.load_counters, lambda: loader.set_versions({0: 9})):
            with pytest.raises(Fenced):
                work()
    assert stores.is_whole()


def test_what_changes_between_the_look_and_the_mark_is_noticed(stores: Stores) -> None:
    with stores.going() as going:
        going.begin()
        stores.redis.set(version_key(0), 7)
        with pytest.raises(Fenced):
            going.fence()
    (done,) = stores.rebuilder.rebuild([0])
    assert done.kept
    assert stores.is_whole()


def test_others_are_left_alone(stores: Stores) -> None:
    put(stores.redis, 1, {"post:42": 7})
    held = stores.held(1)
    stores.rebuilder.rebuild([0])
    assert (stores.held(1), stores.value(1)) == (held, 7)
    assert stores.redis.scard(dirty_key(1)) == 1
    assert stores.life(1).state == "OPEN"


def test_all_partitions_together(stores: Stores) -> None:
    put(stores.redis, 1, {"post:42": 7})
    done = stores.rebuilder.rebuild(range(PARTITIONS))
    assert [each.counters for each in done] == [1, 1, 0, 0]
    assert stores.is_whole()
    assert stores.value(1) == 7


def test_tokens_come_back_with_the_time_that_they_have_left(stores: Stores) -> None:
    now = datetime.now(UTC)
    ring = b"{tb:0}:p:4:acme:producer"
    held = [b"1", b"257", b"2", b"2 note"]
    with connect(stores.postgres_url) as conn:
        for token, is_ring, values, left in (
            (b"{tb:0}:r:4:acme:one", False, [b""], 60),
            (ring, True, held, 600),
            (b"{tb:0}:r:4:acme:old", False, [b"x"], -1),
        ):
            conn.execute(
                "INSERT INTO tallyboard.tokens VALUES (0, %s, %s, %s, %s)",
                (token, is_ring, values, now + timedelta(seconds=left)),
            )
    stores.redis.flushdb()
    (done,) = stores.rebuilder.rebuild([0])
    assert done.tokens == 2
    assert stores.redis.get("{tb:0}:r:4:acme:one") == b""
    assert 50 < stores.redis.ttl("{tb:0}:r:4:acme:one") <= 60
    assert stores.redis.hgetall(ring) == {b"1": b"257", b"2": b"2 note"}
    assert 590 < stores.redis.ttl(ring) <= 600
    assert not stores.redis.exists("{tb:0}:r:4:acme:old")


def test_tokens_in_redis_are_younger_than_those_in_postgres(stores: Stores) -> None:
    ring = b"{tb:0}:p:4:acme:producer"
    stores.redis.hset(ring, "1", "257")
    with connect(stores.postgres_url) as conn:
        conn.execute(
            "INSERT INTO tallyboard.tokens VALUES (0, %s, true, %s, %s)",
            (ring, [b"1", b"1"], datetime.now(UTC) + timedelta(hours=1)),
        )
    stores.rebuilder.rebuild([0])
    assert stores.redis.hgetall(ring) == {b"1": b"257"}


def test_a_full_redis_can_be_marked_and_emptied(stores: Stores) -> None:
    put(stores.redis, 0, {f"post:{i}": 1 for i in range(100)})
    stores.redis.config_set("maxmemory", 1)
    try:
        with stores.going() as going:
            going.begin()
            going.fence()
            mark = stores.held()
            assert mark.startswith("-k")
            PartitionLoader(going._pipe, going._conn, {0: mark}, Reporter((0,), None)).empty()
    finally:
        stores.redis.config_set("maxmemory", 0)
    assert stores.value() == 0


def test_how_far_it_is(stores: Stores) -> None:
    put(stores.redis, 0, {f"post:{i}": i for i in range(7000)})
    told: list[Progress] = []
    stores.rebuilder.rebuild([0, 2], progress=told.append)
    phases = list(dict.fromkeys(each.phase for each in told))
    assert phases == ["checkpoint", "empty", "counters", "leaderboards", "tokens", "journal"]
    assert {each.partitions for each in told} == {(0, 2)}
    assert all(each.done <= each.total for each in told)
    assert [each.done for each in told if each.phase == "counters"][-1] == 7000


def test_the_journal_is_drained_under_the_new_incarnation(stores: Stores) -> None:
    seen = []

    def drain(partition: int) -> int:
        with connect(stores.postgres_url) as conn:
            conn.autocommit = True
            lock_for_session(conn, partition, 0.05)
            life = read_lives(conn, [partition])[partition]
            seen.append((life.state, life.incarnation == stores.held(partition)))
            return 3

    stores.rebuilder.drain = drain
    done = stores.rebuilder.rebuild([0, 1])
    assert seen == [("REBUILDING", True)] * 2
    assert [each.batches for each in done] == [3, 3]


def test_the_checkpoint_time_stays(stores: Stores) -> None:
    query = "SELECT checkpointed_at FROM tallyboard.partitions ORDER BY partition"
    before = rows(stores.postgres_url, query)
    stores.redis.flushdb()
    stores.rebuilder.rebuild([0])
    assert rows(stores.postgres_url, query) == before
