"""Pages of counters: in order, without gaps, and only the tenant's own."""

import base64
import json
from datetime import UTC, datetime

import pytest

from tallyboard_server.errors import InvalidArgument
from tallyboard_server.postgres.checkpoints import ShardValue, mark_checkpointed, write_values
from tallyboard_server.postgres.counters import (
    BY_COUNTER,
    BY_VALUE,
    CounterRow,
    list_counters,
    prefix_end,
)
from tallyboard_server.postgres.partitions import insert_partitions
from tallyboard_server.postgres.pool import BoundedPool

Pool = BoundedPool
NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


def fill(pool: Pool, values: dict[str, int], tenant: str = "acme") -> None:
    with pool.connection() as conn:
        shards = [
            ShardValue(0, tenant, name, False, value, False) for name, value in values.items()
        ]
        write_values(conn, shards, NOW)


def pages(pool: Pool, prefix: str, order: str, size: int) -> list[list[CounterRow]]:
    found, cursor = [], None
    while True:
        page = list_counters(pool, "acme", prefix, order, size, cursor)
        found.append(page.rows)
        cursor = page.next_cursor
        if cursor is None:
            return found


def names(pool: Pool, prefix: str, order: str = BY_COUNTER, size: int = 3) -> list[str]:
    return [row.counter for page in pages(pool, prefix, order, size) for row in page]


def test_a_row_has_name_value_and_time(pool: Pool) -> None:
    fill(pool, {"post:42": 7})
    assert pages(pool, "", BY_COUNTER, 3) == [[CounterRow("post:42", 7, NOW)]]


def test_pages_by_name_go_by_bytes(pool: Pool) -> None:
    given = ["b", "a", "Z", "a b", "ä", "a:1", "a/1", "\U0001f600", "\uffee", "a%", "a_"]
    fill(pool, dict.fromkeys(given, 1))
    assert names(pool, "") == sorted(given, key=str.encode)


def test_pages_by_value_put_ties_in_order_of_names(pool: Pool) -> None:
    given = {f"post:{i}": i % 3 - 1 for i in range(20)}
    fill(pool, given)
    expected = sorted(given, key=lambda name: (-given[name], name))
    assert names(pool, "", BY_VALUE) == expected


def test_pages_are_full(pool: Pool) -> None:
    fill(pool, {f"post:{i}": i for i in range(7)})
    assert [len(page) for page in pages(pool, "", BY_VALUE, 3)] == [3, 3, 1]


def test_the_last_full_page_has_no_next_one(pool: Pool) -> None:
    fill(pool, {f"post:{i}": i for i in range(6)})
    assert [len(page) for page in pages(pool, "", BY_COUNTER, 3)] == [3, 3]


@pytest.mark.parametrize("order", [BY_COUNTER, BY_VALUE])
@pytest.mark.parametrize("prefix", ["a", "a%", "a_", "a\\", "ä", "\ud7ff", "\U0010ffff", "zz"])
def test_a_prefix_is_taken_literally(pool: Pool, prefix: str, order: str) -> None:
    given = ["a", "a%b", "a_b", "a\\b", "ab", "äb", "\ud7ffb", "\ue000", "\U0010ffffb", "b"]
    fill(pool, dict.fromkeys(given, 1))
    expected = sorted((name for name in given if name.startswith(prefix)), key=str.encode)
    assert names(pool, prefix, order, 2) == expected


def test_another_tenant_sees_nothing(pool: Pool) -> None:
    fill(pool, {"post:42": 7}, tenant="acm")
    assert names(pool, "") == []


def test_a_page_follows_changes_behind_the_cursor(pool: Pool) -> None:
    fill(pool, {"a": 1, "b": 1, "c": 1})
    cursor = list_counters(pool, "acme", "", BY_COUNTER, 1).next_cursor
    fill(pool, {"0": 1})
    rows = list_counters(pool, "acme", "", BY_COUNTER, 9, cursor).rows
    assert [row.counter for row in rows] == ["b", "c"]


def test_as_of_is_that_of_the_oldest_partition(pool: Pool) -> None:
    with pool.connection() as conn:
        insert_partitions(conn, {0: "a", 1: "b"}, opened=True, checkpointed_at=NOW)
        mark_checkpointed(conn, {1: "b"}, NOW.replace(hour=13))
    assert list_counters(pool, "acme", "", BY_COUNTER, 1).as_of == NOW


def cursor_of(*parts: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(parts).encode()).decode()


@pytest.mark.parametrize(
    "cursor",
    [
        "x",
        "ä",
        cursor_of("counter", "", "a"),
        cursor_of("counter", "p", "a", "1"),
        cursor_of("value desc", "", "a", "1"),
        cursor_of("counter", "", "a", "NaN"),
        cursor_of("counter", "", "a", float("inf")),
        cursor_of("counter", "", "\0", "1"),
        cursor_of("counter", "", "\ud800", "1"),
        cursor_of("counter", "", 5, "1"),
        base64.b64encode(b"5").decode(),
        base64.b64encode(b"\xff").decode(),
    ],
)
def test_a_foreign_cursor_is_refused(pool: Pool, cursor: str) -> None:
    with pytest.raises(InvalidArgument) as raised:
        list_counters(pool, "acme", "", BY_COUNTER, 3, cursor)
    assert raised.value.reason == "PAGE_INVALID"


def test_another_order_is_refused(pool: Pool) -> None:
    with pytest.raises(InvalidArgument) as raised:
        list_counters(pool, "acme", "", "value", 3)
    assert raised.value.violations[0].field == "order_by"


@pytest.mark.parametrize(
    ("prefix", "end"),
    [
        ("", None),
        ("a", "b"),
        ("a\U0010ffff", "b"),
        ("\U0010ffff", None),
        ("\ud7ff", "\ue000"),
        ("post:", "post;"),
    ],
)
def test_where_a_prefix_ends(prefix: str, end: str | None) -> None:
    assert prefix_end(prefix) == end
