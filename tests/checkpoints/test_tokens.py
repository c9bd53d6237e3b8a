"""Tokens are part of checkpoints, where what they stand for may be applied again."""

import itertools

from redis import Redis

from tallyboard_server.checkpointer import Checkpointer
from tallyboard_server.redis import keys
from tallyboard_server.redis.operations import Token
from tests.checkpoints.keepers import caller_of, running
from tests.postgres.support import rows, totals
from tests.redis.calls import TENANT


def put_tokens(
    redis: Redis, *, keeps_tokens: bool = True, ttl: int = 600
) -> dict[str, list[bytes]]:
    """Makes one token of each kind in partition 0; gives what each holds."""
    caller = caller_of(redis)
    producers = [
        keys.producer_key(0, TENANT, "ann"),
        keys.score_producer_key(0, TENANT, "ann", 2),
    ]
    requests = [keys.request_key(0, TENANT, "r1"), keys.score_request_key(0, TENANT, "r1", 2)]
    tokens = [Token("p", key, 300, ttl, "\nnote") for key in producers]
    tokens += [Token("r", key, "", ttl, "\nnote") for key in requests]
    caller.add("post:42", 5, *tokens, keeps_tokens=keeps_tokens)
    rings = {key: [b"44", b"300<0>300\nnote"] for key in producers}
    return rings | {key: [b"\nnote"] for key in requests}


def tokens_in(database: str) -> dict[str, list[bytes]]:
    """Tokens in Postgres, and what each holds."""
    found = rows(database, "SELECT token, held FROM tallyboard.tokens")
    return {bytes(token).decode(): [bytes(part) for part in held] for token, held in found}


def test_tokens_of_every_kind_are_part_of_a_checkpoint(
    redis: Redis, checkpointer: Checkpointer, database: str
) -> None:
    expected = put_tokens(redis)
    checkpointer.checkpoint_all()
    assert tokens_in(database) == expected


def test_rings_are_told_from_other_tokens(
    redis: Redis, checkpointer: Checkpointer, database: str
) -> None:
    put_tokens(redis)
    checkpointer.checkpoint_all()
    found = rows(database, "SELECT token, ring FROM tallyboard.tokens WHERE partition = 0")
    kinds = {bytes(token).decode().split(":")[2]: ring for token, ring in found}
    assert kinds == {"p": True, "P": True, "r": False, "R": False}


def test_tokens_keep_their_time(redis: Redis, checkpointer: Checkpointer, database: str) -> None:
    put_tokens(redis, ttl=600)
    checkpointer.checkpoint_all()
    left = "extract(epoch FROM expires_at - clock_timestamp())"
    query = f"SELECT min({left}), max({left}) FROM tallyboard.tokens"
    ((least, most),) = rows(database, query)
    assert 540 < least <= most <= 600


def test_tokens_are_left_out_where_nothing_depends_on_them(
    redis: Redis, checkpointer: Checkpointer, database: str
) -> None:
    put_tokens(redis, keeps_tokens=False)
    checkpointer.checkpoint_all()
    assert (tokens_in(database), totals(database)) == ({}, {"post:42": 5})


def test_a_token_that_is_gone_is_left_out(
    redis: Redis, checkpointer: Checkpointer, database: str
) -> None:
    expected = put_tokens(redis)
    gone = next(iter(expected))
    redis.delete(gone)
    checkpointer.checkpoint_all()
    assert tokens_in(database) == {key: held for key, held in expected.items() if key != gone}


def test_a_ring_is_copied_whole_each_time(
    redis: Redis, checkpointer: Checkpointer, database: str
) -> None:
    """Other sequences stay beside what changed, and those that were pushed out go."""
    caller, key = caller_of(redis), keys.producer_key(0, TENANT, "ann")
    for sequence in (1, 2, 257):
        caller.add("post:42", 1, caller.producer(sequence), keeps_tokens=True)
        checkpointer.checkpoint_all()
    held = tokens_in(database)[key]
    assert dict(zip(held[::2], held[1::2], strict=True)) == {b"1": b"257", b"2": b"2"}


def test_small_steps_copy_all_tokens(
    redis: Redis, checkpointer: Checkpointer, database: str
) -> None:
    caller = caller_of(redis)
    for i in range(9):
        caller.add("post:42", 1, caller.request(f"r{i}"), keeps_tokens=True)
    checkpointer.checkpoint_partition(0, limit=2)
    assert len(tokens_in(database)) == 9


def test_tokens_are_of_the_same_moment_as_what_they_counted(
    redis: Redis, checkpointer: Checkpointer, database: str
) -> None:
    """Each request counts one: there are as many as were counted."""
    numbers = itertools.count()

    def count() -> None:
        caller.add("post:42", 1, caller.request(f"r{next(numbers)}"), keeps_tokens=True)

    caller = caller_of(redis)
    with running(count):
        for _ in range(6):
            checkpointer.checkpoint_partition(0, limit=3)
            assert len(tokens_in(database)) == totals(database).get("post:42", 0)
