"""What OpenCode's events and messages say of one turn of a session: pieces to show, and what it is judged by. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

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
from pilot.domain.outcome import Usage
from pilot.domain.text import one_line, tail

RAW_LIMIT = 64 << 10
"""Characters of an event that are kept; a tool's output is in there more than once."""
_SIGN = 5.0
"""Seconds between signs of life of what is not kept: words that are being made, and output of a tool that runs."""
_SIGN_LIMIT = 500
_CALL = re.compile(r'"callID":"([^"\\]+)"')


@dataclass(frozen=True, slots=True)
class Retry:
    """The program waits before it asks its model again. `next` is UTC milliseconds."""

    attempt: int
    message: str
    next: int


@dataclass(frozen=True, slots=True)
class Asked:
    """What the agent waits for: a permission (`options` empty, its own words made of it), or an answer."""

    id: str
    permission: bool
    text: str
    options: tuple[str, ...] = ()


@dataclass(slots=True)
class _Spent:
    input: int = 0
    output: int = 0
    cost: float = 0.0


@dataclass(slots=True)
class Record:
    """One turn: what `message`, of `session`, led to, in that session and in those of its sub-agents.

    Events may be missed, and messages be read again (`reread`): each thing is shown once.
    """

    session: str
    message: str
    before: frozenset[str] = frozenset()
    """Messages that were there already."""
    sessions: set[str] = field(default_factory=set)
    error: Event | None = None
    """The last `session.error`; not the end by itself."""
    overflows: int = 0
    """How often in a row the conversation was too long for the model."""
    retry: Retry | None = None
    idle: bool = False
    """It was said to be idle since this was last set to False; not the end by itself."""
    asked: list[Asked] = field(default_factory=list)
    """Everything that it asked."""
    infos: list[Event] = field(default_factory=list)
    """The assistant's messages after ours, in order, as `reread` last saw them."""
    texts: dict[str, dict[str, str]] = field(default_factory=dict)
    """Words by message and part, so far."""
    _own: dict[str, Event] = field(default_factory=dict)
    """Assistant messages of the session as events tell them, in order."""
    _agents: set[str] = field(default_factory=set)
    """Assistant messages of all sessions: what is in the others is what we said ourselves."""
    _spent: dict[str, _Spent] = field(default_factory=dict)
    _shown: set[str] = field(default_factory=set)
    _open: dict[str, str] = field(default_factory=dict)
    _called: set[str] = field(default_factory=set)
    _sign: float = 0.0

    def __post_init__(self) -> None:
        self.sessions.add(self.session)

    @property
    def last(self) -> Event | None:
        """The assistant's last message of this turn."""
        if self.infos:
            return self.infos[-1]
        return next(reversed(self._own.values()), None)

    @property
    def text(self) -> str:
        """The agent's last words."""
        return "\n".join(filter(None, self.texts.get(as_text(as_event(self.last).get("id")), {}).values()))

    @property
    def usage(self) -> Usage:
        """Of this turn and all its sub-agents. A cost of nothing is a price that nobody knows."""
        spent = self._spent.values()
        cost = sum(one.cost for one in spent)
        return Usage(sum(one.input for one in spent) or None, sum(one.output for one in spent) or None, cost or None)

    def read(self, data: str, now: float) -> list[Piece]:
        """Take one event. `now`: seconds, of any clock."""
        head = data[:600]
        if self._is_told_again(head, data):
            return self._sign_of_life(head, now)
        event = parsed(data.encode(errors="replace"))
        if event is None:
            return [(OutputKind.STDOUT, line_of(data[:RAW_LIMIT]))]
        properties = as_event(event.get("properties"))
        if not self._is_ours(event, properties):
            return []
        self._sign = now
        return [(OutputKind.RAW, line_of(data[:RAW_LIMIT])), *self._event(as_text(event.get("type")), properties)]

    def reread(self, session: str, messages: object) -> list[Piece]:
        """Take all messages of one of the sessions: what events did not tell is shown now."""
        pieces: list[Piece] = []
        ours: list[Event] = []
        after = session != self.session
        for message in map(as_event, as_list(messages)):
            info = as_event(message.get("info"))
            # by order: after a compaction, answers name another message as theirs
            after = after or info.get("id") == self.message
            if not after or info.get("id") in self.before:
                continue
            self._message(info)
            if info.get("role") == "assistant":
                ours.append(info)
            for part in as_list(message.get("parts")):
                pieces += self._part(as_event(part), over=as_event(info.get("time")).get("completed") is not None)
        if session == self.session:
            self.infos = ours
        return pieces

    def close(self) -> list[Piece]:
        """The run is over: calls that were cut short have their end, too."""
        pieces = [(OutputKind.RESULT, line_of("(ended before it was done)")) for _ in self._open]
        self._open.clear()
        return pieces

    def _is_told_again(self, head: str, data: str) -> bool:
        """A piece of text, or all the output so far of a tool that runs: megabytes, and all told in the end.

        Seen without reading it: in JSON, quotes inside of text are escaped.
        """
        if '"message.part.delta"' in head:
            return True
        return (
            '"message.part.updated"' in head
            and (call := _CALL.search(head)) is not None
            and call[1] in self._called
            and '"status":"running"' in data
            and '"status":"completed"' not in data
            and '"status":"error"' not in data
        )

    def _is_ours(self, event: Event, properties: Event) -> bool:
        if event.get("type") == "session.created":
            info = as_event(properties.get("info"))
            if info.get("parentID") in self.sessions and as_text(info.get("id")):
                self.sessions.add(as_text(info.get("id")))
        return properties.get("sessionID") in self.sessions

    def _sign_of_life(self, head: str, now: float) -> list[Piece]:
        if now - self._sign < _SIGN or not any(session in head for session in self.sessions):
            return []
        self._sign = now
        return [(OutputKind.RAW, line_of(head[:_SIGN_LIMIT]))]

    def _event(self, kind: str, properties: Event) -> Iterable[Piece]:
        own = properties.get("sessionID") == self.session
        match kind:
            case "message.updated":
                self._message(as_event(properties.get("info")))
            case "message.part.updated":
                return self._part(as_event(properties.get("part")))
            case "session.status" if own:
                return self._status(as_event(properties.get("status")))
            case "session.idle" if own:
                self.idle = True
            case "session.error" if own:
                self.error, self.idle = as_event(properties.get("error")), True
                if self.error.get("name") == "ContextOverflowError":
                    self.overflows += 1
            case "permission.asked":
                self.ask(properties, permission=True)
            case "question.asked":
                self.ask(properties, permission=False)
        return ()

    def _status(self, status: Event) -> Iterator[Piece]:
        self.retry = retry_in(status)
        if status.get("type") == "idle":
            self.idle = True
        if self.retry is not None:
            words = f"{one_line(self.retry.message)}, attempt {self.retry.attempt}"
            yield OutputKind.PILOT, line_of(f"the model's API failed, the agent tries again: {words}")

    def ask(self, request: Event, *, permission: bool) -> None:
        """Take a request that waits for somebody, of one of the sessions; more than once is no matter."""
        id = as_text(request.get("id"))
        if request.get("sessionID") not in self.sessions or any(one.id == id for one in self.asked):
            return
        if permission:
            wanted = ", ".join(map(as_text, as_list(request.get("patterns"))))
            self.asked.append(Asked(id, True, one_line(f"{as_text(request.get('permission'))} {wanted}", 300)))
            return
        questions = [as_event(one) for one in as_list(request.get("questions"))]
        text = "\n".join(as_text(one.get("question")) for one in questions)
        offered = as_list(questions[0].get("options")) if len(questions) == 1 else []
        options = tuple(filter(None, (as_text(as_event(one).get("label")) for one in offered)))
        self.asked.append(Asked(id, False, text, options))

    def _message(self, info: Event) -> None:
        id = as_text(info.get("id"))
        if info.get("role") != "assistant" or id in self.before:
            return
        self._agents.add(id)
        if info.get("sessionID") == self.session:
            self._own[id] = info
        tokens, spent = as_event(info.get("tokens")), self._spent.setdefault(id, _Spent())
        cache = as_event(tokens.get("cache"))
        spent.input = _sum(tokens.get("input"), cache.get("read"), cache.get("write"))
        spent.output = _sum(tokens.get("output"), tokens.get("reasoning"))
        spent.cost = as_number(info.get("cost")) or 0.0
        if spent.output and not info.get("summary"):  # else it was shortened, which may not have been enough
            self.overflows = 0

    def _part(self, part: Event, *, over: bool = False) -> Iterator[Piece]:
        id, message = as_text(part.get("id")), as_text(part.get("messageID"))
        if message not in self._agents:
            return
        if part.get("type") == "text":
            words = as_text(part.get("text"))
            if part.get("sessionID") == self.session:
                self.texts.setdefault(message, {})[id] = words
            ended = over or as_event(part.get("time")).get("end") is not None
            if words and ended and id not in self._shown:
                self._shown.add(id)
                yield OutputKind.TEXT, line_of(words)
        elif part.get("type") == "tool":
            yield from self._tool(id, part, as_event(part.get("state")))

    def _tool(self, id: str, part: Event, state: Event) -> Iterator[Piece]:
        status, name = state.get("status"), as_text(part.get("tool"))
        if status not in ("running", "completed", "error"):
            return
        self._called.add(as_text(part.get("callID")))
        if id not in self._shown:
            self._shown.add(id)
            self._open[id] = name
            yield OutputKind.TOOL, line_of(tool_line(name, _arguments(as_event(state.get("input")))))
        if status != "running" and self._open.pop(id, None) is not None:
            said = as_text(state.get("output" if status == "completed" else "error"))
            yield OutputKind.RESULT, line_of(tail(said, SHOWN_RESULT))


def retry_in(status: Event) -> Retry | None:
    """The pause that a session's status tells of."""
    if status.get("type") != "retry":
        return None
    # what it offers a person to do about it says best what is wrong
    action = as_event(status.get("action"))
    message = " ".join(filter(None, (as_text(status.get("message")), as_text(action.get("reason")))))
    return Retry(int(as_number(status.get("attempt")) or 0), message, int(as_number(status.get("next")) or 0))


def ids_of(messages: object) -> frozenset[str]:
    """The ids of these messages."""
    return frozenset(as_text(as_event(as_event(one).get("info")).get("id")) for one in as_list(messages))


def _arguments(given: Event) -> Mapping[str, Any]:
    return {"file_path": given["filePath"], **given} if "filePath" in given else given


def _sum(*counts: object) -> int:
    return sum(int(as_number(count) or 0) for count in counts)
