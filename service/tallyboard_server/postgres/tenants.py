"""The tenants that have data, and how much, as of the last checkpoints."""

import base64
import time
from typing import Final, NamedTuple

from tallyboard_server.errors import FieldViolation, InvalidArgument
from tallyboard_server.postgres.leaderboards import count_boards
from tallyboard_server.postgres.pool import BoundedPool
from tallyboard_server.postgres.statements import statement

# Seconds after which a page ends early: the counters of a large tenant take a while to count.
_PATIENCE: Final = 2.0


class TenantRow(NamedTuple):
    """A tenant, how many counters it has and how many leaderboards."""

    tenant: str
    counters: int
    leaderboards: int


class TenantPage(NamedTuple):
    """A page, and the cursor of the next one (None: this was the last)."""

    rows: list[TenantRow]
    next_cursor: str | None


def list_tenants(
    pool: BoundedPool, page_size: int, cursor: str | None = None, deadline: float | None = None
) -> TenantPage:
    """One page of the tenants by the bytes of their names; it may hold fewer than asked for.

    Args:
        pool: where to read.
        page_size: most rows, at least 1.
        cursor: `next_cursor` of the page before.
        deadline: when to give up, of time.monotonic().

    Raises:
        InvalidArgument: PAGE_INVALID for the cursor.
        psycopg.Error: Postgres is away.
    """
    after = _decode(cursor) if cursor else ""
    until = time.monotonic() + _PATIENCE
    rows: list[TenantRow] = []
    with pool.until(deadline) as conn:
        found = conn.execute(
            statement("next_tenants"), {"after": after, "limit": page_size + 1}
        ).fetchall()
        names = [row[0] for row in found]
        boards = count_boards(conn, names[:page_size])
        for name in names[:page_size]:
            counted = conn.execute(
                "SELECT count(*) FROM tallyboard.counters WHERE tenant = %s AND value IS NOT NULL",
                (name,),
            ).fetchone()
            rows.append(TenantRow(name, 0 if counted is None else counted[0], boards.get(name, 0)))
            if time.monotonic() > until:
                break
    return TenantPage(rows, _encode(rows[-1].tenant) if len(rows) < len(names) else None)


def _encode(tenant: str) -> str:
    return base64.urlsafe_b64encode(b"t:" + tenant.encode()).decode()


def _decode(cursor: str) -> str:
    try:
        kind, _, tenant = base64.b64decode(cursor.encode("ascii"), b"-_", validate=True).partition(
            b":"
        )
        if kind == b"t" and b"\0" not in tenant:
            return tenant.decode()
    except ValueError:
        pass
    violation = FieldViolation("page_token", "isn't one of this list")
    raise InvalidArgument("PAGE_INVALID", [violation])
