"""OperationsService: status and checkpoints."""

from google.protobuf.duration_pb2 import Duration

from tallyboard.v1 import operations_pb2 as pb
from tallyboard_server import __version__
from tallyboard_server.operations import Operations, PartitionState
from tallyboard_server.rpc import validation
from tallyboard_server.rpc.stack import Caller


class OperationsServicer:
    """The service over one worker's `Operations`."""

    def __init__(self, operations: Operations, durability: str, partitions: int) -> None:
        self._operations = operations
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
        )


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
