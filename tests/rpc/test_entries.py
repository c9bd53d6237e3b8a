"""Submissions and rankings between the contract and the domain."""

import sys
from contextlib import nullcontext
from dataclasses import replace
from threading import Barrier, Thread

import pytest

from tallyboard.v1 import consistency_pb2
from tallyboard.v1 import leaderboards_pb2 as pb
from tallyboard_server.errors import FieldViolation, InvalidArgument, NotFound
from tallyboard_server.leaderboards.model import (
    Entry,
    FoundEntries,
    Page,
    Source,
    Stats,
    Submission,
    Window,
    WindowKind,
    WindowResult,
    WindowStanding,
    WindowState,
)
from tallyboard_server.leaderboards.writes import SubmitResult
from tallyboard_server.rpc import entries, scores

ANN = Entry(rank=2, member="ann", score=-1.5, metadata=b"\x00", updated_at=-1)
ANN_SENT = {
    "rank": 2,
    "member": "ann",
    "score": -1.5,
    "metadata": b"\x00",
    "updated_at": {"seconds": -1, "nanos": 999_999_000},
}
PAGE = Page("2026-11", (ANN,), 9, 1.5, Source.CACHE, next_page_token="next", rank=4)
PAGE_SENT = {
    "entries": [ANN_SENT],
    "window": "2026-11",
    "total_size": 9,
    "as_of": {"seconds": 1, "nanos": 500_000_000},
    "source": consistency_pb2.SOURCE_CACHE,
}
FOUND = FoundEntries("2026-11", (ANN,), (87.5,), ("acme",), 9, 1.5, Source.DURABLE)
FOUND_SENT = {"window": "2026-11", "total_size": 9, "as_of": PAGE_SENT["as_of"], "source": 3}


def page_of(size: int) -> Page:
    """A page of so many entries."""
    return replace(PAGE, entries=(ANN,) * size)


def test_a_submission_is_read_whole() -> None:
    message = pb.Submission(
        leaderboard_id="points",
        member="ann",
        score=1.5,
        metadata=b"x",
        occurred_at={"seconds": -1, "nanos": 999_999_999},
    )
    assert scores.submission(message) == Submission("points", "ann", 1.5, b"x", -1)


def test_a_submission_without_a_moment_has_none() -> None:
    message = pb.Submission(leaderboard_id="points", member="ann")
    assert scores.submission(message) == Submission("points", "ann", 0.0, b"", None)


def test_the_epoch_is_a_moment() -> None:
    message = pb.Submission(leaderboard_id="points", member="ann", occurred_at={})
    assert scores.submission(message).occurred_at == 0


@pytest.mark.parametrize(
    ("seconds", "is_taken"),
    [
        (-2_208_988_801, False),
        (-2_208_988_800, True),
        (4_102_444_799, True),
        (4_102_444_800, False),
    ],
)
def test_moments_are_from_1900_to_2099(seconds: int, is_taken: bool) -> None:
    message = pb.Submission(leaderboard_id="points", member="ann", occurred_at={"seconds": seconds})
    with nullcontext() if is_taken else pytest.raises(InvalidArgument, match="occurred_at"):
        scores.submission(message)


def test_failures_are_numbered_as_in_the_request() -> None:
    batch = scores.Batch(
        pb.Submission(leaderboard_id="points", member=member) for member in ("", "a", "b\n", "c")
    )
    late = InvalidArgument("FIELD_INVALID", [FieldViolation("occurred_at", "is ahead")])
    failures = batch.failures({0: late, 1: NotFound("no board")})
    found = [(failure.index, failure.status.message) for failure in failures]
    assert [submission.member for submission in batch.good] == ["a", "c"]
    assert found == [
        (0, "submissions[0].member: must not be empty"),
        (1, "submissions[1].occurred_at: is ahead"),
        (2, "submissions[2].member: must not hold control characters"),
        (3, "no board"),
    ]


def test_fields_that_are_not_the_submissions_keep_their_path() -> None:
    reused = InvalidArgument("REQUEST_ID_REUSED", [FieldViolation("request_id", "came before")])
    error = scores.error_within("submission", reused)
    assert isinstance(error, InvalidArgument)
    assert [violation.field for violation in error.violations] == ["request_id"]


def test_results_are_sent_with_what_is_known() -> None:
    month = Window("2026-11", WindowKind.MONTHLY, 0, 1)
    results = [
        WindowResult(month, None, 0.0, True),
        WindowResult(month, 1.0, 2.0, False, previous_rank=3, rank=4),
    ]
    assert scores.submit_response(SubmitResult(results, True)) == pb.SubmitScoreResponse(
        results=[
            {"window": "2026-11", "kind": pb.WINDOW_KIND_MONTHLY, "score": 0.0, "improved": True},
            {
                "window": "2026-11",
                "kind": pb.WINDOW_KIND_MONTHLY,
                "previous_score": 1.0,
                "score": 2.0,
                "previous_rank": 3,
                "rank": 4,
            },
        ],
        duplicate=True,
    )


def test_what_was_journaled_is_sent_as_such() -> None:
    month = Window("2026-11", WindowKind.MONTHLY, 0, 1)
    submitted = SubmitResult([WindowResult(month, None, None, False)], False, journaled=True)
    assert scores.submit_response(submitted) == pb.SubmitScoreResponse(
        results=[{"window": "2026-11", "kind": pb.WINDOW_KIND_MONTHLY}], journaled=True
    )


def test_an_entry_is_sent_whole() -> None:
    entry = ANN_SENT | {"percentile": 87.5}
    assert entries.get_response(FOUND) == pb.GetEntryResponse(entry=entry, **FOUND_SENT)


def test_entries_are_sent_with_those_that_are_missing() -> None:
    assert entries.batch_get_response(FOUND) == pb.BatchGetEntriesResponse(
        entries=[ANN_SENT | {"percentile": 87.5}], missing_members=["acme"], **FOUND_SENT
    )


def test_pages_are_sent_whole() -> None:
    assert entries.list_response(PAGE) == pb.ListEntriesResponse(
        next_page_token="next", **PAGE_SENT
    )
    assert entries.by_score_response(PAGE) == pb.ListEntriesByScoreResponse(
        next_page_token="next", **PAGE_SENT
    )
    assert entries.around_response(PAGE) == pb.ListEntriesAroundResponse(rank=4, **PAGE_SENT)
    assert entries.watch_response(PAGE) == pb.WatchEntriesResponse(**PAGE_SENT)


def test_statistics_are_sent_with_the_percentiles_asked_for() -> None:
    stats = Stats("all", 2, 9.0, 0.0, 4.5, (0.0, 9.0), 1.5, Source.LIVE)
    assert entries.stats_response(stats, (0.0, 100.0)) == pb.GetLeaderboardStatsResponse(
        count=2,
        best=9.0,
        worst=0.0,
        mean=4.5,
        percentile_scores=[{"percentile": 0, "score": 0}, {"percentile": 100, "score": 9}],
        window="all",
        as_of={"seconds": 1, "nanos": 500_000_000},
        source=consistency_pb2.SOURCE_LIVE,
    )


def test_statistics_of_no_entries_have_no_scores() -> None:
    stats = Stats("all", 0, None, None, None, (), 1.5, Source.LIVE)
    response = entries.stats_response(stats, (50.0,))
    set_fields = {field.name for field, _ in response.ListFields()}
    assert set_fields == {"window", "as_of", "source"}


def test_windows_are_sent_with_their_limits() -> None:
    standings = [
        WindowStanding(Window("all", WindowKind.ALL_TIME), WindowState.OPEN, 3),
        WindowStanding(Window("s1", WindowKind.SEASON, 0, 1_500_000), WindowState.ARCHIVED, 1),
    ]
    assert entries.windows_response(standings, "next") == pb.ListWindowsResponse(
        windows=[
            {"window": "all", "kind": 1, "state": 1, "entry_count": 3},
            {
                "window": "s1",
                "kind": 6,
                "state": 3,
                "starts_at": {},
                "ends_at": {"seconds": 1, "nanos": 500_000_000},
                "entry_count": 1,
            },
        ],
        next_page_token="next",
    )


def test_a_page_is_encoded_once() -> None:
    encoded, page = entries.EncodedPages(1 << 20), page_of(100)
    first = encoded.of(page)
    assert first == entries.list_response(page).SerializeToString()
    assert encoded.of(page) is first


def test_an_equal_page_is_another_one() -> None:
    encoded = entries.EncodedPages(1 << 20)
    assert encoded.of(page_of(1)) is not encoded.of(page_of(1))


def test_encoded_pages_are_bounded() -> None:
    size = len(entries.list_response(page_of(100)).SerializeToString())
    encoded = entries.EncodedPages(3 * size)
    pages = [page_of(100) for _ in range(5)]
    made = [encoded.of(page) for page in pages]
    kept = [encoded.of(page) is old for page, old in zip(pages[2:], made[2:], strict=True)]
    assert (kept, encoded.of(pages[0]) is made[0]) == ([True] * 3, False)


def test_a_page_above_the_bound_is_not_kept() -> None:
    encoded, page = entries.EncodedPages(10), page_of(100)
    assert encoded.of(page) is not encoded.of(page)


def test_a_page_encoded_by_many_at_once_is_counted_once() -> None:
    size = len(entries.list_response(page_of(300)).SerializeToString())
    gate = Barrier(8)

    def ask(encoded: entries.EncodedPages, page: Page) -> None:
        gate.wait(10)
        encoded.of(page)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # so that some encode it before the first is done
    try:
        for _ in range(20):
            encoded, page = entries.EncodedPages(size), page_of(300)
            threads = [Thread(target=ask, args=(encoded, page)) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(30)
            assert encoded.of(page) is encoded.of(page)
    finally:
        sys.setswitchinterval(interval)
