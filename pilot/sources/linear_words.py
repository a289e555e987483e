"""What pilot says in Linear. What others wrote (agents, tools, people) stands in it escaped: it can't link, mention,
close or format anything."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from pilot.clients.linear_types import Action, Activity, Elicitation, Failure, Response, Thought
from pilot.domain.delivery import Asked, PullState, Report
from pilot.domain.events import EventType
from pilot.domain.execution import Execution, Status
from pilot.domain.markdown import code, in_line, quoted
from pilot.domain.text import one_line

LINE = 300
SUMMARY = 1500
"""Characters of others' text that are shown at most."""

_SIGNED = re.compile(r"\npilot · execution \d+$")

Redact = Callable[[str], str]


def is_signed(body: str) -> bool:
    """Whether a comment ends as all of ours do. Counts only by whom it is: anybody can write so."""
    return _SIGNED.search(body.rstrip()) is not None


def moment(at: int) -> str:
    """A time (UTC ms) for people."""
    return datetime.fromtimestamp(at / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")


@dataclass(frozen=True, slots=True)
class Words:
    """Reports as text. `page`: where an execution can be looked at, if anywhere."""

    redact: Redact
    label: str
    public_url: str | None = None

    def comment(self, report: Report) -> str:
        """The one comment that shows how a ticket stands."""
        execution = report.execution
        parts = [self.headline(report), *self._details(report)]
        if report.pull is not None and report.pull.url is not None:
            parts.append(f"Pull request: <{report.pull.url}>{_checks(report)}")
        if receipt := _receipt(execution):
            parts.append(receipt)
        if page := self.page(execution):
            parts.append(f"[Details]({page})")
        parts.append(f"pilot · execution {execution.id}")
        return "\n\n".join(parts)

    def page(self, execution: Execution) -> str | None:
        """Where an execution can be looked at."""
        return None if self.public_url is None else f"{self.public_url}/executions/{execution.id}"

    def headline(self, report: Report) -> str:
        """How it stands, in one sentence."""
        execution = report.execution
        match execution.status:
            case Status.QUEUED | Status.BLOCKED:
                return self._waiting(report)
            case Status.RUNNING:
                since = "" if execution.started_at is None else f" since {moment(execution.started_at)}"
                again = f", attempt {execution.attempt}" if execution.attempt > 1 else ""
                return f"**At work**{since}, with {code(execution.backend)}{again}."
            case Status.NEEDS_HUMAN:
                return "**Waits for a person.**"
            case Status.FAILED:
                kind = f" ({execution.failure_class})" if execution.failure_class else ""
                return f"**Failed**{kind}."
            case Status.CANCELLED:
                return f"**Stopped**: {self._plain(execution.reason or 'somebody asked for it')}."
            case _:
                return self._completed(report)

    def question(self, asked: Asked | None, execution: Execution) -> str:
        """What a person is asked, with the answers there are to choose from."""
        if asked is None:
            return quoted(self.redact(execution.reason or "It can't go on without a person."))
        parts = [quoted(self.redact(asked.text))]
        if asked.options:
            parts.append("\n".join(f"- {self._plain(option)}" for option in asked.options))
        if asked.default:
            parts.append(f"What the agent would do: {self._plain(asked.default)}")
        return "\n\n".join(parts)

    def failure(self, execution: Execution) -> str:
        """Why it failed."""
        return quoted(self.redact(execution.error or execution.reason or "no reason is known"))

    def _details(self, report: Report) -> Iterator[str]:
        execution = report.execution
        if execution.status is Status.NEEDS_HUMAN:
            yield self.question(report.question, execution)
            yield "Reply to this comment, or write `/pilot answer` and your answer; `/pilot cancel` gives it up."
        elif report.question is not None and report.question.answered_by and not execution.status.final:
            yield f"Answered by {self._plain(report.question.answered_by)}."
        if execution.status is Status.FAILED:
            yield self.failure(execution)
            yield f"To try again, write `/pilot retry`, or add the label `{self.label}` again."
        if report.type == EventType.DELIVERY_FAILED:
            yield self.undelivered(report)
        if report.type == EventType.PULL_GIVEN_UP:
            yield self.given_up(report)
        if execution.status is Status.COMPLETED and report.summary.strip():
            yield quoted(self.redact(report.summary), SUMMARY)

    def given_up(self, report: Report) -> str:
        """That its pull request is repaired no more, and why."""
        why = self._plain(str(report.data.get("why") or "its repairs are used up"))
        return f"Its checks are red, and a person has to look: {why}."

    def undelivered(self, report: Report) -> str:
        """That the change could not be brought out."""
        why = str(report.data.get("reason") or (report.pull and report.pull.error) or "no reason is known")
        return "The change could not be delivered:\n\n" + quoted(self.redact(why))

    def _waiting(self, report: Report) -> str:
        execution = report.execution
        if execution.attempt:
            why = f": {self._plain(execution.reason)}" if execution.reason else ""
            return f"**Waits to go on**{why}."
        if execution.status is Status.BLOCKED:
            return "**Queued**; it waits for others that it depends on."
        if report.holds:
            return f"**Queued**. What holds it up: {self._plain(report.holds[0])}."
        return f"**Queued**{_ahead(report.ahead)}."

    def _completed(self, report: Report) -> str:
        execution, pull = report.execution, report.pull
        if execution.outcome == "no_change":
            return "**Done**: nothing had to be changed."
        if pull is None:
            return f"**Done**, on branch {code(execution.branch)}." if execution.branch else "**Done**."
        match pull.state:
            case PullState.OWED:
                return "**Done**; the pull request is being opened."
            case PullState.MERGED:
                return "**Done and merged.**"
            case PullState.CLOSED:
                return "**Done**, but its pull request was closed without being merged."
            case PullState.FAILED:
                return "**Done**, but there is no pull request."
        return "**Done**; the pull request is ready for review."

    def _plain(self, text: str) -> str:
        return in_line(self.redact(text), LINE)

    def activities(self, report: Report) -> Iterator[tuple[str, Activity]]:
        """What a session should have been told by now, each under a name that it keeps."""
        execution, question = report.execution, report.question
        match execution.status:
            case Status.QUEUED | Status.BLOCKED if not execution.attempt:
                yield "queued", Thought(self.accepted(report))
            case Status.QUEUED | Status.BLOCKED if report.type == EventType.ANSWERED and question is not None:
                by = self._plain(question.answered_by or "somebody")
                yield f"answered:{question.id}", Thought(f"Answered by {by}; it goes on.")
            case Status.QUEUED | Status.BLOCKED:
                yield f"waits:{report.event}", Thought(self._waiting(report))
            case Status.RUNNING:
                parameter = f"attempt {execution.attempt} with {code(execution.backend)}"
                yield f"started:{execution.attempt}", Action("Started", parameter)
            case Status.NEEDS_HUMAN:
                name = f"held:{report.event}" if question is None else f"asked:{question.id}"
                options = () if question is None else tuple(one_line(self.redact(o)) for o in question.options)
                yield name, Elicitation(self.question(question, execution), options)
            case Status.FAILED:
                again = "To try again, write `/pilot retry`, or what is to be done differently."
                yield "failed", Failure(f"{self.headline(report)}\n\n{self.failure(execution)}\n\n{again}")
            case Status.CANCELLED:
                yield "cancelled", Response(self.headline(report))
            case _:
                yield from self._results(report)

    def accepted(self, report: Report) -> str:
        """The first word to whoever asked."""
        words = f"I have it, as execution {report.execution.id}{_ahead(report.ahead)}."
        return words if report.execution.source != "failing_ci" else f"Checks are red: a repair is queued. {words}"

    def _results(self, report: Report) -> Iterator[tuple[str, Activity]]:
        pull = report.pull
        summary = f"\n\n{quoted(self.redact(report.summary), SUMMARY)}" if report.summary.strip() else ""
        if pull is None or pull.state is PullState.FAILED or report.type == EventType.DELIVERY_FAILED:
            if report.type == EventType.DELIVERY_FAILED or pull is not None:
                yield "undelivered", Failure(self.undelivered(report))
            else:
                yield "done", Response(self.headline(report) + summary)
            return
        if pull.state is PullState.OWED:
            yield "publishing", Action("Opening", "the pull request")
            return
        yield f"opened:{pull.id}", Response(f"{self.headline(report)}\n\n<{pull.url}>{_checks(report)}{summary}")
        if report.type == EventType.PULL_GIVEN_UP:
            yield "given_up", Failure(self.given_up(report))
        elif pull.state in (PullState.MERGED, PullState.CLOSED):
            yield f"{pull.state}:{pull.id}", Response(self.headline(report))
        elif report.type == EventType.PULL_CHECKS and pull.checks in ("passed", "failed"):
            yield f"checks:{pull.checks}:{pull.head_sha[:12]}", Response(f"<{pull.url}>{_checks(report)}")


def _ahead(ahead: int | None) -> str:
    if ahead is None:
        return ""
    return "; it is next" if not ahead else f"; {ahead} {'goes' if ahead == 1 else 'go'} first"


def _checks(report: Report) -> str:
    pull = report.pull
    if pull is None or pull.checks == "none":
        return ""
    red = f": {', '.join(in_line(name, 80) for name in pull.red[:10])}" if pull.checks == "failed" and pull.red else ""
    return f" · checks {pull.checks}{red}"


def _receipt(execution: Execution) -> str:
    if not execution.status.final:
        return ""
    parts = [f"{execution.attempt} attempt{'' if execution.attempt == 1 else 's'}"]
    if execution.input_tokens is not None and execution.output_tokens is not None:
        parts.append(f"{execution.input_tokens + execution.output_tokens:,} tokens")
    if execution.cost_usd is not None:
        parts.append(f"${execution.cost_usd:.2f}")
    if execution.started_at is not None and execution.finished_at is not None:
        parts.append(f"{max(1, round((execution.finished_at - execution.started_at) / 60_000))} min")
    return " · ".join(parts) if execution.attempt else ""
