"""Writes of leaderboards: one score, many, and what takes entries away."""

from array import array
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from tallyboard_server.counters.model import MakeDurable
from tallyboard_server.counters.requests import RequestIds
from tallyboard_server.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    NotFound,
    OutcomeUnknown,
    OutOfRange,
    TallyboardError,
    Unavailable,
)
from tallyboard_server.leaderboards.batches import (
    ATTEMPTS,
    ScoreBatch,
    Scores,
    pause_before,
)
from tallyboard_server.leaderboards.boards import Boards
from tallyboard_server.leaderboards.model import (
    Leaderboard,
    RankMethod,
    Submission,
    WindowResult,
)
from tallyboard_server.leaderboards.reads import EntryReader
from tallyboard_server.leaderboards.removals import Removals
from tallyboard_server.leaderboards.routes import Route, Routes
from tallyboard_server.postgres.pool import BoundedPool
from tallyboard_server.redis.keys import score_request_key, segment_of
from tallyboard_server.redis.operations import Token, Write
from tallyboard_server.redis.scores import Columns, ScorePart, ScoresRefused, code_of
from tallyboard_server.redis.store import RedisStore


class SubmitResult(NamedTuple):
    """What became of a score.

    Attributes:
        windows: what it did in each window; scores and ranks are None when it was journaled.
        duplicate: it had been applied, or journaled, before.
        journaled: it is durable, and will be applied when Redis takes it.
    """

    windows: list[WindowResult]
    duplicate: bool
    journaled: bool = False


class ScoreWriter:
    """Writes for one worker. Deadlines are values of `time.monotonic()`.

    Args:
        request_ttl: seconds that request ids are remembered.
        make_durable: see Removals.
    """

    def __init__(
        self,
        store: RedisStore,
        pool: BoundedPool,
        boards: Boards,
        routes: Routes,
        reader: EntryReader,
        requests: RequestIds,
        request_ttl: int,
        make_durable: MakeDurable | None = None,
    ) -> None:
        self._store = store
        self._routes = routes
        self._reader = reader
        self._requests = requests
        self._request_ttl = request_ttl
        self._removals = Removals(store, pool, boards, requests, routes.clock, make_durable)

    def submit(
        self,
        tenant: str,
        submission: Submission,
        request_id: str,
        return_ranks: bool,
        deadline: float,
    ) -> SubmitResult:
        """Submits one score; gives what it did in each window.

        Raises:
            NotFound: there is no such leaderboard.
            FailedPrecondition: WINDOW_CLOSED.
            OutOfRange: the sum of the member's scores would not be finite.
            TallyboardError: see errors.py.
        """
        now, member = self._routes.clock(), submission.member
        moment = now if submission.occurred_at is None else submission.occurred_at
        if request_id:
            self._requests.claim(tenant, request_id, _contents([submission]), deadline)
        for attempt in range(ATTEMPTS):
            try:
                route = self._routes.route(
                    tenant, submission.leaderboard_id, submission.occurred_at, now, deadline
                )
            except FailedPrecondition:
                if not self._was_applied(tenant, submission, request_id, deadline):
                    raise
                standing = self._repeated(tenant, submission, return_ranks, deadline)
                return SubmitResult(standing, True)
            segment = segment_of(member, route.segments)
            before = None
            if return_ranks and route.segments > 1:
                with suppress(Unavailable):  # it may still be journaled
                    before = self._ranks(route, member, deadline)
            answer = "r" if return_ranks and route.segments == 1 else "s"
            try:
                part = self._send(
                    tenant, route, segment, submission, moment, request_id, answer, deadline
                )
            except ScoresRefused as error:
                if any(refusal.code == "s" for refusal in error.refusals):
                    raise OutOfRange(
                        "the sum of the member's scores would not be finite; it keeps its score",
                        reason="SCORE_OUT_OF_RANGE",
                    ) from error
                for refusal in error.refusals:
                    self._routes.learn(refusal, attempt, deadline)
                pause_before(attempt, deadline)
                continue
            if part.journaled:
                unknown = [
                    WindowResult(window, None, None, False, None, None) for window in route.windows
                ]
                return SubmitResult(unknown, part.write.duplicate, journaled=True)
            if not part.outcomes:
                standing = self._standing(route, member, return_ranks, request_id, deadline)
                return SubmitResult(standing, part.write.duplicate)
            results = _results(route, part)
            if route.segments > 1:
                self._complete(route, member, results, before, request_id, deadline)
            return SubmitResult(results, False)
        raise Unavailable(
            "the leaderboard is being changed; try again", reason="PARTITION_UNAVAILABLE"
        )

    def batch(
        self,
        tenant: str,
        submissions: Sequence[Submission],
        request_id: str,
        is_import: bool,
        deadline: float,
    ) -> tuple[dict[int, TallyboardError], bool]:
        """Submits many scores; gives those that did not count, and whether it was a repeat.

        Raises:
            TallyboardError: none of it counted, or, with a request id, a repeat will complete it.
        """
        if request_id:
            self._requests.claim(tenant, request_id, _contents(submissions), deadline)
        batch = ScoreBatch(
            self._routes,
            tenant,
            Scores(
                [submission.leaderboard_id for submission in submissions],
                [submission.member for submission in submissions],
                [submission.score for submission in submissions],
                [submission.metadata for submission in submissions],
                [submission.occurred_at for submission in submissions],
            ),
            lambda partition, chunk: self._token(partition, tenant, request_id, chunk),
            is_import=is_import,
        )
        duplicate = batch.send(deadline)
        return batch.failures, duplicate

    def delete(
        self,
        tenant: str,
        leaderboard_id: str,
        member: str,
        window: str,
        request_id: str,
        deadline: float,
    ) -> tuple[int, int, bool]:
        """Deletes a member's entry; see Removals.delete."""
        return self._removals.delete(tenant, leaderboard_id, member, window, request_id, deadline)

    def erase(
        self, tenant: str, member: str, request_id: str, deadline: float
    ) -> tuple[int, int, int, bool]:
        """Erases a member everywhere; see Removals.erase."""
        return self._removals.erase(tenant, member, request_id, deadline)

    def _send(
        self,
        tenant: str,
        route: Route,
        segment: int,
        submission: Submission,
        moment: int,
        request_id: str,
        answer: str,
        deadline: float,
    ) -> ScorePart:
        plan, metadata = route.plan(segment), submission.metadata
        token = self._token(plan.partition, tenant, request_id, 0) if request_id else None
        columns = Columns(
            [submission.member],
            array("d", (submission.score + 0.0,)),  # -0.0 is 0.0
            array("Q", (code_of(moment, plan.descending),)),
            [metadata] if metadata else [],
        )
        made: list[ScorePart] = []

        def parts(write: Write) -> None:
            part = ScorePart(write, plan.partition, {plan: columns}, token, answer)
            made.append(part)
            write.add(part)

        self._store.write(parts, 1, deadline)
        return made[0]

    def _was_applied(
        self, tenant: str, submission: Submission, request_id: str, deadline: float
    ) -> bool:
        """Whether the request counted before its window closed."""
        if not request_id:
            return False
        partition = self._routes.partition_of(
            tenant, submission.leaderboard_id, submission.member, deadline
        )
        key = score_request_key(partition, tenant, request_id, 0)
        return self._store.get([key], deadline, (partition,))[0] is not None

    def _repeated(
        self, tenant: str, submission: Submission, return_ranks: bool, deadline: float
    ) -> list[WindowResult]:
        """How the windows of a repeat stand; none of what is past its retention."""
        with suppress(FailedPrecondition, NotFound):
            route = self._routes.route(
                tenant,
                submission.leaderboard_id,
                submission.occurred_at,
                self._routes.clock(),
                deadline,
                is_import=True,
            )
            return self._standing(
                route, submission.member, return_ranks, "repeat", deadline, live_only=False
            )
        return []

    def _token(self, partition: int, tenant: str, request_id: str, chunk: int) -> Token | None:
        if not request_id:
            return None
        key = score_request_key(partition, tenant, request_id, chunk)
        return Token("r", key, "", self._request_ttl)

    def _complete(
        self,
        route: Route,
        member: str,
        results: list[WindowResult],
        ranks_before: list[int | None] | None,
        request_id: str,
        deadline: float,
    ) -> None:
        """What one segment alone can't tell: whether the entry stays, and its ranks.

        Args:
            ranks_before: if ranks are wanted, those before the write.
        """
        if route.needs_trim:
            self._routes.trim(route, deadline)
        elif ranks_before is None:
            return
        standing = self._standing(route, member, True, request_id, deadline)
        for i, (result, now) in enumerate(zip(results, standing, strict=True)):
            if now.score is None:  # the member itself was above the limit
                result.score, result.improved = None, False
            if ranks_before is not None:
                result.previous_rank, result.rank = ranks_before[i], now.rank

    def _ranks(self, route: Route, member: str, deadline: float) -> list[int | None]:
        return [result.rank for result in self._standings(route, member, deadline)]

    def _standing(
        self,
        route: Route,
        member: str,
        ranks: bool,
        request_id: str,
        deadline: float,
        *,
        live_only: bool = True,
    ) -> list[WindowResult]:
        """How a member stands behind a write. Its failure must not invite to write again."""
        try:
            results = self._standings(route, member, deadline, live_only=live_only)
        except (Unavailable, DeadlineExceeded) as error:
            if request_id or route.board.update_policy.value != "SUM":
                raise
            raise OutcomeUnknown(f"it counted, but the score can't be read: {error}") from error
        for result in results:
            result.rank = result.rank if ranks else None
        return results

    def _standings(
        self, route: Route, member: str, deadline: float, *, live_only: bool = True
    ) -> list[WindowResult]:
        results = []
        for window in route.windows:
            found = self._reader.entries(
                route.board, window, (member,), RankMethod.ORDINAL, deadline, live_only=live_only
            )
            entry = found.entries[0] if found.entries else None
            results.append(
                WindowResult(
                    window,
                    None,
                    entry.score if entry else None,
                    False,
                    None,
                    entry.rank if entry else None,
                )
            )
        return results


def _results(route: Route, part: ScorePart) -> list[WindowResult]:
    board, results = route.board, []
    for window, outcome in zip(route.windows, part.outcomes, strict=True):
        before, now = outcome.before[0], outcome.now[0]
        result = WindowResult(window, before, now, _is_better(board, now, before))
        if outcome.ranks:
            result.previous_rank = outcome.ranks_before[0] or None
            result.rank = outcome.ranks[0] or None
        results.append(result)
    return results


def _is_better(board: Leaderboard, now: float | None, before: float | None) -> bool:
    if now is None or before is None:
        return now is not None
    return now > before if board.is_descending else now < before


def _contents(submissions: Sequence[Submission]) -> str:
    """What a request id stands for."""
    rows: list[tuple[Any, ...]] = [
        (s.leaderboard_id, s.member, s.score, s.metadata, s.occurred_at) for s in submissions
    ]
    return f"submit\0{rows!r}"
