"""OpenCode's HTTP server, generation 1.x: the dozen calls that drive a session, and its stream of events.

Answers are handed on as they come, loosely typed: the server adds fields with every release. What is checked is that
an answer is JSON at all: the server gives its web page, with status 200, for every path that it does not know.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Self

import httpx2

Json = Any
Event = Mapping[str, Any]

CONNECT = 10.0
"""Seconds for a connection; the server may be starting."""
ANSWER = 60.0
"""Seconds for an answer: the first call for a directory starts that directory's instance."""
SILENCE = 30.0
"""Seconds without a byte after which a stream is dead: the server sends a heartbeat every 10."""
EVENT_LIMIT = 64 << 20
"""Characters of one event; a tool's output is in there several times."""


class OpenCodeError(Exception):
    """A call came to nothing.

    * OpenCodeError
      + Unreachable        nobody answers, or the connection broke: the call may or may not have been obeyed
      + Unauthorized       the server wants another user name or password
      + NotThisApi         something answers, but it does not speak this API
      + Rejected           the server answered with an error
    """


class Unreachable(OpenCodeError):
    """Nobody answers, or the connection broke; whether the call was obeyed is unknown."""


class Unauthorized(OpenCodeError):
    """The server wants another user name or password."""


class NotThisApi(OpenCodeError):
    """Something answers that does not speak this API. `version`: what it calls itself, where it does."""

    def __init__(self, message: str, version: str = "") -> None:
        super().__init__(message)
        self.version = version


class Rejected(OpenCodeError):
    """The server answered with an error: its HTTP `status`, and the `name` it gives to the error."""

    def __init__(self, message: str, status: int, name: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.name = name


class Client:
    """One server. An async context manager; calls raise `OpenCodeError`. `directory` is absolute, as in all calls."""

    def __init__(self, url: str, *, password: str | None = None, username: str = "opencode") -> None:
        self.url = url.rstrip("/")
        # trust_env: a proxy from the environment would get every word, the password included
        self._http = httpx2.AsyncClient(
            base_url=self.url,
            auth=None if password is None else (username, password),
            trust_env=False,
            timeout=httpx2.Timeout(ANSWER, connect=CONNECT),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def version(self, timeout: float = CONNECT) -> str:
        """What the server calls its version. Raises `NotThisApi` for another generation, or another program."""
        try:
            found = await self._call("GET", "/global/health", timeout=timeout)
        except (NotThisApi, Rejected):
            found = None
        if isinstance(found, dict) and found.get("healthy") is True and str(found.get("version", "")).startswith("1."):
            return str(found["version"])
        newer = str(found.get("version", "")) if isinstance(found, dict) else ""
        for path in ("/api/info", "/api/health"):
            try:
                answer = await self._call("GET", path, timeout=timeout)
            except (NotThisApi, Rejected):
                continue
            newer = newer or (str(answer.get("version", "")) if isinstance(answer, dict) else "")
        raise NotThisApi(f"{self.url} does not answer as OpenCode 1.x does", newer)

    async def providers(self, directory: str) -> Json:
        """The model providers that can be used there: `{"providers": [{"id", "models": {id: …}}, …]}`.

        To be asked for before a directory's first prompt: it has the server set up its providers. A prompt that is
        aborted meanwhile breaks that set-up for good.
        """
        return await self._call("GET", "/config/providers", directory=directory)

    async def create(self, directory: str, title: str) -> Json:
        """A new session; with a title, since the server else asks a model for one."""
        return await self._call("POST", "/session", directory=directory, body={"title": title})

    async def session(self, session: str) -> Json:
        """The session. Raises `Rejected` with status 404 when there is none."""
        return await self._call("GET", f"/session/{session}")

    async def children(self, session: str) -> Json:
        """The sessions of its sub-agents, a list."""
        return await self._call("GET", f"/session/{session}/children")

    async def messages(self, session: str) -> Json:
        """All messages, oldest first: `[{"info", "parts"}, …]`."""
        return await self._call("GET", f"/session/{session}/message")

    async def prompt(self, session: str, body: Mapping[str, Json]) -> None:
        """Have the prompt worked on; returns at once. With ids of one's own in `body` it may be sent again."""
        await self._call("POST", f"/session/{session}/prompt_async", body=body)

    async def abort(self, session: str) -> None:
        """Ask for the end of what it does. The answer proves nothing: look at `status`."""
        await self._call("POST", f"/session/{session}/abort")

    async def status(self, directory: str) -> Json:
        """What is busy: `{session: {"type": "busy" | "retry", …}}`; who is not there is idle."""
        return await self._call("GET", "/session/status", directory=directory)

    async def permissions(self, directory: str) -> Json:
        """Permissions that sessions wait for, a list; those of idle ones are of no account."""
        return await self._call("GET", "/permission", directory=directory)

    async def refuse(self, directory: str, permission: str) -> None:
        """Say no, without a word: the session stops."""
        path = f"/permission/{permission}/reply"
        await self._call("POST", path, directory=directory, body={"reply": "reject"})

    async def questions(self, directory: str) -> Json:
        """Questions that sessions wait for, a list."""
        return await self._call("GET", "/question", directory=directory)

    async def leave_unanswered(self, directory: str, question: str) -> None:
        """Give no answer: the session stops."""
        await self._call("POST", f"/question/{question}/reject", directory=directory)

    async def dispose(self) -> None:
        """End everything that the server runs, tools included; the server itself stays."""
        await self._call("POST", "/global/dispose", timeout=CONNECT)

    async def dispose_of(self, directory: str) -> None:
        """End everything of one directory, and have it set up anew by the next call: the cure for a broken set-up."""
        await self._call("POST", "/instance/dispose", directory=directory)

    @asynccontextmanager
    async def events(self, directory: str) -> AsyncIterator[AsyncIterator[str]]:
        """The events of exactly this directory from now on, each as JSON text: `{"type", "properties"}`.

        The first is `server.connected`; from then on none is lost until the stream ends, which raises `Unreachable`
        unless the server ended it. Nothing is repeated to who connects again.
        """
        timeout = httpx2.Timeout(CONNECT, read=SILENCE)
        with _Translated(self.url):
            async with self._http.stream("GET", "/event", params={"directory": directory}, timeout=timeout) as response:
                if response.status_code != 200:
                    await response.aread()
                    self._checked(response)
                yield self._events(response)

    async def _events(self, response: httpx2.Response) -> AsyncIterator[str]:
        with _Translated(self.url):
            async for event in httpx2.EventSource(response, max_event_size=EVENT_LIMIT):
                if event.data:
                    yield event.data

    async def _call(
        self,
        method: str,
        path: str,
        *,
        directory: str | None = None,
        body: Json = None,
        timeout: float = ANSWER,
    ) -> Json:
        params = {} if directory is None else {"directory": directory}
        with _Translated(self.url):
            response = await self._http.request(
                method, path, params=params, json=body, timeout=httpx2.Timeout(timeout, connect=min(timeout, CONNECT))
            )
        return self._checked(response)

    def _checked(self, response: httpx2.Response) -> Json:
        """The answer's JSON, None for an empty one."""
        code = response.status_code
        if code == 401:
            raise Unauthorized(f"{self.url} wants another user name or password")
        kind = response.headers.get("content-type", "").partition(";")[0].strip()
        body: Json = None
        if kind == "application/json":
            try:
                body = json.loads(response.content)
            except (ValueError, RecursionError) as error:
                raise NotThisApi(f"{self.url} gave an answer that is no JSON") from error
        if code >= 400:
            raise _rejected(code, body)
        if body is None and code != 204:
            raise NotThisApi(f"{self.url} answered {response.request.url.path} with {kind or 'nothing'}, not JSON")
        return body


def _rejected(code: int, body: Json) -> Rejected:
    said = body if isinstance(body, dict) else {}
    data = said.get("data")
    words = data.get("message") if isinstance(data, dict) else None
    name = said.get("name")
    return Rejected(f"{words or name or 'no reason given'} (HTTP {code})", code, name if isinstance(name, str) else "")


class _Translated:
    """What the HTTP library raises, in this module's words."""

    def __init__(self, url: str) -> None:
        self._url = url

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, httpx2.SSEError) and "content type" in str(error):
            raise NotThisApi(f"{self._url} has no stream of events: {error}") from error
        if isinstance(error, httpx2.HTTPError | httpx2.InvalidURL | httpx2.StreamError):
            raise Unreachable(f"{self._url}: {str(error) or type(error).__name__}") from error
