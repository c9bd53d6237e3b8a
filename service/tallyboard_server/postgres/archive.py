"""Reads of archived windows, with the answers that they gave while they were live.

Windows are ranked when they are archived (see `entries.archive_window`), so a page is a range of
an index, and a position is found by halving: about log2 of the number of entries look-ups.
Moments are microseconds since 1970-01-01T00:00:00Z, indexes count from 0, ranks from 1.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, LiteralString, NamedTuple

import psycopg

from tallyboard_server.leaderboards.model import Entry, RankMethod, WindowState
from tallyboard_server.postgres.entries import WindowRow, find_window
from tallyboard_server.postgres.pool import BoundedConnection, BoundedPool
from tallyboard_server.postgres.statements import statement

_RANKS: Final[Mapping[RankMethod, LiteralString]] = {
    RankMethod.ORDINAL: "rank",
    RankMethod.COMPETITION: "competition_rank",
    RankMethod.DENSE: "dense_rank",
}

# Whether an entry ranks before a position, by whether the greatest score ranks first.
_BETTER: Final[Mapping[bool, LiteralString]] = {
    True: "entry.score > %(score)s::float8",
    False: "entry.score < %(score)s::float8",
}
_BETTER_OR_EQUAL: Final[Mapping[bool, LiteralString]] = {
    True: "entry.score >= %(score)s::float8",
    False: "entry.score <= %(score)s::float8",
}
_BY_MEMBER: Final[Mapping[bool, LiteralString]] = {
    True: "entry.member > %(member)s",
    False: "entry.member < %(member)s",
}


class RankedEntry(NamedTuple):
    """An entry ranked by the method of the read, and its own place, from 1, in the ranking."""

    ordinal: int
    entry: Entry


@contextmanager
def standing(pool: BoundedPool, deadline: float | None = None) -> Iterator[BoundedConnection]:
    """A connection whose reads all see the same moment; for all that makes up one answer.

    Without it, a window could be ranked anew between two of them.

    Args:
        deadline: when all of them are to be over, of time.monotonic().
    """
    begin = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY;"
    with pool.until(deadline, begin=begin) as conn:
        yield conn


def archived_window(conn: psycopg.Connection[Any], board_key: str, window: str) -> WindowRow | None:
    """The window with its number of entries and mean score; None unless it is archived."""
    row = find_window(conn, board_key, window)
    return row if row is not None and row.state is WindowState.ARCHIVED else None


def entries_of(
    conn: psycopg.Connection[Any], window_id: int, members: Sequence[str], method: RankMethod
) -> list[RankedEntry]:
    """The entries of those members that have one, in order of their ranks."""
    return _ranked(
        conn, method, "window_id = %s AND member = ANY(%s) ORDER BY rank", window_id, list(members)
    )


def page(
    conn: psycopg.Connection[Any],
    window_id: int,
    start: int,
    count: int,
    method: RankMethod,
    *,
    reverse: bool = False,
) -> list[RankedEntry]:
    """The entries at the indexes from `start` to before `start + count`.

    With `reverse` they come last first; indexes count from the top either way. What is beyond
    either end is left out.
    """
    return _ranked(
        conn,
        method,
        "window_id = %s AND rank > %s AND rank <= %s ORDER BY "
        + ("rank DESC" if reverse else "rank"),
        window_id,
        start,
        start + count,
    )


def scores_at(
    conn: psycopg.Connection[Any], window_id: int, indexes: Sequence[int]
) -> dict[int, float]:
    """The scores at these indexes, as for percentiles, best (0) and worst (entry_count - 1)."""
    rows = conn.execute(
        "SELECT rank - 1, score FROM tallyboard.leaderboard_entries"
        " WHERE window_id = %s AND rank = ANY(%s)",
        (window_id, sorted({index + 1 for index in indexes})),
    )
    return dict(rows.fetchall())


def ranked_before(
    conn: psycopg.Connection[Any], window_id: int, score: float, updated_at: int, member: str
) -> int:
    """How many entries rank strictly before this position, whether or not anyone is there.

    That is the index of the entry at the position, or of the first one behind it. `updated_at`
    counts only where the board's tie break is EARLIEST.
    """
    order = _order(conn, window_id)
    if order is None:
        return 0
    descending, earliest = order
    better, tied = _BETTER[descending], _BY_MEMBER[descending]
    if earliest:
        moment = "tallyboard.moment(%(updated_at)s)"
        tied = f"entry.updated_at < {moment} OR entry.updated_at = {moment} AND {tied}"
    return _search(
        conn,
        f"{better} OR entry.score = %(score)s::float8 AND ({tied})",
        {"window_id": window_id, "score": score, "updated_at": updated_at, "member": member},
    )


def count_better(
    conn: psycopg.Connection[Any], window_id: int, score: float, *, or_equal: bool = False
) -> int:
    """How many entries have a better score in the board's order; with `or_equal`, that or this.

    So the entries with scores from a to b, a the better one, are those at the indexes from
    `count_better(a)` to before `count_better(b, or_equal=True)`.
    """
    order = _order(conn, window_id)
    if order is None:
        return 0
    before = (_BETTER_OR_EQUAL if or_equal else _BETTER)[order[0]]
    return _search(conn, before, {"window_id": window_id, "score": score})


def _order(conn: psycopg.Connection[Any], window_id: int) -> tuple[bool, bool] | None:
    """Whether the greatest score ranks first, and whether who was earlier does."""
    return conn.execute(
        "SELECT descending, earliest FROM tallyboard.leaderboard_windows"
        " JOIN tallyboard.leaderboards USING (board_key) WHERE window_id = %s",
        (window_id,),
    ).fetchone()


def _search(
    conn: psycopg.Connection[Any], before: LiteralString, arguments: Mapping[str, Any]
) -> int:
    row = conn.execute(statement("ranked_before").format(before=before), arguments).fetchone()
    return 0 if row is None else int(row[0])


def _ranked(
    conn: psycopg.Connection[Any], method: RankMethod, where: LiteralString, *arguments: Any
) -> list[RankedEntry]:
    rows = conn.execute(
        f"SELECT rank, {_RANKS[method]}, member, score, metadata, tallyboard.micros(updated_at)"
        # A row without a rank came after the window was archived.
        f" FROM tallyboard.leaderboard_entries WHERE rank IS NOT NULL AND {where}",
        arguments,
    )
    return [RankedEntry(ordinal, Entry(*rest)) for ordinal, *rest in rows]
