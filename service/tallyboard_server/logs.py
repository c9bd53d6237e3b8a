"""Structured logs on standard error, one line an event, for our code and for libraries alike."""

import logging
import sys
from typing import Final

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from tallyboard_server.settings import Settings, mask_url

# What every line goes through, whether structlog or the standard library made it.
_SHARED: Final[tuple[Processor, ...]] = (
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.stdlib.ExtraAdder(),
    structlog.processors.TimeStamper(fmt="iso", utc=True),
)


def configure_logs(settings: Settings, process: str) -> None:
    """Send all logs to standard error in the form that the settings ask for.

    `process` names the process in every line, such as `worker-0`. Passwords in URLs are masked.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*_SHARED, _logger_name],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                _process_name(process),
                *_rendering(settings.log_format),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level.upper())
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *_SHARED,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )


def _rendering(log_format: str) -> list[Processor]:
    console = log_format == "console" or (log_format == "auto" and sys.stderr.isatty())
    if console:
        # Plain traces: a pretty one shows local variables, which may be secret.
        trace = structlog.dev.plain_traceback
        renderer = structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=trace
        )
        return [_mask_urls, renderer]
    return [
        structlog.processors.format_exc_info,
        _mask_urls,
        structlog.processors.JSONRenderer(default=str),
    ]


def _process_name(process: str) -> Processor:
    def add(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
        event["process"] = process
        return event

    return add


def _logger_name(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    event["logger"] = event["_record"].name
    return event


def _mask_urls(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    for key, value in event.items():
        if isinstance(value, str) and "://" in value:
            event[key] = mask_url(value)
    return event
