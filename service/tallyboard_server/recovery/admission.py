"""Whether a Redis may be written to: asked once for each of its lives, before anything is sent."""

import threading
from collections.abc import Callable
from typing import Final

import psycopg
import structlog
from redis import Redis
from redis.exceptions import RedisError

from tallyboard_server.recovery.standing import PartitionFollower
from tallyboard_server.redis.connection import Connection, ConnectionLost
from tallyboard_server.redis.durability import Durability, choose_durability, durability
from tallyboard_server.redis.fences import Fences
from tallyboard_server.redis.keys import version_key
from tallyboard_server.startup import StartupError

_PROBE: Final = ("SET", "tb:probe", "1", "EX", "10")
_log = structlog.get_logger(__name__)


class RedisAdmission:
    """Admits lives of a Redis for the links of one worker.

    A life is admitted when it takes writes and can keep what the durability promises. Partitions
    that it has in a state older than their last checkpoint are closed: what is acknowledged from
    then on goes to the journal, until the keeper has rebuilt them.

    Args:
        client: makes a client that does not repeat commands.
        setting: the setting `durability`.
        timeout: seconds that replicas may take.

    What Redis may have lost with its last life, though it is in the journal, is applied again by
    the keeper: partitions that the journal has rows of are journaled for until then.
    """

    def __init__(
        self,
        client: Callable[[], Redis],
        fences: Fences,
        follower: PartitionFollower,
        partitions: int,
        setting: str,
        timeout: float,
    ) -> None:
        self._client = client
        self._fences = fences
        self._follower = follower
        self._partitions = partitions
        self._setting = setting
        self._timeout = timeout
        self._admitted: bytes | None = None
        self._durability: Durability | None = None
        self._lock = threading.Lock()  # guards _admitted and _durability

    def admit(self, connection: Connection) -> Durability:
        """What has to be true there before a write is acknowledged.

        Raises:
            ConnectionLost: it takes no writes, or can't keep what is promised.
        """
        (said,) = connection.call([_PROBE])
        if isinstance(said, Exception):
            raise ConnectionLost(f"Redis takes no writes: {said}")
        run_id = connection.identity.run_id if connection.identity else None
        with self._lock:
            if run_id is None or run_id != self._admitted or self._durability is None:
                self._close_where_journaled(run_id)
                self._look_at(connection)
                self._durability = self._choose()
                self._admitted = run_id
            return self._durability

    def _look_at(self, connection: Connection) -> None:
        """Closes partitions that are older here than in Postgres."""
        # Postgres first: of a healthy Redis the number is never smaller than what it said before.
        known = [self._follower.standing(i) for i in range(self._partitions)]
        found = connection.call([("GET", version_key(i)) for i in range(self._partitions)])
        older = []
        self._fences.forgive()
        for partition, version in enumerate(found):
            if isinstance(version, Exception):
                raise ConnectionLost(f"Redis is not ready: {version}")
            standing = known[partition]
            if standing is not None and int(version or 0) < standing.version:
                self._fences.block(partition, standing.incarnation)
                older.append(partition)
        if older:
            _log.error("Redis is older than the last checkpoint.", partitions=older)

    def _close_where_journaled(self, run_id: bytes | None) -> None:
        """Keeps partitions closed until the keeper has looked whether their journal is applied.

        It asks Postgres how all partitions are; without Postgres, what was known last stays.
        """
        try:
            self._follower.close_where_journaled((run_id or b"").decode())
        except psycopg.Error as error:
            if self._setting == "journaled":
                raise ConnectionLost(f"Postgres can't be asked what Redis lost: {error}") from error

    def _choose(self) -> Durability:
        client = self._client()
        try:
            mode = choose_durability(client, self._setting)
        except (RedisError, StartupError) as error:
            raise ConnectionLost(str(error)) from error
        finally:
            client.close()
        return durability(mode, self._timeout)
