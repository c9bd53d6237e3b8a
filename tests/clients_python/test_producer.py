"""The producer against a real service: what is acknowledged counts, and once."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from tallyboard import (
    CounterBuffer,
    FailedPreconditionError,
    IncrementFailure,
    IncrementProducer,
    InvalidArgumentError,
    OutcomeUnknownError,
    UnavailableError,
    WindowFullError,
    open_channel,
)
from tests.clients_python.closing import close_while_others_add
from tests.clients_python.conftest import Reader
from tests.clients_python.proxy import CutProxy
from tests.service import RunningService
from tests.waiting import wait_for


@pytest.fixture
def producer(channel: grpc.Channel, tenant: str) -> Iterator[IncrementProducer]:
    """A producer that is closed after the test."""
    with IncrementProducer(channel, tenant, timeout=30.0) as opened:
        yield opened


@pytest.fixture
def nowhere() -> Iterator[grpc.Channel]:
    """A channel to a port where nobody listens."""
    with open_channel("127.0.0.1:1") as opened:
        yield opened


def test_added_updates_count(producer: IncrementProducer, count: Reader) -> None:
    for delta in (5, -2, 1):
        producer.add("post:42", delta)
    producer.flush()
    assert count("post:42") == 4


def test_delta_is_1_unless_said(producer: IncrementProducer, count: Reader) -> None:
    producer.add("post:42")
    producer.flush()
    assert count("post:42") == 1


def test_many_updates_fill_several_batches(producer: IncrementProducer, count: Reader) -> None:
    producer.add_many(["post:42"] * 25_000, list(range(1, 25_001)))
    producer.flush()
    assert count("post:42") == 25_000 * 25_001 // 2


def test_names_beyond_ascii_count(producer: IncrementProducer, count: Reader) -> None:
    producer.add("größe:日本", 7)
    producer.flush()
    assert count("größe:日本") == 7


def test_sequences_start_at_1(producer: IncrementProducer) -> None:
    assert producer.send_batch(["post:42"], [1]) == 1


def test_one_name_may_stand_for_all_deltas(producer: IncrementProducer, count: Reader) -> None:
    producer.send_batch(["post:42"], [1, 2, 3])
    producer.flush()
    assert count("post:42") == 6


def test_acknowledged_is_what_was_added(producer: IncrementProducer) -> None:
    producer.add_many(["post:42", "post:43"], [1, 2])
    producer.flush()
    assert producer.acknowledged == 2


def test_nothing_is_pending_after_a_flush(producer: IncrementProducer) -> None:
    producer.add("post:42")
    producer.flush()
    assert producer.pending == 0


def test_updates_are_sent_without_a_flush(producer: IncrementProducer) -> None:
    producer.add("post:42")
    assert wait_for(lambda: producer.acknowledged, "the acknowledgement")


def test_close_flushes(channel: grpc.Channel, tenant: str, count: Reader) -> None:
    with IncrementProducer(channel, tenant) as producer:
        producer.add("post:42", 3)
    assert count("post:42") == 3


def test_close_ends_the_thread(channel: grpc.Channel, tenant: str) -> None:
    with IncrementProducer(channel, tenant, producer_id=tenant) as producer:
        producer.add("post:42")
    names = [thread.name for thread in threading.enumerate()]
    assert f"tallyboard-{tenant[:8]}" not in names


def test_closed_producer_takes_nothing(channel: grpc.Channel, tenant: str) -> None:
    producer = IncrementProducer(channel, tenant)
    producer.close()
    with pytest.raises(FailedPreconditionError, match="closed"):
        producer.add("post:42")


def test_what_was_taken_while_it_closed_counts(
    channel: grpc.Channel, tenant: str, count: Reader
) -> None:
    producer = IncrementProducer(channel, tenant, linger=0.001)
    taken = close_while_others_add(lambda: producer.add("post:42"), producer.close)
    assert (count("post:42"), producer.pending) == (taken, 0)


@pytest.mark.parametrize("kind", ["IncrementProducer", "CounterBuffer"])
def test_a_copy_in_a_fork_refuses(kind: str, service: RunningService, tenant: str) -> None:
    """It would number its batches as the original does, and they would count as repeats."""
    code = (
        "import os, sys\n"
        f"from tallyboard import {kind}, open_channel\n"
        f"made = {kind}(open_channel({service.target!r}), {tenant!r})\n"
        "if os.fork() == 0:\n"
        "    try:\n"
        "        made.add('post:42')\n"
        "    except Exception as error:\n"
        "        print(type(error).__name__, error, flush=True)\n"
        "    made.close()\n"
        "    sys.exit()\n"
        "os.wait()\n"
        "made.add('post:42')\n"
        "made.close()\n"
        "print(made.pending)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    refused, pending = done.stdout.splitlines()
    assert refused.startswith("FailedPreconditionError FAILED_PRECONDITION: made before a fork")
    assert pending == "0"


def test_a_stream_that_can_not_be_opened_now_is_opened_later(
    producer: IncrementProducer, count: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the system has no thread left."""
    attempts = []

    def open_second_time(*arguments: Any, **options: Any) -> Any:
        attempts.append(1)
        if len(attempts) == 1:
            raise RuntimeError("can't start new thread")
        return real(*arguments, **options)

    real = producer._open
    monkeypatch.setattr(producer, "_open", open_second_time)
    producer.add("post:42")
    producer.flush()
    assert (count("post:42"), len(attempts)) == (1, 2)


def test_threads_may_share_a_producer(producer: IncrementProducer, count: Reader) -> None:
    def add() -> None:
        for _ in range(5_000):
            producer.add("post:42")

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    producer.flush()
    assert count("post:42") == 20_000


def test_idle_stream_is_closed_and_work_goes_on(
    channel: grpc.Channel, tenant: str, count: Reader
) -> None:
    with IncrementProducer(channel, tenant, idle_timeout=0.05) as producer:
        producer.add("post:42")
        producer.flush()
        wait_for(lambda: producer._stream.call is None, "the idle stream to be closed")
        producer.add("post:42")
        producer.flush()
    assert count("post:42") == 2


def test_update_that_cannot_count_is_a_failure(producer: IncrementProducer) -> None:
    producer.add_many(["post:42", "po\x00st"], [1, 2])
    producer.flush()
    assert [(f.counter, f.updates, f.total, f.error.reason) for f in producer.failures] == [
        ("po\x00st", 1, 2, "NAME_INVALID")
    ]


def test_failures_are_not_acknowledged_updates(producer: IncrementProducer) -> None:
    producer.add_many(["post:42", "po\x00st"], [1, 2])
    producer.flush()
    assert (producer.acknowledged, producer.failed) == (1, 1)


def test_updates_beside_a_failure_count(producer: IncrementProducer, count: Reader) -> None:
    producer.add_many(["post:42", "po\x00st"], [1, 2])
    producer.flush()
    assert count("post:42") == 1


def test_failures_are_told(channel: grpc.Channel, tenant: str) -> None:
    told: list[IncrementFailure] = []
    with IncrementProducer(channel, tenant, on_failure=told.append) as producer:
        producer.send_batch(["big"], [2**63 - 1])
        producer.send_batch(["big"], [2**63 - 1])
    assert [failure.error.reason for failure in told] == ["COUNTER_OUT_OF_RANGE"]


@pytest.mark.parametrize(
    ("counter", "delta", "reason"),
    [
        ("", 1, "NAME_INVALID"),
        ("x" * 257, 1, "NAME_INVALID"),
        ("ü" * 129, 1, "NAME_INVALID"),
        ("\ud800", 1, "NAME_INVALID"),
        ("post:42", 0, "DELTA_ZERO"),
        ("post:42", 2**63, "FIELD_INVALID"),
    ],
)
def test_what_would_spoil_a_batch_is_refused(
    producer: IncrementProducer, counter: str, delta: int, reason: str
) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        producer.add(counter, delta)
    assert caught.value.reason == reason


def test_lists_that_do_not_match_are_refused(producer: IncrementProducer) -> None:
    with pytest.raises(InvalidArgumentError):
        producer.add_many(["post:42", "post:43"], [1])


def test_batch_that_is_too_large_is_refused(producer: IncrementProducer) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        producer.send_batch(["post:42"], [1] * 10_001)
    assert caught.value.reason == "TOO_MANY_ITEMS"


def test_refused_update_is_not_pending(producer: IncrementProducer) -> None:
    with pytest.raises(InvalidArgumentError):
        producer.add_many(["post:42", ""], [1, 1])
    assert producer.pending == 0


@pytest.mark.parametrize("limits", [{"window": 257}, {"window": 0}, {"batch_size": 10_001}])
def test_arguments_beyond_their_limits_are_refused(
    channel: grpc.Channel, limits: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match="must be from 1 to"):
        IncrementProducer(channel, **limits)


def test_bad_id_ends_the_producer(channel: grpc.Channel) -> None:
    producer = IncrementProducer(channel, producer_id="x" * 257)
    producer.send_batch(["post:42"], [1])
    with pytest.raises(InvalidArgumentError) as caught:
        producer.close()
    assert caught.value.reason == "PRODUCER_INVALID"


@pytest.mark.parametrize("tenant", ["", "x" * 257, "acmé", "ac\nme", "ac\x00me"])
@pytest.mark.parametrize("kind", [IncrementProducer, CounterBuffer])
def test_tenant_that_metadata_cannot_carry_is_refused(
    nowhere: grpc.Channel, kind: type[IncrementProducer | CounterBuffer], tenant: str
) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        kind(nowhere, tenant)
    assert caught.value.reason == "TENANT_INVALID"


def test_full_window_blocks_until_the_deadline(nowhere: grpc.Channel) -> None:
    producer = IncrementProducer(nowhere, window=2)
    producer.send_batch(["post:42"], [1])
    producer.send_batch(["post:42"], [1])
    with pytest.raises(WindowFullError):
        producer.send_batch(["post:42"], [1], timeout=0.05)
    with pytest.raises(OutcomeUnknownError):
        producer.close(timeout=0)


def test_updates_taken_before_the_window_was_full_are_told(nowhere: grpc.Channel) -> None:
    producer = IncrementProducer(nowhere, window=1, batch_size=10)
    with pytest.raises(WindowFullError) as caught:
        producer.add_many(["post:42"] * 100, [1] * 100, timeout=0.05)
    with pytest.raises(OutcomeUnknownError):
        producer.close(timeout=0)
    assert caught.value.taken == producer.pending == 20


def test_updates_taken_before_it_was_closed_are_told(nowhere: grpc.Channel) -> None:
    producer = IncrementProducer(nowhere, window=1, batch_size=10)
    caught: list[FailedPreconditionError] = []

    def add() -> None:
        try:
            producer.add_many(["post:42"] * 100, [1] * 100)
        except FailedPreconditionError as error:
            caught.append(error)

    adding = threading.Thread(target=add)
    adding.start()
    wait_for(lambda: producer.pending == 20, "the window to be full")
    with pytest.raises(OutcomeUnknownError):
        producer.close(timeout=0)
    adding.join(10)
    assert [error.taken for error in caught] == [producer.pending] == [20]


def test_updates_taken_before_the_service_refused_are_told(channel: grpc.Channel) -> None:
    producer = IncrementProducer(channel, producer_id="x" * 257, window=1, batch_size=10)
    with pytest.raises(InvalidArgumentError) as first:
        producer.add_many(["post:42"] * 100, [1] * 100)
    with pytest.raises(InvalidArgumentError) as second:
        producer.add_many(["post:42"] * 100, [1] * 100)
    with pytest.raises(InvalidArgumentError):
        producer.close()
    assert (first.value.taken, second.value.taken) == (producer.pending, 0)
    assert producer.pending in (10, 20)


def test_flush_says_what_broke_the_stream(nowhere: grpc.Channel) -> None:
    producer = IncrementProducer(nowhere)
    producer.add("post:42")
    wait_for(lambda: producer._broken_by, "a stream to break")
    with pytest.raises(OutcomeUnknownError) as caught:
        producer.flush(timeout=0.05)
    with pytest.raises(OutcomeUnknownError):
        producer.close(timeout=0)
    assert isinstance(caught.value.__cause__, UnavailableError)


def test_error_in_the_block_is_not_hidden_by_the_close(nowhere: grpc.Channel) -> None:
    def fail() -> None:
        with IncrementProducer(nowhere, timeout=0.05) as producer:
            producer.add("post:42")
            raise KeyError

    with pytest.raises(KeyError):
        fail()


def test_same_batch_of_a_producer_counts_once(
    channel: grpc.Channel, tenant: str, count: Reader
) -> None:
    for _ in range(2):
        with IncrementProducer(channel, tenant, producer_id="ann") as producer:
            producer.send_batch(["post:42"], [5])
    assert count("post:42") == 5


def test_successor_goes_on_where_a_producer_was_lost(
    channel: grpc.Channel, tenant: str, count: Reader
) -> None:
    with IncrementProducer(channel, tenant, "ann") as producer:
        for delta in (1, 10):
            producer.send_batch(["post:42"], [delta])
    with IncrementProducer(channel, tenant, "ann", first_sequence=2) as producer:
        for delta in (10, 100):
            producer.send_batch(["post:42"], [delta])
    assert count("post:42") == 111


def test_acknowledged_sequence_is_that_of_the_last_batch(producer: IncrementProducer) -> None:
    producer.send_batch(["post:42"], [1])
    last = producer.send_batch(["post:42"], [1])
    producer.flush()
    assert producer.acknowledged_sequence == last


class _Load:
    """A thread that adds until it is told to stop, and knows what it has added."""

    def __init__(self, producer: IncrementProducer) -> None:
        self.added = 0
        self._producer = producer
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "_Load":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.is_set():
            self._producer.send_batch(["post:42"], [1, 2, 3, 4] * 100)
            self.added += 1_000

    def wait_for_more(self) -> None:
        """Wait until more is acknowledged than is now, and some is on its way."""
        before = self._producer.acknowledged
        wait_for(lambda: self._producer.acknowledged > before + 4_000, "acknowledgements")


def test_killed_workers_lose_and_repeat_nothing(
    service: RunningService, channel: grpc.Channel, tenant: str, count: Reader
) -> None:
    with IncrementProducer(channel, tenant) as producer, _Load(producer) as load:
        for index in (0, 1, 0, 1):
            load.wait_for_more()
            service.kill_worker(index)
        load.wait_for_more()
    assert count("post:42") == load.added


def test_killed_worker_breaks_the_stream(
    service: RunningService, channel: grpc.Channel, tenant: str
) -> None:
    with IncrementProducer(channel, tenant) as producer, _Load(producer) as load:
        load.wait_for_more()
        for index in (0, 1):
            service.kill_worker(index)
        load.wait_for_more()
    assert producer.streams_opened >= 2


def test_cut_connection_loses_and_repeats_nothing(
    service: RunningService, tenant: str, count: Reader
) -> None:
    with (
        CutProxy(service.target) as proxy,
        open_channel(proxy.target) as channel,
        IncrementProducer(channel, tenant) as producer,
        _Load(producer) as load,
    ):
        for _ in range(10):
            load.wait_for_more()
            proxy.cut()
        load.wait_for_more()
    assert count("post:42") == load.added


def test_cut_connection_breaks_the_stream(service: RunningService, tenant: str) -> None:
    with (
        CutProxy(service.target) as proxy,
        open_channel(proxy.target) as channel,
        IncrementProducer(channel, tenant) as producer,
        _Load(producer) as load,
    ):
        load.wait_for_more()
        proxy.cut()
        load.wait_for_more()
    assert producer.streams_opened >= 2


def test_stopped_and_started_service_loses_and_repeats_nothing(
    single_worker: RunningService, tenant: str
) -> None:
    with open_channel(single_worker.target) as channel:
        with IncrementProducer(channel, tenant) as producer, _Load(producer) as load:
            load.wait_for_more()
            single_worker.stop()
            single_worker.start()
            load.wait_for_more()
        assert Reader(channel, tenant)("post:42") == load.added


def test_silent_stream_counts_as_broken(single_worker: RunningService, tenant: str) -> None:
    with (
        open_channel(single_worker.target) as channel,
        IncrementProducer(channel, tenant, stall_timeout=0.3) as producer,
    ):
        producer.add("post:42")
        producer.flush()
        with single_worker.paused("worker-0"):
            producer.add("post:42")
            with pytest.raises(OutcomeUnknownError):
                producer.flush(timeout=2.5)
        producer.flush()
    assert producer.streams_opened >= 2


def test_silent_stream_is_broken_though_nobody_asks(
    single_worker: RunningService, tenant: str
) -> None:
    with (
        open_channel(single_worker.target) as channel,
        IncrementProducer(channel, tenant, stall_timeout=0.3) as producer,
    ):
        producer.add("post:42")
        producer.flush()
        with single_worker.paused("worker-0"):
            producer.add("post:42")
            wait_for(lambda: producer.streams_opened >= 2, "another stream")
        producer.flush()
