"""How a client reaches the service: its channels in turns, the tenant, deadlines, errors."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any, Final, TypeVar

import grpc

from tallyboard._batches import MAX_NAME_BYTES
from tallyboard._channel import open_channel_without_deadlines
from tallyboard._errors import FailedPreconditionError, TallyboardError, error_from_call
from tallyboard._requests import refused

_TENANT_KEY: Final = "x-tallyboard-tenant"
_TOKEN_KEY: Final = "authorization"
Answer = TypeVar("Answer")
Stub = TypeVar("Stub")


class Calls:
    """Makes calls over several channels; any thread may use it.

    Args:
        target: where the service listens, as `host:port`.
        credentials: of TLS, or None.
        channels: how many connections; each reaches one worker of the service.
        metadata: goes with every call.
        timeout: seconds that a call may take unless it says otherwise.
    """

    def __init__(
        self,
        target: str,
        credentials: grpc.ChannelCredentials | None,
        channels: int,
        metadata: Sequence[tuple[str, str]],
        timeout: float,
    ) -> None:
        self._metadata = tuple(metadata)
        self._timeout = timeout
        self._stack = ExitStack()
        self.channels = [
            self._stack.enter_context(open_channel_without_deadlines(target, credentials))
            for _ in range(channels)
        ]

    def stubs(self, kind: Callable[[grpc.Channel], Stub]) -> "Turns[Stub]":
        """A stub of each channel, to be taken in turns."""
        return Turns([kind(channel) for channel in self.channels])

    def call(self, method: Callable[..., Answer], request: object, timeout: float | None) -> Answer:
        """One call; its errors as exceptions of this library."""
        limit = self._timeout if timeout is None else timeout
        try:
            return method(request, timeout=limit, metadata=self._metadata)
        except grpc.RpcError as error:
            raise error_from_call(error) from error
        except ValueError as error:
            raise FailedPreconditionError(f"the client cannot be used: {error}") from error

    def stream(self, method: Callable[..., Any], request: object) -> Iterator[Any]:
        """The answers of a server-streaming call, until it is closed; its errors as above."""
        try:
            call = method(request, metadata=self._metadata)
        except ValueError as error:
            raise FailedPreconditionError(f"the client cannot be used: {error}") from error
        try:
            yield from call
        except grpc.RpcError as error:
            raise error_from_call(error) from error
        finally:
            call.cancel()

    def close(self) -> None:
        """Ends the connections; calls under way end with an error."""
        self._stack.close()


class Turns(Iterator[Stub]):
    """One after the other, again and again; any thread may take the next."""

    def __init__(self, items: Iterable[Stub]) -> None:
        self._items = itertools.cycle(items)

    def __next__(self) -> Stub:
        return next(self._items)


def metadata_of(tenant: str | None, token: str | None) -> list[tuple[str, str]]:
    """The metadata of every call.

    Raises:
        InvalidArgumentError: the tenant's name can't be sent, with the reason TENANT_INVALID.
        ValueError: the token can't be sent.
    """
    found = []
    if tenant is not None:
        _check_tenant(tenant)
        found.append((_TENANT_KEY, tenant))
    if token is not None:
        if not _is_sendable(token):
            raise ValueError("the token must be printable ASCII")
        found.append((_TOKEN_KEY, f"Bearer {token}"))
    return found


def _check_tenant(tenant: str) -> None:
    field = f"metadata {_TENANT_KEY}"
    if not _is_sendable(tenant):
        raise refused("TENANT_INVALID", field, "must be printable ASCII")
    if not 1 <= len(tenant) <= MAX_NAME_BYTES:
        detail = f"must have 1 to {MAX_NAME_BYTES} characters, not {len(tenant):,}"
        raise refused("TENANT_INVALID", field, detail)


def _is_sendable(text: str) -> bool:
    return text.isascii() and text.isprintable()


def is_not_found(error: TallyboardError) -> bool:
    """Whether what was asked for is not there, though its leaderboard is."""
    return error.reason == "ENTRY_NOT_FOUND"
