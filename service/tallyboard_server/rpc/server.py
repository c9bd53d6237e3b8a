"""Builds a worker's gRPC server: every RPC of the contract, health and reflection."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from tallyboard.v1 import counters_pb2, leaderboards_pb2, operations_pb2
from tallyboard_server.errors import NotImplementedYet
from tallyboard_server.rpc.pool import CallPool
from tallyboard_server.rpc.stack import UNHURRIED, Caller, Stack, checked, decoder, encode
from tallyboard_server.settings import Settings

SERVICES: tuple[ServiceDescriptor, ...] = (
    counters_pb2.DESCRIPTOR.services_by_name["CounterService"],
    leaderboards_pb2.DESCRIPTOR.services_by_name["LeaderboardService"],
    operations_pb2.DESCRIPTOR.services_by_name["OperationsService"],
)
_READS = ("Get", "List", "BatchGet", "Watch")
# What waits for Postgres has threads of its own, so that a slow one delays nothing else.
_POSTGRES = (
    "tallyboard.v1.CounterService.ListCounters",
    "tallyboard.v1.LeaderboardService.CreateLeaderboard",
    "tallyboard.v1.LeaderboardService.UpdateLeaderboard",
    "tallyboard.v1.LeaderboardService.ListLeaderboards",
    "tallyboard.v1.LeaderboardService.ListWindows",
    "tallyboard.v1.LeaderboardService.DeleteEntry",
)
_POSTGRES_THREADS = 4
# What takes as long as its caller waits has others, so that it does not keep those for long.
_UNHURRIED_THREADS = 4
_OTHER_THREADS = 8
# Threads that tell callers that all threads for streams are taken.
_REFUSERS = 4
# A caller that is gone without a word frees its stream's thread within 80 s; callers may ping too.
# The core looks at one of the two timeouts or at the other, by its version.
KEEPALIVE = (
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.ping_timeout_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
)
# Above the limit that the stack checks, so that a large message gets an error with details.
_TRANSPORT_LIMIT_FACTOR = 4


class Server:
    """A worker's server.

    Args:
        servicers: by service name, objects whose snake_case methods implement RPCs; an RPC
            without one answers UNIMPLEMENTED.

    Methods whose name starts with Watch get a `send` and return at once; see watch.py.
    """

    def __init__(self, servicers: dict[str, object], stack: Stack, settings: Settings) -> None:
        self._settings = settings
        self._stack = stack
        self._writes = CallPool(settings.write_threads, "writes")
        self._reads = CallPool(settings.read_threads, "reads")
        self._streams = CallPool(settings.stream_threads + _REFUSERS, "streams")
        self._postgres = CallPool(_POSTGRES_THREADS, "postgres")
        self._unhurried = CallPool(_UNHURRIED_THREADS, "unhurried")
        self._others = CallPool(_OTHER_THREADS, "others")  # health, reflection
        self._pools = (
            self._writes,
            self._reads,
            self._streams,
            self._postgres,
            self._unhurried,
            self._others,
        )
        self._server = grpc.server(
            self._others,
            options=(
                ("grpc.so_reuseport", 1),
                (
                    "grpc.max_receive_message_length",
                    settings.max_message_bytes * _TRANSPORT_LIMIT_FACTOR,
                ),
                ("grpc.max_send_message_length", -1),
                # Past these, gRPC would cancel calls at random, and a caller can't tell why.
                ("grpc.server.max_pending_requests", settings.max_concurrent_calls),
                ("grpc.server.max_pending_requests_hard_limit", 2 * settings.max_concurrent_calls),
                *KEEPALIVE,
            ),
            maximum_concurrent_rpcs=settings.max_concurrent_calls,
        )
        for service in SERVICES:
            self._add(service, servicers.get(service.name))
        self.health = health.HealthServicer(
            experimental_non_blocking=True, experimental_thread_pool=self._others
        )
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self._server)
        names = [service.full_name for service in SERVICES]
        reflection.enable_server_reflection(
            [*names, health.SERVICE_NAME, reflection.SERVICE_NAME], self._server
        )

    def start(self, address: str) -> None:
        """Listens and serves; health says SERVING.

        Raises:
            OSError: the address can't be listened on.
        """
        credentials = _credentials(self._settings)
        try:
            if credentials is None:
                port = self._server.add_insecure_port(address)
            else:
                port = self._server.add_secure_port(address, credentials)
        except RuntimeError as error:
            raise OSError(f"can't listen on {address}: {error}") from error
        if not port:
            raise OSError(f"can't listen on {address}")
        self._server.start()
        for name in ("", *(service.full_name for service in SERVICES)):
            self.health.set(name, health_pb2.HealthCheckResponse.SERVING)

    def refuse(self) -> None:
        """Health says NOT_SERVING from now on."""
        self.health.enter_graceful_shutdown()

    def stop(self, grace: float) -> None:
        """Takes no new calls, waits for those under way up to `grace` seconds, then cuts them."""
        self._server.stop(grace).wait()
        for pool in self._pools:
            pool.shutdown(wait=False, cancel_futures=True)

    def _add(self, service: ServiceDescriptor, servicer: object) -> None:
        handlers = {method.name: self._handler(method, servicer) for method in service.methods}
        generic = grpc.method_handlers_generic_handler(service.full_name, handlers)
        self._server.add_generic_rpc_handlers((generic,))
        self._server.add_registered_method_handlers(service.full_name, handlers)

    def _handler(
        self, method: MethodDescriptor, servicer: object
    ) -> "grpc.RpcMethodHandler[Any, Any]":
        handle = getattr(servicer, _snake(method.name), None)
        pool = self._reads if method.name.startswith(_READS) else self._writes
        if method.full_name in _POSTGRES or method.containing_service.name == "OperationsService":
            pool = self._postgres
        if method.name in UNHURRIED:
            pool = self._unhurried
        if method.client_streaming or (method.server_streaming and pool is not self._reads):
            pool = self._streams
        if handle is None:
            behavior = self._missing(method)
        elif method.name.startswith("Watch"):
            behavior = self._watching(method.name, handle)
        elif method.server_streaming:
            behavior = self._stack.streaming(method.name, handle)
        else:
            behavior = self._stack.unary(method.name, handle)
        behavior.experimental_thread_pool = pool  # type: ignore[attr-defined]
        return _ROUTES[method.client_streaming, method.server_streaming](
            behavior,
            request_deserializer=decoder(
                GetMessageClass(method.input_type), self._settings.max_message_bytes
            ),
            response_serializer=encode,
        )

    def _missing(self, method: MethodDescriptor) -> Callable[..., Any]:
        def refuse(request: Any, caller: Caller) -> Any:
            raise NotImplementedYet(f"{method.full_name} is not part of this version")

        def refuse_stream(requests: Any, caller: Caller) -> Any:
            refuse(requests, caller)
            yield

        if method.server_streaming:
            return self._stack.streaming(method.name, refuse_stream)
        return self._stack.unary(method.name, refuse)

    def _watching(self, name: str, handle: Callable[..., None]) -> Callable[..., Any]:
        """A handler that starts a watch and gives its thread back."""

        def call(request: Any, context: grpc.ServicerContext, send: Callable[..., None]) -> None:
            started = time.perf_counter()
            try:
                handle(checked(request), Caller(context, self._stack.most_seconds(name)), send)
            except Exception as error:
                self._stack.ended_with(name, context, error, started)
                send(None)

        call.experimental_non_blocking = True  # type: ignore[attr-defined]
        return call


_ROUTES: dict[tuple[bool, bool], "Callable[..., grpc.RpcMethodHandler[Any, Any]]"] = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}


def _snake(name: str) -> str:
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in name).lstrip("_")


def _credentials(settings: Settings) -> grpc.ServerCredentials | None:
    if not settings.tls_certificate:
        return None
    pair = (Path(settings.tls_key).read_bytes(), Path(settings.tls_certificate).read_bytes())
    return grpc.ssl_server_credentials([pair])
