"""Tokens of parts that are on their way to the journal, and were there before.

A part whose token is known is a repeat, or another attempt at the same update: only Redis can tell
whether the first one was applied, so it is written all the same, and counts for reads once. It does
so with the row that had the token first, until a checkpoint has it, by whichever row.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence

from tallyboard_server.postgres import journal as rows
from tallyboard_server.postgres.journal import TokenOf
from tallyboard_server.postgres.pool import BoundedConnection
from tallyboard_server.recovery.batches import (
    REPEAT_MARK,
    increments_in,
    mark_repeats,
    name_of,
    repeats_in,
    tokens_in,
)
from tallyboard_server.redis.calls import PRODUCER_RING
from tallyboard_server.redis.operations import Part
from tallyboard_server.redis.rings import parse_slot


def token_of(part: Part) -> TokenOf:
    """The token of a part that has one."""
    assert part.token is not None
    return name_of(part.token)


def claim(conn: BoundedConnection, parts: Iterable[tuple[Part, int]]) -> dict[Part, str]:
    """Claims the tokens of parts for the rows they are written to, in the transaction under way.

    Gives the parts whose tokens another row, or another of these parts, has already, with the notes
    that are kept with them.
    """
    having = [(part, row) for part, row in parts if part.token is not None]
    claimed: dict[TokenOf, tuple[Part, int]] = {}
    for part, row in having:
        claimed.setdefault(token_of(part), (part, row))
    if not claimed:
        return {}
    held = rows.claim_tokens(conn, [(token, row) for token, (_, row) in claimed.items()])
    notes = _notes(conn, {row for token, row in held.items() if claimed[token][1] != row})
    repeats, others = {}, []
    for part, row in having:
        token = token_of(part)
        first = claimed[token][0]
        if held[token] != row:
            repeats[part] = notes.get(token, "")
            others.append((token, row))
        elif first is not part and first.token is not None:
            repeats[part] = first.token.note
    if others:
        rows.note_repeats(conn, others)
    return repeats


def checkpointed(conn: BoundedConnection, parts: Sequence[Part]) -> dict[Part, str | None]:
    """Parts that a checkpoint has already, as their tokens say; with their notes.

    Their rows are gone, and reads would count them a second time. So it is with those of which the
    ring has forgotten whether it has them, noted as None: they are not to be applied any more.
    """
    having = [(part, part.token) for part in parts if part.token is not None]
    if not having:
        return {}
    held = rows.checkpointed_tokens(conn, {(part.partition, token.key) for part, token in having})
    repeats: dict[Part, str | None] = {}
    for part, token in having:
        slot = str(int(token.sequence) % PRODUCER_RING).encode() if token.kind == "p" else b""
        value = held.get(token.key, {}).get(slot)
        if value is None:
            continue
        if token.kind != "p":
            repeats[part] = value.decode()
        elif held_slot := parse_slot(value):
            was_applied = held_slot.applied(int(token.sequence))
            if held_slot.newest == int(token.sequence):
                repeats[part] = held_slot.note.decode()
            elif was_applied is not False:
                repeats[part] = "" if was_applied else None
    return repeats


def of_row(conn: BoundedConnection, row: int) -> set[TokenOf]:
    """Tokens of a row whose parts are repeats; it stays as it is until the transaction ends."""
    rows.lock_batches(conn, (row,))
    return {token for batch in rows.batches_by_id(conn, (row,)) for token in repeats_in(batch.text)}


def remove_applied(
    conn: BoundedConnection, partitions: Collection[int], ids: Collection[int]
) -> None:
    """Removes the rows that a checkpoint has, in its transaction.

    What they repeat has counted with other rows, which may stay: a worker has committed them, and
    never sent them. From now on it counts with the checkpoint.

    Args:
        partitions: theirs; the caller has locked their rows, so nobody has them journaled for now.
        ids: the rows' numbers.
    """
    # Tokens before rows, as those do who write them, and both in their order.
    rows.lock_tokens_of(conn, ids)
    counted: dict[int, set[TokenOf]] = defaultdict(set)
    applied = {
        token for text in rows.texts_with(conn, ids, REPEAT_MARK) for token in repeats_in(text)
    }
    for token, (first, *_) in rows.rows_of_tokens(conn, applied).items() if applied else ():
        counted[first].add(token)
    gone = set(ids)
    rows.lock_batches(conn, gone | set(counted))
    for batch in rows.batches_by_id(conn, set(counted) - gone):
        text = mark_repeats(batch.text, counted[batch.journal_id])
        increments = list(increments_in(text))
        rows.rewrite_batch(conn, batch.journal_id, text, batch.updates, increments)
    rows.delete_batches(conn, partitions, ids)


def _notes(conn: BoundedConnection, ids: Collection[int]) -> dict[TokenOf, str]:
    """What is kept with the tokens of rows."""
    batches = rows.batches_by_id(conn, ids) if ids else []
    return {name_of(token): token.note for batch in batches for token in tokens_in(batch.text)}
