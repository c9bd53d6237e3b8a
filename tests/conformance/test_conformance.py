"""The same cases in every language."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.conformance import runners
from tests.conformance.stage import Stage

CASES: Final = sorted((Path(__file__).parent / "cases").glob("*.json"))
_TIMEOUT: Final = 300.0


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with Stage() as stage:
        yield stage


def _names() -> list[str]:
    return [case["name"] for file in CASES for case in json.loads(file.read_text())["cases"]]


def _played(stage: Stage, command: list[str]) -> dict[str, Any]:
    """By case, what a runner says of it."""
    files = [str(file) for file in CASES]
    run = subprocess.run(
        [*command, "--target", stage.target, "--control", stage.control, *files],
        capture_output=True,
        text=True,
        timeout=_TIMEOUT,
        check=False,
    )
    said = [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]
    assert said, run.stderr
    return {each["case"]: each.get("detail", each["ok"]) for each in said}


def test_there_are_enough_cases_and_each_has_a_name() -> None:
    names = _names()
    assert (len(names) >= 60, len(names)) == (True, len(set(names)))


def test_python(stage: Stage) -> None:
    played = _played(stage, [sys.executable, "-m", "tests.conformance.runner"])
    assert played == dict.fromkeys(_names(), True)


@pytest.mark.timeout(900)
def test_go(stage: Stage) -> None:
    assert _played(stage, runners.go()) == dict.fromkeys(_names(), True)


@pytest.mark.timeout(900)
def test_typescript(stage: Stage) -> None:
    assert _played(stage, runners.typescript()) == dict.fromkeys(_names(), True)


@pytest.mark.timeout(900)
def test_java(stage: Stage) -> None:
    assert _played(stage, runners.java()) == dict.fromkeys(_names(), True)
