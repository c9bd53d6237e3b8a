"""How long a comparison of Redis with Postgres takes: `python -m tests.benchmarks.verify`.

Both stores are filled with the same counters and entries, directly, and then compared.
"""

import argparse
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

from redis import Redis

from tallyboard_server.checkpointer import Checkpointer
from tallyboard_server.embedded import EmbeddedPostgres, EmbeddedRedis
from tallyboard_server.leaderboards.definitions import to_json
from tallyboard_server.leaderboards.model import Leaderboard
from tallyboard_server.postgres.pool import connect, open_pool
from tallyboard_server.recovery.findings import Verified
from tallyboard_server.recovery.verify import Verifier
from tallyboard_server.redis.keys import segment_partition, shard_key, window_keys, windows_key
from tallyboard_server.redis.nodes import control_client
from tallyboard_server.redis.scores import element_of, make_record
from tallyboard_server.settings import Settings
from tallyboard_server.stores import open_stores
from tests.conftest import make_short_folder
from tests.redis.nodes import nodes_of

PARTITIONS = 64
_CHUNK = 5_000
_MOMENT = 1_700_000_000_000_000


@contextmanager
def stores() -> Iterator[Settings]:
    """Stores of their own, opened."""
    folder = make_short_folder()
    try:
        with EmbeddedRedis(folder, ("--appendonly", "no")) as redis, EmbeddedPostgres(folder) as pg:
            settings = Settings(redis_url=redis.url, postgres_url=pg.url, durability="applied")
            open_stores(settings)
            yield settings
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def fill_counters(settings: Settings, redis: Redis, count: int) -> None:
    """Counters post:0, post:1 and so on of the tenant acme, each with one shard."""
    with connect(settings.postgres_url) as conn:
        conn.answer_timeout = 600.0
        conn.execute("SET statement_timeout = 0")
        with conn.cursor().copy("COPY tallyboard.counter_shards FROM STDIN") as copy:
            for i in range(count):
                copy.write_row((i % PARTITIONS, "acme", f"post:{i}", False, i, False))
        conn.execute(
            "INSERT INTO tallyboard.counters (tenant, counter, shards, shards_value, wides,"
            " wides_value, deleted_wides, updated_at)"
            " SELECT tenant, counter, 1, value, 0, 0, 0, now()"
            " FROM tallyboard.counter_shards"
        )
        conn.execute("ANALYZE tallyboard.counter_shards")
        conn.execute("ANALYZE tallyboard.counters")
    for low in range(0, count, _CHUNK):
        numbers = range(low, min(low + _CHUNK, count))
        redis.mset({shard_key(i % PARTITIONS, "acme", f"post:{i}"): i for i in numbers})


def fill_board(settings: Settings, redis: Redis, count: int) -> None:
    """A board with one segment and one window that holds so many entries."""
    board = Leaderboard("acme", "likes", board_key="0123456789abcdef")
    with connect(settings.postgres_url) as conn:
        conn.answer_timeout = 600.0
        conn.execute("SET statement_timeout = 0")
        conn.execute(
            "INSERT INTO tallyboard.leaderboards (board_key, tenant, leaderboard_id, definition,"
            " revision, descending, earliest, late_grace, retention, created_at, updated_at)"
            " VALUES (%s, %s, %s, %s, 1, true, true, 60, '{}', now(), now())",
            (board.board_key, board.tenant, board.leaderboard_id, to_json(board)),
        )
        row = conn.execute(
            'INSERT INTO tallyboard.leaderboard_windows (board_key, "window", kind, changed_at)'
            " VALUES (%s, 'all', 'ALL_TIME', now()) RETURNING window_id",
            (board.board_key,),
        ).fetchone()
        assert row is not None
        partition = segment_partition("acme", "likes", 0, PARTITIONS)
        conn.execute(
            "INSERT INTO tallyboard.leaderboard_entries"
            " (window_id, member, partition, score, updated_at, metadata)"
            " SELECT %s, 'm' || i, %s, i, tallyboard.moment(%s), ''"
            " FROM generate_series(0, %s) AS i",
            (row[0], partition, _MOMENT, count - 1),
        )
        conn.execute("ANALYZE tallyboard.leaderboard_entries")
    keys = window_keys(partition, board.board_key, "all")
    redis.sadd(windows_key(partition, board.board_key), "all")
    redis.hset(keys.entries, "", b"o" + bytes(16))
    for low in range(0, count, _CHUNK):
        ranking: dict[Any, Any] = {}
        entries: dict[Any, Any] = {}
        for i in range(low, min(low + _CHUNK, count)):
            ranking[element_of(f"m{i}", _MOMENT, descending=True, earliest=True)] = i
            entries[f"m{i}"] = make_record(_MOMENT, float(i), b"", True)
        redis.zadd(keys.ranking, ranking)
        redis.hset(keys.entries, mapping=entries)


def measure(settings: Settings, redis: Redis) -> None:
    """Prints what each part of a comparison of all partitions takes."""
    with open_pool(settings.postgres_url) as pool:
        nodes = nodes_of(redis, PARTITIONS)
        checkpointer = Checkpointer(nodes, pool, PARTITIONS)
        verifier = Verifier(nodes, pool, checkpointer, PARTITIONS)
        found = {number: Verified(number, 10) for number in range(PARTITIONS)}
        _timed("strays and totals", lambda: verifier.search(found))
        for result in found.values():
            assert result.problem is None, result.problem
        _timed("values", lambda: (step for one in found.values() for step in verifier.compare(one)))
        counters = sum(result.counters for result in found.values())
        entries = sum(result.entries for result in found.values())
        differences = sum(result.difference_count for result in found.values())
        print(f"{counters:,} counters, {entries:,} entries, {differences:,} differences")


def _timed(what: str, steps: Callable[[], Iterator[None]]) -> None:
    started = last = time.monotonic()
    longest, before = 0.0, time.process_time()
    for _ in steps():
        now = time.monotonic()
        longest, last = max(longest, now - last), now
    seconds, used = time.monotonic() - started, time.process_time() - before
    print(f"{what}: {seconds:.2f} s, {used:.2f} s of them at work here, ", end="")
    print(f"the longest step {longest * 1000:.0f} ms", flush=True)


def main() -> None:
    """Fills and measures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--counters", type=int, default=1_000_000)
    parser.add_argument("--entries", type=int, default=1_000_000)
    arguments = parser.parse_args()
    with stores() as settings, closing(control_client(settings.redis_url, 30.0)) as redis:
        fill_counters(settings, redis, arguments.counters)
        fill_board(settings, redis, arguments.entries)
        measure(settings, redis)


if __name__ == "__main__":
    main()
