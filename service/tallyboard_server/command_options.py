"""Options that several commands share."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

_Command = TypeVar("_Command", bound=Callable[..., Any])


def call_options(command: _Command) -> _Command:
    """Options of the commands that call a running service: the arguments of `calls.connect`."""
    return _call_options(command, 10.0)


def long_call_options(command: _Command) -> _Command:
    """The same, of commands whose calls take their time."""
    return _call_options(command, 3600.0)


def _call_options(command: _Command, timeout: float) -> _Command:
    for option in (
        click.option("--ca", metavar="FILE", help="PEM file to trust; calls the service by TLS."),
        click.option(
            "--timeout",
            type=click.FloatRange(min=0, min_open=True),
            default=timeout,
            show_default=True,
            help="Seconds that the call may take.",
        ),
        click.option(
            "--server",
            envvar="TALLYBOARD_SERVER",
            default="127.0.0.1:7411",
            show_default=True,
            help="Address of the service; also TALLYBOARD_SERVER.",
        ),
        click.option(
            "--tenant",
            envvar="TALLYBOARD_TENANT",
            default="default",
            show_default=True,
            help="Whose data; also TALLYBOARD_TENANT.",
        ),
    ):
        command = option(command)
    return command


def request_id_option(command: _Command) -> _Command:
    """An option for the request id of a write; None if it is not given."""
    help_text = "UUID that makes a repeat harmless; a new one if not given."
    return click.option("--request-id", help=help_text)(command)


def limit_option(default: int) -> Callable[[_Command], _Command]:
    """An option for how many items to list, at least 1."""
    return click.option(
        "--limit",
        type=click.IntRange(1),
        default=default,
        show_default=True,
        help="How many at most.",
    )
