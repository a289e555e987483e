"""What an agent says over the Agent Client Protocol: pieces to show, and what its run is judged by. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field

from pilot.backends.reading import (
    SHOWN_RESULT,
    Event,
    Piece,
    as_event,
    as_list,
    as_number,
    as_text,
    line_of,
    tool_line,
)
from pilot.domain.agent import OutputKind
from pilot.domain.outcome import Usage
from pilot.domain.text import one_line, tail

KEPT = 256 << 10
"""Characters of the end of a message that are kept as its text."""
SHOWN_LINE = 16 << 10
"""Characters without an end of a line after which they are shown as one."""
SHOWN_PROGRESS = 400
"""Bytes of a line that repeats what a tool has put out so far; some agents send all of it again and again."""

_OVER = ("completed", "failed")


@dataclass(slots=True)
class Record:
    """What one run has said so far. Updates that it doesn't know change nothing.

    `session`: the conversation's own id, else a subagent's. `before`: what was booked for the session, for agents
    that count its whole life. `refuse`: nothing is allowed that is asked for. `counts_last_call`: see `Known`.
    """

    session: str | None = None
    before: Usage = field(default_factory=Usage)
    refuse: bool = False
    counts_last_call: bool = False
    denied: list[str] = field(default_factory=list)
    """What was asked for and not allowed, a line each."""
    model: str | None = None
    calls: int = 0
    """Tool calls so far."""
    spoke: bool = False
    """It has said something since its last tool call."""
    tokens: tuple[int | None, int | None] = (None, None)
    used_nothing: bool = False
    """It says itself that no call of its model was counted."""
    _cost: float | None = None
    _first_cost: float | None = None
    _open: dict[str, str] = field(default_factory=dict)
    _pending: dict[str, str] = field(default_factory=dict)
    """Calls that are announced, their arguments still to come: by id, their titles."""
    _message: str | None = None
    _talking: bool = False
    _said: list[str] = field(default_factory=list)
    _size: int = 0
    _line: list[str] = field(default_factory=list)
    """What was said since the last end of a line, in parts."""
    _length: int = 0

    @property
    def text(self) -> str:
        """The last message, or its end when it is very long."""
        return "".join(self._said)[-KEPT:].strip("\n")

    @property
    def usage(self) -> Usage:
        """What this run has used up; unknown is None.

        A cost counts a session's whole life with some agents, and starts anew with others.
        """
        cost = self._cost
        already = self.before.cost_usd or 0.0
        if cost is not None and self._first_cost is not None and self._first_cost >= already - 1e-9:
            cost = round(cost - already, 10)
        # a price that an agent doesn't know is 0 to it
        return Usage(self.tokens[0] or None, self.tokens[1] or None, cost if cost and cost > 0 else None)

    def read(self, message: Event, line: bytes) -> Iterator[Piece]:
        """Take a notification, or a request."""
        params = as_event(message.get("params"))
        update = as_event(params.get("update")) if message.get("method") == "session/update" else {}
        kind = update.get("sessionUpdate")
        if update.get("status") == "in_progress" and as_text(update.get("toolCallId")) in self._open:
            line = line[:SHOWN_PROGRESS]
        yield OutputKind.RAW, line + b"\n"
        own = params.get("sessionId") in (None, self.session)
        match kind:
            case "agent_message_chunk" if own:
                yield from self._chunk(update)
            case "user_message_chunk" if own:
                # the conversation so far, which some agents still tell when they have been asked to go on with it
                self._forget()
            case "tool_call" | "tool_call_update":
                yield from self._tool(update)
            case "agent_thought_chunk":
                yield from self._boundary()
            case "usage_update":
                self._spent(as_event(update.get("cost")))

    def asked(self, params: Event) -> tuple[list[Piece], str | None]:
        """Take a request for permission: what to show, and the option to choose, None when it is to be refused.

        Once is preferred to always: an agent may write down for good what is always allowed.
        """
        call = as_event(params.get("toolCall"))
        pieces = list(self._tool({**call, "status": "in_progress"}))
        options = [as_event(option) for option in as_list(params.get("options"))]
        by_kind = {as_text(option.get("kind")): as_text(option.get("optionId")) for option in reversed(options)}
        chosen = None if self.refuse else by_kind.get("allow_once") or by_kind.get("allow_always")
        if chosen is None:
            what = one_line(as_text(call.get("title")) or as_text(call.get("kind")) or "something")
            if what not in self.denied:
                self.denied.append(what)
            pieces += self._result(as_text(call.get("toolCallId")), "not allowed")
            chosen = by_kind.get("reject_once")
        return pieces, chosen

    def finish(self, result: Event) -> Iterator[Piece]:
        """Take the answer to the prompt: the end of the turn."""
        yield from self.close()
        quota = as_event(as_event(result.get("_meta")).get("quota"))
        usage, count = as_event(result.get("usage")), as_event(quota.get("token_count"))
        if usage:
            names = ("inputTokens", "cachedReadTokens", "cachedWriteTokens")
            numbers = [number for name in names if (number := as_number(usage.get(name))) is not None]
            counted = (sum(numbers) if numbers else None, as_number(usage.get("outputTokens")))
        else:
            counted = (as_number(count.get("input_tokens")), as_number(count.get("output_tokens")))
        self.used_nothing = counted == (0, 0)
        if not (usage and self.counts_last_call and self.calls):
            self.tokens = (_whole(counted[0]), _whole(counted[1]))
        models = [as_text(as_event(used).get("model")) for used in as_list(quota.get("model_usage"))]
        self.model = next((name for name in models if name), self.model)

    def close(self) -> Iterator[Piece]:
        """The end, whatever it was: the last message, and tool calls that nobody will answer any more."""
        yield from self._boundary()
        for call in [*self._open]:
            yield from self._result(call, "no answer")

    def _chunk(self, update: Event) -> Iterator[Piece]:
        said, message = as_text(as_event(update.get("content")).get("text")), update.get("messageId")
        if not said:
            return
        if message != self._message if isinstance(message, str) else not self._talking:
            yield from self._boundary()
            self._said, self._size, self._message = [], 0, as_text(message) or None
        self._talking = self.spoke = True
        self._said.append(said)
        self._size += len(said)
        if self._size > 2 * KEPT:
            self._said = [self.text]
            self._size = len(self._said[0])
        whole, end, rest = said.rpartition("\n")
        if end or self._length > SHOWN_LINE:
            yield OutputKind.TEXT, line_of("".join(self._line) + whole)
            self._line, self._length = [], 0
        self._line.append(rest)
        self._length += len(rest)

    def _boundary(self) -> Iterator[Piece]:
        """The message is at its end, unless it has a name and goes on under that."""
        if line := "".join(self._line):
            yield OutputKind.TEXT, line_of(line)
        self._line, self._length, self._talking = [], 0, False

    def _forget(self) -> None:
        self._said, self._size, self._message = [], 0, None
        self._line, self._length = [], 0
        self._talking = self.spoke = False

    def _tool(self, update: Event) -> Iterator[Piece]:
        call, status = as_text(update.get("toolCallId")), update.get("status")
        if call not in self._open:
            title = self._pending.get(call) or as_text(update.get("title"))
            given = as_event(update.get("rawInput"))
            if status == "pending":
                self._pending[call] = title
                return
            if update.get("sessionUpdate") == "tool_call_update" and call not in self._pending and status in _OVER:
                return  # the end of a call that was never begun, or has ended
            self._pending.pop(call, None)
            yield from self._boundary()
            self.calls, self.spoke = self.calls + 1, False
            self._open[call] = title
            yield OutputKind.TOOL, line_of(tool_line(title or update.get("kind"), given or _where(update, title)))
        if status in _OVER:
            yield from self._result(call, _answer(update))

    def _result(self, call: str, words: str) -> Iterator[Piece]:
        if self._open.pop(call, None) is not None:
            yield OutputKind.RESULT, line_of(tail(words, SHOWN_RESULT))

    def _spent(self, cost: Event) -> None:
        amount = as_number(cost.get("amount"))
        if amount is not None and cost.get("currency") in (None, "USD"):
            self._cost = amount
            self._first_cost = amount if self._first_cost is None else self._first_cost


def _whole(number: float | None) -> int | None:
    return None if number is None else int(number)


def _where(update: Event, title: str) -> Event:
    """The file that a call is about, unless its title says so."""
    for location in as_list(update.get("locations")):
        path = as_text(as_event(location).get("path"))
        if path and path.rpartition("/")[2] not in title:
            return {"path": path}
    return {}


def _answer(update: Event) -> str:
    """What a tool gave back, as text."""
    parts = []
    for item in map(as_event, as_list(update.get("content"))):
        content = as_event(item.get("content"))
        match item.get("type"):
            case "content":
                parts.append(as_text(content.get("text")) or f"[{as_text(content.get('type'))}]")
            case "diff":
                parts.append(f"{as_text(item.get('path'))}: changed")
    raw = update.get("rawOutput")
    if not parts and raw is not None:
        output = as_text(raw) or as_text(as_event(raw).get("output"))
        parts.append(output or json.dumps(raw, ensure_ascii=False, default=str))
    return "\n".join(parts)
