"""An address on loopback that gets signed POSTs, answers as it is told, and keeps what came."""

from __future__ import annotations

import hashlib
import hmac
import json
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

SECRET = "a secret of the hooks"


@dataclass(frozen=True, slots=True)
class Posted:
    """One request. Header names are lower case."""

    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def document(self) -> Any:
        return json.loads(self.body)

    def signed_by(self, secret: str) -> bool:
        digest = hmac.new(secret.encode(), self.body, hashlib.sha256).hexdigest()
        return self.headers["x-pilot-signature"] == f"sha256={digest}"


class _SixServer(ThreadingHTTPServer):
    address_family = socket.AF_INET6


class HookServer:
    """Runs in threads of its own until it is closed."""

    def __init__(self, host: str = "127.0.0.1", *, tls: ssl.SSLContext | None = None) -> None:
        self.posts: list[Posted] = []
        self.answers: list[tuple[int, Mapping[str, str]]] = []
        """What the next ones are answered; then 204."""
        self.silence = 0.0
        """Seconds before an answer."""
        self._host = f"[{host}]" if ":" in host else host
        self._changed = threading.Condition()
        self._http = (_SixServer if ":" in host else ThreadingHTTPServer)((host, 0), self._handler())
        if tls is not None:
            self._http.socket = tls.wrap_socket(self._http.socket, server_side=True, do_handshake_on_connect=False)
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True)

    @property
    def port(self) -> int:
        return int(self._http.server_address[1])

    @property
    def url(self) -> str:
        return f"http://{self._host}:{self.port}/news?key=hidden"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.silence = 0
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def _take(self, posted: Posted) -> tuple[int, Mapping[str, str]]:
        with self._changed:
            self.posts.append(posted)
            self._changed.notify_all()
            return self.answers.pop(0) if self.answers else (204, {})

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # or a body waits 40 ms for the acknowledgement of its headers

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                headers = {name.lower(): value for name, value in self.headers.items()}
                status, more = server._take(Posted(self.path, headers, body))
                end = time.monotonic() + server.silence
                while time.monotonic() < end and server.silence:
                    time.sleep(0.01)
                self.send_response(status)
                for name, value in more.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        return Handler
