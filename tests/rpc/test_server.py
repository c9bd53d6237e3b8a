"""What the server offers besides its services: health, reflection, every RPC of the contract."""

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tallyboard.v1 import operations_pb2 as pb
from tallyboard.v1.operations_pb2_grpc import OperationsServiceStub
from tallyboard_server.rpc.server import SERVICES
from tests.rpc.errors import Refusal

METHODS = [method for service in SERVICES for method in service.methods]
BUILT = {
    "CounterService": None,
    "LeaderboardService": None,
    "OperationsService": {
        "GetStatus",
        "Checkpoint",
        "ListSnapshots",
        "GetSnapshot",
        "TakeSnapshots",
        "Verify",
        "RebuildPartition",
        "ListTenants",
    },
}


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.full_name)
def test_an_rpc_is_there_or_says_that_it_is_not(
    channel: grpc.Channel, method: MethodDescriptor
) -> None:
    path = f"/{method.containing_service.full_name}/{method.name}"
    message = GetMessageClass(method.input_type)()
    if method.name == "RebuildPartition":
        message.partition = -1  # nobody would open what is rebuilt here
    request = message.SerializeToString()
    reason = ""
    try:
        if method.client_streaming:
            list(channel.stream_stream(path)(iter([request]), timeout=10))
        elif method.server_streaming:
            list(channel.unary_stream(path)(request, timeout=10))
        else:
            channel.unary_unary(path)(request, timeout=10)
    except grpc.RpcError as error:
        reason = Refusal(error).reason
    built = BUILT.get(method.containing_service.name, set())
    is_built = built is None or method.name in built
    assert (reason == "NOT_IMPLEMENTED") != is_built


@pytest.mark.parametrize("service", ["", *(service.full_name for service in SERVICES)])
def test_health_says_serving(channel: grpc.Channel, service: str) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=10)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_reflection_lists_the_services(channel: grpc.Channel) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    answer = next(iter(stub.ServerReflectionInfo(iter([request]), timeout=10)))
    names = {service.name for service in answer.list_services_response.service}
    assert names >= {service.full_name for service in SERVICES}


def test_status_shows_both_stores(operations: OperationsServiceStub) -> None:
    status = operations.GetStatus(pb.GetStatusRequest(), timeout=10)
    assert {store.name: store.available for store in status.stores} == {
        "redis": True,
        "postgres": True,
    }


def test_status_shows_every_partition_open(operations: OperationsServiceStub) -> None:
    status = operations.GetStatus(pb.GetStatusRequest(), timeout=10)
    states = [partition.state for partition in status.partitions]
    assert states == [pb.PARTITION_STATE_OPEN] * 64


def test_a_checkpoint_of_an_unknown_partition_is_refused(
    operations: OperationsServiceStub,
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        operations.Checkpoint(pb.CheckpointRequest(partitions=[1, 64]), timeout=10)
    assert Refusal(caught.value).fields == ["partitions[1]"]
