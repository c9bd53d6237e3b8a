"""Asks a service whether it serves, by grpc.health.v1: two messages too small for a dependency."""

import threading
from collections.abc import Callable
from typing import Final

import grpc

_CHECK: Final = "/grpc.health.v1.Health/Check"
_EVERYTHING: Final = b""  # a request that names no service
_SERVING: Final = b"\x08\x01"
_LONGEST: Final = 2.0
_PAUSE: Final = 0.05


def is_serving(channel: grpc.Channel, patience: float) -> bool:
    """Whether the worker at the other end says SERVING; asks once, and pauses if it doesn't.

    Args:
        patience: seconds that it may take; of 0 or less the answer is no.
    """
    if patience <= 0:
        return False
    check: Callable[..., bytes] = channel.unary_unary(_CHECK)
    try:
        answer = check(_EVERYTHING, timeout=min(patience, _LONGEST), wait_for_ready=True)
    except grpc.RpcError:
        answer = b""
    if answer != _SERVING:
        threading.Event().wait(min(patience, _PAUSE))
    return answer == _SERVING
