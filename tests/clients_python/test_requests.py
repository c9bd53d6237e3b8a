"""What can't be sent is refused by the library, with the field at fault. No service is there."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Final

import pytest

from tallyboard import Client, InvalidArgumentError, Score

_Call = Callable[[Client], object]
_LOCAL: Final = datetime(2026, 11, 23, 8)


@pytest.fixture
def client() -> Iterator[Client]:
    with Client("127.0.0.1:1", channels=1, timeout=0.1) as client:
        yield client


@pytest.mark.parametrize(
    ("call", "reason", "field"),
    [
        (lambda c: c.counter("post:42").increment(2**63), "FIELD_INVALID", "delta"),
        (lambda c: c.counter("\ud800").increment(), "NAME_INVALID", "counter"),
        (
            lambda c: c.increment_many([("a", 1), ("b", -(2**63) - 1)]),
            "FIELD_INVALID",
            "deltas[1].delta",
        ),
        (lambda c: c.increment_many({"\udfff": 1}), "NAME_INVALID", "deltas[0].counter"),
        (lambda c: c.counter("\ud800").get(), "NAME_INVALID", "counter"),
        (lambda c: c.get_many(["a", "\ud800"]), "NAME_INVALID", "counters[1]"),
        (lambda c: c.counter("\ud800").reset(), "NAME_INVALID", "counter"),
        (lambda c: c.counter("\ud800").delete(), "NAME_INVALID", "counter"),
        (lambda c: next(c.counter("\ud800").watch()), "NAME_INVALID", "counters[0]"),
        (lambda c: next(c.list_counters("\ud800")), "FIELD_INVALID", "prefix"),
        (
            lambda c: c.counter("a").increment(request_id="\ud800"),
            "REQUEST_ID_INVALID",
            "request_id",
        ),
        (lambda c: c.leaderboard("\ud800").create(), "NAME_INVALID", "leaderboard_id"),
        (lambda c: c.leaderboard("a").submit("\ud800", 1), "NAME_INVALID", "submission.member"),
        (lambda c: c.leaderboard("a").submit("b", 10**400), "SCORE_INVALID", "submission.score"),
        (
            lambda c: c.leaderboard("a").submit_many([("b", 1), ("\ud800", 1)]),
            "NAME_INVALID",
            "submissions[1].member",
        ),
        (lambda c: c.leaderboard("a").rank("\ud800"), "NAME_INVALID", "member"),
        (lambda c: c.leaderboard("a").friends(["b", "\ud800"]), "NAME_INVALID", "members[1]"),
        (lambda c: c.leaderboard("a").top(window="\ud800"), "FIELD_INVALID", "window"),
        (lambda c: c.leaderboard("a").top(2**31), "PAGE_INVALID", "page_size"),
    ],
)
def test_what_can_not_be_sent_is_refused(
    client: Client, call: _Call, reason: str, field: str
) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        call(client)
    assert (caught.value.reason, [v.field for v in caught.value.violations]) == (reason, [field])


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda c: c.leaderboard("a").submit("b", 1, occurred_at=_LOCAL), "submission.occurred_at"),
        (
            lambda c: c.leaderboard("a").submit_many([Score("b", 1, occurred_at=_LOCAL)]),
            "submissions[0].occurred_at",
        ),
    ],
)
def test_a_moment_needs_a_time_zone(client: Client, call: _Call, field: str) -> None:
    with pytest.raises(InvalidArgumentError, match="must have a time zone") as caught:
        call(client)
    assert [violation.field for violation in caught.value.violations] == [field]


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda c: c.leaderboard("a").top(0), "PAGE_INVALID"),
        (lambda c: c.leaderboard("a").top(-1), "PAGE_INVALID"),
        (lambda c: c.leaderboard("a").around("b", 0), "FIELD_INVALID"),
        (lambda c: next(c.leaderboard("a").watch(0)), "FIELD_INVALID"),
    ],
)
def test_0_entries_are_not_the_default(client: Client, call: _Call, reason: str) -> None:
    with pytest.raises(InvalidArgumentError, match="must be 1 or more") as caught:
        call(client)
    assert caught.value.reason == reason


def test_another_type_is_no_invalid_argument(client: Client) -> None:
    with pytest.raises(TypeError):
        client.counter("post:42").increment("1")  # type: ignore[arg-type]


def test_a_time_zone_other_than_utc_is_kept() -> None:
    """The moment is what counts: it arrives as the same one."""
    with Client("127.0.0.1:1", channels=1) as client:
        moment = datetime.now(UTC).astimezone()
        made = client.leaderboard("a")._submission(Score("b", 1, occurred_at=moment))
    assert made.occurred_at.ToDatetime(UTC) == moment
