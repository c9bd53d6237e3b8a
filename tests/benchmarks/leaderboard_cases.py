"""The cases of leaderboards: calls, and streams of scores.

All use one service of their own with boards of 100,000 members, or of 1,000,000 for streams (less
in a quick run). Members and scores are random, and differ from call to call; cached pages are asked
for with the same request every time.
"""

from google.protobuf.message import Message

from tallyboard.v1 import consistency_pb2
from tallyboard.v1 import leaderboards_pb2 as pb
from tests.benchmarks import messages
from tests.benchmarks.base import (
    BOARDS,
    Case,
    Echo,
    Framed,
    FramedEcho,
    Unary,
    core_beside,
    used_between,
)
from tests.benchmarks.boards import FOUR_WINDOWS, Board, Kind
from tests.benchmarks.h2load import Driven
from tests.benchmarks.model import Sample, Target
from tests.benchmarks.peers import RedisBenchmark, naive_board_cases
from tests.benchmarks.scores import BATCH
from tests.benchmarks.servers import Servers, Service, Setting

_SERVICE = "/tallyboard.v1.LeaderboardService"
# Members of the boards for calls, and of those for streams; the latter of each for a quick run.
_MEMBERS, _QUICK_MEMBERS = 100_000, 20_000
_MANY, _QUICK_MANY = 1_000_000, 100_000
_HOT = 100
# What costs how many times the other: cases by name.
COSTS = (
    ("submit-4/1x32", "submit/1x32"),
    ("submit-plain/1x32", "submit/1x32"),
    ("stream-4/1x32", "stream-best/1x32"),
)
# More than this is compared in part.
_MOST_CHECKED = 1_000_000


class BoardCall(Framed):
    """Calls about random members of a board.

    Args:
        method: of the service.
        messages: their kind.
    """

    needs_service = True

    def __init__(
        self, name: str, title: str, first_rate: float, method: str, kind: str, board: Kind
    ) -> None:
        super().__init__(name, title, BOARDS, first_rate)
        self._method, self._kind, self._board = method, kind, board
        self.baseline = "echo-scores/1x32"

    def server(self, servers: Servers) -> Service:
        return servers.service(self.setting)

    def path(self, servers: Servers) -> str:
        return f"{_SERVICE}/{self._method}"

    def before(self, servers: Servers) -> None:
        board = self.server(servers).boards.get(self._board)
        self._name, self._seed = board.name, board.next_seed()

    def messages(self) -> tuple[str, str, int]:
        return self._kind, self._name, self._seed

    def check(self, servers: Servers, calls: int) -> None:
        pass  # a call without an error has an answer; what is in answers is for tests


class Submit(BoardCall):
    """SubmitScore."""

    def __init__(self, name: str, title: str, first_rate: float, board: Kind) -> None:
        super().__init__(name, title, first_rate, "SubmitScore", messages.SUBMIT, board)

    def check(self, servers: Servers, calls: int) -> None:
        service = self.server(servers)
        board = service.boards.get(self._board)
        board.submitted(board.random(self._seed), calls)
        board.check()
        service.settle()

    def finish(self, servers: Servers) -> None:
        self.server(servers).boards.get(self._board).check_all()


class Top(Unary):
    """ListEntries of the best, from memory or exact."""

    needs_service = True

    def __init__(
        self, name: str, title: str, first_rate: float, board: Kind, size: int, *, exact: bool
    ) -> None:
        super().__init__(name, title, BOARDS, first_rate)
        self._board, self._size, self._exact = board, size, exact
        self.baseline = "echo-boards/1x32"

    def server(self, servers: Servers) -> Service:
        return servers.service(self.setting)

    def path(self, servers: Servers) -> str:
        return f"{_SERVICE}/ListEntries"

    def request(self) -> Message:
        consistency = consistency_pb2.Consistency(exact=True) if self._exact else None
        return pb.ListEntriesRequest(
            leaderboard_id=self._board.leaderboard_id,
            window="all",
            page_size=self._size,
            consistency=consistency,
        )

    def before(self, servers: Servers) -> None:
        service = self.server(servers)
        service.boards.get(self._board)
        self._ended = service.calls("ListEntries")

    def check(self, servers: Servers, driven: Driven) -> None:
        self.server(servers).check_calls("ListEntries", self._ended, driven.calls)


class ScoreStream(Case):
    """StreamScores from a generator in a process of its own.

    Args:
        is_new: whether every score is that of a new member.
    """

    setting: Setting
    unit = "scores"
    needs_service = True

    def __init__(
        self, name: str, title: str, first_rate: float, board: Kind, *, is_new: bool = False
    ) -> None:
        super().__init__(name, title, BOARDS, first_rate)
        self._kind, self._is_new = board, is_new
        self._board: Board | None = None

    @property
    def conditions(self) -> str:
        return f"{self.setting.processes} worker(s), 1 stream, 10,000 a batch"

    @property
    def remark(self) -> str:
        board = self._board
        if board is None or not board.sent:
            return ""
        share = board.changed / board.sent
        said = f"{share:.0%} of the scores changed an entry (one in a batch counts)."
        if board.resumed:
            said += f" The stream broke and was resumed {board.resumed} time(s)."
        return said

    def run(self, servers: Servers, operations: int) -> Sample:
        service = servers.service(self.setting)
        self._board = board = service.boards.get(self._kind)
        batches = max(4, operations // BATCH)
        plan = board.filling(batches * BATCH) if self._is_new else board.submitting()
        before = service.cpu()
        streamed = board.stream(plan, batches, core_beside(self.setting))
        used = used_between(before, service.cpu())
        board.check()
        service.settle()
        return Sample(
            streamed.scores, streamed.scores / streamed.seconds, used.server, used.store,
            streamed.cpu / streamed.seconds,
        )  # fmt: skip

    def finish(self, servers: Servers) -> None:
        board = servers.service(self.setting).boards.get(self._kind)
        if len(board.scores) <= _MOST_CHECKED:
            board.check_all()
        else:
            board.check()


def leaderboard_cases(*, quick: bool) -> list[Case]:
    """The cases of leaderboards, in the order of a round."""
    members = _QUICK_MEMBERS if quick else _MEMBERS
    one, four = Kind("one", members), Kind("four", members, FOUR_WINDOWS)
    plain = Kind("plain", members, tie_break=pb.TIE_BREAK_MEMBER_ID)
    get = BoardCall("get-entry", "GetEntry, live rank", 3_000, "GetEntry", messages.ENTRY, one)
    get.target = Target(ratio=0.7)
    submit = Submit("submit", "SubmitScore", 3_000, one)
    submit.target = Target(ratio=0.8)
    cached = [
        Top(f"top-{size}", f"ListEntries, top {size}, cached", 5_000, one, size, exact=False)
        for size in (10, 100)
    ]
    for case in cached:
        case.target = Target(ratio=0.85)
    return [
        FramedEcho("echo-scores", "echo", BOARDS, 6_000),
        submit,
        Submit("submit-4", "SubmitScore, 4 windows", 3_000, four),
        Submit("submit-plain", "SubmitScore, MEMBER_ID", 3_000, plain),
        get,
        BoardCall(
            "around", "ListEntriesAround, 5 neighbours", 2_000,
            "ListEntriesAround", messages.AROUND, one,
        ),
        BoardCall(
            "friends", "BatchGetEntries of 100 friends", 700,
            "BatchGetEntries", messages.BATCH_GET, one,
        ),
        Echo("echo-boards", "echo", BOARDS, 6_000),
        *cached,
        Top("top-10-exact", "ListEntries, top 10, exact", 3_000, one, 10, exact=True),
        *naive_board_cases(),
        RedisBenchmark(
            "redis-benchmark-zadd", "redis-benchmark ZADD", 300_000,
            "ZADD", "benchmark-board", "__rand_int__", "member:__rand_int__", range_=_MANY,
        ),
        *_streams(_QUICK_MANY if quick else _MANY),
    ]  # fmt: skip


def _streams(many: int) -> list[Case]:
    best = ScoreStream(
        "stream-best", f"StreamScores, BEST, {many:,} members", 100_000, Kind("best", many)
    )
    best.target = Target(rate=150_000)
    return [
        best,
        ScoreStream(
            "stream-sum", f"StreamScores, SUM, {many:,} members", 100_000,
            Kind("sum", many, policy=pb.UPDATE_POLICY_SUM),
        ),
        ScoreStream(
            "stream-new", "StreamScores, BEST, new members only", 100_000,
            Kind("new", BATCH), is_new=True,
        ),
        ScoreStream(
            "stream-hot-board", f"StreamScores, BEST, {_HOT} members", 500_000, Kind("hot", _HOT)
        ),
        ScoreStream(
            "stream-4", f"StreamScores, BEST, {many // 4:,} members, 4 windows", 40_000,
            Kind("stream-four", many // 4, FOUR_WINDOWS),
        ),
    ]  # fmt: skip
