"""The only place that prints: data to stdout, talk to stderr, and no text from outside as it came.

rich would draw the tables too, but costs a third of the time that a person waits for `pilot list`.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, TextIO

from pilot.domain.errors import PilotError
from pilot.domain.text import for_terminal, one_line

_RESET = "\x1b[0m"
_STYLES = {"bold": "\x1b[1m", "dim": "\x1b[2m", "red": "\x1b[31m", "green": "\x1b[32m", "yellow": "\x1b[33m"}
_STATUS_STYLES = {
    "running": "green",
    "needs_human": "yellow",
    "failed": "red",
    "cancelled": "dim",
    "completed": "dim",
}
_NARROW = 20  # a column that gives way is never made narrower than this


class ReaderGone(Exception):
    """Whoever read stdout has left: `pilot list | head -1`. Nothing is wrong."""


class OutputLost(PilotError):
    """What stdout leads to takes nothing: a full disk."""


class Ui:
    """Two streams and what may be said on them. `json`: stdout carries documents and nothing else."""

    def __init__(self, out: TextIO, err: TextIO, environ: Mapping[str, str], *, json: bool = False) -> None:
        self._out = out
        self._err = err
        self.json = json
        self.terminal = out.isatty()
        plain = bool(environ.get("NO_COLOR")) or environ.get("TERM") == "dumb"
        self._colour = self.terminal and not plain
        self._colour_err = err.isatty() and not plain
        self._columns = environ.get("COLUMNS", "")

    def line(self, text: str = "", style: str = "") -> None:
        """A line of data, or several."""
        self._write(self._out, self.styled(for_terminal(text), style))

    def marked(self, mark: str, style: str, text: str) -> None:
        """A line of data behind a coloured mark."""
        self._write(self._out, f"{self.styled(mark, style)} {for_terminal(text)}")

    def text(self, text: str) -> None:
        """Data as it comes, without a newline of its own."""
        self._write(self._out, for_terminal(text), end="", flush=True)

    def raw(self, data: bytes) -> None:
        """Bytes as they were, into a file or a pipe; a terminal gets them as text, like all others."""
        if self.terminal:
            self.text(data.decode(errors="replace"))
            return
        try:
            self._out.flush()
            self._out.buffer.write(data)
            self._out.buffer.flush()
        except BrokenPipeError:
            raise ReaderGone from None
        except OSError as error:
            raise OutputLost(f"stdout can't be written: {error.strerror}") from None

    def flush(self) -> None:
        """Hand over what is still in a buffer."""
        self._write(self._out, "", end="", flush=True)

    def fields(self, pairs: Sequence[tuple[str, str | None]]) -> None:
        """Names and values below each other; what is unknown is left out."""
        shown = [(name, value) for name, value in pairs if value]
        wide = max((len(name) for name, _ in shown), default=0)
        for name, value in shown:
            body = for_terminal(value or "").replace("\n", "\n" + " " * (wide + 4))
            self._write(self._out, f"  {self.styled(name.ljust(wide), 'dim')}  {body}")

    def document(self, document: Any) -> None:
        """The one JSON document of a command. ASCII only, so that it is harmless wherever it is shown."""
        self._write(self._out, json.dumps(document, indent=2))

    def document_line(self, document: Any) -> None:
        """One of many JSON documents, for commands that go on."""
        self._write(self._out, json.dumps(document), flush=True)

    def note(self, text: str = "") -> None:
        """Talk: on stderr, so that data stays clean."""
        self._talk(for_terminal(text))

    def warn(self, text: str) -> None:
        """Something that a person should know, though the command goes on."""
        self._talk(f"{self._mark('warning', 'yellow')}: {for_terminal(text)}")

    def failure(self, kind: str, message: str, exit_code: int, hint: str = "") -> None:
        """Why the command failed: one line (a list of problems: one each), and one document with `--json`."""
        if self.json:
            error = {"kind": kind, "message": message, "exit_code": exit_code, "hint": hint or None}
            with suppress(ReaderGone, OutputLost):
                self.document({"error": error})
        first, *more = for_terminal(message).splitlines() or [""]
        lines = [f"{self._mark('error', 'red')}: {first}", *(f"       {line}" for line in more)]
        if hint:
            lines.append(f"       {for_terminal(hint)}")
        self._talk("\n".join(lines))

    def failure_line(self, message: str) -> None:
        """One of several things failed, and the command goes on with the others."""
        self._talk(f"{self._mark('error', 'red')}: {one_line(message, 500)}")

    def table(self, headers: Sequence[str], rows: Sequence[Sequence[str]], gives: int = -1) -> None:
        """Rows as aligned columns on a terminal, tab-separated without a heading in a pipe.

        `gives` is the column that is cut when the terminal is too narrow. Cells are one line each.
        """
        cells = [[one_line(cell, 500) for cell in row] for row in rows]
        if not self.terminal:
            for row in cells:
                self._write(self._out, "\t".join(row))
            return
        everything = [list(headers), *cells]
        widths = [max(map(width, column)) for column in zip(*everything, strict=True)]
        room = self.columns() - 2 * (len(widths) - 1)
        widths[gives] = max(min(widths[gives], room - sum(widths) + widths[gives]), _NARROW)
        for number, row in enumerate(everything):
            padded = [fit(cell, wide) for cell, wide in zip(row, widths, strict=True)]
            if number == 0:
                line = self.styled("  ".join(padded).rstrip(), "bold")
            else:
                line = "  ".join(
                    self.styled(text, _STATUS_STYLES.get(cell, "")) for text, cell in zip(padded, row, strict=True)
                ).rstrip()
            self._write(self._out, line)

    def columns(self) -> int:
        """How wide the terminal is."""
        import shutil

        return int(self._columns) if self._columns.isdecimal() else shutil.get_terminal_size((100, 24)).columns

    def clear(self) -> None:
        """Begin a new page, on a terminal."""
        if self.terminal:
            self._write(self._out, "\x1b[H\x1b[2J", end="")

    def status(self, word: str) -> str:
        """A status in its colour."""
        return self.styled(word, _STATUS_STYLES.get(word, ""))

    def styled(self, text: str, style: str) -> str:
        """Text in a style, where there is colour. The text has to be clean already."""
        return f"{_STYLES[style]}{text}{_RESET}" if style and self._colour else text

    def _mark(self, text: str, style: str) -> str:
        return f"{_STYLES[style]}{text}{_RESET}" if self._colour_err else text

    def _talk(self, text: str) -> None:
        # Work goes on when nobody listens any more: a closed terminal, `2>&1 | head`.
        with suppress(OSError, ValueError):
            print(text, file=self._err, flush=True)

    @staticmethod
    def _write(stream: TextIO, text: str, end: str = "\n", *, flush: bool = False) -> None:
        try:
            print(text, end=end, file=stream, flush=flush)
        except BrokenPipeError:
            raise ReaderGone from None
        except OSError as error:
            raise OutputLost(f"stdout can't be written: {error.strerror}") from None


def width(text: str) -> int:
    """How many columns of a terminal a line takes."""
    if text.isascii():
        return len(text)
    return sum(_width(character) for character in text)


def _width(character: str) -> int:
    if unicodedata.combining(character) or unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def fit(text: str, wide: int) -> str:
    """The text in exactly so many columns: padded, or cut with an ellipsis."""
    taken = width(text)
    if taken <= wide:
        return text + " " * (wide - taken)
    kept, used = [], 0
    for character in text:
        used += _width(character)
        if used > wide - 1:
            break
        kept.append(character)
    short = "".join(kept) + "…"
    return short + " " * (wide - width(short))


def ago(then: int | None, now: int) -> str:
    """How long ago a time (UTC ms) was, in one unit; `in 5m` when it is still to come."""
    if then is None:
        return "-"
    seconds = abs(now - then) // 1000
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= size:
            text = f"{seconds // size}{unit}"
            break
    else:
        text = f"{seconds}s"
    return text if then <= now else f"in {text}"


def lasted(milliseconds: int) -> str:
    """A duration as `1h 02m`, `3m 20s` or `4.2s`."""
    seconds = milliseconds / 1000
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}m {rest:02d}s" if minutes < 60 else f"{minutes // 60}h {minutes % 60:02d}m"
