"""The error that stops the start of the service, and what is checked before anything runs."""

import ssl

from tallyboard_server.settings import Settings


class StartupError(RuntimeError):
    """The service cannot start; `str()` is a sentence for the operator, shown without a trace."""


def check_tls(settings: Settings) -> None:
    """Looks whether the certificate and the key can be served with; gRPC does not say why not.

    Raises:
        StartupError: they can't.
    """
    if not settings.tls_certificate:
        return
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # Without a password given, OpenSSL would ask for one on the terminal.
        context.load_cert_chain(settings.tls_certificate, settings.tls_key, password=lambda: b"")
    except (OSError, ValueError) as error:
        raise StartupError(
            f"The settings tls_certificate ({settings.tls_certificate}) and tls_key "
            f"({settings.tls_key}) are not a PEM certificate and its key without a password: "
            f"{error}."
        ) from error
