"""Prints what a comparison of the stores found: a table on a terminal, plain lines elsewhere."""

from collections.abc import Iterable, Sequence

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tallyboard.v1 import operations_pb2 as pb

_COLUMNS = ("partition", "tenant", "what", "Redis", "Postgres", "difference")


def print_differences(found: Iterable[pb.VerifyResponse]) -> None:
    """Print one line a difference, its fields separated by tabs unless it is a terminal's table.

    Names hold no control characters, so they break neither a line nor a field.
    """
    rows = [_row(answer, difference) for answer in found for difference in answer.differences]
    console = Console()
    if not console.is_terminal:
        for row in rows:
            click.echo("\t".join(row))
    elif rows:
        table = Table(*_COLUMNS)
        for row in rows:
            table.add_row(*map(Text, row))
        console.print(table)


def print_verified(found: Sequence[pb.VerifyResponse]) -> None:
    """Print in one line what was compared and how much of it differs."""
    counters = sum(answer.counters for answer in found)
    entries = sum(answer.entries for answer in found)
    count = sum(answer.difference_count for answer in found)
    listed = sum(len(answer.differences) for answer in found)
    more = f" ({count - listed:,} not listed)" if count > listed else ""
    click.echo(
        f"{counters:,} counters and {entries:,} entries of {len(found):,} partitions compared: "
        f"{count:,} differences{more}"
    )


def _row(answer: pb.VerifyResponse, difference: pb.Difference) -> tuple[str, ...]:
    values = [
        getattr(difference, name) if difference.HasField(name) else "-"
        for name in ("redis_value", "postgres_value")
    ]
    return (
        str(answer.partition),
        _plain(difference.tenant),
        _plain(_subject(difference)),
        *values,
        difference.detail,
    )


def _subject(difference: pb.Difference) -> str:
    if difference.WhichOneof("subject") == "entry":
        entry = difference.entry
        return f"leaderboard {entry.leaderboard_id}, window {entry.window}, member {entry.member}"
    return f"counter {difference.counter}"


def _plain(text: str) -> str:
    """What is only in Redis may have a name that the service would not take."""
    return "".join(
        char if char.isprintable() or char == " " else "\N{REPLACEMENT CHARACTER}" for char in text
    )
