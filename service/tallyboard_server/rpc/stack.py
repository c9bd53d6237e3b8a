"""What every call shares, in one place: tenant, deadline, errors, log, metrics.

A servicer's method takes a request and a `Caller` and returns a response or raises; everything
between it and the wire is here.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import BoundedSemaphore
from typing import Any, TypeVar, cast

import grpc
import structlog
from google.protobuf.message import DecodeError, Message

from tallyboard_server.errors import (
    DeadlineExceeded,
    FieldViolation,
    InvalidArgument,
    MessageTooLarge,
    Overloaded,
    TallyboardError,
)
from tallyboard_server.names import name_problem
from tallyboard_server.rpc.metrics import CallMetrics
from tallyboard_server.rpc.status import code_of, status_of

TENANT_KEY = "x-tallyboard-tenant"
REQUEST_ID_KEY = "x-request-id"
DEFAULT_TENANT = "default"

_log = structlog.get_logger("tallyboard_server.access")
Request = TypeVar("Request", bound=Message)


# What these do grows with what is stored: they take as long as their callers wait, up to an hour.
UNHURRIED = frozenset(
    {
        "Checkpoint",
        "DeleteLeaderboard",
        "EraseMember",
        "RebuildPartition",
        "TakeSnapshots",
        "Verify",
    }
)
_MOST_SECONDS = 3_600.0


class Caller:
    """Who calls, and until when.

    Args:
        most: seconds that the call may take, whatever its own deadline.

    Attributes:
        tenant: whose data it is.
        deadline: when the caller stops waiting, as `time.monotonic()` has it.
    """

    __slots__ = ("context", "deadline", "tenant")

    def __init__(self, context: grpc.ServicerContext, most: float) -> None:
        self.context = context
        left = context.time_remaining()
        if left is None or left > most:
            left = most
        if left <= 0:
            raise DeadlineExceeded("the deadline passed before the call was begun; nothing changed")
        self.deadline = time.monotonic() + left
        self.tenant = DEFAULT_TENANT
        for key, value in context.invocation_metadata():
            if key == TENANT_KEY:
                self.tenant = _tenant(value)


def _tenant(value: str | bytes) -> str:
    text = value if isinstance(value, str) else value.decode("utf-8", "replace")
    problem = name_problem(text)
    if problem:
        violation = FieldViolation(f"metadata {TENANT_KEY}", problem)
        raise InvalidArgument("TENANT_INVALID", [violation])
    return text


class Undecodable:
    """Stands for a message that is too large or is not one of its type."""

    def __init__(self, error: TallyboardError) -> None:
        self.error = error


def decoder(kind: type[Request], limit: int) -> Callable[[bytes], Request | Undecodable]:
    """Decodes requests; what can't be decoded becomes a clear error, not an INTERNAL."""

    def decode(data: bytes) -> Request | Undecodable:
        if len(data) > limit:
            size = f"{len(data):,} bytes; at most {limit:,} are allowed"
            return Undecodable(MessageTooLarge(f"the message has {size}"))
        try:
            return kind.FromString(data)
        except DecodeError:
            detail = f"is not a valid {kind.DESCRIPTOR.full_name} (wrong bytes, or not UTF-8)"
            return Undecodable(
                InvalidArgument("FIELD_INVALID", [FieldViolation("message", detail)])
            )

    return decode


def encode(response: Message | bytes) -> bytes:
    """Encodes a response, unless its servicer has done so."""
    return response if isinstance(response, bytes) else response.SerializeToString()


class Stack:
    """Wraps methods of servicers.

    Args:
        metrics: is told of every call.
        call_timeout: seconds that a call may take, unless it is one of UNHURRIED.
        max_streams: streams that may be open; each holds a thread.
        log_all: whether calls that end well are logged too.
    """

    def __init__(
        self, metrics: CallMetrics, call_timeout: float, *, max_streams: int, log_all: bool
    ) -> None:
        self._streams = BoundedSemaphore(max_streams)
        self._note = metrics.note
        self._call_timeout = call_timeout
        self._log_all = log_all

    def unary(
        self, method: str, handle: Callable[[Any, Caller], Message | bytes]
    ) -> Callable[[Any, grpc.ServicerContext], Message | bytes]:
        """A handler of a unary call."""
        most = self.most_seconds(method)

        def call(request: Any, context: grpc.ServicerContext) -> Message | bytes:
            started = time.perf_counter()
            try:
                caller = Caller(context, most)
                response = handle(checked(request), caller)
            except Exception as error:
                self._abort(method, context, error, started)
            self._ended(method, context, started)
            return response

        return call

    def streaming(
        self, method: str, handle: Callable[[Any, Caller], Iterator[Message]]
    ) -> Callable[[Any, grpc.ServicerContext], Iterator[Message]]:
        """A handler of a call whose responses are a stream; requests may be one too."""
        most = self.most_seconds(method)

        def call(requests: Any, context: grpc.ServicerContext) -> Iterator[Message]:
            started = time.perf_counter()
            try:
                with self._stream():
                    yield from handle(requests, Caller(context, most))
            except GeneratorExit:
                self._ended(method, context, started, "CANCELLED")
                raise
            except Exception as error:
                self._abort(method, context, error, started)
            self._ended(method, context, started)

        return call

    def most_seconds(self, method: str) -> float:
        """How long a call may take, whatever its own deadline; what a call without one gets."""
        return _MOST_SECONDS if method in UNHURRIED else self._call_timeout

    @contextmanager
    def _stream(self) -> Iterator[None]:
        if not self._streams.acquire(blocking=False):
            raise Overloaded("this worker has all the streams it can serve; open it again later")
        try:
            yield
        finally:
            self._streams.release()

    def ended_with(
        self, method: str, context: grpc.ServicerContext, error: Exception, started: float
    ) -> None:
        """Sets the status of a call that ends outside its handler, and logs it."""
        status = status_of(error)
        context.set_code(status.code)
        context.set_details(status.details)
        context.set_trailing_metadata(status.trailing_metadata)
        self._ended(method, context, started, status.code.name, error)

    def _abort(
        self, method: str, context: grpc.ServicerContext, error: Exception, started: float
    ) -> None:
        self._ended(method, context, started, code_of(error).name, error)
        context.abort_with_status(cast(grpc.Status, status_of(error)))

    def _ended(
        self,
        method: str,
        context: grpc.ServicerContext,
        started: float,
        status: str = "OK",
        error: Exception | None = None,
    ) -> None:
        seconds = time.perf_counter() - started
        self._note((method, status, seconds))
        internal = error is not None and not isinstance(error, TallyboardError)
        if status == "OK" and not self._log_all:
            return
        metadata = dict(context.invocation_metadata())
        log = _log.error if internal else _log.info
        log(
            "call",
            method=method,
            status=status,
            duration_ms=round(seconds * 1000, 3),
            tenant=_shown(metadata.get(TENANT_KEY, DEFAULT_TENANT)),
            request_id=_shown(metadata.get(REQUEST_ID_KEY, "")),
            peer=context.peer(),
            reason=getattr(error, "reason", None),
            error=str(error)[:300] if error is not None else None,
            exc_info=error if internal else None,
        )


def checked(request: Any) -> Any:
    """The request, unless it could not be decoded.

    Raises:
        InvalidArgument, MessageTooLarge: it could not.
    """
    if isinstance(request, Undecodable):
        raise request.error
    return request


def _shown(value: str | bytes) -> str:
    text = value if isinstance(value, str) else value.decode("utf-8", "replace")
    return text[:256]
