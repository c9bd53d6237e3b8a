"""What the README shows to type really works."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.service import RunningService

ROOT = Path(__file__).parent.parent
ADDRESS = "127.0.0.1:7411"


def blocks(page: str, language: str) -> list[str]:
    """The code blocks of a page in one language."""
    found: list[str] = re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(), re.S)
    return found


@pytest.fixture(scope="module")
def service() -> Iterator[RunningService]:
    """A service of this module."""
    with RunningService(workers=1) as running:
        yield running


def run(command: list[str], service: RunningService) -> str:
    """The output of a command that has to succeed."""
    environment = {**os.environ, "TALLYBOARD_SERVER": service.target}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("page", "program"),
    [
        (page, program)
        for page in ("README.md", "clients/python/README.md", "docs/clients.md")
        for program in blocks(page, "python")
        if ADDRESS in program
    ],
)
def test_python_programs_run(service: RunningService, page: str, program: str) -> None:
    run([sys.executable, "-c", program.replace(ADDRESS, service.target)], service)


@pytest.mark.parametrize(
    "line",
    re.findall(
        r"^\.venv/bin/tallyboard-server ((?:counter|leaderboard) .*)$",
        (ROOT / "README.md").read_text(),
        re.M,
    ),
)
def test_commands_run(service: RunningService, line: str) -> None:
    run([sys.executable, "-m", "tallyboard_server", *line.split()], service)


@pytest.mark.parametrize("command", ["status", "checkpoint", "snapshot"])
def test_commands_of_operations_run(service: RunningService, command: str) -> None:
    assert run([sys.executable, "-m", "tallyboard_server", command], service)


def test_every_test_that_the_promises_name_is_there() -> None:
    named = re.findall(r"`(tests/[\w/.]+)`", (ROOT / "README.md").read_text())
    assert [path for path in named if not (ROOT / path).exists()] == []
