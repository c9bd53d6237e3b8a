"""Flushes: what is sent adds up to what was asked for, and every operation ends exactly once."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain, count
from typing import Any, NamedTuple

import hiredis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallyboard_server.errors import OutcomeUnknown, SequenceTooOld, TallyboardError, Unavailable
from tallyboard_server.redis import scripts
from tallyboard_server.redis.calls import (
    MAX_CALL_OPERATIONS,
    MAX_DELTA,
    TAKES_NO_WRITES,
    CallToken,
    LinkSequences,
    Outcome,
    ScriptCall,
)
from tallyboard_server.redis.fences import Fences
from tallyboard_server.redis.flush import MAX_CALLS, Flush, call_for
from tallyboard_server.redis.gets import MAX_MGET_KEYS
from tallyboard_server.redis.link import CLOSED
from tallyboard_server.redis.operations import Command, Operation, Part, Read, Token, Write
from tallyboard_server.redis.store import fail

_PARTITIONS = 3
_CLOSED = 3
_FENCES = Fences({i: f"life-{i}" for i in range(_PARTITIONS)})
_WAITAOF = ("WAITAOF", 1, 0, 500)


@dataclass
class Asked:
    """A write of one part, what it asked for, and how often it ended."""

    partition: int
    operations: dict[str, Any]
    token: Token | None = None
    script: scripts.Script = scripts.ADD
    ended: int = 0
    write: Write = field(init=False)
    part: Part = field(init=False)

    def __post_init__(self) -> None:
        self.write = Write(self._end)
        bound = max((abs(delta) for delta in self.operations.values()), default=0)
        operations = dict(self.operations)
        self.part = Part(
            self.write, self.partition, operations, self.token, self.script, bound=bound
        )
        self.write.add(self.part)

    def _end(self) -> None:
        self.ended += 1

    @property
    def applied(self) -> bool:
        """Whether its caller is told that it counted now."""
        return self.ended == 1 and self.write.error is None and not self.write.seen


class Sent(NamedTuple):
    """A script call as Redis would get it; without a row in the journal, `row` is empty."""

    partition: int
    link: str
    link_sequence: int
    row: str
    keeps_tokens: bool
    tokens: list[tuple[bytes, bytes]]
    operations: dict[str, int]


def commands_of(flush: Flush) -> list[list[bytes]]:
    """The commands of a flush, read back from their bytes."""
    reader = hiredis.Reader()
    reader.feed(flush.data)
    found = []
    while (command := reader.gets()) is not False:
        found.append(command)
    return found


def calls_of(flush: Flush) -> list[Sent]:
    """The script calls of a flush that add."""
    calls = []
    for command in commands_of(flush):
        if command[0] != b"EVALSHA":
            continue
        count = int(command[2])
        names, arguments = command[3 : 3 + count], command[3 + count :]
        tokens = int(arguments[6])
        calls.append(
            Sent(
                int(names[0].split(b":")[1].split(b"}")[0]),
                names[2].decode().rpartition(":")[2],
                int(arguments[1]),
                arguments[4].decode(),
                arguments[5] == b"k",
                [(names[4 + i], arguments[8 + 3 * i]) for i in range(tokens)],
                {
                    key.decode(): int(delta)
                    for key, delta in zip(
                        names[4 + tokens :], arguments[7 + 3 * tokens :], strict=True
                    )
                },
            )
        )
    return calls


def flush_of(
    operations: Sequence[Operation | ScriptCall],
    sequences: LinkSequences,
    durability: tuple[Any, ...] | None = None,
    durable: Callable[[Any], bool] = lambda reply: True,
) -> Flush:
    """A flush of what still has to be sent."""
    return Flush(operations, _FENCES, sequences, durability, durable)


_KEYS = st.sampled_from(["k1", "k2", "k3", "k4"])
_EDGES = st.sampled_from([MAX_DELTA, -MAX_DELTA, MAX_DELTA // 2 + 1])
_DELTAS = st.integers(-MAX_DELTA, MAX_DELTA) | st.integers(-3, 3) | _EDGES
_TOKENS = st.none() | st.builds(
    Token,
    st.just("p"),
    st.sampled_from(["{tb}:p:1:a:x", "{tb}:p:1:a:y"]),
    st.integers(1, 4),
    st.just(600),
)
_ASKED = st.builds(
    Asked,
    st.integers(0, _PARTITIONS - 1),
    st.dictionaries(_KEYS, _DELTAS, max_size=3),
    _TOKENS,
)


def _sum(all_operations: list[tuple[int, dict[str, int]]]) -> dict[tuple[int, str], int]:
    sums: Counter[tuple[int, str]] = Counter()
    for partition, operations in all_operations:
        for key, delta in operations.items():
            sums[partition, key] += delta
    return {name: total for name, total in sums.items() if total}


def _verdict(data: st.DataObject, call: Sent) -> Any:
    """Any answer that the scripts or Redis itself may give."""
    choices = ["ok", "fenced", "NOSCRIPT gone", "LOADING", "OOM command not allowed", "link old"]
    choices += ["seen", "old"] if call.tokens else []
    choices += ["refused"] if call.operations else []
    verdict = data.draw(st.sampled_from(choices))
    if verdict == "ok":
        return [b"ok"]
    if verdict == "fenced":
        return [b"fenced", b""]
    if verdict == "link old":
        return [b"old", 0]
    if verdict in ("seen", "old"):
        most = len(call.tokens)
    elif verdict == "refused":
        most = len(call.operations)
    else:
        return hiredis.ReplyError(verdict)
    indexes = sorted(data.draw(st.sets(st.integers(1, most), min_size=1)))
    if verdict in ("seen", "old"):
        held = b"" if verdict == "seen" else b"999"
        return [verdict.encode(), *chain.from_iterable((index, held) for index in indexes)]
    return [verdict.encode(), *indexes]


@given(st.lists(_ASKED, max_size=12), st.randoms())
def test_what_is_sent_adds_up_to_what_was_asked_for(asked: list[Asked], random: Any) -> None:
    random.shuffle(asked)
    waiting: list[Operation | ScriptCall] = [one.part for one in asked]
    sequences, sent = LinkSequences("link"), []
    while waiting:
        flush = flush_of(waiting, sequences)
        sent += [(call.partition, call.operations) for call in calls_of(flush)]
        waiting = flush.deferred + flush.settle([[b"ok"]] * flush.count).again
    assert _sum(sent) == _sum([(one.partition, one.operations) for one in asked])


@given(st.lists(_ASKED, max_size=12), st.data())
def test_what_counted_is_what_callers_are_told(asked: list[Asked], data: st.DataObject) -> None:
    """Whatever Redis answers, and however often parts are taken apart and sent again.

    What is stranded is journaled, and its row sent later. One whose sequence was forgotten by then
    is applied by whoever drains the journal.
    """
    waiting: list[Operation | ScriptCall] = [one.part for one in asked]
    sequences, counted, rows = LinkSequences("link"), [], count(1)
    for attempt in range(8):
        if not waiting:
            break
        flush = flush_of(waiting, sequences)
        calls = calls_of(flush)
        last = attempt == 7
        replies = [[b"ok"] if last else _verdict(data, call) for call in calls]
        counted += [
            (call.partition, call.operations)
            for call, reply, made in zip(calls, replies, flush.calls, strict=True)
            if reply == [b"ok"]
        ]
        outcome = flush.settle(replies)
        refused = outcome.refused + [(part, []) for _, over in outcome.amendments for part in over]
        for part, _ in refused:
            part.done(Unavailable("refused"))
        for call in [call for call in outcome.stranded if call.forgotten]:
            outcome.stranded.remove(call)
            counted.append((call.partition, dict(call.operations)))
            for part in call.parts:
                part.done()
        for call in outcome.stranded:
            call.row = call.row or next(rows)
        waiting = [*flush.deferred, *outcome.again, *outcome.stranded]
        waiting += [call.without(over) for call, over in outcome.amendments]
    told = [(one.partition, one.operations) for one in asked if one.applied]
    assert _sum(counted) == _sum(told) or waiting


@given(st.lists(_ASKED, max_size=12), st.data())
def test_every_part_ends_once_or_has_to_go_again(asked: list[Asked], data: st.DataObject) -> None:
    flush = flush_of([one.part for one in asked], LinkSequences("link"))
    outcome = flush.settle([_verdict(data, call) for call in calls_of(flush)])
    ended = [one.part for one in asked for _ in range(one.ended)]
    refused = [part for part, _ in outcome.refused]
    stranded = [part for call in outcome.stranded for part in call.parts]
    accounted = [id(p) for p in (*ended, *refused, *stranded, *outcome.again, *flush.deferred)]
    assert sorted(accounted) == sorted(id(one.part) for one in asked)


@given(st.lists(_ASKED, max_size=12))
def test_a_token_is_only_once_in_a_call(asked: list[Asked]) -> None:
    flush = flush_of([one.part for one in asked], LinkSequences("link"))
    calls = [list(call.tokens) for call in calls_of(flush)]
    assert all(len(tokens) == len(set(tokens)) for tokens in calls)


@given(st.lists(_ASKED, max_size=12))
def test_no_merged_delta_leaves_the_range_of_a_double(asked: list[Asked]) -> None:
    flush = flush_of([one.part for one in asked], LinkSequences("link"))
    sent = [delta for call in calls_of(flush) for delta in call.operations.values()]
    assert all(abs(delta) <= MAX_DELTA for delta in sent)


@given(st.lists(_ASKED, max_size=12))
def test_planning_leaves_what_callers_asked_for_alone(asked: list[Asked]) -> None:
    flush_of([one.part for one in asked], LinkSequences("link"))
    assert [one.part.operations for one in asked] == [one.operations for one in asked]


@given(st.lists(_ASKED, max_size=12))
def test_a_link_sequence_is_never_used_twice(asked: list[Asked]) -> None:
    sequences, used = LinkSequences("link"), []
    waiting: list[Operation | ScriptCall] = [one.part for one in asked]
    while waiting:
        flush = flush_of(waiting, sequences)
        used += [(call.partition, call.link_sequence) for call in calls_of(flush)]
        waiting = flush.deferred
    assert len(used) == len(set(used))


def test_a_part_of_tokens_only_keeps_others_apart() -> None:
    """Each part may be sent again by itself, so none may take on what another asked for."""
    asked = [Asked(0, {}, _token()), Asked(0, {"k": 1}), Asked(0, {"k": 5})]
    flush = flush_of([one.part for one in asked], LinkSequences("link"))
    again = flush.settle([[b"seen", 1, b""]]).again
    assert calls_of(flush_of(again, LinkSequences("link")))[0].operations == {"k": 6}


def _token(sequence: int = 1) -> Token:
    return Token("p", "{tb:0}:p:1:a:x", sequence, 600)


def test_a_repeated_token_goes_in_a_call_of_its_own() -> None:
    first, second = Asked(0, {"k": 1}, _token()), Asked(0, {"k": 1}, _token())
    flush = flush_of([first.part, second.part], LinkSequences("link"))
    assert [len(call.tokens) for call in calls_of(flush)] == [1, 1]


def test_more_operations_than_a_call_holds_go_in_another() -> None:
    first = Asked(0, {f"k{i}": 1 for i in range(MAX_CALL_OPERATIONS)})
    second = Asked(0, {"other": 1})
    flush = flush_of([first.part, second.part], LinkSequences("link"))
    assert [len(call.operations) for call in calls_of(flush)] == [MAX_CALL_OPERATIONS, 1]


def test_more_calls_than_the_link_remembers_wait_for_the_next_flush() -> None:
    asked = [Asked(0, {"k": 1}, _token()) for _ in range(MAX_CALLS + 3)]
    flush = flush_of([one.part for one in asked], LinkSequences("link"))
    assert flush.deferred == [one.part for one in asked[MAX_CALLS:]]


def test_a_repeat_of_what_was_out_of_range_says_so_again() -> None:
    asked = Asked(0, {"k": 1}, _token())
    flush_of([asked.part], LinkSequences("link")).settle([[b"seen", 1, b"\nk"]])
    assert asked.write.out_of_range == ["k"]


def test_a_part_of_a_closed_partition_is_stranded() -> None:
    asked = Asked(_CLOSED, {"k": 1})
    flush = flush_of([asked.part], LinkSequences("link"))
    assert (flush.stranded, flush.count, asked.ended) == ([asked.part], 0, 0)


def test_a_part_of_a_closed_partition_that_nobody_keeps_fails() -> None:
    asked = Asked(_CLOSED, {"k": 1})
    fail(asked.part, CLOSED)
    error = asked.write.error
    assert isinstance(error, Unavailable)
    assert error.reason == "PARTITION_UNAVAILABLE"


def test_a_journaled_call_of_a_closed_partition_is_stranded() -> None:
    call = journaled(Asked(_CLOSED, {"k": 1}))
    flush = flush_of([call], LinkSequences("link"))
    assert (flush.stranded, flush.count) == ([call], 0)


def test_an_abandoned_write_is_not_sent() -> None:
    asked = Asked(0, {"k": 1})
    asked.write.abandoned = True
    assert flush_of([asked.part], LinkSequences("link")).count == 0


@pytest.mark.parametrize(
    ("reply", "token", "error"),
    [
        ([b"ok"], None, type(None)),
        ([b"ok"], _token(), type(None)),
        ([b"seen", 1, b""], _token(), type(None)),
        ([b"old", 1, b"999"], _token(), SequenceTooOld),
        ([b"old", 0], None, OutcomeUnknown),
        (hiredis.ReplyError("ERR something else"), None, Unavailable),
    ],
)
def test_what_a_reply_means(
    reply: Any, token: Token | None, error: type[TallyboardError] | type[None]
) -> None:
    asked = Asked(0, {"k": 1}, token)
    flush_of([asked.part], LinkSequences("link")).settle([reply])
    assert type(asked.write.error) is error


def test_a_journaled_call_that_got_an_error_is_left_to_the_journal() -> None:
    """Its row counts some time, so its caller may not be told that it was not applied."""
    asked = Asked(0, {"k": 1})
    call = journaled(asked)
    outcome = flush_of([call], LinkSequences("link")).settle([hiredis.ReplyError("ERR what else")])
    assert (outcome.stranded, call.forgotten, asked.ended) == ([call], True, 0)


_NOT_TAKEN = [
    [b"fenced", b"x"],
    hiredis.ReplyError("OOM command not allowed"),
    hiredis.ReplyError("READONLY You can't write"),
    hiredis.ReplyError("MISCONF no disk"),
    hiredis.ReplyError("NOREPLICAS Not enough good replicas to write."),
    hiredis.ReplyError(
        "ERR Error running script (call to f_cb9e): @user_script:38: @user_script: 38: -OOM "
        "command not allowed when used memory > 'maxmemory'."
    ),
    hiredis.ReplyError(
        "ERR user_script:14: READONLY You can't write against a read only replica. script: cb9e, "
        "on @user_script:14."
    ),
]


@pytest.mark.parametrize("reply", _NOT_TAKEN, ids=str)
def test_what_redis_does_not_take_is_stranded(reply: Any) -> None:
    """It goes to the journal as the call that it was, and its caller waits."""
    asked = Asked(0, {"k": 1})
    outcome = flush_of([asked.part], LinkSequences("link")).settle([reply])
    (call,) = outcome.stranded
    assert (call.parts, call.token, asked.ended) == ([asked.part], ("link", 1), 0)


@pytest.mark.parametrize("token", [None, _token()], ids=["without a token", "with a token"])
@pytest.mark.parametrize("reply", _NOT_TAKEN, ids=str)
def test_what_redis_did_not_take_was_not_applied(reply: Any, token: Token | None) -> None:
    """So its caller may send it again, if it can't be kept elsewhere."""
    asked = Asked(0, {"k": 1}, token)
    outcome = flush_of([asked.part], LinkSequences("link")).settle([reply])
    fail(outcome.stranded[0], "Redis said no")
    assert type(asked.write.error) is Unavailable


def test_a_fenced_partition_is_named_with_what_was_expected() -> None:
    outcome = flush_of([Asked(0, {"k": 1}).part], LinkSequences("link")).settle([[b"fenced", b"x"]])
    assert (outcome.fenced, outcome.away) == ({0: "life-0"}, "")


@pytest.mark.parametrize("reply", _NOT_TAKEN[1:], ids=str)
def test_a_redis_that_takes_no_writes_is_away(reply: Any) -> None:
    outcome = flush_of([Asked(0, {"k": 1}).part], LinkSequences("link")).settle([reply])
    assert outcome.away.split()[0] in TAKES_NO_WRITES


def test_what_another_node_has_is_sent_again_and_noted() -> None:
    asked = Asked(0, {"k": 1})
    moved = hiredis.ReplyError("MOVED 1 127.0.0.1:2")
    outcome = flush_of([asked.part], LinkSequences("link")).settle([moved])
    assert (outcome.again, outcome.moved) == ([asked.part], "MOVED 1 127.0.0.1:2")


@pytest.mark.parametrize("reply", ["ASK 1 127.0.0.1:2", "TRYAGAIN x"])
def test_what_no_node_takes_now_is_kept_elsewhere(reply: str) -> None:
    asked = Asked(0, {"k": 1})
    outcome = flush_of([asked.part], LinkSequences("link")).settle([hiredis.ReplyError(reply)])
    assert [(call.is_moving, call.sent) for call in outcome.stranded] == [(True, False)]


@pytest.mark.parametrize("reply", ["NOSCRIPT x", "LOADING x", "BUSY x", "MASTERDOWN"])
def test_what_was_not_run_is_sent_again(reply: str) -> None:
    asked = Asked(0, {"k": 1})
    outcome = flush_of([asked.part], LinkSequences("link")).settle([hiredis.ReplyError(reply)])
    assert outcome.again == [asked.part]


def test_what_did_not_become_durable_is_stranded_under_its_token() -> None:
    asked = Asked(0, {"k": 1})
    outcome = settled_too_soon(asked)
    (call,) = outcome.stranded
    assert (call.parts, call.token, asked.ended) == ([asked.part], ("link", 1), 0)


@pytest.mark.parametrize(("token", "error"), [(None, OutcomeUnknown), (_token(), Unavailable)])
def test_what_did_not_become_durable_and_is_not_kept_is_not_acknowledged(
    token: Token | None, error: type[TallyboardError]
) -> None:
    asked = Asked(0, {"k": 1}, token)
    fail(settled_too_soon(asked).stranded[0], "not durable")
    assert type(asked.write.error) is error


def settled_too_soon(asked: Asked) -> Outcome:
    """What is left of a flush that was applied and is not on disk."""
    flush = flush_of([asked.part], LinkSequences("link"), _WAITAOF, lambda reply: False)
    return flush.settle([[b"ok"], [0, 0]])


def test_a_repeat_that_is_not_durable_is_not_acknowledged() -> None:
    asked = Asked(0, {"k": 1}, _token())
    flush = flush_of([asked.part], LinkSequences("link"), _WAITAOF, lambda reply: False)
    flush.settle([[b"seen", 1, b""], [0, 0]])
    assert isinstance(asked.write.error, Unavailable)


def journaled(*asked: Asked) -> ScriptCall:
    """One call that carries these, as row 7 of the journal under a token of its own, for the life
    that its partition has.
    """
    call = call_for(asked[0].part)
    for one in asked[1:]:
        assert call.takes(one.part)
    call.token, call.row = CallToken("journal", 5), 7
    call.incarnation = f"life-{call.partition}"
    return call


def sent_as(call: Sent) -> tuple[str, int, str]:
    """What makes it recognisable."""
    return call.link, call.link_sequence, call.row


def test_a_journaled_call_goes_under_its_own_token_and_row() -> None:
    flush = flush_of([journaled(Asked(0, {"k": 1}))], LinkSequences("link"))
    assert [sent_as(call) for call in calls_of(flush)] == [("journal", 5, "7")]


def test_what_is_not_in_the_journal_has_no_row() -> None:
    flush = flush_of([Asked(0, {"k": 1}).part], LinkSequences("link"))
    assert [sent_as(call) for call in calls_of(flush)] == [("link", 1, "")]


def test_a_call_that_was_journaled_for_another_life_is_stranded() -> None:
    call = journaled(Asked(0, {"k": 1}))
    call.incarnation = "before"
    flush = flush_of([call], LinkSequences("link"))
    assert (flush.stranded, flush.count) == ([call], 0)


def test_a_journaled_call_takes_on_nothing_else() -> None:
    row, other = journaled(Asked(0, {"k": 1})), Asked(0, {"k": 5})
    flush = flush_of([row, other.part], LinkSequences("link"))
    assert [call.operations for call in calls_of(flush)] == [{"k": 1}, {"k": 5}]


def test_more_journaled_calls_than_a_flush_holds_wait_for_the_next_one() -> None:
    calls = [journaled(Asked(0, {"k": 1})) for _ in range(MAX_CALLS + 3)]
    flush = flush_of(calls, LinkSequences("link"))
    assert flush.deferred == calls[MAX_CALLS:]


@pytest.mark.parametrize(
    ("reply", "left"),
    [
        (hiredis.ReplyError("NOSCRIPT x"), {"a": 1, "b": 2}),
        (hiredis.ReplyError("LOADING x"), {"a": 1, "b": 2}),
        ([b"seen", 1, b""], {"b": 2}),
    ],
    ids=["no script", "loading", "seen"],
)
def test_what_is_left_of_a_journaled_call_goes_again_under_its_row(
    reply: Any, left: dict[str, int]
) -> None:
    call = journaled(Asked(0, {"a": 1}, _token(1)), Asked(0, {"b": 2}, _token(2)))
    again = flush_of([call], LinkSequences("link")).settle([reply]).again
    found = calls_of(flush_of(again, LinkSequences("link")))
    assert [(sent_as(call), call.operations) for call in found] == [(("journal", 5, "7"), left)]


def test_what_is_refused_of_a_journaled_call_leaves_its_row_before_anything_else() -> None:
    call = journaled(Asked(0, {"a": 1}), Asked(0, {"b": 2}))
    outcome = flush_of([call], LinkSequences("link")).settle([[b"refused", 2]])
    (amendment,) = outcome.amendments
    found = (outcome.again, outcome.refused, amendment.call, list(amendment.over.values()))
    assert found == ([], [], call, [["b"]])


@pytest.mark.parametrize("reply", [hiredis.ReplyError("NOSCRIPT x"), [b"fenced", b""]])
def test_what_was_sent_before_an_answer_was_lost_keeps_its_token(reply: Any) -> None:
    """Only its token can tell whether it was applied the first time."""
    flush = flush_of([Asked(0, {"a": 1}).part], LinkSequences("link"))
    for call in flush.calls:
        call.sent = call.doubtful = True
    outcome = flush.settle([reply])
    kept = [*outcome.again, *outcome.stranded]
    assert [(call.token, call.sent) for call in kept if isinstance(call, ScriptCall)] == [
        (CallToken("link", 1), True)
    ]


def test_a_journaled_call_whose_sequence_was_forgotten_is_left_to_its_row() -> None:
    asked = Asked(0, {"a": 1})
    call = journaled(asked)
    outcome = flush_of([call], LinkSequences("link")).settle([[b"old", 0]])
    assert (outcome.again, outcome.stranded, asked.ended) == ([], [call], 0)
    assert call.forgotten


def test_a_journaled_call_of_repeats_only_is_still_noted() -> None:
    """Otherwise its row would stay in the journal."""
    call = journaled(Asked(0, {"a": 1}, _token(1)))
    again = flush_of([call], LinkSequences("link")).settle([[b"seen", 1, b""]]).again
    found = calls_of(flush_of(again, LinkSequences("link")))
    assert [(sent_as(call), call.operations) for call in found] == [(("journal", 5, "7"), {})]


@pytest.mark.parametrize("keeps_tokens", [False, True])
def test_says_whether_tokens_are_part_of_checkpoints(keeps_tokens: bool) -> None:
    part = Asked(0, {"k": 1}, _token()).part
    flush = Flush([part], _FENCES, LinkSequences("link"), keeps_tokens=keeps_tokens)
    assert [call.keeps_tokens for call in calls_of(flush)] == [keeps_tokens]


@given(st.lists(st.integers(1, MAX_MGET_KEYS), min_size=1, max_size=4))
def test_every_read_gets_the_values_of_its_keys(sizes: list[int]) -> None:
    reads = [
        Read([f"{at}.{i}" for i in range(size)], lambda: None) for at, size in enumerate(sizes)
    ]
    flush = flush_of(list(reads), LinkSequences("link"))
    flush.settle([command[1:] for command in commands_of(flush)])
    assert [[v.decode() for v in read.values if v] for read in reads] == [r.keys for r in reads]


def test_commands_get_their_own_replies_behind_writes_and_reads() -> None:
    ended: list[str] = []
    command = Command(("PING",), lambda: ended.append("command"))
    read = Read(["k"], lambda: ended.append("read"))
    asked = Asked(0, {"k": 1})
    flush = flush_of([command, read, asked.part], LinkSequences("link"), _WAITAOF)
    flush.settle([[b"ok"], [b"5"], b"PONG", [1, 0]])
    assert (command.reply, read.values, asked.applied, ended) == (
        b"PONG",
        [b"5"],
        True,
        ["read", "command"],
    )
