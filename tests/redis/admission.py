"""What tests give a link where a worker gives its admission."""

from collections.abc import Sequence
from typing import Final

from tallyboard_server.redis.connection import Connection
from tallyboard_server.redis.durability import APPLIED, Durability, durability
from tallyboard_server.redis.link import Admission
from tallyboard_server.redis.topology import Stay

#: The default of the setting `redis_timeout`.
REDIS_TIMEOUT: Final = 1.0


class AdmitsAll(Admission):
    """Admits every Redis.

    Args:
        mode: what `choose_durability` would say of it.
    """

    def __init__(self, mode: str = APPLIED) -> None:
        self._durability = durability(mode, REDIS_TIMEOUT)

    def admit(self, connection: Connection, node: str, stays: Sequence[Stay]) -> Durability:
        """The durability of the mode that was given."""
        return self._durability
