"""What a fork leaves without its threads: in the child it refuses, instead of waiting for them.

A producer's copy would also number its batches as the original does, and the service would take
them for repeats.
"""

import os
from typing import Final, Protocol
from weakref import WeakSet

from tallyboard._errors import FailedPreconditionError


class Threaded(Protocol):
    """Something with a thread and a lock of its own."""

    def _forked(self, error: FailedPreconditionError) -> None:
        """Called in the child, whatever its lock was held for; from then on it raises `error`."""


_alive: Final[WeakSet[Threaded]] = WeakSet()


def refuse_after_fork(thing: Threaded) -> None:
    """Has `thing` told when it finds itself in a child."""
    _alive.add(thing)


def _tell() -> None:
    for thing in list(_alive):
        thing._forked(
            FailedPreconditionError("made before a fork: make it in the process that uses it")
        )


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_tell)
