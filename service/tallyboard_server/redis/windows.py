"""What the keeper does to a window's data in Redis, as commands for its own client.

All are safe to repeat.
"""

from typing import Any

from tallyboard_server.redis import scripts
from tallyboard_server.redis.keys import (
    dirty_key,
    incarnation_key,
    window_keys,
    windows_key,
)

Command = tuple[Any, ...]


def close_window(partition: int, incarnation: str, board_key: str, window: str) -> Command:
    """Closes a window: only imports are taken from then on. Answers b"ok" or b"fenced" first."""
    keys = window_keys(partition, board_key, window)
    named = (incarnation_key(partition), keys.entries, windows_key(partition, board_key))
    return ("EVAL", scripts.CLOSE_WINDOW.source, len(named), *named, incarnation, window)


def is_there(partition: int, board_key: str, window: str) -> Command:
    """Answers 1 if the partition has the window's data, be it without entries."""
    return ("HEXISTS", window_keys(partition, board_key, window).entries, "")


def expire_window(partition: int, board_key: str, window: str, ends_at: int) -> Command:
    """Lets an archived window end (seconds since the epoch), unless it was written to since."""
    keys = window_keys(partition, board_key, window)
    named = (keys.entries, keys.ranking, keys.dirty, keys.in_flight)
    return ("EVAL", scripts.EXPIRE_WINDOW.source, len(named), *named, ends_at)


def drop_window(partition: int, board_key: str, window: str) -> list[Command]:
    """Drops a window whose retention is over."""
    keys = window_keys(partition, board_key, window)
    return [
        ("UNLINK", *keys),
        ("SREM", windows_key(partition, board_key), window),
        ("SREM", dirty_key(partition), keys.entries),
    ]


def sweep_windows(partition: int, board_key: str) -> Command:
    """Forgets the names of windows that are no more."""
    prefix = window_keys(partition, board_key, "").entries
    return ("EVAL", scripts.SWEEP_WINDOWS.source, 1, windows_key(partition, board_key), prefix)
