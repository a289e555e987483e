"""What Claude Code's `stream-json` lines say: pieces of output to show, and what the outcome is judged by. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from pilot.backends.reading import (
    SHOWN_RESULT,
    Event,
    Piece,
    as_event,
    as_list,
    as_text,
    line_of,
    parsed,
    tool_line,
)
from pilot.domain.agent import OutputKind
from pilot.domain.text import tail

_OVER = ("completed", "failed", "killed", "stopped")
_CUT_RESULT = re.compile(
    rb'^\{"type":"result","subtype":"(?P<subtype>\w+)","is_error":(?P<is_error>true|false)'
    rb'.{0,400}?"num_turns":(?P<num_turns>\d+)'
)


@dataclass(slots=True)
class Record:
    """What one run of the CLI has said so far. Event types that it doesn't know change nothing."""

    session_id: str | None = None
    model: str | None = None
    permission_mode: str | None = None
    text: str = ""
    """The agent's last words."""
    error: str | None = None
    """The class that the CLI gave to the API error of this turn."""
    refused: bool = False
    limit: Event = field(default_factory=dict)
    """The last `rate_limit_event`."""
    result: Event | None = None
    """The last one; one run can have several."""
    denied: list[str] = field(default_factory=list)
    """Tool calls of the whole run that were not allowed, a line each."""
    tasks: set[str] = field(default_factory=set)
    """Subagents that work in the background; the CLI waits for them, and tells the agent in a new turn."""
    _in_turn: bool = True

    @property
    def ended(self) -> bool:
        """A result has come, no new turn has begun, and no subagent still works: the CLI ought to exit."""
        return not self._in_turn and not self.tasks

    def read(self, line: bytes, *, cut: bool = False) -> list[Piece]:
        """Take one line of stdout, without its end; `cut`: only its first part is there."""
        event = _cut_result(line) if cut else parsed(line)
        if event is None:
            return [(OutputKind.RAW if cut else OutputKind.STDOUT, line + b"\n")]
        pieces = [(OutputKind.RAW, line + b"\n")]
        match event.get("type"):
            case "system":
                pieces += self._system(event)
            case "assistant":
                pieces += self._assistant(event)
            case "user":
                pieces += _tool_results(event)
            case "rate_limit_event":
                self.limit = as_event(event.get("rate_limit_info"))
            case "result":
                self._result(event)
        return pieces

    def _result(self, event: Event) -> None:
        self.result, self._in_turn = event, False
        for denial in as_list(event.get("permission_denials")):
            call = as_event(denial)
            line = tool_line(call.get("tool_name"), call.get("tool_input"))
            if line not in self.denied:
                self.denied.append(line)

    def _system(self, event: Event) -> Iterator[Piece]:
        match event.get("subtype"):
            case "init":
                self.session_id = as_text(event.get("session_id")) or self.session_id
                self.model = as_text(event.get("model")) or self.model
                self.permission_mode = as_text(event.get("permissionMode")) or self.permission_mode
                self._in_turn, self.error, self.refused = True, None, False
            case "task_started":
                # commands are not waited for: the CLI ends them itself, some seconds after its result
                if event.get("task_type") != "local_bash":
                    self.tasks.add(as_text(event.get("task_id")))
            case "task_updated":
                if as_event(event.get("patch")).get("status") in _OVER:
                    self.tasks.discard(as_text(event.get("task_id")))
            case "task_notification":
                self.tasks.discard(as_text(event.get("task_id")))
            case "api_retry":
                yield OutputKind.PILOT, line_of(f"the model's API failed, the agent tries again: {_retry(event)}")
            case "model_refusal_no_fallback":
                self.refused = True

    def _assistant(self, event: Event) -> Iterator[Piece]:
        own = event.get("parent_tool_use_id") is None  # else a subagent's
        if own:
            self._in_turn, self.error = True, as_text(event.get("error")) or None
        for block in _blocks(event):
            if block.get("type") == "text" and (said := as_text(block.get("text"))):
                self.text = said if own else self.text
                # with an error it is the CLI that speaks: a limit it met is no answer of the model
                yield OutputKind.STDERR if event.get("error") else OutputKind.TEXT, line_of(said)
            elif block.get("type") == "tool_use":
                yield OutputKind.TOOL, line_of(tool_line(block.get("name"), block.get("input")))


def _cut_result(line: bytes) -> Event | None:
    """The head of a result that was too long for a line: it is what tells success, and comes before the text."""
    found = _CUT_RESULT.match(line)
    if found is None:
        return None
    return {
        "type": "result",
        "subtype": found["subtype"].decode(),
        "is_error": found["is_error"] == b"true",
        "num_turns": int(found["num_turns"]),
    }


def _blocks(event: Event) -> Iterator[Event]:
    yield from (as_event(block) for block in as_list(as_event(event.get("message")).get("content")))


def _tool_results(event: Event) -> Iterator[Piece]:
    for block in _blocks(event):
        if block.get("type") != "tool_result":
            continue
        content = block.get("content")
        if isinstance(content, list):
            parts = (as_event(part) for part in content)
            content = "\n".join(as_text(part.get("text")) or f"[{part.get('type')}]" for part in parts)
        yield OutputKind.RESULT, line_of(tail(as_text(content), SHOWN_RESULT))


def _retry(event: Event) -> str:
    what = " ".join(str(event[key]) for key in ("error_status", "error") if event.get(key) is not None)
    return f"{what or 'unknown'}, attempt {event.get('attempt')} of {event.get('max_retries')}"
