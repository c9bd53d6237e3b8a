"""A load generator for calls that differ from each other, which h2load can't make.

A program: `python -m tests.benchmarks.frames ADDRESS PATH KIND NAME SEED CALLS CONNECTIONS STREAMS`
makes calls with messages of that kind (see messages.py) and prints JSON: the seconds, how many
ended with grpc-status 0, and the middle one of their durations. It writes HTTP/2 frames itself,
with all messages made beforehand and no header compression, so that it costs a tenth of a gRPC
client and leaves the core to the server.
"""

import json
import selectors
import socket
import struct
import sys
import time
from statistics import median

from tests.benchmarks.messages import messages

_DATA, _HEADERS, _RST, _SETTINGS, _PING, _GOAWAY, _WINDOW = 0, 1, 3, 4, 6, 7, 8
_END_STREAM, _END_HEADERS, _ACK = 1, 4, 1
_FIRST_WINDOW = 65_535
_TIMEOUT = 30.0
_OK = b"grpc-status\x010"


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def _literal(name: str, value: str) -> bytes:
    """A header field that is never put into the other side's table."""
    return b"".join([b"\0", *(bytes([len(text)]) + text.encode() for text in (name, value))])


def _preface() -> bytes:
    no_table = struct.pack(">HI", 1, 0)
    all_window = struct.pack(">I", (1 << 31) - 1 - _FIRST_WINDOW)
    hello = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    return hello + _frame(_SETTINGS, 0, 0, no_table) + _frame(_WINDOW, 0, 0, all_window)


class Connection:
    """One HTTP/2 connection with a share of the calls.

    Args:
        messages: the framed messages, one a call; taken from the end.
        streams: calls under way at a time.
    """

    def __init__(self, address: str, path: str, messages: list[bytes], streams: int) -> None:
        host, _, port = address.rpartition(":")
        self.socket = socket.create_connection((host, int(port)), _TIMEOUT)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        fields = {
            ":method": "POST",
            ":scheme": "http",
            ":path": path,
            ":authority": address,
            "te": "trailers",
            "content-type": "application/grpc",
        }
        self._fields = b"".join(_literal(*field) for field in fields.items())
        self._messages = messages
        self._free = streams
        self._next = 1
        self._credit = _FIRST_WINDOW
        self._received = b""
        self._out = [_preface()]
        self._started: dict[int, float] = {}
        self.left = len(messages)
        self.ok = 0
        self.durations: list[float] = []

    def send(self) -> None:
        """Starts as many calls as there is room for."""
        out, messages = self._out, self._messages
        while self._free and messages and self._credit >= len(messages[-1]):
            message = messages.pop()
            out.append(_frame(_HEADERS, _END_HEADERS, self._next, self._fields))
            out.append(_frame(_DATA, _END_STREAM, self._next, message))
            self._started[self._next] = time.perf_counter()
            self._next += 2
            self._free -= 1
            self._credit -= len(message)
        if out:
            self.socket.sendall(b"".join(out))
            out.clear()

    def receive(self) -> None:
        """Reads what has come and counts the calls that ended."""
        data = self.socket.recv(1 << 16)
        if not data:
            raise ConnectionError("the server closed the connection")
        data = self._received + data
        at, size = 0, len(data)
        while size - at >= 9:
            end = at + 9 + int.from_bytes(data[at : at + 3], "big")
            if end > size:
                break
            stream = int.from_bytes(data[at + 5 : at + 9], "big")
            self._take(data[at + 3], data[at + 4], stream, data[at + 9 : end])
            at = end
        self._received = data[at:]

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == _HEADERS and flags & _END_STREAM:
            self.durations.append(time.perf_counter() - self._started.pop(stream))
            self.ok += _OK in payload
            self.left -= 1
            self._free += 1
        elif kind == _WINDOW and stream == 0:
            # A stream's own window is never used up by a message this small.
            self._credit += int.from_bytes(payload, "big")
        elif kind in (_SETTINGS, _PING) and not flags & _ACK:
            self._out.append(_frame(kind, _ACK, 0, payload if kind == _PING else b""))
        elif kind in (_RST, _GOAWAY):
            raise ConnectionError(f"the server broke off: frame {kind}, {payload!r}")


def drive(connections: list[Connection]) -> None:
    """Makes all calls of all connections."""
    with selectors.DefaultSelector() as selector:
        for connection in connections:
            selector.register(connection.socket, selectors.EVENT_READ, connection)
            connection.send()
        while any(connection.left for connection in connections):
            events = selector.select(_TIMEOUT)
            if not events:
                raise TimeoutError(f"no answer within {_TIMEOUT:g} s")
            for key, _ in events:
                key.data.receive()
                key.data.send()


def main() -> None:
    """Prepares the messages, makes the calls, and prints what came of them."""
    address, path, kind, name = sys.argv[1:5]
    seed, calls, count, streams = map(int, sys.argv[5:9])
    made = messages(kind, name, seed, calls)
    connections = [Connection(address, path, made[index::count], streams) for index in range(count)]
    started, cpu = time.monotonic(), time.process_time()
    drive(connections)
    seconds, cpu = time.monotonic() - started, time.process_time() - cpu
    ok = sum(connection.ok for connection in connections)
    p50 = median(took for connection in connections for took in connection.durations)
    print(json.dumps({"seconds": seconds, "cpu": cpu, "ok": ok, "p50": p50}))


if __name__ == "__main__":
    main()
