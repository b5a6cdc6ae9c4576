"""Logging: structlog with the request's and the container's id bound, for a console or as JSON lines, on standard error."""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog

LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "fatal": logging.CRITICAL,
}


class _Threshold:
    """The first processor: drops what is below `number`. The level may change, and loggers that are held go along."""

    number = logging.INFO

    def __call__(self, logger: Any, method: str, event: Any) -> Any:
        if LEVELS.get(method, logging.CRITICAL) < self.number:
            raise structlog.DropEvent
        return event


_threshold = _Threshold()


def configure(level: str, form: str) -> Any:
    """Set up logging once; returns the daemon's logger. level: a key of LEVELS; form: `json` or `console`."""
    shared: list[Any] = [
        _threshold,
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if form == "json":
        last: list[Any] = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    else:
        last = [
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
            )
        ]
    structlog.configure(
        processors=[*shared, *last],
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(stream=sys.stderr, format="%(name)s: %(message)s")
    set_level(level)
    return structlog.get_logger()


def set_level(level: str) -> None:
    """Log from `level` on. level: a key of LEVELS."""
    _threshold.number = LEVELS[level]
    logging.getLogger().setLevel(max(_threshold.number, logging.WARNING))
