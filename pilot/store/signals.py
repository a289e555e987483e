"""Wake-ups between processes on one machine: a named pipe per listener, beside the database.

A write to a pipe reaches a waiting event loop at once and costs an idle one nothing. They are hints: a full pipe, a
missing directory or a crash loses them, and `Database.changed` finds out later what they would have said.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path

from pilot.store.database import Listener


class FifoSignals:
    """Sends tokens to every process that listens, and to the listeners of this one."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._listeners: list[Listener] = []
        self._own: Path | None = None
        self._fd = -1

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Call `listener` in this loop with every set of tokens from now on."""
        self._listeners.append(listener)
        if self._own is None:
            with contextlib.suppress(OSError):  # no pipe: the timer remains
                self._open()
        return lambda: self._listeners.remove(listener)

    def _open(self) -> None:
        self._folder.mkdir(mode=0o700, exist_ok=True)
        name = uuid.uuid4().hex
        new, own = self._folder / f"{name}.new", self._folder / f"{name}.fifo"
        os.mkfifo(new, 0o600)
        # Open for both ends: no end-of-file when a sender leaves. Renamed only when it has its reader, so that a
        # sender that finds a pipe without one knows that its owner is dead.
        self._fd = os.open(new, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        new.rename(own)
        self._own = own
        asyncio.get_running_loop().add_reader(self._fd, self._readable)

    def _readable(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._tell(os.read(self._fd, 65536).decode("ascii", "ignore").split())

    def _tell(self, tokens: Iterable[str]) -> None:
        found = frozenset(tokens)
        for listener in tuple(self._listeners):
            listener(found)

    def send(self, tokens: Iterable[str]) -> None:
        """Tell everybody; never blocks, never fails."""
        tokens = frozenset(tokens)
        self._tell(tokens)
        message = (" ".join(sorted(tokens)) + " ").encode()
        if len(message) > 4000:  # more than a pipe takes in one piece: say only that there is much
            message = b"* "
        try:
            names = os.listdir(self._folder)  # noqa: PTH208  on the path of every commit; names are enough
        except OSError:
            return
        for name in names:
            path = self._folder / name
            if name.endswith(".fifo") and path != self._own:
                self._poke(path, message)

    @staticmethod
    def _poke(path: Path, message: bytes) -> None:
        try:
            fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            if error.errno == errno.ENXIO:  # its reader is gone; a process out of descriptors says nothing of it
                with contextlib.suppress(OSError):
                    path.unlink()
            return
        try:
            with contextlib.suppress(OSError):  # full: it has reason enough to wake
                os.write(fd, message)
        finally:
            os.close(fd)

    def close(self) -> None:
        """Stop listening."""
        if self._own is None:
            return
        with contextlib.suppress(RuntimeError):
            asyncio.get_running_loop().remove_reader(self._fd)
        os.close(self._fd)
        with contextlib.suppress(OSError):
            self._own.unlink()
        self._own = None
