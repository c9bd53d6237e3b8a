"""A load generator for StreamScores, and what it sends.

A program: `python -m tests.benchmarks.scores ADDRESS BOARD KIND MEMBERS SEED FIRST BATCHES` sends
batches of 10,000 scores on one stream and prints JSON as streams.py does; its messages are
serialized beforehand, as there. What a plan holds follows from its arguments alone, so whoever
checks a board knows what was sent to it.
"""

import json
import sys
import time
from typing import Any, NamedTuple

import numpy as np

from tallyboard.v1 import leaderboards_pb2 as pb
from tests.benchmarks.streams import Stream, Wire

WIRE = Wire(
    "/tallyboard.v1.LeaderboardService/StreamScores",
    pb.StreamScoresRequest,
    pb.StreamScoresResponse,
)
BATCH = 10_000
FILL, RANDOM = "fill", "random"
# Scores are whole numbers below this, so that sums of them are exact.
SPREAD = 1_000_000


class Plan(NamedTuple):
    """What the batches of a stream hold.

    Attributes:
        kind: "fill": the members one after the other, beginning with number `first`; "random":
            any of `members` members, each as likely as any other.
        seed: of the random numbers.
    """

    kind: str
    members: int
    seed: int
    first: int = 0

    def batch(self, index: int) -> tuple["np.ndarray[Any, Any]", "np.ndarray[Any, Any]"]:
        """The numbers of the members, and their scores."""
        random = np.random.default_rng((self.seed, index))
        scores = random.integers(0, SPREAD, BATCH).astype(np.float64)
        if self.kind == FILL:
            start = self.first + index * BATCH
            stop = min(start + BATCH, self.first + self.members)
            return np.arange(start, stop), scores[: stop - start]
        return random.integers(0, self.members, BATCH), scores


def name_of(number: int) -> str:
    """A member's name: 14 bytes."""
    return f"member:{number:07}"


def body(board: str, plan: Plan, index: int) -> bytes:
    """A batch as it is sent, without its sequence."""
    numbers, scores = plan.batch(index)
    return pb.StreamScoresRequest(
        leaderboard_ids=[board],
        members=[name_of(number) for number in numbers.tolist()],
        scores=scores.tolist(),
    ).SerializeToString()


def main() -> None:
    """Prepares the messages, sends them, and prints what came of them."""
    address, board, kind = sys.argv[1:4]
    members, seed, first, batches = map(int, sys.argv[4:8])
    plan = Plan(kind, members, seed, first)
    bodies = [body(board, plan, index) for index in range(batches)]
    stream = Stream(address, WIRE, bodies, batches, 0)
    stream.connect()
    cpu = time.process_time()
    stream.run()
    seconds = time.monotonic() - stream.started
    result = {
        "seconds": seconds,
        "cpu": time.process_time() - cpu,
        "batches": stream.acknowledged,
        "failures": stream.failures,
        "resumed": stream.resumed,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
