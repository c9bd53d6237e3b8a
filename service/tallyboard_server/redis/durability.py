"""Durability levels: which command a flush of writes ends with, and what its reply must say."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Durability:
    """What has to be true before a write is acknowledged.

    Attributes:
        command: sent behind the writes of a flush, or None when their replies are enough.
        reached: whether its reply says that the level is reached.
    """

    command: tuple[Any, ...] | None
    reached: Callable[[Any], bool]


def durability(mode: str, timeout: float) -> Durability:
    """The durability for a mode found at start.

    Args:
        mode: "applied" or "always" (Redis replies after its fsync): no further command;
            "waitaof": WAITAOF on the local append-only file; "wait:N": WAIT for N replicas.
        timeout: seconds that Redis may wait.
    """
    milliseconds = max(1, int(timeout * 500))
    if mode == "waitaof":
        return Durability(("WAITAOF", 1, 0, milliseconds), _first_at_least(1))
    if mode.startswith("wait:"):
        replicas = int(mode.removeprefix("wait:"))
        return Durability(("WAIT", replicas, milliseconds), lambda reply: _is_at(reply, replicas))
    return Durability(None, lambda reply: True)


def _is_at(reply: Any, least: int) -> bool:
    return isinstance(reply, int) and reply >= least


def _first_at_least(least: int) -> Callable[[Any], bool]:
    return lambda reply: isinstance(reply, list) and bool(reply) and _is_at(reply[0], least)
