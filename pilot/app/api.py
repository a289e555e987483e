"""What the HTTP API does, put together from one process's context."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog
from starlette.types import ASGIApp

from pilot import __version__
from pilot.api.guard import Guard, Hosts
from pilot.api.server import build
from pilot.api.services import Services
from pilot.api.stream import Hub
from pilot.api.webhooks import Webhooks
from pilot.app.context import Context
from pilot.config.schema import ProjectSettings, Settings
from pilot.dispatch.intake import Desk, TaskRequest
from pilot.dispatch.plans import plan_steps
from pilot.domain.errors import NotFound
from pilot.domain.execution import Enqueued
from pilot.domain.payload import is_pointer, parse_payload
from pilot.domain.plan import Plan
from pilot.domain.task import Project, Task
from pilot.domain.text import one_line
from pilot.store.artifacts import SqlArtifacts

log = structlog.get_logger()
LOOPBACK = ("127.0.0.1", "::1", "localhost")


class ContextDoor:
    """Takes tasks and plans in by the settings as they are now; a reload counts at once. See `Door`."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._desks: dict[str, tuple[Settings, Desk]] = {}  # each with the settings that it was made from

    async def submit(self, request: TaskRequest, project: str, commands: Callable[[], None]) -> Enqueued:
        """See `Door`."""
        task = self._desk(project).task(request)
        if _runs_a_program(task):
            commands()
        return await self._context.store.queue.enqueue(task)

    async def submit_plan(
        self, plan: Plan, project: str, key: str | None, commands: Callable[[], None]
    ) -> list[Enqueued]:
        """See `Door`."""
        row, own = self._project(project)
        # In a thread: routing thousands of steps takes long enough to be felt by everybody else.
        steps = await asyncio.to_thread(plan_steps, plan, self._context.intake(), row, own, key)
        if any(map(_runs_a_program, steps.tasks)):
            commands()
        return await self._context.store.queue.submit(steps)

    def _desk(self, name: str) -> Desk:
        settings, desk = self._desks.get(name, (None, None))
        if desk is None or settings is not self._context.settings:
            desk = self._context.intake().desk(*self._project(name))
            self._desks[name] = self._context.settings, desk
        return desk

    def _project(self, name: str) -> tuple[Project, ProjectSettings]:
        """By its name alone: nobody looks around on this machine's disk from outside."""
        for id, own in self._context.projects.items():
            if own.name == name:
                return self._context.stored[id], own
        names = ", ".join(sorted(own.name for own in self._context.projects.values())) or "none"
        raise NotFound(f"no project {one_line(name, 80)!r} in this server's configuration; there are: {names}")


def _runs_a_program(task: Task) -> bool:
    text = task.payload
    return isinstance(text, str) and is_pointer(text) and parse_payload(text).work.by_machine


class Api:
    """The application for `server(...)`, what has to run beside it, and its end."""

    def __init__(self, context: Context, ready: Callable[[], bool], webhooks: Webhooks, bound: str) -> None:
        store, own = context.store, context.settings.server
        store.work.govern(lambda: context.settings.retry_rules(), context.budget)
        self.hub = Hub(
            store.database,
            store.history,
            redact=lambda text: context.redact(text),
            valid=store.tokens.valid,
        )
        self.services = Services(
            work=store.work,
            queue=store.queue,
            history=store.history,
            door=ContextDoor(context),
            stats=store.work.stats,
            artifact=SqlArtifacts(store.database).get,
            audit=store.audit,
            hub=self.hub,
            clock=store.database.clock,
            redact=lambda text: context.redact(text),
            redact_bytes=lambda data: context.redact(data),
            ready=ready,
            version=__version__,
        )
        self.routes = build(ready, webhooks, self.services)
        self._guard = Guard(
            self.routes,
            tokens=store.tokens,
            audit=store.audit,
            hosts=Hosts.of(bound, own.public_url, own.allowed_hosts),
            clock=store.database.clock,
            rate=own.rate_limit,
        )
        if bound not in LOOPBACK and not own.public_url:
            log.warning(
                "serve.open_to_others",
                host=bound,
                words="tokens and tasks cross the network unencrypted: put a proxy with TLS before it, and say its "
                "address in server.public_url",
            )

    @property
    def app(self) -> ASGIApp:
        """What is served."""
        return self._guard

    @property
    def waiting(self) -> int:
        """How many claims wait for work."""
        return self.services.waiting.count

    async def run(self) -> None:
        """Tell subscribers what happens, until cancelled."""
        await self.hub.run()

    def refuse_work(self) -> None:
        """Give no work any more, and answer everybody who waits for some; all else goes on."""
        self.services.closing.set()

    def close(self) -> None:
        """End every stream."""
        self.refuse_work()
        self.hub.close()

    async def settled(self) -> None:
        """The last calls are on record."""
        await self._guard.settled()
