"""OperationsService: status, checkpoints and snapshots."""

from google.protobuf.duration_pb2 import Duration

from tallyboard.v1 import operations_pb2 as pb
from tallyboard_server import __version__
from tallyboard_server.leaderboards.snapshots import Snapshots
from tallyboard_server.operations import Operations, PartitionState
from tallyboard_server.postgres.snapshots import SnapshotRow
from tallyboard_server.rpc import validation
from tallyboard_server.rpc.entries import fill_entries
from tallyboard_server.rpc.stack import Caller
from tallyboard_server.rpc.stamps import set_moment

_DEFAULT_PAGE, _MAX_PAGE = 100, 1_000


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
        state = self._operations.state()
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
        )
        if state.checkpoint_lag is not None:
            response.checkpoint_lag.CopyFrom(_duration(state.checkpoint_lag))
        return response

    def checkpoint(self, request: pb.CheckpointRequest, caller: Caller) -> pb.CheckpointResponse:
        """A checkpoint now."""
        validation.check_all(
            "FIELD_INVALID",
            (
                (f"partitions[{i}]", f"must be from 0 to {self._partitions - 1}")
                for i, partition in enumerate(request.partitions)
                if not 0 <= partition < self._partitions
            ),
        )
        result = self._operations.checkpoint(caller.deadline, list(request.partitions))
        return pb.CheckpointResponse(
            counters=result.counters,
            partitions=result.partitions,
            elapsed=_duration(result.seconds),
            entries=result.entries,
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
        """Takes daily standings now."""
        if request.leaderboard_id:
            validation.check_name("leaderboard_id", request.leaderboard_id)
        leaderboards, snapshots = self._snapshots.take(
            caller.tenant, request.leaderboard_id, caller.deadline
        )
        return pb.TakeSnapshotsResponse(leaderboards=leaderboards, snapshots=snapshots)


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
        state=pb.PARTITION_STATE_OPEN if state.open else pb.PARTITION_STATE_CLOSED,
        dirty_keys=state.dirty_keys,
    )
    if state.checkpointed_at is not None:
        status.checkpointed_at.FromDatetime(state.checkpointed_at)
    return status


def _duration(seconds: float) -> Duration:
    return Duration(seconds=int(seconds), nanos=int(seconds % 1 * 1e9))
