"""The gRPC service config that is published with the contract: deadlines and retries by RPC."""

from importlib import resources
from typing import Final

#: As JSON, for the channel option `grpc.service_config`. With it a write must carry a request id:
#: a call whose connection was lost is repeated, though the service may have applied it.
SERVICE_CONFIG: Final = (resources.files("tallyboard") / "service_config.json").read_text()
