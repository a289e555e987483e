"""An event stream that goes on where it broke off."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

import httpx2

from pilot.client.wire import Wire
from pilot.domain.errors import Busy, PilotError
from pilot.domain.ports import Document

EVENT_LIMIT = 8 << 20
"""Bytes of one event, at most."""
PATIENCE = 60.0
"""Seconds without a connection after which it is given up."""
LAST = "end"
"""The kind of the event after which a stream has ended, and is not taken up again."""


class Followed:
    """One stream, from behind the event `after`. Raises `Busy` when the server stays away."""

    def __init__(self, wire: Wire, path: str, params: Mapping[str, Any], after: str | None) -> None:
        self._wire = wire
        self._path = path
        self._params = params
        self._after = after
        self._pause = 0.5

    async def documents(self) -> AsyncIterator[Document]:
        """What each event says."""
        async for _, document in self.pairs():
            yield document

    async def pairs(self) -> AsyncIterator[tuple[str, Document]]:
        """Kind and document of each."""
        loop = asyncio.get_running_loop()
        seen = loop.time()
        while True:
            try:
                async with self._wire.stream(self._path, after=self._after, params=self._params) as answer:
                    seen = loop.time()
                    async for event in httpx2.EventSource(answer, max_event_size=EVENT_LIMIT):
                        seen = loop.time()
                        if event.retry is not None:
                            self._pause = min(max(event.retry / 1000, 0.05), 10.0)
                        if event.data:
                            told = _document(event.data)
                            named = event.event not in ("", "message")
                            yield event.event if named else str(told.get("type", "")), told
                        if event.id:
                            self._after = event.id
                        if event.event == LAST:
                            return
            except (Busy, httpx2.SSEError) as error:
                if loop.time() - seen > PATIENCE:
                    raise Busy(f"{self._wire.place} stays away: {error}") from None
            await asyncio.sleep(self._pause)


def _document(text: str) -> Document:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        raise PilotError("the server sent an event that is no JSON: it may be another version's") from None
    return found if isinstance(found, dict) else {"data": found}
