"""Large plans: read and checked, put in, and the first claims of them."""

from __future__ import annotations

import asyncio
import random
import statistics
import time

from benchmarks.figures import Figure
from benchmarks.queue import fresh
from pilot.domain.plan import Plan, parse_markdown
from pilot.domain.ports import PlanSteps
from pilot.domain.task import Task

STEPS = 5000


def text() -> str:
    """A plan in layers: most steps wait for two or three of the layer before."""
    dice = random.Random(5)
    lines = ["# Plan: Large", ""]
    for number in range(STEPS):
        before = range(max(0, number - 150), max(0, number - 50))
        deps = sorted(dice.sample(before, min(len(before), dice.randrange(4))))
        waits = f" deps={','.join(f's{each}' for each in deps)}" if deps else ""
        lines.append(f"- [ ] id=s{number} lane={number % 5}{waits} payload=@doc:LLM_TASK write chapter {number}")
    return "\n".join(lines) + "\n"


async def submitted(plan: Plan) -> float:
    """Seconds until all of it is durable in an empty store."""
    async with fresh(1) as (store, (project,)):
        index = {step.id: number for number, step in enumerate(plan.steps)}
        tasks = tuple(
            Task(
                project_id=project.id, task_id=plan.task_id(step), title=step.payload.text, plan=plan.slug,
                payload=step.payload.text, lane=step.lane, backend="agent",
                idempotency_key=f"plan:{plan.slug}:{plan.digest}:{step.id}",
            )
            for step in plan.steps
        )  # fmt: skip
        after = {index[step.id]: tuple(index[dep] for dep in step.deps) for step in plan.steps if step.deps}
        began = time.perf_counter()
        made = await store.queue.submit(PlanSteps(tasks=tasks, after=after))
        took = time.perf_counter() - began
        if len({each.id for each in made}) != STEPS:
            raise RuntimeError("not all are in")
        return took


def run() -> list[Figure]:
    """All figures of this file; each the middle of three."""
    compiled, put = [], []
    source = text()
    for _ in range(3):
        began = time.perf_counter()
        plan = parse_markdown(source)
        compiled.append(time.perf_counter() - began)
        put.append(asyncio.run(submitted(plan)))
    return [
        Figure(f"plan of {STEPS:,} steps read and checked", statistics.median(compiled), "s", 1),
        Figure(f"plan of {STEPS:,} steps submitted, durable", statistics.median(put), "s", 1),
    ]
