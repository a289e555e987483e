"""What Telegram says when it does not do what was asked, in a few kinds that a caller can act on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from pilot.clients.telegram_text import redacted


class BotError(Exception):
    """A call came to nothing. None of them carries the token.

    * BotError
      + RateLimited     not now; `until` says when
      + Unauthorized    Telegram does not know the token
      + Taken           another process reads this bot's messages
      + Refused         Telegram understood and will not; sending it again changes nothing
      + Unavailable     no answer, or none that makes sense: a message may or may not have been sent
    """


class RateLimited(BotError):
    """Not now. `until`: UTC ms from when on Telegram will take it."""

    def __init__(self, message: str, until: int) -> None:
        super().__init__(message)
        self.until = until


class Unauthorized(BotError):
    """Telegram does not know the token."""


class Taken(BotError):
    """Another process reads this bot's messages."""


class Refused(BotError):
    """Telegram understood and will not do it."""


class Unavailable(BotError):
    """No answer, or none that makes sense; whether a message was sent is unknown."""


@contextmanager
def translated(clock: Callable[[], int]) -> Iterator[None]:
    """What the library raises, in this module's words. `from None`: its own errors may name the token."""
    from telegram import error

    try:
        yield
    except error.RetryAfter as failure:
        wait = failure.retry_after
        seconds = wait.total_seconds() if isinstance(wait, timedelta) else wait
        words = f"Telegram wants to be left alone for {seconds:g} s"
        raise RateLimited(words, clock() + round(seconds * 1000)) from None
    except error.InvalidToken:
        raise Unauthorized("Telegram does not know this bot token; check it with @BotFather") from None
    except error.Conflict:
        raise Taken("another process reads this bot's messages; a bot has one reader at a time") from None
    except (error.BadRequest, error.Forbidden, error.ChatMigrated) as failure:
        raise Refused(f"Telegram says: {redacted(failure.message)}") from None
    except error.TelegramError as failure:
        raise Unavailable(f"Telegram gives no answer: {redacted(failure.message)}") from None
