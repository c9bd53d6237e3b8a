"""How long to wait before a broken stream is opened again."""

import random
from typing import Final

FIRST: Final = 0.05
LONGEST: Final = 3.0


class Backoff:
    """Waits that double from 0.05 s to 3 s, each shortened at random by up to half.

    Many producers that lose the same worker so come back at different moments.
    """

    def __init__(self) -> None:
        self._next = FIRST

    def reset(self) -> None:
        """Something went well: the next wait is the shortest again."""
        self._next = FIRST

    def delay(self, retry_after: float | None) -> float:
        """The seconds to wait now: at least `retry_after`, if the service asked for that."""
        delay = random.uniform(self._next / 2, self._next)
        self._next = min(self._next * 2, LONGEST)
        if retry_after is not None:
            delay = max(delay, retry_after * random.uniform(1.0, 1.1))
        return delay
