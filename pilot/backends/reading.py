"""Reading what an agent's program prints, whichever it is: values checked, never trusted. Pure."""

from __future__ import annotations

import json
import re
import signal
import uuid
from collections.abc import Mapping
from typing import Any

from pilot.domain.agent import OutputKind
from pilot.domain.outcome import FailureClass
from pilot.domain.text import one_line

Piece = tuple[OutputKind, bytes]
Event = Mapping[str, Any]
Words = tuple[tuple[re.Pattern[str], FailureClass], ...]

MOST = 10**15
"""Times in ms are below it, and a store's columns hold some thousand of it."""
SHOWN_RESULT = 2000
"""Characters of a tool's answer that are shown; all of it is in the raw line."""
_TOOL_SUBJECT = ("command", "file_path", "filePath", "notebook_path", "path", "pattern", "url", "query", "description")


def parsed(line: bytes) -> Event | None:
    """The object on this line; None when it is anything else."""
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return event if isinstance(event, dict) else None


def as_event(value: object) -> Event:
    """The value if it is an object, else an empty one."""
    return value if isinstance(value, dict) else {}


def as_list(value: object) -> list[Any]:
    """The value if it is a list, else an empty one."""
    return value if isinstance(value, list) else []


def as_text(value: object) -> str:
    """The value if it is text, else an empty one."""
    return value if isinstance(value, str) else ""


def as_number(value: object) -> float | None:
    """The value if it is a number that counts something (at most `MOST`), else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if 0 <= value <= MOST else None


def line_of(text: str) -> bytes:
    """Text as a piece of output."""
    return text.encode(errors="replace") + b"\n"


def tool_line(name: object, arguments: object) -> str:
    """A tool call in one line: its name, and what it is about."""
    given = as_event(arguments)
    subject = next((as_text(given[key]) for key in _TOOL_SUBJECT if as_text(given.get(key))), None)
    if subject is None:
        subject = json.dumps(given, ensure_ascii=False, default=str) if given else ""
    return one_line(f"{as_text(name) or 'tool'} {subject}")


def by_words(text: str, table: Words) -> FailureClass | None:
    """The class of the first pattern that is found in the text."""
    return next((failure for pattern, failure in table if pattern.search(text)), None)


def killer(returncode: int | None) -> signal.Signals | None:
    """The signal that ended a program: shells and sandboxes say 128 + N where the system says -N."""
    number = 0 if returncode is None else -returncode if returncode < 0 else returncode - 128
    return signal.Signals(number) if number in set(signal.Signals) else None


def is_uuid(text: str) -> bool:
    """Whether it is written as ids of sessions are."""
    try:
        return str(uuid.UUID(text)) == text.lower()
    except ValueError:
        return False
