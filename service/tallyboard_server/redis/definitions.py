"""Definitions of leaderboards in Redis: the text, and the fences that submissions look at.

What is made here are commands, for whoever sends them: a worker over its link, the keeper over its
own client. All are safe to repeat, and none puts an older revision over a newer one.
"""

from collections.abc import Container
from typing import Any, Final

from tallyboard_server.redis import scripts
from tallyboard_server.redis.keys import (
    definition_key,
    dirty_key,
    fence_key,
    home_partition,
    segment_partition,
    windows_key,
)

# Counts the changes of definitions; workers look at it to know when theirs are out of date.
CHANGES_KEY: Final = "tb:boards"
# What is left of a deleted definition, so that a late copy can't bring it back.
_TOMBSTONE_TTL: Final = 24 * 3600
_DROP_STEP: Final = 200

Command = tuple[Any, ...]


def partitions_of(tenant: str, leaderboard_id: str, segments: int, partitions: int) -> list[int]:
    """The partitions that a leaderboard's segments are in, the home first."""
    return [
        segment_partition(tenant, leaderboard_id, segment, partitions)
        for segment in range(min(segments, partitions))
    ]


def publish(
    tenant: str,
    leaderboard_id: str,
    board_key: str,
    revision: int,
    definition: str | None,
    segments: int,
    partitions: int,
) -> list[Command]:
    """Commands that tell Redis of a revision; None for a definition that was deleted."""
    everywhere = range(partitions)
    *commands, define = restore(
        tenant, leaderboard_id, board_key, revision, definition, segments, partitions, everywhere
    )
    if definition:
        for p in partitions_of(tenant, leaderboard_id, segments, partitions):
            around = (f"{{tb:{p}}}:", f":{board_key}:")
            here = windows_key(p, board_key)
            commands.append(("EVAL", scripts.KEEP_WINDOWS.source, 1, here, *around))
    return [*commands, define, ("INCR", CHANGES_KEY)]


def restore(
    tenant: str,
    leaderboard_id: str,
    board_key: str,
    revision: int,
    definition: str | None,
    segments: int,
    partitions: int,
    places: Container[int],
) -> list[Command]:
    """Commands that give some partitions what they hold of a revision: fences, then the text."""
    home = home_partition(tenant, leaderboard_id, partitions)
    mark = "x" if definition is None else ""
    commands = fence(
        tenant, leaderboard_id, board_key, revision, mark, segments, partitions, places
    )
    if home in places:
        key = definition_key(home, tenant, leaderboard_id)
        ttl = _TOMBSTONE_TTL if definition is None else 0
        text = f"\n{definition or ''}"
        commands.append(("EVAL", scripts.DEFINE.source, 1, key, revision, text, ttl))
    return commands


def fence(
    tenant: str,
    leaderboard_id: str,
    board_key: str,
    revision: int,
    mark: str,
    segments: int,
    partitions: int,
    places: Container[int] | None = None,
) -> list[Command]:
    """Commands that set a board's fences.

    Args:
        mark: empty (submissions of this revision are taken), "-" (none for now) or "x" (deleted).
        places: only in these partitions; None for all that the board has.
    """
    return [
        ("EVAL", scripts.DEFINE.source, 1, fence_key(p, board_key), revision, mark,
         _TOMBSTONE_TTL if mark == "x" else 0)
        for p in partitions_of(tenant, leaderboard_id, segments, partitions)
        if places is None or p in places
    ]  # fmt: skip


def parse_definition(held: bytes | None) -> str | None:
    """The definition's text; None if there is none, or only what is left of a deleted one."""
    if held is None:
        return None
    return held.partition(b"\n")[2].decode() or None


def parse_revision(held: bytes | None) -> int:
    """The revision of a definition, or of what is left of a deleted one; 0 if there is neither."""
    return 0 if held is None else int(held.partition(b"\n")[0])


def drop_windows(partition: int, board_key: str) -> Command:
    """The command that drops some windows of a deleted board in one partition."""
    keys = (windows_key(partition, board_key), dirty_key(partition))
    around = (f"{{tb:{partition}}}:", f":{board_key}:")
    return ("EVAL", scripts.DROP_WINDOWS.source, 2, *keys, *around, _DROP_STEP)
