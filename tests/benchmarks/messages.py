"""Serialized requests that differ from each other, made from a few words and a seed."""

import uuid
from collections.abc import Callable, Iterator

from google.protobuf.message import Message

from tallyboard.v1 import counters_pb2
from tallyboard.v1 import leaderboards_pb2 as pb
from tests.benchmarks.h2load import frame
from tests.benchmarks.scores import BATCH, RANDOM, Plan, name_of

FRIENDS = 100
NEIGHBORS = 5
PAGE = 100
# Increments; and of leaderboards: scores, entries, friends, around, pages, by score, tops.
INCREMENT, SUBMIT, ENTRY, BATCH_GET, AROUND, SKIPPED, BY_SCORE, TOP = (
    "increment", "submit", "entry", "friends", "around", "skipped", "by-score", "top",
)  # fmt: skip


def messages(kind: str, name: str, seed: int, calls: int) -> list[bytes]:
    """Framed requests, one a call.

    Args:
        kind: one of the constants above.
        name: the counter, or the leaderboard and how many members it has: "arena:1000".
        seed: of the random numbers.
    """
    if kind == INCREMENT:
        requests = (
            counters_pb2.IncrementRequest(counter=name, delta=1, request_id=str(uuid.uuid4()))
            for _ in range(calls)
        )
        return [frame(request) for request in requests]
    board, _, members = name.rpartition(":")
    plan = Plan(RANDOM, int(members), seed)
    if kind == SUBMIT:
        return [frame(_submit(board, *pair)) for pair in pairs(plan, calls)]
    if kind == BATCH_GET:
        numbers = [number for number, _ in pairs(plan, calls * FRIENDS)]
        starts = range(0, len(numbers), FRIENDS)
        return [frame(_friends(board, numbers[at : at + FRIENDS])) for at in starts]
    make = _READS[kind]
    return [frame(make(board, *pair)) for pair in pairs(plan, calls)]


def pairs(plan: Plan, count: int) -> Iterator[tuple[int, float]]:
    """The first `count` pairs of a member's number and a score of a plan."""
    for index in range(-(-count // BATCH)):
        numbers, scores = plan.batch(index)
        yield from list(zip(numbers.tolist(), scores.tolist(), strict=True))[
            : count - index * BATCH
        ]


def _submit(board: str, number: int, score: float) -> Message:
    submission = pb.Submission(leaderboard_id=board, member=name_of(number), score=score)
    return pb.SubmitScoreRequest(submission=submission)


def _friends(board: str, numbers: list[int]) -> Message:
    names = dict.fromkeys(map(name_of, numbers))  # a list of friends names nobody twice
    return pb.BatchGetEntriesRequest(leaderboard_id=board, window="all", members=names)


def _entry(board: str, number: int, score: float) -> Message:
    return pb.GetEntryRequest(leaderboard_id=board, window="all", member=name_of(number))


def _around(board: str, number: int, score: float) -> Message:
    return pb.ListEntriesAroundRequest(
        leaderboard_id=board, window="all", member=name_of(number), neighbors=NEIGHBORS
    )


def _skipped(board: str, number: int, score: float) -> Message:
    return _exact(board, PAGE, number)


def _top(board: str, number: int, score: float) -> Message:
    return _exact(board, 10, 0)


def _exact(board: str, size: int, skip: int) -> Message:
    request = pb.ListEntriesRequest(leaderboard_id=board, window="all", page_size=size, skip=skip)
    request.consistency.exact = True
    return request


def _by_score(board: str, number: int, score: float) -> Message:
    return pb.ListEntriesByScoreRequest(
        leaderboard_id=board, window="all", to_score=score, page_size=PAGE
    )


_READS: dict[str, Callable[[str, int, float], Message]] = {
    ENTRY: _entry,
    AROUND: _around,
    SKIPPED: _skipped,
    BY_SCORE: _by_score,
    TOP: _top,
}
