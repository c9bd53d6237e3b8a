"""Prints leaderboards and their rankings for a person or a script.

Lists are printed one item a line, its fields separated by tabs, `-` for what is not there. Names
hold no control characters, so they break neither a line nor a field.
"""

from collections.abc import Iterable
from typing import Any

import click
from google.protobuf.timestamp_pb2 import Timestamp

from tallyboard.v1 import leaderboards_pb2 as pb
from tallyboard.v1 import operations_pb2
from tallyboard_server.contract_words import word_of


def print_definition(board: pb.Leaderboard) -> None:
    """Print what a definition says in four lines."""
    ties = word_of(pb.TieBreak, board.tie_break)
    click.echo(f"leaderboard: {board.leaderboard_id}")
    click.echo(f"order: {_order(board)}, policy: {_policy(board)}, ties: {ties}")
    click.echo(f"windows: {_windows(board)}, time zone: {board.time_zone}")
    click.echo(f"max entries: {board.max_entries or 'no limit'}, segments: {board.segments}")


def print_definitions(boards: Iterable[pb.Leaderboard]) -> None:
    """Print id, order, policy and windows."""
    for board in boards:
        _print_line(board.leaderboard_id, _order(board), _policy(board), _windows(board))


def print_results(results: Iterable[pb.WindowResult]) -> None:
    """Print window, score, previous score and rank."""
    for result in results:
        scores = (_score_in(result, "score"), _score_in(result, "previous_score"))
        _print_line(result.window, *scores, _rank_in(result))


def print_entries(entries: Iterable[pb.Entry]) -> None:
    """Print rank, score and member."""
    for entry in entries:
        _print_line(entry.rank, _score(entry.score), entry.member)


def print_place(found: pb.GetEntryResponse) -> None:
    """Print the rank of a member, its score and its percentile."""
    entry = found.entry
    place = f"{entry.rank:,} of {found.total_size:,}"
    click.echo(f"{place}, score {_score(entry.score)}, percentile {entry.percentile:.10g}")


def print_stats(stats: pb.GetLeaderboardStatsResponse) -> None:
    """Print the size of a window and, if it has entries, how their scores are spread."""
    click.echo(f"window: {stats.window}, entries: {stats.count:,}")
    if stats.count:
        best, worst, mean = map(_score, (stats.best, stats.worst, stats.mean))
        click.echo(f"best: {best}, worst: {worst}, mean: {mean}")
        spread = (f"{at.percentile:g}: {_score(at.score)}" for at in stats.percentile_scores)
        click.echo(f"score at percentile {', '.join(spread)}")


def print_windows(windows: Iterable[pb.Window]) -> None:
    """Print window, state, entries, start and end."""
    for window in windows:
        state = word_of(pb.WindowState, window.state)
        limits = (_moment_in(window, "starts_at"), _moment_in(window, "ends_at"))
        _print_line(window.window, state, window.entry_count, *limits)


def print_snapshots(snapshots: Iterable[operations_pb2.Snapshot], with_place: bool) -> None:
    """Print day, window and entries, and if asked the rank and the score of the member."""
    for snapshot in snapshots:
        place = (_rank_in(snapshot), _score_in(snapshot, "score")) if with_place else ()
        _print_line(snapshot.day, snapshot.window, snapshot.entry_count, *place)


def _print_line(*fields: object) -> None:
    click.echo("\t".join(map(str, fields)))


def _score(score: float) -> str:
    return str(int(score)) if score.is_integer() else repr(score)


def _score_in(message: Any, field: str) -> str:
    return _score(getattr(message, field)) if message.HasField(field) else "-"


def _rank_in(message: Any) -> str:
    return str(message.rank) if message.HasField("rank") else "-"


def _moment_in(message: Any, field: str) -> str:
    moment: Timestamp = getattr(message, field)
    return moment.ToJsonString() if message.HasField(field) else "-"


def _order(board: pb.Leaderboard) -> str:
    return word_of(pb.SortOrder, board.sort_order)


def _policy(board: pb.Leaderboard) -> str:
    return word_of(pb.UpdatePolicy, board.update_policy)


def _windows(board: pb.Leaderboard) -> str:
    kinds = [word_of(pb.WindowKind, kind) for kind in board.windows]
    return ",".join([*kinds, *(season.name for season in board.seasons)])
