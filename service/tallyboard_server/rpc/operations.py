"""OperationsService: status, checkpoints, snapshots, comparisons and rebuilds."""

from collections.abc import Iterator, Sequence

from google.protobuf.duration_pb2 import Duration

from tallyboard.v1 import operations_pb2 as pb
from tallyboard_server import __version__
from tallyboard_server.errors import Unavailable
from tallyboard_server.leaderboards.snapshots import Snapshots
from tallyboard_server.operations import Operations, PartitionState
from tallyboard_server.postgres.snapshots import SnapshotRow
from tallyboard_server.recovery.findings import Difference, EntryName, Verified
from tallyboard_server.rpc import validation
from tallyboard_server.rpc.entries import fill_entries
from tallyboard_server.rpc.stack import Caller
from tallyboard_server.rpc.stamps import set_moment

_DEFAULT_PAGE, _MAX_PAGE = 100, 1_000
_DEFAULT_DIFFERENCES, _MAX_DIFFERENCES = 100, 1_000


class OperationsServicer:
    """The service over one worker's `Operations`."""

    def __init__(
        self, operations: Operations, snapshots: Snapshots, durability: str, partitions: int
    ) -> None:
        self._operations = operations
        self._snapshots = snapshots
        self._durability = durability
        self._partitions = partitions

    def get_status(self, request: pb.GetStatusRequest, caller: Caller) -> pb.GetStatusResponse:
        """How the stores and the partitions are."""
        state = self._operations.state(caller.deadline)
        response = pb.GetStatusResponse(
            stores=[
                pb.StoreStatus(
                    name=store.name,
                    address=store.address,
                    available=store.available,
                    version=store.version,
                    detail=store.detail,
                )
                for store in state.stores
            ],
            partitions=[_partition(partition) for partition in state.partitions],
            server_version=__version__,
            durability=self._durability,
            journal_depth=state.journal_depth,
        )
        if state.checkpoint_lag is not None:
            response.checkpoint_lag.CopyFrom(_duration(state.checkpoint_lag))
        return response

    def checkpoint(self, request: pb.CheckpointRequest, caller: Caller) -> pb.CheckpointResponse:
        """A checkpoint now; may take as long as the caller waits."""
        self._check_partitions(request.partitions)
        result = self._operations.checkpoint(caller.deadline, list(request.partitions))
        return pb.CheckpointResponse(
            counters=result.counters,
            partitions=result.partitions,
            elapsed=_duration(result.seconds),
            entries=result.entries,
        )

    def verify(self, request: pb.VerifyRequest, caller: Caller) -> Iterator[pb.VerifyResponse]:
        """Compares Redis with Postgres; takes as long as the caller waits."""
        self._check_partitions(request.partitions)
        most = validation.count(
            "max_differences", request.max_differences, _DEFAULT_DIFFERENCES, _MAX_DIFFERENCES
        )

        def pause() -> None:
            if not caller.context.is_active():
                raise Unavailable("the caller broke off")

        for found in self._operations.verify(list(request.partitions), most, pause):
            yield _verified(found)

    def rebuild_partition(
        self, request: pb.RebuildPartitionRequest, caller: Caller
    ) -> pb.RebuildPartitionResponse:
        """Makes a partition of Redis anew; may take as long as the caller waits."""
        validation.check_all("FIELD_INVALID", [("partition", self._problem(request.partition))])
        done = self._operations.rebuild(request.partition, caller.deadline)
        return pb.RebuildPartitionResponse(
            counters=done.counters,
            entries=done.entries,
            journaled_batches=done.batches,
            elapsed=_duration(done.seconds),
        )

    def list_tenants(
        self, request: pb.ListTenantsRequest, caller: Caller
    ) -> pb.ListTenantsResponse:
        """Lists who has data."""
        size = validation.page_size(request.page_size, _DEFAULT_PAGE, _MAX_PAGE)
        page = self._operations.tenants(size, request.page_token or None, caller.deadline)
        return pb.ListTenantsResponse(
            tenants=[pb.Tenant(**row._asdict()) for row in page.rows],
            next_page_token=page.next_cursor or "",
        )

    def list_snapshots(
        self, request: pb.ListSnapshotsRequest, caller: Caller
    ) -> pb.ListSnapshotsResponse:
        """Lists the daily standings of a board."""
        validation.check_name("leaderboard_id", request.leaderboard_id)
        if request.member:
            validation.check_name("member", request.member)
        size = validation.page_size(request.page_size, _DEFAULT_PAGE, _MAX_PAGE)
        rows, token = self._snapshots.list(
            caller.tenant,
            request.leaderboard_id,
            request.window,
            request.member,
            size,
            request.page_token,
            caller.deadline,
        )
        return pb.ListSnapshotsResponse(
            snapshots=[_snapshot(request.leaderboard_id, row) for row in rows],
            next_page_token=token,
        )

    def get_snapshot(
        self, request: pb.GetSnapshotRequest, caller: Caller
    ) -> pb.GetSnapshotResponse:
        """Reads one daily standing."""
        validation.check_name("leaderboard_id", request.leaderboard_id)
        size = validation.page_size(request.page_size, _DEFAULT_PAGE, _MAX_PAGE)
        page = self._snapshots.get(
            caller.tenant,
            request.leaderboard_id,
            request.window,
            request.day,
            size,
            request.page_token,
            caller.deadline,
        )
        response = pb.GetSnapshotResponse(
            snapshot=_snapshot(request.leaderboard_id, page.snapshot),
            next_page_token=page.next_page_token,
        )
        fill_entries(response.entries, page.entries)
        return response

    def take_snapshots(
        self, request: pb.TakeSnapshotsRequest, caller: Caller
    ) -> pb.TakeSnapshotsResponse:
        """Takes daily standings now; may take as long as the caller waits."""
        if request.leaderboard_id:
            validation.check_name("leaderboard_id", request.leaderboard_id)
        leaderboards, snapshots = self._snapshots.take(
            caller.tenant, request.leaderboard_id, caller.deadline
        )
        return pb.TakeSnapshotsResponse(leaderboards=leaderboards, snapshots=snapshots)

    def _check_partitions(self, partitions: Sequence[int]) -> None:
        if len(partitions) > self._partitions:
            validation.check_size("partitions", len(partitions), self._partitions)
        seen: set[int] = set()
        problems: list[tuple[str, str | None]] = []
        for i, partition in enumerate(partitions):
            problem = "must not be repeated" if partition in seen else self._problem(partition)
            problems.append((f"partitions[{i}]", problem))
            seen.add(partition)
        validation.check_all("FIELD_INVALID", problems)

    def _problem(self, partition: int) -> str | None:
        if 0 <= partition < self._partitions:
            return None
        return f"must be from 0 to {self._partitions - 1}"


def _verified(found: Verified) -> pb.VerifyResponse:
    return pb.VerifyResponse(
        partition=found.partition,
        counters=found.counters,
        entries=found.entries,
        difference_count=found.difference_count,
        differences=map(_difference, found.differences),
    )


def _difference(found: Difference) -> pb.Difference:
    made = pb.Difference(
        tenant=found.tenant,
        redis_value=found.redis,
        postgres_value=found.postgres,
        detail=found.detail,
    )
    if isinstance(found.subject, EntryName):
        made.entry.CopyFrom(pb.EntryReference(**found.subject._asdict()))
    else:
        made.counter = found.subject
    return made


def _snapshot(leaderboard_id: str, row: SnapshotRow) -> pb.Snapshot:
    snapshot = pb.Snapshot(
        leaderboard_id=leaderboard_id,
        window=row.window,
        day=row.day.isoformat(),
        entry_count=row.entry_count,
        rank=row.rank,
        score=row.score,
    )
    set_moment(snapshot.taken_at, row.taken_at)
    return snapshot


def _partition(state: PartitionState) -> pb.PartitionStatus:
    status = pb.PartitionStatus(
        partition=state.partition,
        state=pb.PartitionState.Value(f"PARTITION_STATE_{state.condition.value}"),
        dirty_keys=state.dirty_keys,
    )
    if state.checkpointed_at is not None:
        status.checkpointed_at.FromDatetime(state.checkpointed_at)
    return status


def _duration(seconds: float) -> Duration:
    return Duration(seconds=int(seconds), nanos=int(seconds % 1 * 1e9))
