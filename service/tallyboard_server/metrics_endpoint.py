"""The Prometheus endpoint of the supervisor: the metrics of all workers, added up."""

import threading
from pathlib import Path
from typing import Final
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from tallyboard_server.settings import split_address
from tallyboard_server.startup import StartupError

#: Tells prometheus-client in a child where it keeps its values.
METRICS_VARIABLE: Final = "PROMETHEUS_MULTIPROC_DIR"


class MetricsEndpoint:
    """Serves what the workers wrote below `folder` at http://`listen`/metrics; "" serves nothing.

    One thread, which ends with the `with` block. Raises StartupError when the address is in use.
    """

    def __init__(self, listen: str, folder: Path) -> None:
        self._listen = listen
        self._folder = folder
        self._server: WSGIServer | None = None
        self._thread: threading.Thread | None = None

    @property
    def address(self) -> str:
        """Where it serves, as host:port with the real port; empty when it does not."""
        if self._server is None:
            return ""
        return f"{self._listen.rpartition(':')[0]}:{self._server.server_port}"

    def __enter__(self) -> "MetricsEndpoint":
        if self._listen:
            registry = CollectorRegistry()
            MultiProcessCollector(registry, path=str(self._folder))  # type: ignore[no-untyped-call]
            host, port = split_address(self._listen)
            try:
                self._server, self._thread = start_http_server(port, host, registry)
            except OSError as error:
                raise StartupError(
                    f"The metrics cannot be served on {self._listen}: "
                    f"{error.strerror or error}; set another metrics_listen."
                ) from None
        return self

    def __exit__(self, *_: object) -> None:
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join(5.0)
            self._server = self._thread = None

    def forget(self, pid: int | None) -> None:
        """Drop the gauges of a worker that is gone; what it counted stays in the totals."""
        if pid is not None:
            mark_process_dead(pid, path=str(self._folder))  # type: ignore[no-untyped-call]
