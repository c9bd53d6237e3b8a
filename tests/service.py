"""Starts the whole service for a test: supervisor, workers, keeper and embedded stores.

Every service has a free port and, unless told otherwise, a data folder of its own.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import grpc
import psutil
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tallyboard_server.embedded import EmbeddedPostgres, EmbeddedRedis
from tallyboard_server.processes import child_setup
from tests.waiting import wait_for

START_TIMEOUT: Final = 60.0
STOP_TIMEOUT: Final = 60.0
_PREFIX: Final = "TALLYBOARD_"


class RunningService:
    """A service in processes of its own; a context manager that starts and stops it.

    Args:
        data_dir: the folder of the stores, kept after the stop; a temporary one if left out.
        settings: by name, as flags of `serve` take them: `workers=2`, `redis_timeout=0.5`. Without
            `redis_url` and `postgres_url` the stores are embedded. TALLYBOARD_* variables of this
            process have no effect.
        package_path: the folder that holds the server package to run, if not the installed one.
    """

    def __init__(
        self, data_dir: Path | None = None, *, package_path: Path | None = None, **settings: object
    ) -> None:
        self._temporary = Path(tempfile.mkdtemp(prefix="tb-", dir="/tmp"))
        # Below root, Postgres runs as another user, who has to enter the folder.
        self._temporary.chmod(0o755)
        self._output = self._temporary / "output"
        self._errors = self._temporary / "errors"
        self.data_dir = data_dir or self._temporary / "data"
        self.settings: dict[str, object] = {
            "listen": "127.0.0.1:0",
            "metrics_listen": "",
            "data_dir": self.data_dir,
            **settings,
        }
        self.target = ""
        self._package_path = package_path
        self._process: subprocess.Popen[bytes] | None = None
        self._children: list[psutil.Process] = []

    @property
    def redis_url(self) -> str:
        """Where its Redis is."""
        return str(self.settings.get("redis_url") or EmbeddedRedis(self.data_dir).url)

    @property
    def postgres_url(self) -> str:
        """Where its Postgres is."""
        return str(self.settings.get("postgres_url") or EmbeddedPostgres(self.data_dir).url)

    @property
    def errors(self) -> str:
        """What it has logged so far, since it was made."""
        return self._errors.read_text() if self._errors.exists() else ""

    @property
    def supervisor_pid(self) -> int:
        """The process id of the supervisor."""
        assert self._process is not None, "start() comes first"
        return self._process.pid

    @property
    def has_ended(self) -> bool:
        """Whether nothing of it runs: not yet, or not any more."""
        if self._process is not None and self._process.poll() is None:
            return False
        return not psutil.wait_procs(self._children, 0)[1]

    def start(self) -> Self:
        """Start it and wait until it serves. After a stop it comes back on the same port."""
        self.spawn()
        try:
            self.target = wait_for(self._announced, "the service to start", START_TIMEOUT)
        except BaseException:
            self.kill()
            raise
        self.settings["listen"] = self.target
        return self

    def spawn(self) -> None:
        """Start it without waiting for anything; from the main thread only."""
        assert self._process is None or self.has_ended, "it runs already"
        self._children = []
        with self._output.open("wb") as output, self._errors.open("ab") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tallyboard_server", "serve", *_flags(self.settings)],
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
                start_new_session=True,
                preexec_fn=child_setup(signal.SIGTERM),
            )

    def ask_to_end(self, how: signal.Signals = signal.SIGTERM) -> None:
        """Send a signal to the supervisor and wait for nothing; see `has_ended`."""
        if self._process is not None and self._process.poll() is None:
            self._children = psutil.Process(self._process.pid).children()
            self._process.send_signal(how)

    def stop(self) -> None:
        """Stop it in order: the workers drain, the keeper writes its last checkpoint."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Kill the supervisor; everything that it started ends too."""
        self._end(signal.SIGKILL)

    def close(self) -> None:
        """Stop it and remove the temporary folder."""
        try:
            self.stop()
        finally:
            shutil.rmtree(self._temporary, ignore_errors=True)

    def pid(self, name: str) -> int | None:
        """The process id of `redis`, `postgres`, `keeper` or `worker-0`; None while it is down."""
        for child in psutil.Process(self.supervisor_pid).children():
            try:
                if child.status() != psutil.STATUS_ZOMBIE and _name(child.cmdline()) == name:
                    return child.pid
            except psutil.NoSuchProcess:
                continue
        return None

    def kill_child(self, name: str) -> int:
        """Kill a process by its name (see `pid`) with SIGKILL; the process id that it had.

        The supervisor starts it again.
        """
        pid = self._running(name)
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: self.pid(name) != pid, f"{name} to end")
        return pid

    def kill_worker(self, index: int = 0) -> int:
        """Kill a worker with SIGKILL; the process id that it had."""
        return self.kill_child(f"worker-{index}")

    @contextlib.contextmanager
    def paused(self, name: str) -> Iterator[None]:
        """Hold a process (see `pid`) with SIGSTOP while inside: it lives and does nothing."""
        pid = self._running(name)
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    def wait_serving(self, timeout: float = START_TIMEOUT) -> None:
        """Wait until a new connection is answered by a worker that serves."""
        wait_for(self._serves, "the service to answer", timeout)

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _environment(self) -> dict[str, str]:
        environment = {k: v for k, v in os.environ.items() if not k.startswith(_PREFIX)}
        if self._package_path is not None:
            known = environment.get("PYTHONPATH", "")
            environment["PYTHONPATH"] = f"{self._package_path}{os.pathsep}{known}"
        return environment

    def _running(self, name: str) -> int:
        pid = wait_for(lambda: self.pid(name), f"{name} to run")
        assert pid is not None
        return pid

    def _announced(self) -> str:
        assert self._process is not None
        assert self._process.poll() is None, f"it ended while starting:\n{self.errors}"
        _, found, rest = self._output.read_text().partition("listens on ")
        return rest.split()[0] if found and "\n" in rest else ""

    def _serves(self) -> bool:
        # A global subchannel pool would hand out the old connection, and so the old worker.
        options = (("grpc.use_local_subchannel_pool", 1),)
        with grpc.insecure_channel(self.target, options) as channel:
            health: Any = health_pb2_grpc.HealthStub(channel)  # its types lack the calls
            try:
                answer = health.Check(health_pb2.HealthCheckRequest(), timeout=2.0)
            except grpc.RpcError:
                return False
            return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        children = psutil.Process(process.pid).children() if process.poll() is None else []
        process.send_signal(how)
        try:
            process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        psutil.wait_procs(children, STOP_TIMEOUT)


def _flags(settings: Mapping[str, object]) -> list[str]:
    flags = []
    for name, value in settings.items():
        text = str(value).lower() if isinstance(value, bool) else str(value)
        flags += ["--" + name.replace("_", "-"), text]
    return flags


def _name(command: list[str]) -> str:
    """What the child of a supervisor with this command line is called."""
    words = " ".join(command)
    if "redis-server" in words:
        return "redis"
    if "tallyboard_server" not in words:
        return "postgres" if "postgres" in words else ""
    return f"worker-{command[command.index('--index') + 1]}" if "worker" in command else "keeper"
