"""A start on a cluster of which a node is not ready."""

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from redis.exceptions import BusyLoadingError

from tallyboard_server.redis.topology import Layout
from tallyboard_server.stores import _find_there
from tests.redis.node import RedisNode


class _Loading:
    """A node that has a large file to load."""

    def execute_command(self, *_: Any) -> Any:
        raise BusyLoadingError("Redis is loading the dataset in memory")


def test_a_node_that_loads_its_file_does_not_hold_up_the_others(short_folder: Path) -> None:
    loading = "redis://127.0.0.1:1"
    with RedisNode(short_folder) as node:
        client = node.client()
        layout = Layout((loading, node.url), (0, 1), ((0, 8191, 0), (8192, 16383, 1)))
        nodes: Any = SimpleNamespace(
            topology=SimpleNamespace(layout=layout),
            at={loading: _Loading(), node.url: client}.__getitem__,
        )
        started = time.monotonic()
        there, away = _find_there(nodes, "applied")
        client.close()
    assert (list(there), list(away)) == ([node.url], [loading])
    assert time.monotonic() - started < 5.0
