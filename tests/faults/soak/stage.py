"""What a schedule acts on: the stores, a proxy before each, and a service that starts again.

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
from tests.faults.soak.staged_redis import StagedRedis
from tests.postgres.node import PostgresNode
from tests.redis.cluster import RedisCluster
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


class Stage:
    """A service on stores of its own; a context manager, for the main thread only.

    Args:
        durability: of the service.
        package_path: see RunningService.
        has_lines: whether the service reaches its stores through the proxies.
        masters: nodes of a Redis Cluster; 1 for a server that is no cluster.
        instances: of the service, which share the stores.
        settings: of the service, beside those that all stages share.

    Attributes:
        durability: of the service.
        folder: data and logs of the stores, removed at the end unless `keep` is set.
        nodes: the Redis, or the masters of the cluster.
        postgres, postgres_line, service: what else it consists of.
        others: more instances of the service, with one worker each.
        problems: what must not happen, whatever the schedule does.
    """

    def __init__(
        self,
        durability: str,
        *,
        package_path: Path | None = None,
        has_lines: bool = True,
        masters: int = 1,
        instances: int = 1,
        **settings: object,
    ) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="tb-soak-", dir="/tmp"))
        self.folder.chmod(0o755)  # below root, Postgres runs as another user
        self.durability = durability
        self.keep = False
        self.problems: list[str] = []
        self._cluster = RedisCluster(self.folder, masters) if masters > 1 else None
        self.nodes = self._make_nodes(has_lines)
        self.postgres = PostgresNode(self.folder)
        self.postgres_line = PostgresProxy(self.postgres.socket_folder)
        values = {
            **_SETTINGS,
            "durability": durability,
            "redis_url": self._redis_url(has_lines),
            "postgres_url": self.postgres_line.url if has_lines else self.postgres.url,
            **settings,
        }
        self.service = RunningService(self.folder, package_path=package_path, **values)
        self.others = [
            RunningService(package_path=package_path, **{**values, "workers": 1})
            for _ in range(instances - 1)
        ]
        lines = [self.postgres_line, *(node.line for node in self.nodes)]
        self._lines: dict[Proxy, list[Faults]] = {line: [] for line in lines}
        self._up = {"postgres": True, "service": True}
        self._service_spawned = 0.0
        self._asked_to_end = 0.0

    @property
    def target(self) -> str:
        """Where clients call."""
        return self.service.target

    @property
    def targets(self) -> list[str]:
        """Where clients may call: all instances."""
        return [service.target for service in (self.service, *self.others)]

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.callback(self._remove)
            for node in self.nodes:
                stack.enter_context(node.line)
            if self._cluster is not None:
                stack.enter_context(self._cluster)
            else:
                self.redis.start()
                stack.callback(self.redis.stop)
            self.postgres.start()
            stack.callback(self.postgres.stop)
            stack.enter_context(self.postgres_line)
            stack.callback(self._close_service)
            self.service.start()
            for other in self.others:
                stack.callback(other.close)
                other.start()
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

    @property
    def redis(self) -> RedisNode:
        """The Redis, or the first master."""
        return self.nodes[0].node

    def node(self, which: int) -> StagedRedis:
        """The node that a number stands for."""
        return self.nodes[which % len(self.nodes)]

    def _make_nodes(self, has_lines: bool) -> list[StagedRedis]:
        if self._cluster is None:
            node = RedisNode(self.folder)
            return [StagedRedis(node, Proxy(node.port))]
        nodes = [StagedRedis(node, Proxy(node.port)) for node in self._cluster.masters]
        if has_lines:
            # Clients go where the nodes say that they are.
            for node in nodes:
                self._cluster.announce(node.node, node.line.port)
        return nodes

    def _redis_url(self, has_lines: bool) -> str:
        ports = [node.line.port if has_lines else node.node.port for node in self.nodes]
        return "redis://" + ",".join(f"127.0.0.1:{port}" for port in ports)

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

    def signal_child(self, name: str, number: signal.Signals, which: int = 0) -> int | None:
        """Send a signal to a worker or the keeper; its process id, None when it is down.

        Args:
            which: stands for one of the instances.
        """
        services = (self.service, *self.others)
        service = services[which % len(services)]
        if service is not self.service and name.startswith("worker"):
            name = "worker-0"  # the others have no more
        if service.has_ended:
            return None
        with suppress(psutil.NoSuchProcess, ProcessLookupError):
            pid = service.pid(name)
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
        stores = [("postgres", self.postgres, self._up["postgres"])]
        stores += [("redis", each.node, each.is_up) for each in self.nodes]
        for name, store, is_up in stores:
            if is_up and store.pid is None:
                self.problems.append(f"{name} ended by itself; its log is in {self.folder}")
                with suppress(EmbeddedError):
                    store.spawn()
        paused = time.monotonic() - self._service_spawned > _RESTART_PAUSE
        if self._up["service"] and paused and self.service.has_ended:
            self._spawn_service()
        for other in self.others:
            if other.has_ended:
                other.spawn()

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
