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
_RUST_GENERATORS: Final = ("protoc-gen-prost@0.5.0", "protoc-gen-tonic@0.5.0")
_JAVA_GENERATOR: Final = "io.grpc:protoc-gen-grpc-java:1.83.1:exe:linux-x86_64"
_KOTLIN_GENERATOR: Final = "io.grpc:protoc-gen-grpc-kotlin:1.5.0:jar:jdk8"
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


def rust_generators() -> Path:
    """The folder of protoc-gen-prost and protoc-gen-tonic, which Cargo makes the first time."""
    made = FOLDER / "bin"
    if not (made / "protoc-gen-tonic").exists():
        command = [need("cargo"), "install", "--quiet", "--locked", "--root", str(FOLDER)]
        run([*command, *_RUST_GENERATORS], ROOT)
    return made


def kotlin_generators() -> Path:
    """The folder of protoc-gen-grpc-java and protoc-gen-grpc-kotlin, which Maven fetches."""
    made = FOLDER / "kotlin"
    made.mkdir(parents=True, exist_ok=True)
    jar = _fetch(_KOTLIN_GENERATOR, made)
    script = made / "protoc-gen-grpc-kotlin"
    script.write_text(f'#!/bin/sh\nexec java -jar "{jar}"\n')
    program = made / "protoc-gen-grpc-java"
    shutil.copy(_fetch(_JAVA_GENERATOR, made), program)
    for tool in (script, program):
        tool.chmod(0o755)
    return made


def _fetch(artifact: str, folder: Path) -> Path:
    """The file of a Maven artifact, fetched the first time."""
    _, name, version, kind, classifier = artifact.split(":")
    file = folder / f"{name}-{version}-{classifier}.{kind}"
    if not file.exists():
        goal = ["dependency:copy", f"-Dartifact={artifact}", f"-DoutputDirectory={folder}"]
        run([need("mvn"), "-q", "-B", *goal], ROOT)
    return file


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
