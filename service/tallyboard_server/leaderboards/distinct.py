"""The indexes of distinct scores that dense ranks are read from.

They are made when somebody first asks for dense ranks, kept up by every write while they are there,
and end an hour after the last one asked (see distinct.lua).
"""

import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

from tallyboard_server.errors import TallyboardError, Unavailable
from tallyboard_server.redis.fences import closed
from tallyboard_server.redis.rankings import Ranking, distinct_command
from tallyboard_server.redis.store import RedisStore

# A step holds Redis up for about a millisecond.
_STEP: Final = 1_000
_TTL: Final = 3600
_KEEP_EVERY: Final = 300.0
_MOST_KNOWN: Final = 10_000


class DistinctIndexes:
    """Makes and keeps indexes for one worker."""

    def __init__(self, store: RedisStore) -> None:
        self._store = store
        # When each was last kept; about: changed without a lock.
        self._kept: dict[str, float] = {}

    def build(self, rankings: Sequence[Ranking], deadline: float) -> None:
        """Builds what is missing; several may build the same one together.

        Raises:
            Unavailable: it takes longer than the deadline allows; the next one goes on from there.
        """
        missing = list(rankings)
        while missing:
            if time.monotonic() > deadline:
                raise Unavailable(
                    "the index for dense ranks of this window is being built; ask again",
                    reason="PARTITION_UNAVAILABLE",
                )
            replies = self._store.commands([self._command(r) for r in missing], deadline)
            for ranking, reply in zip(missing, replies, strict=True):
                if reply[0] == b"fenced":
                    raise closed(ranking.partition)
            missing = [r for r, reply in zip(missing, replies, strict=True) if reply[0] == b"more"]
        self._note(rankings)

    def keep(self, rankings: Sequence[Ranking]) -> None:
        """Says that somebody asks for dense ranks."""
        kept = self._kept.get(rankings[0].keys.ranking, 0.0)
        if time.monotonic() - kept > _KEEP_EVERY:
            self._note(rankings)
            with suppress(TallyboardError):  # the answer is there; the next one keeps the index
                for ranking in rankings:
                    self._store.send(self._command(ranking))

    def _note(self, rankings: Sequence[Ranking]) -> None:
        if len(self._kept) > _MOST_KNOWN:
            self._kept.clear()
        self._kept[rankings[0].keys.ranking] = time.monotonic()

    def _command(self, ranking: Ranking) -> tuple[Any, ...]:
        incarnation = self._store.fences.expected(ranking.partition)
        if incarnation is None:
            raise closed(ranking.partition)
        return distinct_command(ranking, incarnation, _TTL, _STEP)
