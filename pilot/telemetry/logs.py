"""Logs: one line per fact, on stderr; coloured on a terminal, JSON when asked; no secret in any of them."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any

import structlog

from pilot.domain.redact import Redactor
from pilot.domain.text import for_terminal

_TALKATIVE = ("httpx", "httpx2", "httpcore", "httpcore2", "telegram", "apscheduler", "github", "urllib3", "asyncio")
"""Libraries that tell of each request, address and all: a Telegram bot's token stands in it."""


def configure(*, json: bool = False, level: str = "INFO") -> None:
    """Set structlog up for this process, and let what libraries log come out the same way.

    What looks like a secret is taken out from the first line on; those of the settings once `redact_by` was called.
    """
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
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.ExceptionRenderer() if json else structlog.processors.format_exc_info,
            _Clean(for_terminal if terminal else str),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    _take_over()


def redact_by(redact: Callable[[], Redactor]) -> None:
    """Ask this, for each line from now on, for what takes secrets out of it: settings may be read again."""
    for processor in structlog.get_config()["processors"]:
        if isinstance(processor, _Clean):
            processor.redact = redact


class _Clean:
    """Values as they are printed: plain, and without secrets, however deep they stand. `printable`: for all text."""

    def __init__(self, printable: Callable[[str], str]) -> None:
        shapes = Redactor()
        self._printable = printable
        self.redact: Callable[[], Redactor] = lambda: shapes

    def __call__(self, _logger: object, _method: str, event: structlog.typing.EventDict) -> Mapping[str, Any]:
        redact = self.redact()

        def shown(text: str) -> str:
            return self._printable(redact(text))

        return {key: _cleaned(value, shown) for key, value in event.items()}


def _cleaned(value: Any, shown: Callable[[str], str]) -> Any:
    match value:
        case None | bool() | int() | float():
            return value
        case Enum():
            return value.value
        case str():
            return shown(value)
        case Mapping():
            return {_cleaned(key, shown): _cleaned(one, shown) for key, one in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_cleaned(one, shown) for one in value]
        case _:
            return shown(repr(value))


class _Bridge(logging.Handler):
    """What libraries say through `logging` becomes a line like any other."""

    def emit(self, record: logging.LogRecord) -> None:
        """One line."""
        try:
            message = record.getMessage()
        except Exception as error:  # noqa: BLE001  the border to what libraries put into their records
            message = f"{record.msg} ({type(error).__name__})"
        met = record.exc_info[1] if record.exc_info else None
        more = {} if met is None else {"error": f"{type(met).__name__}: {met}"}
        structlog.get_logger().log(record.levelno, "library.said", logger=record.name, message=message, **more)


def _take_over() -> None:
    root = logging.getLogger()
    for handler in [one for one in root.handlers if isinstance(one, _Bridge)]:
        root.removeHandler(handler)
    root.addHandler(_Bridge(logging.WARNING))
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)
