"""A way to Postgres on which commits get lost: before they arrive, or their answers."""

import shutil
import socket
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, Self
from urllib.parse import parse_qs, urlsplit

_NAME: Final = ".s.PGSQL.5432"
_COMMIT: Final = b"COMMIT\0"
_CHUNK: Final = 1 << 16
_PATIENCE: Final = 20.0


class LossyPostgres:
    """Passes on to the unix socket of a Postgres; a context manager.

    Attributes:
        lose_answers: of so many commits the answer is lost, and the connection with it.
        lose_commits: of so many commits nothing arrives, and the connection is lost.
        cut_behind: behind the answers to so many commits the connection is lost.
        refuse: no new connections are taken.
        flows: while it is not set, nothing passes to Postgres.
        lost: how many were lost.
        after_loss: called once an answer is lost, before the connection ends.
    """

    def __init__(self, url: str) -> None:
        (folder,) = parse_qs(urlsplit(url).query)["host"]
        self._target = f"{folder}/{_NAME}"
        self._folder = Path(tempfile.mkdtemp(prefix="tb-", dir="/tmp"))
        self.url = url.replace(f"host={folder}", f"host={self._folder}")
        self.lose_answers = 0
        self.lose_commits = 0
        self.cut_behind = 0
        self.refuse = False
        self.flows = threading.Event()
        self.flows.set()
        self.lost = 0
        self.after_loss: Callable[[], object] = lambda: None
        self._closing = threading.Event()
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self._folder / _NAME))
        self._listener.listen()
        self._listener.settimeout(0.1)
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self.cut()
        for thread in self._threads:
            thread.join(_PATIENCE)
        self._listener.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def cut(self) -> None:
        """Ends every connection that there is now."""
        sockets, self._sockets = self._sockets, []
        for sock in sockets:
            _end(sock)

    def _start(self, target: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._closing.is_set():
            with suppress(TimeoutError):
                client, _ = self._listener.accept()
                if self.refuse:
                    client.close()
                    continue
                server = socket.socket(socket.AF_UNIX)
                server.connect(self._target)
                self._sockets += [client, server]
                self._start(self._pass, client, server)

    def _pass(self, client: socket.socket, server: socket.socket) -> None:
        """Both ways on one thread would wait for the wrong one: answers have their own."""
        losing, passed = threading.Event(), threading.Event()
        answers = threading.Thread(
            target=_answers, args=(server, client, losing, passed), daemon=True
        )
        answers.start()
        with suppress(OSError):
            while data := client.recv(_CHUNK):
                while not self.flows.wait(0.1) and not self._closing.is_set():
                    pass
                if _COMMIT in data and self.lose_commits:
                    self.lose_commits -= 1
                    self.lost += 1
                    break
                if _COMMIT in data and self.lose_answers:
                    self.lose_answers -= 1
                    losing.set()
                    server.sendall(data)
                    answers.join(_PATIENCE)
                    self.lost += 1
                    self.after_loss()
                    break
                passed.clear()
                server.sendall(data)
                if _COMMIT in data and self.cut_behind:
                    self.cut_behind -= 1
                    passed.wait(_PATIENCE)
                    break
        _end(client)
        _end(server)
        answers.join(_PATIENCE)
        client.close()
        server.close()


def _answers(
    server: socket.socket,
    client: socket.socket,
    losing: threading.Event,
    passed: threading.Event,
) -> None:
    with suppress(OSError):
        while data := server.recv(_CHUNK):
            if losing.is_set():
                return
            client.sendall(data)
            passed.set()
    _end(client)


def _end(sock: socket.socket) -> None:
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
