"""Opening the stores: what is new, what belongs together, and what is lost."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from redis import Redis
from structlog.testing import capture_logs

from tallyboard_server.embedded import EmbeddedRedis
from tallyboard_server.postgres.migrations import migrate
from tallyboard_server.postgres.pool import connect
from tallyboard_server.redis.keys import (
    dirty_key,
    incarnation_key,
    shard_key,
    version_key,
    wide_key,
)
from tallyboard_server.redis.nodes import control_client
from tallyboard_server.settings import Settings
from tallyboard_server.startup import StartupError
from tallyboard_server.stores import open_stores
from tests.postgres.support import (
    PARTITIONS,
    empty_redis,
    incarnations,
    rows,
    rules_in,
    settings_for,
)

AWAY = "postgresql://acme:secret@127.0.0.1:1/acme"


@pytest.fixture
def redis_url(redis_server: EmbeddedRedis) -> Iterator[str]:
    with empty_redis(redis_server) as url:
        yield url


@pytest.fixture
def redis(redis_url: str) -> Iterator[Redis]:
    client = control_client(redis_url)
    yield client
    client.close()


@pytest.fixture
def settings(redis_url: str, database: str) -> Settings:
    return settings_for(redis_url, database)


def test_new_stores_get_an_incarnation_a_partition(settings: Settings) -> None:
    assert sorted(open_stores(settings).incarnations) == list(range(PARTITIONS))


def test_both_stores_hold_the_incarnations(settings: Settings, redis: Redis, database: str) -> None:
    open_stores(settings)
    found = rows(database, "SELECT partition, incarnation FROM tallyboard.partitions WHERE opened")
    assert dict(found) == incarnations(redis)


def test_a_second_start_finds_the_same(settings: Settings) -> None:
    assert open_stores(settings) == open_stores(settings)


def test_instances_that_start_together_agree(settings: Settings) -> None:
    migrate(settings.postgres_url)
    with ThreadPoolExecutor(8) as threads:
        opened = list(threads.map(lambda _: open_stores(settings), range(8)))
    assert opened == [opened[0]] * 8


@pytest.mark.parametrize("lost", [{1}, set(range(PARTITIONS))])
def test_a_lost_partition_stays_closed(settings: Settings, redis: Redis, lost: set[int]) -> None:
    open_stores(settings)
    redis.delete(*(incarnation_key(i) for i in lost))
    assert open_stores(settings).closed == sorted(lost)


def test_a_lost_partition_is_named(settings: Settings, redis: Redis) -> None:
    open_stores(settings)
    redis.delete(incarnation_key(2))
    assert open_stores(settings).problems == (
        "Redis lost partition 2; the keeper rebuilds it from Postgres.",
    )


def test_a_foreign_partition_stays_closed(settings: Settings, redis: Redis) -> None:
    open_stores(settings)
    redis.set(incarnation_key(3), "foreign")
    opened = open_stores(settings)
    assert (opened.closed, 3 in opened.incarnations) == ([3], False)


def test_a_foreign_partition_is_named(settings: Settings, redis: Redis) -> None:
    open_stores(settings)
    redis.set(incarnation_key(3), "foreign")
    (problem,) = open_stores(settings).problems
    assert problem.startswith("Partition 3 stays closed: Redis holds data that this Postgres never")


def test_an_earlier_life_of_a_partition_is_lost(
    settings: Settings, redis: Redis, database: str
) -> None:
    open_stores(settings)
    with connect(database) as conn:
        conn.execute("UPDATE tallyboard.partitions SET earlier = '{before}' WHERE partition = 3")
    redis.set(incarnation_key(3), "before")
    opened = open_stores(settings)
    assert (opened.closed, opened.problems) == (
        [3],
        ("Redis lost partition 3; the keeper rebuilds it from Postgres.",),
    )


def test_a_partition_older_than_its_checkpoint_stays_closed(
    settings: Settings, redis: Redis, database: str
) -> None:
    open_stores(settings)
    with connect(database) as conn:
        conn.execute("UPDATE tallyboard.partitions SET version = 5 WHERE partition = 3")
    redis.set(version_key(3), 4)
    assert open_stores(settings).closed == [3]


def test_a_partition_that_is_journaled_for_stays_closed(settings: Settings, database: str) -> None:
    open_stores(settings)
    with connect(database) as conn:
        conn.execute("UPDATE tallyboard.partitions SET state = 'JOURNALING' WHERE partition = 2")
    opened = open_stores(settings)
    assert (opened.closed, 2 in opened.incarnations) == ([2], False)


@pytest.fixture
def without_redis(settings: Settings) -> Settings:
    """The same with a Redis that is not there."""
    return replace(settings, redis_url="redis://127.0.0.1:1")


def test_a_start_without_redis_goes_on_with_what_postgres_knows(
    settings: Settings, without_redis: Settings
) -> None:
    before = open_stores(settings)
    opened = open_stores(without_redis)
    assert (opened.incarnations, opened.token_shards, opened.shard_rules, opened.closed) == (
        before.incarnations,
        before.token_shards,
        before.shard_rules,
        [],
    )


def test_a_start_without_redis_says_what_happens_to_writes(
    settings: Settings, without_redis: Settings
) -> None:
    open_stores(settings)
    (problem,) = open_stores(without_redis).problems
    assert "Writes go to the journal" in problem


def test_a_first_start_needs_redis(without_redis: Settings) -> None:
    with pytest.raises(StartupError, match="Postgres holds no partitions yet"):
        open_stores(without_redis)


def test_a_start_that_may_not_journal_needs_redis(
    settings: Settings, without_redis: Settings
) -> None:
    open_stores(settings)
    with pytest.raises(StartupError, match="can't be used"):
        open_stores(replace(without_redis, redis_outage="refuse"))


def test_a_start_without_both_says_so(settings: Settings, without_redis: Settings) -> None:
    open_stores(settings)
    with pytest.raises(StartupError, match="can't be used either"):
        open_stores(replace(without_redis, postgres_url=AWAY))


def test_a_start_that_broke_off_before_redis_is_finished(
    settings: Settings, redis: Redis, database: str
) -> None:
    before = open_stores(settings)
    with connect(database) as conn:
        conn.execute("UPDATE tallyboard.partitions SET opened = false WHERE partition = 1")
    redis.delete(incarnation_key(1))
    assert open_stores(settings) == before


def test_an_emptied_postgres_adopts_what_redis_holds(settings: Settings, database: str) -> None:
    before = open_stores(settings)
    with connect(database) as conn:
        conn.execute("DROP SCHEMA tallyboard CASCADE")
    assert open_stores(settings).incarnations == before.incarnations


def test_adopted_counters_are_checkpointed_anew(
    settings: Settings, redis: Redis, database: str
) -> None:
    open_stores(settings)
    keys = {shard_key(1, "acme", "post:42"), wide_key(1, "acme", "post:43")}
    for key in keys:
        redis.set(key, 5)
    with connect(database) as conn:
        conn.execute("DROP SCHEMA tallyboard CASCADE")
    open_stores(settings)
    assert redis.smembers(dirty_key(1)) == {key.encode() for key in keys}


def test_adopted_partitions_are_not_called_up_to_date(settings: Settings, database: str) -> None:
    open_stores(settings)
    with connect(database) as conn:
        conn.execute("DROP SCHEMA tallyboard CASCADE")
    open_stores(settings)
    found = rows(
        database, "SELECT max(extract(epoch FROM checkpointed_at)) FROM tallyboard.partitions"
    )
    assert found == [(0,)]


@pytest.mark.parametrize("emptied", ["Redis", "Postgres"])
def test_another_number_of_partitions_stops_the_start(
    settings: Settings, redis: Redis, redis_url: str, database: str, emptied: str
) -> None:
    open_stores(settings)
    if emptied == "Redis":
        redis.flushdb()
    else:
        with connect(database) as conn:
            conn.execute("DROP SCHEMA tallyboard CASCADE")
    with pytest.raises(StartupError, match=f"made for {PARTITIONS} partitions, and .* is 8; set"):
        open_stores(settings_for(redis_url, database, partitions=8))


def test_a_refused_start_records_nothing(
    settings: Settings, redis: Redis, redis_url: str, database: str
) -> None:
    open_stores(settings)
    redis.flushdb()
    with pytest.raises(StartupError):
        open_stores(settings_for(redis_url, database, partitions=8))
    assert redis.dbsize() == 0


def test_every_rule_ever_in_force_is_kept(redis_url: str, database: str) -> None:
    open_stores(settings_for(redis_url, database, default_shards=4))
    changed = settings_for(redis_url, database, default_shards=2, shards_by_prefix={"post:": 3})
    assert open_stores(changed).shard_rules == [("", 2), ("", 4), ("post:", 3)]


@pytest.mark.parametrize("emptied", ["Redis", "Postgres"])
def test_rules_survive_the_loss_of_a_store(
    settings: Settings, redis: Redis, redis_url: str, database: str, emptied: str
) -> None:
    open_stores(settings)
    if emptied == "Redis":
        redis.flushdb()
    else:
        with connect(database) as conn:
            conn.execute("DROP SCHEMA tallyboard CASCADE")
    open_stores(settings_for(redis_url, database, default_shards=4))
    in_postgres = rows(database, "SELECT prefix, shards FROM tallyboard.shard_rules ORDER BY 2")
    assert ([tuple(rule) for rule in rules_in(redis)], in_postgres) == ([("", 2), ("", 4)],) * 2


def test_goes_on_without_postgres(settings: Settings, redis_url: str) -> None:
    before = open_stores(settings)
    opened = open_stores(settings_for(redis_url, AWAY))
    assert (opened.incarnations, opened.postgres_available) == (before.incarnations, False)


def test_says_that_postgres_is_away_without_its_password(
    settings: Settings, redis_url: str
) -> None:
    open_stores(settings)
    (problem,) = open_stores(settings_for(redis_url, AWAY)).problems
    assert problem.startswith("Postgres at postgresql://acme:***@127.0.0.1:1/acme can't be used")


def test_a_rule_recorded_without_postgres_reaches_it_later(
    settings: Settings, redis_url: str, database: str
) -> None:
    open_stores(settings)
    open_stores(settings_for(redis_url, AWAY, default_shards=4))
    open_stores(settings)
    assert len(rows(database, "SELECT * FROM tallyboard.shard_rules")) == 2


def test_does_not_begin_without_postgres(redis_url: str) -> None:
    with pytest.raises(StartupError, match="start Postgres first"):
        open_stores(settings_for(redis_url, AWAY))


def test_what_redis_lacks_stays_closed_without_postgres(
    settings: Settings, redis: Redis, redis_url: str
) -> None:
    open_stores(settings)
    redis.delete(incarnation_key(0))
    assert open_stores(settings_for(redis_url, AWAY)).closed == [0]


def test_a_start_without_redis_names_it(database: str, short_folder: Path) -> None:
    with pytest.raises(StartupError, match=r"Redis at redis://ann:\*\*\*@127.0.0.1:1 can't be"):
        open_stores(settings_for("redis://ann:secret@127.0.0.1:1", database))


def test_a_start_with_too_few_replicas_warns_once(settings: Settings) -> None:
    settings = replace(settings, durability="replicated:1")
    with capture_logs() as logs:
        open_stores(settings)
        open_stores(settings, log=False)
    (line,) = [line for line in logs if "replicas" in line["event"]]
    assert line["log_level"] == "warning"
    assert "Connect replicas" in line["event"]
