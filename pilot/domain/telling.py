"""How things stand, in words for people who follow from afar: plain text, without markup of any service. Pure.

What comes from outside (titles, agents' words) is made one line or cut here; redacting it is its sender's business.
"""

from __future__ import annotations

from typing import Protocol

from pilot.domain.delivery import Asked, Pull, PullState, Report
from pilot.domain.execution import Checks, Execution, Status
from pilot.domain.text import for_terminal, one_line

QUESTION_SHOWN = 2500
"""Characters of a question; the ticket and `pilot why` have all of it."""
_SUMMARY_SHOWN = 800
_MARKS = {
    Status.BLOCKED: "🕓",
    Status.QUEUED: "🕓",
    Status.RUNNING: "▶️",
    Status.NEEDS_HUMAN: "❓",
    Status.COMPLETED: "✅",
    Status.FAILED: "❌",
    Status.CANCELLED: "🚫",
}


def headline(execution: Execution, mark: str | None = None) -> str:
    """Its first line: `✅ 12 · api · GH-46 · Fix the login`."""
    words = [str(execution.id), one_line(execution.project, 60)]
    if execution.source != "telegram":  # there the task id is made from the title
        words.append(one_line(execution.task_id, 60))
    title = one_line(execution.title, 120)
    return f"{mark or _MARKS[execution.status]} {' · '.join(words)} · {title}"


def named(text: str) -> int | None:
    """The execution that a text with a `headline` is about."""
    number = text.partition(" · ")[0].rpartition(" ")[2]
    return int(number) if _is_number(number) else None


def standing(report: Report, now: int, *, waits: str = "", doing: str = "", said: str = "", chat: bool = True) -> str:
    """How it stands. `waits`: why it is not running; `doing`: the phase; `said`: the agent's last line.

    `chat`: its readers can command by `/retry`; others are told of `pilot retry`.
    """
    lines = [headline(report.execution), *_state(report, now, waits, doing)]
    if report.execution.status is Status.FAILED:
        lines.append(f"{'/' if chat else 'pilot '}retry {report.execution.id} runs it anew.")
    if report.execution.status is Status.RUNNING and said:
        lines.append(f"> {one_line(said, 200)}")
    return "\n".join(line for line in lines if line)


def _state(report: Report, now: int, waits: str, doing: str) -> list[str]:
    execution = report.execution
    match execution.status:
        case Status.QUEUED | Status.BLOCKED:
            return [f"{execution.status}: {one_line(waits, 400)}" if waits else str(execution.status)]
        case Status.RUNNING:
            since = "" if execution.started_at is None else f", {lasting(now - execution.started_at)}"
            attempt = f", attempt {execution.attempt}" if execution.attempt > 1 else ""
            end = " (is being cancelled)" if execution.cancel_requested else ""
            return [f"running{end}{since}{attempt}: {one_line(doing or execution.backend, 80)}"]
        case Status.NEEDS_HUMAN:
            return [f"waits for an answer: {one_line(execution.reason or '', 300)}"]
        case Status.COMPLETED:
            return [*_completed(report), _cost(execution), _said(report.summary)]
        case Status.FAILED:
            return [_failed(execution), _cost(execution)]
        case Status.CANCELLED:
            return [f"cancelled: {one_line(execution.reason or 'somebody asked for it', 300)}", _cost(execution)]


def _completed(report: Report) -> list[str]:
    execution = report.execution
    took = _took(execution)
    if execution.outcome == "no_change":
        return [f"completed{took}: there was nothing to change"]
    if report.pull is not None:
        return [f"completed{took}", pull(report.pull)]
    if execution.pr_url:
        return [f"completed{took}: {one_line(execution.pr_url, 300)}"]
    where = f" on branch {one_line(execution.branch, 150)}" if execution.branch else ""
    return [f"completed{took}{where}"]


def pull(pull: Pull) -> str:
    """One line about a pull request."""
    where = one_line(pull.url or f"into {pull.base} of {pull.repo}", 300)
    match pull.state:
        case PullState.OWED:
            return "its pull request is being opened"
        case PullState.OPEN:
            checks = "" if pull.checks == Checks.NONE else f" (checks {pull.checks}{_red(pull)})"
            return f"pull request: {where}{checks}"
        case PullState.MERGED | PullState.CLOSED:
            return f"pull request {pull.state}: {where}"
        case PullState.FAILED:
            return f"no pull request could be opened: {one_line(pull.error or 'no reason given', 300)}"


def _red(pull: Pull) -> str:
    return f": {one_line(', '.join(pull.red), 150)}" if pull.red else ""


def _failed(execution: Execution) -> str:
    why = execution.reason or execution.error or execution.failure_class or "no reason given"
    return f"failed{_took(execution)}: {one_line(why, 500)}"


def question(execution: Execution, asked: Asked, *, chat: bool = True) -> str:
    """A question, with how to answer it; the head line comes first. `chat`: as for `standing`."""
    lines = [headline(execution, "❓"), body(asked.text, QUESTION_SHOWN), ""]
    if asked.options:
        lines += [f"{number}. {one_line(option, 200)}" for number, option in enumerate(asked.options, 1)]
    if asked.default:
        lines.append(f"It suggests: {one_line(asked.default, 200)}")
    lines.append(
        f"Reply to this message, or /answer {execution.id} TEXT"
        if chat
        else f"pilot answer {execution.id} TEXT answers it"
    )
    return "\n".join(lines)


class Settled(Protocol):
    """A question as it is kept; the answer is None where it needed none."""

    @property
    def text(self) -> str: ...  # noqa: D102
    @property
    def answer(self) -> str | None: ...  # noqa: D102
    @property
    def answered_by(self) -> str | None: ...  # noqa: D102


def settled(execution: Execution, asked: Settled) -> str:
    """What stands in place of a question that is open no more."""
    text = body(asked.text, 800)
    return f"{headline(execution, '✔️')}\n{text}\n\n{who_settled(asked)}"


def who_settled(asked: Settled) -> str:
    """By whom, and with what."""
    if asked.answer is None:
        return "Nobody has to answer this any more."
    return f"Answered by {one_line(asked.answered_by or 'somebody', 80)}: {one_line(asked.answer, 500)}"


def button(option: str) -> str:
    """An option, as it fits on a button."""
    return one_line(option, 60) or "…"


def answer_token(execution: int, asked: int, option: int) -> str:
    """What a button for this option says back: at most 64 bytes."""
    return f"a:{execution}:{asked}:{option}"


def read_answer_token(data: str) -> tuple[int, int, int] | None:
    """Execution, question, option."""
    kind, *rest = data.split(":")
    if kind != "a" or len(rest) != 3 or not all(map(_is_number, rest)):
        return None
    execution, asked, option = map(int, rest)
    return execution, asked, option


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 19


def body(text: str, limit: int) -> str:
    """Text of several lines, harmless and not too long."""
    shown = for_terminal(text).strip()
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"


def lasting(milliseconds: int) -> str:
    """A duration, as people say it of work: `40 s`, `3 min`, `2 h 05 min`."""
    seconds = max(0, milliseconds) // 1000
    if seconds < 60:
        return f"{seconds} s"
    hours, minutes = divmod(seconds // 60, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"


def _took(execution: Execution) -> str:
    if execution.started_at is None or execution.finished_at is None:
        return ""
    return f" after {lasting(execution.finished_at - execution.started_at)}"


def _cost(execution: Execution) -> str:
    if execution.started_at is None:
        return ""
    parts = ["cost unknown" if execution.cost_usd is None else f"${execution.cost_usd:.2f}"]
    if execution.input_tokens is not None and execution.output_tokens is not None:
        parts.append(f"{execution.input_tokens + execution.output_tokens:,} tokens")
    agent = execution.backend if execution.model is None else f"{execution.backend} {execution.model}"
    return " · ".join([one_line(agent, 80), *parts])


def _said(summary: str) -> str:
    text = body(summary, _SUMMARY_SHOWN)
    return f"\n{text}" if text else ""
