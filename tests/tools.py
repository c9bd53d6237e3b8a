"""Tools that tests need besides Python: found, made, or missed loudly."""

import functools
import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parent.parent
#: Where tools are put that the tests install themselves.
FOLDER: Final = ROOT / "build" / "tools"
_GRPCURL: Final = "github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.9.4"
_BUILD_TIMEOUT: Final = 600.0


def need(tool: str) -> str:
    """The path of a tool. Without it the test is skipped; with TESTS_NEED_ALL_TOOLS it fails."""
    found = shutil.which(tool)
    if found is not None:
        return found
    if os.environ.get("TESTS_NEED_ALL_TOOLS"):
        pytest.fail(f"{tool} is missing")
    pytest.skip(f"{tool} is missing: install it to run this test")


def grpcurl() -> str:
    """The path of a grpcurl, which Go makes the first time."""
    made = FOLDER / "grpcurl"
    if not made.exists():
        run([need("go"), "install", _GRPCURL], ROOT, {"GOBIN": str(FOLDER)})
    return str(made)


@functools.cache
def npm_folder() -> Path:
    """The folder of the npm package, with what it needs installed and itself built."""
    folder = ROOT / "clients" / "typescript"
    run([need("npm"), "ci"], folder)
    run([need("npm"), "run", "build"], folder)
    return folder


@functools.cache
def maven_folder() -> Path:
    """The folder of the Maven artifact, built and installed for other projects."""
    folder = ROOT / "clients" / "java"
    run([need("mvn"), "-q", "-B", "-DskipTests", "install"], folder)
    return folder


def run(command: list[str], folder: Path, environment: dict[str, str] | None = None) -> str:
    """The output of a command that has to succeed."""
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **(environment or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_BUILD_TIMEOUT,
    )
    assert done.returncode == 0, (
        f"{' '.join(command)}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    )
    return done.stdout
