"""The error of the embedded stores."""

from tallyboard_server.startup import StartupError


class EmbeddedError(StartupError):
    """An embedded store that cannot be used; `str()` says why in words for the operator."""
