"""Bare threaded gRPC servers to compare with: an echo, and one redis-py INCR a request.

A program: `python -m tests.benchmarks.bare echo ADDRESS THREADS [REDIS_SOCKET]`. Both speak the
messages of Increment and do nothing that a service has to do.
"""

import random
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import grpc
import redis

from tallyboard.v1 import counters_pb2 as pb
from tallyboard_server.processes import prefer_throughput

SERVICE = "tallyboard.benchmarks.Bare"
METHOD = "Call"
READY = "serving"
NAIVE_SHARDS = 8

Handler = Callable[[pb.IncrementRequest, grpc.ServicerContext], pb.IncrementRequest]


def naive_keys(counter: str) -> list[str]:
    """The keys that the naive way spreads a counter over."""
    return [f"naive:{counter}:{shard}" for shard in range(NAIVE_SHARDS)]


def echo(request: pb.IncrementRequest, context: grpc.ServicerContext) -> pb.IncrementRequest:
    """Answers the request itself."""
    return request


def naive(socket: str, threads: int) -> Handler:
    """A handler that sends one INCR a request, on a connection of redis-py's pool."""
    client = redis.Redis(unix_socket_path=socket, max_connections=threads)

    def handle(request: pb.IncrementRequest, context: grpc.ServicerContext) -> pb.IncrementRequest:
        client.incr(f"naive:{request.counter}:{random.randrange(NAIVE_SHARDS)}")
        return request

    return handle


def main() -> None:
    """Serves until it is killed."""
    kind, address, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
    behavior: Handler = echo if kind == "echo" else naive(sys.argv[4], threads)
    prefer_throughput()  # as our workers do: equal settings
    server = grpc.server(ThreadPoolExecutor(threads), options=(("grpc.so_reuseport", 1),))
    handlers = {
        METHOD: grpc.unary_unary_rpc_method_handler(
            behavior,
            request_deserializer=pb.IncrementRequest.FromString,
            response_serializer=pb.IncrementRequest.SerializeToString,
        )
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
