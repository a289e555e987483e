"""A worker's last word as an `Outcome`: without secrets, and with a branch that git can take for nothing else."""

from __future__ import annotations

from collections.abc import Callable

from pilot.api.asked import Completion, Failure, UsageAsked
from pilot.domain.errors import UsageError
from pilot.domain.outcome import Ending, FailureClass, GateResult, Outcome, Question, Usage
from pilot.runner.source import is_branch_name

Redact = Callable[[str], str]


def completed(asked: Completion, redact: Redact) -> Outcome:
    """Done, nothing changed, or a question. Raises `UsageError` for a branch that can't be one."""
    check_branch(asked.branch)
    question = asked.question
    return Outcome(
        ending=Ending(asked.outcome),
        text=redact(asked.summary),
        session_id=_told(asked.session_id, redact),
        model=_told(asked.model, redact),
        branch=asked.branch,
        base_sha=asked.base_sha,
        head_sha=asked.head_sha,
        tree=asked.tree,
        usage=usage_of(asked.usage),
        question=None
        if question is None
        else Question(
            redact(question.text),
            tuple(map(redact, question.options)),
            None if question.default is None else redact(question.default),
        ),
        gates=tuple(
            GateResult(
                redact(gate.name), redact(gate.kind), redact(gate.command), gate.required, gate.exit_code,
                gate.duration, redact(gate.tree), gate.timed_out, redact(gate.tail),
            )
            for gate in asked.gates
        ),
    )  # fmt: skip


def failed_with(asked: Failure, retry_at: int | None, redact: Redact) -> Outcome:
    """A failure, with its evidence. Raises `UsageError` for one without words."""
    detail = redact(asked.detail).strip()
    if not detail:
        raise UsageError("a failure needs its detail: what went wrong, in words")
    return Outcome(
        ending=Ending.FAILED,
        failure=FailureClass(asked.failure_class),
        detail=detail,
        excerpt=redact(asked.excerpt),
        text=redact(asked.summary),
        retry_at=retry_at,
        session_id=_told(asked.session_id, redact),
        model=_told(asked.model, redact),
        usage=usage_of(asked.usage),
    )


def _told(fact: str | None, redact: Redact) -> str | None:
    return None if fact is None else redact(fact)


def usage_of(asked: UsageAsked | None) -> Usage:
    """What is not said is not known."""
    return Usage() if asked is None else Usage(asked.input_tokens, asked.output_tokens, asked.cost_usd)


def check_branch(name: str | None) -> None:
    """Raise `UsageError` for what can't be one."""
    if name is not None and not is_branch_name(name):
        raise UsageError(f"{name[:80]!r} is no name of a branch")
