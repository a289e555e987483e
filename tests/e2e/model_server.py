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

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from tests.e2e.scripted_server import Handler, Request, ScriptedServer, Turn, filled, serve, status, text, tool

__all__ = ["ModelServer", "Request", "Turn", "status", "text", "tool"]

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


class _Messages(Request):
    """A request to the Messages API."""

    __slots__ = ()

    @property
    def session(self) -> str:
        """The conversation, as the CLI names it."""
        return self.headers.get("x-claude-code-session-id") or self.headers.get("x-session-id", "")

    @property
    def cwd(self) -> str:
        """The directory that the CLI says it works in."""
        found = _CWD.search(json.dumps([self.body.get("system"), self.body.get("messages")]))
        return found[1] if found else ""


class _Handler(Handler):
    def answer(self, request: Request, turn: Turn) -> None:
        assert isinstance(request, _Messages)
        body = request.body
        if not self.path.startswith("/v1/messages"):
            self.send(404, b"{}")
        elif "count_tokens" in self.path:
            self.send(200, b'{"input_tokens": 100}')
        elif "status" in turn:
            self._error(turn)
        elif turn.get("cut") == "reset" or ("cut" in turn and not body.get("stream")):
            self.drop()
        elif "sse_error" in turn and not body.get("stream"):
            self._error({"status": 529, "error": turn["sse_error"]})
        else:
            model = str(body.get("model", ""))
            events = list(_events(turn, next(self.server.model.numbers), model, request.cwd))
            if body.get("stream"):
                self.stream(turn, events, first="message_start", words="content_block_delta")
            else:
                self.send(200, json.dumps(_message(events)).encode())

    def _error(self, turn: Turn) -> None:
        code = int(turn["status"])
        kind = turn.get("error") or _ERRORS.get(code, "api_error")
        error = {"type": "error", "error": {"type": kind, "message": turn.get("message", "scripted")}}
        self.send(code, json.dumps(error).encode(), turn.get("headers", {}))


class ModelServer(ScriptedServer):
    """The Messages API by script; `url` is for ANTHROPIC_BASE_URL."""

    request = _Messages
    handler = _Handler


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
        arguments = filled(call["input"], cwd)
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


def _message(events: Sequence[dict[str, Any]]) -> dict[str, Any]:
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


if __name__ == "__main__":
    serve(ModelServer)
