"""What the program prints, and what it means. No input or output of its own: easy to test, and to replay."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from pilot.domain.agent import OutputKind
from pilot.domain.outcome import Usage
from pilot.domain.text import clean, one_line

KINDS = {"say": OutputKind.TEXT, "call": OutputKind.TOOL, "answer": OutputKind.RESULT}
STDERR_TAIL = 8 << 10


@dataclass(slots=True)
class Record:
    """What is known of a run. What an agent prints is checked, never trusted."""

    session_id: str | None = None
    usage: Usage = field(default_factory=Usage)
    text: str = ""
    done: bool = False
    error: str = ""
    reason: str = ""
    until: int | None = None
    _stderr: bytearray = field(default_factory=bytearray)

    @property
    def complaint(self) -> str:
        return clean(self._stderr.decode(errors="replace"))

    def complain(self, line: bytes) -> None:
        self._stderr += line + b"\n"
        del self._stderr[:-STDERR_TAIL]

    def read(self, line: bytes) -> dict[str, Any]:
        """Take a line in; gives it as an object, an empty one when it is none."""
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            return {}
        if not isinstance(event, dict):
            return {}
        self.session_id = _text(event.get("session")) or self.session_id
        if isinstance(used := event.get("used"), dict):
            self.usage = Usage(_count(used.get("in")), _count(used.get("out")), _cost(used.get("usd")))
        if "done" in event:
            self.done, self.text = True, _text(event["done"])
        if "error" in event:
            self.error, self.reason = _text(event["error"]), one_line(_text(event.get("text")))
            self.until = _count(event.get("until"))
        return event

    def pieces(self, event: dict[str, Any]) -> Iterator[tuple[OutputKind, bytes]]:
        """What of it people read."""
        for key, kind in KINDS.items():
            if text := _text(event.get(key)):
                yield kind, text.encode() + b"\n"


def _text(value: object) -> str:
    return clean(value) if isinstance(value, str) else ""


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _cost(value: object) -> float | None:
    # what is not said is unknown, and unknown is not 0
    return float(value) if isinstance(value, (int, float)) and 0 < value < 1e6 else None
