"""What the people who run the service ask of it: states, depths, tenants, and wrong requests."""

import dataclasses
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any, NamedTuple

import grpc
import pytest
from prometheus_client import REGISTRY
from redis.exceptions import RedisError
from structlog.testing import capture_logs

from tallyboard.v1 import operations_pb2 as pb
from tallyboard_server.checkpointer import Checkpointer
from tallyboard_server.embedded import EmbeddedPostgres, EmbeddedRedis
from tallyboard_server.errors import NotImplementedYet, Overloaded, Unavailable
from tallyboard_server.operations import Condition, Operations, Rebuild
from tallyboard_server.postgres.pool import BoundedPool, connect, open_pool
from tallyboard_server.recovery.drift import DriftWatch
from tallyboard_server.recovery.verify import Verifier
from tallyboard_server.redis.fences import Fences
from tallyboard_server.redis.keys import dirty_key, in_flight_key, incarnation_key, shard_key
from tallyboard_server.redis.nodes import RedisNodes, control_client
from tallyboard_server.settings import Settings
from tallyboard_server.stores import open_stores
from tests.leaderboards import live
from tests.leaderboards.live import House, refusal
from tests.postgres.support import PARTITIONS, empty_redis, new_database, put, settings_for

opened, house = live.opened, live.house

NOWHERE = {"redis": "redis://127.0.0.1:1", "postgres": "postgresql://127.0.0.1:1/x"}
Pool = BoundedPool


class Done(NamedTuple):
    """What a rebuild did."""

    counters: int
    entries: int
    batches: int
    seconds: float


class Desk:
    """Operations on stores that a test may take away."""

    def __init__(self, settings: Settings, fences: Fences) -> None:
        self.settings = settings
        self.fences = fences

    def state(self, *away: str) -> list[Condition]:
        """What the partitions do, with these stores away."""
        return [one.condition for one in self.ask(*away).partitions]

    def ask(self, *away: str) -> Any:
        """The whole state, with these stores away."""
        redis_url = NOWHERE["redis"] if "redis" in away else self.settings.redis_url
        postgres_url = NOWHERE["postgres"] if "postgres" in away else self.settings.postgres_url
        with (
            RedisNodes.of_url(redis_url, PARTITIONS) as nodes,
            open_pool(postgres_url, wait=0.2 if "postgres" in away else 5.0) as pool,
        ):
            verifier = Verifier(nodes, pool, Checkpointer(nodes, pool, PARTITIONS), PARTITIONS)
            return Operations(nodes, pool, self.fences, self.settings, verifier).state(
                time.monotonic() + 10
            )

    def sql(self, query: str, *arguments: Any) -> None:
        """Changes Postgres."""
        with connect(self.settings.postgres_url) as conn:
            conn.execute(query, arguments)


@pytest.fixture
def desk(redis_server: EmbeddedRedis, postgres_server: EmbeddedPostgres) -> Iterator[Desk]:
    with new_database(postgres_server) as database, empty_redis(redis_server) as url:
        settings = settings_for(url, database)
        yield Desk(settings, Fences(open_stores(settings).incarnations))


def test_a_partition_is_what_postgres_says(desk: Desk) -> None:
    for number, state in enumerate(("JOURNALING", "REBUILDING")):
        desk.sql("UPDATE tallyboard.partitions SET state = %s WHERE partition = %s", state, number)
    assert desk.state() == [Condition.JOURNALING, Condition.REBUILDING] + 2 * [Condition.OPEN]


def test_a_partition_whose_data_is_gone_is_closed(desk: Desk) -> None:
    with closing(control_client(desk.settings.redis_url)) as redis:
        redis.delete(incarnation_key(1))
        redis.set(incarnation_key(2), "other")
    assert desk.state() == [Condition.OPEN, Condition.CLOSED, Condition.CLOSED, Condition.OPEN]


def test_a_partition_that_was_made_anew_is_open(desk: Desk) -> None:
    with closing(control_client(desk.settings.redis_url)) as redis:
        redis.set(incarnation_key(1), "new")
    desk.sql("UPDATE tallyboard.partitions SET incarnation = 'new' WHERE partition = 1")
    assert desk.state()[1] is Condition.OPEN


def test_without_redis_partitions_are_journaling(desk: Desk) -> None:
    desk.sql("UPDATE tallyboard.partitions SET state = 'REBUILDING' WHERE partition = 0")
    assert desk.state("redis") == [Condition.REBUILDING] + 3 * [Condition.JOURNALING]


def test_without_redis_partitions_are_closed_where_writes_are_refused(desk: Desk) -> None:
    desk.settings = dataclasses.replace(desk.settings, redis_outage="refuse")
    assert desk.state("redis") == PARTITIONS * [Condition.CLOSED]


def test_without_postgres_partitions_are_what_redis_holds(desk: Desk) -> None:
    with closing(control_client(desk.settings.redis_url)) as redis:
        redis.delete(incarnation_key(1))
    assert desk.state("postgres") == [Condition.OPEN, Condition.CLOSED] + 2 * [Condition.OPEN]


def test_without_either_nothing_is_known(desk: Desk) -> None:
    state = desk.ask("redis", "postgres")
    assert [one.condition for one in state.partitions] == PARTITIONS * [Condition.UNKNOWN]
    assert (state.checkpoint_lag, state.journal_depth) == (None, 0)


def test_the_lag_is_nothing_when_nothing_has_changed(desk: Desk) -> None:
    desk.sql("UPDATE tallyboard.partitions SET checkpointed_at = now() - interval '1 hour'")
    assert desk.ask().checkpoint_lag == 0


@pytest.mark.parametrize("key", [dirty_key(1), in_flight_key(1)])
def test_the_lag_is_that_of_what_has_changed(desk: Desk, key: str) -> None:
    desk.sql(
        "UPDATE tallyboard.partitions"
        " SET checkpointed_at = now() - interval '1 minute' * (2 - partition)"
    )
    with closing(control_client(desk.settings.redis_url)) as redis:
        redis.sadd(key, "c")
    assert desk.ask().checkpoint_lag == pytest.approx(60, abs=10)


@pytest.mark.parametrize("away", ["redis", "postgres"])
def test_the_lag_is_not_known_without_both_stores(desk: Desk, away: str) -> None:
    assert desk.ask(away).checkpoint_lag is None


def test_stores_are_named_without_credentials(desk: Desk) -> None:
    desk.settings = dataclasses.replace(
        desk.settings, redis_url="redis://ann:s3cret@127.0.0.1:2", postgres_url=NOWHERE["postgres"]
    )
    stores = desk.ask("postgres").stores
    assert [store.address for store in stores] == ["127.0.0.1:2", "127.0.0.1:1"]


@pytest.mark.parametrize(("batches", "depth"), [(0, 0), (3, 3), (10_000, 10_000), (10_500, 10_501)])
def test_the_depth_of_the_journal(desk: Desk, batches: int, depth: int) -> None:
    desk.sql(
        "INSERT INTO tallyboard.journal (partition, link, sequence, batch, updates)"
        " SELECT 0, 'link', i, '', 1 FROM generate_series(0, %s) AS i",
        batches,
    )
    # A gap, as checkpoints leave them: it makes an estimate too large.
    desk.sql("DELETE FROM tallyboard.journal WHERE journal_id = 2 OR %s = 0", batches)
    assert desk.ask().journal_depth == depth


def operations_of(desk: Desk, rebuild: Rebuild | None) -> Operations:
    """Operations that need no store."""
    nodes: Any = None
    verifier: Any = None
    return Operations(nodes, nodes, desk.fences, desk.settings, verifier, rebuild)


def test_a_rebuild_is_handed_on(desk: Desk) -> None:
    asked = []

    def rebuild(partition: int, deadline: float) -> Done:
        asked.append((partition, deadline))
        return Done(1, 2, 3, 0.5)

    assert operations_of(desk, rebuild).rebuild(2, 5.0) == Done(1, 2, 3, 0.5)
    assert asked == [(2, 5.0)]


def test_one_rebuild_at_a_time(desk: Desk) -> None:
    inside, over = threading.Event(), threading.Event()

    def rebuild(partition: int, deadline: float) -> Done:
        inside.set()
        assert over.wait(10)
        return Done(0, 0, 0, 0.0)

    operations = operations_of(desk, rebuild)
    thread = threading.Thread(target=operations.rebuild, args=(0, 5.0))
    thread.start()
    assert inside.wait(10)
    try:
        with pytest.raises(Overloaded):
            operations.rebuild(1, 5.0)
    finally:
        over.set()
        thread.join(10)
    assert operations.rebuild(1, 5.0).counters == 0


def test_a_version_without_rebuilds_says_so(desk: Desk) -> None:
    with pytest.raises(NotImplementedYet):
        operations_of(desk, None).rebuild(0, 5.0)


def test_a_store_that_is_away_is_unavailable(desk: Desk) -> None:
    with (
        RedisNodes.of_url(NOWHERE["redis"], PARTITIONS) as nodes,
        open_pool(desk.settings.postgres_url) as pool,
    ):
        verifier = Verifier(nodes, pool, Checkpointer(nodes, pool, PARTITIONS), PARTITIONS)
        operations = Operations(nodes, pool, desk.fences, desk.settings, verifier)
        with pytest.raises(Unavailable) as caught:
            list(operations.verify([], 10, lambda: None))
    assert caught.value.reason == "REDIS_UNAVAILABLE"


def test_a_checkpoint_names_the_partitions_it_left_out(desk: Desk) -> None:
    with (
        RedisNodes.of_url(desk.settings.redis_url, PARTITIONS) as nodes,
        open_pool(desk.settings.postgres_url) as pool,
    ):
        redis = nodes.of(0)
        verifier = Verifier(nodes, pool, Checkpointer(nodes, pool, PARTITIONS), PARTITIONS)
        operations = Operations(nodes, pool, desk.fences, desk.settings, verifier)
        for number in range(PARTITIONS):
            put(redis, number, {"post:42": 41})
        for number in (1, 3):
            redis.set(incarnation_key(number), "another life")
        with pytest.raises(Unavailable, match=r": 1, 3$") as caught:
            operations.checkpoint(soon(), [])
    assert caught.value.reason == "PARTITION_UNAVAILABLE"


def soon() -> float:
    """A deadline for what takes no time."""
    return time.monotonic() + 10


# The keeper's own comparison


def watch(nodes: RedisNodes, pool: Pool, interval: float, now: list[float]) -> DriftWatch:
    """A watch whose clock is `now[0]`."""
    verifier = Verifier(nodes, pool, Checkpointer(nodes, pool, PARTITIONS), PARTITIONS)
    return DriftWatch(verifier, PARTITIONS, interval, lambda: now[0])


def drift() -> float:
    """What the gauge says."""
    value = REGISTRY.get_sample_value("tallyboard_drift_values")
    assert value is not None
    return value


def test_drift_is_found_logged_and_seen_to_be_mended(desk: Desk) -> None:
    with (
        RedisNodes.of_url(desk.settings.redis_url, PARTITIONS) as nodes,
        open_pool(desk.settings.postgres_url) as pool,
    ):
        now, redis = [0.0], nodes.of(0)
        drifts = watch(nodes, pool, 60.0, now)
        put(redis, 1, {"post:42": 41})
        Checkpointer(nodes, pool, PARTITIONS).checkpoint_all()
        redis.set(shard_key(1, "acme", "post:42"), 42)
        redis.set(shard_key(2, "acme", "extra"), 1)
        with capture_logs() as lines:
            for _ in range(4 * PARTITIONS):
                now[0] += 60.0
                drifts.work()
        named = {(line["counter"], line["redis"], line["postgres"]) for line in lines}
        assert named == {("post:42", "42", "41"), ("extra", "1", None)}
        assert drift() == 2
        redis.set(shard_key(1, "acme", "post:42"), 41)
        redis.delete(shard_key(2, "acme", "extra"))
        for _ in range(6):
            now[0] += 60.0
            drifts.work()
        assert drift() == 0


def test_what_differed_is_looked_at_again_soon(desk: Desk) -> None:
    with (
        RedisNodes.of_url(desk.settings.redis_url, PARTITIONS) as nodes,
        open_pool(desk.settings.postgres_url) as pool,
    ):
        now, redis = [0.0], nodes.of(0)
        drifts = watch(nodes, pool, 60.0, now)
        put(redis, 1, {"post:42": 41})
        Checkpointer(nodes, pool, PARTITIONS).checkpoint_all()
        redis.set(shard_key(1, "acme", "post:42"), 42)

        def turn() -> float:
            now[0] += 60.0
            drifts.work()
            return drift()

        turns = (turn() for _ in range(4 * PARTITIONS))
        assert any(values == 1 for values in turns)
        redis.set(shard_key(1, "acme", "post:42"), 41)
        assert 0 in (turn(), turn())


@pytest.mark.parametrize(("interval", "at"), [(60.0, 59.0), (0.0, 1e9)])
def test_nothing_is_compared_before_it_is_due(desk: Desk, interval: float, at: float) -> None:
    with (
        RedisNodes.of_url(NOWHERE["redis"], PARTITIONS) as nodes,
        open_pool(desk.settings.postgres_url) as pool,
    ):
        now = [0.0]
        drifts = watch(nodes, pool, interval, now)
        now[0] = at
        drifts.work()


def test_a_store_that_is_away_ends_what_is_under_way(desk: Desk) -> None:
    with (
        RedisNodes.of_url(NOWHERE["redis"], PARTITIONS) as nodes,
        open_pool(desk.settings.postgres_url) as pool,
    ):
        now = [0.0]
        drifts = watch(nodes, pool, 60.0, now)
        now[0] = 60.0
        with pytest.raises(RedisError):
            drifts.work()
        drifts.work()  # the next one isn't due


# The calls


def test_wrong_partitions_are_refused(house: House) -> None:
    for partitions in ([8], [-1], [1, 1]):
        with refusal("FIELD_INVALID"):
            list_verify(house, pb.VerifyRequest(partitions=partitions))
    with refusal("TOO_MANY_ITEMS"):
        list_verify(house, pb.VerifyRequest(partitions=[*range(9)]))
    with refusal("FIELD_INVALID"):
        list_verify(house, pb.VerifyRequest(max_differences=-1))
    with refusal("FIELD_INVALID"):
        house.site.call("RebuildPartition", pb.RebuildPartitionRequest(partition=8), "acme")


def list_verify(house: House, request: pb.VerifyRequest) -> list[pb.VerifyResponse]:
    """All answers of Verify."""
    try:
        return list(house.site.operations.Verify(request, timeout=30))
    except grpc.RpcError as error:
        raise live._refused(error) from error


def test_tenants_come_in_pages(house: House) -> None:
    with connect(house.settings.postgres_url) as conn:
        conn.execute("TRUNCATE tallyboard.counters")
        for tenant, count in (("ann", 3), ("☃", 1), ("d", 2)):
            conn.execute(
                "INSERT INTO tallyboard.counters (tenant, counter, shards, shards_value, wides,"
                " wides_value, deleted_wides, updated_at)"
                " SELECT %s, i, 1, 1, 0, 0, 0, now() FROM generate_series(1, %s) AS i",
                (tenant, count),
            )
    board = house.new_board()
    other = house.new_board()
    other.delete()
    expected = {("ann", 3, 0), ("☃", 1, 0), ("d", 2, 0), (board.tenant, 0, 1)}
    found: list[pb.Tenant] = []
    token = ""
    while True:
        request = pb.ListTenantsRequest(page_size=2, page_token=token)
        page = house.site.call("ListTenants", request, "acme")
        assert len(page.tenants) <= 2
        found += page.tenants
        token = page.next_page_token
        if not token:
            break
    assert {(one.tenant, one.counters, one.leaderboards) for one in found} == expected
    assert [one.tenant for one in found] == sorted(one.tenant for one in found)


@pytest.mark.parametrize("token", ["x", "eA==", "dDr_", "dDoA"])
def test_a_wrong_page_of_tenants_is_refused(house: House, token: str) -> None:
    with refusal("PAGE_INVALID"):
        house.site.call("ListTenants", pb.ListTenantsRequest(page_token=token), "acme")
