"""Callers that never repeat anything, in a process of their own, and how each call went.

`python -m tests.faults.outage.callers TARGET BOARD PREFIX` calls until SIGTERM, and then prints a
line a call: kind, begin (s since 1970), duration (s) and the code of its end.
"""

import random
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

import grpc

from tallyboard.v1 import counters_pb2, counters_pb2_grpc, leaderboards_pb2, leaderboards_pb2_grpc
from tallyboard_server.processes import child_setup

DEADLINE: Final = 2.0
COUNTERS: Final = 100
BATCH: Final = 20
MEMBERS: Final = 1000
#: By kind of call, how many threads make it one after the other.
THREADS: Final = {"increment": 6, "batch": 2, "score": 3, "count": 3, "top": 2, "rank": 2}
WRITES: Final = ("increment", "batch", "score")
_PAUSE: Final = 0.02
_END_TIMEOUT: Final = 30.0
_OPTIONS: Final = (("grpc.use_local_subchannel_pool", 1),)

Call = Callable[[], object]


class Sample(NamedTuple):
    """One call."""

    kind: str
    begin: float
    seconds: float
    code: str

    @property
    def is_write(self) -> bool:
        """Whether it changed something, or tried to."""
        return self.kind in WRITES

    @property
    def is_ok(self) -> bool:
        """Whether it was answered."""
        return self.code == "OK"


class Callers:
    """The process; a context manager that ends it."""

    def __init__(self, target: str, board: str, prefix: str) -> None:
        self._command = [sys.executable, "-m", "tests.faults.outage.callers", target, board, prefix]

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self._command,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=child_setup(signal.SIGKILL),
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.communicate()

    def finish(self) -> list[Sample]:
        """End the calls; all that were made."""
        self._process.send_signal(signal.SIGTERM)
        output, _ = self._process.communicate(timeout=_END_TIMEOUT)
        samples = []
        for line in output.splitlines():
            kind, begin, seconds, code = line.split()
            samples.append(Sample(kind, float(begin), float(seconds), code))
        return samples


def _calls(channel: grpc.Channel, board: str, prefix: str) -> dict[str, Call]:
    """One call of each kind."""
    counters: Any = counters_pb2_grpc.CounterServiceStub(channel)
    boards: Any = leaderboards_pb2_grpc.LeaderboardServiceStub(channel)

    def name() -> str:
        return f"{prefix}{random.randrange(COUNTERS)}"

    def member() -> str:
        return f"member{random.randrange(MEMBERS)}"

    def increment() -> object:
        request = counters_pb2.IncrementRequest(
            counter=name(), delta=1, request_id=str(uuid.uuid4())
        )
        return counters.Increment(request, timeout=DEADLINE)

    def batch() -> object:
        deltas = [counters_pb2.CounterDelta(counter=name(), delta=1) for _ in range(BATCH)]
        request = counters_pb2.BatchIncrementRequest(deltas=deltas, request_id=str(uuid.uuid4()))
        return counters.BatchIncrement(request, timeout=DEADLINE)

    def score() -> object:
        submission = leaderboards_pb2.Submission(
            leaderboard_id=board, member=member(), score=random.randrange(1, 1000)
        )
        request = leaderboards_pb2.SubmitScoreRequest(
            submission=submission, request_id=str(uuid.uuid4())
        )
        return boards.SubmitScore(request, timeout=DEADLINE)

    def count() -> object:
        return counters.GetCounter(counters_pb2.GetCounterRequest(counter=name()), timeout=DEADLINE)

    def top() -> object:
        request = leaderboards_pb2.ListEntriesRequest(leaderboard_id=board, page_size=10)
        return boards.ListEntries(request, timeout=DEADLINE)

    def rank() -> object:
        request = leaderboards_pb2.GetEntryRequest(leaderboard_id=board, member=member())
        return boards.GetEntry(request, timeout=DEADLINE)

    return {
        "increment": increment,
        "batch": batch,
        "score": score,
        "count": count,
        "top": top,
        "rank": rank,
    }


@contextmanager
def _calling(
    kind: str, target: str, board: str, prefix: str, stopping: threading.Event
) -> Iterator[list[Sample]]:
    """One thread that calls over a connection of its own until `stopping`."""
    samples: list[Sample] = []

    def work() -> None:
        with grpc.insecure_channel(target, _OPTIONS) as channel:
            call = _calls(channel, board, prefix)[kind]
            while not stopping.wait(_PAUSE * random.uniform(0.5, 1.5)):
                begin, started, code = time.time(), time.monotonic(), "OK"
                try:
                    call()
                except grpc.RpcError as error:
                    found: Any = error
                    code = found.code().name
                samples.append(Sample(kind, begin, time.monotonic() - started, code))

    thread = threading.Thread(target=work, name=kind, daemon=True)
    thread.start()
    yield samples
    thread.join(2 * DEADLINE)


def _main(target: str, board: str, prefix: str) -> None:
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    with ExitStack() as stack:
        samples = [
            stack.enter_context(_calling(kind, target, board, prefix, stopping))
            for kind, threads in THREADS.items()
            for _ in range(threads)
        ]
        while not stopping.wait(1.0):
            pass
    for each in samples:
        for kind, begin, seconds, code in each:
            print(f"{kind} {begin:.4f} {seconds:.5f} {code}")


if __name__ == "__main__":
    _main(*sys.argv[1:])
