"""The pool that runs calls."""

import threading
from collections.abc import Iterator

import pytest

from tallyboard_server.rpc.pool import CallPool


@pytest.fixture
def pool() -> Iterator[CallPool]:
    """Two threads."""
    opened = CallPool(2, "test")
    yield opened
    opened.shutdown()


def test_a_call_runs_with_its_arguments(pool: CallPool) -> None:
    done = threading.Event()
    found: list[tuple[int, str]] = []
    pool.submit(lambda a, b: found.append((a, b)), 1, "x").add_done_callback(lambda _: done.set())
    done.wait(10)
    assert found == [(1, "x")]


def test_a_callback_added_late_is_called(pool: CallPool) -> None:
    over = threading.Event()
    call = pool.submit(lambda: None)
    call.add_done_callback(lambda _: over.set())
    over.wait(10)
    late: list[object] = []
    call.add_done_callback(late.append)
    assert late == [call]


def test_a_call_that_fails_is_over_and_its_thread_lives(pool: CallPool) -> None:
    for _ in range(5):
        over = threading.Event()
        pool.submit(lambda: 1 // 0).add_done_callback(lambda _, over=over: over.set())
        assert over.wait(10)


def test_as_many_calls_run_at_once_as_there_are_threads(pool: CallPool) -> None:
    barrier = threading.Barrier(3)
    for _ in range(2):
        pool.submit(barrier.wait, 10)
    assert barrier.wait(10) in range(3)


def test_shutdown_ends_the_threads() -> None:
    ended = CallPool(3, "ended")
    ended.shutdown()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ended-")]
