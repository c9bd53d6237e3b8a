"""Compares counters in Redis with those in Postgres."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Final

from tallyboard_server.errors import Unavailable
from tallyboard_server.postgres.pool import BoundedPool
from tallyboard_server.postgres.verify import (
    Shard,
    ShardName,
    end_of_totals,
    find_shards,
    missing_shards,
    shard_page,
    wrong_totals,
)
from tallyboard_server.recovery.findings import Difference, Verified
from tallyboard_server.recovery.partition import OpenPartition
from tallyboard_server.redis.keys import home_partition, parse_counter_key, shard_key, wide_key
from tallyboard_server.redis.looks import Look, Looks

_PAGE: Final = 5_000
_DELETED: Final = b"x"
_TOTAL: Final = "the total in Postgres is not the sum of its parts"
# Strays that are remembered, so that none is counted twice.
_MOST_STRAYS: Final = 100_000


class CounterCheck:
    """Comparisons that go on step by step, so that whoever runs them can stop in between."""

    def __init__(self, pool: BoundedPool, looks: Looks) -> None:
        self._pool = pool
        self._looks = looks

    def compare(self, partition: OpenPartition, found: Verified) -> Iterator[None]:
        """Compares all counters that Postgres has in a partition."""
        after: Shard | None = None
        while True:
            with self._pool.connection() as conn:
                page = shard_page(conn, found.partition, after, _PAGE)
            if page:
                self._compare_page(partition, found, page)
            yield
            if len(page) < _PAGE:
                return
            after = page[-1]

    def search(
        self, partitions: Mapping[int, OpenPartition], found: Mapping[int, Verified]
    ) -> Iterator[None]:
        """Looks for counters that only Redis has, in one walk over all its keys.

        Args:
            partitions: those to look at; others are left alone.
            found: by partition, what takes the differences, or the problem that ended the look at
                that partition.
        """
        # Redis may name a key twice while its table of keys grows or shrinks.
        strays: set[ShardName] = set()
        for keys in self._looks.keys_of_counters(partitions, _PAGE):
            names_here = dict.fromkeys(filter(None, map(_parse, keys)))
            named = [
                name for name in names_here if name.partition in partitions and name not in strays
            ]
            for number, names in self._missing(named).items():
                if len(strays) < _MOST_STRAYS:
                    strays.update(names)
                if found[number].problem is None:
                    self._settle_strays(partitions[number], found[number], names)
            yield

    def compare_totals(self, found: Mapping[int, Verified], partitions: int) -> Iterator[None]:
        """Compares all totals in Postgres with their parts there.

        Args:
            found: by partition, what takes the differences of counters whose home it is.
            partitions: how many there are.
        """
        after, last = ("", ""), None
        while True:
            with self._pool.connection() as conn:
                last = end_of_totals(conn, after, _PAGE)
                wrong = wrong_totals(conn, partitions, after, last)
            for tenant, counter, parts, total in wrong:
                home = found.get(home_partition(tenant, counter, partitions))
                if home is not None and home.problem is None:
                    home.note(Difference(tenant, counter, _text(parts), _text(total), _TOTAL))
            yield
            if last is None:
                return
            after = last

    def _missing(self, names: Sequence[ShardName]) -> dict[int, list[ShardName]]:
        """Those that Postgres lacks, by partition."""
        if not names:
            return {}
        with self._pool.connection() as conn:
            missing = missing_shards(conn, names)
        by_partition: defaultdict[int, list[ShardName]] = defaultdict(list)
        for name in missing:
            by_partition[name.partition].append(name)
        return by_partition

    def _settle_strays(
        self, partition: OpenPartition, found: Verified, names: Sequence[ShardName]
    ) -> None:
        try:
            looks = self._look(partition, names)
            known = [name for name, look in looks.items() if look.value and not look.is_newer]
            self._settle(partition, found, known)
        except Unavailable as error:
            found.problem = error

    def _compare_page(
        self, partition: OpenPartition, found: Verified, page: Sequence[Shard]
    ) -> None:
        found.counters += len(page)
        held = self._looks.values(partition.number, [_key(shard.name) for shard in page])
        suspects = [
            shard
            for shard, value in zip(page, held, strict=True)
            if value != _expected(shard.value, shard.name.wide, shard.frozen)
        ]
        self._settle(partition, found, self._not_newer(partition, suspects))

    def _not_newer(self, partition: OpenPartition, suspects: Sequence[Shard]) -> list[ShardName]:
        """Those that still differ, and have not changed since the last checkpoint."""
        if not suspects:
            return []
        looks = self._look(partition, [shard.name for shard in suspects])
        return [
            shard.name
            for shard in suspects
            if not looks[shard.name].is_newer and not _agree(looks[shard.name], shard)
        ]

    def _look(self, partition: OpenPartition, names: Sequence[ShardName]) -> dict[ShardName, Look]:
        keys = [_key(name) for name in names]
        looks = self._looks.counters(partition.number, partition.incarnation, keys)
        return dict(zip(names, looks, strict=True))

    def _settle(
        self, partition: OpenPartition, found: Verified, names: Sequence[ShardName]
    ) -> None:
        """Takes down what differs while no checkpoint moves the two."""
        if not names:
            return
        with partition.held(self._pool) as conn:
            stored = find_shards(conn, names)
            looks = self._look(partition, names)
        for name, look in looks.items():
            _judge(found, name, look, stored.get(name))


def _judge(found: Verified, name: ShardName, look: Look, stored: Shard | None) -> None:
    """Takes it down if it is a difference."""
    if look.is_newer or _agree(look, stored):
        return
    redis = None if look.value is None else _number(look.value)
    postgres = None if stored is None else str(stored.value)
    found.note(Difference(name.tenant, name.counter, redis, postgres, _detail(look, stored)))


def _agree(look: Look, stored: Shard | None) -> bool:
    if stored is None:
        return look.value is None
    expected = _expected(stored.value, stored.name.wide, stored.frozen)
    return look.value is not None and look.value == expected


def _detail(look: Look, stored: Shard | None) -> str:
    if look.value is None:
        return "Redis lacks it"
    if stored is None:
        return "Postgres lacks it"
    number = _number(look.value)
    if number is None:
        return "what Redis holds is no number"
    if number == str(stored.value):
        return "it is wide in one of the two only, or deleted in one only"
    return "the values differ"


def _expected(value: int, wide: bool, frozen: bool) -> bytes:
    """What Redis should hold for a row."""
    if wide and frozen:
        return _DELETED
    return b"w%d" % value if frozen else b"%d" % value


def _number(value: bytes) -> str | None:
    """The number that Redis holds, 0 for the mark of a deleted counter; None if it is none."""
    if value == _DELETED:
        return "0"
    with suppress(ValueError):
        return str(int(value.removeprefix(b"w")))
    return None


def _text(value: int | None) -> str | None:
    return None if value is None else str(value)


def _key(name: ShardName) -> str:
    make = wide_key if name.wide else shard_key
    return make(name.partition, name.tenant, name.counter)


def _parse(key: bytes) -> ShardName | None:
    """The name in a key; None for what is no counter's, or can't be in Postgres."""
    try:
        kind, partition, tenant, counter = parse_counter_key(key)
    except ValueError:
        return None
    return None if b"\0" in key else ShardName(partition, tenant, counter, kind == "w")
