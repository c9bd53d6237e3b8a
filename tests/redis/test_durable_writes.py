"""A write is acknowledged at its durability level only, whatever Redis says about the write."""

import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing

import pytest

from tallyboard_server.errors import OutcomeUnknown, TallyboardError, Unavailable
from tallyboard_server.redis import keys
from tests.redis.model import PARTITIONS, Counters, prepare
from tests.redis.node import RedisNode, installed_servers

_Open = Callable[[str], Counters]


@pytest.fixture
def counters(node: RedisNode) -> Iterator[_Open]:
    """Opens a worker's counters with a durability mode."""
    prepare(node)
    with ExitStack() as stack:
        yield lambda mode: stack.enter_context(closing(Counters(node.url, 0, mode)))
    prepare(node)


@pytest.fixture
def tenant() -> str:
    return uuid.uuid4().hex


def _increment(counters: Counters, tenant: str, request_id: str = "") -> bool:
    soon = time.monotonic() + 5.0
    return counters.writer.increment(tenant, "post:42", 5, request_id, soon).duplicate


def _value(counters: Counters, tenant: str) -> int:
    soon = time.monotonic() + 5.0
    return counters.reader.exact(tenant, ["post:42"], soon)[0].value


def _knows_waitaof(version: str) -> bool:
    return tuple(int(number) for number in version.split(".")[:2]) >= (7, 2)


_with_waitaof = pytest.mark.parametrize(
    "node", [version for version in installed_servers() if _knows_waitaof(version)], indirect=True
)


@_with_waitaof
def test_writes_that_get_to_the_disk_are_acknowledged(counters: _Open, tenant: str) -> None:
    """Redis writes its file once a second here, and is given the usual time."""
    waitaof = counters("waitaof")
    for _ in range(3):
        _increment(waitaof, tenant)
    assert _value(waitaof, tenant) == 15


@_with_waitaof
def test_a_repeat_that_is_on_disk_is_acknowledged_as_a_repeat(counters: _Open, tenant: str) -> None:
    waitaof, request_id = counters("waitaof"), str(uuid.uuid4())
    _increment(waitaof, tenant, request_id)
    assert _increment(waitaof, tenant, request_id)


@pytest.mark.parametrize(
    ("request_id", "error"), [("", OutcomeUnknown), (str(uuid.uuid4()), Unavailable)]
)
def test_a_write_that_no_replica_has_is_not_acknowledged(
    counters: _Open, tenant: str, request_id: str, error: type[TallyboardError]
) -> None:
    with pytest.raises(error):
        _increment(counters("wait:1"), tenant, request_id)


def test_what_was_not_acknowledged_counts_once_when_it_comes_again(
    counters: _Open, tenant: str
) -> None:
    request_id = str(uuid.uuid4())
    with pytest.raises(Unavailable):
        _increment(counters("wait:1"), tenant, request_id)
    applied = counters("applied")
    _increment(applied, tenant, request_id)
    assert _value(applied, tenant) == 5


def test_a_partition_that_redis_lost_counts_nothing(
    node: RedisNode, counters: _Open, tenant: str
) -> None:
    applied = counters("applied")
    for partition in range(PARTITIONS):
        node.command("DEL", keys.incarnation_key(partition))
    with pytest.raises(Unavailable) as caught:
        _increment(applied, tenant)
    assert caught.value.reason == "PARTITION_UNAVAILABLE"
