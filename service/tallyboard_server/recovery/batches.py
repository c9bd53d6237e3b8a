"""Script calls as the journal keeps them: what they do, without what may change until then.

A call is a JSON object: the script, and its parts in their order. A part has its caller's token,
and either deltas by key or scores by board. Of scores the windows are kept by name, not by key and
mode: whether they are open, closed or archived is looked up when they are applied.
"""

import base64
import json
from array import array
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from tallyboard_server.postgres.journal import Increment, TokenOf
from tallyboard_server.redis import scripts
from tallyboard_server.redis.calls import ScriptCall
from tallyboard_server.redis.flush import call_for
from tallyboard_server.redis.keys import parse_counter_key
from tallyboard_server.redis.operations import Part, Token, Write
from tallyboard_server.redis.scores import (
    Columns,
    Group,
    Plan,
    ScorePart,
    code_of,
    moment_of,
)

_NAMES: Final = {scripts.ADD: "add", scripts.ADD_WIDE: "add_wide", scripts.SUBMIT: "submit"}
_SCRIPTS: Final = {name: script for script, name in _NAMES.items()}
#: What a text that has repeats contains, and no other: within a name its quotes would be escaped.
REPEAT_MARK: Final = '"repeat":true'


class Scores(NamedTuple):
    """Scores of one part for one board and the same windows, as parallel columns."""

    tenant: str
    leaderboard_id: str
    board_key: str
    windows: tuple[str, ...]
    members: list[str]
    scores: list[float]
    moments: list[int]
    metadata: list[bytes]


#: Finds where scores go now, in a partition; None if their board is gone.
PlanOf = Callable[[int, Scores], Plan | None]


def encode(call: ScriptCall, repeats: Collection[Part] = ()) -> str:
    """The call as text.

    Args:
        repeats: parts that another row has already, under the same tokens.
    """
    parts: list[dict[str, Any]] = []
    for part in call.parts:
        if isinstance(part, ScorePart):
            scores = [_scores(plan, columns) for plan, columns in part.groups.items()]
            parts.append({"token": part.token, "scores": scores})
        else:
            parts.append({"token": part.token, "deltas": part.operations})
        if part in repeats:
            parts[-1]["repeat"] = True
    return _text({"script": _NAMES[call.script], "parts": parts})


def mark_repeats(text: str, tokens: Collection[TokenOf]) -> str:
    """The same call, whose parts with these tokens are repeats."""
    found = json.loads(text)
    for part in found["parts"]:
        if part["token"] and name_of(Token(*part["token"])) in tokens:
            part["repeat"] = True
    return _text(found)


def decode(partition: int, text: str, plan_of: PlanOf) -> ScriptCall:
    """A call that does what the text says, without a token of its own."""
    found = json.loads(text)
    script = _SCRIPTS[found["script"]]
    call: ScriptCall | None = None
    for saved in found["parts"]:
        write = Write(_nothing)
        token = Token(*saved["token"]) if saved["token"] else None
        if script is scripts.SUBMIT:
            part: Part = ScorePart(write, partition, _groups(partition, saved, plan_of), token)
        else:
            part = Part(write, partition, saved["deltas"], token, script)
        write.add(part)
        if call is None:
            call = call_for(part)
        elif not call.takes(part):
            raise ValueError("the parts of a journaled call don't fit together")
    return call or ScriptCall(partition, script)


def increments_of(call: ScriptCall, repeats: Collection[Part] = ()) -> Iterator[Increment]:
    """What the call adds to counters, each counter once, without those parts that are repeats."""
    if call.script is not scripts.SUBMIT:
        yield from _added_up(part.operations for part in call.parts if part not in repeats)


def increments_in(text: str) -> Iterator[Increment]:
    """The same for a call that is kept as this text."""
    return _added_up(
        part.get("deltas", {}) for part in json.loads(text)["parts"] if not part.get("repeat")
    )


def _added_up(parts: Iterable[Mapping[str, int]]) -> Iterator[Increment]:
    sums: defaultdict[tuple[str, str], int] = defaultdict(int)
    for deltas in parts:
        for key, delta in deltas.items():
            _, _, tenant, counter = parse_counter_key(key.encode())
            sums[tenant, counter] += delta
    for (tenant, counter), delta in sums.items():
        yield Increment(tenant, counter, delta)


def _text(call: Mapping[str, Any]) -> str:
    return json.dumps(call, ensure_ascii=False, separators=(",", ":"))


def _scores(plan: Plan, columns: Columns) -> dict[str, Any]:
    return {
        "tenant": plan.tenant,
        "leaderboard_id": plan.leaderboard_id,
        "board_key": plan.board_key,
        "windows": plan.windows[::3],
        "members": columns.members,
        "scores": columns.scores.tolist(),
        "moments": [moment_of(code, plan.descending) for code in columns.codes],
        "metadata": [base64.b64encode(data).decode() for data in columns.metadata],
    }


def scores_in(text: str) -> Iterator[Scores]:
    """The scores of a call that is kept as this text, without those of repeats."""
    for part in json.loads(text)["parts"]:
        if not part.get("repeat"):
            for item in part.get("scores", ()):
                yield _scores_from(item)


def tokens_in(text: str) -> Iterator[Token]:
    """The callers' tokens of a call that is kept as this text."""
    for part in json.loads(text)["parts"]:
        if part["token"]:
            yield Token(*part["token"])


def repeats_in(text: str) -> set[TokenOf]:
    """Those tokens of a call that is kept as this text whose parts are repeats."""
    parts = json.loads(text)["parts"]
    return {name_of(Token(*part["token"])) for part in parts if part.get("repeat")}


def name_of(token: Token) -> TokenOf:
    """What the journal knows a token by."""
    return TokenOf(token.key, int(token.sequence or 0))


def scores_of(call: ScriptCall, repeats: Collection[Part] = ()) -> Iterator[Scores]:
    """The scores of a call, without those parts that are repeats."""
    for part in call.parts:
        if isinstance(part, ScorePart) and part not in repeats:
            for plan, columns in part.groups.items():
                yield Scores(
                    plan.tenant,
                    plan.leaderboard_id,
                    plan.board_key,
                    tuple(plan.windows[::3]),
                    columns.members,
                    columns.scores.tolist(),
                    [moment_of(code, plan.descending) for code in columns.codes],
                    columns.metadata,
                )


def _scores_from(item: dict[str, Any]) -> Scores:
    return Scores(
        item["tenant"],
        item["leaderboard_id"],
        item["board_key"],
        tuple(item["windows"]),
        item["members"],
        item["scores"],
        item["moments"],
        [base64.b64decode(data) for data in item["metadata"]],
    )


def _groups(partition: int, saved: dict[str, Any], plan_of: PlanOf) -> dict[Plan, Columns]:
    groups: dict[Plan, Columns] = {}
    for item in saved["scores"]:
        scores = _scores_from(item)
        plan = plan_of(partition, scores)
        if plan is None:
            continue
        coming = _columns(scores, plan.descending)
        # Two stretches of time may have the same windows: what was two groups is one now.
        groups[plan] = _joined(plan, groups[plan], coming) if plan in groups else coming
    return groups


def _columns(scores: Scores, descending: bool) -> Columns:
    codes: Sequence[int] = [code_of(moment, descending) for moment in scores.moments]
    return Columns(scores.members, array("d", scores.scores), array("Q", codes), scores.metadata)


def _joined(plan: Plan, first: Columns, second: Columns) -> Columns:
    """Both as one, each member once."""
    part = ScorePart(Write(_nothing), plan.partition, {}, None)
    group = Group(plan, part, first)
    group.add(part, second)
    return group.columns


def _nothing() -> None:
    pass
