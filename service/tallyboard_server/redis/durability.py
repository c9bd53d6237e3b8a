"""Durability levels: whether the Redis at hand can keep what one promises, and by which command.

`choose_durability` is asked once, at the start; `durability` makes what the links follow.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from redis import Redis
from redis.exceptions import ResponseError

from tallyboard_server.startup import StartupError

APPLIED: Final = "applied"
ALWAYS: Final = "always"
WAITAOF: Final = "waitaof"
WAIT: Final = "wait:"
# With appendfsync everysec, Redis syncs once a second, and later while its disk is busy.
_FSYNC_PATIENCE: Final = 3.0


@dataclass(frozen=True)
class Durability:
    """What has to be true before a write is acknowledged.

    Attributes:
        command: sent behind the writes of a flush, or None when their replies are enough.
        reached: whether its reply says that the level is reached.
        patience: seconds that Redis may take for the command alone.
    """

    command: tuple[Any, ...] | None
    reached: Callable[[Any], bool]
    patience: float = 0.0


def durability(mode: str, timeout: float) -> Durability:
    """The durability for a mode found at start.

    Args:
        mode: what `choose_durability` said.
        timeout: seconds that replicas may take.
    """
    if mode == WAITAOF:
        command: tuple[Any, ...] = ("WAITAOF", 1, 0, int(_FSYNC_PATIENCE * 1000))
        return Durability(command, _first_at_least(1), _FSYNC_PATIENCE)
    if mode.startswith(WAIT):
        replicas = int(mode.removeprefix(WAIT))
        command = ("WAIT", replicas, max(1, int(timeout * 1000)))
        return Durability(command, lambda reply: _is_at(reply, replicas), timeout)
    return Durability(None, lambda reply: True)


def _is_at(reply: Any, least: int) -> bool:
    return isinstance(reply, int) and reply >= least


def _first_at_least(least: int) -> Callable[[Any], bool]:
    return lambda reply: isinstance(reply, list) and bool(reply) and _is_at(reply[0], least)


def choose_durability(redis: Redis, durability: str) -> str:
    """How a write is known to be durable.

    Args:
        redis: a connected client.
        durability: `applied`, `fsynced`, `replicated:N` or `journaled`.

    Returns:
        `applied`: the answer of a write is enough. `always`: as well, for Redis writes its file
        before it answers. `waitaof`: WAITAOF 1 0 has to follow. `wait:N`: WAIT N has to follow.

    Raises:
        StartupError: this Redis can't do it as it is set up, or may evict counters.
        redis.RedisError: Redis is away.
    """
    info: dict[str, str] = {}
    for name in ("server", "memory", "persistence"):
        info |= _section(redis, name)
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        raise StartupError(
            f"Redis has maxmemory-policy {policy}, by which it may throw counters away; set it to "
            "noeviction."
        )
    # With the journal Postgres has it already, whatever Redis keeps.
    if durability in ("applied", "journaled"):
        return APPLIED
    if durability.startswith("replicated:"):
        return WAIT + durability.removeprefix("replicated:")
    return _fsync_mode(redis, info)


def missing_replicas(redis: Redis, durability: str) -> str | None:
    """What to do about a Redis that has fewer replicas than `replicated:N` waits for; else None.

    Not a reason to refuse the start: replicas may still be on their way.

    Raises:
        redis.RedisError: Redis is away.
    """
    kind, _, number = durability.partition(":")
    if kind != "replicated":
        return None
    wanted = int(number)
    found = int(_section(redis, "replication").get("connected_slaves", "0"))
    if found >= wanted:
        return None
    return (
        f"The durability {durability} waits for {wanted} replicas of Redis, and {found} are "
        "connected: until there are more, Redis acknowledges no write. Connect replicas, or choose "
        "a smaller number, or the durability fsynced."
    )


def _fsync_mode(redis: Redis, info: dict[str, str]) -> str:
    fsync = setting_of(redis, "appendfsync")
    if info.get("aof_enabled") != "1":
        raise StartupError(
            "The durability fsynced needs Redis to keep an append-only file; set appendonly yes "
            "and appendfsync always, or choose the durability applied."
        )
    if fsync == "always":
        return ALWAYS
    if fsync == "no":
        raise StartupError(
            "The durability fsynced needs Redis to sync its append-only file, and appendfsync is "
            "no; set it to always, or choose the durability applied."
        )
    version = info.get("redis_version", "0")
    if _version(version) >= (7, 2):
        return WAITAOF
    setting = f"appendfsync is {fsync}" if fsync else "CONFIG GET appendfsync is not allowed"
    raise StartupError(
        f"The durability fsynced can't be had from Redis {version} while {setting}; set "
        "appendfsync always, use Redis 7.2 or newer, or choose the durability applied."
    )


def setting_of(redis: Redis, name: str) -> str | None:
    """What a setting of Redis is; None where CONFIG is not allowed, as in many hosted services."""
    try:
        answer: Any = redis.execute_command("CONFIG", "GET", name)
    except ResponseError:
        return None
    pairs = answer.items() if isinstance(answer, dict) else [answer] if answer else []
    return next((_text(value) for _, value in pairs), None)


def _section(redis: Redis, name: str) -> dict[str, str]:
    answer: Any = redis.execute_command("INFO", name)
    if isinstance(answer, dict):
        return {str(key): str(value) for key, value in answer.items()}
    lines = (line.partition(":") for line in _text(answer).splitlines())
    return {key: value for key, colon, value in lines if colon}


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(digits) for digits in re.findall(r"[0-9]+", text)[:2])
