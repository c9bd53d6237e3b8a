"""Exactly once, of scores: whatever breaks under load, boards hold what was acknowledged.

Every sum to the unit, every best and latest score, and with each entry the metadata and the moment
of the score that stayed, in every window.
"""

import os
import signal
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from itertools import count
from typing import Any, Final

import grpc
import pytest
from google.rpc import error_details_pb2

from tallyboard.v1 import leaderboards_pb2 as pb
from tests.faults.crowd import MachineLag
from tests.faults.ledger import CALL_TIMEOUT, call, reason_of, retried, stub_of
from tests.faults.proxy import Faults, Proxy
from tests.faults.score_ledger import (
    MICROS,
    SCORES,
    Book,
    Rules,
    Score,
    ScoreLoad,
    ScoreProducer,
    batch_request,
    creation,
    entries,
    new_score,
    some_member,
    streaming,
)
from tests.redis.node import RedisNode
from tests.service import RunningService
from tests.waiting import wait_for

_CUTS: Final = 30
#: More writes than clients have under way: some of them began later.
_MORE_THAN_UNDER_WAY: Final = 100
#: More bytes than one call of a script has, and fewer than 2,000 scores are.
_CUT_AFTER: Final = 60_000
#: Seconds. A call with an id asks one link and then the other, a second each, before it is
#: journaled, and is answered when every worker knows of that.
_STALL: Final = 5.0
_CROWD: Final = 400
_LATE: Final = 0.05
#: Policy and segments of the boards that single writes go to.
_BOARDS: Final = [("SUM", 1), ("SUM", 4), ("BEST", 1), ("LATEST", 4)]
_CHANGES: Final = {
    "note": pb.Leaderboard(attributes={"colour": "red"}),
    "windows": pb.Leaderboard(
        windows=[pb.WINDOW_KIND_ALL_TIME, pb.WINDOW_KIND_WEEKLY, pb.WINDOW_KIND_MONTHLY]
    ),
    "another note": pb.Leaderboard(attributes={"colour": "blue"}),
}

Services = tuple[RunningService, RunningService]


@pytest.fixture(scope="module")
def services(behind_proxy: RunningService) -> Iterator[Services]:
    """Two services on the same stores, the first behind the proxy."""
    with RunningService(
        workers=1, redis_url=behind_proxy.redis_url, postgres_url=behind_proxy.postgres_url
    ) as second:
        yield behind_proxy, second


@pytest.fixture(scope="module")
def refusing_services(refusing: RunningService, services: Services) -> Services:
    """The same, but the first refuses what Redis does not take."""
    return refusing, services[1]


@pytest.fixture(scope="module")
def embedded() -> Iterator[RunningService]:
    """A service with two workers and stores of its own, which the supervisor restarts."""
    with RunningService(workers=2) as service:
        yield service


@pytest.mark.parametrize(
    ("faults", "what"),
    [
        (Faults(lose_reply_every=7), "lost_replies"),
        (Faults(lose_request_every=7), "lost_requests"),
        (Faults(hold_every=7), "held"),
        (Faults(lose_reply_every=5, piece=111), "lost_replies"),
    ],
    ids=["replies lost", "requests lost", "requests late", "small pieces"],
)
def test_a_bad_line_to_redis_loses_and_doubles_no_score(
    services: Services, proxy: Proxy, faults: Faults, what: str
) -> None:
    before = getattr(proxy, what)
    with ScoreLoad(services[0].target) as load:
        proxy.faults = faults
        wait_for(lambda: getattr(proxy, what) >= before + _CUTS, f"{_CUTS} {what}", 60)
        proxy.deliver_held()
        proxy.faults = Faults()
        load.finish()
    proxy.deliver_held()
    assert load.differences() == ([], [])


def test_scores_of_clients_that_move_between_services_count_once(
    refusing_services: Services, proxy: Proxy
) -> None:
    """Nothing is answered, so what the first service was sent is sent again to the other one, which
    journals it.
    """
    first, second = refusing_services
    with ScoreLoad(first.target, second.target, moves=True) as load:
        for faults in (Faults(mute=True), Faults(black_hole=True)):
            load.wait_for_more(50)
            proxy.faults = faults
            failed = load.ledger.retries + 5
            wait_for(partial(_has_retried, load, failed), "failures")
            proxy.faults = Faults()
            proxy.cut()
        load.wait_for_more(50)
        load.finish()
    assert load.differences() == ([], [])


def test_killed_workers_lose_and_double_no_score(embedded: RunningService) -> None:
    with ScoreLoad(embedded.target) as load:
        for index in (0, 1, 0):
            load.wait_for_more(100)
            embedded.kill_worker(index)
        load.finish()
    assert load.differences() == ([], [])


@pytest.mark.parametrize("stalls_first", [False, True], ids=["at once", "after a stall"])
def test_a_killed_redis_loses_and_doubles_no_score(
    embedded: RunningService, stalls_first: bool
) -> None:
    """What a stalled one has not read yet dies with it."""
    with ScoreLoad(embedded.target) as load:
        for _ in range(2):
            load.wait_for_more(100)
            if stalls_first:
                _stop(embedded, "redis")
                load.wait_for_more(_MORE_THAN_UNDER_WAY)
            embedded.kill_child("redis")
        load.finish()
    assert load.differences() == ([], [])


@pytest.mark.parametrize("segments", [1, 4])
@pytest.mark.parametrize("with_moments", [False, True], ids=["now", "with moments"])
def test_a_stream_that_moves_on_without_reading_acknowledgements_counts_once(
    services: Services, segments: int, with_moments: bool
) -> None:
    """Batches of up to three chunks, each in part applied or not when the stream breaks off."""
    book, producer = _book_and_producer(services[0].target, segments, with_moments)
    for attempt in range(4):
        producer.break_off(services[attempt % 2].target)
    producer.resume(services[1].target, partial(_note, book))
    assert (book.score_differences(services[0].target), book.problems) == ([], [])


def test_two_streams_of_one_producer_of_scores_at_once_count_once(
    services: Services, proxy: Proxy
) -> None:
    book, producer = _book_and_producer(services[0].target, 4, True)
    proxy.faults = Faults(lose_reply_every=5)
    twin = ScoreProducer(lambda: new_score("none", "ann"))  # makes none
    twin.id, twin.unacknowledged = producer.id, dict(producer.unacknowledged)
    nobody = Book()
    nobody.rules = book.rules
    threads = [
        threading.Thread(target=who.resume, args=(service.target, partial(_note, whose)))
        for service, who, whose in zip(services, (producer, twin), (book, nobody), strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (book.score_differences(services[1].target), book.problems) == ([], [])


@pytest.mark.parametrize("with_moments", [False, True], ids=["now", "with moments"])
def test_a_large_batch_cut_in_the_middle_and_repeated_counts_once(
    refusing_services: Services, proxy: Proxy, with_moments: bool
) -> None:
    """5,000 scores of many boards: three chunks, many partitions, sent again from elsewhere."""
    first, second = refusing_services
    book, boards = Book(), []
    for policy, segments in _BOARDS * 2:
        if with_moments or policy != "LATEST":
            boards.append(uuid.uuid4().hex)
            book.create(first.target, boards[-1], Rules(policy), segments=segments)
    scores = [
        new_score(boards[i % len(boards)], f"member{i % 1501}", with_moment=with_moments)
        for i in range(5000)
    ]
    request = batch_request(scores)

    def cut() -> int:
        _fail(
            first.target,
            "BatchSubmitScores",
            request,
            proxy,
            Faults(cut_after=_CUT_AFTER),
        )
        return sum(len(entries(second.target, board)) for board in boards)

    applied = wait_for(cut, "a part of it to be applied", timeout=90)
    answers = [
        retried(service.target, "BatchSubmitScores", request, SCORES) for service in (second, first)
    ]
    book.acknowledged(scores)
    every = len({(score.board, score.member) for score in scores})
    assert (applied < every, answers[0].failures, answers[1].failures) == (True, [], [])
    assert (answers[1].duplicate, book.score_differences(first.target)) == (True, [])


@pytest.mark.parametrize(("policy", "segments"), _BOARDS[:2])
def test_a_score_whose_answer_was_lost_counts_once_when_it_comes_again(
    refusing_services: Services, proxy: Proxy, policy: str, segments: int
) -> None:
    first, second = refusing_services
    board = _board(first.target, policy, segments=segments)
    request = _submission(board, "ann", 5, return_ranks=False)
    _fail(first.target, "SubmitScore", request, proxy, Faults(lose_reply_every=1))
    answers = [retried(s.target, "SubmitScore", request, SCORES) for s in (second, first)]
    found = [(a.duplicate, [r.score for r in a.results]) for a in answers]
    assert found == [(True, [5, 5, 5]), (True, [5, 5, 5])]


@pytest.mark.parametrize(
    ("policy", "reason"), [("SUM", "OUTCOME_UNKNOWN"), ("BEST", "REDIS_UNAVAILABLE")]
)
def test_a_lost_answer_to_a_score_without_an_id(
    refusing_services: Services, proxy: Proxy, policy: str, reason: str
) -> None:
    """Nobody knows whether it counts; to send a best score again does no harm."""
    first, _ = refusing_services
    board = _board(first.target, policy)
    request = pb.SubmitScoreRequest(submission=new_score(board, "ann").message())
    lost = proxy.lost_replies
    error = _fail(first.target, "SubmitScore", request, proxy, Faults(lose_reply_every=1))
    assert (reason_of(error), proxy.lost_replies > lost) == (reason, True)


@pytest.mark.parametrize("policy", ["SUM", "BEST", "LATEST"])
@pytest.mark.parametrize("with_id", [False, True], ids=["without an id", "with an id"])
def test_a_score_that_was_applied_and_never_answered_is_journaled_and_counts_once(
    services: Services, proxy: Proxy, policy: str, with_id: bool
) -> None:
    board = _board(services[0].target, policy)
    request = _submission(board, "ann", 5)
    if not with_id:
        request.request_id = ""
    proxy.faults = Faults(lose_reply_every=1)
    with stub_of(services[0].target, SCORES) as stub:
        answer = call("SubmitScore", request, stub)
    proxy.faults = Faults()
    repeats = [retried(s.target, "SubmitScore", request, SCORES) for s in services if with_id]
    assert (answer.journaled, all(again.duplicate for again in repeats)) == (True, True)
    found = entries(services[1].target, board)
    assert {member: score.score for member, score in found.items()} == {"ann": 5}


@pytest.mark.parametrize(("policy", "segments"), _BOARDS)
def test_a_repeat_answers_with_the_current_standing(
    services: Services, policy: str, segments: int
) -> None:
    board = _board(services[0].target, policy, segments=segments)
    request = _submission(board, "ann", 5)
    first = retried(services[0].target, "SubmitScore", request, SCORES)
    for member, score in (("bob", 100), ("ann", 7)):
        retried(services[0].target, "SubmitScore", _submission(board, member, score), SCORES)
    now = 12 if policy == "SUM" else 7
    for service in services:
        again = retried(service.target, "SubmitScore", request, SCORES)
        wanted = [
            pb.WindowResult(window=r.window, kind=r.kind, score=now, rank=2) for r in first.results
        ]
        assert (first.duplicate, again.duplicate, list(again.results)) == (False, True, wanted)


@pytest.mark.parametrize("method", ["StreamScores", "BatchSubmitScores"])
def test_a_score_that_could_not_count_at_first_can_not_when_it_comes_again(
    services: Services, method: str
) -> None:
    """An answer that no longer has it among the failures would say that it has counted."""
    first, second = services
    full, wide, late = (uuid.uuid4().hex for _ in range(3))
    rules = Rules("SUM", windows=("all",))
    retried(first.target, "CreateLeaderboard", creation(full, rules), SCORES)
    retried(first.target, "SubmitScore", _submission(full, "ann", 1.7e308), SCORES)
    # A board in every partition: with scores in that of the board that comes late, too.
    retried(first.target, "CreateLeaderboard", creation(wide, rules, segments=64), SCORES)
    scores = [new_score(wide, f"member{i}") for i in range(1000)]
    scores += [new_score(full, "ann")._replace(score=1.7e308), new_score(late, "ann")]
    send = _sender(method, scores)
    found = [send(first.target)]
    retried(first.target, "CreateLeaderboard", creation(late, rules), SCORES)
    found += [send(second.target), send(first.target)]
    assert found == [{1000: "SCORE_OUT_OF_RANGE", 1001: "LEADERBOARD_NOT_FOUND"}] * 3
    assert (entries(second.target, late), len(entries(second.target, wide))) == ({}, 1000)


def test_a_score_that_counted_is_no_failure_when_its_window_has_closed_since(
    services: Services,
) -> None:
    board, target = uuid.uuid4().hex, services[0].target
    creating = creation(board, Rules("SUM", windows=("all",)))
    now = int(time.time() * MICROS)
    season = creating.leaderboard.seasons.add(name="cup")
    season.starts_at.FromMicroseconds(now - MICROS)
    season.ends_at.FromMicroseconds(now + MICROS)
    creating.leaderboard.late_grace.FromSeconds(0)
    retried(target, "CreateLeaderboard", creating, SCORES)
    single, *others = (Score(board, f"member{i}", 1.0, b"", now) for i in range(3))
    request = pb.SubmitScoreRequest(submission=single.message(), request_id=str(uuid.uuid4()))
    sends = [
        _sender(method, [score])
        for method, score in zip(("StreamScores", "BatchSubmitScores"), others, strict=True)
    ]

    def answers() -> list[dict[int, str]]:
        retried(target, "SubmitScore", request, SCORES)
        return [send(target) for send in sends]

    found = [answers()]
    late = _submission(board, "late", 1.0)
    late.submission.occurred_at.FromMicroseconds(now)
    wait_for(partial(_is_closed, target, late), "the season to end")
    found.append(answers())
    assert found == [[{}, {}]] * 2


@pytest.mark.parametrize("segments", [1, 4])
def test_a_definition_changes_under_a_stream(services: Services, segments: int) -> None:
    """Windows added in between hold all scores that were sent later, and none answered before."""
    first, second = services
    book, board = Book(), uuid.uuid4().hex
    book.create(first.target, board, Rules("SUM", windows=("all",)), segments=segments)
    diary = _Diary(lambda: new_score(board, some_member()))
    began, done = {}, {}
    with streaming(diary, second.target, diary.stop, diary.note):
        diary.wait_for_more(10)
        for name, change in _CHANGES.items():
            began[name] = time.monotonic()
            _update(first.target, board, change)
            done[name] = time.monotonic()
            diary.wait_for_more(5)
        _be_refused(first.target, board)
        diary.wait_for_more(10)
    book.acknowledged(score for scores in diary.sent.values() for score in scores)
    assert (book.score_differences(first.target), diary.failures) == ([], {})
    found = {m: s.score for m, s in entries(second.target, board, "current:weekly").items()}
    least = diary.sums(lambda sequence: diary.made_at[sequence] > done["windows"])
    most = diary.sums(lambda sequence: diary.known_at[sequence] > began["windows"])
    assert all(least[m] <= found.get(m, 0) <= most[m] for m in most)


@pytest.mark.parametrize("segments", [1, 4])
def test_a_board_made_anew_under_a_stream_holds_only_its_own_scores(
    services: Services, segments: int
) -> None:
    """Each score has a member of its own, so that it is known which of them came through."""
    first, second = services
    board, numbers = uuid.uuid4().hex, count()
    rules = Rules("SUM", windows=("all",))
    retried(first.target, "CreateLeaderboard", creation(board, rules, segments=segments), SCORES)
    diary = _Diary(lambda: new_score(board, f"member{next(numbers)}"))
    with streaming(diary, second.target, diary.stop, diary.note):
        for _ in range(2):
            diary.wait_for_more(10)
            deleting = pb.DeleteLeaderboardRequest(
                leaderboard_id=board, request_id=str(uuid.uuid4())
            )
            retried(first.target, "DeleteLeaderboard", deleting, SCORES)
            deleted = time.monotonic()
            diary.wait_for_more(5)
            creating = time.monotonic()
            request = creation(board, rules, segments=segments)
            retried(first.target, "CreateLeaderboard", request, SCORES)
            created = time.monotonic()
        wait_for(partial(diary.has_counted_since, created), "scores to count again")
    found = set(entries(second.target, board))
    assert found >= diary.members(counted=True, made_after=created)
    assert found.isdisjoint(diary.members(counted=True, known_before=creating))
    assert found.isdisjoint(diary.members(counted=False))
    assert not diary.members(counted=True, made_after=deleted, known_before=creating)
    assert set(diary.failures.values()) == {"LEADERBOARD_NOT_FOUND"}


@pytest.mark.parametrize(
    ("outage", "ends"),
    [("journal", {"OK", "DEADLINE_EXCEEDED"}), ("refuse", {"UNAVAILABLE", "DEADLINE_EXCEEDED"})],
)
def test_scores_behind_a_stalled_redis_are_answered_and_count_once(
    services: Services,
    refusing: RunningService,
    redis_node: RedisNode,
    outage: str,
    ends: set[str],
) -> None:
    service = services[1] if outage == "journal" else refusing
    pid = service.pid("worker-0")
    board = _board(service.target, "SUM")
    requests = [_submission(board, f"member{i % 50}", i + 1) for i in range(_CROWD)]
    redis_node.pause()
    try:
        with MachineLag() as lag:
            outcomes, late = _crowd(service.target, requests)
    finally:
        redis_node.resume()
    for request in requests:
        retried(service.target, "SubmitScore", request, SCORES)
    expected: Counter[str] = Counter()
    for request in requests:
        expected[request.submission.member] += int(request.submission.score)
    found = {member: score.score for member, score in entries(service.target, board).items()}
    assert (found, service.pid("worker-0")) == (expected, pid)
    assert (set(outcomes), late - lag.worst <= _LATE) == (ends, True)


class _Diary(ScoreProducer):
    """A producer that notes of every batch when it was made, when its outcome was known, and which
    scores failed.
    """

    def __init__(self, make_score: Callable[[], Score]) -> None:
        super().__init__(make_score, 10)
        self.stop = threading.Event()
        self.sent: dict[int, list[Score]] = {}
        self.made_at: dict[int, float] = {}
        self.known_at: dict[int, float] = {}
        self.failures: dict[tuple[int, int], str] = {}

    def make(self) -> list[Score]:
        sequence = self._sequence
        self.made_at[sequence] = time.monotonic()
        self.sent[sequence] = super().make()
        return self.sent[sequence]

    def note(self, batches: list[list[Score]], failures: Any) -> None:
        """Takes an acknowledgement."""
        for failure in failures:
            self.failures[failure.sequence, failure.index] = _reason(failure.status)
        now, at = time.monotonic(), len(self.known_at)
        self.known_at |= {at + i + 1: now for i in range(len(batches))}

    def wait_for_more(self, batches: int) -> None:
        """Wait until so many more batches are made and known."""
        until = len(self.sent) + batches
        wait_for(lambda: len(self.known_at) >= until, f"{batches} more batches")

    def has_counted_since(self, moment: float) -> bool:
        """Whether a batch that was made after the moment has counted."""
        return bool(self.members(counted=True, made_after=moment))

    def members(
        self, *, counted: bool, made_after: float = 0.0, known_before: float = float("inf")
    ) -> set[str]:
        """The members of scores that counted, or failed, of batches between two moments."""
        return {
            score.member
            for sequence in list(self.known_at)
            if self.made_at[sequence] > made_after and self.known_at[sequence] < known_before
            for index, score in enumerate(self.sent[sequence])
            if ((sequence, index) not in self.failures) == counted
        }

    def sums(self, condition: Callable[[int], bool]) -> Counter[str]:
        """By member, the sum of scores of the batches for which the condition holds."""
        found: Counter[str] = Counter()
        for sequence, scores in self.sent.items():
            for score in scores:
                found[score.member] += int(score.score) * condition(sequence)
        return found


def _update(target: str, board: str, change: pb.Leaderboard) -> None:
    """Changes the fields that have a value."""
    request = pb.UpdateLeaderboardRequest(leaderboard=change, request_id=str(uuid.uuid4()))
    request.leaderboard.leaderboard_id = board
    retried(target, "UpdateLeaderboard", request, SCORES)


def _be_refused(target: str, board: str) -> None:
    """Asks for a change that a board with entries does not allow, which holds up submissions."""
    message = pb.Leaderboard(leaderboard_id=board, update_policy=pb.UPDATE_POLICY_BEST)
    request = pb.UpdateLeaderboardRequest(leaderboard=message)
    with stub_of(target, SCORES) as stub, pytest.raises(grpc.RpcError) as caught:
        stub.UpdateLeaderboard(request, timeout=CALL_TIMEOUT)
    assert reason_of(caught.value) == "DEFINITION_LOCKED"


def _fail(target: str, method: str, request: Any, proxy: Proxy, faults: Faults) -> Any:
    """The error of a call that fails because of the faults, of a worker that writes until then."""
    other = _submission(_board(target, "SUM"), "ann", 1)
    with stub_of(target, SCORES) as stub:

        def attempt() -> Any:
            with suppress(grpc.RpcError):
                return call("SubmitScore", other, stub)

        wait_for(attempt, "a worker that writes")
        proxy.faults = faults
        with pytest.raises(grpc.RpcError) as caught:
            call(method, request, stub)
    proxy.faults = Faults()
    return caught.value


def _is_closed(target: str, request: pb.SubmitScoreRequest) -> bool:
    try:
        with stub_of(target, SCORES) as stub:
            stub.SubmitScore(request, timeout=CALL_TIMEOUT)
    except grpc.RpcError as error:
        return reason_of(error) == "WINDOW_CLOSED"
    request.submission.member += "+"  # another one: the same would be a repeat
    request.request_id = str(uuid.uuid4())
    return False


def _reason(status: Any) -> str:
    for detail in status.details:
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            return str(info.reason)
    return ""


def _board(target: str, policy: str, **definition: Any) -> str:
    board = uuid.uuid4().hex
    retried(target, "CreateLeaderboard", creation(board, Rules(policy), **definition), SCORES)
    return board


def _submission(
    board: str, member: str, score: float, *, return_ranks: bool = True
) -> pb.SubmitScoreRequest:
    return pb.SubmitScoreRequest(
        submission=pb.Submission(leaderboard_id=board, member=member, score=score),
        request_id=str(uuid.uuid4()),
        return_ranks=return_ranks,
    )


def _book_and_producer(
    target: str, segments: int, with_moments: bool
) -> tuple[Book, ScoreProducer]:
    """A producer that has batches of up to three chunks waiting, and what its board must hold."""
    book, board = Book(), uuid.uuid4().hex
    book.create(target, board, Rules("SUM"), segments=segments)
    make = partial(_score_of_many, board, with_moments)
    producer = ScoreProducer(make, (10, 500, 2000, 5000))
    for _ in range(12):
        producer.new_batch()
    return book, producer


def _score_of_many(board: str, with_moments: bool) -> Score:
    return new_score(board, some_member(), with_moment=with_moments)


def _sender(method: str, scores: list[Score]) -> Callable[[str], dict[int, str]]:
    """Sends the same batch each time; gives the reasons of failures by index."""
    request = batch_request(scores)
    producer = ScoreProducer(partial(next, iter(scores)), len(scores))
    message = producer.message(producer.new_batch())

    def batch(target: str) -> dict[int, str]:
        answer = retried(target, method, request, SCORES)
        return {failure.index: _reason(failure.status) for failure in answer.failures}

    def stream(target: str) -> dict[int, str]:
        with stub_of(target, SCORES) as stub:
            answers = list(stub.StreamScores(iter((message,)), timeout=CALL_TIMEOUT))
        return {failure.index: _reason(failure.status) for failure in answers[-1].failures}

    return stream if method == "StreamScores" else batch


def _note(book: Book, batches: list[list[Score]], failures: Any) -> None:
    for failure in failures:
        book.problem(str(failure))
    for scores in batches:
        book.acknowledged(scores)


def _crowd(target: str, requests: list[pb.SubmitScoreRequest]) -> tuple[Counter[str], float]:
    """Sends all at once, with deadlines up to the end of a stall; how they ended, and the latest
    end behind a deadline.
    """
    ends: list[float] = []
    with stub_of(target, SCORES) as stub:
        start = time.monotonic()
        calls = []
        for i, request in enumerate(requests):
            due = start + _STALL * (0.2 + 0.8 * i / len(requests))
            calls.append(stub.SubmitScore.future(request, timeout=due - time.monotonic()))
            calls[-1].add_done_callback(lambda _, due=due: ends.append(time.monotonic() - due))
        wait_for(lambda: len(ends) == len(calls), "answers", 2 * _STALL)
        wait_for(lambda: time.monotonic() >= start + _STALL, "the stall to end")
        return Counter(each.code().name for each in calls), max(ends)


def _has_retried(load: ScoreLoad, times: int) -> bool:
    return load.ledger.retries >= times


def _stop(service: RunningService, name: str) -> None:
    pid = wait_for(partial(service.pid, name), f"{name} to run")
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
