"""What tests give a link where a worker gives its admission."""

from typing import Final

from tallyboard_server.redis.connection import Connection
from tallyboard_server.redis.durability import APPLIED, Durability, durability
from tallyboard_server.redis.link import Admission

#: The default of the setting `redis_timeout`.
REDIS_TIMEOUT: Final = 1.0


class AdmitsAll(Admission):
    """Admits every Redis.

    Args:
        mode: what `choose_durability` would say of it.
    """

    def __init__(self, mode: str = APPLIED) -> None:
        self._durability = durability(mode, REDIS_TIMEOUT)

    def admit(self, connection: Connection) -> Durability:
        """The durability of the mode that was given."""
        return self._durability
