"""A way to a server that can be made a bad one: silent, slow, cut, or cut just where a COMMIT is answered."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

_CHUNK = 1 << 16
_TICK = 0.02
_COMMITTED = b"COMMIT\0"
"""What the server's answer to a COMMIT has in it; what it was asked may be the name of a prepared one."""


@dataclass
class _Way:
    """One connection through it."""

    client: socket.socket
    server: socket.socket
    late: list[tuple[float, socket.socket, bytes]] = field(default_factory=list)

    def other(self, one: socket.socket) -> socket.socket:
        return self.server if one is self.client else self.client


class Proxy:
    """On a free port of `host`, to `target`; one thread. Its faults may be changed at any time, from any thread.

    `silent`: nothing is forwarded, and nobody is told, as when a cable is pulled; what was sent meanwhile goes on
    afterwards. `delay`: seconds for each piece. `lose_commits`: of the next so many COMMITs nobody hears that they
    were done: the connection is cut when the server says so.
    """

    def __init__(self, target: tuple[str, int] | str, host: str = "127.0.0.1") -> None:
        self._target = target
        self._listener = socket.create_server((host, 0), backlog=128)
        self.host = host
        self.port = int(self._listener.getsockname()[1])
        self.silent = False
        self.delay = 0.0
        self.lose_commits = 0
        self._cutting = False
        self._ended = False
        self._selector = selectors.DefaultSelector()
        self._ways: dict[socket.socket, _Way] = {}
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ended = True
        self._thread.join()

    def cut(self) -> None:
        """End every connection through it; new ones may come."""
        self._cutting = True
        while self._cutting and self._thread.is_alive():
            time.sleep(0.001)

    def _run(self) -> None:
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ)
        while not self._ended:
            if self._cutting:
                for way in list(self._ways.values()):
                    self._close(way)
                self._cutting = False
            if self.silent:
                time.sleep(_TICK / 4)
                continue
            soon = min((late[0] for way in self._ways.values() for late in way.late), default=None)
            wait = _TICK if soon is None else min(max(soon - time.monotonic(), 0.0), _TICK)
            for key, _ in self._selector.select(wait):
                self._ready(key.fileobj)  # type: ignore[arg-type]
            self._send_late()
        for way in list(self._ways.values()):
            self._close(way)
        self._selector.close()
        self._listener.close()

    def _ready(self, source: socket.socket) -> None:
        if source is self._listener:
            self._accept()
        elif (way := self._ways.get(source)) is not None:
            self._forward(way, source)

    def _accept(self) -> None:
        with contextlib.suppress(BlockingIOError):
            client, _ = self._listener.accept()
            try:
                server = self._connected()
            except OSError:
                client.close()
                return
            way = _Way(client, server)
            for one in (client, server):
                one.setblocking(True)
                if one.family != socket.AF_UNIX:
                    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._ways[one] = way
                self._selector.register(one, selectors.EVENT_READ)

    def _connected(self) -> socket.socket:
        if isinstance(self._target, tuple):
            return socket.create_connection(self._target, timeout=5)
        server = socket.socket(socket.AF_UNIX)
        server.connect(self._target)
        return server

    def _forward(self, way: _Way, source: socket.socket) -> None:
        try:
            data = source.recv(_CHUNK)
        except OSError:
            data = b""
        if not data:
            self._close(way)
        elif source is way.server and self.lose_commits and _COMMITTED in data:
            self.lose_commits -= 1
            self._close(way)
        elif self.delay:
            way.late.append((time.monotonic() + self.delay, way.other(source), data))
        else:
            self._send(way, way.other(source), data)

    def _send_late(self) -> None:
        now = time.monotonic()
        for one, way in list(self._ways.items()):
            while one is way.client and way.late and way.late[0][0] <= now:
                _, to, data = way.late.pop(0)
                self._send(way, to, data)

    def _send(self, way: _Way, to: socket.socket, data: bytes) -> None:
        try:
            to.sendall(data)
        except OSError:
            self._close(way)

    def _close(self, way: _Way) -> None:
        for one in (way.client, way.server):
            if self._ways.pop(one, None) is not None:
                self._selector.unregister(one)
            one.close()
