"""Leaderboards: scores in, ranks out."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple, TypedDict, Unpack

from tallyboard._answers import (
    BatchResult,
    Entry,
    Submitted,
    consistency_of,
    entry_of,
    submitted_of,
)
from tallyboard._calls import Calls, is_not_found
from tallyboard._counters import new_id
from tallyboard._errors import InvalidArgumentError, TallyboardError, error_from_status
from tallyboard._requests import at_least_one, build, build_each, refused, within
from tallyboard.v1 import leaderboards_pb2, leaderboards_pb2_grpc


class Score(NamedTuple):
    """A score to submit with others.

    Attributes:
        metadata: up to 2 KiB that belong to the score.
        occurred_at: when it was reached, with a time zone; now if left out.
    """

    member: str
    score: float
    metadata: bytes = b""
    occurred_at: datetime | None = None


class ReadOptions(TypedDict, total=False):
    """What every read of entries may be given.

    Attributes:
        window: an id, or `current:daily` and so on; a leaderboard with one kind needs none.
        rank_method: `ORDINAL` (each its own rank, the default), `COMPETITION` (1224) or `DENSE`
            (1223).
        max_staleness: seconds that the answer may be old, up to an hour.
        exact: whether it has to hold everything acknowledged before the call.
        timeout: seconds that it may take, instead of the client's.
    """

    window: str
    rank_method: str
    max_staleness: float | timedelta | None
    exact: bool
    timeout: float | None


class LeaderboardCalls:
    """The calls of LeaderboardService."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._stubs = calls.stubs(leaderboards_pb2_grpc.LeaderboardServiceStub)

    def call(
        self, method: Callable[[Any], Callable[..., Any]], request: object, timeout: float | None
    ) -> Any:
        """One call of a method of the next stub."""
        return self._calls.call(method(next(self._stubs)), request, timeout)

    def stream(self, method: Callable[[Any], Callable[..., Any]], request: object) -> Iterator[Any]:
        """The answers of a method of the next stub."""
        return self._calls.stream(method(next(self._stubs)), request)


class Leaderboard:
    """One leaderboard of the client's tenant; made by `Client.leaderboard`.

    `window` is an id (`2026-W48`, `all`, a season's name) or `current:daily`, `previous:weekly`
    and so on; a leaderboard with one kind of window needs none. For `max_staleness` and `exact` see
    `Counter.get`, for `request_id` and `timeout` `Counter.increment`.

    Attributes:
        leaderboard_id: its name.
    """

    def __init__(self, calls: LeaderboardCalls, leaderboard_id: str) -> None:
        self._calls = calls
        self.leaderboard_id = leaderboard_id

    def create(
        self,
        definition: leaderboards_pb2.Leaderboard | None = None,
        *,
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> leaderboards_pb2.Leaderboard:
        """Makes it; what the definition leaves out has the service's defaults.

        Raises:
            AlreadyExistsError: there is one.
            InvalidArgumentError: the definition is at fault.
        """
        request = build(
            leaderboards_pb2.CreateLeaderboardRequest,
            leaderboard_id=self.leaderboard_id,
            leaderboard=definition or leaderboards_pb2.Leaderboard(),
            request_id=request_id or new_id(),
        )
        made = self._calls.call(lambda stub: stub.CreateLeaderboard, request, timeout).leaderboard
        assert isinstance(made, leaderboards_pb2.Leaderboard)
        return made

    def delete(self, *, request_id: str | None = None, timeout: float | None = None) -> int:
        """Deletes it with all its entries; tells how many went."""
        request = build(
            leaderboards_pb2.DeleteLeaderboardRequest,
            leaderboard_id=self.leaderboard_id,
            request_id=request_id or new_id(),
        )
        answer = self._calls.call(lambda stub: stub.DeleteLeaderboard, request, timeout)
        return int(answer.deleted_entries)

    def submit(
        self,
        member: str,
        score: float,
        *,
        metadata: bytes = b"",
        occurred_at: datetime | None = None,
        return_ranks: bool = False,
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> Submitted:
        """A member's score, for all windows of the leaderboard; returns once it is durable.

        Raises:
            InvalidArgumentError: a field is at fault; `occurred_at` also without a time zone.
            NotFoundError: there is no such leaderboard.
            FailedPreconditionError: `occurred_at` is in a window that is closed.
            UnavailableError, DeadlineExceededError: see `Counter.increment`.
        """
        try:
            submission = self._submission((member, score, metadata, occurred_at))
        except InvalidArgumentError as error:
            raise within("submission", error) from error
        request = build(
            leaderboards_pb2.SubmitScoreRequest,
            submission=submission,
            request_id=request_id or new_id(),
            return_ranks=return_ranks,
        )
        return submitted_of(self._calls.call(lambda stub: stub.SubmitScore, request, timeout))

    def submit_many(
        self,
        scores: Iterable[Score | tuple[str, float]],
        *,
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> BatchResult:
        """Up to 10,000 scores in one call.

        Raises:
            InvalidArgumentError: as `submit`; the whole call is refused.
        """
        request = build(
            leaderboards_pb2.BatchSubmitScoresRequest,
            submissions=build_each("submissions", self._submission, scores),
            request_id=request_id or new_id(),
        )
        answer = self._calls.call(lambda stub: stub.BatchSubmitScores, request, timeout)
        failures: dict[int, TallyboardError] = {
            failure.index: error_from_status(failure.status) for failure in answer.failures
        }
        return BatchResult(failures, answer.duplicate)

    def top(self, count: int = 10, **options: Unpack[ReadOptions]) -> list[Entry]:
        """The best entries; for the options see `ReadOptions`.

        Args:
            count: how many, 1 or more; above 1,000 it is 1,000.

        Raises:
            InvalidArgumentError: an argument is outside its limits.
        """
        at_least_one("PAGE_INVALID", "page_size", count)
        request = build(
            leaderboards_pb2.ListEntriesRequest, leaderboard_id=self.leaderboard_id, page_size=count
        )
        return self._entries(lambda stub: stub.ListEntries, request, options)

    def around(
        self, member: str, neighbors: int = 3, **options: Unpack[ReadOptions]
    ) -> list[Entry]:
        """A member with its neighbours on either side, the best one first.

        Args:
            neighbors: how many on either side, 1 or more; above 100 it is 100.

        Raises:
            InvalidArgumentError: an argument is outside its limits.
            NotFoundError: the member has no entry.
        """
        at_least_one("FIELD_INVALID", "neighbors", neighbors)
        request = build(
            leaderboards_pb2.ListEntriesAroundRequest,
            leaderboard_id=self.leaderboard_id,
            member=member,
            neighbors=neighbors,
        )
        return self._entries(lambda stub: stub.ListEntriesAround, request, options)

    def friends(self, members: Sequence[str], **options: Unpack[ReadOptions]) -> list[Entry]:
        """Those of the members that have an entry, ranked among themselves, the best one first."""
        request = build(
            leaderboards_pb2.BatchGetEntriesRequest,
            leaderboard_id=self.leaderboard_id,
            members=members,
            relative_ranks=True,
        )
        found = self._entries(lambda stub: stub.BatchGetEntries, request, options)
        return sorted(found, key=lambda entry: entry.rank)

    def entry(self, member: str, **options: Unpack[ReadOptions]) -> Entry | None:
        """A member's entry, or None."""
        request = build(
            leaderboards_pb2.GetEntryRequest, leaderboard_id=self.leaderboard_id, member=member
        )
        timeout = _prepare(request, options)
        try:
            answer = self._calls.call(lambda stub: stub.GetEntry, request, timeout)
        except TallyboardError as error:
            if is_not_found(error):
                return None
            raise
        return entry_of(answer.entry)

    def rank(self, member: str, **options: Unpack[ReadOptions]) -> int | None:
        """A member's rank, 1 for the best; None without an entry."""
        found = self.entry(member, **options)
        return None if found is None else found.rank

    def remove(
        self,
        member: str,
        *,
        window: str = "",
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> int:
        """Deletes a member's entries, in one window or all; tells how many."""
        request = build(
            leaderboards_pb2.DeleteEntryRequest,
            leaderboard_id=self.leaderboard_id,
            member=member,
            window=window,
            request_id=request_id or new_id(),
        )
        answer = self._calls.call(lambda stub: stub.DeleteEntry, request, timeout)
        return int(answer.deleted_entries + answer.deleted_archived_entries)

    def watch(
        self, count: int = 10, *, window: str = "", min_interval: float = 1.0
    ) -> Iterator[list[Entry]]:
        """The best entries now, and whenever they change, until the iterator is closed.

        Args:
            count: how many, 1 or more; above 100 it is 100.
            min_interval: seconds between two answers, at least 0.1.

        Raises:
            InvalidArgumentError: an argument is outside its limits.
            UnavailableError: the stream ended; watch again.
        """
        at_least_one("FIELD_INVALID", "limit", count)
        request = build(
            leaderboards_pb2.WatchEntriesRequest,
            leaderboard_id=self.leaderboard_id,
            window=window,
            limit=count,
        )
        request.min_interval.FromTimedelta(timedelta(seconds=min_interval))
        for answer in self._calls.stream(lambda stub: stub.WatchEntries, request):
            yield [entry_of(entry) for entry in answer.entries]

    def _entries(
        self,
        method: Callable[[Any], Callable[..., Any]],
        request: Any,
        options: ReadOptions,
    ) -> list[Entry]:
        answer = self._calls.call(method, request, _prepare(request, options))
        return [entry_of(entry) for entry in answer.entries]

    def _submission(self, given: tuple[Any, ...]) -> leaderboards_pb2.Submission:
        score = Score(*given)
        made = build(
            leaderboards_pb2.Submission,
            leaderboard_id=self.leaderboard_id,
            member=score.member,
            score=score.score,
            metadata=score.metadata,
        )
        if score.occurred_at is not None:
            if score.occurred_at.utcoffset() is None:
                advice = "must have a time zone: datetime.now(UTC), or replace(tzinfo=...)"
                raise refused("FIELD_INVALID", "occurred_at", advice)
            made.occurred_at.FromDatetime(score.occurred_at)
        return made


def _prepare(request: Any, options: ReadOptions) -> float | None:
    """Writes the options into a request; gives the timeout."""
    request.MergeFrom(build(type(request), window=options.get("window", "")))
    method = options.get("rank_method", "")
    if method:
        request.rank_method = leaderboards_pb2.RankMethod.Value(f"RANK_METHOD_{method}")
    wanted = consistency_of(options.get("max_staleness"), options.get("exact", False))
    if wanted is not None:
        request.consistency.CopyFrom(wanted)
    return options.get("timeout")
