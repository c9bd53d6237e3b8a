"""The waits between two streams."""

from tallyboard._backoff import FIRST, LONGEST, Backoff


def test_waits_grow_to_a_limit() -> None:
    backoff = Backoff()
    delays = [backoff.delay(None) for _ in range(20)]
    assert LONGEST / 2 <= delays[-1] <= LONGEST


def test_first_wait_is_short() -> None:
    assert FIRST / 2 <= Backoff().delay(None) <= FIRST


def test_waits_are_short_again_after_a_success() -> None:
    backoff = Backoff()
    for _ in range(20):
        backoff.delay(None)
    backoff.reset()
    assert backoff.delay(None) <= FIRST


def test_service_decides_the_least_wait() -> None:
    assert Backoff().delay(2.0) >= 2.0


def test_waits_differ() -> None:
    assert len({Backoff().delay(None) for _ in range(20)}) > 1
