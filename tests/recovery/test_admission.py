"""What a worker sends to a life of Redis that it has not met before."""

import time
import uuid

from tallyboard_server.redis import keys
from tests.recovery import stores
from tests.recovery.journaling import Desk, Keeper, add, wait_until_open
from tests.redis.node import RedisNode
from tests.waiting import wait_for

node, database = stores.node, stores.database


def test_a_new_worker_journals_for_a_partition_that_is_older_than_its_checkpoint(
    node: RedisNode, database: str
) -> None:
    """It meets Redis through another partition, before it knows anything of this one."""
    name = uuid.uuid4().hex
    with Desk(node.url, database) as desk, Keeper(desk.settings) as keeper:
        desk.write(add(name, 1), add(name, 1, partition=1))
        keeper.drain()
        wait_until_open(desk)
        keeper.checkpointer.checkpoint_all()
    version = int(node.command("GET", keys.version_key(0)))
    node.command("SET", keys.version_key(0), version - 1)
    node.stop()
    node.start()
    with Desk(node.url, database) as desk:
        desk.write(add(name, 1, partition=1))
        until = time.monotonic() + 0.7  # longer than it takes to see that Postgres has it open
        while time.monotonic() < until:
            write = desk.write(add(name, 1))
            assert (write.error, write.journaled) == (None, True)


def test_a_partition_that_was_being_rebuilt_when_redis_came_back_opens(
    node: RedisNode, database: str
) -> None:
    """A worker meets Redis when Postgres has the next incarnation already, and Redis not all."""
    name, life = uuid.uuid4().hex, str(uuid.uuid4())
    with Desk(node.url, database) as desk, Keeper(desk.settings) as keeper:
        keeper.query(
            "UPDATE tallyboard.partitions SET state = 'REBUILDING', incarnation = %s,"
            " version = version + 1, changes = changes + 1 WHERE partition = 0",
            life,
        )
        node.stop()
        node.start()
        assert desk.write(add(name, 1, partition=1)).error is None
        ((version,),) = keeper.query(
            "SELECT version FROM tallyboard.partitions WHERE partition = 0"
        )
        node.command("SET", keys.version_key(0), version)
        node.command("SET", keys.incarnation_key(0), life)
        keeper.query(
            "UPDATE tallyboard.partitions SET state = 'OPEN', changes = changes + 1"
            " WHERE partition = 0"
        )
        wait_for(lambda: desk.expected()[0] == life, "the worker to find it open")
        write = desk.write(add(name, 1))
        assert (write.error, write.journaled) == (None, False)
