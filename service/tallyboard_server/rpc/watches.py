"""Watches: what their calls share."""

import time
from collections.abc import Callable
from typing import Any

from google.protobuf.message import Message

from tallyboard.v1 import counters_pb2, leaderboards_pb2
from tallyboard_server.errors import TallyboardError
from tallyboard_server.rpc import validation
from tallyboard_server.rpc.stack import Caller, Stack
from tallyboard_server.watching import Watcher, Watches

_DEFAULT_INTERVAL = 1.0
_MIN_INTERVAL, _MAX_INTERVAL = 0.1, 3600


def interval_of(
    request: counters_pb2.WatchCountersRequest | leaderboards_pb2.WatchEntriesRequest,
) -> float:
    """The least seconds between two messages."""
    if not request.HasField("min_interval"):
        return _DEFAULT_INTERVAL
    return validation.seconds("min_interval", request.min_interval, _MIN_INTERVAL, _MAX_INTERVAL)


class WatchCall:
    """A call that watches, from its start on.

    Args:
        method: the name of the RPC.
        send: passes a response on; None ends the call.
    """

    def __init__(
        self, stack: Stack, method: str, caller: Caller, send: Callable[[Any], None]
    ) -> None:
        self._stack = stack
        self._method = method
        self._context = caller.context
        self._send = send
        self._started = time.perf_counter()

    def follow(
        self,
        watches: Watches[Any, Any, Any],
        subject: tuple[Any, ...],
        min_interval: float,
        response_of: Callable[[Any], Message],
    ) -> None:
        """Starts the watch and returns; it ends with the call.

        Args:
            response_of: makes the response of a message of the watch.

        Raises:
            Overloaded: there are too many watches.
            Unavailable: the server is stopping.
        """
        watcher: Watcher[Any, Any] = Watcher(
            subject,
            min_interval,
            lambda message: self._send(response_of(message)),
            self._end,
            self._context.cancel,
        )
        watches.add(watcher)
        if not self._context.add_callback(lambda: watches.remove(watcher)):
            watches.remove(watcher)  # the caller is gone already

    def _end(self, error: TallyboardError) -> None:
        self._stack.ended_with(self._method, self._context, error, self._started)
        self._send(None)
