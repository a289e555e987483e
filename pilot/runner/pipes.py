"""What goes through a child's pipes: taken in as it comes, bounded, in order."""

from __future__ import annotations

import array
import asyncio
import errno
import fcntl
import termios
from collections import deque
from typing import Literal, cast

Stream = Literal["stdout", "stderr"]

NAMES: dict[int, Stream] = {1: "stdout", 2: "stderr"}
PIPE_SIZE = 1 << 20
HIGH = 1 << 20
"""Bytes taken in and not yet read by anyone at which the child has to wait."""
LOW = HIGH // 4
MUCH = 1 << 16
"""Bytes for which nobody waits for more."""
DROP = 4 * HIGH
"""Bytes kept for a reader that may still come while the child is being ended; what is over is dropped."""
SETTLE = 0.2
"""Seconds after the child's exit in which what its own children write still counts."""


class Pipes(asyncio.SubprocessProtocol):
    """Both output streams of one child, between the event loop and one reader.

    The end comes when the child has exited and what it wrote was read; a grandchild that holds a pipe open, or
    writes on and on, delays it by `SETTLE` at most. (asyncio's own streams wait for such a grandchild for ever.)
    """

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.exited: asyncio.Future[None] = loop.create_future()
        self.closed: asyncio.Future[None] = loop.create_future()
        self._loop = loop
        self._child: asyncio.SubprocessTransport | None = None
        self._pieces: deque[tuple[Stream, bytes]] = deque()
        self._size = 0
        self._news = asyncio.Event()
        self._much = asyncio.Event()
        self._open: dict[int, asyncio.ReadTransport] = {}
        self._paused = False
        self._dropping = False
        self._settled = False
        self._probing = False
        self._over = False
        self._after_exit = dict.fromkeys(NAMES, 0)

    # -- the loop's side --------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the pipes over; the larger they are, the fewer turns of the loop a megabyte needs."""
        self._child = cast("asyncio.SubprocessTransport", transport)
        for fd in NAMES:
            pipe = cast("asyncio.ReadTransport", self._child.get_pipe_transport(fd))
            self._open[fd] = pipe
            _widen(pipe)

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        """Take a piece in, and have the child wait when nobody reads."""
        if self._over or (self._dropping and self._size > DROP):
            return
        self._pieces.append((NAMES[fd], data))
        self._size += len(data)
        self._news.set()
        if self._size >= MUCH:
            self._much.set()
        if self._size > HIGH and not self._dropping:
            self._pause()
        if self.exited.done():
            self._after_exit[fd] += len(data)
            self._probe()

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        """One stream has ended; the last one's end is the output's, once the child has exited."""
        self._open.pop(fd, None)
        if self.exited.done() and not self._open:
            self._finish()

    def process_exited(self) -> None:
        """Whoever still holds the pipes has `SETTLE` seconds."""
        if not self.exited.done():
            self.exited.set_result(None)
        if not self._open:
            self._finish()
        else:
            self._loop.call_later(SETTLE, self._settle)

    def connection_lost(self, exc: Exception | None) -> None:
        """All pipes are closed, and the child is reaped."""
        if not self.closed.done():
            self.closed.set_result(None)

    # -- the reader's side ------------------------------------------------------------------------------------

    async def get(self, most: int, gather: float = 0.0) -> tuple[Stream, bytes] | None:
        """What came since, at most that many bytes and up to where the stream changes; None at the end.

        Pieces that piled up are joined, so that a reader that is slow gets fewer and larger ones. Who had to wait
        for one waits `gather` seconds for more.
        """
        while not self._pieces:
            if self._over:
                return None
            self._news.clear()
            await self._news.wait()
            if gather:
                await self._more(gather)
        stream, data = self._pieces.popleft()
        if self._pieces and self._pieces[0][0] == stream and len(data) < most:
            more, size = [data], len(data)
            while self._pieces and self._pieces[0][0] == stream and size < most:
                more.append(self._pieces.popleft()[1])
                size += len(more[-1])
            data = b"".join(more)
        if len(data) > most:
            self._pieces.appendleft((stream, data[most:]))
            data = data[:most]
        self._size -= len(data)
        if self._paused and self._size <= LOW:
            self._resume()
        return stream, data

    async def _more(self, seconds: float) -> None:
        self._much.clear()
        if self._size < MUCH and not self._over:
            timer = self._loop.call_later(seconds, self._much.set)
            try:
                await self._much.wait()
            finally:
                timer.cancel()

    def drop(self) -> None:
        """From now on a full buffer loses what comes, instead of keeping the child from ending itself."""
        self._dropping = True
        self._resume()

    def close(self) -> None:
        """Let go of a child that was never handed over."""
        if self._child is not None:
            self._child.close()

    # -- the end ----------------------------------------------------------------------------------------------

    def _settle(self) -> None:
        self._settled = True
        self._probe()

    def _probe(self) -> None:
        """Look whether the pipes are empty, at a moment at which nothing that was read is still on its way."""
        if not self._settled or self._probing or self._over:
            return
        self._probing = True
        for pipe in self._open.values():
            pipe.pause_reading()
        self._loop.call_soon(self._conclude)

    def _conclude(self) -> None:
        self._probing = False
        if all(_waiting(p) == 0 or self._after_exit[fd] > 2 * PIPE_SIZE for fd, p in self._open.items()):
            self._finish()
        elif not self._paused:
            self._resume()

    def _finish(self) -> None:
        self._over = True
        self._news.set()
        self._much.set()
        for pipe in self._open.values():
            pipe.pause_reading()

    def _pause(self) -> None:
        self._paused = True
        for pipe in self._open.values():
            pipe.pause_reading()

    def _resume(self) -> None:
        self._paused = False
        if not self._over:
            for pipe in self._open.values():
                pipe.resume_reading()


class Stdin(asyncio.BaseProtocol):
    """The child's standard input. A child that does not read it, or is gone, is no error of ours."""

    def __init__(self) -> None:
        self._free = asyncio.Event()
        self._free.set()
        self._pipe: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The pipe can take data."""
        self._pipe = cast("asyncio.WriteTransport", transport)

    def pause_writing(self) -> None:
        """The pipe is full."""
        self._free.clear()

    def resume_writing(self) -> None:
        """The child has read."""
        self._free.set()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nobody reads any more."""
        self._pipe = None
        self._free.set()

    def put(self, data: bytes) -> None:
        """Send without waiting; what the pipe can't take is kept."""
        if self._pipe is not None and not self._pipe.is_closing():
            self._pipe.write(data)

    async def write(self, data: bytes) -> None:
        """Send, and wait while the pipe is full. Raises `BrokenPipeError` when nobody reads."""
        if self._pipe is not None and not self._pipe.is_closing():
            self._pipe.write(data)
            await self._free.wait()
        if self._pipe is None or self._pipe.is_closing():
            raise BrokenPipeError(errno.EPIPE, "the programme no longer reads its input")

    def close(self) -> None:
        """End of input, after what was written."""
        if self._pipe is not None and not self._pipe.is_closing():
            self._pipe.write_eof()

    def abort(self) -> None:
        """Close now, and forget what was not read."""
        if self._pipe is not None:
            self._pipe.abort()


def _widen(pipe: asyncio.ReadTransport) -> None:
    try:
        fcntl.fcntl(pipe.get_extra_info("pipe").fileno(), fcntl.F_SETPIPE_SZ, PIPE_SIZE)
    except (AttributeError, OSError, ValueError):  # not Linux, over the user's quota, or closed already
        return


def _waiting(pipe: asyncio.ReadTransport) -> int:
    """Bytes in the pipe that nobody has read."""
    count = array.array("i", [0])
    try:
        fcntl.ioctl(pipe.get_extra_info("pipe").fileno(), termios.FIONREAD, count)
    except (OSError, ValueError):
        return 0
    return count[0]
