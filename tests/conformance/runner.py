"""Plays the conformance cases with the Python library: `python -m tests.conformance.runner`."""

import argparse
import json
import re
import sys
import urllib.request
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import grpc
from google.protobuf.json_format import MessageToDict, ParseDict

from tallyboard import IncrementProducer, TallyboardError, error_from_call, open_channel
from tallyboard._errors import error_from_status
from tallyboard.v1 import (
    counters_pb2,
    counters_pb2_grpc,
    leaderboards_pb2,
    leaderboards_pb2_grpc,
    operations_pb2,
    operations_pb2_grpc,
)
from tests.conformance.compare import difference

_DEADLINE: Final = 15.0
_VARIABLE: Final = re.compile(r"\$\{([^}]+)\}")
_SERVICES: Final[dict[str, tuple[Any, Any]]] = {
    "CounterService": (counters_pb2, counters_pb2_grpc.CounterServiceStub),
    "LeaderboardService": (leaderboards_pb2, leaderboards_pb2_grpc.LeaderboardServiceStub),
    "OperationsService": (operations_pb2, operations_pb2_grpc.OperationsServiceStub),
}


class _Failed(Exception):
    """A step was not as expected."""


class Player:
    """Plays cases against a service.

    Args:
        target: of the service.
        control: of who takes wishes for faults.
    """

    def __init__(self, target: str, control: str) -> None:
        self._control = control
        self._stack = ExitStack()
        self._plain = self._stack.enter_context(grpc.insecure_channel(target))
        self._helper = self._stack.enter_context(open_channel(target))

    def __enter__(self) -> "Player":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def play(self, case: Mapping[str, Any]) -> str:
        """Plays a case; what is not as expected, or nothing."""
        run = _Run(self._plain, self._helper, self._control, case["name"])
        for number, step in enumerate(case["steps"], start=1):
            try:
                run.step(step)
            except _Failed as failed:
                return f"step {number}: {failed}"
        return ""


class _Run:
    """One case under way."""

    def __init__(self, plain: grpc.Channel, helper: grpc.Channel, control: str, name: str) -> None:
        self._plain = plain
        self._helper = helper
        self._control = control
        self._tenant = f"python-{name}-{uuid.uuid4().hex[:8]}"
        self._ids: dict[str, str] = {}
        self._saved: dict[str, str] = {}

    def step(self, step: Mapping[str, Any]) -> None:
        """Plays one step."""
        step = self._filled(step)
        if "control" in step:
            self._arm(step["control"])
        elif "produce" in step:
            self._produce(step)
        elif "stream" in step:
            self._stream(step)
        else:
            self._call(step)

    def _filled(self, value: Any) -> Any:
        """With the variables replaced in all strings."""
        if isinstance(value, str):
            return _VARIABLE.sub(lambda found: self._variable(found[1]), value)
        if isinstance(value, list):
            return [self._filled(item) for item in value]
        if isinstance(value, dict):
            return {name: self._filled(item) for name, item in value.items()}
        return value

    def _variable(self, name: str) -> str:
        if name.startswith("id:"):
            return self._ids.setdefault(name, str(uuid.uuid4()))
        return self._saved[name]

    def _arm(self, wish: Mapping[str, Any]) -> None:
        body = json.dumps({**wish, "tenant": self._tenant}).encode()
        urllib.request.urlopen(f"{self._control}/arm", body, timeout=_DEADLINE).close()

    def _produce(self, step: Mapping[str, Any]) -> None:
        wanted = step["produce"]
        with IncrementProducer(
            self._helper, self._tenant, wanted["producer_id"], stall_timeout=5.0
        ) as producer:
            for batch in wanted["batches"]:
                producer.send_batch(batch["counters"], [int(delta) for delta in batch["deltas"]])
            producer.flush()
            _expect(step["acknowledged"], producer.acknowledged_sequence, "acknowledged")

    def _method(self, name: str, *, helper: bool) -> tuple[Any, Any]:
        service, _, method = name.partition("/")
        messages, stub = _SERVICES[service]
        found = getattr(stub(self._helper if helper else self._plain), method)
        described = messages.DESCRIPTOR.services_by_name[service].methods_by_name[method]
        return found, getattr(messages, described.input_type.name)

    def _options(self, step: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "timeout": step.get("deadline_ms", _DEADLINE * 1000) / 1000,
            "metadata": (("x-tallyboard-tenant", step.get("tenant", self._tenant)),),
        }

    def _call(self, step: Mapping[str, Any]) -> None:
        helper = step.get("with") == "helper"
        method, kind = self._method(step["call"], helper=helper)
        request = ParseDict(step["request"], kind())
        if helper and "request_id" in kind.DESCRIPTOR.fields_by_name and not request.request_id:
            request.request_id = str(uuid.uuid4())
        try:
            answer = method(request, **self._options(step))
            if not isinstance(answer, grpc.Call):
                self._check_answer(step, MessageToDict(answer))
                return
            wanted = step.get("responses", [{}])
            found = [MessageToDict(message) for _, message in zip(wanted, answer, strict=False)]
            answer.cancel()
        except grpc.RpcError as error:
            _check_error(step, error_from_call(error))
            return
        if "error" in step:
            raise _Failed(f"{found} instead of {step['error']}")
        _expect(step["responses"], found, "responses")

    def _check_answer(self, step: Mapping[str, Any], found: Mapping[str, Any]) -> None:
        if "error" in step:
            raise _Failed(f"{found} instead of {step['error']}")
        _expect(step["response"], found, "response")
        for name, path in step.get("save", {}).items():
            value: Any = found
            for part in path.split("."):
                value = value[part]
            self._saved[name] = value

    def _stream(self, step: Mapping[str, Any]) -> None:
        method, kind = self._method(step["stream"], helper=False)
        requests = [ParseDict(request, kind()) for request in step["requests"]]
        acknowledged, failures = 0, []
        try:
            for answer in method(iter(requests), **self._options(step)):
                acknowledged = max(acknowledged, answer.acknowledged_sequence)
                for failure in answer.failures:
                    found = MessageToDict(failure)
                    failures.append({**found, "reason": error_from_status(failure.status).reason})
        except grpc.RpcError as error:
            _check_error(step, error_from_call(error))
            return
        if "error" in step:
            raise _Failed(f"{acknowledged} acknowledged instead of {step['error']}")
        _expect(step["acknowledged"], acknowledged, "acknowledged")
        _expect(step.get("failures", []), failures, "failures")


def _check_error(step: Mapping[str, Any], error: TallyboardError) -> None:
    wanted = step.get("error")
    if wanted is None:
        raise _Failed(f"{error}")
    found = {
        "code": error.code.name,
        "reason": error.reason,
        "fields": sorted(violation.field for violation in error.violations),
        "retryable": error.retry_after is not None,
    }
    wanted = dict(wanted)
    if "fields" in wanted:
        wanted["fields"] = sorted(wanted["fields"])
    _expect(wanted, found, "error")


def _expect(expected: Any, found: Any, what: str) -> None:
    wrong = difference(expected, found, what)
    if wrong:
        raise _Failed(wrong)


def _cases(files: Sequence[Path]) -> Iterator[Mapping[str, Any]]:
    for file in files:
        yield from json.loads(file.read_text())["cases"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Plays the files; the exit status is 1 if a case failed."""
    parser = argparse.ArgumentParser(prog="runner", description=__doc__)
    parser.add_argument("--target", required=True)
    parser.add_argument("--control", required=True)
    parser.add_argument("files", nargs="+", type=Path)
    given = parser.parse_args(arguments)
    failed = 0
    with Player(given.target, given.control) as player:
        for case in _cases(given.files):
            detail = player.play(case)
            failed += bool(detail)
            said = {"case": case["name"], "ok": not detail}
            print(json.dumps(said | ({"detail": detail} if detail else {})), flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
