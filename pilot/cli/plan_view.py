"""How a plan looks in a terminal: its picture, its progress, and what is left of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pilot.cli.session import Session
from pilot.cli.ui import fit, width
from pilot.domain.plan_drawing import MARKS, OPEN_MARK, draw
from pilot.domain.text import one_line

if TYPE_CHECKING:
    from pilot.app.plan_run import News
    from pilot.domain.execution import Execution
    from pilot.domain.plan import Plan

_STYLES = {"running": "green", "completed": "dim", "failed": "red", "cancelled": "dim", "needs_human": "yellow"}


class Progress:
    """One line on stderr for each change; stdout stays for the result."""

    def __init__(self, session: Session, plan: Plan) -> None:
        self._ui = session.ui
        self._wide = min(max(map(len, (step.id for step in plan.steps)), default=0), 40)

    def show(self, news: News) -> None:
        """One thing that happened."""
        if news.step is None or news.execution is None:
            waiting = "waiting: " if news.kind == "waiting" else ""
            self._ui.note(one_line(waiting + news.text, 500))
            return
        status = str(news.execution.status)
        text = f"{MARKS.get(status, OPEN_MARK)} {news.step.id.ljust(self._wide)} {news.execution.id} {status}"
        self._ui.note(text + (f": {one_line(news.text, 300)}" if news.text else ""))


def document(plan: Plan, rows: Mapping[str, Execution]) -> dict[str, Any]:
    """A plan and how its steps stand, for `--json`."""
    steps = []
    for step in plan.steps:
        row = rows.get(step.id)
        steps.append(
            {
                "id": step.id,
                "task_id": plan.task_id(step),
                "lane": step.lane,
                "deps": list(step.deps),
                "payload": step.payload.text,
                "work": str(step.payload.work),
                "dedupe": step.dedupe or step.payload.dedupe,
                "kind": step.kind,
                "title": step.title,
                "done": step.done,
                "execution": None if row is None else row.id,
                "status": None if row is None else str(row.status),
                "reason": None if row is None else row.reason,
                "branch": None if row is None or not row.head_sha else row.branch,
                "head_sha": None if row is None else row.head_sha,
            }
        )
    return {
        "plan": plan.slug, "title": plan.title, "digest": plan.digest, "policy": dict(plan.policy), "steps": steps,
    }  # fmt: skip


def draw_plan(session: Session, plan: Plan, rows: Mapping[str, Execution]) -> None:
    """The steps below each other, joined by their rails."""
    ui = session.ui
    drawn = draw(plan, {id: str(row.status) for id, row in rows.items()})
    ui.line(f"{plan.title} ({plan.slug})", "bold")
    told = ", ".join(f"{key}={value}" for key, value in sorted(plan.policy.items()))
    if told:
        ui.line(f"policy: {told}", "dim")
    wide = min(max(len(line.step.id) for line in drawn), 40)
    lanes = max(len(str(line.step.lane)) for line in drawn)
    for line in drawn:
        row = rows.get(line.step.id)
        head = f"{line.rail} {line.step.id.ljust(wide)}  lane {str(line.step.lane).ljust(lanes)}  "
        status = ("done" if line.step.done else "") if row is None else _stands(row)
        payload = one_line(line.step.payload.text, 300)
        if ui.terminal:
            room = max(ui.columns() - width(head) - (2 + width(status) if status else 0), 20)
            payload = fit(payload, room) if width(payload) > room else payload
        style = "" if row is None else _STYLES.get(str(row.status), "")
        ui.line(f"{head}{payload}{'  ' + status if status else ''}".rstrip(), style)


def _stands(row: Execution) -> str:
    """How a step stands, with what came of it."""
    text = f"{row.id} {row.status}"
    if row.status == "completed":
        if row.outcome == "no_change":
            text = f"{text} (nothing to change)"
        return f"{text} → {row.branch}" if row.head_sha and row.branch else text
    return f"{text}: {one_line(row.reason, 60)}" if row.reason else text


def say_what_is_left(
    session: Session, plan: Plan, rows: Mapping[str, Execution], again: str, *, interrupted: bool
) -> None:
    """What went wrong, and how it goes on: with the command `again`."""
    ui = session.ui
    failed = [(step, rows[step.id]) for step in plan.steps if rows[step.id].status == "failed"]
    asked = [(step, rows[step.id]) for step in plan.steps if rows[step.id].status == "needs_human"]
    cancelled = [step.id for step in plan.steps if rows[step.id].status == "cancelled"]
    for step, row in failed[:10]:
        ui.failure_line(f"step {step.id} failed: {row.reason or row.error or row.failure_class}")
        ui.note(
            f"       pilot logs {row.id}     what it said; pilot retry {row.id}: only this one, and what waited for it"
        )
    if len(failed) > 10:
        ui.failure_line(f"{len(failed) - 10} more steps failed")
    if cancelled:
        ui.note(f"cancelled with that: {', '.join(cancelled[:20])}{' …' if len(cancelled) > 20 else ''}")
    if failed or cancelled:
        ui.note(f"  {again} --retry     does again what failed, and what was cancelled because of it")
    for step, row in asked[:10]:
        ui.note(f"step {step.id} needs a person: {one_line(row.reason or '', 300)}")
        ui.note(f'  pilot answer {row.id} "…"     and then: {again}')
    if interrupted:
        left = sum(not row.status.final for row in rows.values())
        ui.note(f"{count(left, 'step')} left in the queue; `{again}` or `pilot serve` goes on with it")


def count(number: int, word: str) -> str:
    """`1 step`, `2 steps`."""
    return f"{number} {word}" if number == 1 else f"{number} {word}s"
