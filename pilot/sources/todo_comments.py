"""What a marked comment in code asks for; pure, and of no language in particular."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from pilot.domain.text import for_prompt, one_line

MAX_LINES = 40
"""Lines of one comment; what follows is left out."""
LONGEST = 2000
"""Characters of a line that a person may have written; longer ones are a machine's."""
_VENDORED = re.compile(
    r"(?:^|/)(?:node_modules|bower_components|vendor|third_party|third-party|site-packages|\.venv|venv|dist|\.git)/",
    re.IGNORECASE,
)
_LINE = re.compile(r"(?:#+|//[/!]*|--+|;+|%+|(?<!\S)\*|(?<!\S)rem\b|\.\.)[ \t]*$", re.IGNORECASE)
_BLOCK = re.compile(r"(?:/\*[*!]*|<!--+|\(\*|\{-+|\"\"\"|'''|\{#|<%--)[ \t]*$")
_CLOSE = re.compile(r"\*+/|--+%?>|\*\)|-+\}|\"\"\"|'''|#\}")


@dataclass(frozen=True, slots=True)
class Marked:
    """A comment that asks. `text` is what it says behind the marker, one line of it per line of code."""

    path: str
    line: int
    text: str
    around: str

    @property
    def digest(self) -> str:
        """Names the request: its file and its words, not its line, so that it may move."""
        return hashlib.sha256(f"{self.path}\0{self.text}".encode(errors="surrogateescape")).hexdigest()

    @property
    def title(self) -> str:
        """Its first words."""
        return one_line(self.text.partition("\n")[0], 80)


def is_vendored(path: str) -> bool:
    """Whether others wrote it: a marker in it asks nothing of this repository."""
    return _VENDORED.search(path) is not None or path.endswith((".min.js", ".min.css", ".map", ".lock", ".svg"))


def read_comment(path: str, lines: Sequence[str], at: int, marker: str) -> Marked | None:
    """The comment whose marker stands in `lines[at]`; None where no comment begins with it, or nothing is asked."""
    head, _, rest = lines[at].partition(marker)
    if len(lines[at]) > LONGEST:
        return None
    block = _BLOCK.search(head)
    line = None if block else _LINE.search(head)
    if block is None and line is None:
        return None
    said = [rest.lstrip(":").strip()]
    if block is not None or (line is not None and line[0].strip() == "*"):
        said = _until_closed(said, lines[at + 1 : at + MAX_LINES], marker)
    elif line is not None:
        said += _same_column(lines[at + 1 : at + MAX_LINES], line[0].strip(), line.start(), marker)
    text = for_prompt("\n".join(said)).strip()
    if not text:
        return None
    first, last = max(0, at - 5), min(len(lines), at + len(said) + 10)
    around = "\n".join(f"{number + 1:6} {lines[number][:LONGEST]}" for number in range(first, last))
    return Marked(path, at + 1, text, for_prompt(around))


def _until_closed(said: list[str], following: Sequence[str], marker: str) -> list[str]:
    found: list[str] = []
    for text in (*said, *(re.sub(r"^\s*\*(?!/)", "", line).strip() for line in following)):
        closed = _CLOSE.search(text)
        if closed:
            return [*found, text[: closed.start()].strip()]
        if marker in text:
            break
        found.append(text)
    return found


def _same_column(following: Sequence[str], token: str, column: int, marker: str) -> list[str]:
    """The comment's other lines: nothing before its sign, which stands where the first one's does."""
    found: list[str] = []
    for line in following:
        if line[:column].strip() or not line[column:].startswith(token) or marker in line:
            break
        found.append(line[column + len(token) :].strip())
    return found
