"""Random plans, compiled from their text and run step by step: order, dedupe, cancellation, retries as the model says.

The model is plain Python (model.py, model_plans.py); after every step the whole store is compared with it and audited.
"""

from __future__ import annotations

import random
from collections.abc import Mapping

from pilot.domain.plan import Plan, parse_markdown
from pilot.domain.ports import PlanSteps
from pilot.domain.task import Task
from tests.store.engines import Places
from tests.store.machine import Queueing, at
from tests.store.walk import walk

OFTEN = {
    "submit": 5, "run_what_is_ready": 20, "claim_what_is_ready": 2, "finish": 3, "retry": 6, "retry_plan": 4,
    "cancel": 4, "answer": 2, "enqueue": 1, "nodes_die": 1, "tick": 1, "pause": 1, "resume": 2, "keep_house": 1,
    "tick_until_something_is_due": 3, "unpark": 2,
}  # fmt: skip
STEPS, WALKS = 60, {"sqlite": 20, "postgres": 2}


class Planning(Queueing):
    """The walk's plans are written as a person would, and read as pilot does."""

    def compiled(
        self,
        project: int,
        run: str,
        named: Mapping[int, tuple[list[int], str | None, bool]],
        after: Mapping[int, tuple[int, ...]],
    ) -> PlanSteps:
        plan = parse_markdown(written(named, after))
        assert [step.id for step in plan.steps] == [str(name) for name in named]
        compiled = steps_of(plan, self.projects[project], run)
        assert {n: set(waits) for n, waits in compiled.after.items()} == {n: set(a) for n, a in after.items()}
        return compiled


def written(named: Mapping[int, tuple[list[int], str | None, bool]], after: Mapping[int, tuple[int, ...]]) -> str:
    """The plan's text. A note is one of three: ticked off, an address, a document."""
    names = list(named)
    lines = ["# Plan: p", "policy: no_refactor=true", ""]
    for n, (name, (_, dedupe, instant)) in enumerate(named.items()):
        tick = "x" if instant and name % 3 == 0 else " "
        notes = ("@cmd:make it", "@url:https://example.org/x", "@doc:notes.md")
        waits = f" deps={','.join(str(names[m]) for m in after[n])}" if after[n] else ""
        key = f" dedupe={dedupe}" if dedupe else ""
        payload = notes[name % 3] if instant else "@cmd:make it"
        lines.append(f"- [{tick}] id={name} lane={name % 3}{waits}{key} payload={payload}")
    return "\n".join(lines)


def steps_of(plan: Plan, project: int, run: str) -> PlanSteps:
    """As the intake makes them, without its rules."""
    place = {step.id: n for n, step in enumerate(plan.steps)}
    tasks = tuple(
        Task(
            project_id=project, task_id=plan.task_id(step), title="t", lane=step.lane, backend="a", plan=plan.slug,
            payload=step.payload.text, dedupe=step.dedupe, instant=step.done or step.payload.work == "nothing",
            idempotency_key=f"{run}:{step.id}",
        )
        for step in plan.steps
    )  # fmt: skip
    return PlanSteps(tasks=tasks, after={place[s.id]: tuple(place[dep] for dep in s.deps) for s in plan.steps})


def test_random_plans_run_as_the_model_says(places: Places, engine: str) -> None:
    for _ in range(WALKS[engine]):
        number = random.randrange(1 << 32)
        machine = at(places, Planning)()
        try:
            walk(machine, random.Random(number), STEPS, OFTEN)
        except BaseException:
            print(f"to repeat this: number = {number}; its last steps:")
            for name, arguments in machine.trail[-20:]:
                print(f"  {name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})")
            raise
