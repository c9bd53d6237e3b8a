"""A load generator for StreamIncrements.

A program: `python -m tests.benchmarks.streams ADDRESS KIND PREFIX STREAMS BATCHES` opens streams
on a connection each, sends BATCHES batches of 10,000 deltas on each, never more than the
server's window unacknowledged, and prints JSON: the seconds from the first batch to the last
acknowledgement, the batches acknowledged, and the failures among them.

Every delta is on the wire. The messages are serialized beforehand, all but the sequence, so the
generator takes as little as it can from the cores that it shares with the server.
"""

import json
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import grpc

from tallyboard.v1 import counters_pb2 as pb

BATCH = 10_000
DISTINCT = 100_000
HOT, NAMED, DISTINCT_KIND = "hot", "named", "distinct"
_CONNECT_TIMEOUT, _TIMEOUT = 60.0, 900.0
# Tries to go on without an acknowledgement in between.
_PAUSE, _MOST_TRIES = 0.2, 50


class Wire(NamedTuple):
    """A method that streams numbered batches, and its messages."""

    method: str
    request: type[Any]
    response: type[Any]


INCREMENTS = Wire(
    "/tallyboard.v1.CounterService/StreamIncrements",
    pb.StreamIncrementsRequest,
    pb.StreamIncrementsResponse,
)


class Plan(NamedTuple):
    """What the batches of one kind hold, in turn: names, and the delta at each place."""

    names: Sequence[Sequence[str]]
    deltas: Sequence[int]

    def expected(self, batches: int, streams: int) -> dict[str, int]:
        """What the counters gain when each of the streams sends that many batches.

        Stream `s` begins with the names at place `s`.
        """
        gained: dict[str, int] = {}
        kinds = len(self.names)
        for index, names in enumerate(self.names):
            times = sum(len(range((index - s) % kinds, batches, kinds)) for s in range(streams))
            if len(names) == 1:
                gained[names[0]] = times * sum(self.deltas)
                continue
            for name, delta in zip(names, self.deltas, strict=True):
                gained[name] = gained.get(name, 0) + times * delta
        return gained


def plan(kind: str, prefix: str) -> Plan:
    """The plan of a kind.

    Args:
        kind: "hot": one name for all deltas of a batch; "named": the same name beside each
            delta; "distinct": 100,000 counters in turn.
    """
    deltas = [1 + index % 7 for index in range(BATCH)]
    if kind == HOT:
        return Plan([[f"{prefix}:hot"]], deltas)
    if kind == NAMED:
        return Plan([[f"{prefix}:hot"] * BATCH], deltas)
    names = [f"{prefix}:{index}" for index in range(DISTINCT)]
    return Plan([names[at : at + BATCH] for at in range(0, DISTINCT, BATCH)], deltas)


class Stream:
    """One producer on a connection of its own.

    Args:
        bodies: serialized requests, all but the sequence; sent in turn.
        batches: how many to send.
        first: the body to begin with.
    """

    def __init__(
        self, address: str, wire: Wire, bodies: Sequence[bytes], batches: int, first: int
    ) -> None:
        self._wire = wire
        self._bodies, self._batches, self._first = bodies, batches, first
        options = (("grpc.use_local_subchannel_pool", 1),)
        self._channel = grpc.insecure_channel(address, options)
        self._producer = str(uuid.uuid4())
        self.started = 0.0
        self.acknowledged = 0
        self.failures = 0
        self.resumed = 0

    def connect(self) -> None:
        """Waits for the connection."""
        grpc.channel_ready_future(self._channel).result(_CONNECT_TIMEOUT)

    def run(self) -> None:
        """Sends all batches and takes all acknowledgements.

        As a client has to, it opens the stream again when it breaks, and sends what was not
        acknowledged once more; `resumed` says how often.
        """
        tries = 0
        try:
            while self.acknowledged < self._batches:
                before = self.acknowledged
                try:
                    self._run_once()
                except grpc.RpcError as error:
                    tries = 1 if self.acknowledged > before else tries + 1
                    if error.code() is not grpc.StatusCode.UNAVAILABLE or tries > _MOST_TRIES:
                        raise
                    self.resumed += 1
                    time.sleep(_PAUSE)
        finally:
            self._channel.close()

    def _run_once(self) -> None:
        call: Callable[..., Any] = self._channel.stream_stream(
            self._wire.method,
            request_serializer=lambda data: data,
            response_deserializer=self._wire.response.FromString,
        )
        room = _Room()
        try:
            is_open = False
            for response in call(self._messages(room), timeout=_TIMEOUT):
                if not is_open:
                    is_open = True
                    self.started = self.started or time.monotonic()
                    room.add(response.window)
                self.failures += len(response.failures)
                newly = response.acknowledged_sequence - self.acknowledged
                if newly > 0:
                    self.acknowledged += newly
                    room.add(newly)
        finally:
            room.close()

    def _messages(self, room: "_Room") -> Iterator[bytes]:
        request = self._wire.request
        first = request(producer_id=self._producer).SerializeToString()
        bodies, count = self._bodies, len(self._bodies)
        for index in range(self.acknowledged, self._batches):
            if not room.take():
                return
            # Serialized messages that follow each other are one message with the fields of both.
            head = request(sequence=index + 1).SerializeToString()
            yield first + head + bodies[(self._first + index) % count]
            first = b""


class _Room:
    """How many batches may be sent before the next acknowledgement."""

    def __init__(self) -> None:
        self._left = threading.Semaphore(0)
        self._over = False

    def add(self, batches: int) -> None:
        """Lets that many more be sent."""
        if batches:
            self._left.release(batches)

    def take(self) -> bool:
        """Waits for room for one; False when the stream is over."""
        self._left.acquire()
        return not self._over

    def close(self) -> None:
        """The stream is over."""
        self._over = True
        self._left.release()


def main() -> None:
    """Prepares the messages, runs the streams, and prints what came of them."""
    address, kind, prefix = sys.argv[1:4]
    count, batches = map(int, sys.argv[4:6])
    names, deltas = plan(kind, prefix)
    bodies = [
        pb.StreamIncrementsRequest(counters=some, deltas=deltas).SerializeToString()
        for some in names
    ]
    streams = [Stream(address, INCREMENTS, bodies, batches, index) for index in range(count)]
    for stream in streams:
        stream.connect()
    cpu = time.process_time()
    with ThreadPoolExecutor(count) as pool:
        for done in [pool.submit(stream.run) for stream in streams]:
            done.result()
    seconds = time.monotonic() - min(stream.started for stream in streams)
    result = {
        "seconds": seconds,
        "cpu": time.process_time() - cpu,
        "batches": sum(stream.acknowledged for stream in streams),
        "failures": sum(stream.failures for stream in streams),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
