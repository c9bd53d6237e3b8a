"""Listing a tenant's counters as of the last checkpoint, page by page."""

import base64
import json
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from tallyboard_server.errors import FieldViolation, InvalidArgument
from tallyboard_server.postgres.checkpoints import oldest_checkpoint
from tallyboard_server.postgres.pool import BoundedPool
from tallyboard_server.postgres.statements import statement

BY_COUNTER: Final = "counter"
BY_VALUE: Final = "value desc"
EPOCH: Final = datetime.fromtimestamp(0, UTC)


class CounterRow(NamedTuple):
    """A counter's total, and when a checkpoint last found it changed."""

    counter: str
    value: int
    updated_at: datetime


class CounterPage(NamedTuple):
    """A page, the cursor of the next one (None: this was the last), and how old it may be.

    Everything that was acknowledged before `as_of` is in it.
    """

    rows: list[CounterRow]
    next_cursor: str | None
    as_of: datetime


def list_counters(
    pool: BoundedPool,
    tenant: str,
    prefix: str,
    order_by: str,
    page_size: int,
    cursor: str | None = None,
    deadline: float | None = None,
) -> CounterPage:
    """One page of the tenant's counters whose names start with `prefix` (empty: all of them).

    Args:
        pool: where to read.
        tenant: whose counters.
        prefix: compared byte by byte.
        order_by: BY_COUNTER (by the bytes of the name) or BY_VALUE (equal ones by name).
        page_size: most rows, at least 1.
        cursor: `next_cursor` of the page before, with the same prefix and order.
        deadline: when to give up, of time.monotonic().

    Raises:
        InvalidArgument: FIELD_INVALID for the order, PAGE_INVALID for the cursor.
        psycopg.Error: Postgres is away.
    """
    if order_by not in (BY_COUNTER, BY_VALUE):
        violation = FieldViolation("order_by", f"must be `{BY_COUNTER}` or `{BY_VALUE}`")
        raise InvalidArgument("FIELD_INVALID", [violation])
    after = _decode(cursor, prefix, order_by) if cursor else None
    arguments: dict[str, Any] = {
        "tenant": tenant,
        "prefix": prefix,
        "below": prefix_end(prefix),
        "after": after and after[0],
        "value": after and after[1],
        "limit": page_size + 1,
    }
    name = "list_by_counter"
    if order_by == BY_VALUE:
        name = "list_by_value_after" if after else "list_by_value"
    with pool.until(deadline) as conn:
        as_of = oldest_checkpoint(conn)
        rows = [
            CounterRow(counter, int(value), updated_at)
            for counter, value, updated_at in conn.execute(statement(name), arguments)
        ]
    more = len(rows) > page_size
    rows = rows[:page_size]
    return CounterPage(rows, _encode(rows[-1], prefix, order_by) if more else None, as_of or EPOCH)


def prefix_end(prefix: str) -> str | None:
    """The least text, by bytes of UTF-8, above all that start with `prefix`; None if none is."""
    for at in range(len(prefix) - 1, -1, -1):
        code = ord(prefix[at]) + 1
        if code == 0xD800:
            code = 0xE000  # surrogates have no UTF-8
        if code <= 0x10FFFF:
            return prefix[:at] + chr(code)
    return None


def _encode(last: CounterRow, prefix: str, order_by: str) -> str:
    parts = json.dumps([order_by, prefix, last.counter, str(last.value)], separators=(",", ":"))
    return base64.urlsafe_b64encode(parts.encode()).decode()


def _decode(cursor: str, prefix: str, order_by: str) -> tuple[str, int]:
    try:
        parts = json.loads(base64.b64decode(cursor.encode("ascii"), b"-_", validate=True))
        of_order, of_prefix, counter, value = parts
        if (of_order, of_prefix) == (order_by, prefix) and _is_text(counter) and _is_text(value):
            return counter, int(value)
    except (ValueError, TypeError, RecursionError):
        pass
    violation = FieldViolation("page_token", "isn't one of this list, with these arguments")
    raise InvalidArgument("PAGE_INVALID", [violation])


def _is_text(value: object) -> bool:
    """Whether Postgres takes it as a text: no NUL, no lone surrogate (which JSON can write)."""
    if not isinstance(value, str) or "\0" in value:
        return False
    value.encode()
    return True
