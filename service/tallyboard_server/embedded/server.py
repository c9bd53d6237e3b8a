"""What the embedded stores share: their life as a child process."""

import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import time
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from tallyboard_server.embedded.children import (
    POLL_INTERVAL,
    STOP_TIMEOUT,
    end_process,
    start_process,
    stop_leftover,
)
from tallyboard_server.embedded.errors import EmbeddedError
from tallyboard_server.processes import User

START_TIMEOUT: Final = 60.0
# The kernel's limit is 107; Postgres writes `.s.PGSQL.5432` behind the folder's name.
_MAX_SOCKET_PATH: Final = 99
_LOG_TAIL_LINES: Final = 15
_MAX_KEPT_LOG_BYTES: Final = 4 * 1024 * 1024


class EmbeddedServer(ABC):
    """One store as a child process: `start`, use its `url`, `stop`; or a `with` block.

    Start it from a thread that lives as long as the server should (the main thread): the kernel
    ends the server together with that thread. Not safe to share between threads.
    """

    #: What people call it.
    title: str
    #: Asks for a clean stop; also what the kernel sends when the parent is gone.
    stop_signal: signal.Signals
    #: Ends it at once, its children too.
    kill_signal = signal.SIGKILL
    _pid_file: str
    _socket_file: str

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    @property
    @abstractmethod
    def url(self) -> str:
        """Where clients connect, as the settings `redis_url` and `postgres_url` take it."""

    @property
    def pid(self) -> int | None:
        """The process id of the running child, or None."""
        if self._process is None or self._process.poll() is not None:
            return None
        return self._process.pid

    def poll(self) -> int | None:
        """The exit status of the child that was spawned last, or None while it runs."""
        return None if self._process is None else self._process.poll()

    def start(self, timeout: float = START_TIMEOUT) -> None:
        """Start the server and wait until it answers, at most `timeout` seconds.

        Raises EmbeddedError, with the end of the server's log, when it does not.
        """
        self.spawn()
        try:
            self.wait_ready(timeout)
        except BaseException:
            self.stop(timeout=2.0)
            raise

    def prepare(self) -> None:
        """Make what the server needs, and stop a leftover one on the same folder.

        `spawn` does it where it is still to do. Called before, it is what takes the time, and an
        exception that a signal raises in it leaves no process behind.
        """
        self._prepare()
        stop_leftover(self.folder, self._pid_file, self.stop_signal, self.title)

    def spawn(self) -> None:
        """Start the server without waiting until it answers."""
        if self.pid is not None:
            raise EmbeddedError(f"The embedded {self.title} runs already.")
        self.prepare()
        log = self._log_path
        if log.exists() and log.stat().st_size > _MAX_KEPT_LOG_BYTES:
            log.unlink()
        with open(log, "ab") as output:
            self._process = start_process(
                self._command(), self.folder, output, self._user(), self.stop_signal
            )

    def wait_ready(self, timeout: float = START_TIMEOUT) -> None:
        """Wait until the spawned server answers; EmbeddedError when it ends or takes too long."""
        assert self._process is not None, "spawn() comes first"
        deadline = time.monotonic() + timeout
        while not self.answers():
            with contextlib.suppress(subprocess.TimeoutExpired):
                status = self._process.wait(POLL_INTERVAL)
                raise EmbeddedError(
                    f"The embedded {self.title} ended with status {status} while starting."
                    + self._log_tail()
                )
            if time.monotonic() > deadline:
                raise EmbeddedError(
                    f"The embedded {self.title} did not answer within {timeout:g} s."
                    + self._log_tail()
                )
        self._became_ready()

    def stop(self, timeout: float = STOP_TIMEOUT) -> None:
        """Stop the server cleanly; after `timeout` seconds kill it. Does nothing if it is down."""
        if self._process is not None:
            end_process(self._process, self.stop_signal, timeout)
            self._process = None
        if self._socket_folder != self.folder:
            shutil.rmtree(self._socket_folder, ignore_errors=True)

    def kill(self) -> None:
        """Kill the server at once, as a crash would."""
        if self._process is not None:
            end_process(self._process, self.kill_signal, 2.0)
            self._process = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @abstractmethod
    def answers(self) -> bool:
        """Whether the server can be used now."""

    @abstractmethod
    def _prepare(self) -> None:
        """Make what the server needs before it starts."""

    @abstractmethod
    def _command(self) -> list[str]:
        """The server's command line."""

    def _became_ready(self) -> None:  # noqa: B027 - most servers need nothing more
        """Make what the server needs once it answers."""

    def _user(self) -> User | None:
        """The user that the server runs as, or None for the one that runs this process."""
        return None

    @property
    def _socket_folder(self) -> Path:
        """Where the socket is: in the data folder, or in a short one when that is too long."""
        if len(os.fsencode(self.folder / self._socket_file)) <= _MAX_SOCKET_PATH:
            return self.folder
        digest = hashlib.sha256(os.fsencode(self.folder)).hexdigest()[:16]
        return Path("/tmp") / f"tallyboard-{os.geteuid()}-{digest}"

    def _make_socket_folder(self) -> None:
        folder = self._socket_folder
        if folder == self.folder:
            return
        user = self._user()
        owner = os.geteuid() if user is None else user.uid
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
            if user is not None:
                os.chown(folder, user.uid, user.gid)
        found = folder.lstat()
        if found.st_uid != owner or found.st_mode & 0o170077 != 0o040000:
            raise EmbeddedError(f"The folder {folder} belongs to somebody else; remove it.")

    @property
    def _log_path(self) -> Path:
        return self.folder.with_name(self.folder.name + ".log")

    def _log_tail(self) -> str:
        with contextlib.suppress(OSError):
            lines = self._log_path.read_text(errors="replace").splitlines()[-_LOG_TAIL_LINES:]
            return f"\nThe end of {self._log_path}:\n" + "\n".join(lines)
        return ""
