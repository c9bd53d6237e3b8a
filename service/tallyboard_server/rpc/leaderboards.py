"""LeaderboardService: protobuf in, plain calls of the domain, protobuf out."""

from collections.abc import Callable, Iterator
from typing import Any

from tallyboard.v1 import leaderboards_pb2 as pb
from tallyboard.v1.consistency_pb2 import Consistency
from tallyboard_server.errors import InvalidArgument, NotFound, TallyboardError
from tallyboard_server.leaderboards.model import (
    Fallback,
    FoundEntries,
    Leaderboard,
    Source,
    Window,
)
from tallyboard_server.leaderboards.service import Leaderboards
from tallyboard_server.rpc import definitions, entries, scores, validation
from tallyboard_server.rpc.enums import WINDOW_KINDS, choice, rank_method
from tallyboard_server.rpc.stack import Caller, Stack
from tallyboard_server.rpc.status import item_status_of
from tallyboard_server.rpc.streams import reading
from tallyboard_server.rpc.watches import WatchCall, interval_of
from tallyboard_server.streaming import WINDOW

MAX_READ = 1_000
_DEFAULT_PAGE, _MAX_PAGE = 100, 1_000
_DEFAULT_NEIGHBORS, _MAX_NEIGHBORS = 5, 100
_DEFAULT_WATCHED, _MAX_WATCHED = 10, 100
_MAX_ENCODED_BYTES = 4 << 20


class LeaderboardServicer:
    """The service over one worker's `Leaderboards`."""

    def __init__(self, leaderboards: Leaderboards, stack: Stack, default_staleness: float) -> None:
        self._leaderboards = leaderboards
        self._boards = leaderboards.boards
        self._writer = leaderboards.writer
        self._reader = leaderboards.reader
        self._stack = stack
        self._default_staleness = default_staleness
        self._encoded = entries.EncodedPages(_MAX_ENCODED_BYTES)

    def create_leaderboard(
        self, request: pb.CreateLeaderboardRequest, caller: Caller
    ) -> pb.CreateLeaderboardResponse:
        """Defines a leaderboard."""
        leaderboard_id, message = request.leaderboard_id, request.leaderboard
        validation.check_name("leaderboard_id", leaderboard_id)
        if message.leaderboard_id not in ("", leaderboard_id):
            field = "leaderboard.leaderboard_id"
            raise validation.invalid("FIELD_INVALID", field, "must be empty or the id to create")
        request_id = validation.request_id(request.request_id)
        try:
            board = definitions.from_proto(message, caller.tenant, leaderboard_id)
            board, duplicate = self._boards.create(board, request_id, caller.deadline)
        except InvalidArgument as error:
            raise definitions.error_within(error) from error
        return pb.CreateLeaderboardResponse(
            leaderboard=definitions.to_proto(board), duplicate=duplicate
        )

    def get_leaderboard(
        self, request: pb.GetLeaderboardRequest, caller: Caller
    ) -> pb.GetLeaderboardResponse:
        """Reads a definition."""
        board = self._board(request.leaderboard_id, caller)
        return pb.GetLeaderboardResponse(leaderboard=definitions.to_proto(board))

    def update_leaderboard(
        self, request: pb.UpdateLeaderboardRequest, caller: Caller
    ) -> pb.UpdateLeaderboardResponse:
        """Changes the fields of a definition that the mask names."""
        message = request.leaderboard
        validation.check_name("leaderboard.leaderboard_id", message.leaderboard_id)
        request_id = validation.request_id(request.request_id)
        try:
            board, duplicate = self._boards.update(
                caller.tenant,
                message.leaderboard_id,
                definitions.change_of(message, request.update_mask),
                message.etag,
                request_id,
                definitions.contents_of(request),
                caller.deadline,
            )
        except InvalidArgument as error:
            raise definitions.error_within(error) from error
        return pb.UpdateLeaderboardResponse(
            leaderboard=definitions.to_proto(board), duplicate=duplicate
        )

    def list_leaderboards(
        self, request: pb.ListLeaderboardsRequest, caller: Caller
    ) -> pb.ListLeaderboardsResponse:
        """Lists definitions."""
        if request.prefix:
            validation.check_name("prefix", request.prefix)
        size = validation.page_size(request.page_size, _DEFAULT_PAGE, _MAX_PAGE)
        boards, next_page_token = self._boards.list(
            caller.tenant, request.prefix, size, request.page_token, caller.deadline
        )
        return pb.ListLeaderboardsResponse(
            leaderboards=[definitions.to_proto(board) for board in boards],
            next_page_token=next_page_token,
        )

    def delete_leaderboard(
        self, request: pb.DeleteLeaderboardRequest, caller: Caller
    ) -> pb.DeleteLeaderboardResponse:
        """Deletes a leaderboard and all it has; may take as long as the caller waits."""
        validation.check_name("leaderboard_id", request.leaderboard_id)
        request_id = validation.request_id(request.request_id)
        deleted, duplicate = self._boards.delete(
            caller.tenant, request.leaderboard_id, request.etag, request_id, caller.deadline
        )
        return pb.DeleteLeaderboardResponse(deleted_entries=deleted, duplicate=duplicate)

    def submit_score(
        self, request: pb.SubmitScoreRequest, caller: Caller
    ) -> pb.SubmitScoreResponse:
        """Submits one score."""
        if not request.HasField("submission"):
            raise validation.invalid("FIELD_INVALID", "submission", "must be set")
        request_id = validation.request_id(request.request_id)
        try:
            result = self._writer.submit(
                caller.tenant,
                scores.submission(request.submission),
                request_id,
                request.return_ranks,
                caller.deadline,
            )
        except InvalidArgument as error:
            raise scores.error_within("submission", error) from error
        return scores.submit_response(result)

    def batch_submit_scores(
        self, request: pb.BatchSubmitScoresRequest, caller: Caller
    ) -> pb.BatchSubmitScoresResponse:
        """Submits many scores; each counts or fails by itself."""
        validation.check_size("submissions", len(request.submissions), validation.MAX_ITEMS)
        request_id = validation.request_id(request.request_id)
        batch = scores.Batch(request.submissions)
        failures: dict[int, TallyboardError] = {}
        duplicate = False
        if batch.good:
            failures, duplicate = self._writer.batch(
                caller.tenant, batch.good, request_id, getattr(request, "import"), caller.deadline
            )
        return pb.BatchSubmitScoresResponse(failures=batch.failures(failures), duplicate=duplicate)

    def stream_scores(
        self, requests: Iterator[Any], caller: Caller
    ) -> Iterator[pb.StreamScoresResponse]:
        """Batches in on a thread of their own, acknowledgements out on this one."""
        stream = self._leaderboards.open_stream(caller.tenant)

        def take(batch: pb.StreamScoresRequest) -> None:
            scores.check_lists(batch)
            stream.take(
                batch.producer_id,
                batch.sequence,
                list(batch.leaderboard_ids),
                list(batch.members),
                list(batch.scores),
                list(batch.metadata),
                list(batch.occurred_at_micros),
            )

        try:
            with reading(stream, requests, caller.context, take, "scores-reader"):
                yield pb.StreamScoresResponse(window=WINDOW)
                for sequence, failures in stream.acknowledgements():
                    yield pb.StreamScoresResponse(
                        acknowledged_sequence=sequence,
                        window=WINDOW,
                        failures=[
                            pb.ScoreFailure(sequence=at, index=index, status=item_status_of(error))
                            for at, (index, error) in failures
                        ],
                    )
        finally:
            self._leaderboards.close_stream(stream)

    def get_entry(self, request: pb.GetEntryRequest, caller: Caller) -> pb.GetEntryResponse:
        """Reads the entry of one member."""
        member = request.member
        validation.check_name("member", member)
        found = self._found(request, (member,), caller)[1]
        if not found.entries:
            raise NotFound("the member has no entry in this window", reason="ENTRY_NOT_FOUND")
        return entries.get_response(found)

    def batch_get_entries(
        self, request: pb.BatchGetEntriesRequest, caller: Caller
    ) -> pb.BatchGetEntriesResponse:
        """Reads the entries of many members."""
        members = tuple(request.members)
        validation.check_names("members", members, MAX_READ)
        entries.check_different("members", members)
        board, found = self._found(request, members, caller)
        if request.relative_ranks:
            found = self._reader.relative(board, found, rank_method(request.rank_method))
        return entries.batch_get_response(found)

    def list_entries(
        self, request: pb.ListEntriesRequest, caller: Caller
    ) -> pb.ListEntriesResponse | bytes:
        """Lists a ranking; the response of a page in memory is encoded once."""
        size = validation.page_size(request.page_size, _DEFAULT_PAGE, _MAX_PAGE)
        skip = validation.count("skip", request.skip, 0, 2**31, "PAGE_INVALID")
        method = rank_method(request.rank_method)
        staleness = validation.staleness(request.consistency, self._default_staleness)
        board, window = self._first_window(request, caller)
        page = self._reader.page(
            board,
            window,
            size,
            request.page_token,
            skip,
            request.reverse,
            method,
            staleness,
            caller.deadline,
            request.window,
            validation.fallback(request.consistency),
        )
        if page.source is Source.CACHE:
            return self._encoded.of(page)
        return entries.list_response(page)

    def list_entries_around(
        self, request: pb.ListEntriesAroundRequest, caller: Caller
    ) -> pb.ListEntriesAroundResponse:
        """Lists the neighbours of a member or of a score."""
        member, score = entries.center(request)
        neighbors = validation.count(
            "neighbors", request.neighbors, _DEFAULT_NEIGHBORS, _MAX_NEIGHBORS
        )
        method = rank_method(request.rank_method)
        freshness = self._freshness(request.consistency)
        board, window = self._window(request.leaderboard_id, request.window, caller)
        page = self._reader.around(
            board, window, member, score, neighbors, method, caller.deadline, *freshness
        )
        return entries.around_response(page)

    def list_entries_by_score(
        self, request: pb.ListEntriesByScoreRequest, caller: Caller
    ) -> pb.ListEntriesByScoreResponse:
        """Lists the entries with scores within bounds."""
        from_score, to_score = entries.bounds(request)
        size = validation.page_size(request.page_size, _DEFAULT_PAGE, _MAX_PAGE)
        method = rank_method(request.rank_method)
        freshness = self._freshness(request.consistency)
        board, window = self._first_window(request, caller)
        page = self._reader.by_score(
            board,
            window,
            from_score,
            to_score,
            size,
            request.page_token,
            request.reverse,
            method,
            caller.deadline,
            request.window,
            *freshness,
        )
        return entries.by_score_response(page)

    def get_leaderboard_stats(
        self, request: pb.GetLeaderboardStatsRequest, caller: Caller
    ) -> pb.GetLeaderboardStatsResponse:
        """Sums up one window."""
        percentiles = tuple(request.percentiles)
        entries.check_percentiles(percentiles)
        freshness = self._freshness(request.consistency)
        board, window = self._window(request.leaderboard_id, request.window, caller)
        stats = self._reader.stats(board, window, percentiles, caller.deadline, *freshness)
        return entries.stats_response(stats, percentiles)

    def delete_entry(
        self, request: pb.DeleteEntryRequest, caller: Caller
    ) -> pb.DeleteEntryResponse:
        """Deletes a member's entry from one window of a board or from all."""
        validation.check_name("leaderboard_id", request.leaderboard_id)
        validation.check_name("member", request.member)
        request_id = validation.request_id(request.request_id)
        deleted, archived, duplicate = self._writer.delete(
            caller.tenant,
            request.leaderboard_id,
            request.member,
            request.window,
            request_id,
            caller.deadline,
        )
        return pb.DeleteEntryResponse(
            deleted_entries=deleted, deleted_archived_entries=archived, duplicate=duplicate
        )

    def erase_member(
        self, request: pb.EraseMemberRequest, caller: Caller
    ) -> pb.EraseMemberResponse:
        """Deletes every entry of a member from every board."""
        validation.check_name("member", request.member)
        request_id = validation.request_id(request.request_id)
        leaderboards, deleted, archived, duplicate = self._writer.erase(
            caller.tenant, request.member, request_id, caller.deadline
        )
        return pb.EraseMemberResponse(
            leaderboards=leaderboards,
            deleted_entries=deleted,
            deleted_archived_entries=archived,
            duplicate=duplicate,
        )

    def list_windows(
        self, request: pb.ListWindowsRequest, caller: Caller
    ) -> pb.ListWindowsResponse:
        """Lists the windows that hold entries."""
        kind = choice("kind", WINDOW_KINDS, request.kind) if request.kind else None
        size = validation.page_size(request.page_size, _DEFAULT_PAGE, _MAX_PAGE)
        board = self._board(request.leaderboard_id, caller)
        standings, next_page_token = self._leaderboards.lister.list(
            board, kind, size, request.page_token, caller.deadline
        )
        return entries.windows_response(standings, next_page_token)

    def watch_entries(
        self,
        request: pb.WatchEntriesRequest,
        caller: Caller,
        send: Callable[[pb.WatchEntriesResponse | None], None],
    ) -> None:
        """Starts a watch and returns; the hub sends from then on, and None ends the call."""
        limit = validation.count("limit", request.limit, _DEFAULT_WATCHED, _MAX_WATCHED)
        method = rank_method(request.rank_method)
        interval = interval_of(request)
        board, _ = self._window(request.leaderboard_id, request.window, caller)
        subject = (caller.tenant, board.leaderboard_id, request.window, limit, method)
        call = WatchCall(self._stack, "WatchEntries", caller, send)
        call.follow(self._leaderboards.hub, subject, interval, entries.watch_response)

    def _board(self, leaderboard_id: str, caller: Caller) -> Leaderboard:
        validation.check_name("leaderboard_id", leaderboard_id)
        return self._boards.get(caller.tenant, leaderboard_id, caller.deadline)

    def _window(self, leaderboard_id: str, text: str, caller: Caller) -> tuple[Leaderboard, Window]:
        validation.check_name("leaderboard_id", leaderboard_id)
        board = self._boards.held(caller.tenant, leaderboard_id, caller.deadline)
        return board.definition, board.resolve(text, self._leaderboards.clock())

    def _first_window(
        self, request: pb.ListEntriesRequest | pb.ListEntriesByScoreRequest, caller: Caller
    ) -> tuple[Leaderboard, Window | None]:
        """None with a page token: what the text means now may not be what it did then."""
        if request.page_token:
            validation.check_name("leaderboard_id", request.leaderboard_id)
            board = self._boards.held(caller.tenant, request.leaderboard_id, caller.deadline)
            return board.definition, None
        return self._window(request.leaderboard_id, request.window, caller)

    def _found(
        self,
        request: pb.GetEntryRequest | pb.BatchGetEntriesRequest,
        members: tuple[str, ...],
        caller: Caller,
    ) -> tuple[Leaderboard, FoundEntries]:
        method = rank_method(request.rank_method)
        freshness = self._freshness(request.consistency)
        board, window = self._window(request.leaderboard_id, request.window, caller)
        return board, self._reader.entries(
            board, window, members, method, caller.deadline, *freshness
        )

    def _freshness(self, consistency: Consistency) -> tuple[float | None, Fallback]:
        """Seconds that an answer may be old, and whether Postgres may answer."""
        staleness = validation.staleness(consistency, self._default_staleness)
        return staleness, validation.fallback(consistency)
