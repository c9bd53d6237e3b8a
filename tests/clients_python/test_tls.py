"""The client over TLS, and with a token that goes with every call."""

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from tallyboard import Client, UnavailableError
from tests import certificates
from tests.service import RunningService


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Has the certificate of `encrypted`."""
    folder = tmp_path_factory.mktemp("certificates")
    certificates.make(folder)
    return folder


@pytest.fixture(scope="module")
def encrypted(folder: Path) -> Iterator[RunningService]:
    """A service with TLS."""
    service = RunningService(
        workers=1, tls_certificate=folder / "ca.pem", tls_key=folder / "key.pem"
    )
    service.start()
    yield service
    service.close()


def test_an_authority_of_ones_own_is_trusted(encrypted: RunningService, folder: Path) -> None:
    credentials = grpc.ssl_channel_credentials((folder / "ca.pem").read_bytes())
    with Client(encrypted.target, tls=credentials, token="secret", channels=1) as client:
        client.wait_ready()
        counter = client.counter("post:42")
        counter.increment()
        assert counter.get(exact=True).value == 1


def test_a_stranger_is_not(encrypted: RunningService) -> None:
    client = Client(encrypted.target, tls=True, channels=1)
    with client, pytest.raises(UnavailableError):
        client.wait_ready(1.0)
