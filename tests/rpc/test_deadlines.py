"""A Postgres that hangs holds no call, and no thread of the service, beyond the call's deadline.

What counts is when the service is done with a call, which its access log says: that a caller is
told at its deadline is gRPC's own doing.
"""

import dataclasses
import shutil
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any, Final

import grpc
import pytest
from structlog.testing import capture_logs

from tallyboard.v1 import (
    counters_pb2,
    counters_pb2_grpc,
    leaderboards_pb2,
    leaderboards_pb2_grpc,
    operations_pb2,
    operations_pb2_grpc,
)
from tallyboard.v1.consistency_pb2 import SOURCE_DURABLE
from tallyboard_server.postgres.pool import BoundedConnection, connect
from tallyboard_server.settings import Settings
from tallyboard_server.stores import open_stores
from tallyboard_server.worker import Worker
from tests.conftest import make_short_folder
from tests.postgres.node import PostgresNode
from tests.redis.node import RedisNode
from tests.rpc.conftest import free_port
from tests.waiting import wait_for

_DEADLINE: Final = 1.0
_LATE: Final = 0.5
_PATIENCE: Final = 30.0
_OLD_WINDOW: Final = "2020-01-01"
#: Calls that ask Postgres, while Redis is well.
CALLS: Final[dict[str, Any]] = {
    "ListCounters": counters_pb2.ListCountersRequest(),
    "CreateLeaderboard": leaderboards_pb2.CreateLeaderboardRequest(
        leaderboard_id="new", leaderboard={"sort_order": "SORT_ORDER_DESCENDING", "windows": [1]}
    ),
    "UpdateLeaderboard": leaderboards_pb2.UpdateLeaderboardRequest(
        leaderboard={"leaderboard_id": "race", "attributes": {"a": "b"}},
        update_mask={"paths": ["attributes"]},
    ),
    "ListLeaderboards": leaderboards_pb2.ListLeaderboardsRequest(),
    "DeleteLeaderboard": leaderboards_pb2.DeleteLeaderboardRequest(leaderboard_id="race"),
    "ListWindows": leaderboards_pb2.ListWindowsRequest(leaderboard_id="race"),
    "GetEntry": leaderboards_pb2.GetEntryRequest(
        leaderboard_id="race", window=_OLD_WINDOW, member="ann"
    ),
    "ListEntries": leaderboards_pb2.ListEntriesRequest(leaderboard_id="race", window=_OLD_WINDOW),
    "GetLeaderboardStats": leaderboards_pb2.GetLeaderboardStatsRequest(
        leaderboard_id="race", window=_OLD_WINDOW
    ),
    "DeleteEntry": leaderboards_pb2.DeleteEntryRequest(leaderboard_id="race", member="ann"),
    "EraseMember": leaderboards_pb2.EraseMemberRequest(member="ann"),
    "Checkpoint": operations_pb2.CheckpointRequest(),
    "ListTenants": operations_pb2.ListTenantsRequest(),
    "ListSnapshots": operations_pb2.ListSnapshotsRequest(leaderboard_id="race"),
    "GetSnapshot": operations_pb2.GetSnapshotRequest(
        leaderboard_id="race", window="all", day="2026-11-23"
    ),
    "TakeSnapshots": operations_pb2.TakeSnapshotsRequest(leaderboard_id="race"),
}


class Site:
    """A worker in this process, its stores, and calls to it."""

    def __init__(self, redis: RedisNode, postgres: PostgresNode, channel: grpc.Channel) -> None:
        self.redis = redis
        self.postgres = postgres
        self._stubs = (
            counters_pb2_grpc.CounterServiceStub(channel),
            leaderboards_pb2_grpc.LeaderboardServiceStub(channel),
            operations_pb2_grpc.OperationsServiceStub(channel),
        )

    def call(self, rpc: str, request: Any, timeout: float = _PATIENCE) -> Any:
        """A call of any of the services."""
        stub = next(stub for stub in self._stubs if hasattr(stub, rpc))
        return getattr(stub, rpc)(request, timeout=timeout)

    @contextmanager
    def hung_postgres(self) -> Iterator[None]:
        """A Postgres that takes connections and answers nothing; it is well again at the end."""
        self.call("ListCounters", counters_pb2.ListCountersRequest())
        self.postgres.pause()
        try:
            yield
        finally:
            self.postgres.resume()
            wait_for(self._lists, "Postgres to be found")

    def ended(self, rpc: str, request: Any, deadline: float = _DEADLINE) -> dict[str, Any]:
        """How the service says that a call ended."""
        with capture_logs() as logs:
            with suppress(grpc.RpcError):
                self.call(rpc, request, deadline)
            lines = wait_for(
                lambda: [line for line in logs if line.get("method") == rpc], "the call to end"
            )
        return dict(lines[0])

    def _lists(self) -> bool:
        with suppress(grpc.RpcError):
            self.call("ListCounters", counters_pb2.ListCountersRequest(), 2.0)
            return True
        return False


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    folder = make_short_folder()
    with RedisNode(folder) as redis, PostgresNode(folder) as postgres:
        settings = dataclasses.replace(
            Settings(),
            redis_url=redis.url,
            postgres_url=postgres.url,
            listen=f"127.0.0.1:{free_port()}",
            access_log="all",
            partitions=8,
        )
        with (
            Worker(settings, open_stores(settings)),
            grpc.insecure_channel(settings.listen) as channel,
        ):
            site = Site(redis, postgres, channel)
            _fill(site)
            yield site
    shutil.rmtree(folder, ignore_errors=True)


def _fill(site: Site) -> None:
    board = leaderboards_pb2.Leaderboard(
        sort_order="SORT_ORDER_DESCENDING", windows=["WINDOW_KIND_ALL_TIME", "WINDOW_KIND_DAILY"]
    )
    site.call(
        "CreateLeaderboard",
        leaderboards_pb2.CreateLeaderboardRequest(leaderboard_id="race", leaderboard=board),
    )
    score = leaderboards_pb2.Submission(leaderboard_id="race", member="ann", score=1)
    site.call("SubmitScore", leaderboards_pb2.SubmitScoreRequest(submission=score))


@pytest.mark.parametrize("rpc", CALLS)
def test_the_service_is_done_with_a_call_at_its_deadline(site: Site, rpc: str) -> None:
    with site.hung_postgres():
        line = site.ended(rpc, CALLS[rpc])
    assert line["status"] in ("DEADLINE_EXCEEDED", "UNAVAILABLE"), line
    assert line["duration_ms"] < (_DEADLINE + _LATE) * 1000, line


def test_the_state_is_told_in_time(site: Site) -> None:
    with site.hung_postgres():
        state = site.call("GetStatus", operations_pb2.GetStatusRequest(), _DEADLINE)
    assert {store.name: store.available for store in state.stores} == {
        "redis": True,
        "postgres": False,
    }


def test_a_read_from_postgres_may_take_what_its_deadline_allows(site: Site) -> None:
    """Long ones are no sign of a Postgres that hangs."""
    request = counters_pb2.GetCounterRequest(counter="post:42")
    site.redis.kill()
    try:
        wait_for(lambda: site.ended("GetCounter", request)["status"] == "OK", "Postgres to answer")
        with (
            ThreadPoolExecutor(1) as pool,
            connect(site.postgres.url) as holder,
            connect(site.postgres.url) as looker,
        ):
            holder.execute("LOCK TABLE tallyboard.counters")
            # Another one: what was just read is in memory.
            request = counters_pb2.GetCounterRequest(counter="post:43")
            answer = pool.submit(site.call, "GetCounter", request, 9.0)
            wait_for(lambda: _waiting(looker), "the read to wait")
            until = time.monotonic() + 1.5
            wait_for(lambda: answer.done() or time.monotonic() > until, "some time to pass")
            holder.rollback()
            assert answer.result().count.source == SOURCE_DURABLE
    finally:
        site.redis.start()


def _waiting(conn: BoundedConnection) -> bool:
    row = conn.execute("SELECT count(*) FROM pg_locks WHERE NOT granted").fetchone()
    return row is not None and row[0] > 0


def test_a_request_id_is_not_waited_for_while_redis_is_away_too(site: Site) -> None:
    def increment(deadline: float) -> dict[str, Any]:
        request = counters_pb2.IncrementRequest(
            counter="post:42", delta=1, request_id=str(uuid.uuid4())
        )
        return site.ended("Increment", request, deadline)

    site.redis.kill()
    try:
        wait_for(lambda: increment(_PATIENCE)["status"] == "OK", "increments to be journaled")
        with site.hung_postgres():
            line = increment(0.3)
    finally:
        site.redis.start()
    assert line["status"] in ("DEADLINE_EXCEEDED", "UNAVAILABLE"), line
    assert line["duration_ms"] < 600, line
