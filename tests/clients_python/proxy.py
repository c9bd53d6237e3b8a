"""A TCP proxy whose connections a test can cut, or leave without a word."""

import contextlib
import socket
import threading
from typing import Self


class CutProxy:
    """Forwards connections to `target` (host:port) until `cut`; a context manager."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.target = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._lock = threading.Lock()  # guards _pairs and cuts
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._swallowing: set[socket.socket] = set()
        self.cuts = 0
        self._threads = [threading.Thread(target=self._accept)]

    def cut(self) -> None:
        """Reset every connection; new ones are accepted."""
        with self._lock:
            pairs, self._pairs = self._pairs, []
            self.cuts += len(pairs)
        for pair in pairs:
            for end in pair:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def swallow(self) -> None:
        """From now on the connections that there are take everything and give nothing."""
        with self._lock:
            for pair in self._pairs:
                self._swallowing.update(pair)

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join(10)
        self.cut()
        for thread in self._threads[1:]:
            thread.join(10)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(self._target, timeout=5)
            except OSError:
                near.close()
                continue
            far.settimeout(None)
            with self._lock:
                self._pairs.append((near, far))
            copies = [
                threading.Thread(target=self._copy, args=ends)
                for ends in ((near, far), (far, near))
            ]
            self._threads += copies
            for thread in copies:
                thread.start()
            # The one who ends last closes both.
            closer = threading.Thread(target=_close, args=(copies, near, far))
            self._threads.append(closer)
            closer.start()

    def _copy(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65_536):
                if source not in self._swallowing:
                    sink.sendall(data)
        except OSError:
            pass
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def _close(copies: list[threading.Thread], *ends: socket.socket) -> None:
    for thread in copies:
        thread.join()
    for end in ends:
        end.close()
