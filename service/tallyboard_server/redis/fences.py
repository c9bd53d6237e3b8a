"""What this process expects of each partition's data in Redis."""

from collections.abc import Mapping

from tallyboard_server.errors import Unavailable


class Fences:
    """What this process expects of each partition: its incarnation, or that it is closed.

    Replaced as a whole by its owner, the worker; read by links without a lock.
    """

    def __init__(self, incarnations: Mapping[int, str]) -> None:
        self.incarnations = dict(incarnations)

    def expected(self, partition: int) -> str | None:
        """The incarnation, or None for a partition that is closed."""
        return self.incarnations.get(partition)


def closed(partition: int) -> Unavailable:
    """The error for a partition whose data is not what we knew."""
    return Unavailable(
        f"partition {partition} is closed: its data in Redis is not the data we knew",
        reason="PARTITION_UNAVAILABLE",
    )
