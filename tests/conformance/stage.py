"""What the runners play against: a service, a way to it that loses answers, and who says when.

`python -m tests.conformance.stage` starts it for a runner by hand, until it is interrupted.
"""

import json
import signal
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Final, Self

import grpc

from tallyboard.v1 import consistency_pb2, counters_pb2, counters_pb2_grpc
from tests.conformance.way import Way
from tests.service import RunningService
from tests.waiting import wait_for

WORKERS: Final = 2
_PATIENCE: Final = 20.0


class Stage:
    """A service of two workers, and faults for those who ask; a context manager.

    Attributes:
        service: the service.
    """

    def __init__(self) -> None:
        self.service = RunningService(workers=WORKERS)

    @property
    def target(self) -> str:
        """Where runners reach the service."""
        return self._way.target

    @property
    def control(self) -> str:
        """The address of the HTTP server that takes wishes for faults."""
        return f"http://127.0.0.1:{self._http.server_port}"

    def __enter__(self) -> Self:
        self.service.__enter__()
        self._way = Way(self.service.target).__enter__()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._http.serve_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join(_PATIENCE)
        self._way.__exit__()
        self.service.__exit__(kind, error, trace)

    def arm(self, tenant: str, counter: str, action: str) -> None:
        """Loses the answer to the next increment of a counter, as soon as it is applied."""
        self._way.hold_behind(counter.encode())
        threading.Thread(target=self._strike, args=(tenant, counter, action), daemon=True).start()

    def _strike(self, tenant: str, counter: str, action: str) -> None:
        request = counters_pb2.GetCounterRequest(
            counter=counter, consistency=consistency_pb2.Consistency(exact=True)
        )
        metadata = (("x-tallyboard-tenant", tenant),)
        with grpc.insecure_channel(self.service.target) as channel:
            get = counters_pb2_grpc.CounterServiceStub(channel).GetCounter

            def is_applied() -> bool:
                try:
                    return bool(get(request, timeout=5.0, metadata=metadata).count.exists)
                except grpc.RpcError:  # the workers of the case before are on their way
                    return False

            try:
                wait_for(is_applied, f"an increment of {counter}", _PATIENCE)
                if action == "kill":
                    for index in range(WORKERS):
                        self.service.kill_worker(index)
            finally:
                self._way.cut()


def _handler(stage: Stage) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            is_known = self.path == "/arm" and body.get("action") in ("cut", "kill")
            if is_known:
                stage.arm(body["tenant"], body["counter"], body["action"])
            self.send_response(204 if is_known else 400)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Handler


def _main() -> None:
    stopping = threading.Event()
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, lambda *_: stopping.set())
    with Stage() as stage:
        print(f"--target {stage.target} --control {stage.control}", flush=True)
        stopping.wait()


if __name__ == "__main__":
    _main()
