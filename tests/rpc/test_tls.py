"""A service with a certificate speaks TLS, and nothing else."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from tallyboard.v1 import counters_pb2 as pb
from tallyboard.v1.counters_pb2_grpc import CounterServiceStub
from tests.service import RunningService


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for 127.0.0.1; its key is beside it."""
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", "key.pem", "-out", "certificate.pem"),
        ],
        cwd=folder,
        check=True,
        capture_output=True,
        timeout=60,
    )
    return folder / "certificate.pem"


@pytest.fixture(scope="module")
def service(certificate: Path) -> Iterator[RunningService]:
    """A service with TLS."""
    key = certificate.with_name("key.pem")
    with RunningService(workers=1, tls_certificate=certificate, tls_key=key) as running:
        yield running


def increment(channel: grpc.Channel) -> int:
    """A count over a channel."""
    request = pb.IncrementRequest(counter="post:42", delta=1, return_count=True)
    return CounterServiceStub(channel).Increment(request, timeout=10).count.value


def test_who_trusts_the_certificate_is_served(service: RunningService, certificate: Path) -> None:
    credentials = grpc.ssl_channel_credentials(certificate.read_bytes())
    with grpc.secure_channel(service.target, credentials) as channel:
        assert increment(channel) == 1


def test_plaintext_is_not_served(service: RunningService) -> None:
    with grpc.insecure_channel(service.target) as channel, pytest.raises(grpc.RpcError) as caught:
        increment(channel)
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
