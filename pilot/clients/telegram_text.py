"""Text as Telegram measures it, and as people write commands to bots. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pilot.domain.text import clean

MESSAGE = 4096
"""UTF-16 units of a message."""
CAPTION = 1024
"""UTF-16 units of the words below a file."""
BUTTON = 64
"""Bytes of what a button says back."""

_TOKEN = re.compile(r"\b(bot)?\d{6,}:[\w-]{20,}")
_WHOLE_TOKEN = re.compile(r"\d+:[\w-]+", re.ASCII)
_COMMAND = re.compile(r"/([A-Za-z0-9_]{1,32})(?:@(\w+))?(?:\s+(.*))?\Z", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Command:
    """`/name rest`, the name in lower case, without the slash."""

    name: str
    rest: str


def units(text: str) -> int:
    """How long it is for Telegram: UTF-16 units, of which an emoji has two."""
    return len(text) + sum(character > "\uffff" for character in text)


def cut(text: str, limit: int = MESSAGE) -> str:
    """At most `limit` units of it, with an ellipsis in place of what is gone; no character is split."""
    if units(text) <= limit:
        return text
    room = limit - 1
    for number, character in enumerate(text):
        room -= units(character)
        if room < 0:
            return text[:number] + "…"
    return text


def sayable(text: str) -> str:
    """Text that Telegram takes: no lone surrogates, no NUL."""
    return clean(text)


def redacted(text: str) -> str:
    """Text without bot tokens; every address of Telegram's API has one."""
    return _TOKEN.sub(r"\1[redacted]", text)


def is_token(text: str) -> bool:
    """Whether it can be a bot's token, and a part of an address."""
    return _WHOLE_TOKEN.fullmatch(text) is not None


def as_command(text: str, username: str) -> Command | None:
    """What a message commands the bot of that user name; None: nothing, or another bot."""
    found = _COMMAND.match(text.strip())
    if found is None or (found[2] is not None and found[2].lower() != username.lower()):
        return None
    return Command(found[1].lower(), (found[3] or "").strip())
