"""The runners of all languages: how each is made, and the command that it is."""

from typing import Final

from tests import tools

_CLIENTS: Final = tools.ROOT / "clients"


def go() -> list[str]:
    """The runner of the Go module."""
    made = tools.FOLDER / "conformance-go"
    command = [tools.need("go"), "build", "-o", str(made), "./conformance"]
    tools.run(command, _CLIENTS / "go")
    return [str(made)]


def typescript() -> list[str]:
    """The runner of the npm package."""
    runner = tools.npm_folder() / "build" / "conformance" / "runner.js"
    return [tools.need("node"), str(runner)]


def java() -> list[str]:
    """The runner of the Maven artifact."""
    target = tools.maven_folder() / "target"
    path = f"{target / 'test-classes'}:{target / 'classes'}:{target / 'lib' / '*'}"
    return [tools.need("java"), "-cp", path, "io.tallyboard.conformance.Runner"]
