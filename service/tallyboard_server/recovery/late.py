"""What becomes of journaled batches that come to Redis too late for their producer's ring.

A ring holds the last sequences of a producer. A row may be applied when others of its producer
have gone far ahead: a worker that stood still wrote it, or the one that went on with the stream
could not know that the partition was journaled for. If the batch was applied already, by whichever
way, it must not count again; if not, it was acknowledged, and must.
"""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import psycopg

from tallyboard_server.postgres import journal as rows
from tallyboard_server.postgres.journal import TokenOf
from tallyboard_server.recovery.batches import repeats_in
from tallyboard_server.redis.calls import ScriptCall
from tallyboard_server.redis.keys import late_key
from tallyboard_server.redis.operations import Part, Token
from tallyboard_server.redis.rings import parse_slot


class Verdicts(NamedTuple):
    """Parts of a row, by what is known of them.

    Attributes:
        over: applied before.
        missing: never applied.
        unknown: nobody can tell.
    """

    over: set[Part]
    missing: set[Part]
    unknown: set[Part]


def judge(
    conn: psycopg.Connection[Any],
    call: ScriptCall,
    slots: Mapping[Part, bytes],
    applied: Collection[int],
    *,
    all_have_rows: bool,
) -> Verdicts:
    """Finds out whether parts of a row were applied.

    Args:
        call: which is the row's, with its number.
        slots: parts that are too old for their rings, and what these hold in their place.
        applied: numbers of rows that Redis has applied and no checkpoint has yet.
        all_have_rows: whether nothing is applied that has no row.
    """
    found = Verdicts(set(), set(), set())
    unknown = {}
    for part, held in slots.items():
        slot, token = parse_slot(held), part.token
        assert token is not None
        was_applied = None if slot is None else slot.applied(int(token.sequence))
        if was_applied is None:
            unknown[part] = TokenOf(token.key, int(token.sequence))
        else:
            (found.over if was_applied else found.missing).add(part)
    if unknown:
        carriers = _carriers(conn, set(unknown.values()))
        for part, name in unknown.items():
            if _is_elsewhere(carriers.get(name, {}), call.row, applied):
                found.over.add(part)
            else:
                (found.missing if all_have_rows else found.unknown).add(part)
    return found


def _carriers(
    conn: psycopg.Connection[Any], tokens: Collection[TokenOf]
) -> dict[TokenOf, dict[int, bool]]:
    """By token, the rows that have it, and whether no checkpoint is known to have what they do.

    One has it when a row is gone, or when the first one is a repeat: of what came before it.
    """
    held = rows.rows_of_tokens(conn, tokens)
    every = {row for numbers in held.values() for row in numbers}
    there = {batch.journal_id: batch.text for batch in rows.batches_by_id(conn, every)}
    again = {first: repeats_in(there[first]) for first, *_ in held.values() if first in there}
    found = {}
    for token, (first, *others) in held.items():
        found[token] = {row: row in there for row in others}
        found[token][first] = first in there and token not in again[first]
    return found


def _is_elsewhere(carriers: Mapping[int, bool], row: int | None, applied: Collection[int]) -> bool:
    """Whether another row with the same token was applied: of several the first one counts.

    A row that is not noted with its token came when another had it, which a checkpoint has by now.
    """
    if row is None or not carriers.get(row):
        return True
    return any(other in applied or not waits for other, waits in carriers.items() if other != row)


def make_late(part: Part) -> None:
    """Gives a part a token of its own in the place of the one in the ring."""
    token = part.token
    assert token is not None
    key = late_key(token.key, int(token.sequence))
    part.token = Token("r", key, "", token.ttl, token.note)
