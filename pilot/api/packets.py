"""An answer's head and body leave in one packet: uvicorn writes them one after the other, and each write is a call
of the system that costs more than all of the routing.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class Joining(asyncio.Transport):
    """A transport that hands on what is written within one round of the loop together."""

    def __init__(self, transport: asyncio.Transport) -> None:
        super().__init__()
        self._transport = transport
        self._parts: list[bytes] = []

    def write(self, data: Any) -> None:
        """Soon, with what else comes now."""
        if not self._parts:
            asyncio.get_running_loop().call_soon(self._flush)
        self._parts.append(bytes(data))

    def _flush(self) -> None:
        parts, self._parts = self._parts, []
        if parts and not self._transport.is_closing():
            self._transport.write(b"".join(parts))

    def close(self) -> None:
        """End the connection behind what was written."""
        self._flush()
        self._transport.close()

    def abort(self) -> None:
        """End it at once."""
        self._parts.clear()
        self._transport.abort()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """See `asyncio.BaseTransport`."""
        return self._transport.get_extra_info(name, default)

    def is_closing(self) -> bool:
        """See `asyncio.BaseTransport`."""
        return self._transport.is_closing()

    def pause_reading(self) -> None:
        """See `asyncio.ReadTransport`."""
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        """See `asyncio.ReadTransport`."""
        self._transport.resume_reading()

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """See `asyncio.BaseTransport`."""
        self._transport.set_protocol(protocol)


HEAD = 20.0
"""Seconds that the head of a request may take, from the connection or from its first byte on."""


class HttpProtocol(HttpToolsProtocol):
    """uvicorn's, over such a transport; it is ended when it asks nothing: each holds a file, of which there are few."""

    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See `asyncio.Protocol`."""
        super().connection_made(Joining(transport))
        self._await_head()

    def on_message_begin(self) -> None:
        """See `HttpToolsProtocol`."""
        super().on_message_begin()
        self._await_head()

    def on_headers_complete(self) -> None:
        """See `HttpToolsProtocol`."""
        self._await_no_head()
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._await_no_head()
        super().connection_lost(exc)

    def _await_head(self) -> None:
        if self._late is None:
            self._late = self.loop.call_later(HEAD, self.transport.abort)

    def _await_no_head(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None
