"""What a ticket's comment says: how an execution stands, in plain words. Pure.

Everything that pilot did not write itself is redacted and made harmless before it is put in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from pilot.domain import markdown
from pilot.domain.delivery import Asked, Pull, PullState, Report
from pilot.domain.events import EventType
from pilot.domain.execution import Checks, Execution, Status
from pilot.domain.outcome import FailureClass
from pilot.domain.telling import lasting
from pilot.sources.github_people import MARK

SUMMARY = 6000
"""Characters of an agent's last message."""
_FAILURES: Mapping[str, str] = {
    FailureClass.LINT: "the lint check is red",
    FailureClass.TEST: "a test is red",
    FailureClass.BUILD: "the build is red",
    FailureClass.CI: "CI is red",
    FailureClass.AGENT: "the agent gave up or crashed",
    FailureClass.NO_CHANGE: "a change was required, and none came",
    FailureClass.REFUSAL: "the agent refused",
    FailureClass.TIMEOUT: "it took too long",
    FailureClass.STALL: "the agent fell silent",
    FailureClass.OOM: "memory ran out",
    FailureClass.RATE_LIMIT: "the agent's rate limit is used up",
    FailureClass.QUOTA: "the agent's quota is used up",
    FailureClass.AUTH: "the agent is not logged in",
    FailureClass.INVALID_CONFIG: "the configuration is wrong",
    FailureClass.NETWORK: "the network failed",
    FailureClass.CONFLICT: "the branch was changed by somebody else",
    FailureClass.INFRA: "something failed on the machine that ran it",
    FailureClass.BUDGET: "it would cost more than it may",
}


def marker(execution: int) -> str:
    """By which pilot finds its comment again; it counts in comments of pilot's own account only."""
    return f"{MARK}execution={execution} -->"


@dataclass(frozen=True, slots=True)
class Words:
    """Writes comments. `label`: the one that asks."""

    label: str
    redact: Callable[[str], str]

    def comment(self, report: Report, root: int, now: int) -> str:
        """The whole comment, known by the execution `root`."""
        parts = [part for part in self._parts(report, now) if part]
        return self.redact("\n\n".join([marker(root), *parts]))

    def _parts(self, report: Report, now: int) -> Iterator[str]:
        execution = report.execution
        match execution.status:
            case Status.BLOCKED:
                yield "**Accepted.** It waits for other tasks to end first."
            case Status.QUEUED:
                yield self._queued(report, now)
            case Status.RUNNING:
                yield self._running(execution)
            case Status.NEEDS_HUMAN:
                yield from self._asking(report)
            case Status.COMPLETED:
                yield from self._completed(report)
            case Status.FAILED:
                yield from self._failed(report)
            case Status.CANCELLED:
                yield f"**Cancelled:** {self._line(execution.reason or 'somebody asked for it', 500)}"
                yield self._again()
        yield from self._changed_later(report)
        yield self._receipt(execution)

    def _queued(self, report: Report, now: int) -> str:
        execution = report.execution
        begun = "**Waits to go on.**" if execution.attempt else "**Accepted.**"
        reason = f" {self._line(execution.reason, 500)}." if execution.reason else ""
        if execution.available_at > now:
            return f"{begun}{reason} It is tried again at {_when(execution.available_at)}."
        if report.holds:
            return f"{begun}{reason} What holds it up: {self._linked(report.holds[0])}."
        ahead = report.ahead
        place = "" if ahead is None else " It is next." if not ahead else f" {_count(ahead, 'other task')} before it."
        return f"{begun}{reason}{place}"

    def _running(self, execution: Execution) -> str:
        since = "" if execution.started_at is None else f" since {_when(execution.started_at)}"
        agent = self._code(execution.backend, 60) or "an agent"
        attempt = f", attempt {execution.attempt} of {execution.max_attempts}" if execution.attempt > 1 else ""
        end = " It is being cancelled." if execution.cancel_requested else ""
        return f"**Running**{since}, done by {agent}{attempt}.{end}"

    def _asking(self, report: Report) -> Iterator[str]:
        asked = report.question
        if asked is None or asked.answered_at is not None:
            yield f"**A person is needed:** {self._line(report.execution.reason or 'no reason is stored', 1000)}"
        else:
            yield "**A question**"
            yield self._quoted(asked.text)
            yield self._options(asked)
        yield "Reply here, or write `/pilot answer` and what you want to say. `/pilot cancel` ends it."

    def _options(self, asked: Asked) -> str:
        lines = [f"{number}. {self._line(option, 300)}" for number, option in enumerate(asked.options, 1)]
        if asked.options:
            lines.append("\nThe number of one is an answer, too.")
        if asked.default:
            lines.append(f"\nSuggested: {self._line(asked.default, 300)}")
        return "\n".join(lines)

    def _completed(self, report: Report) -> Iterator[str]:
        execution = report.execution
        if execution.outcome == "no_change":
            yield "**Done:** there was nothing to change."
        elif report.pull is not None:
            yield self._pull(report.pull, execution)
            if report.type == EventType.PULL_GIVEN_UP:
                yield self._given_up(report)
        elif execution.pr_url:
            yield f"**Done:** {_link(execution.pr_url)}"
        else:
            where = f" It is on the branch {self._code(execution.branch)}." if execution.branch else ""
            yield f"**Done.**{where}"
        if report.gates:
            passed = ", ".join(self._code(gate.name, 60) for gate in report.gates if gate.passed)
            red = ", ".join(self._code(gate.name, 60) for gate in report.gates if not gate.passed)
            yield "  \n".join(
                line for line in (passed and f"Passed: {passed}", red and f"Red, and not required: {red}") if line
            )
        if report.summary.strip():
            yield self._quoted(report.summary)

    def _pull(self, pull: Pull, execution: Execution) -> str:
        match pull.state:
            case PullState.OWED:
                words = "**Done.** The pull request is being opened."
                return f"{words} So far that failed: {self._line(pull.error, 500)}" if pull.error else words
            case PullState.FAILED:
                return (
                    f"**Done, but the pull request could not be opened:** {self._line(pull.error or '', 500)}\n\n"
                    f"The work is on the branch {self._code(execution.branch or pull.branch)}."
                )
            case PullState.MERGED:
                return f"**Merged:** {_link(pull.url)}"
            case PullState.CLOSED:
                return f"**Closed without being merged:** {_link(pull.url)}"
            case PullState.OPEN:
                red = ": " + ", ".join(self._code(name, 80) for name in pull.red[:10]) if pull.red else ""
                checks = {
                    Checks.NONE.value: "",
                    Checks.PENDING.value: "Checks are under way.",
                    Checks.PASSED.value: "Checks have passed.",
                    Checks.FAILED.value: f"Checks are red{red}.",
                }.get(pull.checks, "")
                return f"**Done:** {_link(pull.url)}\n\n{checks}".strip()

    def _given_up(self, report: Report) -> str:
        why = str(report.data.get("why") or "its repairs are used up")
        return f"**A person has to look:** {self._line(why, 500)}"

    def _failed(self, report: Report) -> Iterator[str]:
        execution = report.execution
        kind = execution.failure_class or ""
        yield f"**Failed:** {_FAILURES.get(kind) or self._line(execution.reason or 'no reason is stored', 300)}"
        detail = execution.error or execution.reason or ""
        if detail.strip():
            yield markdown.fenced(self.redact(detail))
        for gate in report.gates:
            if gate.required and not gate.passed and gate.tail.strip():
                yield f"The end of what {self._code(gate.command)} said:"
                yield markdown.fenced(self.redact(gate.tail), 3000)
                break
        if execution.branch:
            yield f"What there is of it is on the branch {self._code(execution.branch)}."
        yield self._again()

    def _again(self) -> str:
        return f"To have it tried again, set the label {self._code(self.label)} once more or write `/pilot retry`."

    def _changed_later(self, report: Report) -> Iterator[str]:
        edits = (report.origin or {}).get("edited_after")
        if isinstance(edits, list) and edits:
            names = dict.fromkeys(str(edit.get("by", "")) for edit in edits if isinstance(edit, dict))
            yield f"The issue was changed after it was asked for, by {self._line(', '.join(names))}; that is used."

    def _receipt(self, execution: Execution) -> str:
        parts = [f"execution {execution.id}"]
        if execution.attempt:
            parts.append(_count(execution.attempt, "attempt"))
        if execution.status.final and execution.started_at is not None:
            parts.append(self._code(f"{execution.backend} {execution.model or ''}".strip(), 120))
            tokens_in, tokens_out = execution.input_tokens, execution.output_tokens
            known = tokens_in is not None and tokens_out is not None
            parts.append(f"{(tokens_in or 0) + (tokens_out or 0):,} tokens" if known else "tokens unknown")
            parts.append("cost unknown" if execution.cost_usd is None else f"${execution.cost_usd:.2f}")
            if execution.finished_at is not None:
                parts.append(lasting(execution.finished_at - execution.started_at))
        return f"<sub>{' · '.join(parts)}</sub>"

    def _line(self, text: str, limit: int = 200) -> str:
        return markdown.in_line(self.redact(text), limit)

    def _linked(self, text: str) -> str:
        """Words of pilot's own, in which addresses stay addresses."""
        return " ".join(_link(word) if "://" in word else self._line(word, 500) for word in text.split())

    def _code(self, text: str, limit: int = 200) -> str:
        return markdown.code(self.redact(text), limit)

    def _quoted(self, text: str) -> str:
        return markdown.quoted(self.redact(text), SUMMARY)


def _when(at: int) -> str:
    return datetime.fromtimestamp(at / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _link(url: str | None) -> str:
    """An address of GitHub's own making; anything else shows and leads nowhere."""
    url = url or ""
    plain = url.startswith(("https://", "http://")) and url.isascii() and not set(url) & set(" <>()[]\\`\"'")
    return url if plain else markdown.in_line(url)
