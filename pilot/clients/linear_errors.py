"""What Linear says when it does not do what was asked, in a few kinds that a caller can act on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

WORDS = 500
"""Characters of Linear's own words that go into an error."""
PATIENCE = 60_000
"""How long to wait (ms) when Linear wants to be left alone and does not say how long."""

_PASSING = frozenset({"internal error", "internal server error", "lock timeout", "network error", "bootstrap error"})


class LinearError(Exception):
    """A call came to nothing.

    * LinearError
      + RateLimited     not now; `until` says when
      + Unauthorized    the key is not good, or no longer
      + NotFound        there is no such thing, or the key may not see it
      + Refused         Linear understood and will not; sending it again changes nothing
      + Unavailable     no answer, or none that makes sense: a write may or may not have been done
    """


class RateLimited(LinearError):
    """Not now. `until`: UTC ms from when on Linear will answer again."""

    def __init__(self, message: str, until: int) -> None:
        super().__init__(message)
        self.until = until


class Unauthorized(LinearError):
    """The key is not good, or no longer."""


class NotFound(LinearError):
    """There is no such thing, or the key may not see it."""


class Refused(LinearError):
    """Linear understood and will not do it."""


class Unavailable(LinearError):
    """No answer, or none that makes sense; whether a write was done is unknown."""


def failure(status: int, headers: Mapping[str, str], errors: Sequence[Any], now: int) -> LinearError:
    """What went wrong: Linear's own word for it first, since the HTTP status is the same for most of it."""
    first = errors[0] if errors and isinstance(errors[0], dict) else {}
    said = first.get("extensions")
    more = said if isinstance(said, dict) else {}
    message = str(first.get("message") or "")
    words = str(more.get("userPresentableMessage") or message or "no reason given")[:WORDS]
    words = f"Linear says: {words} (HTTP {status})"
    kinds = {str(more.get(key) or "").lower().replace("_", " ") for key in ("type", "code")}
    if "ratelimited" in kinds or status == 429:
        return RateLimited(words, _until(headers, now))
    if "authentication error" in kinds or status == 401:
        return Unauthorized(f"{words}; check the API key")
    if errors and (message.lower().startswith("entity not found") or status == 404):
        return NotFound(f"{words}: {message}" if message not in words else words)
    if not errors or status >= 500 or kinds & _PASSING:
        return Unavailable(words)
    return Refused(words)


def _until(headers: Mapping[str, str], now: int) -> int:
    """UTC ms: when the allowance that is used up is there again."""
    wait = _number(headers, "retry-after")
    if wait is not None:
        return now + round(wait * 1000)
    moments = []
    for kind in ("requests", "complexity", "endpoint-requests"):
        moment = _number(headers, f"x-ratelimit-{kind}-reset")
        if moment is not None and not _number(headers, f"x-ratelimit-{kind}-remaining"):
            moments.append(round(moment if moment > 1e11 else moment * 1000))  # it is in ms; should it be s, it shows
    return max([moment for moment in moments if moment > now], default=now + PATIENCE)


def _number(headers: Mapping[str, str], name: str) -> float | None:
    try:
        number = float(headers.get(name, ""))
    except ValueError:
        return None
    return number if 0 <= number < 1e15 else None
