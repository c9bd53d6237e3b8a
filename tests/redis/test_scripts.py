"""The Lua scripts against every Redis that is installed."""

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.exceptions import ResponseError

from tallyboard_server.redis import keys, scripts
from tallyboard_server.redis.calls import (
    MAX_CALL_OPERATIONS,
    MAX_DELTA,
    Outcome,
    ScriptCall,
    settle_call,
)
from tallyboard_server.redis.connection import Connection
from tests.redis.calls import LINK_RING, Caller
from tests.redis.node import RedisNode

_LIMIT = 1 << 53
_WINDOW = 256


@pytest.fixture
def caller(node: RedisNode) -> Iterator[Caller]:
    """Calls for a partition of this test's own."""
    redis = node.client()
    yield Caller(redis)
    redis.close()


def test_an_addition_adds(caller: Caller) -> None:
    caller.add("post:42", 5)
    caller.add("post:42", -7)
    assert caller.value("post:42") == b"-2"


def test_an_addition_marks_its_key_dirty(caller: Caller) -> None:
    caller.add("post:42", 5)
    dirty = caller.redis.smembers(keys.dirty_key(caller.partition))
    assert dirty == {caller.shard("post:42").encode()}


def test_a_whole_call_of_operations_is_applied(caller: Caller) -> None:
    operations = {caller.shard(f"c{i}"): i + 1 for i in range(MAX_CALL_OPERATIONS)}
    caller.call(scripts.ADD, operations)
    found = caller.redis.mget(list(operations))
    assert found == [str(i + 1).encode() for i in range(MAX_CALL_OPERATIONS)]


def test_another_incarnation_is_fenced(caller: Caller) -> None:
    operations = {caller.shard("post:42"): 5}
    assert caller.call(scripts.ADD, operations, incarnation="other")[0] == b"fenced"


def test_what_is_fenced_changes_nothing(caller: Caller) -> None:
    caller.call(scripts.ADD, {caller.shard("post:42"): 5}, incarnation="other")
    assert caller.value("post:42") is None


def test_an_empty_redis_is_fenced(caller: Caller) -> None:
    caller.redis.delete(keys.incarnation_key(caller.partition))
    assert caller.add("post:42", 5) == [b"fenced", b""]


def test_a_call_that_comes_again_counts_once(caller: Caller) -> None:
    for _ in range(3):
        caller.add("post:42", 5, sequence=7)
    assert caller.value("post:42") == b"5"


def test_a_call_that_comes_again_is_answered_ok(caller: Caller) -> None:
    caller.add("post:42", 5, sequence=7)
    assert caller.add("post:42", 5, sequence=7) == [b"ok"]


def test_a_call_older_than_the_ring_is_refused(caller: Caller) -> None:
    caller.add("post:42", 1, sequence=1 + LINK_RING)
    assert caller.add("post:42", 5, sequence=1) == [b"old", 0]


@pytest.mark.parametrize("kind", ["producer", "request"])
def test_a_token_that_comes_again_counts_once(caller: Caller, kind: str) -> None:
    token = caller.producer(3) if kind == "producer" else caller.request()
    for _ in range(3):
        caller.add("post:42", 5, token)
    assert caller.value("post:42") == b"5"


@pytest.mark.parametrize("kind", ["producer", "request"])
def test_a_token_that_comes_again_is_named(caller: Caller, kind: str) -> None:
    token = caller.producer(3) if kind == "producer" else caller.request()
    caller.add("post:42", 5, token)
    assert caller.add("post:42", 5, caller.request("new"), token) == [b"seen", 2, b""]


def test_a_call_with_one_seen_token_applies_nothing(caller: Caller) -> None:
    caller.add("post:42", 5, caller.request())
    caller.add("post:43", 5, caller.request("new"), caller.request())
    assert caller.value("post:43") is None


def test_a_call_with_one_seen_token_remembers_nothing(caller: Caller) -> None:
    caller.add("post:42", 5, caller.request())
    caller.add("post:43", 5, caller.request("new"), caller.request())
    assert caller.add("post:43", 5, caller.request("new")) == [b"ok"]


def test_two_producers_do_not_share_sequences(caller: Caller) -> None:
    caller.add("post:42", 5, caller.producer(3, "ann"))
    caller.add("post:42", 5, caller.producer(3, "bob"))
    assert caller.value("post:42") == b"10"


def test_a_sequence_one_window_behind_is_too_old(caller: Caller) -> None:
    caller.add("post:42", 5, caller.producer(1 + _WINDOW))
    assert caller.add("post:42", 5, caller.producer(1)) == [b"old", 1, b"257<0>257"]


def test_a_sequence_within_the_window_still_counts(caller: Caller) -> None:
    caller.add("post:42", 5, caller.producer(_WINDOW))
    caller.add("post:42", 5, caller.producer(1))
    assert caller.value("post:42") == b"10"


def test_every_sequence_of_a_window_is_remembered(caller: Caller) -> None:
    for sequence in range(1, _WINDOW + 1):
        caller.add("post:42", 1, caller.producer(sequence))
    for sequence in range(1, _WINDOW + 1):
        caller.add("post:42", 1, caller.producer(sequence))
    assert caller.value("post:42") == str(_WINDOW).encode()


@pytest.mark.parametrize("kind", ["producer", "request", "link"])
def test_what_is_remembered_expires_one_day(caller: Caller, kind: str) -> None:
    token = caller.producer(1) if kind == "producer" else caller.request()
    caller.add("post:42", 5, token)
    key = keys.link_key(caller.partition, caller.link) if kind == "link" else token.key
    assert 0 < caller.redis.ttl(key) <= 600


def test_a_refused_call_applies_nothing(caller: Caller) -> None:
    caller.add("full", MAX_DELTA)
    caller.add("full", MAX_DELTA - 1)
    operations = {caller.shard("post:42"): 1, caller.shard("full"): MAX_DELTA}
    assert (caller.call(scripts.ADD, operations), caller.value("post:42")) == (
        [b"refused", 2],
        None,
    )


def test_a_refused_call_does_not_remember_its_token(caller: Caller) -> None:
    caller.plain(scripts.FREEZE, caller.shard("frozen"))
    caller.add("frozen", 1, caller.request())
    assert caller.add("post:42", 1, caller.request()) == [b"ok"]


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    st.lists(
        st.integers(-MAX_DELTA, MAX_DELTA)
        | st.sampled_from([MAX_DELTA, -MAX_DELTA, 1, -1, MAX_DELTA - 1]),
        max_size=8,
    )
)
def test_a_shard_is_exact_up_to_its_limits(caller: Caller, deltas: list[int]) -> None:
    """Every addition that is answered with ok is in the value, to the unit."""
    name = f"c{next(_numbers)}"
    total = sum(delta for delta in deltas if caller.add(name, delta) == [b"ok"])
    assert int(caller.value(name) or b"0") == total


def test_one_past_the_limit_of_a_shard_is_not_lost(caller: Caller) -> None:
    added = [d for d in (MAX_DELTA, MAX_DELTA, 1) if caller.add("c", d) == [b"ok"]]
    assert int(caller.value("c") or b"0") == sum(added)


def test_one_below_the_limit_of_a_shard_is_not_lost(caller: Caller) -> None:
    added = [d for d in (-MAX_DELTA, -MAX_DELTA, -1) if caller.add("c", d) == [b"ok"]]
    assert int(caller.value("c") or b"0") == sum(added)


@pytest.mark.parametrize(
    ("verb", "before", "after"),
    [
        ("reset", 5, b"0"),
        ("reset", None, None),
        ("delete", 5, None),
        ("delete", None, None),
    ],
)
def test_clearing_a_shard(
    caller: Caller, verb: str, before: int | None, after: bytes | None
) -> None:
    if before is not None:
        caller.add("post:42", before)
    caller.call(scripts.CLEAR, {caller.shard("post:42"): verb})
    assert caller.value("post:42") == after


_KNOWN = ["link", "row", "link and row"]


def _apply_before(caller: Caller, known: str) -> None:
    """Applies call 7, row 9 of the journal, and leaves that known of it."""
    caller.add("post:42", 5, sequence=7, row=None if known == "link" else 9)
    if known == "row":
        caller.redis.delete(keys.link_key(caller.partition, caller.link))


@pytest.mark.parametrize("known", _KNOWN)
def test_a_row_of_the_journal_counts_once(caller: Caller, known: str) -> None:
    _apply_before(caller, known)
    assert (caller.add("post:42", 5, sequence=7, row=9), caller.value("post:42")) == ([b"ok"], b"5")


@pytest.mark.parametrize("known", _KNOWN)
def test_a_row_that_was_applied_is_noted(caller: Caller, known: str) -> None:
    """Also one that was applied before it was journaled: the next checkpoint has its effect."""
    _apply_before(caller, known)
    caller.add("post:42", 5, sequence=7, row=9)
    assert caller.journaled() == {9}


def test_a_row_is_noted_with_its_effect(caller: Caller) -> None:
    caller.add("post:42", 5, row=9)
    assert (caller.journaled(), caller.value("post:42")) == ({9}, b"5")


def test_what_is_no_row_notes_nothing(caller: Caller) -> None:
    caller.add("post:42", 5)
    assert caller.journaled() == set()


def test_two_rows_count_twice(caller: Caller) -> None:
    caller.add("post:42", 5, row=9)
    caller.add("post:42", 5, row=10)
    assert (caller.journaled(), caller.value("post:42")) == ({9, 10}, b"10")


def test_a_row_that_is_known_counts_once_under_another_link(caller: Caller) -> None:
    caller.add("post:42", 5, row=9)
    caller.link = "another"
    caller.add("post:42", 5, row=9)
    assert caller.value("post:42") == b"5"


def test_a_row_that_is_known_is_ok_however_old_its_link_is(caller: Caller) -> None:
    caller.add("post:42", 5, sequence=1, row=9)
    caller.add("post:42", 1, sequence=1 + LINK_RING)
    assert (caller.add("post:42", 5, sequence=1, row=9), caller.value("post:42")) == ([b"ok"], b"6")


def test_a_row_whose_link_is_too_old_is_not_noted(caller: Caller) -> None:
    caller.add("post:42", 1, sequence=1 + LINK_RING)
    answer = caller.add("post:42", 5, sequence=1, row=9)
    assert (answer, caller.journaled()) == ([b"old", 0], set())


def test_a_row_of_a_repeated_token_is_not_noted(caller: Caller) -> None:
    """What else it carries was not applied."""
    caller.add("post:42", 5, caller.request())
    answer = caller.add("post:43", 5, caller.request(), row=9)
    assert (answer[0], caller.journaled()) == (b"seen", set())


def test_a_row_that_is_refused_is_not_noted(caller: Caller) -> None:
    caller.plain(scripts.FREEZE, caller.shard("frozen"))
    answer = caller.add("frozen", 5, row=9)
    assert (answer[0], caller.journaled()) == (b"refused", set())


def test_a_row_of_another_incarnation_is_not_noted(caller: Caller) -> None:
    caller.call(scripts.ADD, {caller.shard("post:42"): 5}, incarnation="other", row=9)
    assert caller.journaled() == set()


def test_a_row_of_nothing_is_noted(caller: Caller) -> None:
    """All that it held had been counted before."""
    caller.call(scripts.ADD, {}, row=9)
    assert caller.journaled() == {9}


def test_a_row_that_is_known_remembers_no_tokens(caller: Caller) -> None:
    caller.add("post:42", 5, row=9)
    caller.add("post:42", 5, caller.request(), row=9)
    assert caller.add("post:43", 5, caller.request()) == [b"ok"]


def test_a_row_of_a_wide_counter_counts_once(caller: Caller) -> None:
    caller.plain(scripts.WIDEN, caller.wide("post:42"), 7)
    for _ in range(3):
        caller.call(scripts.ADD_WIDE, {caller.wide("post:42"): 1}, row=9)
    assert (caller.redis.get(caller.wide("post:42")), caller.journaled()) == (b"8", {9})


@pytest.mark.parametrize("kind", ["producer", "request"])
@pytest.mark.parametrize("keeps_tokens", [False, True])
def test_tokens_are_dirty_only_if_they_are_part_of_checkpoints(
    caller: Caller, kind: str, keeps_tokens: bool
) -> None:
    token = caller.producer(3) if kind == "producer" else caller.request()
    caller.add("post:42", 5, token, keeps_tokens=keeps_tokens)
    expected = {caller.shard("post:42")} | ({token.key} if keeps_tokens else set())
    assert caller.dirty() == expected


def test_links_are_not_part_of_checkpoints(caller: Caller) -> None:
    caller.add("post:42", 5, row=9, keeps_tokens=True)
    assert caller.dirty() == {caller.shard("post:42")}


@pytest.mark.parametrize("keeps_tokens", [False, True])
def test_a_token_of_what_was_refused_is_part_of_checkpoints_too(
    caller: Caller, keeps_tokens: bool
) -> None:
    key, token = caller.wide("post:42"), caller.request()
    caller.plain(scripts.WIDEN, key, (1 << 63) - 1)
    caller.call(scripts.ADD_WIDE, {key: 1}, token, keeps_tokens=keeps_tokens)
    assert (token.key in caller.dirty()) is keeps_tokens


def test_a_refused_call_makes_no_token_dirty(caller: Caller) -> None:
    caller.plain(scripts.FREEZE, caller.shard("frozen"))
    before = caller.dirty()
    caller.add("frozen", 1, caller.request(), keeps_tokens=True)
    assert caller.dirty() == before


def test_clearing_tells_how_many_were_there(caller: Caller) -> None:
    caller.add("post:42", 5)
    operations = {caller.shard("post:42"): "delete", caller.shard("post:43"): "delete"}
    assert caller.call(scripts.CLEAR, operations) == [b"ok", 1]


def test_a_cleared_key_is_dirty(caller: Caller) -> None:
    caller.call(scripts.CLEAR, {caller.shard("post:42"): "delete"})
    assert caller.redis.sismember(keys.dirty_key(caller.partition), caller.shard("post:42"))


def test_a_reset_that_comes_again_keeps_what_was_added_since(caller: Caller) -> None:
    for _ in range(2):
        caller.call(scripts.CLEAR, {caller.shard("post:42"): "reset"}, caller.request())
        caller.add("post:42", 5, caller.request("add"))
    assert caller.value("post:42") == b"5"


def test_a_frozen_shard_is_not_cleared(caller: Caller) -> None:
    caller.add("post:42", 5)
    caller.plain(scripts.FREEZE, caller.shard("post:42"))
    assert caller.call(scripts.CLEAR, {caller.shard("post:42"): "delete"}) == [b"refused", 1]


def test_freezing_twice_gives_the_same_value(caller: Caller) -> None:
    caller.add("post:42", 5)
    answers = [caller.plain(scripts.FREEZE, caller.shard("post:42")) for _ in range(2)]
    assert answers == [[b"ok", b"5"], [b"ok", b"5"]]


def test_a_frozen_shard_takes_no_addition(caller: Caller) -> None:
    caller.plain(scripts.FREEZE, caller.shard("post:42"))
    assert caller.add("post:42", 1) == [b"refused", 1]


def test_widening_twice_adds_the_shards_up_once(caller: Caller) -> None:
    for _ in range(2):
        caller.plain(scripts.WIDEN, caller.wide("post:42"), 7)
    assert caller.redis.get(caller.wide("post:42")) == b"7"


def test_a_deleted_wide_counter_is_not_widened_again(caller: Caller) -> None:
    caller.plain(scripts.WIDEN, caller.wide("post:42"), 7)
    caller.call(scripts.CLEAR, {caller.wide("post:42"): "wide_delete"})
    caller.plain(scripts.WIDEN, caller.wide("post:42"), 7)
    caller.call(scripts.ADD_WIDE, {caller.wide("post:42"): 1})
    assert caller.redis.get(caller.wide("post:42")) == b"1"


@pytest.mark.parametrize(
    ("value", "delta", "after"),
    [
        ((1 << 63) - 2, 1, (1 << 63) - 1),
        ((1 << 63) - 1, 1, (1 << 63) - 1),
        (-(1 << 63), -1, -(1 << 63)),
        (0, -(1 << 63), -(1 << 63)),
        (-1, -(1 << 63), -1),
        (_LIMIT, 1, _LIMIT + 1),
    ],
)
def test_a_wide_counter_stays_within_64_bits(
    caller: Caller, value: int, delta: int, after: int
) -> None:
    caller.plain(scripts.WIDEN, caller.wide("post:42"), value)
    caller.call(scripts.ADD_WIDE, {caller.wide("post:42"): delta})
    assert caller.redis.get(caller.wide("post:42")) == str(after).encode()


@pytest.mark.parametrize("script", [scripts.ADD, scripts.ADD_WIDE], ids=["add", "add wide"])
def test_a_full_redis_is_no_reason_to_say_out_of_range(
    full: Caller, script: scripts.Script
) -> None:
    with pytest.raises(ResponseError, match="used memory"):
        full.redis.execute_command(*_into_full(full, script))


@pytest.mark.parametrize("script", [scripts.ADD, scripts.ADD_WIDE], ids=["add", "add wide"])
def test_what_a_full_redis_says_is_understood_by_the_link(
    node: RedisNode, full: Caller, script: scripts.Script
) -> None:
    """Each version, and each script, puts something else before it."""
    with closing(Connection(node.url, 5.0)) as connection:
        (reply,) = connection.call([_into_full(full, script)])
    outcome = Outcome()
    settle_call(ScriptCall(0, script), reply, True, outcome)
    assert outcome.away.startswith("OOM")


def _into_full(full: Caller, script: scripts.Script) -> tuple[Any, ...]:
    """A command that needs memory."""
    key = full.shard("post:42") if script is scripts.ADD else full.wide("post:42")
    return full.command(script, {key: 1})


@pytest.fixture
def full(node: RedisNode, caller: Caller) -> Iterator[Caller]:
    """Calls of a Redis that has no memory left."""
    caller.plain(scripts.WIDEN, caller.wide("post:42"), 7)
    caller.redis.config_set("maxmemory", 1)
    yield caller
    caller.redis.config_set("maxmemory", 0)


_numbers = iter(range(1 << 30))
