"""Calls come out of the journal as they went in, to the byte that Redis gets."""

import math
from array import array
from collections.abc import Callable, Sequence

from hypothesis import given
from hypothesis import strategies as st

from tallyboard_server.names import name_problem
from tallyboard_server.recovery.batches import (
    REPEAT_MARK,
    Scores,
    decode,
    encode,
    increments_in,
    increments_of,
    mark_repeats,
    name_of,
    repeats_in,
    scores_in,
)
from tallyboard_server.redis import keys, scripts
from tallyboard_server.redis.calls import CallToken, LinkSequences, ScriptCall
from tallyboard_server.redis.flush import call_for
from tallyboard_server.redis.operations import Part, Token, Write
from tallyboard_server.redis.scores import Columns, Plan, ScorePart, code_of

_PARTITION = 3
_HOSTILE = [
    "a",
    "post:42",
    "}:c:4:acme",
    '"',
    '"repeat":true',
    "\\",
    "\\u0000",
    "'); DROP TABLE x; --",
    "ä" * 128,
    "😀",
]
_NAMES = st.one_of(
    st.sampled_from(_HOSTILE),
    st.text(min_size=1, max_size=20).filter(lambda n: not name_problem(n)),
)
_DELTAS = st.integers(-(1 << 52), 1 << 52)
_SCORES = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([0.0, -0.0, 5e-324, -1.7976931348623157e308, 0.1 + 0.2, 2.0**53]),
)
# All that there are: from the year 1827 to 2112.
_MOMENTS = st.integers(1 - (1 << 52), (1 << 52) - 1)
_NOTES = st.sampled_from(["", "\n", "\nw/w8=,fAQ==", "\n{tb:3}:c:4:acme:é\n{tb:3}:c:4:acme:b"])


def _tokens() -> st.SearchStrategy[Token | None]:
    producers = st.builds(
        lambda name, sequence, note: Token(
            "p", keys.producer_key(_PARTITION, "acme", name), sequence, 600, note
        ),
        _NAMES,
        st.integers(1, 1 << 53),
        _NOTES,
    )
    requests = st.builds(
        lambda name, note: Token("r", keys.request_key(_PARTITION, name, name), "", 600, note),
        _NAMES,
        _NOTES,
    )
    return st.one_of(st.none(), producers, requests)


def _counter_parts() -> st.SearchStrategy[Part]:
    deltas = st.dictionaries(
        st.builds(lambda name: keys.shard_key(_PARTITION, "acme", name), _NAMES),
        _DELTAS,
        max_size=4,
    )
    return st.builds(_counter_part, deltas, _tokens())


def _counter_part(deltas: dict[str, int], token: Token | None) -> Part:
    write = Write(lambda: None)
    bound = max(map(abs, deltas.values()), default=0)
    part = Part(write, _PARTITION, deltas, token, bound=bound)
    write.add(part)
    return part


def _plan(number: int, policy: str = "B", descending: bool = True) -> Plan:
    window = f"2026-11-{20 + number}"
    return Plan(
        partition=_PARTITION,
        tenant="acme",
        leaderboard_id="flights",
        board_key=f"board{number}",
        keys=(keys.fence_key(_PARTITION, "b"), *keys.window_keys(_PARTITION, "b", window)[:5]),
        head=("1", "d" if descending else "a", "e", policy),
        most=0,
        windows=("all", "", "o", window, 60, "o"),
        policy=policy,
        descending=descending,
    )


_PLANS = (_plan(0), _plan(1, "L", False), _plan(2, "S"))
_ROWS = st.lists(
    st.tuples(_NAMES, _SCORES, _MOMENTS, st.binary(max_size=8)),
    min_size=1,
    max_size=5,
    unique_by=lambda row: row[0],
)


def _score_parts() -> st.SearchStrategy[Part]:
    groups = st.dictionaries(st.sampled_from(_PLANS), _ROWS, min_size=1, max_size=3)
    return st.builds(_score_part, groups, st.booleans(), _tokens())


def _score_part(
    groups: dict[Plan, list[tuple[str, float, int, bytes]]], with_data: bool, token: Token | None
) -> Part:
    write = Write(lambda: None)
    columns = {plan: _columns(plan, rows, with_data) for plan, rows in groups.items()}
    part = ScorePart(write, _PARTITION, columns, token)
    write.add(part)
    return part


def _columns(plan: Plan, rows: Sequence[tuple[str, float, int, bytes]], with_data: bool) -> Columns:
    return Columns(
        [row[0] for row in rows],
        array("d", [row[1] for row in rows]),
        array("Q", [code_of(row[2], plan.descending) for row in rows]),
        [row[3] for row in rows] if with_data else [],
    )


def _call_of(parts: Sequence[Part]) -> ScriptCall:
    """The first part, and what joins it."""
    call = call_for(parts[0])
    for part in parts[1:]:
        call.takes(part)
    return call


def _finder(plans: Sequence[Plan]) -> Callable[[int, Scores], Plan | None]:
    by_key = {plan.board_key: plan for plan in plans}
    return lambda partition, scores: by_key.get(scores.board_key)


def _bytes_of(call: ScriptCall) -> bytes:
    call.token, call.row = CallToken("link", 7), 42
    return call.pack(LinkSequences("none"), "life", keeps_tokens=True)


@given(st.lists(_counter_parts(), min_size=1, max_size=6))
def test_calls_of_counters_come_out_as_they_went_in(parts: list[Part]) -> None:
    call = _call_of(parts)
    assert _bytes_of(decode(_PARTITION, encode(call), _finder(()))) == _bytes_of(call)


@given(st.lists(_score_parts(), min_size=1, max_size=6))
def test_calls_of_scores_come_out_as_they_went_in(parts: list[Part]) -> None:
    call = _call_of(parts)
    assert _bytes_of(decode(_PARTITION, encode(call), _finder(_PLANS))) == _bytes_of(call)


@given(st.lists(_score_parts(), min_size=1, max_size=6))
def test_what_went_in_twice_is_the_same_text(parts: list[Part]) -> None:
    text = encode(_call_of(parts))
    assert encode(decode(_PARTITION, text, _finder(_PLANS))) == text


@given(st.lists(_counter_parts(), min_size=1, max_size=6))
def test_increments_add_up_to_what_the_call_carries(parts: list[Part]) -> None:
    call = _call_of(parts)
    found = {
        keys.shard_key(_PARTITION, one.tenant, one.counter): one.delta
        for one in increments_of(call)
    }
    assert found == call.operations


_EITHER = st.one_of(
    st.lists(_counter_parts(), min_size=1, max_size=6),
    st.lists(_score_parts(), min_size=1, max_size=6),
)


@given(_EITHER, st.sets(st.integers(0, 5)))
def test_parts_are_marked_as_repeats_before_and_behind_the_writing(
    parts: list[Part], which: set[int]
) -> None:
    call = _call_of(parts)
    again = [part for i, part in enumerate(call.parts) if i in which and part.token]
    tokens = {name_of(part.token) for part in again if part.token}
    text = encode(call, again)
    assert text == mark_repeats(encode(call), tokens)
    assert (repeats_in(text), REPEAT_MARK in text) == (tokens, bool(tokens))
    assert list(increments_in(text)) == list(increments_of(call, again))


@given(_score_parts())
def test_scores_are_read_from_the_text_without_a_plan(part: Part) -> None:
    assert isinstance(part, ScorePart)
    found = [
        (scores.board_key, scores.windows, scores.members, scores.metadata)
        for scores in scores_in(encode(_call_of([part])))
    ]
    assert found == [
        (plan.board_key, plan.windows[::3], columns.members, columns.metadata)
        for plan, columns in part.groups.items()
    ]


def test_a_negative_zero_stays_one() -> None:
    part = _score_part({_PLANS[0]: [("ann", -0.0, 0, b"")]}, False, None)
    (scores,) = scores_in(encode(_call_of([part])))
    assert math.copysign(1.0, scores.scores[0]) < 0


def test_a_wide_addition_comes_out_as_one() -> None:
    write = Write(lambda: None)
    key = keys.wide_key(_PARTITION, "acme", "post:42")
    call = call_for(Part(write, _PARTITION, {key: -(1 << 62)}, None, scripts.ADD_WIDE))
    found = decode(_PARTITION, encode(call), _finder(()))
    assert (found.script, found.operations) == (scripts.ADD_WIDE, {key: -(1 << 62)})


def test_scores_of_a_board_that_is_gone_leave_their_token() -> None:
    token = Token("r", keys.request_key(_PARTITION, "acme", "r1"), "", 600)
    call = _call_of([_score_part({_PLANS[0]: [("ann", 1.0, 0, b"")]}, False, token)])
    found = decode(_PARTITION, encode(call), _finder(()))
    assert (found.names(), list(found.tokens)) == ([], [(token.key, "")])


def test_groups_that_have_the_same_windows_now_are_added_up() -> None:
    """A board's windows before a season and behind it are the same, and yet two plans."""
    before, behind = _plan(2, "S"), _plan(2, "S")
    rows = {before: [("ann", 1.0, 1, b"x"), ("bob", 5.0, 1, b"")], behind: [("ann", 2.0, 2, b"y")]}
    call = _call_of([_score_part(rows, True, None)])
    found = decode(_PARTITION, encode(call), _finder([before]))
    (part,) = found.parts
    assert isinstance(part, ScorePart)
    (columns,) = part.groups.values()
    assert (columns.members, columns.scores.tolist(), columns.metadata) == (
        ["ann", "bob"],
        [3.0, 5.0],
        [b"y", b""],
    )
