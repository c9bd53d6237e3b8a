"""Looks at what Redis holds, for whoever compares it with Postgres.

A look is one step in Redis: a value, and whether it is newer than the last checkpoint. What is
not newer must be in Postgres.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple

from tallyboard_server.redis import scripts
from tallyboard_server.redis.fences import closed
from tallyboard_server.redis.keys import (
    dirty_key,
    in_flight_key,
    incarnation_key,
    window_keys,
    windows_key,
)
from tallyboard_server.redis.nodes import RedisNodes

# Most keys, and most members, of one look: a millisecond of Redis' time.
MAX_KEYS: Final = 2000
MAX_MEMBERS: Final = 1000


class Look(NamedTuple):
    """What a key of a counter holds, None for nothing."""

    value: bytes | None
    is_newer: bool


class EntryLook(NamedTuple):
    """A member's record, None for none, and its score in the ranking, None if that lacks it."""

    record: bytes | None
    ranked: float | None
    is_newer: bool


class Sizes(NamedTuple):
    """How much a window holds in one partition.

    Attributes:
        has_meta: False when Redis has nothing of the window, or it is being loaded.
        entries, ranked: how many entries, and how many members of the ranking.
        changed: members that have changed since the last checkpoint, deleted ones included.
    """

    has_meta: bool
    entries: int
    ranked: int
    changed: int


class Place(NamedTuple):
    """One window of a board in one partition.

    `earliest` says that the elements of the ranking have the moment before the member.
    """

    partition: int
    board_key: str
    window: str
    earliest: bool


class Looks:
    """Questions about partitions under the incarnation that the caller expects.

    All methods raise redis.RedisError, and those that take an incarnation Unavailable with
    PARTITION_UNAVAILABLE if Redis holds another.

    Args:
        nodes: clients that do not repeat commands.
    """

    def __init__(self, nodes: RedisNodes) -> None:
        self._nodes = nodes
        self._counters = scripts.on_any_client(scripts.VERIFY)
        self._entries = scripts.on_any_client(scripts.VERIFY_ENTRIES)

    def values(self, partition: int, keys: Sequence[str]) -> list[bytes | None]:
        """What keys of a partition hold, without a word on whether it is newer."""
        held: Any = self._nodes.of(partition).mget(keys)
        return list(held)

    def counters(self, partition: int, incarnation: str, keys: Sequence[str]) -> list[Look]:
        """Looks at keys of counters of one partition."""
        named = (incarnation_key(partition), dirty_key(partition), in_flight_key(partition))
        looks: list[Look] = []
        for low in range(0, len(keys), MAX_KEYS):
            some = keys[low : low + MAX_KEYS]
            node = self._nodes.of(partition)
            reply: Any = self._counters(keys=[*named, *some], args=[incarnation], client=node)
            if reply[0] == b"fenced":
                raise closed(partition)
            looks += map(Look, reply[1], map(bool, reply[2]))
        return looks

    def entries(
        self, place: Place, incarnation: str, members: Sequence[str | bytes]
    ) -> list[EntryLook]:
        """Looks at members of a window."""
        looks: list[EntryLook] = []
        for low in range(0, len(members), MAX_MEMBERS):
            reply = self._ask(place, incarnation, members[low : low + MAX_MEMBERS])
            for record, ranked, newer in zip(*reply[5:], strict=True):
                looks.append(
                    EntryLook(record, None if ranked is None else float(ranked), bool(newer))
                )
        return looks

    def sizes(self, place: Place, incarnation: str) -> Sizes:
        """Counts a window's entries."""
        reply = self._ask(place, incarnation, ())
        return Sizes(bool(reply[1]), *reply[2:5])

    def windows(self, partition: int, board_keys: Sequence[str]) -> list[set[bytes]]:
        """The windows that boards have in a partition."""
        pipeline = self._nodes.of(partition).pipeline(transaction=False)
        for board_key in board_keys:
            pipeline.smembers(windows_key(partition, board_key))
        found: list[set[bytes]] = pipeline.execute()
        return found

    def keys_of_counters(self, partitions: Iterable[int], count: int) -> Iterator[list[bytes]]:
        """All keys of counters that the nodes of these partitions have, some at a time.

        A key may come twice.
        """
        for node, _ in self._nodes.group(partitions):
            cursor = -1
            while cursor != 0:
                answer: Any = node.scan(max(cursor, 0), match="{tb:*}:[cw]:*", count=count)
                cursor, keys = answer
                yield keys

    def members(self, place: Place, count: int) -> Iterator[list[bytes]]:
        """The members of a window's entries, some at a time; one may come twice."""
        key = window_keys(place.partition, place.board_key, place.window).entries
        node = self._nodes.of(place.partition)
        cursor = -1
        while cursor != 0:
            answer: Any = node.hscan(key, max(cursor, 0), count=count)
            cursor, found = answer
            yield [member for member in found if member]

    def strangers(self, place: Place, count: int) -> Iterator[list[tuple[bytes, float]]]:
        """Elements of a ranking that belong to no entry, some at a time: member and score."""
        keys = window_keys(place.partition, place.board_key, place.window)
        node = self._nodes.of(place.partition)
        cursor = -1
        while cursor != 0:
            answer: Any = node.zscan(keys.ranking, max(cursor, 0), count=count)
            cursor, found = answer
            suspects = self._without_record(keys.entries, place, [element for element, _ in found])
            yield list(self._still_there(place, suspects))

    def _without_record(self, key: str, place: Place, elements: list[bytes]) -> list[bytes]:
        if not elements:
            return []
        members = [_member(place, element) for element in elements]
        records: Any = self._nodes.of(place.partition).hmget(key, members)
        return [
            element
            for element, record in zip(elements, records, strict=True)
            if not _belongs(place, element, record)
        ]

    def _still_there(self, place: Place, elements: list[bytes]) -> Iterator[tuple[bytes, float]]:
        """Those that are without an entry at one moment: a score may have changed in between."""
        keys = window_keys(place.partition, place.board_key, place.window)
        for element in elements:
            pipeline = self._nodes.of(place.partition).pipeline(transaction=True)
            pipeline.zscore(keys.ranking, element)
            pipeline.hget(keys.entries, _member(place, element))
            score, record = pipeline.execute()
            if score is not None and not _belongs(place, element, record):
                yield _member(place, element), score

    def _ask(self, place: Place, incarnation: str, members: Sequence[str | bytes]) -> Any:
        keys = window_keys(place.partition, place.board_key, place.window)
        named = [
            incarnation_key(place.partition),
            keys.entries,
            keys.ranking,
            keys.dirty,
            keys.in_flight,
        ]
        tie = "e" if place.earliest else "m"
        node = self._nodes.of(place.partition)
        reply: Any = self._entries(keys=named, args=[incarnation, tie, *members], client=node)
        if reply[0] == b"fenced":
            raise closed(place.partition)
        return reply


def _member(place: Place, element: bytes) -> bytes:
    return element[8:] if place.earliest else element


def _belongs(place: Place, element: bytes, record: bytes | None) -> bool:
    return record is not None and (not place.earliest or record[:8] == element[:8])
