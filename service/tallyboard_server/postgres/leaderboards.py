"""Definitions of leaderboards: Postgres has the say, Redis and the workers hold copies.

Callers hold the transaction. Moments are microseconds since 1970-01-01T00:00:00Z.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, LiteralString, NamedTuple

import psycopg
from psycopg.types.json import Jsonb

from tallyboard_server.errors import (
    Aborted,
    AlreadyExists,
    FailedPrecondition,
    FieldViolation,
    InvalidArgument,
    NotFound,
)
from tallyboard_server.leaderboards.model import SortOrder, TieBreak, Window, WindowKind
from tallyboard_server.postgres.counters import prefix_end
from tallyboard_server.postgres.statements import statement

# Seconds; more is the same as this, for Postgres' calendar has an end.
LONGEST: Final = 10**11
# Of definitions as text, in which each is larger than in a message; those may have 4 MiB.
PAGE_BYTES: Final = 3_500_000
# Definitions that are read at a time: one may have 100 KB.
_STEP: Final = 50

_COLUMNS: Final = (
    "board_key, tenant, leaderboard_id, definition, revision, descending, earliest, late_grace,"
    " retention, tallyboard.micros(created_at), tallyboard.micros(updated_at), synced,"
    " tallyboard.micros(deleted_at)"
)


@dataclass(frozen=True, slots=True)
class BoardRow:
    """A definition as Postgres keeps it.

    Attributes:
        definition: the whole of it, in the domain's own form; the other attributes repeat what
            Postgres itself works with.
        revision: counts the changes, the deletion too.
        late_grace: seconds after a window's end until it closes.
        retention: seconds that windows are kept after their end, by kind; others for good.
        synced: whether Redis holds this revision.
        deleted_at: None while there is such a board.
    """

    board_key: str
    tenant: str
    leaderboard_id: str
    definition: str
    revision: int
    sort_order: SortOrder
    tie_break: TieBreak
    late_grace: int
    retention: Mapping[WindowKind, int]
    created_at: int
    updated_at: int
    synced: bool = False
    deleted_at: int | None = None


class BoardPage(NamedTuple):
    """A page, and the cursor of the next one (None: this was the last)."""

    rows: list[BoardRow]
    next_cursor: str | None


def claim_request(
    conn: psycopg.Connection[Any],
    tenant: str,
    request_id: str,
    fingerprint: bytes,
    board_key: str,
) -> str | None:
    """Claims a request id for one change, in the transaction that makes the change.

    Waits for another transaction that is about to claim the same.

    Args:
        conn: a connection inside the transaction.
        tenant: whose request.
        request_id: at most 256 bytes.
        fingerprint: of the request's contents.
        board_key: of the board that the change is about.

    Returns:
        None the first time; of a repeat, which should change nothing, the board_key that the
        first one gave.

    Raises:
        InvalidArgument: REQUEST_ID_REUSED, it was claimed for other contents.
    """
    while True:
        claimed = conn.execute(
            "INSERT INTO tallyboard.leaderboard_requests"
            " (tenant, request_id, fingerprint, board_key) VALUES (%s, %s, %s, %s)"
            " ON CONFLICT DO NOTHING",
            (tenant, request_id, fingerprint, board_key),
        )
        if claimed.rowcount:
            return None
        found = conn.execute(
            "SELECT fingerprint, board_key FROM tallyboard.leaderboard_requests"
            " WHERE tenant = %s AND request_id = %s",
            (tenant, request_id),
        ).fetchone()
        # None: it was forgotten since.
        if found is not None:
            break
    if found[0] != fingerprint:
        violation = FieldViolation("request_id", "was used before with other contents")
        raise InvalidArgument("REQUEST_ID_REUSED", [violation])
    return str(found[1])


def forget_requests(conn: psycopg.Connection[Any], age: float, limit: int) -> int:
    """Forgets at most `limit` request ids that are older than `age` seconds; gives how many."""
    return conn.execute(
        "DELETE FROM tallyboard.leaderboard_requests WHERE (tenant, request_id) IN ("
        " SELECT tenant, request_id FROM tallyboard.leaderboard_requests"
        " WHERE created_at < clock_timestamp() - %s * interval '1 second'"
        " ORDER BY created_at LIMIT %s FOR UPDATE SKIP LOCKED)",
        (age, limit),
    ).rowcount


def insert(conn: psycopg.Connection[Any], board: BoardRow) -> None:
    """Adds a definition that Redis does not know yet.

    Raises:
        AlreadyExists: LEADERBOARD_ALREADY_EXISTS, the tenant has one of that id.
    """
    inserted = conn.execute(
        "INSERT INTO tallyboard.leaderboards (board_key, tenant, leaderboard_id, definition,"
        " revision, descending, earliest, late_grace, retention, created_at, updated_at)"
        " VALUES (%(board_key)s, %(tenant)s, %(leaderboard_id)s, %(definition)s, %(revision)s,"
        " %(descending)s, %(earliest)s, %(late_grace)s, %(retention)s,"
        " tallyboard.moment(%(created_at)s), tallyboard.moment(%(updated_at)s))"
        " ON CONFLICT (tenant, leaderboard_id) WHERE deleted_at IS NULL DO NOTHING",
        _values(board),
    )
    if not inserted.rowcount:
        raise AlreadyExists(f"there is a leaderboard {board.leaderboard_id!r}")


def update(
    conn: psycopg.Connection[Any],
    board: BoardRow,
    expected_revision: int,
    seasons: Sequence[Window] = (),
) -> None:
    """Replaces a definition, if nobody else did since it was read.

    Windows that there are get the new grace and retention; their states stay. So a season that has
    closed can't get a later end that would open it again.

    Args:
        conn: a connection inside a transaction; checkpoints of the board wait for its end.
        board: the new definition; its `revision` must be greater.
        expected_revision: that of the definition it was made from.
        seasons: the definition's seasons: those that have entries get these limits.

    Raises:
        NotFound: the board was deleted.
        Aborted: ETAG_MISMATCH, its revision is another.
        FailedPrecondition: DEFINITION_LOCKED, see above.
    """
    _lock(conn, board.board_key, expected_revision)
    limits = {
        "board_key": board.board_key,
        "windows": [season.window for season in seasons],
        "starts_at": [season.starts_at for season in seasons],
        "ends_at": [season.ends_at for season in seasons],
    }
    _check_closed_seasons(conn, board, limits)
    conn.execute(
        "UPDATE tallyboard.leaderboards SET definition = %(definition)s, revision = %(revision)s,"
        " descending = %(descending)s, earliest = %(earliest)s, late_grace = %(late_grace)s,"
        " retention = %(retention)s, updated_at = tallyboard.moment(%(updated_at)s),"
        " synced = false WHERE board_key = %(board_key)s",
        _values(board),
    )
    conn.execute(statement("reschedule_windows"), limits)


def mark_deleted(
    conn: psycopg.Connection[Any], board_key: str, expected_revision: int, deleted_at: int
) -> BoardRow:
    """Frees the board's id; what it held is left to `purge`. Gives the row as it is now.

    The deletion is a revision of its own, and Redis has to hear of it.

    Raises:
        NotFound: the board was deleted before.
        Aborted: ETAG_MISMATCH, its revision is another.
    """
    _lock(conn, board_key, expected_revision)
    conn.execute(
        "UPDATE tallyboard.leaderboards SET revision = revision + 1, synced = false,"
        " deleted_at = tallyboard.moment(%s) WHERE board_key = %s",
        (deleted_at, board_key),
    )
    return find_by_keys(conn, [board_key])[0]


def find(conn: psycopg.Connection[Any], tenant: str, leaderboard_id: str) -> BoardRow | None:
    """The definition; None if there is no such board, or it was deleted."""
    rows = _select(
        conn,
        "WHERE tenant = %s AND leaderboard_id = %s AND deleted_at IS NULL",
        (tenant, leaderboard_id),
    )
    return rows[0] if rows else None


def find_by_keys(conn: psycopg.Connection[Any], board_keys: Sequence[str]) -> list[BoardRow]:
    """Those that there are, by key; deleted ones until they are purged."""
    return _select(conn, "WHERE board_key = ANY(%s) ORDER BY board_key", (list(board_keys),))


def list_boards(
    conn: psycopg.Connection[Any],
    tenant: str,
    prefix: str,
    page_size: int,
    cursor: str | None = None,
) -> BoardPage:
    """One page of the tenant's boards whose ids start with `prefix`, by the bytes of the id.

    It ends early when its definitions have more than PAGE_BYTES, which a message has to hold.

    Args:
        conn: where to read.
        tenant: whose boards.
        prefix: compared byte by byte; empty for all.
        page_size: most rows, at least 1.
        cursor: `next_cursor` of the page before, with the same prefix.

    Raises:
        InvalidArgument: PAGE_INVALID, the cursor is not one of this list.
    """
    after = _decode(cursor, prefix) if cursor else None
    rows: list[BoardRow] = []
    size = 0
    while True:
        step = min(_STEP, page_size + 1 - len(rows))
        found = _listed(conn, tenant, prefix, after, step)
        for row in found:
            size += len(row.definition.encode())
            if rows and (len(rows) == page_size or size > PAGE_BYTES):
                return BoardPage(rows, _encode(prefix, rows[-1].leaderboard_id))
            rows.append(row)
        if len(found) < step:
            return BoardPage(rows, None)
        after = rows[-1].leaderboard_id


def _listed(
    conn: psycopg.Connection[Any], tenant: str, prefix: str, after: str | None, limit: int
) -> list[BoardRow]:
    return _select(
        conn,
        "WHERE tenant = %(tenant)s AND deleted_at IS NULL AND leaderboard_id >= %(prefix)s"
        " AND (%(below)s::text IS NULL OR leaderboard_id < %(below)s)"
        " AND (%(after)s::text IS NULL OR leaderboard_id > %(after)s)"
        " ORDER BY leaderboard_id LIMIT %(limit)s",
        {
            "tenant": tenant,
            "prefix": prefix,
            "below": prefix_end(prefix),
            "after": after,
            "limit": limit,
        },
    )


def live_boards(conn: psycopg.Connection[Any], after: str, limit: int) -> list[BoardRow]:
    """All tenants' definitions in pages by board_key: at most `limit` behind `after` (or "")."""
    return _select(
        conn,
        "WHERE board_key > %s AND deleted_at IS NULL ORDER BY board_key LIMIT %s",
        (after, limit),
    )


def unsynced(conn: psycopg.Connection[Any], after: str, limit: int) -> list[BoardRow]:
    """At most `limit` rows that Redis has to be told of, deleted ones too, behind `after`."""
    return _select(
        conn, "WHERE board_key > %s AND NOT synced ORDER BY board_key LIMIT %s", (after, limit)
    )


def lock_board(conn: psycopg.Connection[Any], board_key: str, *, wait: bool) -> BoardRow | None:
    """The row, kept from others who change it, or tell Redis of it, until the transaction ends.

    None if there is none, or (without `wait`) somebody else has it.
    """
    suffix: LiteralString = "" if wait else " SKIP LOCKED"
    rows = _select(conn, "WHERE board_key = %s FOR UPDATE" + suffix, (board_key,))
    return rows[0] if rows else None


def mark_synced(conn: psycopg.Connection[Any], board_key: str, revision: int) -> bool:
    """Says that Redis holds this revision; does nothing and gives False if it has changed."""
    marked = conn.execute(
        "UPDATE tallyboard.leaderboards SET synced = true"
        " WHERE board_key = %s AND revision = %s AND NOT synced",
        (board_key, revision),
    )
    return marked.rowcount > 0


def unsync(conn: psycopg.Connection[Any], board_key: str) -> None:
    """Says that Redis may hold something else of this board, so that it is told again."""
    conn.execute(
        "UPDATE tallyboard.leaderboards SET synced = false WHERE board_key = %s", (board_key,)
    )


def mark_unsynced(conn: psycopg.Connection[Any]) -> int:
    """Says that Redis holds none of the definitions, as when it comes back empty."""
    return conn.execute("UPDATE tallyboard.leaderboards SET synced = false WHERE synced").rowcount


def has_entries(conn: psycopg.Connection[Any], board_key: str) -> bool:
    """Whether a checkpoint has found entries of the board that are still there."""
    row = conn.execute(
        "SELECT EXISTS (SELECT FROM tallyboard.leaderboard_windows AS held"
        " CROSS JOIN LATERAL (SELECT FROM tallyboard.leaderboard_entries AS entry"
        " WHERE entry.window_id = held.window_id LIMIT 1) AS first"
        " WHERE held.board_key = %s)",
        (board_key,),
    ).fetchone()
    return row is not None and bool(row[0])


def count_boards(conn: psycopg.Connection[Any], tenants: Sequence[str]) -> dict[str, int]:
    """How many boards each of these tenants has; those without any are left out."""
    rows = conn.execute(
        "SELECT tenant, count(*) FROM tallyboard.leaderboards"
        " WHERE tenant = ANY(%s) AND deleted_at IS NULL GROUP BY tenant",
        (list(tenants),),
    )
    return dict(rows.fetchall())


def purgeable(conn: psycopg.Connection[Any], limit: int) -> list[BoardRow]:
    """At most `limit` deleted boards that Redis knows to be deleted, the oldest first."""
    return _select(
        conn,
        "WHERE deleted_at IS NOT NULL AND synced ORDER BY deleted_at, board_key LIMIT %s",
        (limit,),
    )


def purge(conn: psycopg.Connection[Any], board_key: str, limit: int) -> bool:
    """Removes at most `limit` rows of a deleted board; True when nothing of it is left.

    Call it again, each time in a transaction of its own, until it gives True. A board that is
    not deleted is left alone, and so is one that there is not: True.
    """
    row = conn.execute(
        "SELECT deleted_at IS NOT NULL FROM tallyboard.leaderboards WHERE board_key = %s"
        # Checkpoints that began before the deletion are waited for.
        " FOR UPDATE",
        (board_key,),
    ).fetchone()
    if row is None or not row[0]:
        return True
    left = limit
    for name in ("purge_windows", "purge_snapshots"):
        while left > 0:
            found = conn.execute(
                statement(name), {"board_key": board_key, "limit": left}
            ).fetchone()
            if found is None:
                break
            left -= 1 + found[0]
    if left <= 0:
        return False
    conn.execute("DELETE FROM tallyboard.leaderboards WHERE board_key = %s", (board_key,))
    return True


def _lock(conn: psycopg.Connection[Any], board_key: str, expected_revision: int) -> None:
    row = conn.execute(
        # Not a weaker lock: checkpoints copy grace and retention into new windows.
        "SELECT revision FROM tallyboard.leaderboards"
        " WHERE board_key = %s AND deleted_at IS NULL FOR UPDATE",
        (board_key,),
    ).fetchone()
    if row is None:
        raise NotFound("the leaderboard was deleted")
    if row[0] != expected_revision:
        raise Aborted("the leaderboard has changed since it was read")


def _check_closed_seasons(
    conn: psycopg.Connection[Any], board: BoardRow, limits: Mapping[str, Any]
) -> None:
    """Refuses limits by which a season that has closed would take scores again."""
    reopened = conn.execute(
        'SELECT held."window" FROM tallyboard.leaderboard_windows AS held'
        ' JOIN unnest(%(windows)s::text[], %(ends_at)s::bigint[]) AS season ("window", ends_at)'
        ' ON held."window" = season."window" COLLATE "C"'
        " WHERE held.board_key = %(board_key)s AND held.kind = 'SEASON' AND held.state <> 'OPEN'"
        " AND tallyboard.moment(season.ends_at) > held.ends_at"
        " AND season.ends_at + %(grace)s > %(now)s"
        # Seasons that are about to be closed are waited for.
        ' ORDER BY held."window" FOR NO KEY UPDATE OF held',
        {**limits, "grace": min(board.late_grace, LONGEST) * 10**6, "now": board.updated_at},
    ).fetchall()
    if reopened:
        names = ", ".join(row[0] for row in reopened)
        raise FailedPrecondition(
            f"seasons that have closed can't be opened again: {names}", reason="DEFINITION_LOCKED"
        )


def _values(board: BoardRow) -> dict[str, Any]:
    return {
        "board_key": board.board_key,
        "tenant": board.tenant,
        "leaderboard_id": board.leaderboard_id,
        "definition": board.definition,
        "revision": board.revision,
        "descending": board.sort_order is SortOrder.DESCENDING,
        "earliest": board.tie_break is TieBreak.EARLIEST,
        "late_grace": min(board.late_grace, LONGEST),
        "retention": Jsonb(
            {kind.value: min(seconds, LONGEST) for kind, seconds in board.retention.items()}
        ),
        "created_at": board.created_at,
        "updated_at": board.updated_at,
    }


def _select(
    conn: psycopg.Connection[Any],
    where: LiteralString,
    arguments: Sequence[Any] | Mapping[str, Any],
) -> list[BoardRow]:
    rows = conn.execute(f"SELECT {_COLUMNS} FROM tallyboard.leaderboards {where}", arguments)
    return [_row(*row) for row in rows]


def _row(
    board_key: str,
    tenant: str,
    leaderboard_id: str,
    definition: str,
    revision: int,
    descending: bool,
    earliest: bool,
    late_grace: int,
    retention: dict[str, int],
    *rest: Any,
) -> BoardRow:
    return BoardRow(
        board_key,
        tenant,
        leaderboard_id,
        definition,
        revision,
        SortOrder.DESCENDING if descending else SortOrder.ASCENDING,
        TieBreak.EARLIEST if earliest else TieBreak.MEMBER_ID,
        late_grace,
        {WindowKind(kind): seconds for kind, seconds in retention.items()},
        *rest,
    )


def _encode(prefix: str, leaderboard_id: str) -> str:
    parts = json.dumps([prefix, leaderboard_id], separators=(",", ":"))
    return base64.urlsafe_b64encode(parts.encode()).decode()


def _decode(cursor: str, prefix: str) -> str:
    try:
        parts = json.loads(base64.b64decode(cursor.encode("ascii"), b"-_", validate=True))
        of_prefix, leaderboard_id = parts
        if of_prefix == prefix and isinstance(leaderboard_id, str):
            # What Postgres takes as a text: no NUL, no lone surrogate (which JSON can write).
            leaderboard_id.encode()
            if "\0" not in leaderboard_id:
                return leaderboard_id
    except (ValueError, TypeError, RecursionError):
        pass
    violation = FieldViolation("page_token", "isn't one of this list, with these arguments")
    raise InvalidArgument("PAGE_INVALID", [violation])
