"""The libraries as a new user gets them: built, installed in an empty folder, the README pasted."""

import re
import shutil
import sys
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests import tools
from tests.service import RunningService

_CLIENTS: Final = tools.ROOT / "clients"
_ADDRESS: Final = "127.0.0.1:7411"


@pytest.fixture
def target() -> Iterator[str]:
    """Where an empty service listens: every example is the first one."""
    with RunningService(workers=1) as service:
        yield service.target


def _example(language: str, fence: str, target: str) -> str:
    """The first program of a README."""
    text = (_CLIENTS / language / "README.md").read_text()
    program = re.findall(rf"```{fence}\n(.*?)```", text, re.S)[0]
    assert _ADDRESS in program
    return str(program).replace(_ADDRESS, target)


@pytest.mark.timeout(300)
def test_the_wheel(tmp_path: Path, target: str) -> None:
    source = shutil.copytree(
        _CLIENTS / "python", tmp_path / "source", ignore=shutil.ignore_patterns("*.egg-info")
    )
    pip = ["-m", "pip", "--disable-pip-version-check"]
    tools.run([sys.executable, *pip, "wheel", "-q", "--no-deps", str(source)], tmp_path)
    venv.create(tmp_path / "venv", with_pip=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    (wheel,) = tmp_path.glob("tallyboard-*.whl")
    tools.run([python, *pip, "install", "-q", str(wheel)], tmp_path)
    (tmp_path / "first.py").write_text(_example("python", "python", target))
    assert tools.run([python, "first.py"], tmp_path) == "1\n1 ann 1820.0\n"


@pytest.mark.timeout(900)
def test_the_go_module(tmp_path: Path, target: str) -> None:
    go, module = tools.need("go"), "github.com/tallyboard/tallyboard/clients/go"
    (tmp_path / "main.go").write_text(_example("go", "go", target))
    tools.run([go, "mod", "init", "acme"], tmp_path)
    tools.run([go, "mod", "edit", f"-replace={module}={_CLIENTS / 'go'}"], tmp_path)
    tools.run([go, "mod", "tidy"], tmp_path)
    assert tools.run([go, "run", "."], tmp_path) == "post:42: 1\n1 ann 1820\n"


@pytest.mark.timeout(900)
def test_the_go_module_is_well_kept() -> None:
    go, folder = tools.need("go"), _CLIENTS / "go"
    assert tools.run([tools.need("gofmt"), "-l", "."], folder) == ""
    tools.run([go, "mod", "tidy", "-diff"], folder)
    tools.run([go, "vet", "./..."], folder)
    tools.run([go, "test", "-race", "./..."], folder)


@pytest.mark.timeout(900)
def test_the_stubs_for_go_are_up_to_date(tmp_path: Path) -> None:
    tools.need("go")
    kept = _CLIENTS / "go" / "tallyboard"
    before = shutil.copytree(kept, tmp_path / "before")
    tools.run(["./generate"], _CLIENTS / "go", {"PYTHON": sys.executable})
    tools.run([tools.need("diff"), "-r", str(before), str(kept)], tools.ROOT)


@pytest.mark.timeout(900)
def test_the_npm_package(tmp_path: Path, target: str) -> None:
    node, npm, folder = tools.need("node"), tools.need("npm"), tools.npm_folder()
    tools.run([npm, "pack", "--pack-destination", str(tmp_path)], folder)
    (package,) = tmp_path.glob("tallyboard-*.tgz")
    (tmp_path / "package.json").write_text('{"type": "module", "private": true}')
    tools.run([npm, "install", str(package)], tmp_path)
    (tmp_path / "first.js").write_text(_example("typescript", "typescript", target))
    assert tools.run([node, "first.js"], tmp_path) == "5n\n1. ann 1820\n"


@pytest.mark.timeout(900)
def test_the_npm_package_is_well_kept() -> None:
    tools.run([tools.need("npm"), "test"], tools.npm_folder())


@pytest.mark.timeout(900)
def test_the_stubs_for_typescript_are_up_to_date(tmp_path: Path) -> None:
    folder = tools.npm_folder()
    before = shutil.copytree(folder / "src" / "gen", tmp_path / "before")
    tools.run(["./generate"], folder, {"PYTHON": sys.executable})
    tools.run([tools.need("diff"), "-r", str(before), str(folder / "src" / "gen")], tools.ROOT)


_POM: Final = """
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>acme</groupId>
  <artifactId>first</artifactId>
  <version>1</version>
  <properties>
    <maven.compiler.source>17</maven.compiler.source>
    <maven.compiler.target>17</maven.compiler.target>
    <project.build.sourceEncoding>UTF-8</project.build.sourceEncoding>
  </properties>
  <dependencies>
    {dependency}
  </dependencies>
</project>
"""


@pytest.mark.timeout(900)
def test_the_maven_artifact(tmp_path: Path, target: str) -> None:
    maven = [tools.need("mvn"), "-q", "-B"]
    readme = (tools.maven_folder() / "README.md").read_text()
    (dependency,) = re.findall(r"<dependency>.*?</dependency>", readme, re.S)
    (tmp_path / "pom.xml").write_text(_POM.format(dependency=dependency))
    program = _example("java", "java", target)
    (name,) = re.findall(r"public (?:final )?class (\w+)", program)
    folder = tmp_path / "src" / "main" / "java"
    folder.mkdir(parents=True)
    (folder / f"{name}.java").write_text(program)
    tools.run([*maven, "compile", "dependency:copy-dependencies"], tmp_path)
    path = "target/classes:target/dependency/*"
    found = tools.run([tools.need("java"), "-cp", path, name], tmp_path)
    assert found == "post:42 1\n1. ann 1820\n"


@pytest.mark.timeout(900)
def test_the_maven_artifact_is_well_kept() -> None:
    tools.run([tools.need("mvn"), "-q", "-B", "package"], tools.maven_folder())
