"""A TCP proxy between the service and a store that loses, delays and cuts up what passes.

What it does is set by the test while it runs, and read anew for each chunk of bytes.
"""

import select
import socket
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Final, Self

MAX_CONNECTIONS: Final = 64
_CHUNK: Final = 1 << 16
_TICK: Final = 0.1
_SOCKET_TIMEOUT: Final = 30.0
_CONNECT_TIMEOUT: Final = 2.0


@dataclass(frozen=True)
class Faults:
    """What the proxy does to connections; all of it off by default.

    Attributes:
        lose_reply_every: of so many writes one is run by the store, and its connection ends before
            the reply comes back.
        lose_request_every: of so many writes one ends its connection before the store gets it.
        hold_every: of so many writes one ends the service's connection and is kept, to reach
            the store only when `deliver_held` is called.
        cut_after: a connection ends when the store has got so many bytes of requests; 0 for never.
        piece: bytes that are sent at once, both ways; 0 for no limit.
        delay: seconds that every chunk waits, both ways.
        mute: the store runs what is asked, and its replies never come back.
        black_hole: connections are accepted, and nothing passes either way.
    """

    lose_reply_every: int = 0
    lose_request_every: int = 0
    hold_every: int = 0
    cut_after: int = 0
    piece: int = 0
    delay: float = 0.0
    mute: bool = False
    black_hole: bool = False


def together(several: Iterable[Faults]) -> Faults:
    """All of them at once; of each kind the one with the greatest number."""
    found = tuple(several)
    if not found:
        return Faults()
    strongest = {f.name: max(getattr(each, f.name) for each in found) for f in fields(Faults)}
    return Faults(**strongest)


class Proxy:
    """Listens on a port of its own and passes on to a Redis.

    Args:
        target: where the store is: a port of 127.0.0.1, or the path of a unix socket.

    Attributes:
        writes: only requests that hold this are cut or held: calls of scripts that write.
        faults: what to do; set it at any time.
        lost_replies, lost_requests, held: how often it was done.
    """

    writes = b"EVALSHA"

    def __init__(self, target: int | Path) -> None:
        self.faults = Faults()
        self.lost_replies = 0
        self.lost_requests = 0
        self.held = 0
        self._target = target
        self._requests = 0
        self._lock = threading.Lock()  # guards all of these
        self._connections: set[_Connection] = set()
        self._waiting: list[tuple[socket.socket, bytes]] = []
        self._closing = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(_TICK)
        self._thread = threading.Thread(target=self._accept, name="proxy", daemon=True)

    @property
    def url(self) -> str:
        """What the service is told to use as its Redis."""
        return f"redis://127.0.0.1:{self.port}"

    @property
    def port(self) -> int:
        """The port of 127.0.0.1 that it listens on."""
        return int(self._listener.getsockname()[1])

    def cut(self) -> None:
        """End every connection that there is now."""
        for connection in self._all():
            connection.end()

    def deliver_held(self) -> int:
        """Let the store run the requests that were held, each on its old connection; how many."""
        with self._lock:
            waiting, self._waiting = self._waiting, []
        for upstream, data in waiting:
            with suppress(OSError):
                upstream.sendall(data)
                upstream.recv(_CHUNK)
            upstream.close()
        return len(waiting)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closing.set()
        self._thread.join()
        self._listener.close()
        for connection in self._all():
            connection.end()
            connection.join()
        with self._lock:
            for upstream, _ in self._waiting:
                upstream.close()

    def _all(self) -> "list[_Connection]":
        with self._lock:
            return list(self._connections)

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                client, _ = self._listener.accept()
            except TimeoutError:
                continue
            try:
                upstream = self._connect()
            except OSError:
                client.close()  # as the service would see it without a proxy
                continue
            with self._lock:
                if len(self._connections) >= MAX_CONNECTIONS:
                    client.close()
                    upstream.close()
                    continue
                connection = _Connection(self, client, upstream)
                self._connections.add(connection)
            connection.start()

    def _connect(self) -> socket.socket:
        if isinstance(self._target, int):
            return socket.create_connection(("127.0.0.1", self._target), _CONNECT_TIMEOUT)
        upstream = socket.socket(socket.AF_UNIX)
        try:
            upstream.settimeout(_CONNECT_TIMEOUT)
            upstream.connect(str(self._target))
        except OSError:
            upstream.close()
            raise
        return upstream

    def wait(self, seconds: float) -> None:
        """Wait, but not past the end of the proxy."""
        if seconds:
            self._closing.wait(seconds)

    def verdict(self, data: bytes) -> str:
        """What becomes of a request: "pass", "lose reply", "lose request" or "hold"."""
        faults = self.faults
        if self.writes not in data:
            return "pass"
        with self._lock:
            self._requests += 1
            if faults.lose_reply_every and self._requests % faults.lose_reply_every == 0:
                return "lose reply"
            if faults.lose_request_every and self._requests % faults.lose_request_every == 0:
                self.lost_requests += 1
                return "lose request"
            if faults.hold_every and self._requests % faults.hold_every == 0:
                self.held += 1
                return "hold"
        return "pass"

    def hold(self, upstream: socket.socket, data: bytes) -> None:
        """Keep a request and the connection that it goes to."""
        with self._lock:
            self._waiting.append((upstream, data))

    def reply_lost(self) -> None:
        """Count a reply that did not come back."""
        with self._lock:
            self.lost_replies += 1

    def forget(self, connection: "_Connection") -> None:
        """The connection is over."""
        with self._lock:
            self._connections.discard(connection)


class PostgresProxy(Proxy):
    """The same in front of a Postgres; what is cut or held are commits.

    Args:
        socket_folder: the folder of the unix socket that it listens on.
    """

    writes = b"COMMIT"

    def __init__(self, socket_folder: Path) -> None:
        super().__init__(socket_folder / ".s.PGSQL.5432")

    @property
    def url(self) -> str:
        """What the service is told to use as its Postgres."""
        # Without encryption nobody asks for it first, which would cost a round trip or two.
        return (
            f"postgresql://tallyboard@127.0.0.1:{self.port}/tallyboard"
            "?sslmode=disable&gssencmode=disable"
        )


class _Connection:
    """One connection of the service: a thread each way; the first to end ends the other."""

    def __init__(self, proxy: Proxy, client: socket.socket, upstream: socket.socket) -> None:
        self._proxy = proxy
        self._client = client
        self._upstream = upstream
        self._swallow = False
        self._held = False
        self._written = 0
        for sock in (client, upstream):
            sock.settimeout(_SOCKET_TIMEOUT)
            if sock.family != socket.AF_UNIX:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._threads = [
            threading.Thread(target=self._run, args=(pump,), name="proxy-pump", daemon=True)
            for pump in (self._requests, self._replies)
        ]
        self._left = len(self._threads)
        self._lock = threading.Lock()  # guards _left

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        for thread in self._threads:
            thread.join()

    def end(self) -> None:
        """Ends both sides; the threads notice."""
        for sock in (self._client,) if self._held else (self._client, self._upstream):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def _run(self, pump: Callable[[], None]) -> None:
        with suppress(OSError):
            pump()
        self.end()
        with self._lock:
            self._left -= 1
            if self._left:
                return
        self._client.close()
        if not self._held:
            self._upstream.close()
        self._proxy.forget(self)

    def _requests(self) -> None:
        proxy = self._proxy
        while data := self._client.recv(_CHUNK):
            if proxy.faults.black_hole:
                continue
            verdict = proxy.verdict(data)
            if verdict == "lose request":
                return
            if verdict == "hold":
                self._held = True
                self._upstream.settimeout(2.0)
                proxy.hold(self._upstream, data)
                return
            if verdict == "lose reply":
                self._swallow = True
            if self._is_cut(data):
                return
            self._pass(data, self._upstream)

    def _is_cut(self, data: bytes) -> bool:
        """Passes on only the start of what goes too far, counted from the first write."""
        most = self._proxy.faults.cut_after
        if most and (self._written or self._proxy.writes in data):
            left, self._written = most - self._written, self._written + len(data)
            if len(data) > left:
                self._pass(data[:left], self._upstream)
                return True
        return False

    def _replies(self) -> None:
        proxy = self._proxy
        while data := self._receive_reply():
            if self._swallow:
                proxy.reply_lost()
                return
            if not (proxy.faults.black_hole or proxy.faults.mute):
                self._pass(data, self._client)

    def _receive_reply(self) -> bytes:
        """The next bytes from the store; empty when either side is over."""
        while not self._held and self._threads[0].is_alive():
            readable, _, _ = select.select([self._upstream], [], [], _TICK)
            if readable and not self._held:
                return self._upstream.recv(_CHUNK)
        return b""

    def _pass(self, data: bytes, to: socket.socket) -> None:
        faults = self._proxy.faults
        self._proxy.wait(faults.delay)
        size = faults.piece or len(data)
        for start in range(0, len(data), size):
            to.sendall(data[start : start + size])
