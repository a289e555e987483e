"""How a turn of OpenCode ended, from its last message, its errors and, last of all, its words. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from pilot.backends.opencode_events import Record
from pilot.backends.reading import Event, Words, as_event, as_number, as_text, by_words, killer
from pilot.domain.outcome import Ending, FailureClass, Outcome, Question, failed
from pilot.domain.text import clean, for_terminal, one_line, tail

FAR = 30_000
"""Milliseconds: a pause as long as this is a reset time, and admission's affair."""
TRIES = 3
"""Failures of the model's API after which admission knows better when; the program would go on for a minute."""
OVERFLOWS = 3
"""Times in a row that the conversation may be too long: the program shortens it and tries again, for ever."""

_BY_NAME: Mapping[str, FailureClass] = {
    "ProviderAuthError": FailureClass.AUTH,
    "MessageAbortedError": FailureClass.AGENT,
    "ContextOverflowError": FailureClass.AGENT,
    "MessageOutputLengthError": FailureClass.AGENT,
    "StructuredOutputError": FailureClass.AGENT,
    "ContentFilterError": FailureClass.REFUSAL,
}
_BY_STATUS: Mapping[int, FailureClass] = {
    401: FailureClass.AUTH,
    402: FailureClass.QUOTA,
    403: FailureClass.AUTH,
    404: FailureClass.INVALID_CONFIG,
    407: FailureClass.NETWORK,
    408: FailureClass.NETWORK,
    409: FailureClass.NETWORK,
    413: FailureClass.AGENT,
    429: FailureClass.RATE_LIMIT,
}


def _words(*table: tuple[str, FailureClass]) -> Words:
    return tuple((re.compile(words, re.IGNORECASE), failure) for words, failure in table)


_SPENT = _words(
    (r"insufficient_quota|credit balance|billing|payment|spending limit|usage limit", FailureClass.QUOTA),
    (r"exceeded your current quota|quota exceeded|free.{0,10}limit", FailureClass.QUOTA),
)
_RETRIED = (
    *_SPENT,
    *_words((r"rate.?limit|too many requests|\b429\b|resource.{0,20}exhausted|slow down", FailureClass.RATE_LIMIT)),
)
_CONVERSATION = re.compile(r"messages\.\d|tool_use|tool_result|tool call|image|pdf|too[ _](long|large)|token", re.I)
_UNKNOWN = _words(
    (r"timed? ?out|unable to connect|cannot connect|socket|ECONN|ENOTFOUND|fetch failed", FailureClass.NETWORK),
    (r"not found|ModelNotFound|no such (model|agent|provider)|not valid|invalid", FailureClass.INVALID_CONFIG),
)
_START = _words(
    (r"Configuration is invalid|ConfigInvalid|ConfigJsonError|unknown (option|argument)", FailureClass.INVALID_CONFIG),
    (r"command not found|no such file or directory|cannot execute", FailureClass.INVALID_CONFIG),
    (r"ServeError|EADDRINUSE|database is locked|SQLITE_|Failed query", FailureClass.INFRA),
)
_SHOWN = 500


def outcome(record: Record) -> Outcome:
    """Judge a turn after which the session is idle. Nothing is said there when a request was refused."""
    return _with_facts(_judged(record), record)


def held_up(record: Record, now: int) -> Outcome | None:
    """The end of a turn that waits for its model too long; None: it may go on. `now` is UTC milliseconds."""
    retry = record.retry
    if record.overflows >= OVERFLOWS:
        words = f"the conversation stays too long for the model: {_message(as_event(record.error))}"
        return _with_facts(failed(FailureClass.AGENT, one_line(words, _SHOWN)), record)
    if retry is None or (retry.next - now < FAR and retry.attempt < TRIES):
        return None
    far = retry.next - now >= FAR
    # a status has no code: who names a time that is far away has set a limit
    failure = by_words(retry.message, _RETRIED) or (FailureClass.RATE_LIMIT if far else FailureClass.NETWORK)
    named = far and failure in (FailureClass.RATE_LIMIT, FailureClass.QUOTA)
    end = failed(
        failure,
        one_line(retry.message, _SHOWN) or "the model's API failed",
        excerpt=for_terminal(f"attempt={retry.attempt} wait={max(retry.next - now, 0) // 1000}s\n{retry.message}"),
        retry_at=retry.next if named else None,
    )
    return _with_facts(end, record)


def server_gone(record: Record | None, returncode: int | None, complaint: str, *, oom: bool) -> Outcome:
    """The server ended before the turn did, or (`record` None) before it answered. The session is kept."""
    words = one_line(tail(complaint.strip(), _SHOWN), _SHOWN + 10)
    excerpt = for_terminal(tail(f"exit={returncode}\n{complaint}".strip()))
    signal = killer(returncode)
    how = f"was killed by {signal.name}" if signal else f"exited with {returncode}"
    detail = f"the agent's server {how}: {words or 'no word'}"
    if oom and signal is not None:
        end = failed(FailureClass.OOM, "the agent's server was killed for want of memory", excerpt=excerpt)
    elif record is None:
        end = failed(by_words(complaint, _START) or FailureClass.AGENT, detail, excerpt=excerpt)
    else:
        end = failed(FailureClass.INFRA, detail, excerpt=excerpt)
    return end if record is None else _with_facts(end, record)


def cut_off(record: Record, why: str) -> Outcome:
    """Nobody answers any more; the session is kept, and what it does is unknown."""
    return _with_facts(failed(FailureClass.NETWORK, f"the agent's server does not answer: {one_line(why)}"), record)


def session_lost(detail: str) -> Outcome:
    """The session to go on in does not exist here; nothing was asked of the model."""
    return failed(
        FailureClass.AGENT, f"the agent's session was not found: {one_line(detail, _SHOWN)}", session_lost=True
    )


def _judged(record: Record) -> Outcome:
    last = record.last
    if record.asked:
        return _question(record)
    if last is None:
        if record.error:
            return _failed(record.error)
        return failed(FailureClass.AGENT, "the agent did nothing, and said nothing about it")
    if error := as_event(last.get("error")):
        return _failed(error)
    match last.get("finish"):
        case "stop":
            return Outcome(ending=Ending.DONE)
        case "length":
            return failed(FailureClass.AGENT, "the model's answer was cut off at its longest")
        case "content-filter":
            return failed(FailureClass.REFUSAL, "the model refuses this request")
        case "tool-calls":
            text = (
                "The agent stopped because it was not allowed to do something, and did not say what; see `pilot logs`."
            )
            return Outcome(ending=Ending.QUESTION, question=Question(text), detail="refused")
        case None if record.error:
            return _failed(record.error)
        case None:
            return failed(FailureClass.AGENT, "the agent was stopped by somebody else before it was done")
        case finish:
            return failed(FailureClass.AGENT, f"the model ended without an end: {one_line(str(finish))}")


def _question(record: Record) -> Outcome:
    refused = [one.text for one in record.asked if one.permission]
    asked = [one for one in record.asked if not one.permission]
    if refused:
        wanted = one_line("; ".join(refused), _SHOWN)
        text = (
            f"The agent was not allowed: {wanted}\n"
            "Allow it in OpenCode's own settings (permission) and answer to go on, or answer how to go on without it."
        )
        return Outcome(ending=Ending.QUESTION, question=Question(text), detail=f"denied: {wanted}")
    text = "\n".join(one.text for one in asked).strip() or "The agent asked, and nobody knows what."
    options = asked[0].options if len(asked) == 1 else ()
    return Outcome(ending=Ending.QUESTION, question=Question(clean(text), options), detail="asked")


def _failed(error: Event) -> Outcome:
    name, data = as_text(error.get("name")), as_event(error.get("data"))
    status, words = as_number(data.get("statusCode")), _message(error)
    failure = _classify(name, None if status is None else int(status), data, words)
    # the answer's head and body can hold secrets: they are not handed on
    seen = f"{name} status={data.get('statusCode')} retryable={data.get('isRetryable')}"
    detail = one_line(words, _SHOWN) or name or "an error without a name"
    return failed(failure, detail, excerpt=for_terminal(tail(f"{seen}\n{words}")))


def _classify(name: str, status: int | None, data: Event, words: str) -> FailureClass:
    if known := _BY_NAME.get(name):
        return known
    if name == "APIError":
        if spent := by_words(f"{words} {as_text(data.get('responseBody'))}", _SPENT):
            return spent
        if status is not None and status >= 500:
            return FailureClass.NETWORK
        if status is not None and (failure := _BY_STATUS.get(status)):
            return failure
        if data.get("isRetryable") is True:
            return FailureClass.NETWORK
        if status is not None and 400 <= status < 500:
            # no other conversation would suffer from a tool result or a picture too many: don't park the backend
            return FailureClass.AGENT if _CONVERSATION.search(words) else FailureClass.INVALID_CONFIG
    return by_words(words, _UNKNOWN) or FailureClass.UNKNOWN


def _message(error: Event) -> str:
    # an UnknownError's is a stack trace
    return as_text(as_event(error.get("data")).get("message")).strip().split("\n    at ", 1)[0]


def _with_facts(judged: Outcome, record: Record) -> Outcome:
    last = as_event(record.last)
    provider, model = as_text(last.get("providerID")), as_text(last.get("modelID"))
    return replace(
        judged,
        text=clean(record.text),
        model=f"{provider}/{model}" if provider and model else None,
        usage=record.usage,
        session_id=record.session,
    )
