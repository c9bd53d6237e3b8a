"""Thousands of calls at once, each with a deadline of its own, from a process of their own.

`python -m tests.faults.crowd TARGET COUNT WAIT SPREAD` sends COUNT calls of Increment that end
from WAIT to WAIT + SPREAD seconds from now, and prints "sent" when all are sent. At the end it
prints how many ended with each status as JSON.
"""

import json
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from types import TracebackType
from typing import Any, Final, Self

import grpc

from tallyboard.v1 import counters_pb2, counters_pb2_grpc

_CHANNELS: Final = 4
_OPTIONS: Final = (("grpc.use_local_subchannel_pool", 1),)
_GRACE: Final = 30.0
_TICK: Final = 0.005


class Crowd:
    """The process that sends the calls; a context manager that ends it."""

    def __init__(self, target: str, count: int, wait: float, spread: float) -> None:
        self._command = [sys.executable, "-m", "tests.faults.crowd", target]
        self._command += [str(count), str(wait), str(spread)]
        self._patience = wait + spread + _GRACE

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, text=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.communicate()

    def wait_until_sent(self) -> None:
        """Wait until all calls are sent."""
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "sent\n"

    def outcomes(self) -> Counter[str]:
        """Wait until all calls are over; how many ended with each status.

        A call is UNAVAILABLE+ when its answer says when to try again.
        """
        output, _ = self._process.communicate(timeout=self._patience)
        return Counter(json.loads(output.splitlines()[-1]))


class MachineLag:
    """How late a thread of this process is woken, at worst: what no service can be blamed for."""

    def __enter__(self) -> "MachineLag":
        self.worst = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._measure, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _measure(self) -> None:
        due = time.monotonic() + _TICK
        while not self._stop.wait(_TICK):
            now = time.monotonic()
            self.worst = max(self.worst, now - due)
            due = now + _TICK


def _send(stubs: list[Any], count: int, wait: float, spread: float) -> list[Any]:
    start = time.monotonic()
    calls = []
    for i in range(count):
        # Every other one can be sent again. The order of the deadlines is not that of the calls.
        request = counters_pb2.IncrementRequest(
            counter=f"crowd{i % 100}", delta=1, request_id=str(uuid.uuid4()) if i % 2 else ""
        )
        due = start + wait + spread * (i * 7919 % count) / count
        left = due - time.monotonic()
        calls.append(stubs[i % _CHANNELS].Increment.future(request, timeout=left))
    return calls


def _status(call: Any) -> str:
    hints = dict(call.trailing_metadata() or ())
    name = str(call.code().name)
    return name + "+" * (name == "UNAVAILABLE" and "grpc-retry-pushback-ms" in hints)


def _main(target: str, count: int, wait: float, spread: float) -> None:
    channels = [grpc.insecure_channel(target, _OPTIONS) for _ in range(_CHANNELS)]
    stubs = [counters_pb2_grpc.CounterServiceStub(channel) for channel in channels]
    calls = _send(stubs, count, wait, spread)
    print("sent", flush=True)
    left = threading.Semaphore(0)
    for call in calls:
        call.add_done_callback(lambda call: left.release())
    for _ in calls:
        assert left.acquire(timeout=wait + spread + _GRACE)
    print(json.dumps(Counter(_status(call) for call in calls)), flush=True)


if __name__ == "__main__":
    _main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4]))
