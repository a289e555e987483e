"""What the lines of `codex exec --json` say: pieces of output to show, and what the outcome is judged by. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from pilot.backends.reading import (
    SHOWN_RESULT,
    Event,
    Piece,
    as_event,
    as_list,
    as_number,
    as_text,
    line_of,
    parsed,
    tool_line,
)
from pilot.domain.agent import OutputKind
from pilot.domain.text import one_line, tail

HELD_BACK = 100
"""Lines, at most, of a program that only says that it tries again."""
TOO_LONG = "(too long to be shown)"

_RETRY = re.compile(r"^Reconnecting\b")
_WAITING = re.compile(r"waiting for network|\b429 Too Many Requests")
_CUT_ITEM = re.compile(
    rb'^\{"type":"item\.(?P<what>started|completed)","item":\{"id":"(?P<id>\w+)","type":"(?P<type>\w+)"'
)
_REFUSED = re.compile(r"codex_core::tools::router: error=(?P<words>.*\b(?:reject|rejected)\b.*)")
_OWN_RULE = re.compile(r"style commands are not permitted")
_NO_HELPERS = re.compile(r"could not create PATH aliases: (?P<words>.*)")
_SANDBOX = re.compile(r"\bbwrap\b|sandbox|namespace", re.IGNORECASE)
_SHELL = re.compile(r"\S*sh -l?c (?P<quote>['\"]?)(?P<command>.*)(?P=quote)$", re.DOTALL)
_ESCAPED = re.compile(r'\\([$`"\\])')
_NO_TOOLS = ("agent_message", "reasoning", "error", "todo_list")


@dataclass(slots=True)
class Record:
    """What one run has said so far. Event types that it doesn't know change nothing."""

    thread: str | None = None
    text: str = ""
    """The agent's last words."""
    end: Literal["completed", "failed"] | None = None
    """How its last turn ended."""
    error: str = ""
    """Why the turn failed, or the last trouble that it spoke of."""
    retrying: bool = False
    """Its last words were that it tries the model again."""
    waiting: bool = False
    """It does so without a limit: the network is away, or the model's server said to come back later."""
    input_tokens: float | None = None
    output_tokens: float | None = None
    """Of the whole thread, runs before this one included."""
    refused: list[str] = field(default_factory=list)
    """What the agent asked for and was not allowed, a line each."""
    no_helpers: str = ""
    """See the function of that name."""
    worked: bool = False
    """A tool gave something back, and not only that a command failed."""
    _open: dict[str, str] = field(default_factory=dict)
    _held: list[bytes] = field(default_factory=list)

    @property
    def blames_sandbox(self) -> bool:
        """The agent got nothing done, and its last words are of a sandbox."""
        return not self.worked and _SANDBOX.search(self.text) is not None

    def read(self, line: bytes, *, cut: bool = False) -> list[Piece]:
        """Take one line of stdout, without its end; `cut`: only its first part is there.

        The first word of trouble with the model is shown at once; those that follow it only when there is something
        else to show: they are no sign of life.
        """
        event = _cut_item(line) if cut else parsed(line)
        raw = (OutputKind.RAW, line + b"\n")
        if event is None:
            return [raw] if cut else [(OutputKind.STDOUT, line + b"\n")]
        if self._is_retry(event):
            if self.retrying:
                self._held.append(line + b"\n")
                return self._let_go() if len(self._held) >= HELD_BACK else []
            self.retrying = True
            return [raw, (OutputKind.PILOT, line_of(f"the agent waits for its model: {one_line(self.error)}"))]
        self.retrying = self.waiting = False
        return [*self._let_go(), raw, *self._take(event)]

    def complain(self, line: str) -> None:
        """Take one line of stderr."""
        if (found := _REFUSED.search(line)) and not _OWN_RULE.search(line):
            self.refused.append(one_line(found["words"], 300))
        else:
            self.no_helpers = no_helpers(line) or self.no_helpers

    def _is_retry(self, event: Event) -> bool:
        words = as_text(event.get("message"))
        if event.get("type") != "error" or not _RETRY.search(words):
            return False
        self.error = words
        self.waiting = self.waiting or _WAITING.search(words) is not None
        return True

    def _let_go(self) -> list[Piece]:
        held, self._held = self._held, []
        return [(OutputKind.RAW, line) for line in held]

    def _take(self, event: Event) -> Iterator[Piece]:
        match event.get("type"):
            case "thread.started":
                self.thread = as_text(event.get("thread_id")) or self.thread
            case "turn.started":
                self.end, self.error = None, ""
            case "turn.completed":
                self.end = "completed"
                usage = as_event(event.get("usage"))
                self.input_tokens = as_number(usage.get("input_tokens"))
                self.output_tokens = as_number(usage.get("output_tokens"))
                yield from self._left_open()
            case "turn.failed":
                self.end = "failed"
                self.error = as_text(as_event(event.get("error")).get("message")) or self.error
                yield from self._left_open()
            case "error":
                self.error = as_text(event.get("message")) or self.error
            case "item.started" | "item.completed" as what:
                yield from self._item(as_event(event.get("item")), over=what == "item.completed")

    def _item(self, item: Event, *, over: bool) -> Iterator[Piece]:
        kind, id = as_text(item.get("type")), as_text(item.get("id"))
        if kind == "agent_message" and over:
            if said := as_text(item.get("text")):
                self.text = said
                yield OutputKind.TEXT, line_of(said)
        elif kind == "error" and over:
            # a warning: a run that fails says so at the end of its turn
            yield OutputKind.PILOT, line_of(f"the agent warns: {one_line(as_text(item.get('message')), 500)}")
        elif kind and kind not in _NO_TOOLS:
            if id not in self._open:
                self._open[id] = kind
                yield OutputKind.TOOL, line_of(_call(kind, item))
            if over:
                del self._open[id]
                self.worked = self.worked or kind != "command_execution" or item.get("exit_code") == 0
                yield OutputKind.RESULT, line_of(tail(_answer(item), SHOWN_RESULT))

    def _left_open(self) -> Iterator[Piece]:
        """The turn is over, and with it whatever still ran in the background: nothing is said of that."""
        for kind in self._open.values():
            yield OutputKind.RESULT, line_of(f"{kind}: not done at the end of the turn")
        self._open.clear()


def no_helpers(line: str) -> str:
    """Why the program could not set itself up to run commands in its own sandbox; "" when it does not say so."""
    found = _NO_HELPERS.search(line)
    return one_line(found["words"], 300) if found else ""


def _call(kind: str, item: Event) -> str:
    match kind:
        case "command_execution":
            return tool_line("shell", {"command": _command(as_text(item.get("command"))[:SHOWN_RESULT])})
        case "file_change":
            changes = [as_event(change) for change in as_list(item.get("changes"))]
            named = ", ".join(f"{as_text(c.get('kind'))} {as_text(c.get('path'))}" for c in changes)
            return one_line(f"file_change {named}")
        case "mcp_tool_call":
            return tool_line(f"{as_text(item.get('server'))}.{as_text(item.get('tool'))}", item.get("arguments"))
        case _:
            return tool_line(kind, {name: value for name, value in item.items() if name not in ("id", "type")})


def _command(shown: str) -> str:
    """What the agent wanted to run, without the shell around it."""
    found = _SHELL.match(shown)
    if found is None:
        return shown
    return _ESCAPED.sub(r"\1", found["command"]) if found["quote"] == '"' else found["command"]


def _answer(item: Event) -> str:
    if error := as_text(as_event(item.get("error")).get("message")):
        return error
    blocks = [as_event(block) for block in as_list(as_event(item.get("result")).get("content"))]
    said = as_text(item.get("aggregated_output")) or "\n".join(as_text(block.get("text")) for block in blocks)
    code, state = item.get("exit_code"), as_text(item.get("status"))
    if isinstance(code, int) and code:
        return f"{said.rstrip()}\nexit code {code}".strip()
    return said.rstrip("\n") or state


def _cut_item(line: bytes) -> Event | None:
    """The head of an item that was too long for a line: enough to know that a call is over."""
    found = _CUT_ITEM.match(line)
    if found is None:
        return None
    item = {"id": found["id"].decode(), "type": found["type"].decode(), "text": TOO_LONG, "status": TOO_LONG}
    return {"type": f"item.{found['what'].decode()}", "item": item}
