"""How a run of Codex ended: from its last event, its exit status, and its words, which alone tell why. Pure."""

from __future__ import annotations

import re
import signal
from dataclasses import replace
from datetime import datetime, timedelta

from pilot.backends.codex_events import Record
from pilot.backends.reading import Words, as_event, as_text, by_words, killer, parsed
from pilot.domain.outcome import Ending, FailureClass, Outcome, Question, Usage, failed
from pilot.domain.text import clean, for_terminal, one_line, tail

_SHOWN = 500


def _table(*rows: tuple[str, FailureClass]) -> Words:
    return tuple((re.compile(words, re.IGNORECASE), failure) for words, failure in rows)


_BY_WORDS = _table(
    # the program's own sentences first: what follows them may be anybody's text
    (r"^Codex ran out of room in the model's context window", FailureClass.AGENT),
    (r"^Quota exceeded\b", FailureClass.QUOTA),
    (r"hit your usage limit|out of credits", FailureClass.QUOTA),
    (r"^To use Codex with your ChatGPT plan\b", FailureClass.QUOTA),
    (r"waiting for network|Connection failed", FailureClass.NETWORK),
    (r"Selected model is at capacity|currently experiencing high demand", FailureClass.NETWORK),
    (r"last status: 429|unexpected status 429|rate limit (exceeded|reached)", FailureClass.RATE_LIMIT),
    (r"unexpected status (401|403)|last status: (401|403)", FailureClass.AUTH),
    (r"not logged in|log ?in again|sign in again|refresh token|access token could not", FailureClass.AUTH),
    (r"unexpected status 402", FailureClass.QUOTA),
    (r"unexpected status 413|Input exceeds the maximum length|too large", FailureClass.AGENT),
    (r"unexpected status 404", FailureClass.INVALID_CONFIG),
    (r"unexpected status 5\d\d|last status: 5\d\d", FailureClass.NETWORK),
    (r"Missing environment variable|Model provider .* not found", FailureClass.INVALID_CONFIG),
    (r"content_filter|cyber_policy|usage polic|invalid prompt|flagged (as|for)|safety (system|check)",
     FailureClass.REFUSAL),
    (r"^Incomplete response returned", FailureClass.AGENT),
    (r"stream disconnected|idle timeout waiting for SSE|error sending request|timed out", FailureClass.NETWORK),
    # what the API said, passed on as it came
    (r"model_not_found|\bmodel\b.{0,80}\b(does not exist|not supported|not found|no access)",
     FailureClass.INVALID_CONFIG),
    (r"invalid_api_key|incorrect api key", FailureClass.AUTH),
    (r"insufficient_quota|exceeded your current quota|billing", FailureClass.QUOTA),
)  # fmt: skip
_BY_STDERR: Words = (
    *_table(
        (r"^error: (unexpected argument|invalid value|the argument|a value is required|unrecognized)",
         FailureClass.INVALID_CONFIG),
        (r"^Error loading config|^Error finding codex home|CODEX_HOME points to", FailureClass.INVALID_CONFIG),
    ),
    *_BY_WORDS,
)  # fmt: skip
_NO_SESSION = re.compile(r"no rollout found for thread id|thread/resume failed|no such thread", re.IGNORECASE)
_AT = re.compile(
    r"try again at (?:(?P<month>[A-Z][a-z]{2}) (?P<day>\d{1,2})(?:st|nd|rd|th), (?P<year>\d{4}) )?"
    r"(?P<hour>\d{1,2}):(?P<minute>\d\d) (?P<half>[AP]M)"
)
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def outcome(
    record: Record,
    returncode: int | None,
    stderr: str,
    *,
    now: datetime,
    sandbox: str = "",
    oom: bool = False,
) -> Outcome:
    """Judge a run that is over.

    `returncode` None: pilot ended it, because it did not exit after its turn, or waited for its model without end.
    `now` is in the time zone that the program told its times in. `sandbox` is its mode, for people. `oom`: the
    kernel killed for memory meanwhile.
    """
    if record.end == "completed":
        judged = _done(record, returncode, sandbox)
    elif record.end == "failed" or (returncode is None and record.retrying):
        judged = _failed(record, returncode, now)
    else:
        judged = _without_end(record, returncode, stderr, now, oom)
    return replace(judged, text=clean(record.text), session_id=None if judged.session_lost else record.thread)


def session_lost(detail: str) -> Outcome:
    """The session to go on in does not exist here; nothing was asked of the model."""
    return failed(
        FailureClass.AGENT, f"the agent's session was not found: {one_line(detail, _SHOWN)}", session_lost=True
    )


def usage(record: Record, before: Usage) -> Usage:
    """What this run has used up: the program counts a thread's whole life, and `before` is what was booked of that.

    A run that was ended before its turn says nothing, and is in the sum of the next one (killed, but for its last
    call). It knows of no cost.
    """

    def own(whole: float | None, booked: int | None) -> int | None:
        return None if whole is None else max(int(whole) - (booked or 0), 0)

    return Usage(
        own(record.input_tokens, before.input_tokens),
        own(record.output_tokens, before.output_tokens),
    )


def _done(record: Record, returncode: int | None, sandbox: str) -> Outcome:
    if returncode not in (0, None):
        ended = f"exit={returncode}"
        return failed(FailureClass.AGENT, f"the agent ended well but its process did not ({ended})", excerpt=ended)
    if not record.refused:
        return Outcome(ending=Ending.DONE)
    refused = one_line("; ".join(dict.fromkeys(record.refused)), _SHOWN)
    question = (
        f"The agent asked for more than it may: {refused}\n"
        f"Allow it in executor.codex (sandbox, now {sandbox or 'unknown'}; or "
        "`-c sandbox_workspace_write.network_access=true` in extra_args) and answer to go on, or answer how to go on "
        "without it."
    )
    return Outcome(ending=Ending.QUESTION, question=Question(question), detail=f"refused: {refused}")


def _failed(record: Record, returncode: int | None, now: datetime) -> Outcome:
    failure = by_words(record.error, _BY_WORDS) or FailureClass.AGENT
    retry_at = _back_at(record.error, now) if failure in (FailureClass.QUOTA, FailureClass.RATE_LIMIT) else None
    seen = f"turn.{record.end or 'unfinished'} exit={returncode}"
    detail = one_line(_message(record.error), _SHOWN) or f"the agent gave up without a reason ({seen})"
    return failed(failure, detail, excerpt=for_terminal(tail(f"{seen}\n{record.error}")), retry_at=retry_at)


def _message(words: str) -> str:
    """What the API's answer says, which is passed on whole."""
    body = as_event(as_event(parsed(words.encode(errors="replace"))).get("error"))
    return as_text(body.get("message")) or words


def _without_end(record: Record, returncode: int | None, stderr: str, now: datetime, oom: bool) -> Outcome:
    words = one_line(tail(stderr.strip(), _SHOWN), _SHOWN + 10)
    excerpt = for_terminal(tail(f"exit={returncode}\n{stderr}".strip()))
    if _NO_SESSION.search(stderr):
        return session_lost(words)
    number = killer(returncode)
    if number is signal.SIGKILL and oom:
        return failed(FailureClass.OOM, "the agent was killed by the kernel for want of memory", excerpt=excerpt)
    if number is not None:
        return failed(FailureClass.AGENT, f"the agent was killed by {number.name}", excerpt=excerpt)
    if failure := _by_line(stderr):
        return failed(failure, words, excerpt=excerpt)
    exited = "did not exit" if returncode is None else f"exited with {returncode}"
    why = words or one_line(record.error, _SHOWN) or "no word"
    return failed(FailureClass.AGENT, f"the agent {exited} without an end of its turn: {why}", excerpt=excerpt)


def _by_line(stderr: str) -> FailureClass | None:
    """The class of the first line that has one: the program's complaint stands before its usage."""
    found = (by_words(line.strip(), _BY_STDERR) for line in stderr.splitlines())
    return next((failure for failure in found if failure), None)


def _back_at(words: str, now: datetime) -> int | None:
    """When the allowance is back, UTC ms; None when that is not said.

    It is said to the minute, in local time, without a date when that is today's.
    """
    found = _AT.search(words)
    if found is None:
        return None
    hour = int(found["hour"]) % 12 + (12 if found["half"] == "PM" else 0)
    try:
        at = now.replace(hour=hour, minute=int(found["minute"]), second=0, microsecond=0)
        if found["month"]:
            month = _MONTHS.index(found["month"]) + 1
            at = at.replace(year=int(found["year"]), month=month, day=int(found["day"]))
    except ValueError:
        return None
    if not found["month"] and at < now - timedelta(minutes=5):
        at += timedelta(days=1)  # midnight came between its words and ours
    return int((at + timedelta(minutes=1)).timestamp() * 1000)
