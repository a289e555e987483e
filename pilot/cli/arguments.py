"""Words from the command line as values: times, durations, JSON, prompts."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pilot.domain.errors import UsageError

if TYPE_CHECKING:
    from pilot.domain.task import Kind

ID = click.IntRange(1, 2**63 - 1)
id_argument = click.argument("id", metavar="ID", type=ID)
json_option = click.option("--json", is_flag=True, help="One JSON document.")

MAX_PROMPT = 1 << 20


def milliseconds(text: str, option: str) -> int:
    """A duration such as `90`, `30s`, `10m`, `1h30m`, in ms; a bare number is seconds."""
    from pilot.config.fields import parse_duration

    seconds = float(text) if text.isascii() and text.isdecimal() else parse_duration(text)
    if seconds is None or not 0 < seconds <= 366 * 86400:
        raise UsageError(f"{option} {text!r}: expected a duration such as 30s, 10m, 1h30m (at most 366d)")
    return int(seconds * 1000)


def moment(text: str, now: int) -> int:
    """A time in UTC ms: RFC 3339 (without a zone: this machine's), or a duration from now."""
    try:
        at = datetime.fromisoformat(text)
        return int((at if at.tzinfo else at.astimezone()).astimezone(UTC).timestamp() * 1000)
    except (ValueError, OverflowError, OSError):
        pass
    try:
        return now + milliseconds(text.removeprefix("+"), "--at")
    except UsageError:
        raise UsageError(
            f"--at {text!r}: expected a time such as 2026-12-31T18:00:00Z, or a duration from now such as 2h"
        ) from None


def json_value(text: str, option: str) -> Any:
    """Any JSON value."""
    import json

    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{option}: not JSON: {error}") from None


def prompt_from(prompt: str | None, file: Path | None) -> str:
    """The task's words: as given, from a file, or (`-`) from stdin."""
    text, where = _read(prompt, file)
    if not text.strip():
        raise UsageError(f"{where}: there is nothing in it")
    return text


def words_from(text: str) -> str:
    """What a person says: as given, or (`-`) from stdin."""
    return _read(text, None, "TEXT")[0]


def _read(prompt: str | None, file: Path | None, name: str = "PROMPT") -> tuple[str, str]:
    """The words, and where they came from."""
    if prompt is not None and file is not None:
        raise UsageError("give the task as a PROMPT or with --file, not both")
    if file is not None:
        try:
            with file.open("rb") as stream:
                data = stream.read(MAX_PROMPT + 1)
        except OSError as error:
            raise UsageError(f"--file {file}: {error.strerror}") from None
        where = f"--file {file}"
    elif prompt == "-":
        data, where = sys.stdin.buffer.read(MAX_PROMPT + 1), "stdin"
    elif prompt is not None:
        data, where = prompt.encode(errors="surrogateescape"), name
    else:
        raise UsageError("what is there to do? Give a PROMPT, `-` to read it from stdin, or --file FILE")
    if len(data) > MAX_PROMPT:
        raise UsageError(f"{where}: more than {MAX_PROMPT >> 20} MiB")
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise UsageError(f"{where}: not UTF-8 text") from None
    return text, where


def kind_of(word: str) -> Kind:
    """What sort of work it is."""
    from pilot.domain.task import Kind

    if word not in list(Kind):
        raise UsageError(f"--kind {word!r}: there are {', '.join(Kind)}")
    return Kind(word)
