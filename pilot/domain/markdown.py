"""Text from outside inside Markdown that people read at GitHub or Linear: it shows what it says, and does nothing.

It mentions nobody, names no issue or commit, closes nothing, links nowhere, gives no command and ends no block.
"""

from __future__ import annotations

import re

from pilot.domain.text import for_terminal

GAP = "\u200b"
"""Has no width; between `@` and a name there is then no mention."""

_SPECIAL = re.compile(r"([\\`*_{}\[\]()#+\-.!|~>$^=:])")
_ACTIVE = re.compile(
    r"(?P<mention>@)(?=\w)"
    r"|(?P<number>#)(?=\d)"
    r"|(?P<issue>\b(?:GH-|[A-Z][A-Z0-9]{0,9}-))(?=\d)"
    r"|(?P<link>:)(?=//)"
    r"|(?P<www>\bwww)(?=\.)"
    r"|(?P<commit>\b[0-9a-f]{6})(?=[0-9a-f]+\b)"
)
_FENCES = re.compile(r"`{3,}")


def shown(text: str, limit: int = 4000) -> str:
    """The text in several lines, as it is read."""
    return "\n".join(_line(line) for line in _cut(text, limit).splitlines())


def in_line(text: str, limit: int = 200) -> str:
    """The text in one line, as it is read."""
    line = " ".join(for_terminal(text).split())
    return _line(line if len(line) <= limit else line[: limit - 1] + "…")


def quoted(text: str, limit: int = 4000) -> str:
    """The text as a quotation."""
    return "\n".join(f"> {_line(line)}".rstrip() for line in _cut(text, limit).splitlines())


def fenced(text: str, limit: int = 4000) -> str:
    """The text as a block of code, letter by letter. For output of programs; of too much the end is kept."""
    kept = for_terminal(text).strip("\n")
    if len(kept) > limit:
        kept = "…" + kept[-limit:]
    fence = "`" * max(3, *(len(run) + 1 for run in _FENCES.findall(kept)), 3)
    return f"{fence}text\n{kept}\n{fence}"


def code(text: str, limit: int = 200) -> str:
    """The text as code in a line: names of branches, commands."""
    line = " ".join(for_terminal(text).split())
    line = line if len(line) <= limit else line[: limit - 1] + "…"
    ticks = "`" * (max((len(run) for run in re.findall(r"`+", line)), default=0) + 1)
    gap = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{ticks}{gap}{line}{gap}{ticks}" if line else ""


def _cut(text: str, limit: int) -> str:
    kept = for_terminal(text).strip()
    return kept if len(kept) <= limit else kept[: limit - 1] + "…"


def _line(line: str) -> str:
    # gaps first: an escape shows nothing, so what is active without it would still be
    line = _ACTIVE.sub(lambda found: found[0] + GAP, line.replace("\t", "    "))
    line = _SPECIAL.sub(r"\\\1", line.replace("&", "&amp;").replace("<", "&lt;"))
    words = line.lstrip(" ")
    indented = "\u00a0" * (len(line) - len(words))  # as spaces they would make a block of code
    return f"{GAP}{words}" if words.startswith("/") else indented + words  # no command either
