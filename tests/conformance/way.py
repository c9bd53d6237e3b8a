"""The way between a client and the service, on which answers get lost: at the right moment."""

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Final, Self

_CHUNK: Final = 1 << 16
_TICK: Final = 0.1
_JOIN: Final = 10.0


class Way:
    """A TCP proxy that can hold answers back; a context manager.

    Args:
        target: where the service listens, as `host:port`.
    """

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._closing = threading.Event()
        self._lock = threading.Lock()  # guards all of these
        self._pairs: list[_Pair] = []
        self._mark = b""

    @property
    def target(self) -> str:
        """Where clients connect."""
        host, port = self._listener.getsockname()
        return f"{host}:{port}"

    def hold_behind(self, mark: bytes) -> None:
        """A connection whose client sends these bytes gets no answer to them."""
        with self._lock:
            self._mark = mark

    def cut(self) -> None:
        """Ends all connections, with what was held; from then on all passes again."""
        with self._lock:
            self._mark = b""
            pairs, self._pairs = self._pairs, []
        for pair in pairs:
            pair.end()

    def is_behind_mark(self, data: bytes) -> bool:
        """Whether what a client sends makes it wait."""
        with self._lock:
            return bool(self._mark) and self._mark in data

    def __enter__(self) -> Self:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(_TICK)
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._thread.join(_JOIN)
        self.cut()
        self._listener.close()

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                client, _ = self._listener.accept()
            except TimeoutError:
                continue
            try:
                server = socket.create_connection(self._target, _JOIN)
            except OSError:
                client.close()
                continue
            pair = _Pair(client, server, self.is_behind_mark)
            with self._lock:
                self._pairs.append(pair)
            pair.start()


class _Pair:
    """A client's connection, and the one to the service that belongs to it."""

    def __init__(
        self,
        client: socket.socket,
        server: socket.socket,
        is_behind_mark: Callable[[bytes], bool],
    ) -> None:
        self._client = client
        self._server = server
        self._is_behind_mark = is_behind_mark
        self._is_mute = False
        for sock in (client, server):
            sock.settimeout(None)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def start(self) -> None:
        """Passes on what comes, each way on a thread of its own."""
        for way in (self._requests, self._answers):
            threading.Thread(target=way, daemon=True).start()

    def end(self) -> None:
        """Ends both connections."""
        for sock in (self._client, self._server):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def _requests(self) -> None:
        with suppress(OSError):
            while data := self._client.recv(_CHUNK):
                self._is_mute = self._is_mute or self._is_behind_mark(data)
                self._server.sendall(data)
        self.end()

    def _answers(self) -> None:
        with suppress(OSError):
            while data := self._server.recv(_CHUNK):
                if not self._is_mute:
                    self._client.sendall(data)
        if not self._is_mute:
            self.end()
