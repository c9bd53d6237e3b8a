"""The error that stops the start of the service."""


class StartupError(RuntimeError):
    """The service cannot start; `str()` is a sentence for the operator, shown without a trace."""
