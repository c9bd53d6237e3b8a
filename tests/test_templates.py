"""The templates of `buf generate` for languages without a library, as far as they can be run."""

import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any, Final

import pytest

from tests import tools

_TEMPLATES: Final = tools.ROOT / "protos" / "templates"
#: By language, a file that has to come out of it.
_MADE: Final = {
    "cpp": "counters.grpc.pb.cc",
    "csharp": "Counters.cs",
    "kotlin": "CountersProtoGrpcKt.kt",
    "php": "CounterServiceClient.php",
    "ruby": "counters_services_pb.rb",
    "rust": "tallyboard.v1.tonic.rs",
}
#: Generators that are in no package of Debian's, and come from elsewhere.
_FETCHED: Final = {"kotlin": tools.kotlin_generators, "rust": tools.rust_generators}
#: Those whose gRPC generator has to be there already.
_ONLY_MESSAGES: Final = {"csharp"}


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    """Where buf is, and google/rpc/status.proto beside the protos."""
    scripts = str(Path(sys.executable).parent)
    tools.run(
        [str(tools.ROOT / "scripts" / "check-protos")], tools.ROOT, {"PYTHON": sys.executable}
    )
    return {"PATH": os.pathsep.join([scripts, os.environ["PATH"]])}


@pytest.mark.parametrize("language", sorted(_MADE))
def test_stubs_are_made(language: str, environment: dict[str, str], tmp_path: Path) -> None:
    tools.need("protoc")
    if language in _FETCHED:
        path = os.pathsep.join([str(_FETCHED[language]()), environment["PATH"]])
        environment = environment | {"PATH": path}
    text = (_TEMPLATES / f"{language}.yaml").read_text()
    for plugin in re.findall(r"local: (\S+)", text):
        if language in _ONLY_MESSAGES and shutil.which(plugin) is None:
            text = re.sub(rf"  - local: {plugin}\n(?:    .*\n)+", "", text)
        elif language not in _FETCHED:
            tools.need(plugin)
    template = tmp_path / "template.yaml"
    template.write_text(text)
    _generate(template, tmp_path, environment)
    assert [path.name for path in tmp_path.rglob(_MADE[language])] == [_MADE[language]]


def test_the_guide_names_them_all() -> None:
    guide = (tools.ROOT / "docs" / "clients.md").read_text()
    named = set(re.findall(r"--template protos/templates/(\w+)\.yaml", guide))
    assert named == {path.stem for path in _TEMPLATES.iterdir()}


def _generate(template: Path, out: Path, environment: dict[str, Any]) -> None:
    command = ["buf", "generate", "protos", "--template", str(template), "--output", str(out)]
    tools.run(command, tools.ROOT, environment)
