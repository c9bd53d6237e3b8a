"""Keeps the port that the workers share for the whole life of the service."""

import socket

from tallyboard_server.settings import split_address
from tallyboard_server.startup import StartupError


def reserve_port(listen: str) -> tuple[socket.socket, str]:
    """Take the address `host:port` for this service; port 0 takes a free one.

    Gives a bound socket that accepts nothing, to be held while workers listen on the same port
    with SO_REUSEPORT, and the address with its real port. Raises StartupError when it is in use.
    """
    host, port = split_address(listen)
    try:
        family, _, _, _, found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # Without SO_REUSEPORT the kernel refuses a port that anybody else holds, also another
        # service of ours, which would otherwise silently get a share of the calls.
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(found)
            bound = probe.getsockname()
        holder = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise StartupError(
            f"The service cannot listen on {listen}: {error.strerror or error}."
        ) from None
    try:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind(bound)
    except OSError as error:
        holder.close()
        raise StartupError(f"The service cannot listen on {listen}: {error.strerror}.") from None
    return holder, f"{listen.rpartition(':')[0]}:{bound[1]}"
