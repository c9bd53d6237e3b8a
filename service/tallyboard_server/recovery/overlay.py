"""Entries as reads see them while Redis is away: checkpointed, and changed by the journal."""

from collections.abc import Collection, Iterable
from typing import Any

from tallyboard_server.leaderboards.checkpoints import window_of
from tallyboard_server.leaderboards.definitions import from_json
from tallyboard_server.postgres import journal as rows
from tallyboard_server.postgres.entries import lock_windows
from tallyboard_server.postgres.journal import ScoreDelta
from tallyboard_server.postgres.leaderboards import find_by_keys
from tallyboard_server.recovery.batches import Scores, scores_in
from tallyboard_server.redis.scores import State, code_of, merge_states, moment_of

_PAGE = 500


def begin(conn: Any, partitions: Collection[int]) -> set[int]:
    """Has partitions journaled for; gives those that were open, whose overlays are made anew."""
    began = rows.begin_journaling(conn, partitions) if partitions else set()
    for partition in sorted(began):
        make_anew(conn, partition)
    rows.stamp(conn, began)
    return began


def add(conn: Any, scores: Iterable[tuple[int, Scores]]) -> None:
    """Adds scores, each with its partition; those of boards that are gone are left out."""
    found = list(scores)
    if not found:
        return
    keys = sorted({item.board_key for _, item in found})
    boards = {
        row.board_key: from_json(row.definition)
        for row in find_by_keys(conn, keys)
        if row.deleted_at is None
    }
    windows = {
        (item.board_key, name): window_of(conn, boards[item.board_key], name)
        for _, item in found
        if item.board_key in boards
        for name in item.windows
    }
    now = conn.execute("SELECT clock_timestamp()").fetchone()[0]
    held = lock_windows(conn, [(key, window) for (key, _), window in windows.items()], now)
    merged: dict[tuple[int, str], tuple[int, str, bool, State]] = {}
    for partition, item in found:
        board = boards.get(item.board_key)
        if board is None:
            continue
        policy, descending = board.update_policy.value[0], board.is_descending
        for i, member in enumerate(item.members):
            data = item.metadata[i] if item.metadata else b""
            state = State(item.scores[i], code_of(item.moments[i], descending), data)
            for name in item.windows:
                window_id = held.get((item.board_key, name))
                if window_id is None:
                    continue
                before = merged.get((window_id, member))
                stays = merge_states(policy, descending, before[3], state) if before else state
                merged[window_id, member] = (partition, policy, descending, stays)
    rows.add_scores(
        conn,
        [
            ScoreDelta(
                window_id, member, partition, state.score, moment_of(state.code, descending),
                state.metadata, policy, descending,
            )
            for (window_id, member), (partition, policy, descending, state) in merged.items()
        ],
    )  # fmt: skip


def make_anew(conn: Any, partition: int) -> None:
    """Makes the overlay of a partition from all rows that its journal has."""
    rows.clear_scores(conn, partition)
    after = 0
    while page := rows.batches_of(conn, partition, after, _PAGE):
        add(conn, ((partition, scores) for batch in page for scores in scores_in(batch.text)))
        rows.show(conn, [batch.journal_id for batch in page])
        after = page[-1].journal_id
