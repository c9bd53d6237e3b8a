"""Commands over the client of the keeper and of the start, several at a time."""

from collections.abc import Sequence
from typing import Any

from redis import Redis


def run(redis: Redis, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
    """The replies to commands, in one round trip.

    Raises:
        redis.RedisError: Redis is away, or refused one.
    """
    if not commands:
        return []
    pipeline = redis.pipeline(transaction=False)
    for command in commands:
        pipeline.execute_command(*command)
    replies: list[Any] = pipeline.execute()
    return replies
