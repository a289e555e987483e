"""Plans on their way into the queue: one task for each step, and what it waits for."""

from __future__ import annotations

import re

from pilot.config.schema import ProjectSettings
from pilot.dispatch.intake import Intake, TaskRequest
from pilot.domain.errors import UsageError
from pilot.domain.payload import Work
from pilot.domain.plan import Plan, PlanError, Problem, Step
from pilot.domain.ports import PlanSteps
from pilot.domain.task import Kind, Project

MAX_KEY = 100
_DIGEST = re.compile(r"[0-9a-f]{16}")
_POLICIES = {
    "accrue_all_ideas": (
        "Lose no idea: what comes up and is not this step's work is named at the end of your answer, one line each."
    ),
    "no_refactor": "Change what this step needs and nothing else: no refactoring, renaming or reformatting besides.",
}


def plan_steps(
    plan: Plan,
    intake: Intake,
    project: Project,
    own: ProjectSettings,
    key: str | None = None,
    source: str = "plan",
    name: str = "plan",
) -> PlanSteps:
    """Its tasks, in the order of `plan.steps`. The same plan, or another one under the same `key`, is one submission.

    Raises `PlanError` with every step that the project does not take, and `UsageError` for a bad key.
    """
    if key is not None and not (0 < len(key) <= MAX_KEY and key.isprintable() and key.strip() == key):
        raise UsageError(f"a plan's key is 1 to {MAX_KEY} printable characters")
    if key is not None and key != plan.digest and _DIGEST.fullmatch(key):
        # under it these steps would stand in the place of those of the plan whose digest it is
        raise UsageError("a plan's key can't be 16 hex digits: so pilot calls plans that have none; add a word to it")
    desk = intake.desk(project, own)
    index = {step.id: number for number, step in enumerate(plan.steps)}
    told = [words for policy, words in _POLICIES.items() if plan.told(policy)]
    tasks, problems = [], []
    for step in plan.steps:
        try:
            tasks.append(desk.task(_request(plan, step, told, key or plan.digest, source)))
        except UsageError as error:
            problems.append(Problem(step.line, f"{step.id}: {error}"))
    if problems:
        raise PlanError(name, problems)
    after = {
        index[step.id]: tuple(index[dep] for dep in step.deps) for step in plan.steps if step.deps and not step.done
    }
    return PlanSteps(tasks=tuple(tasks), after=after)


def _request(plan: Plan, step: Step, told: list[str], key: str, source: str) -> TaskRequest:
    payload = step.payload
    kind = Kind(step.kind) if step.kind else Kind.TEST if payload.work is Work.TEST else Kind.CODE
    by_agent = payload.work is Work.PROMPT and not step.done
    return TaskRequest(
        prompt="\n".join([f"This is step {step.id} of the plan “{plan.title}”.", *told]) if by_agent else "",
        title=step.title or payload.words.partition("\n")[0] or payload.text,
        task_id=plan.task_id(step),
        source=source,
        kind=kind,
        lane=step.lane,
        payload=payload.text,
        publish="branch",
        idempotency_key=f"plan:{plan.slug}:{key}:{step.id}",
        plan=plan.slug,
        plan_key=key,
        dedupe=step.dedupe,
        done=step.done,
    )
