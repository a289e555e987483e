"""Signed POSTs to addresses that somebody configured: news, and callbacks of tasks.

`X-Pilot-Signature: sha256=…` is the HMAC of the raw body, `X-Pilot-Delivery` names what is told: whoever gets the
same one twice (an answer was lost) has it already. Addresses may hold secrets: no error names one.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import httpx2

from pilot.clients.addresses import ForbiddenAddress
from pilot.domain.text import clean
from pilot.store import wall_clock

TIMEOUT = 10.0
"""Seconds for the whole of it."""
LONGEST_REST = 60 * 60 * 1000
"""Milliseconds that an answer may ask to be left alone for, at most."""
KEPT_AS = "callbacks.secret"


class HookError(Exception):
    """A POST came to nothing.

    * HookError
      + Forbidden     nothing was sent, and never is: that address is not called
      + Rejected      it was read and refused (`status`); the same again changes nothing
      + Unavailable   not now, or nobody knows; `until` (UTC ms): when it may be tried again, if that was said
        - Unreachable    nobody answered at all
    """


class Forbidden(HookError):
    """Nothing was sent."""


class Rejected(HookError):
    """It was read and refused."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Unavailable(HookError):
    """Not now, or nobody knows."""

    def __init__(self, message: str, until: int | None = None) -> None:
        super().__init__(message)
        self.until = until


class Unreachable(Unavailable):
    """Nobody answered at all."""


class Hooks:
    """Sends with one secret; an async context manager. Calls raise `HookError`.

    `transport`: what sends, past every proxy of the environment, and closed with this; None: as the environment says.
    """

    def __init__(
        self,
        secret: str,
        *,
        clock: Callable[[], int] = wall_clock,
        timeout: float = TIMEOUT,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        if not secret:
            raise ValueError("a signature needs a secret")
        self._secret = secret.encode()
        self._clock = clock
        self._timeout = timeout
        # An answer that leads elsewhere is no answer; and nobody reads what a stranger sets as cookies.
        self._http = httpx2.AsyncClient(
            timeout=httpx2.Timeout(timeout),
            follow_redirects=False,
            transport=transport,
            trust_env=transport is None,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Let go of the connections."""
        await self._http.aclose()

    async def post(self, url: str, event: str, delivery: str, document: Mapping[str, Any]) -> None:
        """Tell it; returns when a 2xx came back. Redirects are not followed."""
        body = clean(json.dumps(document, ensure_ascii=False, separators=(",", ":"))).encode()
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "pilot",
            "X-Pilot-Event": event,
            "X-Pilot-Delivery": delivery,
            "X-Pilot-Signature": signature(self._secret, body),
        }
        host = place(url)
        try:
            # The body of the answer is nobody's business: it may be endless.
            async with (
                asyncio.timeout(self._timeout),
                self._http.stream("POST", url, content=body, headers=headers) as answer,
            ):
                status, wait = answer.status_code, answer.headers.get("retry-after")
        except ForbiddenAddress as error:
            raise Forbidden(str(error)) from None
        except (TimeoutError, httpx2.TimeoutException):
            raise Unreachable(f"{host} gave no answer in {self._timeout:g} s") from None
        except httpx2.InvalidURL:
            raise Forbidden(f"{host} can't be called: that is no URL") from None
        except (httpx2.HTTPError, OSError, ValueError) as error:
            raise Unreachable(f"{host} can't be reached ({type(error).__name__})") from None
        if 200 <= status < 300:
            return
        if status in (408, 425, 429) or status >= 500:
            raise Unavailable(f"{host} answered {status}", self._until(wait))
        words = f"{host} answered {status}" + (", and redirects are not followed" if status < 400 else "")
        raise Rejected(words, status)

    def _until(self, wait: str | None) -> int | None:
        """Of Retry-After, in seconds or as a date."""
        if wait is None:
            return None
        now = self._clock()
        if wait.strip().isdecimal() and wait.isascii() and len(wait) < 12:
            at = now + int(wait) * 1000
        else:
            try:
                at = round(parsedate_to_datetime(wait).timestamp() * 1000)
            except (ValueError, TypeError, OverflowError):
                return None
        return min(max(at, now), now + LONGEST_REST)


def signature(secret: bytes, body: bytes) -> str:
    """What proves that the body is from whoever knows the secret."""
    return f"sha256={hmac.new(secret, body, hashlib.sha256).hexdigest()}"


def place(url: str) -> str:
    """An address without what may be secret in it: its host."""
    try:
        return urlsplit(url).hostname or "the address"
    except ValueError:
        return "the address"


def address_name(url: str) -> str:
    """A short name of an address that gives nothing of it away."""
    return hashlib.sha256(url.encode(errors="replace")).hexdigest()[:12]


def kept_secret(state_dir: Path) -> str:
    """The secret in the state directory, made at the first call; readable by its owner only. Raises `OSError`."""
    path = state_dir / KEPT_AS
    with contextlib.suppress(FileNotFoundError):
        return _read(path)
    # Written whole under another name first: a process beside this one finds all of it or nothing.
    fresh = state_dir / f".{KEPT_AS}.{secrets.token_hex(8)}"
    handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(handle, "w") as file:
            file.write(secrets.token_urlsafe(32) + "\n")
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(fresh, path)
    finally:
        fresh.unlink()
    return _read(path)


def _read(path: Path) -> str:
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)) as file:
        found = file.read(4096).strip()
    if not found:
        raise OSError(f"{path} is empty; remove it, and a new secret is made")
    return found
