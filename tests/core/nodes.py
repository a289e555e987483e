"""Several nodes on one store, each with a way to it of its own, as on machines of their own."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Collection
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from pilot.dispatch.dispatcher import Dispatcher, Limits
from pilot.domain.execution import Execution, Status
from pilot.domain.ports import Node, NodeKind
from pilot.domain.task import Project, Task
from pilot.store import Store, open_store
from tests.core.stage import Script, Through

ENGINES = ("sqlite", "postgres")


@dataclass
class Machine:
    """One node: its store, what it runs, and how often it asked for work."""

    store: Store
    node: Node
    script: Script = field(default_factory=Script)
    asked: Counter[str] = field(default_factory=Counter)

    def dispatcher(self, projects: Collection[Project], **more: Any) -> Dispatcher:
        queue = Through(self.store.queue)
        queue.calls = self.asked
        given: dict[str, Any] = {"limits": Limits(max_running=2, drain_timeout=5.0), "jitter": lambda: 0.0} | more
        return Dispatcher(
            queue, self.script, node=self.node, projects=projects, clock=self.store.database.clock, **given
        )


@dataclass
class Fleet:
    """Machines on one store; `store` is a way to it that no node uses."""

    url: str
    store: Store
    stack: AsyncExitStack
    machines: list[Machine] = field(default_factory=list)
    projects: list[Project] = field(default_factory=list)

    async def machine(self, **more: Any) -> Machine:
        number = len(self.machines) + 1
        given: dict[str, Any] = {"host": f"host-{number}", "boot_id": f"boot-{number}", "place": f"place-{number}"}
        node = Node(f"node-{number}", NodeKind.SERVE, pid=number, start_ticks=1, version="0", **given | more)
        store = await self.stack.enter_async_context(open_store(self.url))
        self.machines.append(Machine(store, node))
        return self.machines[-1]

    async def project(self, name: str, max_running: int = 1) -> Project:
        (project,) = await self.store.queue.register([(f"git.example/o/{name}", name, f"o/{name}", max_running)])
        self.projects.append(project)
        return project

    async def put(self, project: Project, task_id: str, **more: Any) -> int:
        given: dict[str, Any] = {"title": task_id, "backend": "agent"} | more
        return (await self.store.queue.enqueue(Task(project_id=project.id, task_id=task_id, **given))).id

    async def reach(self, status: Status, *ids: int) -> list[Execution]:
        rows: list[Execution] = []

        async def there() -> bool:
            nonlocal rows
            rows = [await self.store.queue.get(id) for id in ids]
            return all(row.status is status for row in rows)

        await eventually(there, f"{ids} {status}")
        return rows


@asynccontextmanager
async def fleet(url: str) -> AsyncIterator[Fleet]:
    """Nobody on it yet."""
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(open_store(url))
        yield Fleet(url, store, stack)


async def eventually(condition: Any, what: str = "") -> None:
    """Wait for a condition that is awaited itself."""
    loop = asyncio.get_running_loop()
    end = loop.time() + 20
    while not await condition():
        assert loop.time() < end, f"never came true: {what}"
        await asyncio.sleep(0.01)
