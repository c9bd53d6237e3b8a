"""Leaderboards of a service under measurement, and what each should hold by now."""

import json
from typing import Any, NamedTuple

import grpc
import numpy as np

from tallyboard.v1 import leaderboards_pb2 as pb
from tallyboard.v1.leaderboards_pb2_grpc import LeaderboardServiceStub
from tests.benchmarks.messages import pairs
from tests.benchmarks.model import CheckFailed
from tests.benchmarks.processes import run_module
from tests.benchmarks.scores import BATCH, FILL, RANDOM, Plan, name_of

_TIMEOUT = 60.0
_LOAD_TIMEOUT = 900.0
# Batches of a stream that fills a board: they are made before it begins.
_LOAD = 100
_READ = 1_000
_SAMPLE = 2_000
_ONE = (pb.WINDOW_KIND_ALL_TIME,)
FOUR_WINDOWS = (*_ONE, pb.WINDOW_KIND_DAILY, pb.WINDOW_KIND_WEEKLY, pb.WINDOW_KIND_MONTHLY)
_CURRENT = {
    pb.WINDOW_KIND_ALL_TIME: "all",
    pb.WINDOW_KIND_DAILY: "current:daily",
    pb.WINDOW_KIND_WEEKLY: "current:weekly",
    pb.WINDOW_KIND_MONTHLY: "current:monthly",
}


class Kind(NamedTuple):
    """What a board is like, and how many members it begins with."""

    leaderboard_id: str
    members: int
    windows: "tuple[pb.WindowKind.ValueType, ...]" = _ONE
    policy: "pb.UpdatePolicy.ValueType" = pb.UPDATE_POLICY_BEST
    tie_break: "pb.TieBreak.ValueType" = pb.TIE_BREAK_EARLIEST


class Streamed(NamedTuple):
    """What a generator says of its stream: `cpu` and `seconds`, both of the sending alone."""

    scores: int
    seconds: float
    cpu: float


class Board:
    """One leaderboard, made and filled by the service, and the scores that it should have.

    Attributes:
        scores: by the number of the member.
        sent, changed: how many scores were streamed, and how many entries that changed, counted
            batch by batch.
        resumed: how often a stream broke and was opened again.
        loading_seconds: what it took to fill it.
    """

    def __init__(self, address: str, stub: LeaderboardServiceStub, kind: Kind) -> None:
        self.kind = kind
        self._address = address
        self._stub = stub
        self._seed = 0
        self.scores = np.full(0, np.nan)
        self.sent = self.changed = self.resumed = 0
        definition = pb.Leaderboard(
            windows=kind.windows, update_policy=kind.policy, tie_break=kind.tie_break
        )
        stub.CreateLeaderboard(
            pb.CreateLeaderboardRequest(leaderboard_id=kind.leaderboard_id, leaderboard=definition),
            timeout=_TIMEOUT,
        )
        self.windows = dict.fromkeys(kind.windows, "")
        self.loading_seconds = self._fill(kind.members)
        self.windows = {kind: self._stats(_CURRENT[kind]).window for kind in kind.windows}
        self.check()
        self.sent = self.changed = self.resumed = 0

    def _fill(self, members: int) -> float:
        seconds = 0.0
        while (left := members - len(self.scores)) > 0:
            plan = self.filling(min(left, _LOAD * BATCH))
            seconds += self.stream(plan, -(-plan.members // BATCH), None).seconds
        return seconds

    @property
    def name(self) -> str:
        """The board and how many members it has, as messages.py wants them."""
        return f"{self.kind.leaderboard_id}:{len(self.scores)}"

    def filling(self, members: int) -> Plan:
        """A plan with that many new members."""
        return Plan(FILL, members, self.next_seed(), len(self.scores))

    def submitting(self) -> Plan:
        """A plan with random scores for members it has."""
        return self.random(self.next_seed())

    def random(self, seed: int) -> Plan:
        """The plan with that seed."""
        return Plan(RANDOM, len(self.scores), seed)

    def next_seed(self) -> int:
        """A seed that was not used before for this board."""
        self._seed += 1
        return self._seed

    def stream(self, plan: Plan, batches: int, core: int | None) -> Streamed:
        """Sends a plan by StreamScores from a process of its own.

        Raises:
            CheckFailed: not every batch was acknowledged, or scores failed.
        """
        arguments = (self._address, self.kind.leaderboard_id, *plan, batches)
        finished = run_module("scores", *arguments, core=core, timeout=_LOAD_TIMEOUT)
        result: dict[str, float] = json.loads(finished.output.strip().splitlines()[-1])
        if result["batches"] != batches or result["failures"]:
            raise CheckFailed(
                f"of {batches:,} batches {result['batches']:,} were acknowledged, and "
                f"{result['failures']:,} scores failed"
            )
        self.resumed += int(result["resumed"])
        sent = sum(self._take(*plan.batch(index)) for index in range(batches))
        return Streamed(sent, result["seconds"], result["cpu"])

    def submitted(self, plan: Plan, calls: int) -> None:
        """Notes what was sent by calls of SubmitScore."""
        numbers, scores = zip(*pairs(plan, calls), strict=True)
        self._take(np.array(numbers), np.array(scores))

    def _take(self, numbers: "np.ndarray[Any, Any]", scores: "np.ndarray[Any, Any]") -> int:
        missing = int(numbers.max()) + 1 - len(self.scores)
        if missing > 0:
            self.scores = np.append(self.scores, np.full(missing, np.nan))
        touched = np.unique(numbers)
        before = self.scores[touched]
        if self.kind.policy == pb.UPDATE_POLICY_SUM:
            self.scores[touched] = np.nan_to_num(before)
            np.add.at(self.scores, numbers, scores)
        else:
            np.fmax.at(self.scores, numbers, scores)
        self.sent += len(numbers)
        self.changed += int(np.count_nonzero(self.scores[touched] != before))
        return len(numbers)

    def check(self) -> None:
        """Compares count and mean of every window, and the entries of some members.

        Raises:
            CheckFailed: something differs.
        """
        for kind, window in self.windows.items():
            stats = self._stats(_CURRENT[kind])
            if window and stats.window != window:
                continue  # another day has begun: this window has only what came since
            held = (stats.count, round(stats.mean * stats.count))
            if held != (len(self.scores), int(self.scores.sum())):
                expected = f"{len(self.scores):,} and {int(self.scores.sum()):,}"
                raise CheckFailed(
                    f"{self.kind.leaderboard_id} {stats.window}: {held[0]:,} entries with scores "
                    f"of {held[1]:,} in all, not {expected}"
                )
        chosen = np.random.default_rng(self.sent).integers(0, len(self.scores), _SAMPLE)
        self._compare(np.unique(chosen))

    def check_all(self) -> None:
        """The same, and the entry of every member."""
        self.check()
        self._compare(np.arange(len(self.scores)))

    def _compare(self, numbers: "np.ndarray[Any, Any]") -> None:
        for at in range(0, len(numbers), _READ):
            some = numbers[at : at + _READ].tolist()
            request = pb.BatchGetEntriesRequest(
                leaderboard_id=self.kind.leaderboard_id,
                window="all",
                members=[name_of(number) for number in some],
            )
            entries = self._stub.BatchGetEntries(request, timeout=_TIMEOUT).entries
            found = {entry.member: entry.score for entry in entries}
            for number, expected in zip(some, self.scores[some].tolist(), strict=True):
                if found.get(name_of(number)) != expected:
                    raise CheckFailed(
                        f"{self.kind.leaderboard_id}: the score of {name_of(number)} is "
                        f"{found.get(name_of(number))}, not {expected}"
                    )

    def _stats(self, window: str) -> pb.GetLeaderboardStatsResponse:
        request = pb.GetLeaderboardStatsRequest(
            leaderboard_id=self.kind.leaderboard_id, window=window
        )
        response: pb.GetLeaderboardStatsResponse = self._stub.GetLeaderboardStats(
            request, timeout=_TIMEOUT
        )
        return response


class Boards:
    """The leaderboards of one service, made when they are first asked for."""

    def __init__(self, address: str, channel: grpc.Channel) -> None:
        self._address = address
        self._stub = LeaderboardServiceStub(channel)
        self._boards: dict[str, Board] = {}

    def get(self, kind: Kind) -> Board:
        """The board of that kind."""
        board = self._boards.get(kind.leaderboard_id)
        if board is None:
            board = self._boards[kind.leaderboard_id] = Board(self._address, self._stub, kind)
        return board
