"""A desk as `pilot serve` makes it, over a real store, for tests of what works at it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pilot.backends import known_backends
from pilot.config.schema import ProjectSettings, Settings
from pilot.dispatch.intake import Intake
from pilot.domain.task import Project
from pilot.sources.desk import Desk, Served
from pilot.store import Store

START = 1_800_000_000_000


class Clock:
    """UTC milliseconds that pass only when told to."""

    def __init__(self, now: int = START) -> None:
        self.now = now

    def __call__(self) -> int:
        return self.now

    def tick(self, ms: int) -> None:
        self.now += ms


async def served(store: Store, *projects: ProjectSettings) -> list[Served]:
    """The projects, registered."""
    rows: list[Project] = []
    for own in projects:
        rows += await store.queue.register([(f"key:{own.name}", own.name, str(own.path or own.url), own.max_running)])
    return list(zip(rows, projects, strict=True))


def desk(
    store: Store,
    projects: Sequence[Served],
    *,
    node: str = "node-1",
    settings: Settings | None = None,
    redact: Callable[[str], str] = lambda text: text,
    public_url: str | None = None,
) -> Desk:
    """One node's desk; another one over the same store is another node, or the same after a restart."""
    intake = Intake(settings or Settings(), store.queue, known_backends)

    async def retry(execution: int, by: str) -> int:
        return (await store.queue.retry(execution)).id

    return Desk(
        node=node,
        projects=lambda: projects,
        submit=intake.submit,
        retry=retry,
        redact=redact,
        queue=store.queue,
        history=store.history,
        refusals=store.refusals,
        outbox=store.outbox,
        inbox=store.inbox,
        pulls=store.pulls,
        duties=store.duties,
        health=store.health,
        clock=store.database.clock,
        public_url=public_url,
    )


async def executions(store: Store) -> list[Mapping[str, Any]]:
    """Every execution, oldest first: id, task_id, title, body, source, status, origin."""
    columns = "id, task_id, title, body, source, status, idempotency_key, origin"
    rows = await store.database.read(f"SELECT {columns} FROM executions ORDER BY id")
    return [dict(zip(columns.split(", "), row, strict=True)) for row in rows]
