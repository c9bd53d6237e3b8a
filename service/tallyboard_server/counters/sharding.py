"""How many shards a counter has: for new writes, for writes with a token, and for reads.

The numbers can be changed at a restart, so each asks something else. A write goes to the shards
in force now. A write with a token must find the partition again that it chose before the change,
so it chooses from the number that was recorded when the stores were new. A read covers every
shard there ever was.
"""

import zlib
from collections.abc import Mapping, Sequence
from functools import lru_cache

from tallyboard_server.redis.keys import home_partition, place_shard
from tallyboard_server.settings import MAX_SHARDS

Place = tuple[int, str]  # partition and key
# Kept so that a hot counter is placed once.
_MAX_PLACES = 1 << 18


class _Places(dict[str, Place]):
    """Places by counter, for writes of one tenant to one shard (None: the worker's own)."""

    def __init__(self, sharding: "Sharding", tenant: str, shard: int | None) -> None:
        super().__init__()
        self._sharding = sharding
        self._tenant = tenant
        self._shard = shard

    def __missing__(self, counter: str) -> Place:
        shard = self._shard
        if shard is None:
            shard = self._sharding.own_shard(counter)
        place = place_shard(self._tenant, counter, shard, self._sharding.partitions)
        self[counter] = place
        self._sharding.note_place()
        return place


class Sharding:
    """Places counters.

    Args:
        partitions: the number of partitions.
        default_shards: shards of a counter that no prefix names.
        by_prefix: shards by name prefix; the longest prefix that fits counts.
        history: every (prefix, shards) ever in force; the default's prefix is "".
        token_shards: how many shards a write with a token chooses from; never changes.
        own_shard: where this worker's writes without a token go: one shard, so that they merge.
    """

    def __init__(
        self,
        partitions: int,
        default_shards: int,
        by_prefix: Mapping[str, int],
        history: Sequence[tuple[str, int]],
        token_shards: int,
        own_shard: int,
    ) -> None:
        self.partitions = partitions
        self._own_shard = own_shard
        self._default = min(default_shards, partitions)
        self._rules = sorted(by_prefix.items(), key=lambda rule: -len(rule[0]))
        self._history = [*history, ("", default_shards), ("", token_shards), *by_prefix.items()]
        self._token_shards = min(token_shards, partitions)
        self._places: dict[tuple[str, int | None], _Places] = {}
        self._placed = 0  # about: counted without a lock
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

    def place(self, tenant: str, counter: str, token: str | None = None) -> Place:
        """The shard that a write goes to.

        Args:
            token: the request id or producer id of the write; the same one always gives the
                same shard.
        """
        return self.places(tenant, token)[counter]

    def places(self, tenant: str, token: str | None = None) -> Mapping[str, Place]:
        """The shards that writes go to, by counter; made as they are asked for."""
        shard = None if token is None else zlib.crc32(token.encode()) % self._token_shards
        places = self._places.get((tenant, shard))
        if places is None:
            places = self._places[tenant, shard] = _Places(self, tenant, shard)
        return places

    def note_place(self) -> None:
        """Counts what is kept, and forgets all of it when it is too much."""
        self._placed += 1
        if self._placed > _MAX_PLACES:
            self._placed = 0
            self._places.clear()

    def own_shard(self, counter: str) -> int:
        """The shard of a write without a token."""
        return self._own_shard % self.shards(counter)

    def home(self, tenant: str, counter: str) -> int:
        """The counter's home partition."""
        return home_partition(tenant, counter, self.partitions)

    def possible_shards(self, tenant: str, counter: str) -> list[Place]:
        """Every shard that the counter could have under any setting."""
        return [
            place_shard(tenant, counter, shard, self.partitions)
            for shard in range(min(MAX_SHARDS, self.partitions))
        ]

    def all_shards(self, tenant: str, counter: str) -> list[tuple[int, str]]:
        """Partition and key of every shard that the counter may have, the home first."""
        return [
            place_shard(tenant, counter, shard, self.partitions)
            for shard in range(self.read_shards(counter))
        ]
