"""The journal: batches that are durable in Postgres and not yet in a checkpoint.

Callers hold the transaction. Whoever adds batches of a partition holds its journal lock shared, and
whoever opens the partition holds it alone: so nobody adds one behind the last look.
"""

from collections.abc import Collection, Iterable, Sequence
from typing import Any, Final, NamedTuple

import psycopg
import psycopg.sql

from tallyboard_server.postgres.locks import JOURNAL_LOCKS
from tallyboard_server.postgres.statements import statement

OPEN: Final = "OPEN"
JOURNALING: Final = "JOURNALING"
REBUILDING: Final = "REBUILDING"


class Standing(NamedTuple):
    """What Postgres says of a partition.

    Attributes:
        version: the number of its last checkpoint.
        changes: how often its state has changed.
        age: seconds since it did last.
    """

    partition: int
    state: str
    incarnation: str
    version: int
    changes: int
    age: float


class Increment(NamedTuple):
    """What a batch adds to a counter."""

    tenant: str
    counter: str
    delta: int


class TokenOf(NamedTuple):
    """A caller's token in a batch; `sequence` is 0 for a request id."""

    token: str
    sequence: int


class Batch(NamedTuple):
    """A row of the journal: one script call for one partition.

    Attributes:
        link, sequence: the token that the call has in Redis.
        text: the call, see recovery/batches.py.
        updates: how many updates it holds.
    """

    journal_id: int
    partition: int
    link: str
    sequence: int
    text: str
    updates: int


class ScoreDelta(NamedTuple):
    """What a batch does to a member's entry in one window, by the board's policy."""

    window_id: int
    member: str
    partition: int
    score: float
    updated_at: int
    metadata: bytes
    policy: str
    descending: bool


def read_standings(
    conn: psycopg.Connection[Any], partitions: Collection[int] | None = None
) -> list[Standing]:
    """What Postgres says of partitions; of all by default."""
    rows = conn.execute(
        "SELECT partition, state, incarnation, version, changes,"
        " extract(epoch FROM clock_timestamp() - changed_at)::double precision"
        " FROM tallyboard.partitions"
        " WHERE %(which)s::integer[] IS NULL OR partition = ANY(%(which)s)"
        " ORDER BY partition",
        {"which": None if partitions is None else list(partitions)},
    )
    return [Standing(*row) for row in rows]


def lock_shared(conn: psycopg.Connection[Any], partitions: Iterable[int]) -> None:
    """Keeps these partitions from being opened until the transaction ends."""
    conn.execute(
        "SELECT pg_advisory_xact_lock_shared(%s, partition)"
        " FROM unnest(%s::integer[]) AS given (partition)",
        (JOURNAL_LOCKS, sorted(partitions)),
    )


def lock_alone(conn: psycopg.Connection[Any], partition: int) -> None:
    """Keeps others from adding batches of this partition until the transaction ends."""
    conn.execute("SELECT pg_advisory_xact_lock(%s, %s)", (JOURNAL_LOCKS, partition))


def stamp(conn: Any, partitions: Collection[int]) -> None:
    """Has the age of partitions' states begin now: what comes before the commit may take long."""
    if partitions:
        conn.execute(
            "UPDATE tallyboard.partitions SET changed_at = clock_timestamp()"
            " WHERE partition = ANY(%s)",
            (list(partitions),),
        )


def begin_journaling(conn: psycopg.Connection[Any], partitions: Collection[int]) -> set[int]:
    """Says that writes of these partitions go to the journal; gives those that were open."""
    rows = conn.execute(
        "UPDATE tallyboard.partitions"
        " SET state = 'JOURNALING', changes = changes + 1, changed_at = clock_timestamp()"
        " WHERE partition IN ("
        " SELECT partition FROM tallyboard.partitions"
        " WHERE partition = ANY(%s) AND state = 'OPEN' ORDER BY partition FOR NO KEY UPDATE)"
        " RETURNING partition",
        (sorted(partitions),),
    )
    return {row[0] for row in rows}


def open_partition(conn: psycopg.Connection[Any], partition: int, incarnation: str) -> bool:
    """Says that Redis has all of this life of it; False if Postgres follows another one."""
    return (
        conn.execute(
            "UPDATE tallyboard.partitions"
            " SET state = 'OPEN', changes = changes + 1, changed_at = clock_timestamp()"
            " WHERE partition = %s AND incarnation = %s",
            (partition, incarnation),
        ).rowcount
        > 0
    )


def hand_over(conn: psycopg.Connection[Any], partition: int) -> int:
    """Ends a rebuild with what only the journal has left to be applied; gives how many rows.

    The keeper applies them, and opens the partition.
    """
    conn.execute(
        "UPDATE tallyboard.partitions"
        " SET state = 'JOURNALING', changes = changes + 1, changed_at = clock_timestamp()"
        " WHERE partition = %s AND state = 'REBUILDING'",
        (partition,),
    )
    return len(batch_ids(conn, partition))


def new_ids(conn: psycopg.Connection[Any], count: int) -> list[int]:
    """Numbers for rows that are about to be written, above all that were given before.

    Rows are applied in the order of their numbers. A producer's ring in Redis takes no sequence
    that is far behind, so a row must not have a smaller number than one that was acknowledged
    before it came, by whichever worker: take none in advance.
    """
    if not count:
        return []
    rows = conn.execute(
        "SELECT nextval(pg_get_serial_sequence('tallyboard.journal', 'journal_id'))"
        " FROM generate_series(1, %s)",
        (count,),
    )
    return [row[0] for row in rows]


def claim_tokens(
    conn: psycopg.Connection[Any], tokens: Sequence[tuple[TokenOf, int]]
) -> dict[TokenOf, int]:
    """Notes which row has a token; gives for each the row that has it, which may be another.

    Args:
        tokens: with the numbers of their rows; each token at most once.
    """
    ordered = sorted(tokens)
    rows = conn.execute(
        statement("claim_tokens"),
        {
            "tokens": [token.token for token, _ in ordered],
            "sequences": [token.sequence for token, _ in ordered],
            "ids": [row for _, row in ordered],
        },
    )
    return {TokenOf(token, sequence): row for token, sequence, row in rows}


def note_repeats(conn: psycopg.Connection[Any], repeats: Collection[tuple[TokenOf, int]]) -> None:
    """Notes rows that have a token besides the one that had it first."""
    conn.execute(
        "UPDATE tallyboard.journal_tokens AS held SET repeated_by = held.repeated_by || given.ids"
        " FROM (SELECT token, sequence, array_agg(id ORDER BY id) AS ids"
        " FROM unnest(%s::text[], %s::bigint[], %s::bigint[]) AS each (token, sequence, id)"
        " GROUP BY token, sequence) AS given"
        " WHERE held.token = given.token AND held.sequence = given.sequence",
        (
            [token.token for token, _ in repeats],
            [token.sequence for token, _ in repeats],
            [row for _, row in repeats],
        ),
    )


def rows_of_tokens(
    conn: psycopg.Connection[Any], tokens: Collection[TokenOf]
) -> dict[TokenOf, list[int]]:
    """The rows that have these tokens, the first one first; some may be gone."""
    found = conn.execute(
        "SELECT token, sequence, journal_id, repeated_by FROM tallyboard.journal_tokens"
        " JOIN unnest(%s::text[], %s::bigint[]) AS given (token, sequence)"
        " USING (token, sequence)",
        ([token.token for token in tokens], [token.sequence for token in tokens]),
    )
    return {TokenOf(token, sequence): [row, *others] for token, sequence, row, others in found}


def checkpointed_tokens(
    conn: psycopg.Connection[Any], tokens: Collection[tuple[int, str]]
) -> dict[str, dict[bytes, bytes]]:
    """What checkpoints say of tokens: a ring's fields and values, or {b"": value} of another.

    Args:
        tokens: with their partitions.
    """
    found = conn.execute(
        "SELECT held.token, held.ring, held.held FROM tallyboard.tokens AS held"
        " JOIN unnest(%s::integer[], %s::bytea[]) AS given (partition, token)"
        " USING (partition, token) WHERE held.expires_at > clock_timestamp()",
        ([partition for partition, _ in tokens], [token.encode() for _, token in tokens]),
    )
    return {
        bytes(token).decode(): dict(zip(held[::2], held[1::2], strict=True))
        if ring
        else {b"": held[0]}
        for token, ring, held in found
    }


def add_batches(
    conn: psycopg.Connection[Any],
    batches: Sequence[Batch],
    increments: Sequence[tuple[int, Increment]],
    shown: Collection[int] = (),
) -> None:
    """Adds rows; those that are there already, by link and sequence, stay as they are.

    Args:
        increments: what the batches add to counters, by the number of the row, each counter once.
        shown: the numbers of those whose scores the caller adds to what reads see.
    """
    ids, partitions, links, sequences, texts, updates = map(list, zip(*batches, strict=True))
    are_shown = [number in shown for number in ids]
    conn.execute(
        "INSERT INTO tallyboard.journal"
        " (journal_id, partition, link, sequence, batch, updates, shown)"
        " OVERRIDING SYSTEM VALUE SELECT * FROM unnest(%s::bigint[], %s::integer[], %s::text[],"
        " %s::bigint[], %s::text[], %s::integer[], %s::boolean[]) ON CONFLICT DO NOTHING",
        (ids, partitions, links, sequences, texts, updates, are_shown),
    )
    _add_increments(conn, increments)


def rewrite_batch(
    conn: psycopg.Connection[Any],
    journal_id: int,
    text: str,
    updates: int,
    increments: Sequence[Increment],
) -> None:
    """Gives a row another content, with what it adds to counters from now on."""
    conn.execute(
        "UPDATE tallyboard.journal SET batch = %s, updates = %s WHERE journal_id = %s",
        (text, updates, journal_id),
    )
    conn.execute("DELETE FROM tallyboard.journal_increments WHERE journal_id = %s", (journal_id,))
    _add_increments(conn, [(journal_id, increment) for increment in increments])


def release_tokens(conn: psycopg.Connection[Any], tokens: Collection[tuple[TokenOf, int]]) -> None:
    """Takes tokens from rows, given by their numbers, that have them first; others keep theirs."""
    if not tokens:
        return
    columns = (
        [token.token for token, _ in tokens],
        [token.sequence for token, _ in tokens],
        [row for _, row in tokens],
    )
    which = (
        "(held.token, held.sequence, held.journal_id) IN"
        " (SELECT * FROM unnest(%s::text[], %s::bigint[], %s::bigint[]))"
    )
    conn.execute(
        f"SELECT FROM tallyboard.journal_tokens AS held WHERE {which}"
        " ORDER BY token, sequence FOR UPDATE",
        columns,
    )
    conn.execute(f"DELETE FROM tallyboard.journal_tokens AS held WHERE {which}", columns)


def lock_tokens_of(conn: psycopg.Connection[Any], ids: Collection[int]) -> None:
    """Keeps others from claiming the tokens of rows until the transaction ends."""
    conn.execute(
        "SELECT FROM tallyboard.journal_tokens WHERE journal_id = ANY(%s)"
        " ORDER BY token, sequence FOR UPDATE",
        (list(ids),),
    )


def lock_batches(conn: psycopg.Connection[Any], ids: Collection[int]) -> None:
    """Keeps others from changing rows until the transaction ends."""
    conn.execute(
        "SELECT FROM tallyboard.journal WHERE journal_id = ANY(%s) ORDER BY journal_id FOR UPDATE",
        (list(ids),),
    )


def _add_increments(
    conn: psycopg.Connection[Any], increments: Sequence[tuple[int, Increment]]
) -> None:
    if increments:
        conn.execute(
            "INSERT INTO tallyboard.journal_increments (journal_id, tenant, counter, delta)"
            " SELECT * FROM unnest(%s::bigint[], %s::text[], %s::text[], %s::numeric[])"
            " ON CONFLICT DO NOTHING",
            (
                [row for row, _ in increments],
                [increment.tenant for _, increment in increments],
                [increment.counter for _, increment in increments],
                [increment.delta for _, increment in increments],
            ),
        )


def show(conn: psycopg.Connection[Any], ids: Collection[int]) -> set[int]:
    """Says that reads see the scores of these rows; gives those of which they did not before."""
    if not ids:
        return set()
    lock_batches(conn, ids)
    rows = conn.execute(
        "UPDATE tallyboard.journal SET shown = true"
        " WHERE journal_id = ANY(%s) AND NOT shown RETURNING journal_id",
        (list(ids),),
    )
    return {row[0] for row in rows}


def add_scores(conn: psycopg.Connection[Any], scores: Sequence[ScoreDelta]) -> None:
    """Brings entries as reads see them while Redis is away up to date.

    Args:
        scores: at most one of a window and member.
    """
    if not scores:
        return
    ordered = sorted(scores, key=lambda score: (score.window_id, score.member))
    names = ScoreDelta._fields
    columns = dict(zip(names, map(list, zip(*ordered, strict=True)), strict=True))
    conn.execute(statement("seed_journal_entries"), columns)
    conn.execute(statement("merge_journal_entries"), columns)


def clear_scores(conn: psycopg.Connection[Any], partition: int) -> None:
    """Forgets what the journal did to entries of a partition."""
    conn.execute("DELETE FROM tallyboard.journal_entries WHERE partition = %s", (partition,))


def clear_scores_if_empty(conn: psycopg.Connection[Any], partition: int) -> None:
    """The same if the journal has no rows of it; the caller has its journal lock alone."""
    conn.execute(
        "DELETE FROM tallyboard.journal_entries WHERE partition = %(partition)s AND NOT EXISTS"
        " (SELECT FROM tallyboard.journal WHERE partition = %(partition)s)",
        {"partition": partition},
    )


def batches_of(
    conn: psycopg.Connection[Any], partition: int, after: int, limit: int
) -> list[Batch]:
    """Rows of a partition with numbers above `after`, in their order."""
    rows = conn.execute(
        "SELECT journal_id, partition, link, sequence, batch, updates FROM tallyboard.journal"
        " WHERE partition = %s AND journal_id > %s ORDER BY journal_id LIMIT %s",
        (partition, after, limit),
    )
    return [Batch(*row) for row in rows]


def batch_ids(conn: psycopg.Connection[Any], partition: int, seconds: float = 0.0) -> set[int]:
    """The numbers of the rows of a partition that are at least so many seconds old."""
    rows = conn.execute(
        "SELECT journal_id FROM tallyboard.journal WHERE partition = %s"
        " AND written_at <= clock_timestamp() - %s * interval '1 second'",
        (partition, seconds),
    )
    return {row[0] for row in rows}


def batches_by_id(conn: psycopg.Connection[Any], ids: Collection[int]) -> list[Batch]:
    """Rows by their numbers, in order."""
    rows = conn.execute(
        "SELECT journal_id, partition, link, sequence, batch, updates FROM tallyboard.journal"
        " WHERE journal_id = ANY(%s) ORDER BY journal_id",
        (list(ids),),
    )
    return [Batch(*row) for row in rows]


def texts_with(conn: psycopg.Connection[Any], ids: Collection[int], what: str) -> list[str]:
    """The texts of those of these rows that contain `what`."""
    rows = conn.execute(
        "SELECT batch FROM tallyboard.journal"
        " WHERE journal_id = ANY(%s) AND position(%s IN batch) > 0",
        (list(ids), what),
    )
    return [row[0] for row in rows]


def note_redis_life(
    conn: psycopg.Connection[Any], run_id: str, partitions: Collection[int]
) -> set[int]:
    """Says in which life of their node partitions were looked at.

    Returns:
        those that were in another one before.
    """
    rows = conn.execute(
        "UPDATE tallyboard.partitions SET redis_life = %(life)s WHERE partition IN ("
        " SELECT partition FROM tallyboard.partitions"
        " WHERE partition = ANY(%(partitions)s) AND redis_life <> %(life)s"
        " ORDER BY partition FOR NO KEY UPDATE"
        ") RETURNING partition",
        {"life": run_id, "partitions": list(partitions)},
    )
    return {row[0] for row in rows}


def left_behind(conn: psycopg.Connection[Any], seconds: float) -> set[int]:
    """Open partitions with rows that are older than `seconds`."""
    rows = conn.execute(
        "SELECT DISTINCT partition FROM tallyboard.journal JOIN tallyboard.partitions"
        " USING (partition) WHERE state = 'OPEN'"
        " AND written_at < clock_timestamp() - %s * interval '1 second'",
        (seconds,),
    )
    return {row[0] for row in rows}


def delete_batches(
    conn: psycopg.Connection[Any], partitions: Collection[int], ids: Collection[int]
) -> None:
    """Removes rows of these partitions, with all that was noted of them.

    The caller has locked the rows of the partitions, so that nobody has them journaled for now.
    """
    which = (list(ids),)
    for table in ("journal", "journal_increments", "journal_tokens"):
        conn.execute(
            psycopg.sql.SQL("DELETE FROM tallyboard.{} WHERE journal_id = ANY(%s)").format(
                psycopg.sql.Identifier(table)
            ),
            which,
        )
    # Of an open partition nobody adds to them, and they would hide what checkpoints write.
    conn.execute(
        "DELETE FROM tallyboard.journal_entries AS entry USING tallyboard.partitions AS held"
        " WHERE held.partition = entry.partition AND held.partition = ANY(%s)"
        " AND held.state = 'OPEN'",
        (list(partitions),),
    )


def reject(
    conn: psycopg.Connection[Any], journal_id: int, partition: int, reason: str, text: str
) -> None:
    """Keeps for people what was journaled and can't be applied."""
    conn.execute(
        "INSERT INTO tallyboard.journal_rejected (journal_id, partition, reason, batch)"
        " SELECT %(id)s, %(partition)s, %(reason)s, %(batch)s WHERE NOT EXISTS ("
        " SELECT FROM tallyboard.journal_rejected"
        " WHERE journal_id = %(id)s AND reason = %(reason)s AND batch = %(batch)s)",
        {"id": journal_id, "partition": partition, "reason": reason, "batch": text},
    )


def is_full(conn: psycopg.Connection[Any], most: int) -> bool:
    """Whether the journal has so many rows; they are counted only if it may be so."""
    if depth(conn) < most:
        return False
    row = conn.execute(
        "SELECT count(*) FROM (SELECT FROM tallyboard.journal LIMIT %s) AS counted", (most,)
    ).fetchone()
    return row is not None and int(row[0]) >= most


def depth(conn: psycopg.Connection[Any]) -> int:
    """About how many rows the journal has, at most."""
    row = conn.execute(
        "SELECT coalesce(max(journal_id) - min(journal_id) + 1, 0) FROM tallyboard.journal"
    ).fetchone()
    return int(row[0]) if row else 0


def count_batches(conn: psycopg.Connection[Any], most: int) -> int:
    """How many rows the journal has: exactly up to `most`, above that at most as many."""
    row = conn.execute(
        "SELECT count(*) FROM (SELECT FROM tallyboard.journal LIMIT %s) AS found", (most + 1,)
    ).fetchone()
    counted = int(row[0]) if row else 0
    return counted if counted <= most else max(counted, depth(conn))


def claim_request(
    conn: psycopg.Connection[Any], tenant: str, request_id: str, fingerprint: bytes
) -> bytes:
    """Notes what a request id stands for; gives what it stood for first."""
    # It need not survive a crash of Postgres: it only tells mistakes of callers.
    conn.execute("SET LOCAL synchronous_commit = off")
    conn.execute(
        "INSERT INTO tallyboard.journal_requests (tenant, request_id, fingerprint)"
        " VALUES (%s, %s, %s) ON CONFLICT DO NOTHING",
        (tenant, request_id, fingerprint),
    )
    row = conn.execute(
        "SELECT fingerprint FROM tallyboard.journal_requests WHERE tenant = %s AND request_id = %s",
        (tenant, request_id),
    ).fetchone()
    return bytes(row[0]) if row else fingerprint


def forget_requests(conn: psycopg.Connection[Any], seconds: float, limit: int) -> None:
    """Removes at most `limit` request ids that are older than `seconds`."""
    conn.execute(
        "DELETE FROM tallyboard.journal_requests WHERE ctid = ANY(ARRAY("
        " SELECT ctid FROM tallyboard.journal_requests"
        " WHERE created_at < clock_timestamp() - %s * interval '1 second' LIMIT %s"
        " FOR UPDATE SKIP LOCKED))",
        (seconds, limit),
    )
