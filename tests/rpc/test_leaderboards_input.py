"""Bad input to leaderboards gets the error of the contract, with field paths; nothing changes."""

import math
import time
import uuid
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from tallyboard.v1 import leaderboards_pb2 as pb
from tallyboard.v1.leaderboards_pb2_grpc import LeaderboardServiceStub
from tests.rpc.errors import refusal
from tests.rpc.test_bad_input import BAD_NAMES, INVALID

NAN, INFINITY = math.nan, math.inf
FIELD, TOO_MANY = "FIELD_INVALID", "TOO_MANY_ITEMS"
NO_NANOS = {"seconds": 1, "nanos": 1_000_000_000}
# By RPC, the least that the request needs besides the leaderboard's id.
NAMING_A_BOARD: dict[str, dict[str, Any]] = {
    "GetLeaderboard": {},
    "DeleteLeaderboard": {},
    "GetEntry": {"member": "ann"},
    "BatchGetEntries": {"members": ["ann"]},
    "ListEntries": {},
    "ListEntriesAround": {"member": "ann"},
    "ListEntriesByScore": {},
    "GetLeaderboardStats": {},
    "DeleteEntry": {"member": "ann"},
    "ListWindows": {},
    "WatchEntries": {},
}
READS = (
    "GetEntry",
    "BatchGetEntries",
    "ListEntries",
    "ListEntriesAround",
    "ListEntriesByScore",
    "GetLeaderboardStats",
)
RANKED = (*READS[:-1], "WatchEntries")
WITH_A_REQUEST_ID = {
    "CreateLeaderboard": {"leaderboard_id": "points"},
    "UpdateLeaderboard": {"leaderboard": {"leaderboard_id": "points"}},
    "DeleteLeaderboard": {"leaderboard_id": "points"},
    "SubmitScore": {"submission": {"leaderboard_id": "points", "member": "ann"}},
    "BatchSubmitScores": {"submissions": [{"leaderboard_id": "points", "member": "ann"}]},
    "DeleteEntry": {"leaderboard_id": "points", "member": "ann"},
    "EraseMember": {"member": "ann"},
}


@pytest.fixture
def board(leaderboards: LeaderboardServiceStub, name: str) -> str:
    """The id of a board of all time that no other test uses."""
    leaderboards.CreateLeaderboard(pb.CreateLeaderboardRequest(leaderboard_id=name), timeout=10)
    return name


def request_of(rpc: str, **fields: Any) -> Any:
    """The request of an RPC."""
    return getattr(pb, f"{rpc}Request")(**fields)


def refused(
    leaderboards: LeaderboardServiceStub, rpc: str, **fields: Any
) -> tuple[grpc.StatusCode, str, list[str]]:
    """Code, reason and field paths of a call that fails."""
    error = refusal(getattr(leaderboards, rpc), request_of(rpc, **fields))
    return error.code, error.reason, error.fields


def entry_count(leaderboards: LeaderboardServiceStub, board: str) -> int:
    """How many entries a board has now."""
    request = pb.ListEntriesRequest(leaderboard_id=board, consistency={"exact": True})
    return leaderboards.ListEntries(request, timeout=10).total_size


def definition(leaderboards: LeaderboardServiceStub, board: str) -> pb.Leaderboard:
    """The definition of a board."""
    request = pb.GetLeaderboardRequest(leaderboard_id=board)
    return leaderboards.GetLeaderboard(request, timeout=10).leaderboard


def details(status: status_pb2.Status) -> tuple[str, list[str]]:
    """Reason and field paths of an item that failed."""
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    assert status.details[0].Unpack(info)
    if len(status.details) > 1:
        status.details[1].Unpack(bad)
    return info.reason, [violation.field for violation in bad.field_violations]


def stream(*batches: pb.StreamScoresRequest) -> Iterator[pb.StreamScoresRequest]:
    """The requests of a stream."""
    return iter(batches)


@pytest.mark.parametrize("rpc", ["CreateLeaderboard", *NAMING_A_BOARD])
@pytest.mark.parametrize("bad", BAD_NAMES.values(), ids=BAD_NAMES.keys())
def test_a_bad_leaderboard_id_is_refused(
    leaderboards: LeaderboardServiceStub, rpc: str, bad: str
) -> None:
    fields = NAMING_A_BOARD.get(rpc, {})
    found = refused(leaderboards, rpc, leaderboard_id=bad, **fields)
    assert found == (INVALID, "NAME_INVALID", ["leaderboard_id"])


@pytest.mark.parametrize("rpc", NAMING_A_BOARD)
def test_a_leaderboard_that_is_not_there_is_not_found(
    leaderboards: LeaderboardServiceStub, name: str, rpc: str
) -> None:
    found = refused(leaderboards, rpc, leaderboard_id=name, **NAMING_A_BOARD[rpc])
    assert found == (grpc.StatusCode.NOT_FOUND, "LEADERBOARD_NOT_FOUND", [])


@pytest.mark.parametrize("bad", BAD_NAMES.values(), ids=BAD_NAMES.keys())
@pytest.mark.parametrize(
    ("rpc", "fields", "path"),
    [
        ("GetEntry", lambda bad: {"member": bad}, "member"),
        ("BatchGetEntries", lambda bad: {"members": ["ann", bad]}, "members[1]"),
        ("ListEntriesAround", lambda bad: {"member": bad}, "member"),
        ("DeleteEntry", lambda bad: {"member": bad}, "member"),
    ],
)
def test_a_bad_member_is_refused(
    leaderboards: LeaderboardServiceStub, board: str, rpc: str, fields: Any, path: str, bad: str
) -> None:
    found = refused(leaderboards, rpc, leaderboard_id=board, **fields(bad))
    assert found == (INVALID, "NAME_INVALID", [path])


@pytest.mark.parametrize("bad", BAD_NAMES.values(), ids=BAD_NAMES.keys())
def test_a_bad_member_to_erase_is_refused(leaderboards: LeaderboardServiceStub, bad: str) -> None:
    found = refused(leaderboards, "EraseMember", member=bad)
    assert found == (INVALID, "NAME_INVALID", ["member"])


@pytest.mark.parametrize("rpc", WITH_A_REQUEST_ID)
@pytest.mark.parametrize("request_id", ["post:42", "0" * 31, "{}", "\x00"])
def test_a_request_id_that_is_no_uuid_is_refused(
    leaderboards: LeaderboardServiceStub, rpc: str, request_id: str
) -> None:
    found = refused(leaderboards, rpc, request_id=request_id, **WITH_A_REQUEST_ID[rpc])
    assert found == (INVALID, "REQUEST_ID_INVALID", ["request_id"])


@pytest.mark.parametrize(
    ("leaderboard", "reason", "path"),
    [
        ({"leaderboard_id": "another"}, FIELD, "leaderboard_id"),
        ({"sort_order": 3}, FIELD, "sort_order"),
        ({"update_policy": -1}, FIELD, "update_policy"),
        ({"tie_break": 99}, FIELD, "tie_break"),
        ({"windows": [0]}, FIELD, "windows[0]"),
        ({"windows": [1, pb.WINDOW_KIND_SEASON]}, FIELD, "windows[1]"),
        ({"windows": [1, 7]}, FIELD, "windows[1]"),
        ({"windows": [1, 3, 1]}, FIELD, "windows[2]"),
        ({"time_zone": "Europe/Atlantis"}, FIELD, "time_zone"),
        ({"time_zone": "../../etc/passwd"}, FIELD, "time_zone"),
        ({"time_zone": "x" * 100_000}, FIELD, "time_zone"),
        ({"reset_offset": {"seconds": 86_400}}, FIELD, "reset_offset"),
        ({"reset_offset": {"seconds": -1}}, FIELD, "reset_offset"),
        ({"reset_offset": {"nanos": 1}}, FIELD, "reset_offset"),
        ({"reset_offset": NO_NANOS}, FIELD, "reset_offset"),
        ({"reset_offset": {"seconds": 1, "nanos": -1}}, FIELD, "reset_offset"),
        ({"reset_offset": {"seconds": 2**63 - 1}}, FIELD, "reset_offset"),
        ({"retention": [{"kind": 0, "duration": {"seconds": 3600}}]}, FIELD, "retention[0].kind"),
        ({"retention": [{"kind": 1, "duration": {"seconds": 3600}}]}, FIELD, "retention[0].kind"),
        ({"retention": [{"kind": 7, "duration": {"seconds": 3600}}]}, FIELD, "retention[0].kind"),
        ({"retention": [{"kind": 3, "duration": {"seconds": 3600}}] * 2}, FIELD,
         "retention[1].kind"),
        ({"retention": [{"kind": 3}]}, FIELD, "retention[0].duration"),
        ({"retention": [{"kind": 3, "duration": {"seconds": 3599}}]}, FIELD,
         "retention[0].duration"),
        ({"retention": [{"kind": 3, "duration": {"seconds": 3600, "nanos": 1}}]}, FIELD,
         "retention[0].duration"),
        ({"retention": [{"kind": 3, "duration": {"seconds": 11 * 366 * 86_400}}]}, FIELD,
         "retention[0].duration"),
        ({"late_grace": {"seconds": -1}}, FIELD, "late_grace"),
        ({"late_grace": {"seconds": 7 * 86_400 + 1}}, FIELD, "late_grace"),
        ({"late_grace": NO_NANOS}, FIELD, "late_grace"),
        ({"max_entries": -1}, FIELD, "max_entries"),
        ({"segments": -1}, FIELD, "segments"),
        ({"segments": 65}, FIELD, "segments"),
        ({"seasons": [{"name": "s1"}]}, FIELD, "seasons[0].starts_at"),
        ({"seasons": [{"name": "s1", "starts_at": {"seconds": 1}}]}, FIELD, "seasons[0].ends_at"),
        ({"seasons": [{"name": "s1", "starts_at": {"seconds": 1}, "ends_at": {"seconds": 1}}]},
         FIELD, "seasons[0].ends_at"),
        ({"seasons": [{"name": "s1", "starts_at": NO_NANOS, "ends_at": {"seconds": 9}}]},
         FIELD, "seasons[0].starts_at"),
        ({"seasons": [{"name": "s1", "starts_at": {"seconds": -(2**63)}, "ends_at": {}}]},
         FIELD, "seasons[0].starts_at"),
        ({"seasons": [{"name": "s1", "starts_at": {}, "ends_at": {"seconds": 2**63 - 1}}]},
         FIELD, "seasons[0].ends_at"),
        ({"seasons": [{"name": "", "starts_at": {}, "ends_at": {"seconds": 1}}]},
         FIELD, "seasons[0].name"),
        ({"seasons": [{"name": "2026-11", "starts_at": {}, "ends_at": {"seconds": 1}}]},
         FIELD, "seasons[0].name"),
        ({"seasons": [{"name": "s1", "starts_at": {}, "ends_at": {"seconds": 1}}] * 2},
         FIELD, "seasons[1].name"),
        ({"seasons": [{"name": f"s{i}", "starts_at": {}, "ends_at": {"seconds": 1}}
                      for i in range(101)]},
         TOO_MANY, "seasons"),
        ({"attributes": {f"k{i}": "" for i in range(65)}}, TOO_MANY, "attributes"),
        ({"attributes": {"": "x"}}, FIELD, 'attributes[""]'),
        ({"attributes": {"note": "x" * 1025}}, FIELD, 'attributes["note"]'),
    ],
)  # fmt: skip
def test_a_bad_definition_is_refused(
    leaderboards: LeaderboardServiceStub,
    name: str,
    leaderboard: dict[str, Any],
    reason: str,
    path: str,
) -> None:
    fields = {"leaderboard_id": name, "leaderboard": leaderboard}
    found = refused(leaderboards, "CreateLeaderboard", **fields)
    assert found == (INVALID, reason, [f"leaderboard.{path}"])
    assert refused(leaderboards, "GetLeaderboard", leaderboard_id=name)[1] == (
        "LEADERBOARD_NOT_FOUND"
    )


def test_what_the_server_sets_is_ignored(leaderboards: LeaderboardServiceStub, name: str) -> None:
    leaderboard = pb.Leaderboard(
        leaderboard_id=name, created_at=NO_NANOS, updated_at={"seconds": 5}, etag="another"
    )
    request = pb.CreateLeaderboardRequest(leaderboard_id=name, leaderboard=leaderboard)
    created = leaderboards.CreateLeaderboard(request, timeout=10).leaderboard
    assert (time.time() - created.created_at.seconds < 60, created.etag != "another") == (
        True,
        True,
    )


@pytest.mark.parametrize(
    "path",
    [
        "leaderboard_id",
        "created_at",
        "updated_at",
        "etag",
        "nickname",
        "",
        "seasons.name",
        "late_grace.seconds",
        "attributes.note",
        "leaderboard.windows",
        "lateGrace",
        "\x00",
    ],
)
def test_a_bad_path_in_a_mask_is_refused(
    leaderboards: LeaderboardServiceStub, board: str, path: str
) -> None:
    before = definition(leaderboards, board)
    found = refused(
        leaderboards,
        "UpdateLeaderboard",
        leaderboard={"leaderboard_id": board, "max_entries": 5},
        update_mask={"paths": ["max_entries", path]},
    )
    assert found == (INVALID, FIELD, ["update_mask.paths[1]"])
    assert definition(leaderboards, board) == before


def test_a_bad_new_value_changes_nothing(leaderboards: LeaderboardServiceStub, board: str) -> None:
    before = definition(leaderboards, board)
    leaderboard = {"leaderboard_id": board, "max_entries": 5, "late_grace": {"seconds": -1}}
    found = refused(leaderboards, "UpdateLeaderboard", leaderboard=leaderboard)
    assert found == (INVALID, FIELD, ["leaderboard.late_grace"])
    assert definition(leaderboards, board) == before


def test_a_bad_value_that_the_mask_leaves_out_is_not_looked_at(
    leaderboards: LeaderboardServiceStub, board: str
) -> None:
    request = pb.UpdateLeaderboardRequest(
        leaderboard={"leaderboard_id": board, "max_entries": 5, "late_grace": {"seconds": -1}},
        update_mask={"paths": ["max_entries"]},
    )
    assert leaderboards.UpdateLeaderboard(request, timeout=10).leaderboard.max_entries == 5


@pytest.mark.parametrize("leaderboard", [{}, {"leaderboard_id": "post\n42"}])
def test_an_update_of_no_leaderboard_is_refused(
    leaderboards: LeaderboardServiceStub, leaderboard: dict[str, Any]
) -> None:
    found = refused(leaderboards, "UpdateLeaderboard", leaderboard=leaderboard)
    assert found == (INVALID, "NAME_INVALID", ["leaderboard.leaderboard_id"])


@pytest.mark.parametrize("rpc", ["UpdateLeaderboard", "DeleteLeaderboard"])
def test_an_old_etag_changes_nothing(
    leaderboards: LeaderboardServiceStub, board: str, rpc: str
) -> None:
    before = definition(leaderboards, board)
    fields: dict[str, Any] = {"leaderboard_id": board, "etag": "another"}
    if rpc == "UpdateLeaderboard":
        fields = {"leaderboard": fields | {"max_entries": 5}}
    found = refused(leaderboards, rpc, **fields)
    assert found == (grpc.StatusCode.ABORTED, "ETAG_MISMATCH", [])
    assert definition(leaderboards, board) == before


BAD_SUBMISSIONS = {
    "no member": ({"member": ""}, "NAME_INVALID", "member"),
    "newline": ({"member": "ann\n"}, "NAME_INVALID", "member"),
    "long member": ({"member": "x" * 257}, "NAME_INVALID", "member"),
    "no leaderboard": ({"leaderboard_id": ""}, "NAME_INVALID", "leaderboard_id"),
    "NaN": ({"score": NAN}, "SCORE_INVALID", "score"),
    "infinity": ({"score": INFINITY}, "SCORE_INVALID", "score"),
    "-infinity": ({"score": -INFINITY}, "SCORE_INVALID", "score"),
    "metadata": ({"metadata": b"x" * 2049}, "METADATA_TOO_LARGE", "metadata"),
    "nanos": ({"occurred_at": NO_NANOS}, FIELD, "occurred_at"),
    "-nanos": ({"occurred_at": {"nanos": -1}}, FIELD, "occurred_at"),
    "1899": ({"occurred_at": {"seconds": -2_208_988_801}}, FIELD, "occurred_at"),
    "2100": ({"occurred_at": {"seconds": 4_102_444_800}}, FIELD, "occurred_at"),
    "2099": ({"occurred_at": {"seconds": 4_102_444_799}}, FIELD, "occurred_at"),
    "far future": ({"occurred_at": {"seconds": 2**63 - 1}}, FIELD, "occurred_at"),
    "far past": ({"occurred_at": {"seconds": -(2**63)}}, FIELD, "occurred_at"),
}


@pytest.mark.parametrize(
    ("wrong", "reason", "path"), BAD_SUBMISSIONS.values(), ids=BAD_SUBMISSIONS.keys()
)
def test_a_bad_submission_changes_nothing(
    leaderboards: LeaderboardServiceStub,
    board: str,
    wrong: dict[str, Any],
    reason: str,
    path: str,
) -> None:
    submission = {"leaderboard_id": board, "member": "ann", "score": 1.0} | wrong
    found = refused(leaderboards, "SubmitScore", submission=submission)
    assert found == (INVALID, reason, [f"submission.{path}"])
    assert entry_count(leaderboards, board) == 0


def test_no_submission_is_refused(leaderboards: LeaderboardServiceStub) -> None:
    assert refused(leaderboards, "SubmitScore") == (INVALID, FIELD, ["submission"])


def test_a_score_two_minutes_ahead_is_refused(
    leaderboards: LeaderboardServiceStub, board: str
) -> None:
    submission = {
        "leaderboard_id": board,
        "member": "ann",
        "score": 1.0,
        "occurred_at": {"seconds": int(time.time()) + 120},
    }
    found = refused(leaderboards, "SubmitScore", submission=submission)
    assert found == (INVALID, FIELD, ["submission.occurred_at"])


def test_a_score_for_no_leaderboard_is_not_found(
    leaderboards: LeaderboardServiceStub, name: str
) -> None:
    submission = {"leaderboard_id": name, "member": "ann", "score": 1.0}
    found = refused(leaderboards, "SubmitScore", submission=submission)
    assert found == (grpc.StatusCode.NOT_FOUND, "LEADERBOARD_NOT_FOUND", [])


def test_the_limits_themselves_are_taken(leaderboards: LeaderboardServiceStub, board: str) -> None:
    submission = {
        "leaderboard_id": board,
        "member": "é" * 128,
        "score": 1.7976931348623157e308,
        "metadata": b"\x00" * 2048,
        "occurred_at": {"seconds": -2_208_988_800},
    }
    leaderboards.SubmitScore(pb.SubmitScoreRequest(submission=submission), timeout=10)
    request = pb.GetEntryRequest(leaderboard_id=board, member="é" * 128)
    entry = leaderboards.GetEntry(request, timeout=10).entry
    assert (entry.score, entry.metadata, entry.updated_at.seconds) == (
        1.7976931348623157e308,
        b"\x00" * 2048,
        -2_208_988_800,
    )


@pytest.mark.parametrize(("size", "reason"), [(0, FIELD), (10_001, TOO_MANY)])
def test_a_batch_of_a_wrong_size_changes_nothing(
    leaderboards: LeaderboardServiceStub, board: str, size: int, reason: str
) -> None:
    submissions = [pb.Submission(leaderboard_id=board, member="ann", score=1.0)] * size
    found = refused(leaderboards, "BatchSubmitScores", submissions=submissions)
    assert found == (INVALID, reason, ["submissions"])
    assert entry_count(leaderboards, board) == 0


def test_bad_items_of_a_batch_are_failures(
    leaderboards: LeaderboardServiceStub, board: str, name: str
) -> None:
    good = {"leaderboard_id": board, "score": 1.0}
    submissions = [good | {"member": "ann"}]
    submissions += [good | {"member": "acme"} | wrong for wrong, _, _ in BAD_SUBMISSIONS.values()]
    submissions += [good | {"member": "ann", "leaderboard_id": f"{name}?"}, good | {"member": "z"}]
    request = pb.BatchSubmitScoresRequest(submissions=submissions)
    answer = leaderboards.BatchSubmitScores(request, timeout=10)
    expected = [
        (index, reason, [f"submissions[{index}].{path}"])
        for index, (_, reason, path) in enumerate(BAD_SUBMISSIONS.values(), 1)
    ]
    expected.append((len(submissions) - 2, "LEADERBOARD_NOT_FOUND", []))
    found = [(failure.index, *details(failure.status)) for failure in answer.failures]
    assert (found, entry_count(leaderboards, board)) == (expected, 2)


def test_a_batch_of_nothing_but_bad_items_is_no_failed_call(
    leaderboards: LeaderboardServiceStub, board: str
) -> None:
    request = pb.BatchSubmitScoresRequest(
        submissions=[{"leaderboard_id": board, "member": "", "score": 1.0}],
        request_id=str(uuid.uuid4()),
    )
    answer = leaderboards.BatchSubmitScores(request, timeout=10)
    assert [failure.index for failure in answer.failures] == [0]


@pytest.mark.parametrize(
    ("batch", "reason"),
    [
        ({"producer_id": ""}, "PRODUCER_INVALID"),
        ({"producer_id": "ann\n"}, "PRODUCER_INVALID"),
        ({"sequence": 0}, "SEQUENCE_INVALID"),
        ({"sequence": 2**60}, "SEQUENCE_INVALID"),
        ({"scores": []}, FIELD),
        ({"scores": [], "members": []}, FIELD),
        ({"members": []}, FIELD),
        ({"members": ["ann"]}, FIELD),
        ({"members": ["ann"] * 3}, FIELD),
        ({"leaderboard_ids": []}, FIELD),
        ({"leaderboard_ids": ["a"] * 3}, FIELD),
        ({"metadata": [b""]}, FIELD),
        ({"metadata": [b""] * 3}, FIELD),
        ({"occurred_at_micros": [0]}, FIELD),
        ({"occurred_at_micros": [0] * 3}, FIELD),
        ({"scores": [1.0] * 10_001, "members": ["ann"] * 10_001}, TOO_MANY),
        ({"leaderboard_ids": ["a"] * 10_001}, TOO_MANY),
        ({"members": ["ann"] * 10_001}, TOO_MANY),
        ({"metadata": [b""] * 10_001}, TOO_MANY),
        ({"occurred_at_micros": [0] * 10_001}, TOO_MANY),
    ],
)
def test_a_bad_batch_ends_the_stream(
    leaderboards: LeaderboardServiceStub, board: str, batch: dict[str, Any], reason: str
) -> None:
    fields: dict[str, Any] = {
        "producer_id": board,
        "sequence": 1,
        "leaderboard_ids": [board],
        "members": ["ann", "acme"],
        "scores": [1.0, 2.0],
    }
    error = refusal(leaderboards.StreamScores, stream(pb.StreamScoresRequest(**(fields | batch))))
    assert (error.code, error.reason) == (INVALID, reason)
    assert entry_count(leaderboards, board) == 0


def test_a_bad_item_in_a_stream_is_a_failure(
    leaderboards: LeaderboardServiceStub, board: str, name: str
) -> None:
    ahead = (int(time.time()) + 120) * 1_000_000
    items: list[tuple[str, str, float, bytes, int, str]] = [
        (board, "ann", 1.0, b"", 0, ""),
        (board, "", 1.0, b"", 0, "NAME_INVALID"),
        (board, "acme", NAN, b"", 0, "SCORE_INVALID"),
        (board, "acme", INFINITY, b"", 0, "SCORE_INVALID"),
        (board, "acme", 1.0, b"x" * 2049, 0, "METADATA_TOO_LARGE"),
        (board, "acme", 1.0, b"", ahead, FIELD),
        (board, "acme", 1.0, b"", 2**63 - 1, FIELD),
        (board, "acme", 1.0, b"", -(2**63), FIELD),
        ("post\n42", "acme", 1.0, b"", 0, "NAME_INVALID"),
        (f"{name}?", "acme", 1.0, b"", 0, "LEADERBOARD_NOT_FOUND"),
        (board, "z", 1.0, b"", 1, ""),
    ]
    ids, members, scores, metadata, moments, reasons = zip(*items, strict=True)
    batch = pb.StreamScoresRequest(
        producer_id=name,
        sequence=1,
        leaderboard_ids=ids,
        members=members,
        scores=scores,
        metadata=metadata,
        occurred_at_micros=moments,
    )
    found = {
        (failure.sequence, failure.index, details(failure.status)[0])
        for answer in leaderboards.StreamScores(stream(batch), timeout=10)
        for failure in answer.failures
    }
    expected = {(1, index, reason) for index, reason in enumerate(reasons) if reason}
    assert (found, entry_count(leaderboards, board)) == (expected, 2)


@pytest.mark.parametrize("rpc", READS)
@pytest.mark.parametrize(
    "max_staleness",
    [
        {"seconds": -1},
        {"nanos": -1},
        {"seconds": 1, "nanos": -1},
        {"seconds": 3601},
        NO_NANOS,
        {"seconds": 2**63 - 1},
    ],
)
def test_bad_staleness_is_refused(
    leaderboards: LeaderboardServiceStub, board: str, rpc: str, max_staleness: dict[str, int]
) -> None:
    consistency = {"max_staleness": max_staleness}
    fields = {"leaderboard_id": board, "consistency": consistency, **NAMING_A_BOARD[rpc]}
    found = refused(leaderboards, rpc, **fields)
    assert found == (INVALID, "CONSISTENCY_INVALID", ["consistency.max_staleness"])


@pytest.mark.parametrize("rpc", RANKED)
@pytest.mark.parametrize("method", [-1, 4, 2**31 - 1])
def test_a_rank_method_that_there_is_not_is_refused(
    leaderboards: LeaderboardServiceStub, board: str, rpc: str, method: int
) -> None:
    fields = {"leaderboard_id": board, "rank_method": method, **NAMING_A_BOARD[rpc]}
    assert refused(leaderboards, rpc, **fields) == (INVALID, FIELD, ["rank_method"])


@pytest.mark.parametrize("rpc", [*READS, "DeleteEntry", "WatchEntries"])
@pytest.mark.parametrize(
    "window", ["today", "current:", "current:dayly", "next:daily", "2026-13", "all\x00", "x" * 9999]
)
def test_a_bad_window_is_refused(
    leaderboards: LeaderboardServiceStub, board: str, rpc: str, window: str
) -> None:
    fields = {"leaderboard_id": board, "window": window, **NAMING_A_BOARD[rpc]}
    assert refused(leaderboards, rpc, **fields) == (INVALID, "WINDOW_INVALID", ["window"])


@pytest.mark.parametrize(
    ("rpc", "fields", "reason", "path"),
    [
        ("BatchGetEntries", {"members": []}, FIELD, "members"),
        ("BatchGetEntries", {"members": [f"m{i}" for i in range(1001)]}, TOO_MANY, "members"),
        ("BatchGetEntries", {"members": ["ann", "acme", "ann"]}, FIELD, "members[2]"),
        ("ListEntries", {"page_size": -1}, "PAGE_INVALID", "page_size"),
        ("ListEntries", {"skip": -1}, "PAGE_INVALID", "skip"),
        ("ListEntries", {"page_token": "post:42"}, "PAGE_INVALID", "page_token"),
        ("ListEntriesAround", {}, FIELD, "center"),
        ("ListEntriesAround", {"member": "ann", "neighbors": -1}, FIELD, "neighbors"),
        ("ListEntriesAround", {"score": NAN}, "SCORE_INVALID", "score"),
        ("ListEntriesAround", {"score": INFINITY}, "SCORE_INVALID", "score"),
        ("ListEntriesByScore", {"from_score": NAN}, "SCORE_INVALID", "from_score"),
        ("ListEntriesByScore", {"to_score": -INFINITY}, "SCORE_INVALID", "to_score"),
        ("ListEntriesByScore", {"from_score": 2.0, "to_score": 1.0}, FIELD, "to_score"),
        ("ListEntriesByScore", {"page_size": -1}, "PAGE_INVALID", "page_size"),
        ("ListEntriesByScore", {"page_token": "post:42"}, "PAGE_INVALID", "page_token"),
        ("GetLeaderboardStats", {"percentiles": [50.0] * 101}, TOO_MANY, "percentiles"),
        ("GetLeaderboardStats", {"percentiles": [0.0, NAN]}, FIELD, "percentiles[1]"),
        ("GetLeaderboardStats", {"percentiles": [-0.1]}, FIELD, "percentiles[0]"),
        ("GetLeaderboardStats", {"percentiles": [100.1]}, FIELD, "percentiles[0]"),
        ("ListWindows", {"kind": 7}, FIELD, "kind"),
        ("ListWindows", {"page_size": -1}, "PAGE_INVALID", "page_size"),
        ("ListWindows", {"page_token": "post:42"}, "PAGE_INVALID", "page_token"),
        ("WatchEntries", {"limit": -1}, FIELD, "limit"),
        ("WatchEntries", {"min_interval": {"nanos": 99_000_000}}, FIELD, "min_interval"),
        ("WatchEntries", {"min_interval": {"seconds": 3601}}, FIELD, "min_interval"),
        ("WatchEntries", {"min_interval": NO_NANOS}, FIELD, "min_interval"),
    ],
)
def test_a_bad_read_is_refused(
    leaderboards: LeaderboardServiceStub,
    board: str,
    rpc: str,
    fields: dict[str, Any],
    reason: str,
    path: str,
) -> None:
    found = refused(leaderboards, rpc, leaderboard_id=board, **fields)
    assert found == (INVALID, reason, [path])


@pytest.mark.parametrize(
    ("fields", "reason", "path"),
    [
        ({"page_size": -1}, "PAGE_INVALID", "page_size"),
        ({"page_token": "post:42"}, "PAGE_INVALID", "page_token"),
        ({"prefix": "x" * 257}, "NAME_INVALID", "prefix"),
        ({"prefix": "\x00"}, "NAME_INVALID", "prefix"),
    ],
)
def test_a_bad_list_of_leaderboards_is_refused(
    leaderboards: LeaderboardServiceStub, fields: dict[str, Any], reason: str, path: str
) -> None:
    assert refused(leaderboards, "ListLeaderboards", **fields) == (INVALID, reason, [path])


def test_a_member_without_an_entry_is_not_found(
    leaderboards: LeaderboardServiceStub, board: str
) -> None:
    found = refused(leaderboards, "GetEntry", leaderboard_id=board, member="ann")
    assert found == (grpc.StatusCode.NOT_FOUND, "ENTRY_NOT_FOUND", [])


@pytest.mark.parametrize("rpc", ["GetEntry", "ListEntries", "SubmitScore", "UpdateLeaderboard"])
def test_bytes_that_are_no_message_are_refused(channel: grpc.Channel, rpc: str) -> None:
    raw = channel.unary_unary(f"/tallyboard.v1.LeaderboardService/{rpc}")
    error = refusal(raw, b"\xff\xff\xff\xff")
    assert (error.code, error.reason, error.fields) == (INVALID, FIELD, ["message"])


def test_another_tenant_has_no_such_board(leaderboards: LeaderboardServiceStub, board: str) -> None:
    error = refusal(
        leaderboards.GetLeaderboard,
        pb.GetLeaderboardRequest(leaderboard_id=board),
        metadata=[("x-tallyboard-tenant", "acme")],
    )
    assert error.reason == "LEADERBOARD_NOT_FOUND"
