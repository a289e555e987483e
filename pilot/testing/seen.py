"""Where a backend under test puts what happens."""

from __future__ import annotations

import asyncio

from pilot.domain.agent import OutputKind
from pilot.domain.errors import LeaseLost
from pilot.domain.outcome import Usage


class Seen:
    """An Emit that keeps everything, or (`keep` False) counts it only."""

    def __init__(self, *, keep: bool = True) -> None:
        self.pieces: list[tuple[OutputKind, bytes]] = []
        self.sessions: list[str] = []
        self.used: list[Usage] = []
        self.size = 0
        self._keep = keep
        self._news = asyncio.Event()

    async def output(self, kind: OutputKind, data: bytes) -> None:
        assert data
        self.size += len(data)
        if self._keep:
            self.pieces.append((kind, data))
        self._news.set()

    async def session(self, session_id: str) -> None:
        self.sessions.append(session_id)

    def usage(self, usage: Usage) -> None:
        self.used.append(usage)

    @property
    def all(self) -> bytes:
        return b"".join(data for _, data in self.pieces)

    def of(self, kind: OutputKind) -> bytes:
        return b"".join(data for one, data in self.pieces if one is kind)

    async def until(self, size: int, seconds: float = 30) -> None:
        """Wait until so many bytes came."""
        async with asyncio.timeout(seconds):
            while self.size < size:
                self._news.clear()
                await self._news.wait()


class Lost(Seen):
    """The Emit of a claim that somebody else has ended."""

    async def output(self, kind: OutputKind, data: bytes) -> None:
        raise LeaseLost("this claim was ended by someone else")
