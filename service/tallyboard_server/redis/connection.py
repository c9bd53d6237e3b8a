"""One socket to one Redis, spoken to through hiredis: pipelines out, replies in.

The data plane's own connection, because redis-py retries commands by itself: a retry that
nobody asked for would count twice.
"""

import re
import select
import socket
import ssl
import time
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

import hiredis

_PROGRESS = 16_384
_SEND_CHUNK = 1 << 18
_RECEIVE = 1 << 18


class ConnectionLost(Exception):
    """The connection ended; what was sent may or may not have been run."""


class NoAnswer(Exception):
    """Redis accepted or sent nothing for the whole of the timeout."""


class Identity(NamedTuple):
    """A connection as Redis knows it: the server's life, and the client's number in it."""

    run_id: bytes
    client: int


class Connection:
    """A connected, authenticated socket.

    Attributes:
        identity: how Redis knows it; None if Redis does not say.

    Args:
        url: redis://, rediss:// or unix:// with user, password and database as redis-py has them.
        timeout: seconds without any progress after which a call gives up.

    Raises:
        ConnectionLost: Redis refused the connection or the handshake.
        NoAnswer: it did not answer in time.
    """

    def __init__(self, url: str, timeout: float) -> None:
        self._timeout = timeout
        self._reader = hiredis.Reader(protocolError=ConnectionLost)
        self._socket = self._open(url)
        try:
            self._handshake(url)
        except BaseException:
            self.close()
            raise

    def _open(self, url: str) -> socket.socket:
        parts = urlsplit(url)
        try:
            if parts.scheme == "unix":
                return _connect_to_path(unquote(parts.path), self._timeout)
            host, port = parts.hostname or "127.0.0.1", parts.port or 6379
            sock = socket.create_connection((host, port), self._timeout)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if parts.scheme == "rediss":
                sock = ssl.create_default_context().wrap_socket(sock, server_hostname=host)
            return sock
        except TimeoutError as error:
            raise NoAnswer(f"no connection within {self._timeout} s") from error
        except OSError as error:
            raise ConnectionLost(str(error)) from error

    def _handshake(self, url: str) -> None:
        parts = urlsplit(url)
        query = parse_qs(parts.query)
        database = (
            query.get("db", [parts.path.lstrip("/")])[0]
            if parts.scheme != "unix"
            else (query.get("db", ["0"])[0])
        )
        commands: list[tuple[str, ...]] = []
        self.identity: Identity | None = None
        if parts.password:
            user = (unquote(parts.username),) if parts.username else ()
            commands.append(("AUTH", *user, unquote(parts.password)))
        if database and database != "0":
            commands.append(("SELECT", database))
        for reply in self.call(commands):
            if isinstance(reply, hiredis.ReplyError):
                raise ConnectionLost(f"Redis refused the login: {reply}")
        client, info = self.call([("CLIENT", "ID"), ("INFO", "server")])
        found = re.search(rb"^run_id:(\w+)", info, re.M) if isinstance(info, bytes) else None
        if isinstance(client, int) and found:
            self.identity = Identity(found[1], client)

    def wait(self, timeout: float) -> None:
        """Gives each call so many seconds without any progress from now on."""
        self._timeout = timeout
        self._socket.settimeout(timeout)

    def cut_off(self, lost: Identity) -> bool:
        """Makes sure that nothing more arrives by a connection that was given up.

        What is still on its way there would otherwise be run after what is sent again here.

        Returns:
            False if Redis does not allow it.
        """
        if self.identity is None or self.identity.run_id != lost.run_id:
            return self.identity is not None  # another life of Redis knows no old connections
        (reply,) = self.call([("CLIENT", "KILL", "ID", lost.client)])
        return not isinstance(reply, hiredis.ReplyError)

    def call(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Sends commands as one pipeline; error replies come back as hiredis.ReplyError."""
        self.send(b"".join(hiredis.pack_command(command) for command in commands))
        return list(self.receive(len(commands)))

    def check(self) -> None:
        """Looks whether the other end has ended it meanwhile, before anything is sent.

        Raises:
            ConnectionLost: it has; what is sent elsewhere then was certainly not run here.
        """
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        if poll.poll(0) and not isinstance(self._socket, ssl.SSLSocket):
            try:
                if not self._socket.recv(1, socket.MSG_PEEK):
                    raise ConnectionLost("Redis closed the connection")
            except OSError as error:
                raise ConnectionLost(str(error)) from error

    def send(self, data: bytes) -> None:
        """Sends all of it; the timeout starts anew with each `_PROGRESS` bytes that are taken.

        Redis takes bytes only between scripts, and on a busy machine not many at a time; a trickle
        counts as no answer.
        """
        view = memoryview(data)
        marked, since = 0, time.monotonic()
        at = 0
        try:
            while at < len(view):
                at += self._socket.send(view[at : at + _SEND_CHUNK])
                now = time.monotonic()
                if at - marked >= _PROGRESS:
                    marked, since = at, now
                elif now - since > self._timeout and at < len(view):
                    raise TimeoutError
        except TimeoutError as error:
            raise NoAnswer(f"Redis accepted next to nothing for {self._timeout} s") from error
        except OSError as error:
            raise ConnectionLost(str(error)) from error

    def receive(self, count: int) -> Iterable[Any]:
        """The next replies, one by one; the timeout starts anew with each chunk that arrives.

        A trickle of bytes that completes no reply counts as no answer.
        """
        reader, sock = self._reader, self._socket
        silent_since = time.monotonic()
        while count:
            reply = reader.gets()
            if reply is not False:
                count -= 1
                silent_since = time.monotonic()
                yield reply
                continue
            try:
                data = sock.recv(_RECEIVE)
            except TimeoutError as error:
                raise NoAnswer(f"Redis did not answer for {self._timeout} s") from error
            except OSError as error:
                raise ConnectionLost(str(error)) from error
            if not data:
                raise ConnectionLost("Redis closed the connection")
            reader.feed(data)
            if time.monotonic() - silent_since > self._timeout:
                raise NoAnswer(f"Redis did not answer for {self._timeout} s")

    def close(self) -> None:
        """Closes the socket; replies still on their way are lost."""
        self._socket.close()


def _connect_to_path(path: str, timeout: float) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.settimeout(timeout)
        sock.connect(path)
    except OSError:
        sock.close()
        raise
    return sock
