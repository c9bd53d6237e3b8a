"""The check of the contract: what would break a caller does not pass it."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tallyboard_server.errors import Overloaded
from tallyboard_server.rpc.status import code_of
from tests.tools import ROOT

_COUNTERS: Final = "protos/tallyboard/v1/counters.proto"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The contract and what checks it, to be changed."""
    for name in ("protos", "scripts"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / "buf.yaml", tmp_path)
    return tmp_path


def _checked(copy: Path) -> subprocess.CompletedProcess[str]:
    scripts = Path(sys.executable).parent
    return subprocess.run(
        ["scripts/check-protos"],
        cwd=copy,
        env={"PYTHON": sys.executable, "PATH": f"{scripts}:/usr/bin:/bin", "HOME": str(copy)},
        capture_output=True,
        text=True,
        timeout=100,
    )


def _change(copy: Path, old: str, new: str) -> None:
    file = copy / _COUNTERS
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


def test_the_contract_passes(copy: Path) -> None:
    done = _checked(copy)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("int64 delta = 2;", "int32 delta = 2;", "changed type"),
        ("int64 delta = 2;", "int64 amount = 2;", "changed name"),
        ("bool duplicate = 2;", "bool duplicate = 9;", "deleted"),
        ("returns (DeleteCounterResponse)", "returns (stream DeleteCounterResponse)", "streaming"),
    ],
    ids=["another type", "another name", "another number", "a stream"],
)
def test_what_breaks_callers_does_not(copy: Path, old: str, new: str, said: str) -> None:
    _change(copy, old, new)
    done = _checked(copy)
    assert done.returncode != 0
    assert said in done.stdout + done.stderr


def test_a_field_without_a_comment_does_not(copy: Path) -> None:
    _change(copy, "  bool duplicate = 2;", "  bool duplicate = 2;\n\n  bool other = 99;")
    assert "comment" in _checked(copy).stdout


def test_the_contract_says_which_code_an_overload_has() -> None:
    """Where an RPC's comment names the reason, the code behind it is the one that is sent."""
    text = " ".join(file.read_text() for file in (ROOT / "protos/tallyboard/v1").glob("*.proto"))
    text = re.sub(r"\s*\n\s*//", " ", text)
    named = re.findall(r"OVERLOADED[^();]*\(([^)]*)\)", text)
    assert named
    assert [said for said in named if code_of(Overloaded("")).name not in said] == []
