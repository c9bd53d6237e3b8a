"""A certificate for a server on 127.0.0.1, for tests with TLS."""

from pathlib import Path

from tests import tools


def make(folder: Path) -> None:
    """Puts `ca.pem`, which is the server's certificate too, and `key.pem` into a folder."""
    tools.run(
        [
            *(tools.need("openssl"), "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-keyout", "key.pem", "-out", "ca.pem", "-subj", "/CN=tallyboard"),
            *("-addext", "subjectAltName=IP:127.0.0.1"),
        ],
        folder,
    )
