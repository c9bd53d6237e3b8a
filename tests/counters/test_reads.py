"""Reads: one loader a key, bounded memory, shared aggregates, closed partitions."""

import threading
import time
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor

import pytest

from tallyboard_server.counters.model import Source
from tallyboard_server.counters.reads import CountReader
from tallyboard_server.counters.sharding import Sharding
from tallyboard_server.embedded import EmbeddedRedis
from tallyboard_server.errors import Unavailable
from tallyboard_server.redis.keys import aggregate_key, incarnation_key
from tallyboard_server.redis.nodes import control_client
from tallyboard_server.redis.store import RedisStore
from tests.counters.conftest import PARTITIONS

SHARDING = Sharding(PARTITIONS, 8, {}, [], 8, 0)


class CountingStore:
    """Passes reads on to a real store once a gate is open, and counts them."""

    def __init__(self, store: RedisStore) -> None:
        self._store = store
        self.gate = threading.Event()
        self.reads = 0
        self.send = store.send

    def get(
        self, keys: list[str], deadline: float, partitions: Collection[int] = ()
    ) -> list[bytes | None]:
        """A read of the real store."""
        self.reads += 1
        self.gate.wait(10)
        return self._store.get(keys, deadline, partitions)


def reader(store: RedisStore | CountingStore, max_entries: int = 100) -> CountReader:
    """A reader with short aggregates."""
    return CountReader(store, SHARDING, ttl=60, max_entries=max_entries)  # type: ignore[arg-type]


def soon() -> float:
    """A deadline."""
    return time.monotonic() + 10


def test_a_miss_is_loaded_once_for_all_who_wait(store: RedisStore) -> None:
    counting = CountingStore(store)
    shared = reader(counting)
    with ThreadPoolExecutor(20) as pool:
        answers = [pool.submit(shared.get, "acme", ("once",), 60, soon()) for _ in range(20)]
        counting.gate.set()
        found = {answer.result()[0].as_of for answer in answers}
    # One look at the aggregate and one at the shards.
    assert (len(found), counting.reads) == (1, 2)


def test_a_second_worker_takes_the_shared_aggregate(store: RedisStore) -> None:
    first = reader(store).get("acme", ("shared",), 60, soon())[0]
    store.get(["x"], soon())  # behind the write of the aggregate, on the same link
    second = reader(store).get("acme", ("shared",), 60, soon())[0]
    assert (second.as_of, second.source) == (pytest.approx(first.as_of, abs=1e-5), Source.CACHE)


def test_an_aggregate_that_is_too_old_is_not_used(store: RedisStore) -> None:
    key = aggregate_key(SHARDING.home("acme", "old"), "acme", "old")
    store.commands([("SET", key, f"99:1:{time.time() - 30:.6f}")], soon())
    assert reader(store).get("acme", ("old",), 20, soon())[0].value == 0


def test_memory_is_bounded(store: RedisStore) -> None:
    small = reader(store, max_entries=10)
    for number in range(30):
        small.get("acme", (f"bounded:{number}",), 60, soon())
    kept = [n for n in range(30) if small.cached("acme", f"bounded:{n}", 60) is not None]
    assert kept == list(range(20, 30))


def test_a_read_of_a_lost_partition_is_refused(store: RedisStore, own_redis: EmbeddedRedis) -> None:
    home = SHARDING.home("acme", "lost")
    client = control_client(own_redis.url)
    client.set(incarnation_key(home), "another life")
    try:
        with pytest.raises(Unavailable) as caught:
            reader(store).exact("acme", ("lost",), soon())
    finally:
        client.set(incarnation_key(home), f"life-{home}")
        client.close()
    assert caught.value.reason == "PARTITION_UNAVAILABLE"


def test_everyone_who_waits_for_a_load_gets_its_error(store: RedisStore) -> None:
    counting = CountingStore(store)
    shared = reader(counting)
    with ThreadPoolExecutor(5) as pool:
        answers = [pool.submit(shared.get, "acme", ("failed",), 60, soon()) for _ in range(5)]
        store.close()
        counting.gate.set()
        errors = [answer.exception() for answer in answers]
    assert [type(error) for error in errors] == [Unavailable] * 5
