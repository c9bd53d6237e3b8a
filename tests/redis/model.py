"""The counters of one worker without its RPCs, on a Redis of a test."""

import threading
from typing import Final

from tallyboard_server.counters.reads import CountReader
from tallyboard_server.counters.requests import RequestIds
from tallyboard_server.counters.sharding import Sharding
from tallyboard_server.counters.wide import WideCounters
from tallyboard_server.counters.writes import CounterWriter
from tallyboard_server.errors import TallyboardError
from tallyboard_server.redis.durability import APPLIED
from tallyboard_server.redis.fences import Fences
from tallyboard_server.redis.keys import incarnation_key, producer_key
from tallyboard_server.redis.operations import Token
from tallyboard_server.redis.store import RedisStore
from tests.redis.admission import REDIS_TIMEOUT, AdmitsAll
from tests.redis.node import RedisNode
from tests.redis.nodes import topology_of

PARTITIONS: Final = 4
SHARDS: Final = 3
LIFE: Final = "model"


def prepare(node: RedisNode) -> None:
    """Makes the partitions."""
    for partition in range(PARTITIONS):
        node.command("SET", incarnation_key(partition), LIFE)


class Counters:
    """What a worker has between its RPCs and Redis; close it.

    Args:
        own_shard: where its writes without a token go.
        mode: its durability.
    """

    def __init__(self, url: str, own_shard: int, mode: str = APPLIED) -> None:
        fences = Fences(dict.fromkeys(range(PARTITIONS), LIFE))
        self.sharding = sharding = Sharding(PARTITIONS, SHARDS, {}, [], SHARDS, own_shard)
        self.store = RedisStore(
            topology_of(url, PARTITIONS),
            fences,
            AdmitsAll(mode),
            timeout=REDIS_TIMEOUT,
            max_pending=10_000,
            on_refused=lambda part, names: self.wide.take_over(part, names),
        )
        self.wide = WideCounters(self.store, sharding, 5.0)
        requests = RequestIds(self.store, PARTITIONS, 600)
        self.writer = CounterWriter(self.store, sharding, self.wide, requests)
        self.reader = CountReader(self.store, sharding, ttl=2.0, max_entries=100)

    def close(self) -> None:
        """Ends its threads."""
        self.wide.close()
        self.store.close()

    def stream_batch(
        self, tenant: str, producer: str, sequence: int, merged: dict[str, int]
    ) -> dict[str, TallyboardError]:
        """Submits a batch as a stream does, waits, and gives what did not count."""

        def token_of(partition: int) -> Token:
            return Token("p", producer_key(partition, tenant, producer), sequence, 600)

        over = threading.Event()
        write, result = self.writer.submit(tenant, merged, producer, token_of, over.set)
        assert over.wait(10.0)
        return self.writer.outcome(write, result).failures
