"""Bugs that are planted in a copy of the server, one at a time: the schedules must find each.

The same schedules are run on the server as it is, too: they must find nothing there.

What is here is data: a bug is an exact text of one file and what takes its place.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import tallyboard_server
from tests.faults.soak.play import Outcome
from tests.faults.soak.runs import Plan, run

_PACKAGE: Final = Path(tallyboard_server.__file__).parent
_LINES: Final = ("line to redis", "redis killed", "worker killed")
_CHECKPOINTS: Final = ("line to postgres loses requests", "checkpoint", "keeper killed")
_WIPES: Final = ("redis wiped", "redis flushed", "redis restored from an old copy")


@dataclass(frozen=True)
class Mutation:
    """A bug.

    Attributes:
        name: in words.
        file: of the server package.
        old, new: the text that is there exactly once, and what is put in its place.
        durability: the level that finds it.
        faults: those that find it soonest, see schedule.draw.
        seeds: how many schedules may be needed at most.
    """

    name: str
    file: str
    old: str
    new: str
    durability: str
    faults: tuple[str, ...]
    seeds: int = 20


MUTATIONS: Final = (
    Mutation(
        "a token that was seen is taken for new",
        "redis/lua/frame.lua",
        "  if found == sequence then return slot, 'seen', held end\n",
        "  if found == sequence then return slot, 'new', held end\n",
        "fsynced",
        _LINES,
    ),
    Mutation(
        "acknowledged before Redis has replied",
        "counters/writes.py",
        "            write = self._store.write(parts, 1, deadline)\n",
        "            write = Write(lambda: None)\n"
        "            parts(write)\n"
        "            self._store.submit(write.parts, 1)\n"
        "            return WriteResult(False)\n",
        "fsynced",
        ("redis killed", "redis stopped and killed", "line to redis", "worker killed"),
    ),
    Mutation(
        "one row in seven is left out of the journal",
        "recovery/journal_flush.py",
        "        parts = [(part, entry.number) for entry in new for part in entry.call.parts]\n",
        "        new = [entry for entry in new if entry.number % 7]\n"
        "        parts = [(part, entry.number) for entry in new for part in entry.call.parts]\n",
        "fsynced",
        ("redis killed", "redis stopped", "redis stopped and killed"),
    ),
    Mutation(
        "what has changed is forgotten before the commit",
        "checkpointer.py",
        "            self._copy(conn, checkpoint, waiting, cut, deadline, limit)\n"
        "        self._forget_keys(cut, checkpoint)\n",
        "            self._copy(conn, checkpoint, waiting, cut, deadline, limit)\n"
        "            self._forget_keys(cut, checkpoint)\n",
        "fsynced",
        _CHECKPOINTS,
    ),
)


class MutationError(Exception):
    """A bug that can't be planted; `str()` says why."""


@contextmanager
def planted(mutation: Mutation) -> Iterator[Path]:
    """A folder with a copy of the server package that has the bug.

    Raises:
        MutationError: its text is not there exactly once, or the copy would not be run.
    """
    folder = Path(tempfile.mkdtemp(prefix="tb-mutation-", dir="/tmp"))
    try:
        shutil.copytree(
            _PACKAGE, folder / _PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__")
        )
        file = folder / _PACKAGE.name / mutation.file
        text = file.read_text() if file.exists() else ""
        if text.count(mutation.old) != 1:
            raise MutationError(
                f"{mutation.file} has the text of '{mutation.name}' {text.count(mutation.old)} "
                "times instead of once: look at the table of mutations"
            )
        file.write_text(text.replace(mutation.old, mutation.new))
        _check_used(folder)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _check_used(folder: Path) -> None:
    """A Python that is told of the folder takes the package from there."""
    path = f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    found = subprocess.run(
        [sys.executable, "-c", "import tallyboard_server as t; print(t.__file__)"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=60,
    )
    if not found.stdout.startswith(str(folder)):
        raise MutationError(f"the copy is not used, but {found.stdout.strip()}")


def caught_by(mutation: Mutation, deadline: float) -> Outcome | None:
    """The first schedule that finds the bug; None when none of those that may be needed does."""
    with planted(mutation) as folder:
        return _first_wrong(mutation, mutation.seeds, deadline, folder)


def _first_wrong(
    mutation: Mutation, seeds: int, deadline: float, folder: Path | None = None
) -> Outcome | None:
    plan = Plan(
        tuple(range(1, seeds + 1)),
        mutation.durability,
        deadline,
        package_path=folder,
        only=mutation.faults,
        ends_at_first=True,
    )
    return next((outcome for outcome in run(plan) if outcome.wrong), None)


def check_mutations(deadline: float) -> int:
    """Plants each bug and prints which schedule finds it, and what it finds without the bug.

    The exit status is 1 if a bug is missed, or found where it is not.
    """
    rows, failed = [], 0
    for mutation in MUTATIONS:
        started = time.time()
        outcome = caught_by(mutation, deadline)
        seconds = f"{time.time() - started:.0f} s"
        if outcome is None:
            failed += 1
            rows.append((mutation.name, "none", "", f"NOT FOUND ({seconds})"))
            continue
        seed = outcome.schedule.seed
        unplanted = _first_wrong(mutation, seed, deadline)
        failed += unplanted is not None
        control = "OK" if unplanted is None else "FAILED"
        how = outcome.wrong[0].splitlines()[0]
        rows.append((mutation.name, str(seed), control, f"{how[:120]} ({seconds})"))
    print(f"\n{'planted bug':<50} {'seed':>5} {'without it':<10}  how it was found")
    for name, number, control, how in rows:
        print(f"{name:<50} {number:>5} {control:<10}  {how}")
    return 1 if failed else 0
