"""Reads the details of errors, as callers do."""

from collections.abc import Callable
from typing import Any

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status


class Refusal:
    """An error of a call: code, reason, field paths, retry delay in seconds (None: no hint)."""

    def __init__(self, error: grpc.RpcError) -> None:
        self.code: grpc.StatusCode = error.code()
        self.message: str = error.details()
        self.reason = ""
        self.fields: list[str] = []
        self.retry_after: float | None = None
        status = rpc_status.from_call(error)
        for detail in status.details if status is not None else ():
            self._read(detail)

    def _read(self, detail: Any) -> None:
        info = error_details_pb2.ErrorInfo()
        bad = error_details_pb2.BadRequest()
        retry = error_details_pb2.RetryInfo()
        if detail.Unpack(info):
            assert info.domain == "tallyboard"
            self.reason = info.reason
        elif detail.Unpack(bad):
            self.fields = [violation.field for violation in bad.field_violations]
        elif detail.Unpack(retry):
            self.retry_after = retry.retry_delay.ToTimedelta().total_seconds()


def refusal(call: Callable[..., Any], request: Any, **options: Any) -> Refusal:
    """The error that a call ends with; a stream is read to its end."""
    try:
        answer = call(request, timeout=10, **options)
        if hasattr(answer, "__next__"):
            list(answer)
    except grpc.RpcError as error:
        return Refusal(error)
    raise AssertionError("the call did not fail")
