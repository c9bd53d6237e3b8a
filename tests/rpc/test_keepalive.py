"""A caller that is gone without a word does not keep a thread for ever."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import grpc

from tallyboard_server.rpc.server import KEEPALIVE
from tests.faults.proxy import Faults, Proxy

# The server's own options with all times this much shorter.
_FASTER: Final = 100
_OPTIONS: Final = tuple((name, value // _FASTER or value) for name, value in KEEPALIVE)
_PATIENCE: Final = 10.0


class _Echo(grpc.GenericRpcHandler):
    """A stream that ends with its caller, and tells so."""

    def __init__(self) -> None:
        self.ended = threading.Event()

    def service(self, handler_call_details: Any) -> Any:
        return grpc.stream_stream_rpc_method_handler(self._echo)

    def _echo(self, messages: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        context.add_callback(self.ended.set)
        yield from messages


def test_a_stream_whose_line_goes_dead_ends() -> None:
    echo = _Echo()
    server = grpc.server(ThreadPoolExecutor(2), options=_OPTIONS)
    server.add_generic_rpc_handlers((echo,))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    over = threading.Event()

    def messages() -> Iterator[bytes]:
        yield b"first"
        over.wait(_PATIENCE)

    with Proxy(port) as line, grpc.insecure_channel(f"127.0.0.1:{line.port}") as channel:
        assert next(channel.stream_stream("/echo/Echo")(messages())) == b"first"
        line.faults = Faults(black_hole=True)
        assert echo.ended.wait(_PATIENCE)
        over.set()
    server.stop(0)
