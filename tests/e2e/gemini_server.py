"""A scripted Gemini API server on loopback, so that the real Gemini CLI runs without a model.

In a test::

    with GeminiServer([tool("write_file", file_path="${cwd}/a.txt", content="hi"), text("done")]) as server:
        ...                               # GOOGLE_GEMINI_BASE_URL=server.url
        server.requests[0].body["contents"]

**Script** and **turn** are those of model_server.py, but for this:

- A conversation is the directory that the CLI says it works in: the API has no name for it.
- `status`: `error` is Google's status (`RESOURCE_EXHAUSTED`), `details` the list of its details.
- `usage` is merged into the default; `stop_reason` is a finishReason.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from tests.e2e.scripted_server import Handler, Request, ScriptedServer, Turn, filled, serve, status, text, tool

__all__ = ["GeminiServer", "Turn", "status", "text", "tool"]

USAGE = {"promptTokenCount": 100, "candidatesTokenCount": 20, "totalTokenCount": 120}
_CWD = re.compile(r"\*\*Workspace Directories:\*\*\\n\s*- (/[^\n\"\\]*)|working in the directory: (/[^\n\"\\]*)")
_ROUTE = {"reasoning": "simple", "model_choice": "flash", "complexity_reasoning": "simple", "complexity_score": 1}
"""What the CLI wants to hear when it asks which model fits."""
_STATUS = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
}


class _Contents(Request):
    """A request to generateContent."""

    __slots__ = ()

    @property
    def session(self) -> str:
        """The directory that the CLI works in."""
        return self.cwd

    @property
    def said(self) -> str:
        """The conversation as one text."""
        return json.dumps(self.body.get("contents"), ensure_ascii=False)

    @property
    def wants_json(self) -> bool:
        """A side question whose answer the CLI reads itself."""
        return bool(self.body.get("generationConfig", {}).get("responseMimeType") == "application/json")

    @property
    def cwd(self) -> str:
        """The directory that the CLI says it works in."""
        found = _CWD.search(self.said)
        return (found[1] or found[2]) if found else ""


class _Handler(Handler):
    def answer(self, request: Request, turn: Turn) -> None:
        assert isinstance(request, _Contents)
        if "enerateContent" not in self.path:
            self.send(404, b"{}")
        elif "status" in turn:
            self._error(turn)
        elif turn.get("cut") == "reset":
            self.drop()
        else:
            number = next(self.server.model.numbers)
            if request.wants_json:
                turn = text(json.dumps(_ROUTE))
            events = list(_events(turn, number, self.path, request.cwd))
            if "streamGenerateContent" in self.path:
                self.stream(turn, events, first="start", words="words")
            else:
                self.send(200, json.dumps(_plain(events[-1])).encode())

    def event(self, event: Mapping[str, Any]) -> None:
        """One server-sent event: this API gives its events no names."""
        data = f"data: {json.dumps(_plain(event))}\r\n\r\n".encode()
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
        self.wfile.flush()

    def stream_error(self, turn: Turn) -> Mapping[str, Any]:
        """What the API sends when it breaks in the middle."""
        return {"type": "error", "error": {"code": 503, "message": "scripted", "status": turn["sse_error"]}}

    def _error(self, turn: Turn) -> None:
        code = int(turn["status"])
        error = {"code": code, "message": turn.get("message", "scripted"), "status": turn.get("error", _STATUS[code])}
        if "details" in turn:
            error["details"] = turn["details"]
        self.send(code, json.dumps({"error": error}).encode(), turn.get("headers", {}))


class GeminiServer(ScriptedServer):
    """The Gemini API by script; `url` is for GOOGLE_GEMINI_BASE_URL."""

    request = _Contents
    handler = _Handler


def _plain(event: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in event.items() if key != "type"}


def _events(turn: Turn, number: int, path: str, cwd: str) -> Iterator[dict[str, Any]]:
    found = re.search(r"models/([^:/]+):", path)
    base = {"responseId": f"resp-{number}", "modelVersion": found[1] if found else "model"}
    words = turn.get("text", "half a sen" if turn.get("cut") or "sse_error" in turn else "")
    yield {"type": "start", **base, "candidates": [{"content": {"role": "model", "parts": [{"text": ""}]}}]}
    if words:
        yield {"type": "words", **base, "candidates": [{"content": {"role": "model", "parts": [{"text": words}]}}]}
    parts: list[dict[str, Any]] = [
        {"functionCall": {"name": call["name"], "args": filled(call["input"], cwd)}} for call in turn.get("tools", ())
    ]
    end = {"content": {"role": "model", "parts": parts or [{"text": ""}]}, "index": 0}
    reason = turn.get("stop_reason", "SAFETY" if turn.get("refusal") else "STOP")
    usage = {**USAGE, **turn.get("usage", {})}
    yield {"type": "end", **base, "candidates": [{**end, "finishReason": reason}], "usageMetadata": usage}


if __name__ == "__main__":
    serve(GeminiServer)
