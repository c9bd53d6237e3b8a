"""What this process expects of each partition's data in Redis."""

from collections.abc import Mapping


class Fences:
    """What this process expects of each partition: its incarnation, or that it is closed.

    Replaced as a whole by its owner, the worker; read by links without a lock.
    """

    def __init__(self, incarnations: Mapping[int, str]) -> None:
        self.incarnations = dict(incarnations)

    def expected(self, partition: int) -> str | None:
        """The incarnation, or None for a partition that is closed."""
        return self.incarnations.get(partition)
