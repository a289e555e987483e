"""A scripted Anthropic Messages server on loopback, so that the real Claude Code CLI runs without a model.

In a test::

    with ModelServer([tool("Write", file_path="${cwd}/a.txt", content="hi"), text("done")]) as server:
        ...                               # ANTHROPIC_BASE_URL=server.url
        server.requests[0].body["messages"]

For a daemon (prints one line, `listening on http://127.0.0.1:PORT`; ends with SIGTERM or SIGINT)::

    python -m tests.e2e.model_server SCRIPT.json [--port N] [--log REQUESTS.jsonl]

**Script**: a list of turns, or `{"scripts": [{"when": "text", "turns": [...]}, ...]}`. Each conversation
(the CLI's session id) takes the first script whose `when` occurs in its first request's messages (none:
always) and walks through it: one turn per `POST /v1/messages` that offers tools, the CLI's retries included.
Past the end the answer is the text "done". A turn with a `when` of its own is kept for the first request whose
messages have that text: a subagent's requests come under its parent's id. Requests without tools (titles,
summaries) get the text "ok".

**Turn**: an object with one of

| key | answer |
|---|---|
| `text` | these words, the end of the agent's turn |
| `tools` | `[{"name", "input"}]`: tool calls, after `text` when given; `${cwd}` is the CLI's directory |
| `status` | an HTTP error; with `error` (Anthropic's type), `message`, `headers` |
| `refusal` | `true`: stop_reason refusal, after `text` when given |
| `sse_error` | this error type inside the stream, after its first words |
| `cut` | `true`: the connection is dropped after the first words; `"reset"`: before any byte of an answer |
| `silence` | seconds without a byte after the first event (ended early when the server stops) |

and, with any of them: `delay` (seconds before the answer), `usage` (merged into the default), `stop_reason`,
`headers`, `times` (how often the turn is given; default 1).
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import signal
import socket
import struct
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self

Turn = Mapping[str, Any]
Script = Sequence[Turn] | Mapping[str, Any]

USAGE = {
    "input_tokens": 100,
    "output_tokens": 20,
    "cache_creation_input_tokens": 0,
    "cache_read_input_tokens": 0,
}
_CWD = re.compile(r"[Ww]orking directory: (/[^\n\"\\]*)")
_ERRORS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    529: "overloaded_error",
}


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
        return self.headers.get("x-claude-code-session-id", "")

    @property
    def asks_agent(self) -> bool:
        """A turn of the agent, not a side question or a probe."""
        return self.method == "POST" and bool(self.body.get("tools"))

    @property
    def cwd(self) -> str:
        """The directory that the CLI says it works in."""
        found = _CWD.search(json.dumps([self.body.get("system"), self.body.get("messages")]))
        return found[1] if found else ""


class ModelServer:
    """Answers by script from a thread of its own until it is closed; keeps every request."""

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
        self._http = _Server(("127.0.0.1", port), _Handler, self)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True)

    @property
    def url(self) -> str:
        """For ANTHROPIC_BASE_URL."""
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
            said = json.dumps(request.body.get("messages"), ensure_ascii=False)
            if request.session not in self._conversations:
                self._conversations[request.session] = self._turns_for(said)
            left = self._conversations[request.session]
            place = next((n for n, turn in enumerate(left) if turn.get("when", "") in said), None)
            return text("done") if place is None else left.pop(place)

    def _turns_for(self, said: str) -> list[Turn]:
        turns: Sequence[Turn] = next((s["turns"] for s in self._scripts if s.get("when", "") in said), ())
        return [turn for turn in turns for _ in range(int(turn.get("times", 1)))]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, address: tuple[str, int], handler: type[_Handler], model: ModelServer) -> None:
        super().__init__(address, handler)
        self.model = model

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is what many scripts are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""

    def do_HEAD(self) -> None:
        self._take({})
        self._send(200, b"")

    def do_GET(self) -> None:
        self._take({})
        self._send(404, b"{}")

    def do_POST(self) -> None:
        length = int(self.headers.get("content-length", "0"))
        body = json.loads(self.rfile.read(length) or b"{}")
        turn = self._take(body)
        self.server.model.closing.wait(turn.get("delay", 0))
        if not self.path.startswith("/v1/messages"):
            self._send(404, b"{}")
        elif "count_tokens" in self.path:
            self._send(200, b'{"input_tokens": 100}')
        elif "status" in turn:
            self._error(turn)
        elif turn.get("cut") == "reset" or ("cut" in turn and not body.get("stream")):
            self._drop()
        elif "sse_error" in turn and not body.get("stream"):
            self._error({"status": 529, "error": turn["sse_error"]})
        else:
            cwd = Request("POST", self.path, {}, body).cwd
            model = str(body.get("model", ""))
            events = list(_events(turn, next(self.server.model.numbers), model, cwd))
            if body.get("stream"):
                self._stream(turn, events)
            else:
                self._send(200, json.dumps(_message(events)).encode())

    def _take(self, body: Mapping[str, Any]) -> Turn:
        headers = {name.lower(): value for name, value in self.headers.items()}
        return self.server.model.take(Request(self.command, self.path, headers, body))

    def _error(self, turn: Turn) -> None:
        code = int(turn["status"])
        kind = turn.get("error") or _ERRORS.get(code, "api_error")
        error = {"type": "error", "error": {"type": kind, "message": turn.get("message", "scripted")}}
        self._send(code, json.dumps(error).encode(), turn.get("headers", {}))

    def _send(self, code: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(code)
        for name, value in {"content-type": "application/json", **(headers or {})}.items():
            self.send_header(name, str(value))
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _stream(self, turn: Turn, events: Sequence[Mapping[str, Any]]) -> None:
        self.send_response(200)
        for name, value in {"content-type": "text/event-stream", **turn.get("headers", {})}.items():
            self.send_header(name, str(value))
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for event in events:
            self._event(event)
            if event["type"] == "message_start" and "silence" in turn:
                self.server.model.closing.wait(turn["silence"])
            if event["type"] == "content_block_delta" and "sse_error" in turn:
                self._event({"type": "error", "error": {"type": turn["sse_error"], "message": "scripted"}})
                break
            if event["type"] == "content_block_delta" and turn.get("cut"):
                self._drop()
                return
        self.wfile.write(b"0\r\n\r\n")

    def _event(self, event: Mapping[str, Any]) -> None:
        data = f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode()
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
        self.wfile.flush()

    def _drop(self) -> None:
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()


def _events(turn: Turn, number: int, model: str, cwd: str) -> Iterator[dict[str, Any]]:
    usage = {**USAGE, **turn.get("usage", {})}
    start: dict[str, Any] = {
        "id": f"msg_{number:08d}", "type": "message", "role": "assistant", "model": model, "content": [],
        "stop_reason": None, "stop_sequence": None, "usage": {**usage, "output_tokens": 1},
    }  # fmt: skip
    yield {"type": "message_start", "message": start}
    blocks: list[tuple[dict[str, Any], dict[str, Any]]] = []
    words = turn.get("text", "half a sen" if turn.get("cut") or "sse_error" in turn else "")
    if words:
        blocks.append(({"type": "text", "text": ""}, {"type": "text_delta", "text": words}))
    for place, call in enumerate(turn.get("tools", ())):
        arguments = _filled(call["input"], cwd)
        block = {"type": "tool_use", "id": f"toolu_{number:08d}_{place}", "name": call["name"], "input": {}}
        blocks.append((block, {"type": "input_json_delta", "partial_json": json.dumps(arguments)}))
    for index, (block, delta) in enumerate(blocks):
        yield {"type": "content_block_start", "index": index, "content_block": block}
        yield {"type": "content_block_delta", "index": index, "delta": delta}
        yield {"type": "content_block_stop", "index": index}
    reason = "refusal" if turn.get("refusal") else "tool_use" if turn.get("tools") else "end_turn"
    delta = {"stop_reason": turn.get("stop_reason", reason), "stop_sequence": None}
    yield {"type": "message_delta", "delta": delta, "usage": usage}
    yield {"type": "message_stop"}


def _filled(value: Any, cwd: str) -> Any:
    if isinstance(value, str):
        return value.replace("${cwd}", cwd)
    if isinstance(value, Mapping):
        return {key: _filled(item, cwd) for key, item in value.items()}
    if isinstance(value, list):
        return [_filled(item, cwd) for item in value]
    return value


def _message(events: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The whole answer, as the non-streaming API gives it, from the events of the streaming one."""
    message: dict[str, Any] = dict(events[0]["message"])
    content: list[dict[str, Any]] = []
    for event in events:
        if event["type"] == "content_block_start":
            content.append(dict(event["content_block"]))
        elif event["type"] == "content_block_delta" and event["delta"]["type"] == "text_delta":
            content[-1]["text"] = event["delta"]["text"]
        elif event["type"] == "content_block_delta":
            content[-1]["input"] = json.loads(event["delta"]["partial_json"])
        elif event["type"] == "message_delta":
            message.update(event["delta"], usage=event["usage"])
    return {**message, "content": content}


def main() -> None:
    """Serve one script until a signal."""
    parser = argparse.ArgumentParser(description="A scripted Anthropic Messages server on loopback")
    parser.add_argument("script", type=Path)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--log", type=Path, help="append every request, one JSON line each")
    options = parser.parse_args()
    signals = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    with ModelServer(json.loads(options.script.read_text()), port=options.port, log=options.log) as server:
        print(f"listening on {server.url}", flush=True)
        signal.sigwait(signals)


if __name__ == "__main__":
    main()
