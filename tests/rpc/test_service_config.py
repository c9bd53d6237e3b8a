"""The published service config: every RPC has its place in it, and only UNAVAILABLE is repeated."""

import json
from typing import Any, Final

import pytest

from tallyboard import SERVICE_CONFIG
from tallyboard_server.rpc.server import SERVICES
from tests.tools import ROOT

_METHODS: Final = json.loads(SERVICE_CONFIG)["methodConfig"]
_RPCS: Final = [(service, method) for service in SERVICES for method in service.methods]
_BY_THEIR_SENDERS: Final = {"StreamIncrements", "StreamScores"}
_BY_PEOPLE: Final = {"Checkpoint", "TakeSnapshots", "Verify", "RebuildPartition"}


def _config_of(service: str, method: str) -> dict[str, Any]:
    """The settings of an RPC, as gRPC finds them: those of the method, or else of the service."""
    for wanted in ({"service": service, "method": method}, {"service": service}):
        found = [config for config in _METHODS if wanted in config["name"]]
        if found:
            (config,) = found
            return config
    pytest.fail(f"{service}/{method} is not in the service config")


@pytest.mark.parametrize(("service", "method"), [(s.full_name, m.name) for s, m in _RPCS], ids=str)
def test_an_rpc_is_repeated_unless_its_sender_has_to_do_it(service: str, method: str) -> None:
    policy = _config_of(service, method).get("retryPolicy")
    if method in _BY_THEIR_SENDERS | _BY_PEOPLE:
        assert policy is None
    else:
        assert policy["retryableStatusCodes"] == ["UNAVAILABLE"]


@pytest.mark.parametrize(
    ("service", "method"),
    [(s.full_name, m.name) for s, m in _RPCS if not (m.server_streaming or m.client_streaming)],
    ids=str,
)
def test_a_call_has_a_deadline_unless_it_takes_as_long_as_it_takes(
    service: str, method: str
) -> None:
    assert _config_of(service, method).get("timeout") == (None if method in _BY_PEOPLE else "10s")


@pytest.mark.parametrize(
    "method",
    [
        m
        for _, m in _RPCS
        if not m.name.startswith(("Get", "List", "BatchGet", "Watch", "Stream"))
        and m.name not in _BY_PEOPLE
    ],
    ids=lambda method: method.name,
)
def test_a_write_that_is_repeated_has_a_request_id(method: Any) -> None:
    assert "request_id" in method.input_type.fields_by_name


def test_every_name_in_it_is_an_rpc() -> None:
    known = {(s.full_name, m.name) for s, m in _RPCS} | {(s.full_name, None) for s, _ in _RPCS}
    named = [(n["service"], n.get("method")) for config in _METHODS for n in config["name"]]
    assert [name for name in named if name not in known] == []


def test_the_library_has_the_one_that_is_published() -> None:
    assert (ROOT / "protos" / "service_config.json").read_text() == SERVICE_CONFIG
