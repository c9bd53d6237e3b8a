"""The command line: run the service, see its settings, and call it."""

import dataclasses
import json
import os
import signal
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tallyboard_server import __version__, calls
from tallyboard_server.command_options import call_options, limit_option, request_id_option
from tallyboard_server.leaderboard_commands import leaderboard
from tallyboard_server.logs import configure_logs
from tallyboard_server.operations_commands import rebuild, verify
from tallyboard_server.processes import die_with_parent, pin_to_core, prefer_throughput
from tallyboard_server.settings import LoadedSettings, Settings, SettingsError, load_settings
from tallyboard_server.startup import StartupError

_Command = TypeVar("_Command", bound=Callable[..., Any])


class _OneSentence(click.Group):
    """Shows errors meant for people as a sentence with exit status 1, without a trace."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (SettingsError, StartupError, calls.CallError, UnicodeEncodeError) as error:
            click.echo(f"Error: {_sentence(error)}", err=True)
            ctx.exit(1)


def _sentence(error: Exception) -> str:
    if not isinstance(error, UnicodeEncodeError):
        return str(error)
    if error.encoding == "utf-8":
        return "What is sent must be UTF-8."
    return f"The answer can't be written as {error.encoding}."


@click.group(cls=_OneSentence, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="tallyboard-server")
def main() -> None:
    """Tallyboard: live counters and leaderboards as one gRPC service."""


def _settings_options(command: _Command) -> _Command:
    """Give the command an option for every setting; values are checked by `load_settings`."""
    for field in reversed(dataclasses.fields(Settings)):
        option = click.option(
            "--" + field.name.replace("_", "-"),
            field.name,
            metavar="VALUE",
            help=f"{field.metadata['help']}  [default: {_default(field)}]",
        )
        command = option(command)
    help_text = "TOML file with settings; flags and TALLYBOARD_* variables win over it."
    return click.option("--config", metavar="FILE", help=help_text)(command)


def _default(field: "dataclasses.Field[Any]") -> str:
    if field.default is dataclasses.MISSING:
        return "none"
    if isinstance(field.default, bool):
        return str(field.default).lower()
    return "empty" if field.default == "" else str(field.default)


@main.command()
@_settings_options
@click.option("--with-parent", is_flag=True, help="Stop also when the process that ran this ends.")
def serve(with_parent: bool, **flags: object) -> None:
    """Run the service until Ctrl-C or SIGTERM."""
    from tallyboard_server.supervisor import Supervisor

    # A parent may have blocked it, and a mask is inherited: by all processes of the service, too.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT, signal.SIGHUP})
    if with_parent:
        die_with_parent(signal.SIGTERM)
    settings = load_settings(flags, os.environ).settings
    configure_logs(settings, "supervisor")
    sys.exit(Supervisor(settings).run())


@main.command()
@_settings_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def config(as_json: bool, **flags: object) -> None:
    """Show every setting in force, and where its value comes from."""
    loaded = load_settings(flags, os.environ)
    if as_json:
        click.echo(json.dumps(_described(loaded), indent=2))
        return
    table = Table("setting", "value", "from")
    for name, described in _described(loaded).items():
        table.add_row(name, Text(_as_text(described["value"])), Text(str(described["source"])))
    Console().print(table)


def _described(loaded: LoadedSettings) -> dict[str, dict[str, object]]:
    return {
        name: {"value": value, "source": loaded.sources[name]}
        for name, value in loaded.shown().items()
    }


def _as_text(value: object) -> str:
    if isinstance(value, dict):
        return ",".join(f"{prefix}={shards}" for prefix, shards in value.items())
    return str(value).lower() if isinstance(value, bool) else str(value)


@main.command()
@_settings_options
def migrate(**flags: object) -> None:
    """Bring the schema in Postgres up to date, and say what was applied."""
    from tallyboard_server.migrate import migrate_schema

    settings = load_settings(flags, os.environ).settings
    configure_logs(settings, "migrate")
    applied = migrate_schema(settings)
    click.echo("\n".join(f"applied {name}" for name in applied) or "The schema is up to date.")


@main.command(hidden=True)
@click.option("--index", type=click.IntRange(0), required=True)
@click.option("--ready-fd", type=click.IntRange(0), required=True)
def worker(index: int, ready_fd: int) -> None:
    """Serve calls; started by the supervisor."""
    settings = _settings_of_child(f"worker-{index}")
    if settings.pin_workers:
        pin_to_core(index)
    prefer_throughput()
    from tallyboard_server.worker import main as run_worker

    sys.exit(run_worker(settings, index, ready_fd))


@main.command(hidden=True)
@click.option("--ready-fd", type=click.IntRange(0), required=True)
def keeper(ready_fd: int) -> None:
    """Write checkpoints; started by the supervisor."""
    settings = _settings_of_child("keeper")
    from tallyboard_server.keeper import main as run_keeper

    sys.exit(run_keeper(settings, ready_fd))


def _settings_of_child(name: str) -> Settings:
    settings = Settings.inherited(os.environ)
    die_with_parent(signal.SIGTERM)
    configure_logs(settings, name)
    return settings


@main.command()
@call_options
def checkpoint(**target: Any) -> None:
    """Copy what has changed from Redis to Postgres now."""
    with calls.connect(**target) as service:
        done = service.checkpoint()
    click.echo(
        f"{done.counters:,} counters and {done.entries:,} entries "
        f"of {done.partitions:,} partitions "
        f"in {done.elapsed.ToTimedelta().total_seconds():.3f} s"
    )


@main.command()
@call_options
@click.option("--leaderboard", default="", metavar="ID", help="Only this one instead of all.")
def snapshot(leaderboard: str, **target: Any) -> None:
    """Keep today's standing of the tenant's leaderboards in Postgres now."""
    with calls.connect(**target) as service:
        done = service.take_snapshots(leaderboard)
    click.echo(f"{done.snapshots:,} snapshots of {done.leaderboards:,} leaderboards")


@main.command()
@call_options
@click.option("--json", "as_json", is_flag=True, help="Print the whole answer as JSON.")
def status(as_json: bool, **target: Any) -> None:
    """Show how the stores, the partitions and the checkpoints are."""
    from tallyboard_server.status_report import print_status, status_as_json

    with calls.connect(**target) as service:
        found = service.status()
    if as_json:
        click.echo(status_as_json(found))
    else:
        print_status(found, Console())


@main.group()
def counter() -> None:
    """Add to counters and read them."""


@counter.command()
@click.argument("name")
@call_options
@click.option(
    "--delta",
    type=click.IntRange(-(2**63), 2**63 - 1),
    metavar="INTEGER",
    default=1,
    show_default=True,
    help="What to add; not 0.",
)
@request_id_option
def increment(name: str, delta: int, request_id: str | None, **target: Any) -> None:
    """Add to a counter and print its count."""
    with calls.connect(**target) as service:
        answer = service.increment(name, delta, request_id)
    click.echo(answer.count.value)
    if answer.duplicate:
        click.echo("This request id was seen before; nothing was added.", err=True)


@counter.command()
@click.argument("name")
@call_options
@click.option("--exact", is_flag=True, help="Ask Redis now instead of taking a recent count.")
def get(name: str, exact: bool, **target: Any) -> None:
    """Print the count of a counter; one never written is 0."""
    with calls.connect(**target) as service:
        click.echo(service.get(name, exact).value)


@counter.command("list")
@call_options
@click.option("--prefix", default="", help="Only counters whose names start with this.")
@limit_option(100)
@click.option("--largest-first", is_flag=True, help="By count instead of by name.")
def list_counters(prefix: str, limit: int, largest_first: bool, **target: Any) -> None:
    """Print counts and names as of the last checkpoint, one counter a line."""
    with calls.connect(**target) as service:
        for count in service.list_counters(prefix, limit, largest_first):
            click.echo(f"{count.value}\t{count.counter}")


main.add_command(leaderboard)
main.add_command(verify)
main.add_command(rebuild)
