"""A board with a season that ends while clients write to it."""

import random
import threading
import time
import uuid
from collections import Counter
from typing import Any, Final

import grpc

from tallyboard.v1 import leaderboards_pb2 as pb
from tests.faults.ledger import PATIENCE, TRANSIENT, call, reason_of, retried, stub_of
from tests.faults.score_ledger import MICROS, SCORES, Rules, creation, entries

NAME: Final = "cup"
_PAUSE: Final = 0.01
_MEMBERS: Final = 20


class Season:
    """One client that writes until it is told that the season is over.

    A score counts if it was acknowledged, and does not if it was refused as late: also after
    attempts without an answer, for a repeat is decided as the first was.

    Args:
        target: the service.
        board: the id of the board; it is made by the client's thread.
        seconds: until the season ends, without grace.

    Attributes:
        sums: by member, what the board must hold in the season and in all.
        problem: what went wrong; empty if nothing did.
        updates: how many scores were acknowledged.
    """

    def __init__(self, target: str, board: str, seconds: float) -> None:
        self.board = board
        self.sums: Counter[str] = Counter()
        self.problem = ""
        self.updates = 0
        self._target = target
        self._ends_at = int((time.time() + seconds) * MICROS)
        self._moment = int(time.time() * MICROS)
        self._give_up = time.monotonic() + seconds + PATIENCE
        self._thread = threading.Thread(target=self._run, name="season", daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Wait until the season is over and all is known."""
        self._thread.join(2 * PATIENCE)
        if self._thread.is_alive():
            self.problem = "the season's client did not end"

    def differences(self, target: str) -> list[tuple[Any, ...]]:
        """Entries that are not what was acknowledged: (board, window, member, found, expected)."""
        wrong = []
        for window in (NAME, "all"):
            found = self._found(target, window)
            for member in sorted(found.keys() | self.sums.keys()):
                if found.get(member) != self.sums.get(member):
                    wrong.append(
                        (self.board, window, member, found.get(member), self.sums.get(member))
                    )
        return wrong

    def _found(self, target: str, window: str) -> dict[str, float]:
        try:
            return {m: s.score for m, s in entries(target, self.board, window).items()}
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.NOT_FOUND:  # no score came in time
                return {}
            raise

    def _run(self) -> None:
        try:
            self._create()
            while self._submit(f"member{random.randrange(_MEMBERS)}", random.randint(1, 1000)):
                threading.Event().wait(_PAUSE)
        except Exception as error:
            self.problem = f"season: {error!r}"

    def _create(self) -> None:
        creating = creation(self.board, Rules("SUM", windows=("all",)))
        season = creating.leaderboard.seasons.add(name=NAME)
        season.starts_at.FromMicroseconds(self._moment - MICROS)
        season.ends_at.FromMicroseconds(self._ends_at)
        creating.leaderboard.late_grace.FromSeconds(0)
        retried(self._target, "CreateLeaderboard", creating, SCORES)

    def _submit(self, member: str, score: int) -> bool:
        """One score until its outcome is known; False once it is late."""
        request = pb.SubmitScoreRequest(
            submission=pb.Submission(leaderboard_id=self.board, member=member, score=score),
            request_id=str(uuid.uuid4()),
        )
        request.submission.occurred_at.FromMicroseconds(self._moment)
        while True:
            try:
                with stub_of(self._target, SCORES) as stub:
                    call("SubmitScore", request, stub)
            except grpc.RpcError as error:
                if reason_of(error) == "WINDOW_CLOSED":
                    return False
                if error.code() not in TRANSIENT or time.monotonic() > self._give_up:
                    raise
                threading.Event().wait(_PAUSE)
            else:
                self.sums[member] += score
                self.updates += 1
                return True
