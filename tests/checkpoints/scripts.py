"""Calls the scripts of checkpoints one by one, as a keeper would that may die in between."""

from importlib import resources
from typing import Any, NamedTuple

from redis import Redis

from tallyboard_server.redis.keys import (
    checkpoint_id_key,
    dirty_key,
    in_flight_key,
    incarnation_key,
    journaled_key,
    version_key,
)


class Taken(NamedTuple):
    """What checkpoint.lua answers when it takes something."""

    verdict: bytes
    version: int
    left: int
    entries_left: int
    keys: list[bytes]
    values: list[bytes | None]
    entries: list[Any]
    tokens: list[list[Any]]
    rows: list[bytes]


def step(
    redis: Redis,
    partition: int,
    *,
    limit: int = 5_000,
    checkpoint: str = "dead",
    incarnation: str | None = None,
    committed: int = 0,
    what: str = "first",
) -> list[Any]:
    """The answer to one step of a checkpoint.

    Args:
        limit: most keys and entries.
        checkpoint: its id.
        incarnation: what is expected; what there is, by default.
        committed: the number of the last checkpoint that Postgres has.
        what: "first" or "more".
    """
    names = [
        dirty_key(partition),
        in_flight_key(partition),
        checkpoint_id_key(partition),
        incarnation_key(partition),
        version_key(partition),
        journaled_key(partition),
    ]
    expected = incarnation or redis.execute_command("GET", incarnation_key(partition))
    answer: list[Any] = redis.eval(
        _source("checkpoint"), len(names), *names, checkpoint, limit, expected, committed, what
    )
    return answer


def take(redis: Redis, partition: int, **arguments: Any) -> Taken:
    """The same for a step that takes something."""
    return Taken(*step(redis, partition, **arguments))


def forget(redis: Redis, partition: int, checkpoint: str, *rows: int) -> Any:
    """What checkpointed.lua answers to a checkpoint that has these rows of the journal."""
    names = [in_flight_key(partition), checkpoint_id_key(partition), journaled_key(partition)]
    return redis.eval(_source("checkpointed"), len(names), *names, checkpoint, *rows)


def _source(name: str) -> str:
    return (resources.files("tallyboard_server.redis") / "lua" / f"{name}.lua").read_text()
