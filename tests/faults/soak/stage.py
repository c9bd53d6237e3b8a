"""What a schedule acts on: two stores, a proxy before each, and a service that starts again.

The stage plays the supervisor of the stores, and of the service's supervisor.
"""

import os
import shutil
import signal
import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import psutil
import psycopg

from tallyboard_server.embedded import EmbeddedError
from tests.faults.proxy import Faults, PostgresProxy, Proxy, together
from tests.postgres.node import PostgresNode
from tests.redis.node import RedisNode
from tests.service import RunningService

#: Everything happens more often than it would by default.
_SETTINGS: Final[dict[str, object]] = {
    "workers": 2,
    "redis_timeout": 0.5,
    "checkpoint_interval": 0.4,
    "archive_quiet": 0,
    "drain_timeout": 2,
}
_RESTART_PAUSE: Final = 0.3
_STOP_PATIENCE: Final = 30.0
_OLD_COPY: Final = "redis.old"
_COPY_ATTEMPTS: Final = 5


class Stage:
    """A service on stores of its own; a context manager, for the main thread only.

    Args:
        durability: of the service.
        package_path: see RunningService.
        has_lines: whether the service reaches its stores through the proxies.
        settings: of the service, beside those that all stages share.

    Attributes:
        durability: of the service.
        folder: data and logs of the stores, removed at the end unless `keep` is set.
        redis, postgres, redis_line, postgres_line, service: what it consists of.
        problems: what must not happen, whatever the schedule does.
    """

    def __init__(
        self,
        durability: str,
        *,
        package_path: Path | None = None,
        has_lines: bool = True,
        **settings: object,
    ) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="tb-soak-", dir="/tmp"))
        self.folder.chmod(0o755)  # below root, Postgres runs as another user
        self.durability = durability
        self.keep = False
        self.problems: list[str] = []
        self.redis = RedisNode(self.folder)
        self.postgres = PostgresNode(self.folder)
        self.redis_line = Proxy(self.redis.port)
        self.postgres_line = PostgresProxy(self.postgres.socket_folder)
        self.service = RunningService(
            self.folder,
            package_path=package_path,
            durability=durability,
            redis_url=self.redis_line.url if has_lines else self.redis.url,
            postgres_url=self.postgres_line.url if has_lines else self.postgres.url,
            **{**_SETTINGS, **settings},
        )
        self._lines: dict[Proxy, list[Faults]] = {self.redis_line: [], self.postgres_line: []}
        self._up = {"redis": True, "postgres": True, "service": True}
        self._service_spawned = 0.0
        self._asked_to_end = 0.0

    @property
    def target(self) -> str:
        """Where clients call."""
        return self.service.target

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.callback(self._remove)
            self.redis.start()
            stack.callback(self.redis.stop)
            self.postgres.start()
            stack.callback(self.postgres.stop)
            stack.enter_context(self.redis_line)
            stack.enter_context(self.postgres_line)
            stack.callback(self._close_service)
            self.service.start()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def sql(self, query: str, *arguments: object) -> list[tuple[Any, ...]]:
        """The rows of a query, past the proxy."""
        with psycopg.connect(self.postgres.url, autocommit=True, connect_timeout=5) as conn:
            return conn.execute(query.encode(), arguments).fetchall()

    # The stores.

    def kill_redis(self) -> None:
        """As a crash would."""
        self._up["redis"] = False
        self.redis.kill()

    def start_redis(self) -> None:
        """On the data that there are; does not wait for it."""
        self.redis.spawn()
        self._up["redis"] = True

    def wipe_redis(self) -> None:
        """Kill it and delete its data."""
        self.kill_redis()
        shutil.rmtree(self.redis.folder)

    def copy_redis(self) -> None:
        """Keep its data as they are on the disk now, for `restore_redis`."""
        for _ in range(_COPY_ATTEMPTS):
            shutil.rmtree(self.folder / _OLD_COPY, ignore_errors=True)
            with suppress(OSError, shutil.Error):  # it rewrites a file meanwhile
                ignored = shutil.ignore_patterns("*.sock", "*.pid", "temp-*")
                shutil.copytree(self.redis.folder, self.folder / _OLD_COPY, ignore=ignored)
                return

    def restore_redis(self) -> None:
        """Kill it and put the copy in the place of its data."""
        self.wipe_redis()
        if (self.folder / _OLD_COPY).exists():
            shutil.copytree(self.folder / _OLD_COPY, self.redis.folder)

    def kill_postgres(self) -> None:
        """As a crash of the machine would: all its processes."""
        self._up["postgres"] = False
        self.postgres.crash()

    def start_postgres(self) -> None:
        """On the data that there are; does not wait for it."""
        self.postgres.spawn()
        self._up["postgres"] = True

    # The lines.

    def disturb(self, line: Proxy, faults: Faults) -> None:
        """Add faults to those that the line has."""
        self._lines[line].append(faults)
        line.faults = together(self._lines[line])

    def repair(self, line: Proxy, faults: Faults) -> None:
        """Take them away; what was held on the way arrives now, late."""
        self._lines[line].remove(faults)
        line.faults = together(self._lines[line])
        if faults.black_hole or faults.mute:
            line.cut()
        if faults.hold_every:
            line.deliver_held()

    # The service.

    def signal_child(self, name: str, number: signal.Signals) -> int | None:
        """Send a signal to a worker or the keeper; its process id, None when it is down."""
        if self.service.has_ended:
            return None
        with suppress(psutil.NoSuchProcess, ProcessLookupError):
            pid = self.service.pid(name)
            if pid is not None:
                os.kill(pid, number)
            return pid
        return None

    @staticmethod
    def resume_process(pid: int) -> None:
        """Let a held process go on, if it still lives."""
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)

    def end_service(self, how: signal.Signals) -> None:
        """Ask it to end, or kill it; `keep_up` doesn't start it again before `start_service`."""
        self._up["service"] = False
        self._asked_to_end = time.monotonic()
        self.service.ask_to_end(how)

    def start_service(self) -> bool:
        """Start it as soon as it has ended; False while it has not."""
        if not self.service.has_ended:
            if time.monotonic() > self._asked_to_end + _STOP_PATIENCE:
                self.problems.append(f"the service did not stop within {_STOP_PATIENCE:g} s")
                self.service.kill()
            return False
        self._spawn_service()
        self._up["service"] = True
        return True

    def keep_up(self) -> None:
        """Start again what has ended by itself; for a store that is a problem."""
        for name, store in (("redis", self.redis), ("postgres", self.postgres)):
            if self._up[name] and store.pid is None:
                self.problems.append(f"{name} ended by itself; its log is in {self.folder}")
                with suppress(EmbeddedError):
                    store.spawn()
        paused = time.monotonic() - self._service_spawned > _RESTART_PAUSE
        if self._up["service"] and paused and self.service.has_ended:
            self._spawn_service()

    def _spawn_service(self) -> None:
        self._service_spawned = time.monotonic()
        self.service.spawn()

    def _close_service(self) -> None:
        try:
            self.service.stop()
        finally:
            (self.folder / "service.log").write_text(self.service.errors)
            self.service.close()

    def _remove(self) -> None:
        if not self.keep:
            shutil.rmtree(self.folder, ignore_errors=True)
