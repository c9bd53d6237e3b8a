"""A Redis that loses everything, where partitions need each other to come back."""

import shutil
import uuid
from contextlib import suppress
from typing import Any

import grpc

from tallyboard.v1 import counters_pb2
from tallyboard_server.redis.keys import home_partition
from tests.faults.ledger import stub_of
from tests.postgres.support import rows, totals
from tests.recovery import stores
from tests.redis.node import RedisNode
from tests.service import RunningService
from tests.waiting import wait_for

node, database = stores.node, stores.database

_PARTITIONS = 32


def test_a_wide_counter_whose_home_is_rebuilt_last_comes_back(
    node: RedisNode, database: str
) -> None:
    """What its other partitions have in the journal has to wait for it."""
    names = (uuid.uuid4().hex for _ in range(1000))
    name = next(name for name in names if home_partition("default", name, _PARTITIONS) >= 20)
    with (
        RunningService(
            workers=1,
            redis_url=node.url,
            postgres_url=database,
            partitions=_PARTITIONS,
            checkpoint_interval=0.5,
            redis_timeout=0.5,
        ) as service,
        stub_of(service.target) as stub,
    ):

        def increment(delta: int) -> counters_pb2.IncrementResponse:
            request_id = str(uuid.uuid4())
            request = counters_pb2.IncrementRequest(
                counter=name, delta=delta, request_id=request_id
            )
            return stub.Increment(request, timeout=10)

        total = 1 << 60
        increment(total)
        for _ in range(40):
            increment(1)
        total += 40
        wait_for(lambda: totals(database).get(name) == total, "a checkpoint", 20)
        node.kill()
        assert [increment(1).journaled for _ in range(40)] == [True] * 40
        shutil.rmtree(node.folder)
        node.start()
        wait_for(lambda: _states(database) == {"OPEN"}, "all partitions to be open", 60)
        request = counters_pb2.GetCounterRequest(counter=name, consistency={"exact": True})
        # The worker has to see, too, that they are open.
        count = wait_for(lambda: _answer(stub, request), "an exact count")
        assert count.value == total + 40


def _answer(stub: Any, request: counters_pb2.GetCounterRequest) -> Any:
    with suppress(grpc.RpcError):
        return stub.GetCounter(request, timeout=10).count
    return None


def _states(database: str) -> set[str]:
    return {row[0] for row in rows(database, "SELECT state FROM tallyboard.partitions")}
