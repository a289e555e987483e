"""A scripted OpenAI Responses server on loopback, so that the real Codex CLI runs without a model.

In a test::

    with ResponsesServer([shell("echo hi > a.txt"), text("done")]) as server:
        ...                               # base URL: f"{server.url}/v1"
        server.requests[0].body["input"]

**Script** and **turn** are those of model_server.py, but for this:

- A conversation is what the CLI calls its `prompt_cache_key`: the thread's id.
- `tools`: `[{"name", "input"}]`; `shell(command)` is the CLI's own tool for commands. `freeform` in a call instead
  of `input`: the text of a tool that takes no JSON (`apply_patch`).
- `reasoning`: what it thought, before its words.
- `status`: `error` is OpenAI's type or code; `body` instead of it: the whole body. `sse_error`: the code of a
  `response.failed`, with `message`. `incomplete`: the reason of a `response.incomplete`.
- `usage` is merged into the default.
- WebSocket upgrades (GET) are refused, as by a provider that has none.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from tests.e2e.scripted_server import Handler, Request, ScriptedServer, Turn, filled, serve, status, text, tool

__all__ = ["ResponsesServer", "Turn", "shell", "status", "text", "tool"]

USAGE = {
    "input_tokens": 100,
    "input_tokens_details": {"cached_tokens": 0},
    "output_tokens": 20,
    "output_tokens_details": {"reasoning_tokens": 0},
    "total_tokens": 120,
}
_TYPES = {400: "invalid_request_error", 401: "invalid_request_error", 404: "invalid_request_error"}


def shell(command: str, **more: Any) -> Turn:
    """One command, for which the CLI waits half a minute before it asks again."""
    return {**tool("exec_command", cmd=command, yield_time_ms=30_000), **more}


class _Responses(Request):
    """A request to the Responses API."""

    __slots__ = ()

    @property
    def session(self) -> str:
        """The thread's id."""
        return str(self.body.get("prompt_cache_key", ""))

    @property
    def said(self) -> str:
        """The conversation as one text."""
        return json.dumps(self.body.get("input"), ensure_ascii=False)


class _Handler(Handler):
    def answer(self, request: Request, turn: Turn) -> None:
        if not self.path.startswith("/v1/responses"):
            self.send(404, b"{}")
        elif "status" in turn:
            self._error(turn)
        elif turn.get("cut") == "reset":
            self.drop()
        else:
            number = next(self.server.model.numbers)
            events = _events(turn, number, str(request.body.get("model", "")))
            self.stream(turn, events, first="response.created", words="response.output_text.delta")

    def stream_error(self, turn: Turn) -> dict[str, Any]:
        """The end of a response that failed on its way."""
        error = {"code": turn["sse_error"], "message": turn.get("message", "scripted")}
        return {"type": "response.failed", "response": {"id": "resp_0", "status": "failed", "error": error}}

    def _error(self, turn: Turn) -> None:
        code = int(turn["status"])
        kind = turn.get("error") or _TYPES.get(code, "server_error")
        error = {"type": kind, "code": kind, "message": turn.get("message", "scripted")}
        self.send(code, json.dumps(turn.get("body", {"error": error})).encode(), turn.get("headers", {}))


class ResponsesServer(ScriptedServer):
    """The Responses API by script; the base URL is `url` and `/v1`."""

    request = _Responses
    handler = _Handler


def _events(turn: Turn, number: int, model: str) -> Iterator[dict[str, Any]]:
    response: dict[str, Any] = {"id": f"resp_{number:08d}", "object": "response", "model": model}
    yield {"type": "response.created", "response": {**response, "status": "in_progress", "output": []}}
    items = list(_items(turn, number))
    for index, item in enumerate(items):
        begun = {**item, "content": []} if item["type"] == "message" else item
        yield {"type": "response.output_item.added", "output_index": index, "item": begun}
        if item["type"] == "message":
            delta = {"item_id": item["id"], "content_index": 0, "delta": item["content"][0]["text"]}
            yield {"type": "response.output_text.delta", "output_index": index, **delta}
        yield {"type": "response.output_item.done", "output_index": index, "item": item}
    usage = {**USAGE, **turn.get("usage", {})}
    end = {**response, "status": "completed", "output": items, "usage": usage}
    if reason := turn.get("incomplete"):
        end |= {"status": "incomplete", "incomplete_details": {"reason": reason}}
    yield {"type": f"response.{end['status']}", "response": end}


def _items(turn: Turn, number: int) -> Iterator[dict[str, Any]]:
    if thought := turn.get("reasoning"):
        summary = [{"type": "summary_text", "text": thought}]
        yield {"type": "reasoning", "id": f"rs_{number:08d}", "summary": summary, "encrypted_content": None}
    words = turn.get("text", "half a sen" if turn.get("cut") or "sse_error" in turn else "")
    if words:
        content = [{"type": "output_text", "text": words, "annotations": []}]
        yield {"type": "message", "id": f"msg_{number:08d}", "role": "assistant", "status": "completed",
               "content": content}  # fmt: skip
    for place, call in enumerate(turn.get("tools", ())):
        named = {"call_id": f"call_{number:08d}_{place}", "name": call["name"], "status": "completed"}
        if "freeform" in call:
            yield {"type": "custom_tool_call", "id": f"ctc_{number:08d}_{place}", "input": call["freeform"], **named}
        else:
            arguments = json.dumps(filled(call["input"], ""))
            yield {"type": "function_call", "id": f"fc_{number:08d}_{place}", "arguments": arguments, **named}


if __name__ == "__main__":
    serve(ResponsesServer)
