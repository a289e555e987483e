"""Secrets taken out of text that is kept or goes outside: values that are configured, and what looks like one."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, overload
from urllib.parse import quote, quote_plus

from pilot.domain.text import without_unseen

REPLACEMENT = "[redacted]"
SHORTEST = 8
"""Characters: a shorter value would take words out that are none of its business."""
_TOKEN = 1024
"""Bytes at the end of a piece that are looked at for the beginning of a secret."""
_BLOCK = 16 << 10
"""Bytes of a private key, at most."""
_LINE = 20
"""Characters from which a single line of a secret with several is one of its own: a key is printed line by line."""

_OWN = "a configured secret"
_BEGIN = r"(?:(?<![A-Za-z0-9_-])|(?<=\\[nrt]))"
"""Where a word begins, in text and in JSON. Without it each letter of a long word could be the beginning of one."""
_KEY = r"(?:[A-Z0-9]{1,20} ){0,4}PRIVATE KEY(?: BLOCK)?-----"
_HEADER = r"(?:Proc-Type|DEK-Info|Version|Comment|Hash):[^\n\\]*+"
_SHAPES: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("a GitHub token", ("ghp_", "gho_", "ghu_", "ghs_", "ghr_"), r"gh[pousr]_[A-Za-z0-9]{20,}"),
    ("a GitHub token", ("github_pat_",), r"github_pat_[A-Za-z0-9_]{20,}"),
    ("a Linear key", ("lin_api_", "lin_oauth_"), r"lin_(?:api|oauth)_[A-Za-z0-9_]{16,}"),
    ("a token of pilot's", ("pilot_",), r"pilot_[0-9a-f]{16}_[A-Za-z0-9_-]{43}"),
    ("an API key", ("sk-",), rf"{_BEGIN}sk-(?=[A-Za-z_-]*+[0-9])[A-Za-z0-9_-]{{20,}}"),
    ("a Slack token", ("xox",), r"xox[a-z]-[A-Za-z0-9-]{10,}"),
    ("an AWS key", ("AKIA", "ASIA"), rf"{_BEGIN}A[KS]IA[A-Z0-9]{{16}}(?![A-Za-z0-9])"),
    ("a JSON web token", ("eyJ",), rf"{_BEGIN}eyJ[A-Za-z0-9_-]{{8,}}+\.eyJ[A-Za-z0-9_-]{{8,}}+\.[A-Za-z0-9_-]*"),
    ("a Telegram bot's token", (":A",), rf"{_BEGIN}\d{{6,12}}:A[A-Za-z0-9_-]{{34}}(?![A-Za-z0-9_-])"),
    ("a Telegram bot's token", ("bot",), r"(?<=bot)\d{3,}:[A-Za-z0-9_-]{10,}"),
    (
        "a private key",
        ("-----BEGIN ",),
        rf"-----BEGIN {_KEY}(?:{_HEADER}|[A-Za-z0-9+/=\s]|\\[nr]){{32,}}+(?:-----END {_KEY})?",
    ),
)
"""What it is, what a text with it has for certain, and how it looks. The middle is there for speed alone."""

_ESCAPE = b"\x1b"
_OPEN_BLOCK = re.compile(rf"-----BEGIN (?:{_KEY}|[A-Z0-9 ]{{0,60}}-{{0,4}}\Z)".encode())
_END = re.compile(rb"-----END [A-Z0-9 ]{1,60}-----")
_NUMBER = re.compile(rb"\d{1,12}:?\Z")
"""A Telegram token begins as any number does."""


class Redactor:
    """Takes secrets out of text or bytes; callable, pure, cheap where there is nothing to take out. Idempotent.

    Configured values are found as they are, and as JSON, URLs and base64 (at any offset) have them. One that is
    coloured in its middle, or split by what nobody sees, is found as well: then the text loses its colours.
    """

    __slots__ = ("_begun", "_bytes", "_literals", "_longest", "_marks", "_secrets", "_text")

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self._secrets = frozenset(secrets)
        forms = sorted({form for secret in self._secrets for form in _forms(secret)}, key=len, reverse=True)
        own = [(_OWN, tuple(forms), "|".join(map(re.escape, forms)))] if forms else []
        shapes = [*own, *_SHAPES]
        self._text = [(literals, re.compile(pattern)) for _, literals, pattern in shapes]
        self._bytes = [
            (name, tuple(one.encode() for one in literals), re.compile(pattern.encode()))
            for name, literals, pattern in shapes
        ]
        self._literals = tuple(one for _, literals, _ in self._bytes for one in literals)
        self._marks = tuple(one for name, literals, _ in self._bytes if name != _OWN for one in literals)
        self._begun = frozenset(one[:n] for one in self._literals for n in range(1, len(one)))
        self._longest = max(map(len, self._literals)) - 1

    @overload
    def __call__(self, data: str) -> str: ...

    @overload
    def __call__(self, data: bytes) -> bytes: ...

    def __call__(self, data: str | bytes) -> str | bytes:
        """The same without secrets."""
        if isinstance(data, str):
            data = self._without(data)
            plain = without_unseen(data)
            return data if plain is data or (clean := self._without(plain)) == plain else clean
        if _ESCAPE in data:
            text = self(data.decode(errors="surrogateescape"))
            return text.encode(errors="surrogateescape")
        for _, parts, looks in self._bytes:
            if any(part in data for part in parts):
                data = looks.sub(REPLACEMENT.encode(), data)
        return data

    def _without(self, text: str) -> str:
        for words, shape in self._text:
            if any(word in text for word in words):
                text = shape.sub(REPLACEMENT, text)
        return text

    def plus(self, secrets: Iterable[str]) -> Redactor:
        """One that takes these out, too."""
        more = frozenset(secrets) - self._secrets
        return Redactor(self._secrets | more) if more else self

    def suspects(self, data: bytes) -> bool:
        """Whether there may be anything to take out: the quick look alone, for much data at once."""
        return _ESCAPE in data or any(literal in data for literal in self._literals)

    def unfinished(self, data: bytes) -> int:
        """Where the end of a piece begins that may be the beginning of a secret; its length when there is none."""
        block = data.rfind(b"-----BEGIN ", max(len(data) - _BLOCK, 0))
        if block >= 0 and _OPEN_BLOCK.match(data, block) and not _END.search(data, block):
            return block
        if data[-1:] in (b"\n", b"\r"):
            return len(data)
        line = re.split(rb"[\r\n]", data[-_TOKEN:])[-1]
        token = re.split(rb"\s", line)[-1]
        if any(mark in token for mark in self._marks):
            return len(data) - len(token)
        longest = min(self._longest, len(line))
        begun = next((n for n in range(longest, 0, -1) if line[-n:] in self._begun), 0)
        number = _NUMBER.search(line[-14:])
        cut = len(data) - max(begun, len(number[0]) if number else 0)
        near = max(len(data) - _BLOCK, 0)
        for _, parts, looks in self._bytes if cut < len(data) else ():
            if any(data.find(part, near) >= 0 for part in parts):  # not through the middle of a whole one
                cut = min([cut, *(m.start() for m in looks.finditer(data, near) if m.start() < cut < m.end())])
        return cut

    def found(self, data: bytes) -> Mapping[bytes, str]:
        """The secrets in it, and what each of them is, in words."""
        return {
            match: name
            for name, parts, looks in reversed(self._bytes)
            if any(part in data for part in parts)
            for match in (one.group() for one in looks.finditer(data))
        }


def redacted(value: Any, redact: Callable[[str], str]) -> Any:
    """A document with every text in it redacted; keys stay as they are."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {str(key): redacted(each, redact) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [redacted(each, redact) for each in value]
    return value


def _forms(secret: str) -> Iterator[str]:
    """How a value may be written."""
    lines = [line.strip() for line in secret.splitlines()]
    more = [line for line in lines if len(line) >= _LINE and not line.startswith("-----")] if len(lines) > 1 else []
    for value in (secret, secret.strip(), *more):
        if len(value) < SHORTEST:
            continue
        yield value
        yield json.dumps(value)[1:-1]
        yield json.dumps(value, ensure_ascii=False)[1:-1]
        yield quote(value, safe="")
        yield quote(value)
        yield quote_plus(value)
        yield from _in_base64(value.encode(errors="replace"))


def _in_base64(value: bytes) -> Iterator[str]:
    """What is the same in base64 whatever stands before and behind it: one for each offset modulo 3."""
    for offset, first in ((0, 0), (1, 2), (2, 3)):
        encoded = base64.b64encode(bytes(offset) + value).decode()
        inner = encoded[first : (offset + len(value)) * 8 // 6]
        yield inner
        yield inner.replace("+", "-").replace("/", "_")
