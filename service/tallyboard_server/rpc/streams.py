"""A call whose requests are a stream: they are read on a thread of their own."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import grpc

from tallyboard_server.errors import TallyboardError, Unavailable
from tallyboard_server.rpc.stack import checked


class BatchStream(Protocol):
    """What takes the batches."""

    def finish(self, error: TallyboardError | None = None) -> None:
        """No more batches will come; with an error, the stream ends with it."""


@contextmanager
def reading(
    stream: BatchStream,
    requests: Iterator[Any],
    context: grpc.ServicerContext,
    take: Callable[[Any], None],
    name: str,
) -> Iterator[None]:
    """Passes every request to `take` while the body answers; `finish` says why it stopped.

    Args:
        take: may raise TallyboardError, which ends the stream; may wait.
        name: of the thread.
    """

    def read() -> None:
        error: TallyboardError | None = None
        try:
            for request in requests:
                take(checked(request))
        except TallyboardError as caught:
            error = caught
        except grpc.RpcError:
            error = Unavailable("the caller broke off")
        except Exception as caught:
            error = TallyboardError(f"internal error: {type(caught).__name__}")
        stream.finish(error)

    context.add_callback(stream.finish)
    threading.Thread(target=read, name=name, daemon=True).start()
    try:
        yield
    finally:
        stream.finish()
