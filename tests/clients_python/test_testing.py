"""The fixtures that the library gives to other people's tests."""

import subprocess
import sys
from pathlib import Path

import pytest

from tallyboard.testing import EmbeddedService

_TESTS = """
def test_one(tallyboard_client):
    tallyboard_client.counter("post:42").increment()
    assert tallyboard_client.counter("post:42").get(exact=True).value == 1


def test_two(tallyboard_client):
    assert tallyboard_client.counter("post:42").get(exact=True).value == 0
"""


def test_a_test_of_somebody_else_has_a_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On stores of its own, wherever the service of these people keeps its data."""
    monkeypatch.setenv("TALLYBOARD_REDIS_URL", "redis://127.0.0.1:1")
    (tmp_path / "test_theirs.py").write_text(_TESTS)
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", str(tmp_path)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert "2 passed" in run.stdout, run.stdout + run.stderr


def test_a_run_that_does_not_ask_for_it_imports_no_grpc(tmp_path: Path) -> None:
    """gRPC reads its settings when it is imported, and minds forks from then on."""
    theirs = "import sys\n\ndef test_it():\n    assert 'grpc' not in sys.modules\n"
    (tmp_path / "test_theirs.py").write_text(theirs)
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", str(tmp_path)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert "1 passed" in run.stdout, run.stdout + run.stderr


def test_a_service_that_does_not_start_says_why() -> None:
    with (
        pytest.raises(RuntimeError, match="no-such-flag"),
        EmbeddedService("--no-such-flag"),
    ):
        pass
