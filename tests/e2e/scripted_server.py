"""What scripted model servers have in common: a thread, turns that are taken one by one, and ways to go wrong.

A server is a `ScriptedServer` with a `Request` that knows how its API names a conversation, and a `Handler` that
answers a turn in the words of that API; see model_server.py (Anthropic) for how scripts are written.
"""

from __future__ import annotations

import argparse
import itertools
import json
import signal
import socket
import struct
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

Turn = Mapping[str, Any]
Script = Sequence[Turn] | Mapping[str, Any]


def text(words: str, **more: Any) -> Turn:
    """The agent's last words."""
    return {"text": words, **more}


def tool(name: str, **arguments: Any) -> Turn:
    """One tool call."""
    return {"tools": [{"name": name, "input": arguments}]}


def status(code: int, message: str = "scripted", **more: Any) -> Turn:
    """An HTTP error."""
    return {"status": code, "message": message, **more}


@dataclass(frozen=True, slots=True)
class Request:
    """What the CLI sent. Header names are lower case; `body` is {} when there was none."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: Mapping[str, Any]

    @property
    def session(self) -> str:
        """The conversation, as the CLI names it."""
        raise NotImplementedError

    @property
    def asks_agent(self) -> bool:
        """A turn of the agent, not a side question or a probe."""
        return self.method == "POST" and bool(self.body.get("tools"))

    @property
    def said(self) -> str:
        """The conversation as one text, in which a script's `when` is looked for."""
        return json.dumps(self.body.get("messages"), ensure_ascii=False)


class ScriptedServer:
    """Answers by script from a thread of its own until it is closed; keeps every request."""

    request: ClassVar[type[Request]]
    handler: ClassVar[type[Handler]]

    def __init__(self, script: Script = (), *, port: int = 0, log: Path | None = None) -> None:
        self.requests: list[Request] = []
        self._scripts: list[Mapping[str, Any]] = (
            list(script["scripts"]) if isinstance(script, Mapping) else [{"turns": script}]
        )
        self._conversations: dict[str, list[Turn]] = {}
        self._lock = threading.Lock()
        self._log = log
        self.numbers = itertools.count(1)
        self.closing = threading.Event()
        self._http = _Server(("127.0.0.1", port), self.handler, self)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True)

    @property
    def url(self) -> str:
        """Where it listens, without a path."""
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    @property
    def agent_requests(self) -> list[Request]:
        """The turns that were asked for, in order."""
        return [request for request in self.requests if request.asks_agent]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closing.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def take(self, request: Request) -> Turn:
        """Record a request, and say what it gets."""
        with self._lock:
            self.requests.append(request)
            if self._log is not None:
                with self._log.open("a") as log:
                    entry = {"path": request.path, "session": request.session, "body": request.body}
                    log.write(json.dumps(entry) + "\n")
            if not request.asks_agent:
                return text("ok")
            if request.session not in self._conversations:
                self._conversations[request.session] = self._turns_for(request.said)
            left = self._conversations[request.session]
            place = next((n for n, turn in enumerate(left) if turn.get("when", "") in request.said), None)
            return text("done") if place is None else left.pop(place)

    def _turns_for(self, said: str) -> list[Turn]:
        turns: Sequence[Turn] = next((s["turns"] for s in self._scripts if s.get("when", "") in said), ())
        return [turn for turn in turns for _ in range(int(turn.get("times", 1)))]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, address: tuple[str, int], handler: type[Handler], model: ScriptedServer) -> None:
        super().__init__(address, handler)
        self.model = model

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is what many scripts are about."""


class Handler(BaseHTTPRequestHandler):
    """One connection; `answer` is the API's own."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or a body waits 40 ms for the acknowledgement of its headers
    server: _Server

    def answer(self, request: Request, turn: Turn) -> None:
        """Answer a POST, its delay being over."""
        raise NotImplementedError

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""

    def do_HEAD(self) -> None:
        self._take({})
        self.send(200, b"")

    def do_GET(self) -> None:
        self._take({})
        self.send(404, b"{}")

    def do_POST(self) -> None:
        length = int(self.headers.get("content-length", "0"))
        request, turn = self._take(json.loads(self.rfile.read(length) or b"{}"))
        self.server.model.closing.wait(turn.get("delay", 0))
        self.answer(request, turn)

    def _take(self, body: Mapping[str, Any]) -> tuple[Request, Turn]:
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = self.server.model.request(self.command, self.path, headers, body)
        return request, self.server.model.take(request)

    def send(self, code: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        """A whole answer."""
        self.send_response(code)
        for name, value in {"content-type": "application/json", **(headers or {})}.items():
            self.send_header(name, str(value))
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def stream(self, turn: Turn, events: Iterable[Mapping[str, Any]], *, first: str, words: str) -> None:
        """Server-sent events. `silence` comes after the `first` type of event, `sse_error` and `cut` after `words`."""
        self.send_response(200)
        for name, value in {"content-type": "text/event-stream", **turn.get("headers", {})}.items():
            self.send_header(name, str(value))
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for event in events:
            self.event(event)
            if event["type"] == first and "silence" in turn:
                self.server.model.closing.wait(turn["silence"])
            if event["type"] == words and "sse_error" in turn:
                self.event(self.stream_error(turn))
                break
            if event["type"] == words and turn.get("cut"):
                self.drop()
                return
        self.wfile.write(b"0\r\n\r\n")

    def stream_error(self, turn: Turn) -> Mapping[str, Any]:
        """The event that says `sse_error`."""
        return {"type": "error", "error": {"type": turn["sse_error"], "message": "scripted"}}

    def event(self, event: Mapping[str, Any]) -> None:
        """One server-sent event."""
        data = f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode()
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
        self.wfile.flush()

    def drop(self) -> None:
        """Reset the connection."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()


def filled(value: Any, cwd: str) -> Any:
    """A tool's arguments, with the CLI's directory for `${cwd}`."""
    if isinstance(value, str):
        return value.replace("${cwd}", cwd)
    if isinstance(value, Mapping):
        return {key: filled(item, cwd) for key, item in value.items()}
    if isinstance(value, list):
        return [filled(item, cwd) for item in value]
    return value


def serve(kind: type[ScriptedServer]) -> None:
    """Serve one script, named on the command line, until a signal."""
    parser = argparse.ArgumentParser(description="A scripted model server on loopback")
    parser.add_argument("script", type=Path)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--log", type=Path, help="append every request, one JSON line each")
    options = parser.parse_args()
    signals = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    with kind(json.loads(options.script.read_text()), port=options.port, log=options.log) as server:
        print(f"listening on {server.url}", flush=True)
        signal.sigwait(signals)
