"""The buffer: merged in memory, counted once."""

import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from tallyboard import (
    Client,
    CounterBuffer,
    FailedPreconditionError,
    InvalidArgumentError,
    OutcomeUnknownError,
    TallyboardError,
    WindowFullError,
    open_channel,
)
from tests.clients_python.closing import close_while_others_add
from tests.clients_python.conftest import Reader
from tests.clients_python.proxy import CutProxy
from tests.service import RunningService
from tests.waiting import wait_for


@pytest.fixture
def client(service: RunningService, tenant: str) -> Iterator[Client]:
    with Client(service.target, tenant=tenant) as client:
        yield client


def test_what_was_added_counts(client: Client, count: Reader) -> None:
    with client.buffered() as buffer:
        likes = buffer.counter("post:42")
        assert likes.add()
        likes.add(4)
        buffer.add("post:43", -2)
        buffer.flush()
        assert buffer.pending == 0
    assert (count("post:42"), count("post:43")) == (5, -2)


def test_it_counts_soon_without_a_flush(client: Client, count: Reader) -> None:
    with client.buffered() as buffer:
        buffer.add("post:42")
        wait_for(lambda: not buffer.pending, "the update to be acknowledged")
        assert count("post:42") == 1


def test_threads_share_it(client: Client, count: Reader) -> None:
    def work() -> None:
        for i in range(2_000):
            buffer.add(f"post:{i % 50}")

    with client.buffered(linger=0.001) as buffer:
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [count(f"post:{i}") for i in range(50)] == [160] * 50


def test_more_counters_than_a_batch_holds(client: Client) -> None:
    with client.buffered() as buffer:
        for i in range(25_000):
            buffer.add(f"post:{i}", i + 1)
    found = client.get_many([f"post:{i}" for i in (0, 9_999, 10_000, 24_999)], exact=True)
    assert [each.value for each in found] == [1, 10_000, 10_001, 25_000]


def test_sums_beyond_64_bits_are_told_by_the_service(client: Client, count: Reader) -> None:
    with client.buffered() as buffer:
        for _ in range(3):
            buffer.add("post:42", 2**62)
        buffer.flush()
        assert [failure.error.reason for failure in buffer.failures] == ["COUNTER_OUT_OF_RANGE"]
    assert count("post:42") == 2**63 - 1


def test_what_adds_up_to_0_is_not_pending(client: Client) -> None:
    with client.buffered() as buffer:
        buffer.add("post:42", 7)
        buffer.add("post:42", -7)
        buffer.flush()
        assert buffer.pending == 0


@pytest.mark.parametrize(("name", "delta"), [("", 1), ("post:42", 0), ("post:42", 2**63)])
def test_what_can_not_be_sent_is_refused_at_once(client: Client, name: str, delta: int) -> None:
    with client.buffered() as buffer:
        with pytest.raises(InvalidArgumentError):
            buffer.add(name, delta)
        assert buffer.pending == 0


@pytest.mark.parametrize(("name", "delta"), [(b"post:42", 1), ("post:42", 0.5), ("post:42", "1")])
def test_what_is_of_another_type_is_refused_at_once(client: Client, name: Any, delta: Any) -> None:
    with client.buffered() as buffer:
        with pytest.raises(TypeError):
            buffer.add(name, delta)
        buffer.add("post:42")
        buffer.flush()
        assert buffer.pending == 0


def test_a_counter_needs_a_name(client: Client) -> None:
    with client.buffered() as buffer, pytest.raises(InvalidArgumentError):
        buffer.counter("x" * 257)


def _without_service(when_full: str) -> CounterBuffer:
    channel = open_channel("127.0.0.1:1")
    return CounterBuffer(
        channel,
        max_counters=2,
        when_full=when_full,  # type: ignore[arg-type]
        timeout=0.2,
        linger=60,
    )


def test_a_full_buffer_sheds_if_it_was_told_to() -> None:
    buffer = _without_service("shed")
    _fill(buffer)
    assert (buffer.add("c"), buffer.add("a"), buffer.shed) == (False, True, 1)
    with pytest.raises(OutcomeUnknownError):
        buffer.close(0.1)


def test_a_full_buffer_blocks_if_it_was_told_to() -> None:
    buffer = _without_service("block")
    _fill(buffer)
    with pytest.raises(WindowFullError):
        buffer.add("c")
    with pytest.raises(OutcomeUnknownError):
        buffer.close(0.1)


def _fill(buffer: CounterBuffer) -> None:
    """Until its window is full too, so that nothing more is taken out of it."""
    wait_for(lambda: _is_full(buffer), "the buffer to be full")


def _is_full(buffer: CounterBuffer) -> bool:
    with buffer._changed:
        full = buffer._producer._batches.full and buffer._in_hand and len(buffer._open) == 2
    if not full:
        for name in ("a", "b"):
            try:
                buffer.add(name)
            except WindowFullError:
                return False
    return bool(full)


def test_a_closed_buffer_takes_nothing(client: Client) -> None:
    buffer = client.buffered()
    buffer.close()
    buffer.close()
    with pytest.raises(FailedPreconditionError):
        buffer.add("post:42")


def test_a_closed_buffer_takes_nothing_of_a_counter_that_waits_still() -> None:
    buffer = _without_service("shed")
    _fill(buffer)
    with pytest.raises(OutcomeUnknownError):
        buffer.close(0.1)
    pending = buffer.pending
    with pytest.raises(TallyboardError):
        buffer.add("a")
    assert (buffer.pending, pending > 0) == (pending, True)


def test_what_was_taken_while_it_closed_counts(client: Client, count: Reader) -> None:
    buffer = client.buffered(linger=0.001)
    taken = close_while_others_add(lambda: buffer.add("post:42"), buffer.close)
    assert (count("post:42"), buffer.pending) == (taken, 0)


def test_what_is_pending_when_the_process_ends_counts(
    service: RunningService, tenant: str, count: Reader
) -> None:
    code = (
        "from tallyboard import Client\n"
        f"buffer = Client({service.target!r}, tenant={tenant!r}).buffered(linger=30)\n"
        "buffer.add('post:42', 3)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    assert count("post:42") == 3


def test_a_broken_way_loses_and_doubles_nothing(
    service: RunningService, tenant: str, count: Reader
) -> None:
    ledger: Counter[str] = Counter()
    with (
        CutProxy(service.target) as proxy,
        open_channel(proxy.target) as channel,
        CounterBuffer(channel, tenant, linger=0.001) as buffer,
    ):
        for i in range(6_000):
            name = f"post:{i % 20}"
            buffer.add(name, i + 1)
            ledger[name] += i + 1
            if i % 1_000 == 999:
                proxy.cut()
        buffer.flush(60)
    assert {name: count(name) for name in ledger} == dict(ledger)


def test_a_service_killed_in_mid_run_loses_and_doubles_nothing(tenant: str) -> None:
    """Everything is killed, Redis and Postgres too, and comes back on the same data."""
    ledger: Counter[str] = Counter()
    with RunningService(workers=2) as service, Client(service.target, tenant=tenant) as client:
        with client.buffered() as buffer:
            for i in range(200_000):
                name = f"post:{i % 1_000}"
                buffer.add(name, i % 7 + 1)
                ledger[name] += i % 7 + 1
                if i == 100_000:
                    service.kill()
                    service.start()
            buffer.flush(60)
            assert (buffer.pending, buffer.failures) == (0, ())
        names = sorted(ledger)
        found = client.get_many(names, exact=True, timeout=60)
    assert {each.counter: each.value for each in found} == dict(ledger)
