"""Processes of the embedded stores: started, ended, and found again after a crash."""

import contextlib
import importlib.util
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import IO, Final

from tallyboard_server.embedded.errors import EmbeddedError
from tallyboard_server.processes import User, child_setup

STOP_TIMEOUT: Final = 20.0
POLL_INTERVAL: Final = 0.02
_KILL_TIMEOUT: Final = 10.0


def start_process(
    command: list[str], folder: Path, output: IO[bytes], user: User | None, parent_death: int
) -> subprocess.Popen[bytes]:
    """Start a child in a session of its own, so that Ctrl-C does not reach it, as `user`."""
    return subprocess.Popen(
        command,
        cwd=folder,
        # Passwords in this process' environment are none of its business.
        env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"},
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=child_setup(parent_death, user),
    )


def end_process(process: subprocess.Popen[bytes], how: signal.Signals, timeout: float) -> None:
    """Ask a child to end, wait `timeout` seconds, then kill it."""
    if process.poll() is not None:
        return
    process.send_signal(how)
    try:
        process.wait(timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(_KILL_TIMEOUT)


def stop_leftover(folder: Path, pid_file: str, how: signal.Signals, title: str) -> None:
    """Stop a server that a dead parent left on the folder; drop a pid file that names none."""
    pid: int | None
    try:
        pid = int((folder / pid_file).read_text().splitlines()[0])
    except OSError:
        return
    except (ValueError, IndexError):
        pid = None  # it was killed before it had written its number
    if pid is None or not _works_in(pid, folder):
        (folder / pid_file).unlink(missing_ok=True)
        return
    for attempt, timeout in ((how, STOP_TIMEOUT), (signal.SIGKILL, _KILL_TIMEOUT)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, attempt)
        deadline = time.monotonic() + timeout
        while _works_in(pid, folder) and time.monotonic() < deadline:
            time.sleep(POLL_INTERVAL)
    if _works_in(pid, folder):
        raise EmbeddedError(f"A {title} (process {pid}) holds {folder} and does not end.")


def _works_in(pid: int, folder: Path) -> bool:
    """Whether the process runs with that folder as its working directory, as both servers do."""
    try:
        return os.path.samefile(f"/proc/{pid}/cwd", folder)
    except OSError:
        return False


def package_folder(package: str) -> Path | None:
    """The folder of an installed package, which is not imported."""
    found = importlib.util.find_spec(package)
    return Path(found.origin).parent if found is not None and found.origin else None
