"""Calls of LeaderboardService over gRPC, in the words of the model."""

import math
import uuid
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc.error_details_pb2 import ErrorInfo
from grpc_status import rpc_status

from tallyboard.v1 import leaderboards_pb2 as pb
from tallyboard.v1.consistency_pb2 import SOURCE_LIVE, Consistency
from tallyboard.v1.leaderboards_pb2_grpc import LeaderboardServiceStub
from tests.leaderboards.model import DAY, MICROS, Definition, Done, Item, Period, Row, Sums

EXACT = Consistency(exact=True)
_TIMEOUT = 30.0


class Clock:
    """A clock in µs that stands still until it is told to go on, and never goes back."""

    def __init__(self) -> None:
        self.now = 10_957 * DAY  # the year 2000

    def __call__(self) -> int:
        return self.now

    def to_eve(self, micros: int) -> None:
        """Goes to shortly before the end of a day that nobody has seen yet."""
        self.now = (self.now // DAY + 5) * DAY - micros


class Refused(Exception):
    """A call failed; `reason` is that of its ErrorInfo."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def reason_of(details: Iterable[Any]) -> str:
    """The reason of the ErrorInfo among the details of a status."""
    info = ErrorInfo()
    assert any(detail.Unpack(info) for detail in details)
    return info.reason


def stamp(moment: int) -> Timestamp:
    """A moment for a message."""
    return Timestamp(seconds=moment // MICROS, nanos=moment % MICROS * 1000)


def moment_of(timestamp: Timestamp) -> int:
    """The moment of a message."""
    return timestamp.seconds * MICROS + timestamp.nanos // 1000


def row_of(entry: pb.Entry) -> Row:
    """An entry in the words of the model."""
    assert math.copysign(1.0, entry.score) > 0 or entry.score, "-0.0 was stored"
    return Row(entry.rank, entry.member, entry.score, entry.metadata, moment_of(entry.updated_at))


def optional(message: Any, field: str) -> Any:
    """An optional field: None where it is unset."""
    return getattr(message, field) if message.HasField(field) else None


def done_of(result: pb.WindowResult) -> Done:
    """What a submission did, in the words of the model."""
    return Done(
        result.window,
        pb.WindowKind.Name(result.kind).removeprefix("WINDOW_KIND_"),
        optional(result, "previous_score"),
        optional(result, "score"),
        result.improved,
        optional(result, "previous_rank"),
        optional(result, "rank"),
    )


def submission(leaderboard_id: str, item: Item) -> pb.Submission:
    """A submission as a message."""
    message = pb.Submission(
        leaderboard_id=leaderboard_id,
        member=item.member,
        score=item.score,
        metadata=item.metadata,
    )
    if item.moment is not None:
        message.occurred_at.CopyFrom(stamp(item.moment))
    return message


class Page:
    """A page of a list as it was answered."""

    def __init__(self, answer: Any) -> None:
        assert answer.source == SOURCE_LIVE
        self.rows = [row_of(entry) for entry in answer.entries]
        self.size = answer.total_size
        self.window = answer.window
        self.token = getattr(answer, "next_page_token", "")
        self.rank = getattr(answer, "rank", 0)


class Caller:
    """Calls of one tenant. Every read is exact; every failure is `Refused`."""

    def __init__(self, stub: LeaderboardServiceStub, tenant: str) -> None:
        self._stub = stub
        self._metadata = (("x-tallyboard-tenant", tenant),)

    def call(self, name: str, request: Any) -> Any:
        """Any call that has one request and one answer."""
        try:
            return getattr(self._stub, name)(request, timeout=_TIMEOUT, metadata=self._metadata)
        except grpc.RpcError as error:
            raise Refused(reason_of(rpc_status.from_call(error).details)) from error

    def create(self, leaderboard_id: str, rules: Definition) -> None:
        """Defines a board."""
        board = pb.Leaderboard(
            sort_order=f"SORT_ORDER_{rules.sort_order}",
            update_policy=f"UPDATE_POLICY_{rules.update_policy}",
            tie_break=f"TIE_BREAK_{rules.tie_break}",
            windows=["WINDOW_KIND_ALL_TIME", "WINDOW_KIND_DAILY"],
            segments=rules.segments,
            max_entries=rules.most,
            late_grace=Duration(seconds=rules.grace // MICROS),
            seasons=[
                pb.Season(name=s.name, starts_at=stamp(s.starts_at), ends_at=stamp(s.ends_at))
                for s in rules.seasons
            ],
        )
        self.call(
            "CreateLeaderboard",
            pb.CreateLeaderboardRequest(leaderboard_id=leaderboard_id, leaderboard=board),
        )

    def submit(
        self, leaderboard_id: str, item: Item, request_id: str = "", *, ranks: bool = False
    ) -> tuple[list[Done], bool]:
        """SubmitScore: what it did, and whether it was a repeat."""
        answer = self.call(
            "SubmitScore",
            pb.SubmitScoreRequest(
                submission=submission(leaderboard_id, item),
                request_id=request_id,
                return_ranks=ranks,
            ),
        )
        return [done_of(result) for result in answer.results], answer.duplicate

    def batch(
        self,
        items: Iterable[tuple[str, Item]],
        request_id: str = "",
        *,
        is_import: bool = False,
    ) -> tuple[dict[int, str], bool]:
        """BatchSubmitScores: the reasons of what did not count, and whether it was a repeat."""
        request = pb.BatchSubmitScoresRequest(
            submissions=[submission(board, item) for board, item in items],
            request_id=request_id,
            **{"import": is_import},
        )
        answer = self.call("BatchSubmitScores", request)
        failures = {f.index: reason_of(f.status.details) for f in answer.failures}
        return failures, answer.duplicate

    def stream(self, batches: Sequence[pb.StreamScoresRequest]) -> dict[tuple[int, int], str]:
        """StreamScores with all of these batches: reasons of failures by sequence and index."""
        failures: dict[tuple[int, int], str] = {}
        acknowledged = 0

        answers: Iterator[pb.StreamScoresResponse] = self._stub.StreamScores(
            iter(batches), timeout=_TIMEOUT, metadata=self._metadata
        )
        for answer in answers:
            assert answer.acknowledged_sequence >= acknowledged
            acknowledged = answer.acknowledged_sequence
            for failure in answer.failures:
                reason = reason_of(failure.status.details)
                failures[failure.sequence, failure.index] = reason
        assert acknowledged == batches[-1].sequence
        return failures

    def delete(
        self, leaderboard_id: str, member: str, window: str = "", request_id: str = ""
    ) -> tuple[int, bool]:
        """DeleteEntry: how many went, and whether it was a repeat."""
        answer = self.call(
            "DeleteEntry",
            pb.DeleteEntryRequest(
                leaderboard_id=leaderboard_id, member=member, window=window, request_id=request_id
            ),
        )
        assert answer.deleted_archived_entries == 0
        return answer.deleted_entries, answer.duplicate

    def erase(self, member: str, request_id: str = "") -> tuple[int, int, bool]:
        """EraseMember: from how many boards, how many entries went, whether it was a repeat."""
        answer = self.call(
            "EraseMember", pb.EraseMemberRequest(member=member, request_id=request_id)
        )
        assert answer.deleted_archived_entries == 0
        return answer.leaderboards, answer.deleted_entries, answer.duplicate

    def get(
        self, leaderboard_id: str, window: str, member: str, method: str = "ORDINAL"
    ) -> tuple[Row, float, int]:
        """GetEntry: the entry, its percentile and the window's size."""
        answer = self.call(
            "GetEntry",
            pb.GetEntryRequest(
                leaderboard_id=leaderboard_id,
                window=window,
                member=member,
                rank_method=f"RANK_METHOD_{method}",
                consistency=EXACT,
            ),
        )
        assert answer.source == SOURCE_LIVE
        return row_of(answer.entry), answer.entry.percentile, answer.total_size

    def batch_get(
        self,
        leaderboard_id: str,
        window: str,
        members: Sequence[str],
        method: str = "ORDINAL",
        *,
        relative: bool = False,
    ) -> tuple[list[Row], list[float], list[str], int]:
        """BatchGetEntries: entries, percentiles, who is missing, the window's size."""
        answer = self.call(
            "BatchGetEntries",
            pb.BatchGetEntriesRequest(
                leaderboard_id=leaderboard_id,
                window=window,
                members=members,
                relative_ranks=relative,
                rank_method=f"RANK_METHOD_{method}",
                consistency=EXACT,
            ),
        )
        rows = [row_of(entry) for entry in answer.entries]
        percentiles = [entry.percentile for entry in answer.entries]
        return rows, percentiles, list(answer.missing_members), answer.total_size

    def page(
        self,
        leaderboard_id: str,
        window: str,
        method: str = "ORDINAL",
        *,
        size: int = 0,
        token: str = "",
        skip: int = 0,
        reverse: bool = False,
    ) -> Page:
        """ListEntries: one page."""
        request = pb.ListEntriesRequest(
            leaderboard_id=leaderboard_id,
            window=window,
            page_size=size,
            page_token=token,
            skip=skip,
            reverse=reverse,
            rank_method=f"RANK_METHOD_{method}",
            consistency=EXACT,
        )
        return Page(self.call("ListEntries", request))

    def around(
        self,
        leaderboard_id: str,
        window: str,
        center: str | float,
        neighbors: int,
        method: str = "ORDINAL",
    ) -> Page:
        """ListEntriesAround a member (str) or a score (float)."""
        request = pb.ListEntriesAroundRequest(
            leaderboard_id=leaderboard_id,
            window=window,
            neighbors=neighbors,
            rank_method=f"RANK_METHOD_{method}",
            consistency=EXACT,
            **{"member" if isinstance(center, str) else "score": center},  # type: ignore[arg-type]
        )
        return Page(self.call("ListEntriesAround", request))

    def by_score(
        self,
        leaderboard_id: str,
        window: str,
        least: float | None,
        greatest: float | None,
        method: str = "ORDINAL",
        *,
        size: int = 0,
        token: str = "",
        reverse: bool = False,
    ) -> Page:
        """ListEntriesByScore: one page."""
        request = pb.ListEntriesByScoreRequest(
            leaderboard_id=leaderboard_id,
            window=window,
            from_score=least,
            to_score=greatest,
            page_size=size,
            page_token=token,
            reverse=reverse,
            rank_method=f"RANK_METHOD_{method}",
            consistency=EXACT,
        )
        return Page(self.call("ListEntriesByScore", request))

    def stats(
        self, leaderboard_id: str, window: str, percentiles: Sequence[float]
    ) -> tuple[Sums, float | None]:
        """GetLeaderboardStats: the sums, without a mean, and the mean."""
        answer = self.call(
            "GetLeaderboardStats",
            pb.GetLeaderboardStatsRequest(
                leaderboard_id=leaderboard_id,
                window=window,
                percentiles=percentiles,
                consistency=EXACT,
            ),
        )
        at = [one.score for one in answer.percentile_scores]
        best, worst = optional(answer, "best"), optional(answer, "worst")
        return Sums(answer.count, best, worst, None, at), optional(answer, "mean")

    def windows(self, leaderboard_id: str) -> list[tuple[Period, str, int]]:
        """ListWindows: every window, its state and its size."""
        answer = self.call("ListWindows", pb.ListWindowsRequest(leaderboard_id=leaderboard_id))
        return [
            (
                Period(
                    window.window,
                    pb.WindowKind.Name(window.kind).removeprefix("WINDOW_KIND_"),
                    moment_of(window.starts_at) if window.HasField("starts_at") else None,
                    moment_of(window.ends_at) if window.HasField("ends_at") else None,
                ),
                pb.WindowState.Name(window.state).removeprefix("WINDOW_STATE_"),
                window.entry_count,
            )
            for window in answer.windows
        ]


def stream_batch(
    producer: str, sequence: int, items: Sequence[tuple[str, Item]]
) -> pb.StreamScoresRequest:
    """A batch for a stream; lists that all scores can share are as short as they may be."""
    boards = [board for board, _ in items]
    moments = [item.moment or 0 for _, item in items]
    metadata = [item.metadata for _, item in items]
    return pb.StreamScoresRequest(
        producer_id=producer,
        sequence=sequence,
        leaderboard_ids=boards[:1] if len(set(boards)) == 1 else boards,
        members=[item.member for _, item in items],
        scores=[item.score for _, item in items],
        metadata=metadata if any(metadata) else [],
        occurred_at_micros=moments if any(moments) else [],
    )


def new_request_id() -> str:
    """A request id that nobody has used."""
    return str(uuid.uuid4())
