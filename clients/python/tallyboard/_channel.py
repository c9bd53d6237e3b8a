"""Opens channels with the options that suit the service."""

import json
from typing import Final

import grpc

from tallyboard._service_config import SERVICE_CONFIG

_OPTIONS: Final = (
    # Channels to the same target would otherwise share one connection, and so one worker.
    ("grpc.use_local_subchannel_pool", 1),
    # A worker that was restarted is back within seconds; the default waits up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 3_000),
    # The failures of 10,000 items of a batch may take more than gRPC's 4 MiB.
    ("grpc.max_receive_message_length", 16 * 1024 * 1024),
    # A call that does not fit in here is not retried; by default that is one above 256 KiB.
    ("grpc.per_rpc_retry_buffer_size", 8 * 1024 * 1024),
    # Without it a connection that swallows everything is never given up, nor a watch on it.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # It is this one, a minute by default, that ends a connection whose ping is not answered.
    ("grpc.http2.ping_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
)


def open_channel(target: str, credentials: grpc.ChannelCredentials | None = None) -> grpc.Channel:
    """Open a channel that has a connection of its own; close it, or use it in a `with`.

    A connection reaches one worker of the service, so open one channel for each core that the
    service may use. Calls have the deadlines and retries of the published service config, so a
    write made with the generated stubs needs a `request_id`: a call whose connection was lost is
    repeated.

    Args:
        target: where the service listens, as `host:port`.
        credentials: those of TLS; None for a connection that is not encrypted.
    """
    return _open(target, credentials, SERVICE_CONFIG)


def open_channel_without_deadlines(
    target: str, credentials: grpc.ChannelCredentials | None = None
) -> grpc.Channel:
    """The same for calls that all have a deadline: gRPC cuts a longer one to the config's."""
    config = json.loads(SERVICE_CONFIG)
    for methods in config["methodConfig"]:
        methods.pop("timeout", None)
    return _open(target, credentials, json.dumps(config))


def _open(target: str, credentials: grpc.ChannelCredentials | None, config: str) -> grpc.Channel:
    options = (*_OPTIONS, ("grpc.service_config", config))
    if credentials is None:
        return grpc.insecure_channel(target, options)
    return grpc.secure_channel(target, credentials, options)
