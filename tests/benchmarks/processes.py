"""Starts, pins and measures processes: servers that stay and load generators that end."""

import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import NamedTuple, Self

import psutil

from tallyboard_server.listening import reserve_port
from tests.benchmarks.model import Unusable

ROOT = Path(__file__).parents[2]
_PACKAGES = {"h2load": "nghttp2-client", "redis-benchmark": "redis-tools"}
_START_TIMEOUT = 60.0
_STOP_TIMEOUT = 45.0


class Finished(NamedTuple):
    """A program that ended well: what it printed, its CPU seconds and its wall seconds."""

    output: str
    cpu: float
    wall: float


def usable_cores() -> list[int]:
    """The cores that this process may use."""
    return sorted(os.sched_getaffinity(0))


def tool(name: str) -> str:
    """The path of a program that a Debian package brings.

    Raises:
        Unusable: it is not installed.
    """
    found = shutil.which(name)
    if found is None:
        raise Unusable(f"{name} is missing: install the Debian package {_PACKAGES[name]}.")
    return found


def free_address() -> str:
    """An address on the loopback that nobody listens on now."""
    holder, address = reserve_port("127.0.0.1:0")
    holder.close()
    return address


def run(command: Sequence[str], *, core: int | None = None, timeout: float = 120.0) -> Finished:
    """Runs a program to its end, pinned to a core if one is given.

    Raises:
        Unusable: it failed or took longer than `timeout` seconds.
    """
    before, started = _children_cpu(), time.monotonic()
    with _pinned(core):
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise Unusable(f"{Path(command[0]).name} did not end within {timeout:g} s.") from None
    wall = time.monotonic() - started
    if process.returncode != 0:
        name = " ".join([Path(command[0]).name, *command[1:4]])
        raise Unusable(f"{name} ended with status {process.returncode}: {output[-2000:].strip()}")
    return Finished(output, _children_cpu() - before, wall)


def run_module(
    name: str, *arguments: object, core: int | None = None, timeout: float = 120.0
) -> Finished:
    """Runs a module of this package as a program of its own."""
    command = [sys.executable, "-m", f"tests.benchmarks.{name}", *map(str, arguments)]
    return run(command, core=core, timeout=timeout)


class Daemon:
    """A server process that stays for a `with` block.

    Args:
        command: what to start.
        ready: the text in its output that says that it serves.
        core: the core to pin it to, or None.
    """

    def __init__(self, command: Sequence[str], ready: str, core: int | None = None) -> None:
        self._command, self._ready, self._core = list(command), ready, core

    def __enter__(self) -> Self:
        # It ends with this process, whatever ends that.
        bound = [setpriv, "--pdeathsig", "TERM"] if (setpriv := shutil.which("setpriv")) else []
        with (
            tempfile.NamedTemporaryFile("w", prefix="bench-", suffix=".log", delete=False) as log,
            _pinned(self._core),
        ):
            self.log = Path(log.name)
            self._process = subprocess.Popen(
                [*bound, *self._command],
                cwd=ROOT,
                env={k: v for k, v in os.environ.items() if not k.startswith("TALLYBOARD_")},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        return self

    def wait_ready(self) -> None:
        """Waits until it serves.

        Raises:
            Unusable: it ended, or takes too long.
        """
        deadline = time.monotonic() + _START_TIMEOUT
        while self._ready not in self.log.read_text(errors="replace"):
            ended = self._process.poll() is not None
            if ended or time.monotonic() > deadline:
                why = "ended while starting" if ended else "is not ready"
                tail = self.log.read_text(errors="replace")[-2000:]
                raise Unusable(f"A server {why}: {' '.join(self._command[:4])}\n{tail}")
            time.sleep(0.05)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def terminate(self) -> None:
        """Asks it to stop."""
        self._process.terminate()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.terminate()
        try:
            self._process.wait(_STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self.log.unlink(missing_ok=True)


def cpu_of(pids: Iterable[int]) -> float:
    """User and system CPU seconds that these processes have used."""
    total = 0.0
    for pid in pids:
        times = psutil.Process(pid).cpu_times()
        total += times.user + times.system
    return total


def cpu_of_trees(pids: Iterable[int]) -> float:
    """The same of these processes and all below them, those that have ended included."""
    total = 0.0
    for pid in pids:
        process = psutil.Process(pid)
        times = process.cpu_times()
        total += times.user + times.system + times.children_user + times.children_system
        for child in process.children(recursive=True):
            with suppress(psutil.NoSuchProcess):  # it ends meanwhile
                times = child.cpu_times()
                total += times.user + times.system
    return total


def sync_us(folder: Path) -> float:
    """Microseconds that a small write takes to reach the disk, the median of 100."""
    took = []
    with tempfile.NamedTemporaryFile(dir=folder, buffering=0) as file:
        for _ in range(100):
            started = time.perf_counter()
            file.write(bytes(100))
            os.fdatasync(file.fileno())
            took.append(time.perf_counter() - started)
    return median(took) * 1e6


def _children_cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


@contextmanager
def _pinned(core: int | None) -> Iterator[None]:
    """Children started inside keep to the core. No code runs in them between fork and exec, for
    gRPC's threads do not survive a fork."""
    if core is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
