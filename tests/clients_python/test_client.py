"""The client against a real service."""

import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from tallyboard import (
    AlreadyExistsError,
    Client,
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidArgumentError,
    Leaderboard,
    NotFoundError,
    OutOfRangeError,
    Score,
    UnavailableError,
    WindowResult,
)
from tallyboard.v1 import leaderboards_pb2 as pb
from tallyboard.v1 import operations_pb2, operations_pb2_grpc
from tests.service import RunningService
from tests.waiting import wait_for


@pytest.fixture
def client(service: RunningService, tenant: str) -> Iterator[Client]:
    with Client(service.target, tenant=tenant) as client:
        yield client


@pytest.fixture
def board(client: Client) -> Leaderboard:
    """One of three members: ann has 50, bob 40, cat 30."""
    board = client.leaderboard("weekly")
    board.create()
    board.submit_many([("ann", 50), ("bob", 40), ("cat", 30)])
    return board


def test_an_increment_counts(client: Client) -> None:
    counter = client.counter("post:42")
    assert counter.increment() is False
    counter.increment(-4)
    found = counter.get(exact=True)
    assert (found.counter, found.value, found.exists, found.source) == ("post:42", -3, True, "LIVE")
    assert abs(found.as_of - datetime.now(UTC)) < timedelta(seconds=10)


def test_a_counter_never_written_reads_0(client: Client) -> None:
    found = client.counter("post:42").get()
    assert (found.value, found.exists) == (0, False)


def test_a_request_id_counts_once(client: Client) -> None:
    counter, request_id = client.counter("post:42"), str(uuid.uuid4())
    said = [counter.increment(3, request_id=request_id) for _ in range(2)]
    assert (said, counter.get(exact=True).value) == ([False, True], 3)


def test_an_answer_may_be_old_if_the_caller_says_so(client: Client) -> None:
    counter = client.counter("post:42")
    counter.increment()
    counter.get(max_staleness=5)
    counter.increment()
    assert counter.get(max_staleness=timedelta(minutes=1)).source == "CACHE"


def test_exact_and_old_are_no_pair(client: Client) -> None:
    with pytest.raises(ValueError, match="either"):
        client.counter("post:42").get(exact=True, max_staleness=5)


def test_errors_say_what_is_at_fault(client: Client) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        client.counter("post:42").increment(0)
    assert (caught.value.reason, caught.value.violations[0].field) == ("DELTA_ZERO", "delta")


def test_a_counter_keeps_its_range(client: Client) -> None:
    counter = client.counter("post:42")
    counter.increment(2**63 - 1)
    with pytest.raises(OutOfRangeError):
        counter.increment()


def test_reset_and_delete(client: Client) -> None:
    counter = client.counter("post:42")
    counter.increment(5)
    assert counter.reset().value == 0
    assert (counter.delete(), counter.delete(), counter.get(exact=True).exists) == (
        True,
        False,
        False,
    )


def test_many_counters_in_one_call(client: Client) -> None:
    client.counter("full").increment(2**63 - 1)
    result = client.increment_many({"post:42": 2, "full": 1})
    assert {index: type(error) for index, error in result.failures.items()} == {1: OutOfRangeError}
    client.increment_many([("post:42", 1), ("post:43", 1)])
    found = client.get_many(["post:43", "post:42"], exact=True)
    assert [count.value for count in found] == [1, 3]


def test_a_list_goes_through_all_pages(client: Client) -> None:
    client.increment_many((f"a:{i:04}", i + 1) for i in range(1500))
    channel = client._calls.channels[0]
    operations_pb2_grpc.OperationsServiceStub(channel).Checkpoint(
        operations_pb2.CheckpointRequest(), timeout=30
    )
    names = [count.counter for count in client.list_counters("a:")]
    assert names == [f"a:{i:04}" for i in range(1500)]
    assert next(client.list_counters(order_by="value desc")).value == 1500


def test_a_watch_begins_with_now_and_goes_on(client: Client) -> None:
    counter = client.counter("post:42")
    counter.increment()
    watch = counter.watch(min_interval=0.1)
    first = next(watch)
    counter.increment()
    second = next(watch)
    watch.close()  # type: ignore[attr-defined]
    assert (first.value, second.value) == (1, 2)


def test_a_score_says_what_it_did(board: Leaderboard) -> None:
    submitted = board.submit("bob", 60.5, metadata=b"x", return_ranks=True)
    assert submitted.results == (WindowResult("all", 40, 60.5, True, 2, 1),)
    found = board.entry("bob", exact=True)
    assert found is not None
    assert (found.rank, found.score, found.metadata) == (1, 60.5, b"x")


def test_who_is_where(board: Leaderboard) -> None:
    assert [entry.member for entry in board.top(2, exact=True)] == ["ann", "bob"]
    assert [entry.member for entry in board.around("cat", 1, exact=True)] == ["bob", "cat"]
    assert [(e.rank, e.member) for e in board.friends(["cat", "bob", "dan"], exact=True)] == [
        (1, "bob"),
        (2, "cat"),
    ]
    assert (board.rank("cat", exact=True), board.rank("dan", exact=True)) == (3, None)


def test_ranks_may_be_shared(board: Leaderboard) -> None:
    board.submit("dan", 40)
    assert board.rank("dan", rank_method="COMPETITION", exact=True) == 2


def test_a_window_is_chosen_by_name(client: Client) -> None:
    board = client.leaderboard("both")
    kinds = [pb.WINDOW_KIND_ALL_TIME, pb.WINDOW_KIND_DAILY]
    board.create(pb.Leaderboard(windows=kinds))
    board.submit("ann", 1)
    with pytest.raises(InvalidArgumentError):
        board.top()
    assert board.rank("ann", window="current:daily", exact=True) == 1


def test_a_score_from_long_ago_comes_too_late(client: Client) -> None:
    board = client.leaderboard("daily")
    board.create(pb.Leaderboard(windows=[pb.WINDOW_KIND_DAILY]))
    with pytest.raises(FailedPreconditionError) as caught:
        board.submit("ann", 1, occurred_at=datetime(2020, 1, 1, tzinfo=UTC))
    assert caught.value.reason == "WINDOW_CLOSED"


def test_scores_that_can_not_count_are_named(board: Leaderboard) -> None:
    result = board.submit_many([Score("dan", 5), Score("ann", 60, b"m")])
    assert (result.failures, board.rank("ann", exact=True)) == ({}, 1)


def test_what_is_not_there_is_not_found(client: Client) -> None:
    board = client.leaderboard("none")
    with pytest.raises(NotFoundError):
        board.rank("ann")


def test_a_leaderboard_exists_once(board: Leaderboard) -> None:
    with pytest.raises(AlreadyExistsError):
        board.create()


def test_what_was_removed_is_gone(board: Leaderboard) -> None:
    assert board.remove("ann") == 1
    assert board.rank("bob", exact=True) == 1
    board.delete()
    # Other workers learn of it within a second.
    wait_for(lambda: _is_gone(board), "the leaderboard to be gone everywhere")


def _is_gone(board: Leaderboard) -> bool:
    try:
        board.top(exact=True)
    except NotFoundError:
        return True
    return False


def test_a_watch_of_the_top(board: Leaderboard) -> None:
    watch = board.watch(2, min_interval=0.1)
    before = next(watch)
    board.submit("cat", 99)
    after = next(watch)
    watch.close()  # type: ignore[attr-defined]
    assert [[e.member for e in top] for top in (before, after)] == [["ann", "bob"], ["cat", "ann"]]


def test_a_killed_worker_is_not_noticed(client: Client, service: RunningService) -> None:
    counter = client.counter("post:42")
    for index in range(20):
        if index % 10 == 5:
            service.kill_worker(index // 10)
        counter.increment(timeout=30)
    assert counter.get(exact=True, timeout=30).value == 20


def test_connections_are_taken_in_turns(service: RunningService, tenant: str) -> None:
    with Client(service.target, tenant=tenant, channels=3) as client:
        client.wait_ready()
        stubs = {id(next(client._counters._stubs)) for _ in range(6)}
    assert len(stubs) == 3


def test_all_addresses_of_a_name_are_used(service: RunningService, tenant: str) -> None:
    def count(at: RunningService) -> int:
        with Client(at.target, tenant=tenant) as client:
            return client.counter("post:42").get(exact=True).value

    with RunningService(workers=1) as other:
        target = f"ipv4:{service.target},{other.target}"
        with Client(target, tenant=tenant, channels=1) as client:
            counter = client.counter("post:42")

            def both_count() -> bool:
                counter.increment()
                return count(service) > 0 and count(other) > 0

            wait_for(both_count, "calls to both")
            before = count(service)
            other.kill()
            for _ in range(5):
                counter.increment()
    assert count(service) == before + 5


def test_a_service_that_is_not_there_is_waited_for(tenant: str) -> None:
    client = Client("127.0.0.1:1", tenant=tenant, channels=1)
    with client, pytest.raises(UnavailableError, match="did not answer"):
        client.wait_ready(0.2)


def test_a_deadline_beyond_that_of_the_service_config_is_kept(tenant: str) -> None:
    with Client("127.0.0.1:1", tenant=tenant, channels=1) as client:
        began = time.monotonic()
        with pytest.raises(DeadlineExceededError):
            client.counter("post:42").get(timeout=12)
    assert time.monotonic() - began > 11


def test_a_service_that_starts_is_waited_for(tenant: str) -> None:
    with RunningService(workers=1) as service, Client(service.target, tenant=tenant) as client:
        service.kill()
        service.spawn()
        client.wait_ready()
        assert client.counter("post:42").get(exact=True).value == 0


def test_a_closed_client_says_so(service: RunningService) -> None:
    client = Client(service.target)
    client.close()
    with pytest.raises(FailedPreconditionError):
        client.counter("post:42").increment()


@pytest.mark.parametrize(
    "arguments", [{"channels": 0}, {"timeout": 0}, {"tenant": "ä"}, {"token": "a\nb"}]
)
def test_arguments_outside_their_limits(arguments: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"must be"):
        Client("127.0.0.1:1", **arguments)  # type: ignore[arg-type]
