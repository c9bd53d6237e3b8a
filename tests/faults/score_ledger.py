"""Clients that submit scores under load, and what boards must hold afterwards, to the unit.

Every score is sent until it is acknowledged. Where it has a moment of its own, no other score has
the same one, so that the rules of the board leave one outcome, whatever the order of arrival.
"""

import itertools
import random
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Final, NamedTuple

import grpc

from tallyboard.v1 import leaderboards_pb2 as pb
from tallyboard.v1 import leaderboards_pb2_grpc
from tests.faults.ledger import (
    CALL_TIMEOUT,
    BatchProducer,
    Clients,
    Ledger,
    Service,
    call,
    retried,
    stub_of,
)

SCORES: Final[Service] = leaderboards_pb2_grpc.LeaderboardServiceStub
DAY: Final = 86_400
MICROS: Final = 1_000_000
#: Windows that end half a day away from any test (see `Book.create`): all hold the same scores.
WINDOWS: Final = ("all", "current:daily", "current:weekly")
_KINDS: Final = {
    "all": pb.WINDOW_KIND_ALL_TIME,
    "current:daily": pb.WINDOW_KIND_DAILY,
    "current:weekly": pb.WINDOW_KIND_WEEKLY,
}
_PAGE: Final = 1000
_MOST_DIFFERENCES: Final = 5
_MOMENTS: Final = itertools.count()
#: What scatters moments over the 100 s before the tests, no two of them equal.
_PRIME: Final = 100_000_007
_STEP: Final = 61_803_399
_START: Final = int(time.time() - 110) * MICROS


class Score(NamedTuple):
    """A score on its way; the moment is in µs, 0 for the time of arrival."""

    board: str
    member: str
    score: float
    metadata: bytes
    moment: int = 0

    def message(self) -> pb.Submission:
        """As SubmitScore and BatchSubmitScores take it."""
        message = pb.Submission(
            leaderboard_id=self.board,
            member=self.member,
            score=self.score,
            metadata=self.metadata,
        )
        if self.moment:
            message.occurred_at.FromMicroseconds(self.moment)
        return message


#: By board and window, the entries by their members.
Standings = dict[tuple[str, str], dict[str, Score]]


class Rules(NamedTuple):
    """How a board keeps scores, and in which window ids they are found."""

    policy: str
    ascending: bool = False
    windows: tuple[str, ...] = WINDOWS

    def kept(self, held: Score, coming: Score) -> Score:
        """What stays of two scores of a member."""
        latest = coming if coming.moment >= held.moment else held
        if self.policy == "SUM":
            return latest._replace(score=held.score + coming.score)
        if self.policy == "LATEST":
            return latest
        if coming.score == held.score:
            return held if latest is coming else coming
        return coming if (coming.score < held.score) == self.ascending else held


class Book(Ledger):
    """What was acknowledged, board by board, and so what each must hold."""

    def __init__(self) -> None:
        super().__init__()
        self.rules: dict[str, Rules] = {}
        self._kept: dict[tuple[str, str], Score] = {}

    def create(self, target: str, board: str, rules: Rules, **definition: Any) -> None:
        """Makes a board whose days and weeks end half a day from now."""
        retried(target, "CreateLeaderboard", creation(board, rules, **definition), SCORES)
        self.rules[board] = rules

    def acknowledged(self, scores: Iterable[Score]) -> None:
        """They count."""
        with self._lock:
            for score in scores:
                name = (score.board, score.member)
                held = self._kept.get(name)
                rules = self.rules[score.board]
                self._kept[name] = score if held is None else rules.kept(held, score)

    def score_differences(self, target: str) -> list[tuple[Any, ...]]:
        """Some of the entries that are not what they must be: (board, window, found, expected)."""
        return self.wrong_entries(self.read(target))

    def read(self, target: str) -> Standings:
        """Every entry of every window of every board, live."""
        return {
            (board, window): entries(target, board, window)
            for board, rules in self.rules.items()
            for window in rules.windows
        }

    def wrong_entries(self, standings: Standings) -> list[tuple[Any, ...]]:
        """Some of those that are not what was acknowledged, as in `score_differences`."""
        wrong = []
        for (board, window), found in standings.items():
            kept = {member: s for (name, member), s in self._kept.items() if name == board}
            for member in found.keys() | kept.keys():
                if not self._is_right(board, found.get(member), kept.get(member)):
                    wrong.append((board, window, found.get(member), kept.get(member)))
        return wrong[:_MOST_DIFFERENCES]

    def _is_right(self, board: str, found: Score | None, kept: Score | None) -> bool:
        if found is None or not found.metadata.startswith(found.member.encode()):
            return False
        perhaps = self.perhaps[_name(board, found.member)]
        if perhaps:  # a sum of which some is not known to count
            least = self.sure[_name(board, found.member)]
            return least <= found.score <= least + perhaps
        if kept is None:
            return False
        if kept.moment:
            return found == kept
        if self.rules[board].policy == "SUM":
            return found.score == kept.score
        return found._replace(moment=0) == kept


def _name(board: str, member: str) -> str:
    return f"{board}\n{member}"


def creation(board: str, rules: Rules, **definition: Any) -> pb.CreateLeaderboardRequest:
    """The request that makes a board; its days and weeks end half a day from now."""
    message = pb.Leaderboard(
        update_policy=pb.UpdatePolicy.Value(f"UPDATE_POLICY_{rules.policy}"),
        sort_order=pb.SORT_ORDER_ASCENDING if rules.ascending else pb.SORT_ORDER_DESCENDING,
        windows=[_KINDS[window] for window in rules.windows],
        **definition,
    )
    message.reset_offset.FromSeconds((int(time.time()) + DAY // 2) % DAY)
    return pb.CreateLeaderboardRequest(
        leaderboard_id=board, leaderboard=message, request_id=str(uuid.uuid4())
    )


def entries(target: str, board: str, window: str = "all") -> dict[str, Score]:
    """Every entry of a window by its member, read live page by page."""
    found: dict[str, Score] = {}
    request = pb.ListEntriesRequest(leaderboard_id=board, window=window, page_size=_PAGE)
    request.consistency.exact = True
    while True:
        page = retried(target, "ListEntries", request, SCORES)
        for entry in page.entries:
            moment = entry.updated_at.ToMicroseconds()
            found[entry.member] = Score(board, entry.member, entry.score, entry.metadata, moment)
        request.page_token = page.next_page_token
        if not page.next_page_token:
            return found


def new_score(board: str, member: str, *, with_moment: bool = True) -> Score:
    """A random score above 0; its metadata belongs to no other one."""
    score = float(random.randint(1, 1_000_000))
    number = next(_MOMENTS)
    moment = _START + number * _STEP % _PRIME if with_moment else 0
    return Score(board, member, score, f"{member} {number}".encode(), moment)


def some_member() -> str:
    """Half of the time one of three hot members, else one of many."""
    if random.random() < 0.5:
        return random.choice(("ann", "bob", "cat"))
    return f"member{random.randint(0, 299)}"


def batch_request(scores: Iterable[Score]) -> pb.BatchSubmitScoresRequest:
    """The scores in one call with a request id."""
    return pb.BatchSubmitScoresRequest(
        submissions=[score.message() for score in scores], request_id=str(uuid.uuid4())
    )


class ScoreProducer(BatchProducer[list[Score]]):
    """A producer of scores.

    Args:
        make_score: gives the next score.
        size: of a batch, or the sizes to choose from.
    """

    service = SCORES
    method = "StreamScores"

    def __init__(self, make_score: Callable[[], Score], size: int | Sequence[int] = 40) -> None:
        super().__init__()
        self._make_score = make_score
        self._sizes = (size,) if isinstance(size, int) else size

    def make(self) -> list[Score]:
        """As many scores as a batch has."""
        return [self._make_score() for _ in range(random.choice(self._sizes))]

    def message(self, sequence: int) -> pb.StreamScoresRequest:
        """The message of a batch; the same each time."""
        scores = self.unacknowledged[sequence]
        boards = [score.board for score in scores]
        return pb.StreamScoresRequest(
            producer_id=self.id,
            sequence=sequence,
            leaderboard_ids=boards[:1] if len(set(boards)) == 1 else boards,
            members=[score.member for score in scores],
            scores=[score.score for score in scores],
            metadata=[score.metadata for score in scores],
            occurred_at_micros=[score.moment for score in scores],
        )


class ScoreLoad(Clients):
    """Clients of leaderboards, on boards of their own of every policy, some with four segments.

    Args:
        targets, kinds, each, moves: see Clients.
        prefix: of the ids of the boards.
    """

    service = SCORES

    def __init__(
        self,
        *targets: str,
        prefix: str = "",
        kinds: tuple[str, ...] = ("one", "without_id", "many", "stream", "plain_stream"),
        each: int = 1,
        moves: bool = False,
    ) -> None:
        self.book = Book()
        super().__init__(targets, self.book, kinds, each, moves)
        prefix = prefix or f"{uuid.uuid4().hex[:8]}:"
        self._boards = [f"{prefix}{name}" for name in _LOAD]
        for board, (rules, segments, tie_break) in zip(self._boards, _LOAD.values(), strict=True):
            self.book.create(targets[0], board, rules, segments=segments, tie_break=tie_break)
        self._plain = (f"{prefix}plain", f"{prefix}plain-best")
        for board, policy in zip(self._plain, ("SUM", "BEST"), strict=True):
            self.book.create(targets[0], board, Rules(policy))
        self._loose = f"{prefix}loose"
        self.book.create(targets[0], self._loose, Rules("SUM"))

    def differences(self) -> tuple[list[tuple[Any, ...]], list[str]]:
        """What boards hold and must not, as the last service sees them; and other problems."""
        return self.book.score_differences(self._targets[-1]), self.book.problems

    def _score(self) -> Score:
        return new_score(random.choice(self._boards), some_member())

    def _counted(self, scores: list[Score]) -> None:
        self.book.acknowledged(scores)
        self._wrote(len(scores))

    def _one(self, target: str) -> None:
        while not self._stop.is_set():
            score = self._score()
            request = pb.SubmitScoreRequest(
                submission=score.message(), request_id=str(uuid.uuid4()), return_ranks=True
            )
            answer = self._until_acknowledged(target, partial(call, "SubmitScore", request))
            # What is journaled is not applied yet, so nobody knows what it did.
            expected = [not answer.journaled] * len(WINDOWS)
            if [result.HasField("score") for result in answer.results] != expected:
                self.book.problem(f"not the scores of every window: {answer}")
            self._counted([score])

    def _without_id(self, target: str) -> None:
        """Sums, which can't be sent again, and bests, which can."""
        places = self._places(target)
        member = f"loose-{uuid.uuid4().hex}"
        while not self._stop.is_set():
            best = new_score(self._boards[2], some_member())
            request = pb.SubmitScoreRequest(submission=best.message())
            self._until_acknowledged(target, partial(call, "SubmitScore", request))
            self._counted([best])
            score = new_score(self._loose, member, with_moment=False)
            request = pb.SubmitScoreRequest(submission=score.message())
            try:
                with stub_of(next(places), SCORES) as stub:
                    stub.SubmitScore(request, timeout=CALL_TIMEOUT)
            except grpc.RpcError as error:
                self._failed_without_id(error, _name(self._loose, member), int(score.score))
                self._stop.wait(0.02)
            else:
                self.book.counted(_name(self._loose, member), int(score.score))
                self._counted([score])

    def _many(self, target: str) -> None:
        while not self._stop.is_set():
            scores = [self._score() for _ in range(random.choice(_SIZES))]
            request = batch_request(scores)
            answer = self._until_acknowledged(target, partial(call, "BatchSubmitScores", request))
            self._acknowledged([scores], answer.failures)

    def _stream(self, target: str) -> None:
        self._run_stream(ScoreProducer(self._score), target, self._acknowledged)

    def _plain_stream(self, target: str) -> None:
        """One board a batch and no moments; sometimes more than are sent to Redis at once."""
        board = random.choice(self._plain)
        make = partial(_plain_score, board)
        self._run_stream(ScoreProducer(make, _SIZES), target, self._acknowledged)

    def _acknowledged(self, batches: list[list[Score]], failures: Sequence[Any]) -> None:
        for failure in failures:
            self.book.problem(f"a score failed: {failure}")
        for scores in batches:
            self._counted(scores)


def _plain_score(board: str) -> Score:
    score = new_score(board, some_member(), with_moment=False)
    if board.endswith("best"):  # no two scores of a member are equal
        return score._replace(score=score.score + next(_MOMENTS) / 2**24)
    return score


#: More than 2,000 are not sent to Redis as one.
_SIZES: Final = (20, 20, 20, 20, 2100)
_LOAD: Final[dict[str, tuple[Rules, int, int]]] = {
    "sum": (Rules("SUM"), 1, pb.TIE_BREAK_EARLIEST),
    "sum-4": (Rules("SUM"), 4, pb.TIE_BREAK_MEMBER_ID),
    "best": (Rules("BEST"), 1, pb.TIE_BREAK_EARLIEST),
    "best-4": (Rules("BEST", ascending=True), 4, pb.TIE_BREAK_EARLIEST),
    "latest": (Rules("LATEST"), 1, pb.TIE_BREAK_MEMBER_ID),
    "latest-4": (Rules("LATEST", ascending=True), 4, pb.TIE_BREAK_EARLIEST),
}


@contextmanager
def streaming(
    producer: ScoreProducer,
    target: str,
    stop: threading.Event,
    on_acknowledged: Callable[[list[list[Score]], list[Any]], None],
) -> Iterator[None]:
    """One stream on a thread of its own, which must not break; at the end all is acknowledged."""
    errors: list[Exception] = []

    def run() -> None:
        try:
            with stub_of(target, SCORES) as stub:
                producer.run(stub, stop, on_acknowledged)
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(CALL_TIMEOUT * 8)
    assert (errors, thread.is_alive()) == ([], False)
