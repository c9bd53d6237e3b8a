"""Drives unary gRPC calls with h2load, and reads what it measured from its summary and its log."""

import re
import struct
import tempfile
from pathlib import Path
from typing import NamedTuple

from google.protobuf.message import Message

from tests.benchmarks.model import CheckFailed, Latency, Unusable
from tests.benchmarks.processes import run, tool

_REQUESTS = re.compile(r"(\d+) done, (\d+) succeeded, (\d+) failed, (\d+) errored")
_DATA = re.compile(r"\((\d+)\) data$", re.MULTILINE)
_OPEN_CONNECTIONS = 8
_OPEN_STREAMS = 64


class Load(NamedTuple):
    """A closed loop: connections, and calls under way on each."""

    connections: int
    streams: int

    def __str__(self) -> str:
        return f"-c {self.connections} -m {self.streams}"


class Driven(NamedTuple):
    """What h2load did.

    Attributes:
        calls: how many it made; each was answered with HTTP 200.
        data: bytes of all response messages; a gRPC error brings none.
        ends: when calls ended, sorted, and
        durations: how long they took, sorted, both in seconds.
        share: cores that h2load used.
    """

    calls: int
    data: int
    ends: list[float]
    durations: list[float]
    share: float

    def rate(self, first: float, last: float) -> float:
        """Calls a second between two shares of all calls, such as 0.1 and 0.5."""
        low, high = int(self.calls * first), int(self.calls * last) - 1
        return (high - low) / (self.ends[high] - self.ends[low])

    def latency(self, offered: float) -> Latency:
        """The percentiles of an open loop."""
        p50, p99 = (self.durations[int(self.calls * share)] for share in (0.5, 0.99))
        return Latency(offered, p50 * 1e3, p99 * 1e3)


def frame(message: Message) -> bytes:
    """A message as gRPC sends it: not compressed, its length in front."""
    data = message.SerializeToString()
    return struct.pack(">BI", 0, len(data)) + data


def closed_loop(
    address: str, path: str, body: bytes, calls: int, load: Load, core: int | None
) -> Driven:
    """Makes `calls` calls as fast as the load's limits allow."""
    calls -= calls % load.connections
    arguments = ["-c", str(load.connections), "-m", str(load.streams), "-n", str(calls)]
    return _drive(address, path, body, calls, arguments, core)


def open_loop(
    address: str, path: str, body: bytes, rate: float, seconds: float, core: int | None
) -> Driven:
    """Offers calls at a steady rate, whether or not those before are answered."""
    calls = max(_OPEN_CONNECTIONS * 50, int(rate * seconds))
    calls -= calls % _OPEN_CONNECTIONS
    arguments = ["-c", str(_OPEN_CONNECTIONS), "-m", str(_OPEN_STREAMS), "-n", str(calls)]
    arguments.append(f"--rps={rate / _OPEN_CONNECTIONS:.2f}")
    return _drive(address, path, body, calls, arguments, core)


def _drive(
    address: str, path: str, body: bytes, calls: int, arguments: list[str], core: int | None
) -> Driven:
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        data, log = Path(folder) / "body", Path(folder) / "log"
        data.write_bytes(body)
        headers = ["-H", "content-type: application/grpc", "-H", "te: trailers"]
        target = ["-d", str(data), f"--log-file={log}", f"http://{address}{path}"]
        finished = run([tool("h2load"), *arguments, *headers, *target], core=core)
        rows = [line.split("\t") for line in log.read_text().splitlines()]
    found, traffic = _REQUESTS.search(finished.output), _DATA.search(finished.output)
    if found is None or traffic is None:
        raise Unusable(f"h2load printed something unknown: {finished.output[-1000:]}")
    done, succeeded, failed, errored = map(int, found.groups())
    if (done, succeeded, failed, errored) != (calls, calls, 0, 0) or len(rows) != calls:
        raise CheckFailed(f"h2load made {calls:,} calls to {path}; {succeeded:,} succeeded")
    ends = sorted((int(start) + int(took)) / 1e6 for start, _, took in rows)
    durations = sorted(int(took) / 1e6 for _, _, took in rows)
    return Driven(calls, int(traffic[1]), ends, durations, finished.cpu / finished.wall)
