"""The client: everything that the service does, for a backend in Python."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from types import TracebackType
from typing import Final, Literal, Self

import grpc

from tallyboard._answers import BatchResult, Count
from tallyboard._buffer import CounterBuffer
from tallyboard._calls import Calls, Turns, metadata_of
from tallyboard._counters import Counter, CounterCalls
from tallyboard._errors import UnavailableError
from tallyboard._failures import IncrementFailure
from tallyboard._health import is_serving
from tallyboard._leaderboards import Leaderboard, LeaderboardCalls

#: Connections that a client opens unless it is told otherwise.
CHANNELS: Final = 4


class Client:
    """Counters and leaderboards of one tenant; any thread may use it. Use it in a `with`.

    Args:
        target: where the service listens, as `host:port`.
        tenant: whose data it is, 1 to 256 printable ASCII characters; None leaves it to the
            credentials, or the service's default.
        token: a bearer token, where the service asks for one.
        tls: None for a connection that is not encrypted, True for one that trusts the public
            authorities, or credentials made by `grpc.ssl_channel_credentials`.
        channels: connections, 1 or more. Each reaches one worker of the service, and calls take
            them in turns.
        timeout: seconds that a call may take unless it says otherwise. Within them it is
            repeated when the service says UNAVAILABLE.

    Raises:
        InvalidArgumentError: the tenant is outside its limits.
        ValueError: another argument is.
    """

    def __init__(
        self,
        target: str,
        *,
        tenant: str | None = None,
        token: str | None = None,
        tls: bool | grpc.ChannelCredentials | None = None,
        channels: int = CHANNELS,
        timeout: float = 10.0,
    ) -> None:
        if channels < 1:
            raise ValueError(f"channels must be 1 or more, not {channels}")
        if timeout <= 0:
            raise ValueError(f"timeout must be above 0, not {timeout}")
        credentials = grpc.ssl_channel_credentials() if tls is True else tls or None
        self._calls = Calls(target, credentials, channels, metadata_of(tenant, token), timeout)
        self._tenant = tenant
        self._turns = Turns(self._calls.channels)
        self._counters = CounterCalls(self._calls)
        self._leaderboards = LeaderboardCalls(self._calls)

    def counter(self, name: str) -> Counter:
        """A counter; makes no call."""
        return Counter(self._counters, name)

    def leaderboard(self, leaderboard_id: str) -> Leaderboard:
        """A leaderboard; makes no call."""
        return Leaderboard(self._leaderboards, leaderboard_id)

    def increment_many(
        self,
        deltas: Mapping[str, int] | Iterable[tuple[str, int]],
        *,
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> BatchResult:
        """Adds to up to 10,000 counters in one call; those that can't count are in the result.

        Raises:
            InvalidArgumentError: an item is at fault; nothing counted.
            UnavailableError, DeadlineExceededError: see `Counter.increment`.
        """
        pairs = deltas.items() if isinstance(deltas, Mapping) else deltas
        return self._counters.increment_many(pairs, request_id, timeout)

    def get_many(
        self,
        counters: Sequence[str],
        *,
        max_staleness: float | timedelta | None = None,
        exact: bool = False,
        timeout: float | None = None,
    ) -> list[Count]:
        """The counts of up to 1,000 counters, in the order of the names; see `Counter.get`."""
        return self._counters.get_many(counters, max_staleness, exact, timeout)

    def list_counters(
        self, prefix: str = "", *, order_by: str = "", timeout: float | None = None
    ) -> Iterator[Count]:
        """All counters as of the last checkpoint, by name, or with `value desc` the greatest first.

        Args:
            prefix: only names that begin with it.
            order_by: `counter` or `value desc`.
            timeout: seconds for each page.
        """
        return self._counters.list(prefix, order_by, timeout)

    def watch(
        self, counters: Sequence[str], *, min_interval: float = 1.0
    ) -> Iterator[Mapping[str, Count]]:
        """The counts of up to 100 counters now, and whenever some change; see `Counter.watch`."""
        return self._counters.watch(counters, min_interval)

    def buffered(
        self,
        *,
        linger: float = 0.02,
        max_counters: int = 100_000,
        when_full: Literal["block", "shed"] = "block",
        on_failure: Callable[[IncrementFailure], object] | None = None,
    ) -> CounterBuffer:
        """A buffer for hot paths; close it before the client. See `CounterBuffer`."""
        return CounterBuffer(
            next(self._turns),
            self._tenant,
            linger=linger,
            max_counters=max_counters,
            when_full=when_full,
            on_failure=on_failure,
        )

    def wait_ready(self, timeout: float = 30.0) -> None:
        """Waits until the service says on every connection that it is serving.

        Raises:
            UnavailableError: it does not in time.
        """
        deadline = time.monotonic() + timeout
        for channel in self._calls.channels:
            while not is_serving(channel, deadline - time.monotonic()):
                if time.monotonic() > deadline:
                    raise UnavailableError(f"the service did not answer within {timeout:g} s")

    def close(self) -> None:
        """Ends the connections."""
        self._calls.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
