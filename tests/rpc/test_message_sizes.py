"""No answer is larger than the 4 MiB that gRPC's clients take by themselves."""

import uuid
from typing import Any, Final

import grpc
import pytest
from google.rpc import error_details_pb2

from tallyboard.v1 import counters_pb2, counters_pb2_grpc
from tallyboard.v1 import leaderboards_pb2 as pb
from tallyboard.v1.leaderboards_pb2_grpc import LeaderboardServiceStub
from tallyboard_server.errors import FieldViolation, InvalidArgument, Unavailable
from tallyboard_server.rpc.status import item_status_of

_MOST: Final = 4 * 1024 * 1024
_MOST_ITEMS: Final = 10_000
# 255 bytes each; the second one is longest where it is quoted.
LONG_NAMES: Final = {"ascii": "x" * 255, "invisible": "\u200b" * 85}
every_name = pytest.mark.parametrize("long", LONG_NAMES.values(), ids=LONG_NAMES)


def _scores(**fields: Any) -> pb.BatchSubmitScoresRequest:
    submission = pb.Submission(**({"leaderboard_id": "none", "member": "ann"} | fields))
    return pb.BatchSubmitScoresRequest(
        submissions=[submission] * _MOST_ITEMS, request_id=str(uuid.uuid4())
    )


def _reasons(answer: Any) -> set[str]:
    reasons = set()
    for failure in answer.failures:
        info = error_details_pb2.ErrorInfo()
        assert failure.status.details[0].Unpack(info)
        reasons.add(info.reason)
    return reasons


@every_name
def test_scores_for_boards_that_are_not_there(
    leaderboards: LeaderboardServiceStub, long: str
) -> None:
    answer = leaderboards.BatchSubmitScores(_scores(leaderboard_id=long), timeout=30)
    assert [failure.index for failure in answer.failures] == list(range(_MOST_ITEMS))
    assert _reasons(answer) == {"LEADERBOARD_NOT_FOUND"}
    assert "there is no leaderboard" in answer.failures[0].status.message


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"leaderboard_id": ""}, "NAME_INVALID"),
        ({"member": "x" * 257}, "NAME_INVALID"),
        ({"score": float("-inf")}, "SCORE_INVALID"),
        ({"occurred_at": {"seconds": -(2**63), "nanos": -(2**31)}}, "FIELD_INVALID"),
    ],
)
def test_scores_that_are_wrong(
    leaderboards: LeaderboardServiceStub, fields: dict[str, Any], reason: str
) -> None:
    answer = leaderboards.BatchSubmitScores(_scores(**fields), timeout=30)
    assert (len(answer.failures), _reasons(answer)) == (_MOST_ITEMS, {reason})


@pytest.mark.parametrize("text", ["x" * 5000, "\u200b" * 5000])
def test_a_failure_of_an_item_is_small_whatever_it_says(text: str) -> None:
    answer = pb.BatchSubmitScoresResponse()
    longest = FieldViolation("submissions[9999].leaderboard_id", text)
    for error in (InvalidArgument("METADATA_TOO_LARGE", [longest]), Unavailable(text)):
        del answer.failures[:]
        answer.failures.add(index=9999, status=item_status_of(error))
        assert answer.ByteSize() * _MOST_ITEMS <= _MOST
        bad = error_details_pb2.BadRequest()
        for detail in answer.failures[0].status.details:
            detail.Unpack(bad)
        paths = [violation.field for violation in bad.field_violations]
        assert paths == ([longest.field] if isinstance(error, InvalidArgument) else [])


def test_a_short_sentence_stays_whole() -> None:
    assert item_status_of(Unavailable("try again")).message == "try again"


def test_counters_that_would_leave_their_range(
    counters: counters_pb2_grpc.CounterServiceStub, name: str
) -> None:
    names = [f"{name}:{i}:".ljust(255, "x") for i in range(200)]
    most = 2**63 - 1
    for fails in (False, True):
        deltas = [counters_pb2.CounterDelta(counter=each, delta=most) for each in names]
        request = counters_pb2.BatchIncrementRequest(deltas=deltas, request_id=str(uuid.uuid4()))
        answer = counters.BatchIncrement(request, timeout=30)
        assert bool(answer.failures) is fails
    assert answer.ByteSize() / len(names) * _MOST_ITEMS <= _MOST


def test_definitions_with_many_attributes(
    leaderboards: LeaderboardServiceStub, channel: grpc.Channel, name: str
) -> None:
    attributes = {f"{i:02}".ljust(256, "k"): "v" * 1024 for i in range(64)}
    metadata = (("x-tallyboard-tenant", str(uuid.uuid4())),)
    ids = [f"{name}:{i:03}" for i in range(60)]
    for board_id in ids:
        board = pb.Leaderboard(attributes=attributes)
        request = pb.CreateLeaderboardRequest(leaderboard_id=board_id, leaderboard=board)
        leaderboards.CreateLeaderboard(request, timeout=30, metadata=metadata)
    found: list[str] = []
    request = pb.ListLeaderboardsRequest(page_size=1000)
    while not found or request.page_token:
        page = leaderboards.ListLeaderboards(request, timeout=30, metadata=metadata)
        assert page.ByteSize() <= _MOST
        found += [board.leaderboard_id for board in page.leaderboards]
        request.page_token = page.next_page_token
    assert found == ids
