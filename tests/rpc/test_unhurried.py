"""Calls whose work grows with what is stored take as long as their callers wait.

`call_timeout` is for the others, and those do not wait for them.
"""

import dataclasses
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Final

import grpc
import pytest

from tallyboard.v1 import (
    counters_pb2,
    counters_pb2_grpc,
    leaderboards_pb2,
    leaderboards_pb2_grpc,
    operations_pb2,
    operations_pb2_grpc,
)
from tallyboard_server.postgres.locks import lock_for_transaction
from tallyboard_server.postgres.pool import connect
from tallyboard_server.settings import Settings
from tallyboard_server.stores import open_stores
from tallyboard_server.worker import Worker
from tests.rpc.conftest import free_port
from tests.waiting import wait_for

_CALL_TIMEOUT: Final = 0.8
_DEADLINE: Final = 20.0


class Desk:
    """Calls to a worker that gives other calls little time."""

    def __init__(self, settings: Settings, channel: grpc.Channel) -> None:
        self._settings = settings
        self.counters = counters_pb2_grpc.CounterServiceStub(channel)
        self.leaderboards = leaderboards_pb2_grpc.LeaderboardServiceStub(channel)
        self.operations = operations_pb2_grpc.OperationsServiceStub(channel)
        self.board = f"board:{uuid.uuid4()}"
        board = leaderboards_pb2.Leaderboard(sort_order=2, windows=[1])
        self.leaderboards.CreateLeaderboard(
            leaderboards_pb2.CreateLeaderboardRequest(leaderboard_id=self.board, leaderboard=board)
        )
        self.change()

    def change(self) -> None:
        """Something that a checkpoint has to copy."""
        score = leaderboards_pb2.Submission(leaderboard_id=self.board, member="ann", score=1)
        request = leaderboards_pb2.SubmitScoreRequest(submission=score)
        self.leaderboards.SubmitScore(request, timeout=_DEADLINE)

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Somebody works on all partitions, and on the definition, while inside."""
        with connect(self._settings.postgres_url, name="test") as conn:
            for partition in range(self._settings.partitions):
                lock_for_transaction(conn, partition, 5.0)
            conn.execute(
                "SELECT FROM tallyboard.leaderboards WHERE leaderboard_id = %s FOR UPDATE",
                (self.board,),
            )
            yield
            conn.rollback()

    def waiting(self) -> int:
        """How many wait for whoever is inside of `busy`."""
        with connect(self._settings.postgres_url, name="test") as conn:
            row = conn.execute("SELECT count(*) FROM pg_locks WHERE NOT granted").fetchone()
            assert row is not None
            return int(row[0])


@pytest.fixture(scope="module")
def impatient(settings: Settings, worker: Worker) -> Iterator[tuple[Settings, grpc.Channel]]:
    mine = dataclasses.replace(
        settings, listen=f"127.0.0.1:{free_port()}", call_timeout=_CALL_TIMEOUT
    )
    with (
        Worker(mine, open_stores(mine)),
        grpc.insecure_channel(mine.listen) as channel,
    ):
        yield mine, channel


@pytest.fixture
def desk(impatient: tuple[Settings, grpc.Channel]) -> Desk:
    return Desk(*impatient)


def _checkpoint(desk: Desk) -> Any:
    return desk.operations.Checkpoint(operations_pb2.CheckpointRequest(), timeout=_DEADLINE)


def _take_snapshots(desk: Desk) -> Any:
    request = operations_pb2.TakeSnapshotsRequest(leaderboard_id=desk.board)
    return desk.operations.TakeSnapshots(request, timeout=_DEADLINE)


def _erase_member(desk: Desk) -> Any:
    request = leaderboards_pb2.EraseMemberRequest(member="ann")
    return desk.leaderboards.EraseMember(request, timeout=_DEADLINE)


def _delete_leaderboard(desk: Desk) -> Any:
    request = leaderboards_pb2.DeleteLeaderboardRequest(leaderboard_id=desk.board)
    return desk.leaderboards.DeleteLeaderboard(request, timeout=_DEADLINE)


def _verify(desk: Desk) -> Any:
    request = operations_pb2.VerifyRequest()
    return list(desk.operations.Verify(request, timeout=_DEADLINE))


@pytest.mark.parametrize(
    "ask", [_checkpoint, _take_snapshots, _erase_member, _verify, _delete_leaderboard]
)
def test_it_goes_on_until_its_callers_deadline(desk: Desk, ask: Callable[[Desk], Any]) -> None:
    desk.change()
    with ThreadPoolExecutor(1) as pool:
        with desk.busy():
            answer = pool.submit(ask, desk)
            wait_for(desk.waiting, "the call to wait")
            until = time.monotonic() + 2 * _CALL_TIMEOUT
            wait_for(lambda: answer.done() or time.monotonic() > until, "its time to pass")
        assert answer.result() is not None


def test_others_do_not_wait_for_it(desk: Desk) -> None:
    with ThreadPoolExecutor(8) as pool:
        with desk.busy():
            taken = [pool.submit(_take_snapshots, desk) for _ in range(8)]
            wait_for(lambda: desk.waiting() >= 4, "as many of them to wait as may")
            listed = desk.counters.ListCounters(counters_pb2.ListCountersRequest(), timeout=2.0)
        assert listed is not None
        assert all(answer.result() for answer in taken)


def test_other_calls_end_at_the_limit(desk: Desk) -> None:
    board = leaderboards_pb2.Leaderboard(leaderboard_id=desk.board, attributes={"a": "b"})
    request = leaderboards_pb2.UpdateLeaderboardRequest(
        leaderboard=board, update_mask={"paths": ["attributes"]}
    )
    with desk.busy(), pytest.raises(grpc.RpcError) as caught:
        desk.leaderboards.UpdateLeaderboard(request, timeout=_DEADLINE)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
