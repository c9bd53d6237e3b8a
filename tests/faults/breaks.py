"""Ways in which a Redis fails, and how each is repaired."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

import grpc

from tallyboard.v1 import counters_pb2
from tests.faults.ledger import stub_of
from tests.redis.node import RedisNode
from tests.waiting import wait_for


@contextmanager
def paused(node: RedisNode) -> Iterator[None]:
    """A Redis that does not answer while inside."""
    node.pause()
    try:
        yield
    finally:
        node.resume()


def counts_again(target: str) -> bool:
    """Waits until an increment is acknowledged."""
    request = counters_pb2.IncrementRequest(counter="after", delta=1)

    def attempt() -> bool:
        with suppress(grpc.RpcError), stub_of(target) as stub:
            stub.Increment(request, timeout=1.0)
            return True
        return False

    return wait_for(attempt, "increments to count again", 10)


def _stop_accepting(node: RedisNode) -> Callable[[], object]:
    node.kill()
    return node.start


def _stall(node: RedisNode) -> Callable[[], object]:
    node.pause()
    return node.resume


def _fill(node: RedisNode) -> Callable[[], object]:
    node.command("CONFIG", "SET", "maxmemory", "1")
    return lambda: node.command("CONFIG", "SET", "maxmemory", "0")


def _make_read_only(node: RedisNode) -> Callable[[], object]:
    node.command("REPLICAOF", "127.0.0.1", "1")
    return lambda: node.command("REPLICAOF", "NO", "ONE")


def _break_snapshots(node: RedisNode) -> Callable[[], object]:
    """A snapshot that can't be renamed to its place fails, and Redis takes no more writes."""
    (node.folder / "blocked.rdb" / "x").mkdir(parents=True, exist_ok=True)
    node.command("CONFIG", "SET", "dbfilename", "blocked.rdb")
    node.command("CONFIG", "SET", "save", "3600 1000000")
    node.command("BGSAVE", "SCHEDULE")  # it may be rewriting its file
    wait_for(lambda: b"rdb_last_bgsave_status:err" in _info(node), "the snapshot to fail")

    def repair() -> None:
        node.command("CONFIG", "SET", "save", "")
        node.command("CONFIG", "SET", "dbfilename", "dump.rdb")

    return repair


def _info(node: RedisNode) -> bytes:
    client = node.client()
    try:
        found: dict[str, Any] = client.info("persistence")
    finally:
        client.close()
    return "".join(f"{name}:{value}\n" for name, value in found.items()).encode()


#: By name, what breaks a Redis; each gives what repairs it.
BREAKS: Final[dict[str, Callable[[RedisNode], Callable[[], object]]]] = {
    "refuses connections": _stop_accepting,
    "stalls": _stall,
    "is full": _fill,
    "is read-only": _make_read_only,
    "has a bad disk": _break_snapshots,
}


@contextmanager
def broken(node: RedisNode, how: str) -> Iterator[Callable[[], object]]:
    """A Redis that fails while inside, until what is given is called."""
    repairs = [BREAKS[how](node)]

    def repair() -> None:
        while repairs:
            repairs.pop()()

    try:
        yield repair
    finally:
        repair()
