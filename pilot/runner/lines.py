"""Output in pieces, as lines: bounded, in order of arrival, none lost when a reader is cancelled."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import NamedTuple

from pilot.runner.pipes import NAMES, PIPE_SIZE, Pipes, Stream

_TURN = 1 << 16
"""Bytes split into lines before others get a turn of the event loop."""


class Line(NamedTuple):
    """One line without its newline. `cut`: it was longer than the limit and the rest was dropped."""

    stream: Stream
    data: bytes
    cut: bool


class Lines(AsyncIterator[Line]):
    """All lines of both streams. A cancelled `anext` loses nothing; the next one goes on."""

    def __init__(self, pipes: Pipes, limit: int) -> None:
        self._pipes = pipes
        self._ready: deque[Line] = deque()
        self._splitters = {name: _Splitter(name, limit, self._ready) for name in NAMES.values()}
        self._over = False

    async def __anext__(self) -> Line:
        while not self._ready:
            if self._over:
                raise StopAsyncIteration
            piece = await self._pipes.get(_TURN)
            if piece is None:
                self._over = True
                for splitter in self._splitters.values():
                    splitter.finish()
            else:
                self._splitters[piece[0]].feed(piece[1])
                await asyncio.sleep(0)
        return self._ready.popleft()


class Chunks(AsyncIterator[tuple[Stream, bytes]]):
    """The same as raw pieces."""

    def __init__(self, pipes: Pipes, gather: float) -> None:
        self._pipes = pipes
        self._gather = gather

    async def __anext__(self) -> tuple[Stream, bytes]:
        piece = await self._pipes.get(PIPE_SIZE, self._gather)
        if piece is None:
            raise StopAsyncIteration
        return piece


class _Splitter:
    """Cuts pieces of one stream into lines, keeping at most `limit` bytes of each."""

    def __init__(self, stream: Stream, limit: int, ready: deque[Line]) -> None:
        self._stream = stream
        self._limit = limit
        self._ready = ready
        self._part = bytearray()
        self._skipping = False

    def feed(self, data: bytes) -> None:
        """Take the next piece, and put out every line that is complete or too long."""
        first, *rest = data.split(b"\n")
        self._grow(first)
        if not rest:
            return
        self._end()
        last = rest.pop()
        stream, limit = self._stream, self._limit
        self._ready.extend(
            [Line(stream, piece, False) if len(piece) <= limit else Line(stream, piece[:limit], True) for piece in rest]
        )
        self._grow(last)

    def finish(self) -> None:
        """Put out the last line, when it had no newline."""
        if self._part:
            self._end()
        self._skipping = False

    def _grow(self, piece: bytes) -> None:
        if self._skipping or not piece:
            return
        room = self._limit - len(self._part)
        self._part += piece[:room]
        if len(piece) > room:
            self._ready.append(Line(self._stream, bytes(self._part), cut=True))
            self._part.clear()
            self._skipping = True

    def _end(self) -> None:
        if not self._skipping:
            self._ready.append(Line(self._stream, bytes(self._part), cut=False))
            self._part.clear()
        self._skipping = False
