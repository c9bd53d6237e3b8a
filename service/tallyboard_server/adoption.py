"""Taking over what only Redis has into a Postgres that is new."""

from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from itertools import islice
from typing import Final

from redis import Redis

from tallyboard_server.errors import AlreadyExists
from tallyboard_server.leaderboards.boards import row_of
from tallyboard_server.leaderboards.definitions import from_json
from tallyboard_server.postgres.leaderboards import find_by_keys, insert
from tallyboard_server.postgres.pool import BoundedConnection
from tallyboard_server.redis.definitions import parse_definition
from tallyboard_server.redis.keys import (
    dirty_key,
    parse_counter_key,
    parse_entries_key,
    window_keys,
)

_SCAN: Final = 1_000


def mark_all_dirty(redis: Redis, partitions: Iterable[int]) -> int:
    """Marks every key of counters and every entry of these partitions for the next checkpoint.

    Looks at every key in Redis once, and at every entry. Keys made meanwhile mark themselves.

    Returns:
        how many keys were marked.
    """
    wanted = frozenset(partitions)
    marked = 0
    found = redis.scan_iter(match="{tb:*}:[cwh]:*", count=_SCAN)
    while keys := list(islice(found, _SCAN)):
        by_partition: defaultdict[int, list[bytes]] = defaultdict(list)
        for key in keys:
            partition = _partition_of(key)
            if partition in wanted:
                by_partition[partition].append(key)
        for members in by_partition.values():
            for key in members:
                _mark_members(redis, key)
        pipeline = redis.pipeline(transaction=False)
        for partition, members in by_partition.items():
            pipeline.execute_command("SADD", dirty_key(partition), *members)
            marked += len(members)
        pipeline.execute()
    return marked


def _mark_members(redis: Redis, key: bytes) -> None:
    """Marks all entries of a window, if the key is of one."""
    try:
        partition, board_key, window = parse_entries_key(key)
    except ValueError:
        return
    dirty = window_keys(partition, board_key, window).dirty
    found = redis.hscan_iter(key, count=_SCAN)
    while members := [member for member, _ in islice(found, _SCAN) if member]:
        redis.execute_command("SADD", dirty, *members)


def adopt_definitions(redis: Redis, conn: BoundedConnection) -> int:
    """Takes definitions of leaderboards from Redis into a Postgres that is new; gives how many."""
    adopted = 0
    for key in redis.scan_iter(match="{tb:*}:b:*", count=_SCAN):
        text = parse_definition(redis.execute_command("GET", key))
        if text is None:
            continue
        board = from_json(text)
        if not find_by_keys(conn, [board.board_key]):
            with suppress(AlreadyExists), conn.transaction():
                insert(conn, row_of(board))
                adopted += 1
    return adopted


def _partition_of(key: bytes) -> int:
    for parse in (parse_counter_key, parse_entries_key):
        with suppress(ValueError):
            return parse(key).partition
    return -1
