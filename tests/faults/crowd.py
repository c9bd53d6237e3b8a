"""Ten thousand calls at once, each with a deadline of its own, and when each was answered."""

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import grpc

from tallyboard.v1 import counters_pb2, counters_pb2_grpc
from tests.faults.ledger import reason_of

_CHANNELS: Final = 4
_OPTIONS: Final = (("grpc.use_local_subchannel_pool", 1),)


@dataclass
class Crowd:
    """Calls of Increment that are all sent before the first is waited for.

    Attributes:
        outcomes: how many ended with each (status, reason of the service or "").
        latest: the most seconds that a call ended behind its deadline; negative if none did.
        retry_hints: how many UNAVAILABLE answers came with a hint when to try again.
    """

    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    latest: float = float("-inf")
    retry_hints: int = 0

    def codes(self) -> set[str]:
        """The statuses that there were."""
        return {code for code, _ in self.outcomes}

    def count(self, code: str) -> int:
        """How many ended with a status."""
        return sum(many for (found, _), many in self.outcomes.items() if found == code)


class Calls:
    """Sends the calls; `ended` waits for all of them.

    Args:
        target: the service.
        deadlines: when each call is to be over, as `time.monotonic()` has it, one a call.
        make: the request of the i-th call.
    """

    def __init__(
        self,
        target: str,
        deadlines: list[float],
        make: Callable[[int], counters_pb2.IncrementRequest],
    ) -> None:
        self._ends: list[tuple[Any, float, float]] = []
        self._left = threading.Semaphore(0)
        self._channels = [grpc.insecure_channel(target, _OPTIONS) for _ in range(_CHANNELS)]
        stubs = [counters_pb2_grpc.CounterServiceStub(channel) for channel in self._channels]
        self._count = len(deadlines)
        for i, due in enumerate(deadlines):
            left = due - time.monotonic()
            call = stubs[i % _CHANNELS].Increment.future(make(i), timeout=left)
            call.add_done_callback(lambda call, due=due: self._note(call, due))

    def _note(self, call: Any, due: float) -> None:
        self._ends.append((call, due, time.monotonic()))
        self._left.release()

    def ended(self, timeout: float) -> Crowd:
        """What became of them; TimeoutError when some are not over in time."""
        until = time.monotonic() + timeout
        for _ in range(self._count):
            if not self._left.acquire(timeout=max(0.0, until - time.monotonic())):
                raise TimeoutError(f"{self._count - len(self._ends)} calls are not over")
        crowd = Crowd()
        for call, due, at in self._ends:
            code = call.code()
            reason = reason_of(call) if code is not grpc.StatusCode.OK else ""
            crowd.outcomes[code.name, reason] += 1
            crowd.latest = max(crowd.latest, at - due)
            if code is grpc.StatusCode.UNAVAILABLE:
                hints = dict(call.trailing_metadata() or ())
                crowd.retry_hints += "grpc-retry-pushback-ms" in hints
        for channel in self._channels:
            channel.close()
        return crowd
