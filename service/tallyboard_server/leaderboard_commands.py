"""The commands that concern leaderboards."""

from collections.abc import Callable
from typing import Any, Final, TypeVar

import click

from tallyboard.v1 import leaderboards_pb2 as pb
from tallyboard_server import leaderboard_report as report
from tallyboard_server.command_options import call_options, limit_option, request_id_option
from tallyboard_server.contract_words import number_of, words_of
from tallyboard_server.leaderboard_calls import connect

# Seasons have names and limits, which a word can't give.
_KINDS: Final = [word for word in words_of(pb.WindowKind) if word != "season"]
_PERCENTILES: Final = (99.0, 90.0, 50.0)
_Command = TypeVar("_Command", bound=Callable[..., Any])


class _WithScore(click.Command):
    """Takes a negative number as an argument, where click would look for an option of that name."""

    ignore_unknown_options = True

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Reads the arguments; a mistyped option is not taken for a name."""
        marked = "--" in args
        rest = super().parse_args(ctx, args)
        for name in ("leaderboard_id", "member"):
            value = ctx.params.get(name) or ""
            if value.startswith("-") and not marked:
                raise click.NoSuchOption(value, ctx=ctx)
        return rest


def _id_argument(command: _Command) -> _Command:
    return click.argument("leaderboard_id", metavar="ID")(command)


def _window_option(command: _Command) -> _Command:
    help_text = (
        "Its id, or current:daily, previous:weekly and the like. "
        "Needed if the leaderboard has windows of several kinds."
    )
    return click.option("--window", default="", help=help_text)(command)


def _yes_option(command: _Command) -> _Command:
    return click.option("--yes", is_flag=True, help="Do not ask.")(command)


@click.group()
def leaderboard() -> None:
    """Define leaderboards, submit scores and read rankings."""


@leaderboard.command()
@_id_argument
@call_options
@click.option("--ascending", is_flag=True, help="The smallest score ranks first, as with times.")
@click.option(
    "--policy",
    type=click.Choice(words_of(pb.UpdatePolicy)),
    default="best",
    show_default=True,
    help="What a further score of a member does.",
)
@click.option(
    "--ties",
    type=click.Choice(words_of(pb.TieBreak)),
    default="earliest",
    show_default=True,
    help="Who ranks higher with equal scores.",
)
@click.option(
    "--window",
    "windows",
    multiple=True,
    type=click.Choice(_KINDS),
    help="A kind of windows; may be repeated.  [default: all-time]",
)
@click.option("--time-zone", default="", help="Where windows begin.  [default: UTC]")
@click.option(
    "--max-entries",
    type=click.IntRange(0, 2**63 - 1),
    default=0,
    help="How many entries a window keeps, the best ones; 0: all.",
)
@click.option(
    "--segments",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    help="Over how many partitions a window is spread.",
)
def create(
    leaderboard_id: str,
    ascending: bool,
    policy: str,
    ties: str,
    windows: tuple[str, ...],
    time_zone: str,
    max_entries: int,
    segments: int,
    **target: Any,
) -> None:
    """Define a leaderboard and print its definition."""
    definition = pb.Leaderboard(
        sort_order=pb.SORT_ORDER_ASCENDING if ascending else pb.SORT_ORDER_DESCENDING,
        update_policy=number_of(pb.UpdatePolicy, policy),
        tie_break=number_of(pb.TieBreak, ties),
        windows=[number_of(pb.WindowKind, kind) for kind in windows],
        time_zone=time_zone,
        max_entries=max_entries,
        segments=segments,
    )
    with connect(**target) as boards:
        board = boards.create(leaderboard_id, definition)
    report.print_definition(board)


@leaderboard.command("list")
@call_options
@click.option("--prefix", default="", help="Only leaderboards whose ids start with this.")
@limit_option(100)
def list_leaderboards(prefix: str, limit: int, **target: Any) -> None:
    """Print the leaderboards by id: id, order, policy and windows."""
    with connect(**target) as boards:
        report.print_definitions(boards.list(prefix, limit))


@leaderboard.command()
@_id_argument
@call_options
@_yes_option
def delete(leaderboard_id: str, yes: bool, **target: Any) -> None:
    """Delete a leaderboard with all it has.

    That is every entry, window, archive and snapshot.
    """
    _ask(f"Delete the leaderboard {leaderboard_id!r} with all its entries?", yes)
    with connect(**target) as boards:
        deleted = boards.delete(leaderboard_id)
    click.echo(f"deleted entries: {deleted:,}")


@leaderboard.command(cls=_WithScore)
@_id_argument
@click.argument("member")
@click.argument("score", type=float)
@call_options
@click.option("--metadata", default="", help="Text that belongs to this score.")
@request_id_option
def submit(
    leaderboard_id: str,
    member: str,
    score: float,
    metadata: str,
    request_id: str | None,
    **target: Any,
) -> None:
    """Submit a score and print what it did.

    One line a window: its id, the member's score, the score before, and the rank. A score may be
    negative; after `--` an id and a member may begin with a dash too.
    """
    # Bytes of the command line that are no UTF-8 are metadata as good as any.
    text = metadata.encode(errors="surrogateescape")
    with connect(**target) as boards:
        answer = boards.submit(leaderboard_id, member, score, text, request_id or "")
    report.print_results(answer.results)
    if answer.duplicate:
        click.echo("This request id was seen before; nothing was changed.", err=True)


@leaderboard.command()
@_id_argument
@call_options
@_window_option
@limit_option(10)
@click.option("--reverse", is_flag=True, help="From the last rank upwards.")
@click.option(
    "--rank-method",
    type=click.Choice(words_of(pb.RankMethod)),
    default="ordinal",
    show_default=True,
    help="How ranks count where scores are equal.",
)
@click.option("--exact", is_flag=True, help="Ask Redis now instead of taking a recent ranking.")
def top(
    leaderboard_id: str,
    window: str,
    limit: int,
    reverse: bool,
    rank_method: str,
    exact: bool,
    **target: Any,
) -> None:
    """Print ranks, scores and members from the top of a ranking."""
    method = number_of(pb.RankMethod, rank_method)
    with connect(**target) as boards:
        report.print_entries(boards.entries(leaderboard_id, window, limit, reverse, method, exact))


@leaderboard.command()
@_id_argument
@click.argument("member")
@call_options
@_window_option
def rank(leaderboard_id: str, member: str, window: str, **target: Any) -> None:
    """Print the rank, the score and the percentile of a member."""
    with connect(**target) as boards:
        found = boards.entry(leaderboard_id, member, window)
    report.print_place(found)


@leaderboard.command()
@_id_argument
@click.argument("member")
@call_options
@_window_option
@click.option(
    "--neighbors",
    type=click.IntRange(1, 100),
    default=5,
    show_default=True,
    help="How many on either side.",
)
def around(leaderboard_id: str, member: str, window: str, neighbors: int, **target: Any) -> None:
    """Print ranks, scores and members around a member."""
    with connect(**target) as boards:
        found = boards.entries_around(leaderboard_id, member, window, neighbors)
    report.print_entries(found.entries)


@leaderboard.command()
@_id_argument
@call_options
@_window_option
def stats(leaderboard_id: str, window: str, **target: Any) -> None:
    """Print how many entries a window has and how their scores are spread."""
    with connect(**target) as boards:
        found = boards.stats(leaderboard_id, window, _PERCENTILES)
    report.print_stats(found)


@leaderboard.command("windows")
@_id_argument
@call_options
def list_windows(leaderboard_id: str, **target: Any) -> None:
    """Print the windows that hold entries.

    One line a window: its id, its state, how many entries it has, its start and its end.
    """
    with connect(**target) as boards:
        report.print_windows(boards.windows(leaderboard_id))


@leaderboard.command("snapshots")
@_id_argument
@call_options
@click.option("--member", default="", help="Adds the rank and the score of this one.")
@click.option("--window", default="", help="Only snapshots of the window with this id.")
def list_snapshots(leaderboard_id: str, member: str, window: str, **target: Any) -> None:
    """Print the daily snapshots, the latest first.

    One line a snapshot: the day, the window, how many entries it has; with a member, its rank and
    its score then.
    """
    with connect(**target) as boards:
        snapshots = boards.snapshots(leaderboard_id, member, window)
        report.print_snapshots(snapshots, with_place=bool(member))


@leaderboard.command()
@click.argument("member")
@call_options
@_yes_option
def erase_member(member: str, yes: bool, **target: Any) -> None:
    """Delete every entry of a member.

    From all leaderboards of the tenant, archives and snapshots included.
    """
    _ask(f"Erase the member {member!r} from all leaderboards?", yes)
    with connect(**target) as boards:
        erased = boards.erase_member(member)
    click.echo(
        f"leaderboards: {erased.leaderboards:,}, deleted entries: {erased.deleted_entries:,}, "
        f"deleted from archives and snapshots: {erased.deleted_archived_entries:,}"
    )


def _ask(question: str, yes: bool) -> None:
    if not yes:
        click.confirm(question, abort=True, err=True)
