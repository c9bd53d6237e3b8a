"""Every call with grpcurl that the README shows, as it stands there."""

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests import certificates, tools
from tests.service import RunningService

_ADDRESS: Final = "127.0.0.1:7411"
_SECTION: Final = (
    (tools.ROOT / "README.md").read_text().partition("## grpcurl\n")[2].partition("\n## ")[0]
)
_LINES: Final = re.findall(r"^grpcurl .*$", _SECTION, re.M)
_ERROR: Final = re.findall(r"```\n(ERROR:\n.*?)```", _SECTION, re.S)[0]


@pytest.fixture(scope="module")
def grpcurl() -> str:
    return tools.grpcurl()


@pytest.fixture(scope="module")
def service() -> Iterator[RunningService]:
    with RunningService(workers=1) as running:
        yield running


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `ca.pem`, and the key and certificate of a server on 127.0.0.1."""
    folder = tmp_path_factory.mktemp("certificates")
    certificates.make(folder)
    return folder


@pytest.fixture(scope="module")
def encrypted(folder: Path) -> Iterator[RunningService]:
    """A service with TLS."""
    service = RunningService(
        workers=1, tls_certificate=folder / "ca.pem", tls_key=folder / "key.pem"
    )
    service.start()
    yield service
    service.close()


def _called(grpcurl: str, line: str, target: str, folder: Path) -> subprocess.CompletedProcess[str]:
    words = shlex.split(line.replace(_ADDRESS, target))
    return subprocess.run(
        [grpcurl, *words[1:]], cwd=folder, capture_output=True, text=True, timeout=60
    )


def test_there_are_calls_for_every_task() -> None:
    assert len(_LINES) > 25


def test_calls_succeed(grpcurl: str, service: RunningService, tmp_path: Path) -> None:
    """In their order, for some need what others have made; the last one shows an error."""
    *lines, last = [line for line in _LINES if "-plaintext" in line]
    failed = []
    for line in lines:
        done = _called(grpcurl, line, service.target, tmp_path)
        if done.returncode != 0 or not done.stdout.strip():
            failed.append((line, done.stderr))
    assert failed == []
    error = _called(grpcurl, last, service.target, tmp_path).stderr
    assert error.split() == _ERROR.split()


def test_calls_with_tls_succeed(grpcurl: str, encrypted: RunningService, folder: Path) -> None:
    lines = [line for line in _LINES if "-cacert" in line]
    done = [_called(grpcurl, line, encrypted.target, folder) for line in lines]
    assert [(each.returncode, each.stderr) for each in done] == [(0, "")] * 2


def test_an_answer_has_the_count(grpcurl: str, service: RunningService, tmp_path: Path) -> None:
    line = next(line for line in _LINES if "return_count" in line).replace("post:42", "post:44")
    done = _called(grpcurl, line, service.target, tmp_path)
    assert '"value": "1"' in done.stdout
