"""How a run over the Agent Client Protocol ended: by its answer, its error, or the words that are left of it. Pure."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Mapping
from dataclasses import dataclass, replace

from pilot.backends.acp_agents import Known
from pilot.backends.acp_events import Record
from pilot.backends.reading import Event, Words, as_event, as_list, as_text, by_words, killer
from pilot.domain.outcome import Ending, FailureClass, Outcome, Question, failed
from pilot.domain.text import clean, for_terminal, one_line, tail

AUTH_REQUIRED = -32000
_SHOWN = 500
_BY_STATUS: Mapping[int, FailureClass] = {
    AUTH_REQUIRED: FailureClass.AUTH,
    401: FailureClass.AUTH,
    402: FailureClass.QUOTA,
    403: FailureClass.AUTH,
    404: FailureClass.INVALID_CONFIG,
    407: FailureClass.NETWORK,
    408: FailureClass.NETWORK,
    429: FailureClass.RATE_LIMIT,
}
"""JSON-RPC's codes are negative; some agents give the model's HTTP status instead."""
_BY_NAME: Mapping[str, FailureClass] = {
    "ProviderAuthError": FailureClass.AUTH,
    "ContextOverflowError": FailureClass.AGENT,
    "MessageOutputLengthError": FailureClass.AGENT,
    "ContentFilterError": FailureClass.REFUSAL,
    "ProviderModelNotFoundError": FailureClass.INVALID_CONFIG,
}


def _words(*table: tuple[str, FailureClass]) -> Words:
    return tuple((re.compile(words, re.IGNORECASE), failure) for words, failure in table)


_BY_WORDS = _words(
    (r"(prompt|context|input|conversation).{0,40}too (long|large)|context (window|length)", FailureClass.AGENT),
    (
        r"api.?key (is )?(not valid|invalid|missing|required|expired)|(invalid|incorrect|missing|no) \S*api.?key"
        r"|not logged in|log ?in (again|first)|unauthori[sz]ed|unauthenticated|invalid.{0,20}(token|credential)"
        r"|authenticat(e|ion) (failed|required|error)|token (has )?expired",
        FailureClass.AUTH,
    ),
    (
        r"(exhausted|exceeded) (your|its|the) .{0,20}quota|quota exceeded|insufficient.quota|credit balance|billing"
        r"|(usage|spending) limit|limit reached",
        FailureClass.QUOTA,
    ),
    (r"rate.?limit|too many requests|resource.?(has been )?exhausted|status.{0,8}\b429\b", FailureClass.RATE_LIMIT),
    (
        r"model.{0,60}(not found|not exist|not supported|unknown)|unknown model|models?/\S+ is not|^[^:]*: model: \S+$",
        FailureClass.INVALID_CONFIG,
    ),
    (
        r"ECONN|ENOTFOUND|ETIMEDOUT|EAI_AGAIN|EPIPE|fetch failed|socket|network|unable to connect|connection|timed out"
        r"|overloaded|unavailable|internal server error|bad gateway|\bterminated\b|\b(500|502|503|504|529)\b",
        FailureClass.NETWORK,
    ),
)
_BY_STDERR = (
    *_BY_WORDS[1:],
    *_words(
        (r"unknown (argument|option|command)|unrecognized|invalid option|usage:", FailureClass.INVALID_CONFIG),
        (r"command not found|no such file or directory|cannot find module", FailureClass.INVALID_CONFIG),
    ),
)
_AFTER = re.compile(
    r"(?:retry|again|resets?|available)\b.{0,20}?\b(?:after|in) (\d+(?:\.\d+)?) ?(s|m|h|d)(?:ec|in|our|ay|\b)",
    re.IGNORECASE,
)
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_STOPPED: Mapping[str, tuple[FailureClass, str]] = {
    "refusal": (FailureClass.REFUSAL, "the model refuses this request"),
    "max_tokens": (FailureClass.AGENT, "the model's answer became too long, and was cut"),
    "max_turn_requests": (FailureClass.AGENT, "the agent reached its limit of turns"),
    "cancelled": (FailureClass.AGENT, "the agent says that it was cancelled, and nobody asked it to"),
}


@dataclass(frozen=True, slots=True)
class Answer:
    """What an agent answered to a request: one of both."""

    result: Event | None = None
    error: Event | None = None

    @property
    def words(self) -> str:
        """The error's message, and what details say more."""
        error = as_event(self.error)
        data = error.get("data")
        details = as_text(data) or as_text(as_event(data).get("details"))
        said = _inner(as_text(error.get("message")))
        return ": ".join(part for part in (said, _inner(details)) if part)


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """How the program ended. `returncode` None: pilot ended it. `oom`: the kernel killed for memory meanwhile."""

    returncode: int | None
    stderr: str
    oom: bool = False


def finished(record: Record, answer: Event, end: End, agent: Known) -> Outcome:
    """Judge a turn that the agent says is over. Success needs its exit status, too, when it exits by itself."""
    stop = as_text(answer.get("stopReason"))
    if stop == "refusal" or (stop in _STOPPED and not record.denied):
        failure, why = _STOPPED[stop]
        judged = failed(failure, why, excerpt=f"stopReason={stop}")
    elif record.denied:
        judged = _denied(record.denied)
    elif stop != "end_turn":
        judged = failed(FailureClass.AGENT, f"the agent stopped: {one_line(stop) or 'no reason'}")
    elif not record.spoke and (record.used_nothing or agent.silent_end):
        judged = failed(
            FailureClass.AGENT, "the agent ended without a word: its model's answer was empty, broken or held back"
        )
    elif end.returncode:
        judged = failed(
            FailureClass.AGENT,
            f"the agent ended well but its process did not: it exited with {end.returncode}",
            excerpt=_excerpt(end),
        )
    else:
        judged = Outcome(ending=Ending.DONE)
    return _with_facts(judged, record)


def refused(record: Record, answer: Answer, end: End, *, now: int) -> Outcome:
    """Judge an error that the agent answered with instead. `now`: UTC ms."""
    if record.denied:
        return _with_facts(_denied(record.denied), record)
    words = answer.words
    failure = classify(answer)
    evidence = for_terminal(tail(json.dumps(answer.error, ensure_ascii=False, default=str)))
    retry_at = _retry_at(words, now) if failure in (FailureClass.RATE_LIMIT, FailureClass.QUOTA) else None
    excerpt = f"{evidence}\n{_excerpt(end)}".strip()
    detail = one_line(words, _SHOWN) or "the agent answered with an error"
    return _with_facts(failed(failure, detail, excerpt=excerpt, retry_at=retry_at), record)


def broken_off(record: Record, end: End, *, during: str, stranger: bool = False) -> Outcome:
    """Judge a program that ended before it had answered. `stranger`: it said things, but nothing of the protocol."""
    words = one_line(tail(end.stderr.strip(), _SHOWN), _SHOWN + 10)
    by = killer(end.returncode)
    if by is signal.SIGKILL and end.oom:
        judged = failed(FailureClass.OOM, "the agent was killed by the kernel for want of memory")
    elif by is not None:
        judged = failed(FailureClass.AGENT, f"the agent was killed by {by.name}")
    elif failure := by_words(end.stderr, _BY_STDERR):
        judged = failed(failure, words)
    else:
        exited = "closed its output" if end.returncode is None else f"exited with {end.returncode}"
        failure = FailureClass.INVALID_CONFIG if stranger else FailureClass.AGENT
        judged = failed(failure, f"the agent {exited} before it had answered {during}: {words or 'no word'}")
    return _with_facts(replace(judged, excerpt=_excerpt(end)), record)


def session_lost(words: str) -> Outcome:
    """The session to go on in does not exist here; nothing was asked of the model."""
    return failed(
        FailureClass.AGENT, f"the agent's session was not found: {one_line(words, _SHOWN)}", session_lost=True
    )


def brings_plugins(found: list[str]) -> Outcome:
    """Code of the repository that the agent would run unasked, with its account's key, and outside of a sandbox."""
    some = one_line(", ".join(found), 300)
    text = (
        f"This repository brings plugins that the agent would run as its own: {some}\n"
        "Have agents run in a sandbox (executor.sandbox), take the plugins away, or give this task to another agent."
    )
    return Outcome(ending=Ending.QUESTION, question=Question(text), detail=f"plugins: {some}")


def classify(answer: Answer) -> FailureClass:
    """The class of an error: by what its words say, else by its code, else by its name."""
    error = as_event(answer.error)
    data, code = as_event(error.get("data")), error.get("code")
    if code == AUTH_REQUIRED:
        return FailureClass.AUTH
    if failure := _BY_NAME.get(as_text(data.get("errorName"))):
        return failure
    if failure := by_words(answer.words, _BY_WORDS):
        return failure
    for number in (code, data.get("statusCode"), data.get("status")):
        if isinstance(number, int) and not isinstance(number, bool):
            if failure := _BY_STATUS.get(number):
                return failure
            if 500 <= number < 600:
                return FailureClass.NETWORK
    # a call of the model's API that failed again and again, for a reason that nobody has told
    return FailureClass.NETWORK if data.get("errorName") == "APIError" else FailureClass.AGENT


def ways_in(offered: Event) -> str:
    """The ways of authentication that an agent offers, for a person."""
    methods = [as_event(method) for method in as_list(offered.get("authMethods"))]
    return ", ".join(one_line(as_text(m.get("name")) or as_text(m.get("id")), 60) for m in methods)


def _denied(denied: list[str]) -> Outcome:
    what = one_line("; ".join(denied), _SHOWN)
    question = (
        f"The agent asked whether it may, and was not allowed: {what}\n"
        "Set executor.acp.permissions to allow and answer to go on, or answer how to go on without it."
    )
    return Outcome(ending=Ending.QUESTION, question=Question(question), detail=f"denied: {what}")


def _with_facts(judged: Outcome, record: Record) -> Outcome:
    return replace(judged, text=clean(record.text), model=record.model, usage=record.usage, session_id=record.session)


def _excerpt(end: End) -> str:
    return for_terminal(tail(f"exit={end.returncode}\n{end.stderr}".strip()))


def _inner(words: str) -> str:
    """The message in what some agents hand on as it came: the API's own JSON."""
    if words.lstrip().startswith("{"):
        try:
            given = as_event(json.loads(words))
        except (ValueError, RecursionError):
            return words
        said = as_text(as_event(given.get("error")).get("message")) or as_text(given.get("message"))
        return said or words
    return words


def _retry_at(words: str, now: int) -> int | None:
    found = _AFTER.search(words)
    return now + int(float(found[1]) * 1000) * _SECONDS[found[2].lower()] if found else None
