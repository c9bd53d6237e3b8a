"""Tells Redis of definitions that it lacks, and clears away what is not needed any more."""

import time
from typing import Final

from tallyboard_server.leaderboards.definitions import from_json
from tallyboard_server.postgres import leaderboards as rows
from tallyboard_server.postgres.checkpoints import forget_tokens
from tallyboard_server.postgres.journal import forget_requests
from tallyboard_server.postgres.pool import BoundedPool
from tallyboard_server.redis import definitions
from tallyboard_server.redis.nodes import RedisNodes

_PAGE: Final = 500
_PURGE_BOARDS: Final = 20
_PURGE_STEP: Final = 20_000
_PURGE_STEPS: Final = 10
_FORGET: Final = 5_000
_FORGET_SECONDS: Final = 1.0


class Publisher:
    """Work of the keeper; its methods raise redis.RedisError and psycopg.Error.

    Args:
        nodes: clients that do not repeat commands.
        partitions: how many there are.
        request_ttl: seconds that request ids of changes are remembered.
    """

    def __init__(
        self,
        nodes: RedisNodes,
        pool: BoundedPool,
        partitions: int,
        request_ttl: float,
    ) -> None:
        self._nodes = nodes
        self._pool = pool
        self._partitions = partitions
        self._request_ttl = request_ttl
        self._lives: dict[str, str] = {}

    def publish(self) -> int:
        """Tells Redis of every revision that it was not told of; gives how many.

        All of them when a node has been started since: it may have lost what it had not synced.
        """
        lives = {
            node: str(self._nodes.at(node).info("server")["run_id"])
            for node in self._nodes.topology.layout.nodes
        }
        if lives != self._lives:
            with self._pool.connection() as conn:
                rows.mark_unsynced(conn)
            self._lives = lives
        published, after = 0, ""
        while True:
            with self._pool.connection() as conn:
                found = rows.unsynced(conn, after, _PAGE)
            published += sum(self._tell(row.board_key) for row in found)
            if len(found) < _PAGE:
                return published
            after = found[-1].board_key

    def purge(self) -> None:
        """Clears away some of what deleted boards held, old request ids, and old tokens."""
        with self._pool.connection() as conn:
            deleted = rows.purgeable(conn, _PURGE_BOARDS)
            rows.forget_requests(conn, self._request_ttl, _FORGET)
            forget_requests(conn, self._request_ttl, _FORGET)
        until = time.monotonic() + _FORGET_SECONDS
        forgotten = _FORGET
        while forgotten == _FORGET and time.monotonic() < until:
            with self._pool.connection() as conn:
                forgotten = forget_tokens(conn, _FORGET)
        for row in deleted:
            self._drop(row)
            for _ in range(_PURGE_STEPS):
                with self._pool.connection() as conn:
                    if rows.purge(conn, row.board_key, _PURGE_STEP):
                        break

    def _tell(self, board_key: str) -> bool:
        """Tells Redis, unless somebody is changing the definition: then it is for them to do."""
        with self._pool.connection() as conn:
            row = rows.lock_board(conn, board_key, wait=False)
            if row is None or row.synced:
                return False
            self._nodes.run(
                definitions.publish(
                    row.tenant,
                    row.leaderboard_id,
                    row.board_key,
                    row.revision,
                    None if row.deleted_at is not None else row.definition,
                    from_json(row.definition).segments,
                    self._partitions,
                )
            )
            rows.mark_synced(conn, row.board_key, row.revision)
        return True

    def _drop(self, row: rows.BoardRow) -> None:
        board = from_json(row.definition)
        for partition in definitions.partitions_of(
            row.tenant, row.leaderboard_id, board.segments, self._partitions
        ):
            left = 1
            while left:
                left, _ = self._nodes.run([definitions.drop_windows(partition, row.board_key)])[0]
