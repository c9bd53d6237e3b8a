"""Whether a node of Redis may be written to: asked once for each of its lives, first of all."""

import threading
from collections.abc import Callable, Sequence

import psycopg
import structlog
from redis import Redis
from redis.exceptions import RedisError

from tallyboard_server.postgres.journal import REBUILDING
from tallyboard_server.recovery.standing import PartitionFollower
from tallyboard_server.redis.calls import MOVED, MOVING
from tallyboard_server.redis.connection import Connection, ConnectionLost
from tallyboard_server.redis.durability import Durability, choose_durability, durability
from tallyboard_server.redis.fences import Fences
from tallyboard_server.redis.keys import probe_key, version_key
from tallyboard_server.redis.topology import Stay, Topology
from tallyboard_server.startup import StartupError

_log = structlog.get_logger(__name__)


class _Life:
    """A life of a node that was admitted.

    Attributes:
        run_id: of the node's process.
        looked_at: the stays whose partitions were compared with Postgres in this life.
        durability: what it can keep.
    """

    def __init__(self) -> None:
        self.run_id: bytes | None = None
        self.looked_at: set[Stay] = set()
        self.durability: Durability | None = None
        self.lock = threading.Lock()  # guards the others


class RedisAdmission:
    """Admits lives of the nodes of Redis for the links of one worker.

    A life is admitted when it takes writes and can keep what the durability promises. Partitions
    that it has in a state older than their last checkpoint are closed: what is acknowledged from
    then on goes to the journal, until the keeper has rebuilt them.

    Args:
        client: makes a client of a node that does not repeat commands, from the node's URL.
        topology: which node has which partition.
        setting: the setting `durability`.
        timeout: seconds that replicas may take.

    What Redis may have lost with its last life, though it is in the journal, is applied again by
    the keeper: partitions that the journal has rows of are journaled for until then.
    """

    def __init__(
        self,
        client: Callable[[str], Redis],
        topology: Topology,
        fences: Fences,
        follower: PartitionFollower,
        setting: str,
        timeout: float,
    ) -> None:
        self._client = client
        self._topology = topology
        self._fences = fences
        self._follower = follower
        self._setting = setting
        self._timeout = timeout
        self._lives: dict[str, _Life] = {}

    def admit(self, connection: Connection, node: str, stays: Sequence[Stay]) -> Durability:
        """What has to be true there before a write is acknowledged.

        Raises:
            ConnectionLost: it takes no writes, or can't keep what is promised.
        """
        _check_that_it_takes_writes(connection, stays)
        run_id = connection.identity.run_id if connection.identity else None
        life = self._lives.setdefault(node, _Life())
        with life.lock:
            if run_id is None or run_id != life.run_id or life.durability is None:
                life.looked_at.clear()
            # One that goes to another node, and comes back, may have been changed there.
            new = [stay for stay in stays if stay not in life.looked_at]
            if new:
                self._close_where_journaled(run_id, [stay.partition for stay in new])
                self._look_at(connection, node, new)
                life.durability = self._choose(node)
                life.run_id = run_id
            life.looked_at = set(stays)
            assert life.durability is not None, "there is at least one partition"
            return life.durability

    def _look_at(self, connection: Connection, node: str, stays: Sequence[Stay]) -> None:
        """Closes partitions that are older here than in Postgres."""
        # Postgres first: of a healthy Redis the number is never smaller than what it said before.
        known = [self._follower.standing(stay.partition) for stay in stays]
        found = connection.call([("GET", version_key(stay.partition)) for stay in stays])
        older = []
        here = frozenset(self._topology.layout.stays_of(node))
        for stay, standing, version in zip(stays, known, found, strict=True):
            partition = stay.partition
            if stay not in here:
                continue  # another node has it by now, and what that one holds decides
            self._fences.forgive((partition,))
            if isinstance(version, Exception):
                if str(version).startswith((*MOVING, MOVED)):
                    continue  # its calls are told the same
                raise ConnectionLost(f"Redis is not ready: {version}")
            if standing is None or standing.state == REBUILDING:
                continue  # it is closed, and with this incarnation it will be good
            if int(version or 0) < standing.version:
                self._fences.block(partition, standing.incarnation)
                older.append(partition)
        if older:
            _log.error("Redis is older than the last checkpoint.", partitions=older)

    def _close_where_journaled(self, run_id: bytes | None, partitions: Sequence[int]) -> None:
        """Keeps partitions closed until the keeper has looked whether their journal is applied.

        It asks Postgres how all partitions are; without Postgres, what was known last stays.
        """
        try:
            self._follower.close_where_journaled((run_id or b"").decode(), partitions)
        except psycopg.Error as error:
            if self._setting == "journaled":
                raise ConnectionLost(f"Postgres can't be asked what Redis lost: {error}") from error

    def _choose(self, node: str) -> Durability:
        client = self._client(node)
        try:
            mode = choose_durability(client, self._setting)
        except (RedisError, StartupError) as error:
            raise ConnectionLost(str(error)) from error
        finally:
            client.close()
        return durability(mode, self._timeout)


def _check_that_it_takes_writes(connection: Connection, stays: Sequence[Stay]) -> None:
    """Writes to a partition that is still there: one that has moved says nothing of the others.

    Raises:
        ConnectionLost: it takes none.
    """
    for stay in stays:
        (said,) = connection.call([("SET", probe_key(stay.partition), "1", "EX", "10")])
        if not isinstance(said, Exception):
            return
        if not str(said).startswith((*MOVING, MOVED)):
            break
    raise ConnectionLost(f"Redis takes no writes: {said}")
