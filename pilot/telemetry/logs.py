"""Logs: one line per fact, on stderr; coloured on a terminal, JSON when asked."""

from __future__ import annotations

import logging
import os
import sys
from enum import Enum

import structlog


def _plain(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    return {key: value.value if isinstance(value, Enum) else value for key, value in event.items()}


def configure(*, json: bool = False, level: str = "INFO") -> None:
    """Set structlog up for this process."""
    terminal = sys.stderr.isatty() and "NO_COLOR" not in os.environ
    renderer: structlog.typing.Processor
    if json:
        renderer = structlog.processors.JSONRenderer()
    elif terminal:
        renderer = structlog.dev.ConsoleRenderer(pad_event_to=20)
    else:
        # repr() of every value: nothing that came from outside reaches a terminal as it is.
        renderer = structlog.processors.KeyValueRenderer(key_order=["timestamp", "level", "event"])
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            _plain,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.ExceptionRenderer() if json else structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
