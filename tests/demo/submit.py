"""Defines the boards and submits what departures score on them, several boards at a time."""

import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Final, NamedTuple

import grpc
from google.rpc import status_pb2

from tallyboard import error_from_call, error_from_status, open_channel
from tallyboard.v1 import leaderboards_pb2 as pb
from tallyboard.v1.leaderboards_pb2_grpc import LeaderboardServiceStub
from tests.demo.boards import Board, Score
from tests.demo.events import Departure

_BATCH: Final = 5_000
_TIMEOUT: Final = 60.0


class Submitted(NamedTuple):
    """What came of it: submissions by board, seconds, and failures as sentences."""

    submissions: dict[str, int]
    seconds: float
    failures: list[str]


def create(channel: grpc.Channel, tenant: str, boards: Sequence[Board]) -> None:
    """Define the boards.

    Raises:
        TallyboardError: a definition was refused.
    """
    stub = LeaderboardServiceStub(channel)
    for board in boards:
        request = pb.CreateLeaderboardRequest(
            leaderboard_id=board.leaderboard_id, leaderboard=board.definition
        )
        try:
            stub.CreateLeaderboard(
                request, metadata=metadata_of(tenant), timeout=_TIMEOUT, wait_for_ready=True
            )
        except grpc.RpcError as error:
            raise error_from_call(error) from error


def submit(
    departures: Sequence[Departure],
    boards: Sequence[Board],
    target: str,
    tenant: str,
    connections: int,
    progress: Callable[[int], object],
) -> Submitted:
    """Submit all that the departures score.

    Every board's scores go one batch after the other, for of two that are alike to the minute the
    order decides which one stays.

    Args:
        departures: in the order of their moments.
        progress: called with the number of scores submitted so far, also from other threads.

    Raises:
        TallyboardError: the service refused a batch.
    """
    started = time.monotonic()
    tally = _Tally(progress)
    with ThreadPoolExecutor(connections, "submitter") as pool:
        for done in [pool.submit(_send, b, departures, target, tenant, tally) for b in boards]:
            done.result()
    return Submitted(tally.submissions, time.monotonic() - started, tally.failures)


def metadata_of(tenant: str) -> tuple[tuple[str, str]]:
    """What a call of this tenant carries."""
    return (("x-tallyboard-tenant", tenant),)


class _Tally:
    """What was submitted, by several threads."""

    def __init__(self, progress: Callable[[int], object]) -> None:
        self.submissions: dict[str, int] = {}
        self.failures: list[str] = []
        self._progress = progress
        self._lock = threading.Lock()

    def add(self, leaderboard_id: str, count: int, failures: list[str]) -> None:
        with self._lock:
            self.submissions[leaderboard_id] = self.submissions.get(leaderboard_id, 0) + count
            self.failures += failures
            self._progress(sum(self.submissions.values()))


def _send(
    board: Board, departures: Sequence[Departure], target: str, tenant: str, tally: _Tally
) -> None:
    with open_channel(target) as channel:
        submit_scores = LeaderboardServiceStub(channel).BatchSubmitScores
        for batch in _batches(board.scores(departures)):
            request = _request(board.leaderboard_id, batch)
            try:
                answer = submit_scores(
                    request, metadata=metadata_of(tenant), timeout=_TIMEOUT, wait_for_ready=True
                )
            except grpc.RpcError as error:
                raise error_from_call(error) from error
            failures = [
                f"{board.leaderboard_id} {batch[failure.index].member}: {_said(failure.status)}"
                for failure in answer.failures
            ]
            tally.add(board.leaderboard_id, len(batch), failures)


def _batches(scores: Iterator[Score]) -> Iterator[list[Score]]:
    while batch := list(islice(scores, _BATCH)):
        yield batch


def _request(leaderboard_id: str, scores: Sequence[Score]) -> pb.BatchSubmitScoresRequest:
    # Of an import, moments may be years ago; `import` is a word of Python, too.
    request = pb.BatchSubmitScoresRequest(request_id=str(uuid.uuid4()), **{"import": True})
    add = request.submissions.add
    for member, score, metadata, moment in scores:
        added = add(leaderboard_id=leaderboard_id, member=member, score=score, metadata=metadata)
        added.occurred_at.seconds = moment
    return request


def _said(status: status_pb2.Status) -> str:
    return str(error_from_status(status))
