"""One call over HTTP: sent, sent again where that is safe, and its answer or its error in pilot's own terms."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx2

from pilot.domain.errors import Busy, LeaseLost, NotFound, PilotError, UsageError
from pilot.domain.text import one_line

TRIES = 5
"""How often a call that may be repeated is sent, at most."""
PAUSE = 0.2
"""Seconds before the second time, doubled each time; the upper half of it is left to chance."""
LONGEST = 5.0
"""Seconds that are waited for an answer to the next try, also when the server asks for more."""
CONNECT = 5.0
ANSWER = 30.0
"""Seconds for an answer, beyond what the server was asked to wait."""
_LATER = (408, 425, 429, 502, 503, 504)
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


def checked_url(url: str) -> str:
    """A server's address without a slash at its end. Raises `UsageError`; never repeats what may be a secret."""
    try:
        parts = urlsplit(url.strip())
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise UsageError("the server's address is none; give it as http://HOST:PORT") from None
    if parts.scheme not in ("http", "https") or not host or parts.query or parts.fragment:
        raise UsageError("a server's address begins with http:// or https://, such as http://127.0.0.1:7337")
    if parts.username is not None or parts.password is not None:
        raise UsageError("a server's address holds no password; give the token as $PILOT_TOKEN or --token-file")
    return url.strip().rstrip("/")


class Wire:
    """The connections to one server. Raises `PilotError`s only."""

    def __init__(self, url: str, token: str, *, jitter: Callable[[], float] = random.random) -> None:
        self._url = checked_url(url)
        if not token or not token.isascii() or not token.isprintable() or " " in token:
            raise UsageError("no token: give it as $PILOT_TOKEN or --token-file; `pilot token create` makes one")
        self.place = urlsplit(self._url).netloc
        host = urlsplit(self._url).hostname
        self._jitter = jitter
        self._pause = PAUSE
        # A redirect would carry the token elsewhere; and no proxy leads to this machine.
        self._http = httpx2.AsyncClient(
            headers={"Authorization": f"Bearer {token}", "User-Agent": "pilot"},
            timeout=httpx2.Timeout(ANSWER, connect=CONNECT),
            follow_redirects=False,
            trust_env=host not in _LOOPBACK,
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=20),
        )

    async def close(self) -> None:
        """Let go of the connections."""
        await self._http.aclose()

    async def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        again: bool,
        params: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        wait: float = 0.0,
        raw: bool = False,
    ) -> Any:
        """The answer's document, or its bytes (`raw`).

        `again`: the same call twice does no harm, so it is sent again when nobody knows what became of it. One that
        never reached the server is, always. `wait`: seconds that the server may take on purpose.
        """
        content = None if body is None else _encoded(body)
        sent = {**(headers or {}), **({} if content is None else {"Content-Type": "application/json"})}
        given = {name: value for name, value in (params or {}).items() if value is not None and value != ()}
        timeout = httpx2.Timeout(ANSWER + wait, connect=CONNECT)
        for number in range(1, TRIES + 1):
            asked: float | None = None
            try:
                answer = await self._http.request(
                    method, self._url + path, params=given, content=content, headers=sent, timeout=timeout
                )
            except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout) as error:
                failure, safe = self._away(error), True
            except httpx2.InvalidURL:
                raise UsageError("the server's address is none; give it as http://HOST:PORT") from None
            except (httpx2.HTTPError, OSError) as error:
                failure, safe = Busy(f"{self.place} gave no answer ({type(error).__name__})"), again
            else:
                if 200 <= answer.status_code < 300:
                    return answer.content if raw else self._document(answer)
                problem = self._problem(answer)
                if answer.status_code not in _LATER:
                    raise problem
                asked = _seconds(answer.headers.get("retry-after"))
                failure, safe = problem, again
            if not safe or number == TRIES or (asked or 0.0) > LONGEST:
                raise failure
            full = min(LONGEST, self._pause * 2 ** (number - 1))
            await asyncio.sleep(max(asked or 0.0, full * (0.5 + self._jitter() / 2)))
        raise AssertionError("unreachable")

    @asynccontextmanager
    async def stream(
        self, path: str, *, after: str | None, params: Mapping[str, Any]
    ) -> AsyncIterator[httpx2.Response]:
        """An endless answer, once. `after`: the last event that was seen; raises `Busy` when it may be tried again."""
        headers = {"Accept": "text/event-stream", "Cache-Control": "no-store"}
        if after is not None:
            headers["Last-Event-ID"] = after
        given = {name: value for name, value in params.items() if value is not None and value != ()}
        timeout = httpx2.Timeout(60.0, connect=CONNECT)  # a comment comes every 15 s
        try:
            async with self._http.stream(
                "GET", self._url + path, params=given, headers=headers, timeout=timeout
            ) as answer:
                if answer.status_code != 200:
                    await answer.aread()
                    raise self._problem(answer)
                yield answer
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            raise self._away(error) from None
        except (httpx2.HTTPError, OSError) as error:
            raise Busy(f"{self.place} broke off ({type(error).__name__})") from None

    def _away(self, error: Exception) -> PilotError:
        return Busy(f"{self.place} can't be reached ({type(error).__name__}): is `pilot serve` running there?")

    def _document(self, answer: httpx2.Response) -> Any:
        try:
            return answer.json()
        except (ValueError, RecursionError):
            raise PilotError(f"{self.place} did not answer with JSON: is it a pilot's address?") from None

    def _problem(self, answer: httpx2.Response) -> PilotError:
        """The error that this answer is."""
        status, words = answer.status_code, _words(answer)
        if status == 401:
            return UsageError(
                f"{self.place} does not know this token (it may be revoked or expired); "
                "`pilot token create NAME --scope work` on the server's machine makes a new one"
            )
        if status == 403:
            return UsageError(f"{self.place} does not allow this: {words}. A token of a higher scope may do it")
        if status == 404:
            return NotFound(words)
        if status == 409:
            return (LeaseLost if "/work/" in answer.request.url.path else UsageError)(words)
        if status in _LATER:
            return Busy(f"{self.place} answered {status}: {words}")
        if status >= 500:
            return PilotError(f"{self.place} failed ({status}): {words}; its log says more")
        if status < 400:
            return UsageError(f"{self.place} answered {status}: it leads elsewhere; give the address that it leads to")
        return UsageError(words)


def _encoded(body: Any) -> bytes:
    try:
        return json.dumps(body, ensure_ascii=True, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"this can't be sent as JSON: {error}") from None


def _words(answer: httpx2.Response) -> str:
    """What a problem document says, and which of its fields it is about."""
    try:
        document = answer.json()
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        return f"{answer.status_code} {answer.reason_phrase}".strip()
    said = one_line(str(document.get("detail") or document.get("title") or answer.status_code), 1000)
    errors = document.get("errors")
    if isinstance(errors, list):
        told = [
            f"{one_line(str(error.get('where', '')), 100)}: {one_line(str(error.get('what', '')), 300)}"
            for error in errors[:10]
            if isinstance(error, dict) and one_line(str(error.get("what", "")), 300) not in said
        ]
        said = "\n".join([said, *told])
    return said


def _seconds(text: str | None) -> float | None:
    if text is None or not text.strip().isdecimal() or len(text) > 9:
        return None
    return float(text)
