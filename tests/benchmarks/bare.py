"""Bare threaded gRPC servers to compare with: an echo, and the naive ways behind the same server.

A program: `python -m tests.benchmarks.bare KIND ADDRESS THREADS [REDIS_SOCKET [POSTGRES_URL]]`, of
the kinds "echo" and "naive" (one redis-py INCR a request), which speak the messages of Increment,
and "naive-boards" (see naive_boards.py). None does what a service has to do.
"""

import random
import sys
from concurrent.futures import ThreadPoolExecutor

import grpc
import redis

from tallyboard.v1 import counters_pb2 as pb
from tallyboard_server.processes import prefer_throughput
from tests.benchmarks import naive_boards
from tests.benchmarks.naive_boards import Method

SERVICE = "tallyboard.benchmarks.Bare"
METHOD = "Call"
READY = "serving"
NAIVE_SHARDS = 8

ECHO, NAIVE, NAIVE_BOARDS = "echo", "naive", "naive-boards"


def naive_keys(counter: str) -> list[str]:
    """The keys that the naive way spreads a counter over."""
    return [f"naive:{counter}:{shard}" for shard in range(NAIVE_SHARDS)]


def echo(request: pb.IncrementRequest, context: grpc.ServicerContext) -> pb.IncrementRequest:
    """Answers the request itself."""
    return request


def naive(socket: str, threads: int) -> Method:
    """A handler that sends one INCR a request, on a connection of redis-py's pool."""
    client = redis.Redis(unix_socket_path=socket, max_connections=threads)

    def handle(request: pb.IncrementRequest, context: grpc.ServicerContext) -> pb.IncrementRequest:
        client.incr(f"naive:{request.counter}:{random.randrange(NAIVE_SHARDS)}")
        return request

    return Method(handle, pb.IncrementRequest, pb.IncrementRequest)


def _methods(kind: str, threads: int, stores: list[str]) -> dict[str, Method]:
    if kind == ECHO:
        return {METHOD: Method(echo, pb.IncrementRequest, pb.IncrementRequest)}
    if kind == NAIVE:
        return {METHOD: naive(stores[0], threads)}
    naive_boards.fill(*stores)
    return naive_boards.methods(stores[0], stores[1], threads)


def main() -> None:
    """Serves until it is killed."""
    kind, address, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
    prefer_throughput()  # as our workers do: equal settings
    server = grpc.server(ThreadPoolExecutor(threads), options=(("grpc.so_reuseport", 1),))
    handlers = {
        name: grpc.unary_unary_rpc_method_handler(
            method.behavior,
            request_deserializer=method.request.FromString,
            response_serializer=method.response.SerializeToString,
        )
        for name, method in _methods(kind, threads, sys.argv[4:]).items()
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    server.add_registered_method_handlers(SERVICE, handlers)
    if not server.add_insecure_port(address):
        sys.exit(f"can't listen on {address}")
    server.start()
    print(READY, flush=True)
    server.wait_for_termination()


if __name__ == "__main__":
    main()
