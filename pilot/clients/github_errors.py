"""Why a call to GitHub came to nothing, told from its answer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from pilot.domain.text import one_line

UNNAMED = 60_000
"""Milliseconds of rest where GitHub limits us without saying how long; its documentation asks for a minute."""
LONGEST = 65 * 60_000
"""Milliseconds after which the limit is tried again whatever was said: GitHub's windows are an hour."""


class GitHubError(Exception):
    """A call came to nothing. Texts are one line, fit for a log, and never hold a credential.

    * GitHubError
      + RateLimited      nothing was done, and nothing may be asked before `until`
      + Refused          nothing was done; asking again gives the same
        - Unauthorized     the credential is wrong, expired or revoked
        - Forbidden        the credential is good and may not do this
        - NotFound         there is no such thing, or the credential may not see it
        - Conflict         it is there already, or has changed meanwhile
        - Unprocessable    GitHub doesn't take the request
      + Unavailable      no answer, or none that can be used: whether a write took effect is unknown
    """


class RateLimited(GitHubError):
    """Too much was asked; `until`: UTC milliseconds."""

    def __init__(self, message: str, until: int) -> None:
        super().__init__(message)
        self.until = until


class Refused(GitHubError):
    """GitHub said no."""


class Unauthorized(Refused):
    """The credential is wrong, expired or revoked."""


class Forbidden(Refused):
    """The credential is good and may not do this."""


class NotFound(Refused):
    """There is no such thing, or the credential may not see it: GitHub makes no difference."""


class Conflict(Refused):
    """It is there already, or has changed meanwhile."""


class Unprocessable(Refused):
    """GitHub doesn't take the request."""


class Unavailable(GitHubError):
    """No answer, or none that can be used. A read may be repeated; of a write it is unknown whether it took effect."""


_KINDS: Mapping[int, type[Refused]] = {
    400: Unprocessable,
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    405: Unprocessable,
    409: Conflict,
    410: NotFound,
    413: Unprocessable,
    422: Unprocessable,
    451: Forbidden,
}


def refusal(call: str, status: int, headers: Mapping[str, str], data: Any, now: int) -> GitHubError:
    """What an answer from 400 on means. `call` names what was asked, `now` is in UTC milliseconds."""
    said = list(_words(data))
    words = one_line("; ".join(said) or "no reason given", 300)
    until = _limited_until(status, headers, " ".join(said).lower(), now)
    if until is not None:
        when = datetime.fromtimestamp(until / 1000, UTC).strftime("%H:%M:%S")
        return RateLimited(f"{call}: GitHub's rate limit is used up until {when} UTC ({words})", until)
    message = f"{call}: {words} (HTTP {status})"
    if status == 422 and ("already_exists" in _codes(data) or any("already exists" in text for text in said)):
        return Conflict(message)
    return _KINDS.get(status, Unavailable)(message)


def _limited_until(status: int, headers: Mapping[str, str], words: str, now: int) -> int | None:
    if status not in (403, 429):
        return None
    rest = UNNAMED
    if (named := _number(headers.get("retry-after"))) is not None:
        rest = named * 1000
    elif (
        headers.get("x-ratelimit-remaining") == "0" and (reset := _number(headers.get("x-ratelimit-reset"))) is not None
    ):
        # by the clock that set it: ours may be minutes off
        rest = reset * 1000 - (_date(headers.get("date")) or now)
    elif status == 403 and "rate limit" not in words and "try again later" not in words:
        return None
    return now + min(max(rest, 1000), LONGEST)


def _number(text: str | None) -> int | None:
    try:
        return None if text is None else int(float(text))
    except (ValueError, OverflowError):
        return None


def _date(text: str | None) -> int | None:
    try:
        return None if text is None else int(parsedate_to_datetime(text).timestamp() * 1000)
    except (ValueError, OverflowError):
        return None


def _errors(data: Any) -> list[Any]:
    errors = data.get("errors") if isinstance(data, dict) else None
    return errors if isinstance(errors, list) else []


def _codes(data: Any) -> set[str]:
    return {str(error.get("code")) for error in _errors(data) if isinstance(error, dict)}


def _words(data: Any) -> Iterator[str]:
    if isinstance(data, dict) and data.get("message"):
        yield str(data["message"])
    for error in _errors(data):
        if isinstance(error, str):
            yield error
        elif isinstance(error, dict):
            yield str(error.get("message") or " ".join(str(error[key]) for key in ("field", "code") if key in error))
