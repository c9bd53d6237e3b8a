"""The calls of the command line that concern leaderboards."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tallyboard.v1 import (
    consistency_pb2,
    leaderboards_pb2,
    leaderboards_pb2_grpc,
    operations_pb2,
    operations_pb2_grpc,
)
from tallyboard_server import calls


class LeaderboardCalls:
    """The leaderboards of one service and tenant; every call may raise CallError.

    Windows are ids, relative to now (`current:daily`), or empty for the current one of a board
    that has one kind only.
    """

    def __init__(self, service: calls.Service) -> None:
        self._service = service
        self._leaderboards = leaderboards_pb2_grpc.LeaderboardServiceStub(service.channel)
        self._operations = operations_pb2_grpc.OperationsServiceStub(service.channel)

    def create(
        self, leaderboard_id: str, definition: leaderboards_pb2.Leaderboard
    ) -> leaderboards_pb2.Leaderboard:
        """Define a leaderboard; its definition with every default filled in."""
        request = leaderboards_pb2.CreateLeaderboardRequest(
            leaderboard_id=leaderboard_id, leaderboard=definition
        )
        return self._service.call(self._leaderboards.CreateLeaderboard, request).leaderboard

    def list(self, prefix: str, limit: int) -> Iterator[leaderboards_pb2.Leaderboard]:
        """Up to `limit` definitions by id."""
        request = leaderboards_pb2.ListLeaderboardsRequest(prefix=prefix)
        method = self._leaderboards.ListLeaderboards
        return self._service.items(method, request, "leaderboards", limit)

    def delete(self, leaderboard_id: str) -> int:
        """Delete a leaderboard with all it has; how many entries went."""
        request = leaderboards_pb2.DeleteLeaderboardRequest(leaderboard_id=leaderboard_id)
        return self._service.call(self._leaderboards.DeleteLeaderboard, request).deleted_entries

    def submit(
        self, leaderboard_id: str, member: str, score: float, metadata: bytes, request_id: str
    ) -> leaderboards_pb2.SubmitScoreResponse:
        """Submit a score of now; a request id is made up if it is empty."""
        request = leaderboards_pb2.SubmitScoreRequest(
            submission=leaderboards_pb2.Submission(
                leaderboard_id=leaderboard_id, member=member, score=score, metadata=metadata
            ),
            request_id=request_id or str(uuid.uuid4()),
            return_ranks=True,
        )
        return self._service.call(self._leaderboards.SubmitScore, request)

    def erase_member(self, member: str) -> leaderboards_pb2.EraseMemberResponse:
        """Delete every entry of a member."""
        request = leaderboards_pb2.EraseMemberRequest(member=member)
        return self._service.call(self._leaderboards.EraseMember, request)

    def entries(
        self,
        leaderboard_id: str,
        window: str,
        limit: int,
        reverse: bool,
        rank_method: leaderboards_pb2.RankMethod.ValueType,
        exact: bool,
    ) -> Iterator[leaderboards_pb2.Entry]:
        """Up to `limit` entries from the top, or from the bottom if `reverse`."""
        request = leaderboards_pb2.ListEntriesRequest(
            leaderboard_id=leaderboard_id, window=window, reverse=reverse, rank_method=rank_method
        )
        if exact:
            request.consistency.CopyFrom(consistency_pb2.Consistency(exact=True))
        return self._service.items(self._leaderboards.ListEntries, request, "entries", limit)

    def entry(
        self, leaderboard_id: str, member: str, window: str
    ) -> leaderboards_pb2.GetEntryResponse:
        """The entry of a member."""
        request = leaderboards_pb2.GetEntryRequest(
            leaderboard_id=leaderboard_id, member=member, window=window
        )
        return self._service.call(self._leaderboards.GetEntry, request)

    def entries_around(
        self, leaderboard_id: str, member: str, window: str, neighbors: int
    ) -> leaderboards_pb2.ListEntriesAroundResponse:
        """The entry of a member and its neighbours on either side."""
        request = leaderboards_pb2.ListEntriesAroundRequest(
            leaderboard_id=leaderboard_id, member=member, window=window, neighbors=neighbors
        )
        return self._service.call(self._leaderboards.ListEntriesAround, request)

    def stats(
        self, leaderboard_id: str, window: str, percentiles: tuple[float, ...]
    ) -> leaderboards_pb2.GetLeaderboardStatsResponse:
        """How many entries a window has, and how their scores are spread."""
        request = leaderboards_pb2.GetLeaderboardStatsRequest(
            leaderboard_id=leaderboard_id, window=window, percentiles=percentiles
        )
        return self._service.call(self._leaderboards.GetLeaderboardStats, request)

    def windows(self, leaderboard_id: str) -> Iterator[leaderboards_pb2.Window]:
        """All windows of a leaderboard that hold entries."""
        request = leaderboards_pb2.ListWindowsRequest(leaderboard_id=leaderboard_id)
        return self._service.items(self._leaderboards.ListWindows, request, "windows")

    def snapshots(
        self, leaderboard_id: str, member: str, window: str
    ) -> Iterator[operations_pb2.Snapshot]:
        """All daily snapshots, the latest first; with the rank of a member unless it is empty."""
        request = operations_pb2.ListSnapshotsRequest(
            leaderboard_id=leaderboard_id, member=member, window=window
        )
        return self._service.items(self._operations.ListSnapshots, request, "snapshots")


@contextmanager
def connect(**target: Any) -> Iterator[LeaderboardCalls]:
    """The same as `calls.connect`, for leaderboards."""
    with calls.connect(**target) as service:
        yield LeaderboardCalls(service)
