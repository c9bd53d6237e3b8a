"""Runs the service: embedded stores, workers and keeper as children, restarted when they die.

It keeps the order of a start (stores, port, workers, keeper) and of a stop (workers drain, the
keeper checkpoints, the stores end), and serves the metrics of all workers.
"""

import contextlib
import dataclasses
import os
import selectors
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Final

import structlog

from tallyboard_server.banner import print_banner
from tallyboard_server.children import Kept, PythonChild, Restarts
from tallyboard_server.embedded import DataFolderLock, EmbeddedPostgres, EmbeddedRedis
from tallyboard_server.listening import reserve_port
from tallyboard_server.metrics_endpoint import METRICS_VARIABLE, MetricsEndpoint
from tallyboard_server.settings import INHERITED_VARIABLE, Settings
from tallyboard_server.startup import StartupError, check_tls

READY_TIMEOUT: Final = 60.0
#: What a worker gets beyond `drain_timeout` to close its connections.
WORKER_GRACE: Final = 5.0
KEEPER_TIMEOUT: Final = 30.0
_POLL_INTERVAL: Final = 0.02
_STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

_log = structlog.get_logger()


class _Stop(BaseException):
    """Raised by a signal where the supervisor waits for something else."""


class _StopSignals:
    """While entered, the signals that stop the service raise `_Stop` in the main thread.

    Python drops what is raised in a destructor or in a hook of a fork, so `check` raises it again.
    """

    def __init__(self) -> None:
        self._held = False
        self._asked = False

    def __enter__(self) -> "_StopSignals":
        self._previous = {s: signal.signal(s, self._came) for s in _active_signals()}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Start a process inside: `_Stop` is raised at the end of the block, not within it.

        Raised between the fork and the note of who it was, it would leave a process that nobody
        knows.
        """
        self._held = True
        try:
            yield
        finally:
            self._held = False
        self.check()

    def check(self) -> None:
        """Raise `_Stop` if a signal has come."""
        if self._asked:
            raise _Stop

    def _came(self, number: int, frame: FrameType | None) -> None:
        self._asked = True
        if not self._held:
            raise _Stop


@dataclass
class _Watched:
    """One child with what is known about its restarts."""

    name: str
    child: Kept
    restarts: Restarts = field(default_factory=Restarts)
    start_at: float | None = None
    ready_by: float | None = None


class Supervisor:
    """The service of one machine. `run` blocks until it has stopped; call it in the main thread.

    `command` starts a child (`worker` or `keeper` and options are added); `open_stores` prepares
    the stores and raises StartupError when they cannot be used.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        command: Sequence[str] = (sys.executable, "-m", "tallyboard_server"),
        open_stores: Callable[[Settings], object] | None = None,
    ) -> None:
        data_dir = str(Path(settings.data_dir).absolute())
        self._settings = dataclasses.replace(settings, data_dir=data_dir)
        self._command = tuple(command)
        self._open_stores = open_stores or _open_real_stores
        self._stores: list[_Watched] = []
        self._workers: list[_Watched] = []
        self._keepers: list[_Watched] = []
        self._metrics: MetricsEndpoint | None = None
        self._stop_signals = _StopSignals()

    def run(self) -> int:
        """Run until SIGTERM or Ctrl-C; 0 after an orderly stop, 130 after a second Ctrl-C.

        Raises StartupError when the service cannot start; nothing is left running then.
        """
        with contextlib.ExitStack() as cleanup:
            cleanup.enter_context(self._stop_signals)
            try:
                self._start(cleanup)
                print_banner(self._settings, data=self._data())
                self._watch()
            except _Stop:
                pass
            except BaseException:
                self._kill_all()
                raise
            try:
                self._stop()
            except _Stop:
                _log.warning("killed without draining")
                self._kill_all()
                return 130
            except BaseException:
                self._kill_all()
                raise
        return 0

    def _start(self, cleanup: contextlib.ExitStack) -> None:
        settings = self._settings
        check_tls(settings)
        if not (settings.redis_url and settings.postgres_url):
            cleanup.enter_context(DataFolderLock(settings.data_dir))
        holder, listen = reserve_port(settings.listen)
        cleanup.enter_context(holder)
        self._start_stores()
        self._settings = dataclasses.replace(self._settings, listen=listen)
        self._open_stores(self._settings)
        folder = self._make_metrics_folder(cleanup)
        self._metrics = cleanup.enter_context(MetricsEndpoint(settings.metrics_listen, folder))
        self._settings = dataclasses.replace(self._settings, metrics_listen=self._metrics.address)
        self._start_children(folder)

    def _make_metrics_folder(self, cleanup: contextlib.ExitStack) -> Path:
        """An empty folder; in the locked data folder if there is one, so that none is left over."""
        if self._stores:
            folder = Path(self._settings.data_dir) / "metrics"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
        else:
            folder = Path(tempfile.mkdtemp(prefix="tallyboard-metrics-"))
        cleanup.callback(shutil.rmtree, folder, ignore_errors=True)
        return folder

    def _start_stores(self) -> None:
        if not self._settings.redis_url:
            redis = EmbeddedRedis(self._settings.data_dir)
            self._settings = dataclasses.replace(self._settings, redis_url=redis.url)
            self._start_store("redis", redis)
        if not self._settings.postgres_url:
            postgres = EmbeddedPostgres(self._settings.data_dir)
            self._settings = dataclasses.replace(self._settings, postgres_url=postgres.url)
            self._start_store("postgres", postgres)

    def _start_store(self, name: str, store: EmbeddedRedis | EmbeddedPostgres) -> None:
        watched = _Watched(name, store)
        self._stores.append(watched)
        store.prepare()
        with self._stop_signals.held():
            store.spawn()
        store.wait_ready()
        watched.restarts.started(time.monotonic())

    def _start_children(self, metrics_folder: Path) -> None:
        environment = {
            **os.environ,
            INHERITED_VARIABLE: self._settings.to_json(),
            METRICS_VARIABLE: str(metrics_folder),
        }
        for index in range(self._settings.worker_count):
            command = [*self._command, "worker", "--index", str(index)]
            name = f"worker-{index}"
            self._workers.append(_Watched(name, PythonChild(name, command, environment)))
        command = [*self._command, "keeper"]
        self._keepers.append(_Watched("keeper", PythonChild("keeper", command, environment)))
        for watched in self._workers + self._keepers:
            watched.restarts.started(time.monotonic())
            with self._stop_signals.held():
                watched.child.spawn()
        self._wait_for_children()

    def _wait_for_children(self) -> None:
        waiting = [w for w in self._workers + self._keepers if isinstance(w.child, PythonChild)]
        deadline = time.monotonic() + READY_TIMEOUT
        while waiting:
            for watched in list(waiting):
                status = watched.child.poll()
                if status is not None:
                    raise StartupError(
                        f"The process {watched.name} ended with status {status} while starting; "
                        "its reason is in the log."
                    )
                if _is_ready(watched):
                    waiting.remove(watched)
            if waiting and time.monotonic() > deadline:
                names = ", ".join(watched.name for watched in waiting)
                raise StartupError(f"Not ready after {READY_TIMEOUT:g} s: {names}.")
            time.sleep(_POLL_INTERVAL)

    def _watch(self) -> None:
        """Restart what dies, until a signal says stop."""
        with _Wakeups() as wakeups:
            self._stop_signals.check()
            while not wakeups.stop_requested:
                now = time.monotonic()
                for watched in self._everything():
                    self._look_after(watched, now)
                wakeups.wait(self._seconds_to_next(time.monotonic()))

    def _look_after(self, watched: _Watched, now: float) -> None:
        if watched.start_at is not None:
            if now >= watched.start_at:
                watched.start_at = None
                self._spawn(watched)
            return
        status = watched.child.poll()
        if status is not None:
            self._died(watched, status, now)
        elif watched.ready_by is not None and _is_ready(watched):
            watched.ready_by = None
            _log.info("process ready", name=watched.name, pid=watched.child.pid)
        elif watched.ready_by is not None and now > watched.ready_by:
            _log.error("process not ready, killed", name=watched.name, after=READY_TIMEOUT)
            watched.child.kill()

    def _died(self, watched: _Watched, status: int, now: float) -> None:
        delay = watched.restarts.after_death(now)
        watched.start_at = now + delay
        watched.ready_by = None
        _log.error("process died", name=watched.name, status=status, restart_in=delay)
        if self._metrics is not None and isinstance(watched.child, PythonChild):
            self._metrics.forget(watched.child.last_pid)

    def _spawn(self, watched: _Watched) -> None:
        now = time.monotonic()
        watched.restarts.started(now)
        try:
            watched.child.spawn()
        except (OSError, StartupError) as error:
            delay = watched.restarts.after_death(now)
            watched.start_at = now + delay
            _log.error("process not started", name=watched.name, error=str(error), restart_in=delay)
            return
        if isinstance(watched.child, PythonChild):
            watched.ready_by = now + READY_TIMEOUT

    def _seconds_to_next(self, now: float) -> float:
        """How long nothing has to be done unless a child dies or a signal comes."""
        if any(watched.ready_by is not None for watched in self._everything()):
            return _POLL_INTERVAL
        starts = [w.start_at - now for w in self._everything() if w.start_at is not None]
        return max(0.0, min([1.0, *starts]))

    def _stop(self) -> None:
        """Drain the workers, let the keeper write its last checkpoint, end the stores."""
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # Asked already; only Ctrl-C has no patience.
        _log.info("stopping", drain_timeout=self._settings.drain_timeout)
        self._end_children(self._workers, self._settings.drain_timeout + WORKER_GRACE)
        self._end_children(self._keepers, KEEPER_TIMEOUT)
        for watched in reversed(self._stores):
            if isinstance(watched.child, EmbeddedRedis | EmbeddedPostgres):
                watched.child.stop()
        _log.info("stopped")

    def _end_children(self, group: list[_Watched], timeout: float) -> None:
        children = [w.child for w in group if isinstance(w.child, PythonChild)]
        for child in children:
            child.terminate()
        deadline = time.monotonic() + timeout
        for child in children:
            if not child.wait(deadline):
                _log.error("process did not end in time, killed", name=child.name)
                child.kill()

    def _kill_all(self) -> None:
        with contextlib.suppress(_Stop):
            for watched in reversed(self._everything()):
                watched.child.kill()

    def _everything(self) -> list[_Watched]:
        return [*self._stores, *self._workers, *self._keepers]

    def _data(self) -> str:
        embedded = [watched.name for watched in self._stores]
        if not embedded:
            return "in the Redis and Postgres of the settings"
        return f"{self._settings.data_dir} (embedded {' and '.join(embedded)})"


class _Wakeups:
    """Lets the main thread sleep until a child dies, a stop is asked for, or a time is over."""

    def __init__(self) -> None:
        self.stop_requested = False

    def __enter__(self) -> "_Wakeups":
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._reader, selectors.EVENT_READ)
        self._previous = {s: signal.signal(s, self._request_stop) for s in _active_signals()}
        self._previous[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda *_: None)
        self._previous_fd = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(self._previous_fd)
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._selector.close()
        self._reader.close()
        self._writer.close()

    def wait(self, seconds: float) -> None:
        """Sleep until a signal comes, at most `seconds`."""
        if self._selector.select(seconds):
            with contextlib.suppress(BlockingIOError):
                self._reader.recv(4096)

    def _request_stop(self, number: int, frame: FrameType | None) -> None:
        self.stop_requested = True


def _active_signals() -> list[signal.Signals]:
    """The stop signals, less SIGHUP where `nohup` has it ignored."""
    return [
        number
        for number in _STOP_SIGNALS
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN
    ]


def _is_ready(watched: _Watched) -> bool:
    return not isinstance(watched.child, PythonChild) or watched.child.ready


def _open_real_stores(settings: Settings) -> None:
    from tallyboard_server.stores import open_stores

    open_stores(settings)
