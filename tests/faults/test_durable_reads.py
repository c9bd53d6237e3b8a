"""While Redis is away, every read is answered from Postgres, and says how old it may be."""

import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from tallyboard.v1 import (
    counters_pb2,
    leaderboards_pb2,
    leaderboards_pb2_grpc,
    operations_pb2,
    operations_pb2_grpc,
)
from tallyboard.v1.consistency_pb2 import SOURCE_DURABLE, SOURCE_LIVE, Consistency
from tests.faults.ledger import COUNTERS, call, retried, stub_of
from tests.redis.node import RedisNode
from tests.rpc.errors import Refusal
from tests.service import RunningService
from tests.waiting import wait_for

_BOARDS: Final = leaderboards_pb2_grpc.LeaderboardServiceStub
_OPERATIONS: Final = operations_pb2_grpc.OperationsServiceStub
_MEMBERS: Final = [f"user:{number:02}" for number in range(30)]
_EXACT: Final = Consistency(exact=True)
_HOUR: Final = Consistency(max_staleness=Duration(seconds=3600))
_MOMENT: Final = Consistency(max_staleness=Duration(nanos=1_000_000))
#: Every read that takes a consistency, and what is to be asked.
READS: Final[dict[str, dict[str, Any]]] = {
    "GetCounter": {"counter": "post:42"},
    "BatchGetCounters": {"counters": ["post:42", "never"]},
    "GetEntry": {"leaderboard_id": "race", "member": "user:07"},
    "BatchGetEntries": {"leaderboard_id": "race", "members": ["user:07", "nobody", "user:20"]},
    "ListEntries": {"leaderboard_id": "race", "page_size": 10},
    "ListEntriesAround": {"leaderboard_id": "race", "member": "user:07", "neighbors": 2},
    "ListEntriesByScore": {"leaderboard_id": "race", "from_score": 3, "to_score": 12},
    "GetLeaderboardStats": {"leaderboard_id": "race", "percentiles": [50, 90]},
}
every_read = pytest.mark.parametrize("rpc", READS)


def _request(rpc: str, **fields: Any) -> Any:
    module = counters_pb2 if "Counter" in rpc else leaderboards_pb2
    return getattr(module, f"{rpc}Request")(**(READS.get(rpc, {}) | fields))


def _ask(target: str, rpc: str, **fields: Any) -> Any:
    service = COUNTERS if "Counter" in rpc else _BOARDS
    with stub_of(target, service) as stub:
        return call(rpc, _request(rpc, **fields), stub)


def _refusal(target: str, rpc: str, **fields: Any) -> Refusal:
    with pytest.raises(grpc.RpcError) as caught:
        _ask(target, rpc, **fields)
    return Refusal(caught.value)


def _stamped(answer: Any) -> Any:
    """The part of an answer that says how good it is."""
    if hasattr(answer, "counts"):
        return answer.counts[0]
    return answer.count if isinstance(answer, counters_pb2.GetCounterResponse) else answer


def _plain(answer: Any) -> Any:
    """An answer without what says how good it is."""
    copy = type(answer)()
    copy.CopyFrom(answer)
    for part in [copy, _stamped(copy), *getattr(copy, "counts", ())]:
        for name in ("as_of", "source", "next_page_token"):
            if name in part.DESCRIPTOR.fields_by_name:
                part.ClearField(name)
    return copy


@dataclass
class Seen:
    """What was answered before Redis went away."""

    service: RunningService
    node: RedisNode
    checkpointed: float
    answers: dict[str, Any] = field(default_factory=dict)
    token: str = ""

    @property
    def target(self) -> str:
        return self.service.target


def _fill(target: str) -> None:
    retried(target, "Increment", counters_pb2.IncrementRequest(counter="post:42", delta=5))
    board = leaderboards_pb2.Leaderboard(
        sort_order="SORT_ORDER_DESCENDING", windows=["WINDOW_KIND_ALL_TIME"], segments=3
    )
    request = leaderboards_pb2.CreateLeaderboardRequest(leaderboard_id="race", leaderboard=board)
    retried(target, "CreateLeaderboard", request, _BOARDS)
    scores = leaderboards_pb2.BatchSubmitScoresRequest(
        submissions=[
            leaderboards_pb2.Submission(leaderboard_id="race", member=member, score=at // 2)
            for at, member in enumerate(_MEMBERS)
        ]
    )
    retried(target, "BatchSubmitScores", scores, _BOARDS)


@pytest.fixture(scope="module")
def seen(redis_node: RedisNode, database: str) -> Iterator[Seen]:
    """A service whose Redis is gone, after a checkpoint."""
    with RunningService(workers=1, redis_url=redis_node.url, postgres_url=database) as service:
        _fill(service.target)
        before = time.time()
        retried(service.target, "Checkpoint", operations_pb2.CheckpointRequest(), _OPERATIONS)
        seen = Seen(service, redis_node, before)
        seen.answers = {rpc: _ask(service.target, rpc, consistency=_EXACT) for rpc in READS}
        seen.token = seen.answers["ListEntries"].next_page_token
        redis_node.kill()
        wait_for(
            lambda: (
                _refusal(service.target, "GetCounter", consistency=_EXACT).reason
                == "REDIS_UNAVAILABLE"
            ),
            "the breaker to open",
        )
        yield seen


@every_read
def test_a_read_by_default_is_answered_as_of_the_checkpoint(seen: Seen, rpc: str) -> None:
    answer = _ask(seen.target, rpc)
    stamp = _stamped(answer)
    assert stamp.source == SOURCE_DURABLE
    as_of = stamp.as_of.seconds + stamp.as_of.nanos / 1e9
    assert seen.checkpointed - 2 <= as_of <= time.time()
    assert _plain(answer) == _plain(seen.answers[rpc])
    assert _stamped(seen.answers[rpc]).source == SOURCE_LIVE


@every_read
def test_an_exact_read_is_unavailable(seen: Seen, rpc: str) -> None:
    refusal = _refusal(seen.target, rpc, consistency=_EXACT)
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, "REDIS_UNAVAILABLE")
    assert refusal.retry_after is not None


@every_read
def test_a_read_that_says_how_old_is_answered_if_that_is_kept(seen: Seen, rpc: str) -> None:
    assert _stamped(_ask(seen.target, rpc, consistency=_HOUR)).source == SOURCE_DURABLE
    refusal = _refusal(seen.target, rpc, consistency=_MOMENT)
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, "REDIS_UNAVAILABLE")


def test_relative_ranks(seen: Seen) -> None:
    answer = _ask(seen.target, "BatchGetEntries", relative_ranks=True)
    assert [(entry.member, entry.rank) for entry in answer.entries] == [
        ("user:07", 2),
        ("user:20", 1),
    ]


@pytest.mark.parametrize("reverse", [False, True])
def test_pages_follow_each_other(seen: Seen, reverse: bool) -> None:
    members, token, pages = [], "", 0
    while token or not pages:
        page = _ask(seen.target, "ListEntries", page_size=7, page_token=token, reverse=reverse)
        members += [entry.member for entry in page.entries]
        token, pages = page.next_page_token, pages + 1
    ranked = sorted(_MEMBERS, key=lambda name: (-(int(name[5:]) // 2), name))
    assert members == (ranked[::-1] if reverse else ranked)


def test_a_page_goes_on_where_redis_ended(seen: Seen) -> None:
    page = _ask(seen.target, "ListEntries", page_token=seen.token)
    assert page.source == SOURCE_DURABLE
    assert [entry.rank for entry in page.entries] == list(range(11, 21))


def test_windows_are_listed(seen: Seen) -> None:
    answer = _ask(seen.target, "ListWindows", leaderboard_id="race")
    assert [(window.window, window.entry_count) for window in answer.windows] == [("all", 30)]


def test_what_there_is_not_is_not_found(seen: Seen) -> None:
    for rpc in ("GetEntry", "ListEntriesAround"):
        assert _refusal(seen.target, rpc, member="nobody").reason == "ENTRY_NOT_FOUND"
        refusal = _refusal(seen.target, rpc, member="nobody", consistency=_MOMENT)
        assert refusal.reason == "REDIS_UNAVAILABLE"
    assert _refusal(seen.target, "ListEntries", leaderboard_id="none").reason == (
        "LEADERBOARD_NOT_FOUND"
    )


def test_a_worker_that_starts_without_redis_knows_its_boards(seen: Seen) -> None:
    seen.service.kill_worker()
    seen.service.wait_serving()
    answer = retried(seen.target, "ListEntries", _request("ListEntries"), _BOARDS)
    assert (answer.source, answer.total_size) == (SOURCE_DURABLE, 30)


def test_what_is_journaled_is_read(seen: Seen) -> None:
    retried(
        seen.target,
        "Increment",
        counters_pb2.IncrementRequest(counter="post:42", delta=2, request_id=str(uuid.uuid4())),
    )
    score = leaderboards_pb2.Submission(leaderboard_id="race", member="user:07", score=100)
    request = leaderboards_pb2.SubmitScoreRequest(submission=score, request_id=str(uuid.uuid4()))
    retried(seen.target, "SubmitScore", request, _BOARDS)
    wait_for(lambda: _ask(seen.target, "GetCounter").count.value == 7, "the count")
    wait_for(lambda: _ask(seen.target, "GetEntry").entry.rank == 1, "the entry")
    top = wait_for(
        lambda: _is_top(_ask(seen.target, "ListEntries", page_size=2), "user:07"), "the page"
    )
    assert (top.total_size, top.source) == (30, SOURCE_DURABLE)


def _is_top(page: Any, member: str) -> Any:
    return page if page.entries[0].member == member else None


@pytest.fixture
def watches(seen: Seen) -> Iterator[list[tuple[Any, Callable[[Any], Any]]]]:
    """Watches of a counter and of a board's top, opened while Redis is away."""
    with stub_of(seen.target) as counters, stub_of(seen.target, _BOARDS) as boards:
        calls = [
            counters.WatchCounters(
                counters_pb2.WatchCountersRequest(counters=["post:42"]), timeout=60
            ),
            boards.WatchEntries(
                leaderboards_pb2.WatchEntriesRequest(leaderboard_id="race"), timeout=60
            ),
        ]
        yield [
            (calls[0], lambda message: message.counts[0].value == 7),
            (calls[1], lambda message: message.entries[0].member == "user:07"),
        ]
        for watch in calls:
            watch.cancel()


def test_when_redis_is_back_reads_and_watches_go_on(
    seen: Seen, watches: list[tuple[Any, Callable[[Any], Any]]]
) -> None:
    durable = wait_for(lambda: _is_top(_ask(seen.target, "ListEntries"), "user:07"), "the page")
    # Long enough for a watch to find that Redis is away, several times.
    until = time.monotonic() + 2.0
    while time.monotonic() < until:
        assert all(not watch.done() for watch, _ in watches)
        _ask(seen.target, "GetCounter")
    seen.node.start()
    wait_for(
        lambda: _stamped(_ask(seen.target, "GetCounter")).source != SOURCE_DURABLE, "Redis", 30
    )
    assert (
        retried(seen.target, "GetCounter", _request("GetCounter", consistency=_EXACT)).count.value
        == 7
    )
    for watch, is_expected in watches:
        assert is_expected(next(watch))
    page = retried(
        seen.target,
        "ListEntries",
        _request("ListEntries", page_token=durable.next_page_token, consistency=_EXACT),
        _BOARDS,
    )
    assert page.source == SOURCE_LIVE
    assert [entry.rank for entry in page.entries] == list(range(11, 21))
