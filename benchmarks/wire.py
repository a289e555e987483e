"""As little of an HTTP client as the measuring of a server needs: what the client costs is not measured."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit


class Wire:
    """One keep-alive connection with one token; blocks."""

    def __init__(self, url: str, token: str) -> None:
        parts = urlsplit(url)
        self.host = f"{parts.hostname}:{parts.port}"
        self._token = token
        self._socket = socket.create_connection((parts.hostname or "", parts.port or 0), timeout=120)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._rest = b""

    def send(self, method: str, path: str, document: Mapping[str, Any] | None = None) -> None:
        """One request, in one piece."""
        body = b"" if document is None else json.dumps(document).encode()
        self._socket.sendall(
            f"{method} {path} HTTP/1.1\r\nHost: {self.host}\r\nAuthorization: Bearer {self._token}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            + body
        )

    def answer(self) -> tuple[int, Any]:
        """Its status and document."""
        while (end := self._rest.find(b"\r\n\r\n")) < 0:
            self._more()
        head, self._rest = self._rest[:end].lower(), self._rest[end + 4 :]
        at = head.index(b"content-length:") + 15
        length = int(head[at : (head.find(b"\r\n", at) + 1 or len(head) + 1) - 1])
        while len(self._rest) < length:
            self._more()
        body, self._rest = self._rest[:length], self._rest[length:]
        return int(head.split(b" ", 2)[1]), json.loads(body) if body else None

    def ask(self, method: str, path: str, document: Mapping[str, Any] | None = None) -> Any:
        """The document of the answer, which must be a good one."""
        self.send(method, path, document)
        status, found = self.answer()
        if status >= 300:
            raise RuntimeError(f"{method} {path}: {status} {found}")
        return found

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    def _more(self) -> None:
        data = self._socket.recv(1 << 16)
        if not data:
            raise RuntimeError("the server hung up")
        self._rest += data
