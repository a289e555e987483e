"""What the routes need, and nothing else: ports and callables, put together by `pilot.app.api`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from pilot.dispatch.intake import TaskRequest
from pilot.domain.access import Audit
from pilot.domain.execution import Enqueued, Status
from pilot.domain.plan import Plan
from pilot.domain.ports import Clock, Document
from pilot.domain.work import WorkQueue
from pilot.store.history import History

if TYPE_CHECKING:
    from pilot.api.stream import Hub


class Steering(Protocol):
    """What people do to executions and projects; see `pilot.store.queue.SqlQueue`."""

    async def cancel(self, id: int, by: str, reason: str = "") -> Status:
        """End it, or ask its node to."""
        ...

    async def answer(self, id: int, text: str, by: str) -> None:
        """Send a held execution back with a person's words."""
        ...

    async def retry(self, id: int) -> Enqueued:
        """A new execution of the same task."""
        ...

    async def pause(self, project_id: int, owner: str, reason: str) -> None:
        """Stop admission of a project (0: of all)."""
        ...

    async def resume(self, project_id: int, owner: str | None = None) -> list[str]:
        """Lift an owner's pause (None: everybody's); the owners lifted."""
        ...


class Door(Protocol):
    """Where tasks and plans come in. `commands` is called before anything goes in that runs a program; it may raise."""

    async def submit(self, request: TaskRequest, project: str, commands: Callable[[], None]) -> Enqueued:
        """One task. Raises `NotFound` for a project that is not configured, `UsageError`."""
        ...

    async def submit_plan(
        self, plan: Plan, project: str, key: str | None, commands: Callable[[], None]
    ) -> list[Enqueued]:
        """All steps, or none; in the order of the plan's steps."""
        ...


@dataclass(slots=True)
class Waiting:
    """How many claims wait for work."""

    count: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """One server's. `redact` takes secrets out of what comes from workers, before it is stored."""

    work: WorkQueue
    queue: Steering
    history: History
    door: Door
    stats: Callable[[], Awaitable[Document]]
    artifact: Callable[[str], Awaitable[bytes]]
    audit: Audit
    hub: Hub
    clock: Clock
    redact: Callable[[str], str]
    redact_bytes: Callable[[bytes], bytes]
    ready: Callable[[], bool]
    version: str
    waiting: Waiting = field(default_factory=Waiting)
    closing: asyncio.Event = field(default_factory=asyncio.Event)
    """The server goes down: nothing is claimed any more, and who waits is answered."""
