"""URLs of Redis: one that may name several nodes of a cluster, and those of single nodes."""

from urllib.parse import unquote, urlsplit


def split_url(url: str) -> list[str]:
    """The URL of each address in `url`: redis://host:port,host:port has two."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return [url]
    login, at, addresses = parts.netloc.rpartition("@")
    return [
        parts._replace(netloc=f"{login}{at}{address}").geturl() for address in addresses.split(",")
    ]


def with_address(url: str, host: str, port: int) -> str:
    """The URL with another address: same scheme, login and query."""
    parts = urlsplit(url)
    login, at, _ = parts.netloc.rpartition("@")
    return parts._replace(netloc=f"{login}{at}{_joined(host, port)}").geturl()


def address_of(url: str) -> str:
    """Where a node is, as host:port or the path of a socket, and nothing else."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return unquote(parts.path)
    return _joined(parts.hostname or "localhost", parts.port or 6379)


def _joined(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
