"""What Postgres knows without Redis: checkpoints with the journal on top.

Callers hold the transaction, whose reads have to see one moment (see `reading`).
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Final, NamedTuple

import psycopg

from tallyboard_server.postgres.journal import OPEN
from tallyboard_server.postgres.pool import BoundedConnection, BoundedPool
from tallyboard_server.postgres.statements import statement

# Answers have to come from indexes whatever the planner thinks of the tables, which may never have
# been analyzed; so it may neither sort a window, nor read a table, nor keep one to look through.
_METHODS: Final = ("seqscan", "bitmapscan", "hashjoin", "mergejoin", "material", "sort")
BY_INDEX: Final = ";".join(
    [
        *(f"SET LOCAL enable_{method} = off" for method in _METHODS),
        "SET LOCAL enable_hashagg = on",
        "SET LOCAL work_mem TO DEFAULT",
    ]
)
# With a journal, who reads a whole window needs more than an index: to look into every row, or to
# put all scores into order.
BY_TABLE: Final = ";".join(f"SET LOCAL enable_{method} = on" for method in _METHODS)
BY_SCORE: Final = "SET LOCAL enable_hashagg = off;SET LOCAL work_mem = '64MB'"
_BEGIN: Final = (
    "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY;"
    # Many read at the same time; more processes would only get into each other's way.
    f"SET LOCAL max_parallel_workers_per_gather = 0;{BY_INDEX};"
)


class PartitionAge(NamedTuple):
    """How old what Postgres has of a partition is.

    Attributes:
        checkpointed_at: seconds since the epoch; what Redis had then is here.
        is_open: writes go to Redis; what the journal has of entries is not here.
    """

    checkpointed_at: float
    is_open: bool


class DurableCount(NamedTuple):
    """A counter's total with the journal, and whether there is such a counter."""

    value: int
    exists: bool


@contextmanager
def reading(pool: BoundedPool, wait: float, patience: float) -> Iterator[BoundedConnection]:
    """A connection for the reads of one answer, which all see the same moment.

    Args:
        wait: seconds that may go by until there is a connection.
        patience: seconds that it may take together with all of the reads.

    Raises:
        TooLate: it took longer.
        psycopg.Error: Postgres is away, or takes too long.
    """
    with pool.until(time.monotonic() + patience, wait=wait, begin=_BEGIN) as conn:
        yield conn


def partition_ages(conn: psycopg.Connection[Any]) -> dict[int, PartitionAge]:
    """How old what Postgres has is, by partition."""
    rows: Iterable[tuple[int, datetime, str]] = conn.execute(
        "SELECT partition, checkpointed_at, state FROM tallyboard.partitions"
    )
    return {partition: PartitionAge(at.timestamp(), state == OPEN) for partition, at, state in rows}


def read_counts(
    conn: psycopg.Connection[Any], tenant: str, counters: Sequence[str]
) -> dict[str, DurableCount]:
    """The totals of counters, what is journaled included; every name gets one.

    They may be beyond 64 bits, when more is journaled than can be applied.
    """
    rows = conn.execute(statement("durable_counts"), {"tenant": tenant, "counters": list(counters)})
    return {
        counter: DurableCount(
            int(value or 0) + int(delta or 0), value is not None or delta is not None
        )
        for counter, value, delta in rows
    }


def window_sizes(conn: psycopg.Connection[Any], board_key: str) -> dict[str, int]:
    """How many entries each window has that is not archived, by its name."""
    return dict(conn.execute(statement("durable_sizes"), {"board_key": board_key}).fetchall())


def has_journal(conn: psycopg.Connection[Any], window_id: int) -> bool:
    """Whether the journal has entries of a window."""
    row = conn.execute(
        "SELECT EXISTS (SELECT FROM tallyboard.journal_entries WHERE window_id = %s)", (window_id,)
    ).fetchone()
    return row is not None and bool(row[0])
