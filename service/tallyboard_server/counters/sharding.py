"""How many shards a counter has: for new writes, for writes with a token, and for reads.

The numbers can be changed at a restart, so each asks something else. A write goes to the shards
in force now. A write with a token must find the partition again that it chose before the change,
so it goes by the first default that was ever in force. A read covers every shard there ever was.
"""

import zlib
from collections.abc import Mapping, Sequence
from functools import lru_cache

from tallyboard_server.redis.keys import home_partition, place_shard


class Sharding:
    """Places counters.

    Args:
        partitions: the number of partitions.
        default_shards: shards of a counter that no prefix names.
        by_prefix: shards by name prefix; the longest prefix that fits counts.
        history: every (prefix, shards) ever in force, the oldest first; the default's prefix is "".
        own_shard: where this worker's writes without a token go: one shard, so that they merge.
    """

    def __init__(
        self,
        partitions: int,
        default_shards: int,
        by_prefix: Mapping[str, int],
        history: Sequence[tuple[str, int]],
        own_shard: int,
    ) -> None:
        self.partitions = partitions
        self._own_shard = own_shard
        self._default = min(default_shards, partitions)
        self._rules = sorted(by_prefix.items(), key=lambda rule: -len(rule[0]))
        self._history = [*history, ("", default_shards), *by_prefix.items()]
        self._first = min(next(s for p, s in self._history if p == ""), partitions)
        self.shards = lru_cache(maxsize=1 << 16)(self._shards)
        self.read_shards = lru_cache(maxsize=1 << 16)(self._read_shards)

    def _shards(self, counter: str) -> int:
        for prefix, shards in self._rules:
            if counter.startswith(prefix):
                return min(shards, self.partitions)
        return self._default

    def _read_shards(self, counter: str) -> int:
        most = max(shards for prefix, shards in self._history if counter.startswith(prefix))
        return min(most, self.partitions)

    def place(self, tenant: str, counter: str, token: str | None = None) -> tuple[int, str]:
        """Partition and key of the shard that a write goes to.

        Args:
            token: the request id or producer id of the write; the same one always gives the
                same shard.
        """
        if token is None:
            shard = self._own_shard % self.shards(counter)
        else:
            shard = zlib.crc32(token.encode()) % self._first
        return place_shard(tenant, counter, shard, self.partitions)

    def home(self, tenant: str, counter: str) -> int:
        """The counter's home partition."""
        return home_partition(tenant, counter, self.partitions)

    def all_shards(self, tenant: str, counter: str) -> list[tuple[int, str]]:
        """Partition and key of every shard that the counter may have, the home first."""
        return [
            place_shard(tenant, counter, shard, self.partitions)
            for shard in range(self.read_shards(counter))
        ]
