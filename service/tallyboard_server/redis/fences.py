"""What this process expects of each partition's data in Redis."""

import threading
from collections.abc import Collection, Iterable, Mapping

from tallyboard_server.errors import Unavailable


class Fences:
    """What this process expects of each partition: its incarnation, or that it is closed.

    Any thread may read and change it.
    """

    def __init__(self, incarnations: Mapping[int, str]) -> None:
        self._open = dict(incarnations)
        self._blocked: dict[int, str] = {}
        self._lock = threading.Lock()  # guards changes of both, which belong together

    def expected(self, partition: int) -> str | None:
        """The incarnation, or None for a partition that is closed."""
        return self._open.get(partition)

    def follow(self, incarnations: Mapping[int, str], closed: Collection[int]) -> None:
        """Takes what Postgres says: incarnations of open partitions, and those that are closed."""
        with self._lock:
            for partition in closed:
                self._open.pop(partition, None)
            for partition, incarnation in incarnations.items():
                if self._blocked.get(partition) != incarnation:
                    self._blocked.pop(partition, None)
                    self._open[partition] = incarnation

    def block(self, partition: int, incarnation: str) -> None:
        """Closes a partition whose data is not this life of it, until there is another one."""
        with self._lock:
            self._blocked[partition] = incarnation
            if self._open.get(partition) == incarnation:
                del self._open[partition]

    def forgive(self, partitions: Iterable[int]) -> None:
        """Forgets what was blocked of partitions: the data is another one now."""
        with self._lock:
            for partition in partitions:
                self._blocked.pop(partition, None)


def closed(partition: int) -> Unavailable:
    """The error for a partition that Redis can't serve now."""
    return Unavailable(
        f"partition {partition} is not open: Redis lost its data, or still has to apply what was "
        "journaled",
        reason="PARTITION_UNAVAILABLE",
    )
