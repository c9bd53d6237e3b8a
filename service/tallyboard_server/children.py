"""Child processes that the supervisor keeps: our own workers and keeper, and when to restart them.

Everything here belongs to the supervisor's main thread.
"""

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Final, Protocol

from tallyboard_server.processes import child_setup

READY: Final = b"ready\n"
FIRST_DELAY: Final = 0.1
LONGEST_DELAY: Final = 5.0
STEADY_AFTER: Final = 30.0


class Kept(Protocol):
    """A process that can be started again: an embedded store or a `PythonChild`."""

    @property
    def pid(self) -> int | None:
        """The process id, or None when it is down."""

    def spawn(self) -> None:
        """Start it and return at once."""

    def poll(self) -> int | None:
        """The exit status, or None while it runs."""

    def kill(self) -> None:
        """End it at once."""


class Restarts:
    """Decides when something that died is started again: 0.1 s later, then 0.2 s, up to 5 s.

    Having lived for 30 s starts over at 0.1 s. Times are those of `time.monotonic()`.
    """

    def __init__(self) -> None:
        self._delay = FIRST_DELAY
        self._started = 0.0

    def started(self, now: float) -> None:
        """It was started at `now`."""
        self._started = now

    def after_death(self, now: float) -> float:
        """The seconds to wait after it died at `now`."""
        if now - self._started >= STEADY_AFTER:
            self._delay = FIRST_DELAY
        delay = self._delay
        self._delay = min(delay * 2, LONGEST_DELAY)
        return delay


class PythonChild:
    """A process of this service, such as a worker; it says on a pipe that it serves."""

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self.name = name
        self._command = list(command)
        self._environment = dict(environment)
        self._process: subprocess.Popen[bytes] | None = None
        self._ready_pipe: int | None = None
        self._heard = b""

    @property
    def pid(self) -> int | None:
        """The process id, or None when it is down."""
        if self._process is None or self._process.poll() is not None:
            return None
        return self._process.pid

    @property
    def last_pid(self) -> int | None:
        """The process id that it has or had last."""
        return None if self._process is None else self._process.pid

    def spawn(self) -> None:
        """Start the process; it gets the number of its ready pipe as `--ready-fd`."""
        self._close_pipe()
        self._heard = b""
        reader, writer = os.pipe()
        try:
            os.set_blocking(reader, False)
            self._process = subprocess.Popen(
                [*self._command, "--ready-fd", str(writer)],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                pass_fds=[writer],
                # A session of its own: Ctrl-C is for the supervisor, which stops it in order.
                start_new_session=True,
                preexec_fn=child_setup(signal.SIGTERM),
            )
        except BaseException:
            os.close(reader)
            raise
        finally:
            os.close(writer)
        self._ready_pipe = reader

    def poll(self) -> int | None:
        """The exit status, or None while it runs."""
        return None if self._process is None else self._process.poll()

    @property
    def ready(self) -> bool:
        """Whether it said that it serves."""
        if self._ready_pipe is not None:
            with suppress(BlockingIOError):
                chunk = os.read(self._ready_pipe, len(READY))
                self._heard += chunk
                if not chunk or READY in self._heard:
                    self._close_pipe()
        return READY in self._heard

    def terminate(self) -> None:
        """Ask it to drain and end."""
        if self._process is not None:
            self._process.terminate()

    def wait(self, deadline: float) -> bool:
        """Wait until it has ended, at most to `deadline` on the monotonic clock; False if late."""
        if self._process is None:
            return True
        try:
            self._process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            return False
        return True

    def kill(self) -> None:
        """End it at once, and wait for that."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10.0)
        self._close_pipe()

    def _close_pipe(self) -> None:
        if self._ready_pipe is not None:
            os.close(self._ready_pipe)
            self._ready_pipe = None
