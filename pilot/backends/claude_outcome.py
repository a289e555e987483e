"""How a run of Claude Code ended, from its last lines, its exit status and, last of all, its words. Pure."""

from __future__ import annotations

import re
import signal
from collections.abc import Mapping
from dataclasses import replace

from pilot.backends.claude_events import Record
from pilot.backends.reading import Event, Words, as_event, as_list, as_number, as_text, by_words, killer
from pilot.domain.outcome import Ending, FailureClass, Outcome, Question, Usage, failed
from pilot.domain.text import clean, for_terminal, one_line, tail

_BY_ERROR: Mapping[str, FailureClass] = {
    "authentication_failed": FailureClass.AUTH,
    "oauth_org_not_allowed": FailureClass.AUTH,
    "billing_error": FailureClass.QUOTA,
    "rate_limit": FailureClass.RATE_LIMIT,
    "overloaded": FailureClass.NETWORK,
    "server_error": FailureClass.NETWORK,
    "model_not_found": FailureClass.INVALID_CONFIG,
    "max_output_tokens": FailureClass.AGENT,
}
"""The class that the CLI gives to a failed call of the API: the best sign there is."""

_BY_STATUS: Mapping[int, FailureClass] = {
    401: FailureClass.AUTH,
    402: FailureClass.QUOTA,
    403: FailureClass.AUTH,
    404: FailureClass.INVALID_CONFIG,
    407: FailureClass.NETWORK,
    408: FailureClass.NETWORK,
    413: FailureClass.AGENT,
    429: FailureClass.RATE_LIMIT,
}

_BY_WORDS: Words = tuple(
    (re.compile(words, re.IGNORECASE), failure)
    for words, failure in (
        (r"prompt is too long|conversation (is )?too long|too large", FailureClass.AGENT),
        (r"not logged in|/login|invalid api key|oauth token|failed to authenticate", FailureClass.AUTH),
        (r"credit balance|hit your .{0,20}limit|usage limit", FailureClass.QUOTA),
        (r"unable to connect|ECONN|ETIMEDOUT|ENOTFOUND|timed out|overloaded", FailureClass.NETWORK),
    )
)
_BY_STDERR: Words = (
    *_BY_WORDS[1:],
    (re.compile(r"cannot be used with root", re.IGNORECASE), FailureClass.INVALID_CONFIG),
    (
        re.compile(
            r"^error: (unknown|option|required|missing|too many)|settings file|mcp config|is invalid\b"
            r"|command not found|no such file or directory",
            re.IGNORECASE | re.MULTILINE,
        ),
        FailureClass.INVALID_CONFIG,
    ),
)
_NO_SESSION = re.compile(r"No conversation found|is not a UUID and does not match any session", re.IGNORECASE)
_IN_USE = re.compile(r"Session ID \S+ is already in use", re.IGNORECASE)
_THIS_CONVERSATION = re.compile(r"messages\.\d|tool_use|tool_result|image|pdf|too[ _](long|large)", re.IGNORECASE)
_SHOWN = 500


def session_in_use(record: Record, stderr: str) -> bool:
    """The id chosen for a new session already has a conversation: an earlier start got that far."""
    return record.result is None and _IN_USE.search(stderr) is not None


def outcome(record: Record, returncode: int | None, stderr: str, *, oom: bool = False) -> Outcome:
    """Judge a run that is over.

    `returncode` None: pilot ended it, because it did not exit after its result. `oom`: the kernel killed for
    memory meanwhile. Success needs all of exit status, result line, `is_error`, `subtype` and a turn that was
    taken: each alone has been seen to lie. A denied tool does not fail the CLI, but is a question for a person.
    """
    result = record.result
    if result is None:
        judged = _without_result(returncode, stderr, oom)
    elif _NO_SESSION.search(_words(result)):
        judged = session_lost(_words(result))
    elif returncode in (0, None) and _succeeded(result):
        judged = _done(record)
    else:
        judged = _failed(record, result, returncode)
    return _with_facts(judged, record)


def session_lost(detail: str) -> Outcome:
    """The session to go on in does not exist here; nothing was asked of the model."""
    return failed(
        FailureClass.AGENT, f"the agent's session was not found: {one_line(detail, _SHOWN)}", session_lost=True
    )


def _with_facts(judged: Outcome, record: Record) -> Outcome:
    said = as_text(as_event(record.result).get("result")) or record.text
    return replace(
        judged,
        text=clean(said),
        model=record.model,
        usage=_usage(as_event(record.result)),
        session_id=None if judged.session_lost else record.session_id,
    )


def _succeeded(result: Event) -> bool:
    turns = as_number(result.get("num_turns"))
    return result.get("is_error") is False and result.get("subtype") == "success" and bool(turns)


def _done(record: Record) -> Outcome:
    if not record.denied:
        return Outcome(ending=Ending.DONE)
    denied = one_line("; ".join(record.denied), _SHOWN)
    question = (
        f"The agent was not allowed to use: {denied}\n"
        f"Allow it in executor.claude-code (permission_mode, now {record.permission_mode or 'unknown'}; "
        "or --allowedTools in extra_args) and answer to go on, or answer how to go on without it."
    )
    return Outcome(ending=Ending.QUESTION, question=Question(question), detail=f"denied: {denied}")


def _failed(record: Record, result: Event, returncode: int | None) -> Outcome:
    words = _words(result)
    failure, why = _classify(record, result, words)
    evidence = {
        "error": record.error,
        "api_error_status": result.get("api_error_status"),
        "subtype": result.get("subtype"),
        "stop_reason": result.get("stop_reason"),
        "terminal_reason": result.get("terminal_reason"),
        "num_turns": result.get("num_turns"),
        "exit": returncode,
    }
    seen = " ".join(f"{name}={value}" for name, value in evidence.items() if value is not None)
    detail = one_line(": ".join(part for part in (why, words) if part), _SHOWN)
    retry_at = _resets_at(record) if failure in (FailureClass.RATE_LIMIT, FailureClass.QUOTA) else None
    return failed(failure, detail or seen, excerpt=for_terminal(tail(f"{seen}\n{words}")), retry_at=retry_at)


def _classify(record: Record, result: Event, words: str) -> tuple[FailureClass, str]:
    subtype, status = as_text(result.get("subtype")), result.get("api_error_status")
    if result.get("stop_reason") == "refusal" or record.refused:
        return FailureClass.REFUSAL, "the model refuses this request"
    if subtype == "error_max_budget_usd":
        return FailureClass.BUDGET, "the agent has cost as much as it may"
    if subtype.startswith("error_max_"):
        return FailureClass.AGENT, "the agent reached a limit of its run"
    which = as_text(record.limit.get("rateLimitType"))
    if record.error == "rate_limit" and record.limit.get("status") == "rejected" and which:
        # a subscription's allowance (five hours, a week) is used up, not its speed: that has no name
        return FailureClass.QUOTA, f"the allowance is used up ({which})"
    if failure := _BY_ERROR.get(record.error or ""):
        return failure, ""
    if isinstance(status, int) and (failure := _by_status(status)):
        return failure, ""
    if record.error == "invalid_request":
        # no other conversation would suffer from a tool result or a picture too many: don't park the backend
        ours = _THIS_CONVERSATION.search(f"{result.get('terminal_reason')} {words}")
        return FailureClass.AGENT if ours else FailureClass.INVALID_CONFIG, ""
    if subtype == "success" and result.get("is_error") is False:
        why = "the agent ended well but its process did not" if result.get("num_turns") else "no turn was taken"
        return FailureClass.AGENT, why
    if failure := by_words(words, _BY_WORDS):
        return failure, ""
    return (FailureClass.UNKNOWN if record.error == "unknown" else FailureClass.AGENT), "the agent gave up"


def _without_result(returncode: int | None, stderr: str, oom: bool) -> Outcome:
    words = one_line(tail(stderr.strip(), _SHOWN), _SHOWN + 10)
    excerpt = for_terminal(tail(f"exit={returncode}\n{stderr}".strip()))
    if _NO_SESSION.search(stderr):
        return session_lost(words)
    number = killer(returncode)
    if number is signal.SIGKILL and oom:
        return failed(FailureClass.OOM, "the agent was killed by the kernel for want of memory", excerpt=excerpt)
    if number is not None:
        return failed(FailureClass.AGENT, f"the agent was killed by {number.name}", excerpt=excerpt)
    if failure := by_words(stderr, _BY_STDERR):
        return failed(failure, words, excerpt=excerpt)
    exited = "did not exit" if returncode is None else f"exited with {returncode}"
    return failed(FailureClass.AGENT, f"the agent {exited} without a result: {words or 'no word'}", excerpt=excerpt)


def _by_status(status: int) -> FailureClass | None:
    return FailureClass.NETWORK if status >= 500 else _BY_STATUS.get(status)


def _words(result: Event) -> str:
    errors = [as_text(error) for error in as_list(result.get("errors"))]
    return "; ".join(errors) or as_text(result.get("result"))


def _resets_at(record: Record) -> int | None:
    seconds = as_number(record.limit.get("resetsAt"))
    return int(seconds * 1000) if seconds and record.limit.get("status") == "rejected" else None


def _usage(result: Event) -> Usage:
    """The whole run's: `modelUsage` and the cost count the process, `usage` only its last turn."""
    counts = [as_event(count) for count in as_event(result.get("modelUsage")).values()]
    names = (("inputTokens", "cacheReadInputTokens", "cacheCreationInputTokens"), ("outputTokens",))
    if not counts:
        counts = [as_event(result.get("usage"))]
        names = (
            ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens"),
            ("output_tokens",),
        )
    tokens_in, tokens_out = (_sum(counts, wanted) for wanted in names)
    return Usage(tokens_in, tokens_out, as_number(result.get("total_cost_usd")))


def _sum(counts: list[Event], names: tuple[str, ...]) -> int | None:
    numbers = [number for count in counts for name in names if (number := as_number(count.get(name))) is not None]
    return int(sum(numbers)) if numbers else None
