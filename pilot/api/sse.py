"""Server-sent events over one connection: an answer that goes on until its reader leaves or is sent away."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any, Protocol

import structlog
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from pilot.api.problems import problem
from pilot.domain.errors import PilotError

log = structlog.get_logger()
HEARTBEAT = 15.0
"""Seconds after which a comment says that the connection still stands."""
RETRY = b"retry: 2000\n\n"
BEAT = b":\n\n"
HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no"}


class Listener:
    """Whoever waits at one connection: woken when there is something, ended from wherever."""

    def __init__(self, token: str, abort: Callable[[], None]) -> None:
        self.token = token
        self.ended = False
        self.sending = False
        self._abort = abort
        self._woken = asyncio.Event()

    def wake(self) -> None:
        """There may be something to send."""
        self._woken.set()

    def end(self) -> None:
        """Nothing more is sent; who does not take what was sent already is cut off."""
        self.ended = True
        if self.sending:
            self._abort()
        self._woken.set()

    async def wait(self, seconds: float) -> bool:
        """Whether it was woken within this time."""
        try:
            async with asyncio.timeout(seconds):
                await self._woken.wait()
        except TimeoutError:
            return False
        self._woken.clear()
        return True


class Places(Protocol):
    """Who lets listeners in."""

    def enter(self, listener: Listener) -> str:
        """Let it in; or why not."""
        ...

    def leave(self, listener: Listener) -> None:
        """It has gone."""
        ...


class EventStream(Response):
    """Sends what `body` gives, as long as the listener is not ended."""

    media_type = "text/event-stream"

    def __init__(self, places: Places, listener: Listener, body: Callable[[], AsyncGenerator[bytes, None]]) -> None:
        super().__init__(headers=HEADERS)
        del self.headers["content-length"]
        self._places = places
        self._listener = listener
        self._body = body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        refusal = self._places.enter(self._listener)
        if refusal:
            await problem(503, refusal)(scope, receive, send)
            return
        watching = asyncio.create_task(_watch(receive, self._listener))
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await self._send(send, RETRY)
            await self._all(send)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self._places.leave(self._listener)
            watching.cancel()

    async def _all(self, send: Send) -> None:
        async with aclosing(self._body()) as body:
            try:
                async for chunk in body:
                    if self._listener.ended:
                        return
                    await self._send(send, chunk)
            except PilotError as error:  # it resumes behind what it has got
                log.warning("stream.broke_off", error=str(error))

    async def _send(self, send: Send, chunk: bytes) -> None:
        self._listener.sending = True
        try:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        finally:
            self._listener.sending = False


async def _watch(receive: Receive, listener: Listener) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    listener.end()


def message(document: Any, id: str, name: str = "") -> bytes:
    """One event. JSON has no line break outside of its escapes, so that the data is one line."""
    named = f"event: {name}\n" if name else ""
    return f"id: {id}\n{named}data: {json.dumps(document, separators=(',', ':'))}\n\n".encode()
