"""How the partitions and the journal stand, for whoever shows it."""

from datetime import datetime
from typing import Any, Final, NamedTuple

import psycopg

# Up to here the batches of the journal are counted; above, their number is worked out.
COUNTED_BATCHES: Final = 10_000


class Standing(NamedTuple):
    """One partition: which life of its data Postgres follows, its state, its last checkpoint."""

    partition: int
    incarnation: str
    state: str
    checkpointed_at: datetime


def read_standings(conn: psycopg.Connection[Any]) -> list[Standing]:
    """All partitions, by number."""
    rows = conn.execute(
        "SELECT partition, incarnation, state, checkpointed_at"
        " FROM tallyboard.partitions ORDER BY partition"
    )
    return [Standing(*row) for row in rows]


def journal_depth(conn: psycopg.Connection[Any]) -> int:
    """How many batches are in the journal; above COUNTED_BATCHES at most as many."""
    row = conn.execute(
        "SELECT count(*) FROM (SELECT FROM tallyboard.journal LIMIT %s) AS found",
        (COUNTED_BATCHES + 1,),
    ).fetchone()
    counted = 0 if row is None else int(row[0])
    if counted <= COUNTED_BATCHES:
        return counted
    row = conn.execute(
        "SELECT max(journal_id) - min(journal_id) + 1 FROM tallyboard.journal"
    ).fetchone()
    return counted if row is None or row[0] is None else max(counted, int(row[0]))
