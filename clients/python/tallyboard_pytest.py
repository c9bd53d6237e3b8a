"""Fixtures for the tests of programs that call the service: real, and empty for each test.

A module beside the package, for pytest loads it in every run where the library is installed: it
must not import gRPC before those who want to set it up, or do without it.
"""

import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tallyboard import Client
    from tallyboard.testing import EmbeddedService


@pytest.fixture(scope="session")
def tallyboard_service() -> Iterator["EmbeddedService"]:
    """A service for all tests of the run; its `target` is `host:port`."""
    from tallyboard.testing import EmbeddedService

    with EmbeddedService() as service:
        yield service


@pytest.fixture
def tallyboard_client(tallyboard_service: "EmbeddedService") -> Iterator["Client"]:
    """A client with a tenant that no other test has, so it finds nothing there."""
    from tallyboard import Client

    tenant = f"test-{uuid.uuid4().hex}"
    with Client(tallyboard_service.target, tenant=tenant, channels=1) as client:
        yield client
