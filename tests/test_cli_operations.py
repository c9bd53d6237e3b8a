"""The commands that compare the stores and mend them: what they print, ask and answer.

A small service stands in on a real port.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from click.testing import CliRunner, Result

from tallyboard.v1 import operations_pb2 as pb
from tallyboard.v1 import operations_pb2_grpc
from tallyboard_server.cli import main


class StandIn(operations_pb2_grpc.OperationsServiceServicer):
    """Three partitions, of which some differ; the third can't be compared if `fails`."""

    def __init__(self) -> None:
        self.differs = True
        self.fails = False
        self.asked: list[pb.VerifyRequest] = []
        self.rebuilt: list[int] = []

    def GetStatus(self, request, context):
        """Three partitions and a journal."""
        states = ("OPEN", "JOURNALING", "REBUILDING")
        return pb.GetStatusResponse(
            partitions=[
                {"partition": number, "state": f"PARTITION_STATE_{state}"}
                for number, state in enumerate(states)
            ],
            journal_depth=1234,
        )

    def Verify(self, request, context):
        """A counter and an entry differ in the partition 1."""
        self.asked.append(request)
        for number in request.partitions or range(3):
            if self.fails and number == 2:
                context.abort(grpc.StatusCode.UNAVAILABLE, "partition 2 is journaling")
            found = pb.VerifyResponse(partition=number, counters=1000, entries=10)
            if self.differs and number == 1:
                found.difference_count = 3
                found.differences.add(
                    tenant="acme",
                    counter="post:42",
                    redis_value="42",
                    postgres_value="41",
                    detail="the values differ",
                )
                found.differences.add(
                    tenant="ac\x1b[2Jme",
                    entry={"leaderboard_id": "likes", "window": "all", "member": "[red]ann"},
                    postgres_value="0.5",
                    detail="Redis lacks it",
                )
            yield found

    def RebuildPartition(self, request, context):
        """Loads 7 counters; the partition 2 is somebody else's."""
        if request.partition == 2:
            context.abort(grpc.StatusCode.UNAVAILABLE, "somebody else rebuilds partition 2")
        self.rebuilt.append(request.partition)
        return pb.RebuildPartitionResponse(
            counters=7000, entries=8, journaled_batches=9, elapsed={"nanos": 5_000_000}
        )


Run = Callable[..., Result]


@pytest.fixture
def stand_in() -> StandIn:
    return StandIn()


@pytest.fixture
def call(stand_in: StandIn) -> Iterator[Run]:
    """Runs the command line against the stand-in."""
    server = grpc.server(ThreadPoolExecutor(2))
    operations_pb2_grpc.add_OperationsServiceServicer_to_server(stand_in, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()

    def call(*arguments: str, answer: str = "") -> Result:
        runner = CliRunner(env={"TALLYBOARD_SERVER": f"127.0.0.1:{port}"})
        return runner.invoke(main, arguments, input=answer)

    yield call
    server.stop(None).wait(5)


def test_verify_lists_what_differs(call: Run) -> None:
    assert call("verify").stdout == (
        "1\tacme\tcounter post:42\t42\t41\tthe values differ\n"
        "1\tac\ufffd[2Jme\tleaderboard likes, window all, member [red]ann\t-\t0.5"
        "\tRedis lacks it\n"
        "3,000 counters and 30 entries of 3 partitions compared: 3 differences (1 not listed)\n"
    )


def test_verify_has_status_1_when_something_differs(call: Run) -> None:
    assert call("verify").exit_code == 1


def test_verify_has_status_0_when_nothing_differs(call: Run, stand_in: StandIn) -> None:
    stand_in.differs = False
    done = call("verify")
    assert (done.exit_code, done.stdout) == (
        0,
        "3,000 counters and 30 entries of 3 partitions compared: 0 differences\n",
    )


def test_verify_has_status_2_when_not_all_was_compared(call: Run, stand_in: StandIn) -> None:
    stand_in.fails = True
    done = call("verify")
    assert done.exit_code == 2
    assert done.stderr == "Error: partition 2 is journaling (UNAVAILABLE).\n"
    assert "of 2 partitions compared: 3 differences" in done.stdout


@pytest.mark.parametrize("option", [("--ca", "/nowhere/ca.pem"), ("--tenant", "caf\u00e9")])
def test_verify_has_status_2_when_it_can_not_even_ask(call: Run, option: tuple[str, str]) -> None:
    done = call("verify", *option)
    assert done.exit_code == 2
    assert done.stderr.startswith("Error: The ")


def test_verify_takes_partitions_and_a_limit(call: Run, stand_in: StandIn) -> None:
    call("verify", "--partition", "2", "--partition", "0", "--max-differences", "7")
    assert stand_in.asked == [pb.VerifyRequest(partitions=[2, 0], max_differences=7)]


def test_rebuild_asks_first(call: Run, stand_in: StandIn) -> None:
    refused = call("rebuild", "1", answer="n\n")
    assert (refused.exit_code, stand_in.rebuilt) == (1, [])
    assert "Make partition 1 anew?" in refused.stderr


def test_rebuild_does_what_was_confirmed(call: Run, stand_in: StandIn) -> None:
    done = call("rebuild", "1", "0", answer="y\n")
    assert (done.exit_code, stand_in.rebuilt) == (0, [0, 1])
    line = "7,000 counters, 8 entries, 9 batches of the journal in 0.005 s\n"
    assert done.stdout == f"partition 0: {line}partition 1: {line}"


def test_rebuild_does_not_ask_with_yes(call: Run, stand_in: StandIn) -> None:
    assert call("rebuild", "1", "--yes").exit_code == 0
    assert stand_in.rebuilt == [1]


def test_rebuild_of_all_ends_at_the_first_error(call: Run, stand_in: StandIn) -> None:
    failed = call("rebuild", "--all", "--yes")
    assert (failed.exit_code, stand_in.rebuilt) == (1, [0, 1])
    assert failed.stderr == "Error: somebody else rebuilds partition 2 (UNAVAILABLE).\n"


@pytest.mark.parametrize("arguments", [(), ("--all", "1")])
def test_rebuild_needs_partitions_or_all(call: Run, arguments: tuple[str, ...]) -> None:
    assert call("rebuild", *arguments, "--yes").exit_code == 2


def test_status_shows_states_and_the_journal(call: Run) -> None:
    shown = call("status").stdout
    assert "1 open, 1 journaling, 1 rebuilding" in shown
    assert "journal: 1,234 batches" in shown


def test_nobody_there_is_one_sentence() -> None:
    missing = CliRunner().invoke(main, ["verify", "--server", "127.0.0.1:1"])
    assert (missing.exit_code, missing.stderr) == (
        2,
        "Error: No service answers at 127.0.0.1:1.\n",
    )
