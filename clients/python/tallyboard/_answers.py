"""What reads and writes answer, as plain values instead of messages."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from google.protobuf.timestamp_pb2 import Timestamp

from tallyboard._errors import TallyboardError
from tallyboard.v1 import consistency_pb2, counters_pb2, leaderboards_pb2


class Count(NamedTuple):
    """A counter at some moment.

    Attributes:
        counter: its name.
        value: the total.
        exists: whether it was ever written, and not deleted since.
        as_of: the moment of which the value is true.
        source: `LIVE`, `CACHE` or `DURABLE`.
    """

    counter: str
    value: int
    exists: bool
    as_of: datetime
    source: str


class Entry(NamedTuple):
    """A member's place in a ranking.

    Attributes:
        rank: 1 is the best.
        updated_at: when the member reached the score.
    """

    rank: int
    member: str
    score: float
    metadata: bytes
    updated_at: datetime


class WindowResult(NamedTuple):
    """What a score did in one window.

    Attributes:
        window: `all`, `2026-W48` and so on.
        previous_score: the member's score before, or None.
        score: the member's score now.
        improved: whether the score is a better one now.
        previous_rank, rank: only where ranks were asked for.
    """

    window: str
    previous_score: float | None
    score: float | None
    improved: bool
    previous_rank: int | None
    rank: int | None


class Submitted(NamedTuple):
    """What a score did.

    Attributes:
        results: one for each window of the leaderboard.
        duplicate: whether the request id was seen before, so that nothing changed.
        journaled: whether it is durable, and applied when Redis takes it again.
    """

    results: tuple[WindowResult, ...]
    duplicate: bool
    journaled: bool


class BatchResult(NamedTuple):
    """What became of many updates in one call.

    Attributes:
        failures: by index, the updates that could not count, and why; all others did.
        duplicate: whether the request id was seen before, so that nothing changed.
    """

    failures: Mapping[int, TallyboardError]
    duplicate: bool


def consistency_of(
    max_staleness: float | timedelta | None, exact: bool
) -> consistency_pb2.Consistency | None:
    """How fresh an answer has to be, as a message; None leaves it to the service.

    Raises:
        ValueError: both were given.
    """
    if exact:
        if max_staleness is not None:
            raise ValueError("give either exact or max_staleness")
        return consistency_pb2.Consistency(exact=True)
    if max_staleness is None:
        return None
    wanted = consistency_pb2.Consistency()
    if not isinstance(max_staleness, timedelta):
        max_staleness = timedelta(seconds=max_staleness)
    wanted.max_staleness.FromTimedelta(max_staleness)
    return wanted


def count_of(message: counters_pb2.Count) -> Count:
    """A count from its message."""
    source = consistency_pb2.Source.Name(message.source).removeprefix("SOURCE_")
    return Count(message.counter, message.value, message.exists, moment_of(message.as_of), source)


def entry_of(message: leaderboards_pb2.Entry) -> Entry:
    """An entry from its message."""
    return Entry(
        message.rank,
        message.member,
        message.score,
        message.metadata,
        moment_of(message.updated_at),
    )


def submitted_of(message: leaderboards_pb2.SubmitScoreResponse) -> Submitted:
    """What a score did, from its message."""
    results = tuple(
        WindowResult(
            result.window,
            _given(result, "previous_score"),
            _given(result, "score"),
            result.improved,
            _given(result, "previous_rank"),
            _given(result, "rank"),
        )
        for result in message.results
    )
    return Submitted(results, message.duplicate, message.journaled)


def moment_of(stamp: Timestamp) -> datetime:
    """A moment with its time zone, UTC."""
    return stamp.ToDatetime(tzinfo=UTC)


def _given(message: leaderboards_pb2.WindowResult, field: Any) -> Any:
    return getattr(message, field) if message.HasField(field) else None
