"""A stream of scores. A producer's token makes each batch count once, however it comes."""

import time
from collections.abc import Sequence
from typing import NamedTuple

from tallyboard_server.errors import TallyboardError
from tallyboard_server.leaderboards.batches import ScoreBatch, Scores
from tallyboard_server.leaderboards.routes import Routes
from tallyboard_server.redis.keys import score_producer_key
from tallyboard_server.redis.operations import Token, Write
from tallyboard_server.redis.store import RedisStore
from tallyboard_server.streaming import BatchStream

ScoreFailure = tuple[int, TallyboardError]


class _Submitted(NamedTuple):
    """A batch of scores that was submitted."""

    batch: ScoreBatch
    write: Write
    patience: float

    @property
    def over(self) -> bool:
        return self.write.over

    def failures(self) -> list[ScoreFailure]:
        self.batch.finish(self.write, time.monotonic() + self.patience)
        return sorted(self.batch.failures.items())


class ScoreStream(BatchStream[ScoreFailure]):
    """The state of one stream; failures are (index, error).

    Args:
        producer_ttl: seconds that a silent producer is remembered.
        patience: seconds that one batch may take.
    """

    def __init__(
        self, store: RedisStore, routes: Routes, tenant: str, producer_ttl: int, patience: float
    ) -> None:
        super().__init__(patience)
        self._store = store
        self._routes = routes
        self._tenant = tenant
        self._ttl = producer_ttl

    def take(
        self,
        producer: str,
        sequence: int,
        leaderboard_ids: Sequence[str],
        members: Sequence[str],
        scores: Sequence[float],
        metadata: Sequence[bytes],
        occurred_at: Sequence[int],
    ) -> None:
        """Takes one batch; waits while too many are ahead of their acknowledgement.

        Args:
            leaderboard_ids: one a score, or one for all.
            metadata: one a score, or empty.
            occurred_at: µs, one a score, 0 for now; or empty.

        Raises:
            TallyboardError: the stream is over; the batch was not taken.
        """
        moments = [moment or None for moment in occurred_at] if any(occurred_at) else (None,)
        given = Scores(leaderboard_ids, members, scores, metadata, moments)

        def submit() -> _Submitted:
            batch = ScoreBatch(
                self._routes,
                self._tenant,
                given,
                lambda partition, chunk: self._token(sequence, partition, chunk),
            )
            parts = batch.prepare(time.monotonic() + self._patience)
            write = Write(self.wake_up)
            parts(write)
            if write.parts:
                self._store.submit(write.parts, sum(part.items for part in write.parts))
            else:
                write.over = True
            return _Submitted(batch, write, self._patience)

        self.take_batch(producer, sequence, len(members), submit)

    def _token(self, sequence: int, partition: int, chunk: int) -> Token:
        key = score_producer_key(partition, self._tenant, self.producer, chunk)
        return Token("p", key, sequence, self._ttl)
