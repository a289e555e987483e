"""`pilot plan submit` and `run`: a plan into the queue, and its steps done by this process until none is left."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from pilot.app.agents import check_direct
from pilot.app.context import HURRY, Context, limits_of, open_context
from pilot.app.direct import on_interrupt
from pilot.config.load import Loaded
from pilot.config.schema import ProjectSettings
from pilot.dispatch.dispatcher import Dispatcher
from pilot.dispatch.plans import plan_steps
from pilot.domain.errors import Busy, UsageError
from pilot.domain.execution import Enqueued, Execution, Status
from pilot.domain.plan import Plan, Step
from pilot.domain.pointer import MACHINE
from pilot.domain.ports import NodeKind, PlanSteps
from pilot.domain.task import Project
from pilot.runner.proctree import become_subreaper

LOOK = 0.2
"""Seconds between two looks at the steps; of a large plan more, so that looking takes a tenth of the time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRequest:
    """A checked plan, where it is to go, and as what. `name` is the file's; `retry`: what failed is to be done again.

    `agents`: how many steps at once, at most.
    """

    plan: Plan
    name: str = "plan"
    project: str | None = None
    key: str | None = None
    retry: bool = False
    agents: int | None = None


class NewsKind(StrEnum):
    """What a line of live progress is about."""

    SUBMITTED = "submitted"  #: how many steps there are, and are new
    STEP = "step"  #: one has changed its state
    WAITING = "waiting"  #: for whom or what all of it waits
    STOPPING = "stopping"  #: on its way out


@dataclass(frozen=True, slots=True)
class News:
    """One thing to show while it runs."""

    kind: NewsKind
    text: str
    step: Step | None = None
    execution: Execution | None = None


Show = Callable[[News], None]


@dataclass(frozen=True, slots=True)
class Submitted:
    """The executions of a plan's steps, in its order. `retried`: ids of those that are made again."""

    project: Project
    steps: Sequence[Enqueued]
    retried: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Ended:
    """How the steps stand in the end, by id. `interrupted`: before nothing was left to do here."""

    steps: Mapping[str, Execution]
    interrupted: bool


async def submit_plan(loaded: Loaded, request: PlanRequest) -> Submitted:
    """Put it into the queue of a configured project; all of it, or nothing."""
    async with open_context(loaded) as context:
        project, own = await context.project(request.project)
        return await _put_in(context, request, project, own)


async def plan_standing(loaded: Loaded, plan: Plan, named: str | None) -> list[Execution]:
    """The newest execution of each step of the newest run of a plan of this name; none when there never was one."""
    async with open_context(loaded) as context:
        project, _ = await context.project(named)
        return await context.store.queue.steps_of(project.id, plan.slug)


async def run_plan(loaded: Loaded, request: PlanRequest, show: Show = lambda _news: None) -> Ended:
    """Submit it and work until no step is left that this process could do; other nodes may do some of them.

    The first SIGINT, SIGTERM or SIGHUP lets what runs end within `dispatcher.drain_timeout`, a second one ends it at
    once; what is left stays queued.
    """
    become_subreaper()
    async with open_context(loaded) as context:
        project, own = await context.project(request.project)
        at_once = request.agents or context.settings.dispatcher.max_running
        steps = _steps(context, request, project, own)
        _check_agents(context, steps, own)
        node = context.node(NodeKind.SERVE, at_once)
        limits = replace(limits_of(context.settings), max_running=at_once)
        dispatcher = context.dispatcher(node, limits, [project])
        new = await _put_in(context, request, project, own)
        run = PlanRun(context, request.plan, project, new, dispatcher, show)
        run.begin(request.agents or 0)
        with run.interrupts():
            async with dispatcher:
                await run.watch()
            return Ended(await run.look(), run.interrupted)


def _steps(context: Context, request: PlanRequest, project: Project, own: ProjectSettings) -> PlanSteps:
    return plan_steps(request.plan, context.intake(), project, own, request.key, name=request.name)


async def _put_in(context: Context, request: PlanRequest, project: Project, own: ProjectSettings) -> Submitted:
    steps = _steps(context, request, project, own)
    queue = context.store.queue
    retried: frozenset[int] = frozenset()
    if request.retry:
        before = await queue.steps_of(project.id, request.plan.slug)
        key = request.key or request.plan.digest
        if before and any(row.options.get("plan_key") != key for row in before):
            raise UsageError(
                f"{request.name} is not what was submitted last as {request.plan.slug}: it has been changed, or had "
                "another --key. A retry is of the same plan; to go on with this one, tick off what is done, `- [x]`, "
                "and leave out --retry"
            )
        if before:
            retried = frozenset(new.id for new in await queue.retry_plan(project.id, request.plan.slug))
    return Submitted(project, await queue.submit(steps), retried)


def _check_agents(context: Context, steps: PlanSteps, own: ProjectSettings) -> None:
    """Whether all agents that the steps need can be run here. Raises before anything is queued."""
    executor = context.settings.executor_for(own)
    wanted = {
        (task.backend, task.model)
        for task in steps.tasks
        if not task.external and not task.instant and task.backend != MACHINE
    }
    for backend, model in sorted(wanted, key=str):
        check_direct(backend, model, executor)


@dataclass(slots=True)
class PlanRun:
    """One run under way: looks at its steps, tells what has changed, and knows when it is over."""

    context: Context
    plan: Plan
    project: Project
    submitted: Submitted
    dispatcher: Dispatcher
    show: Show
    interrupted: bool = False
    _wake: asyncio.Event = field(default_factory=asyncio.Event)
    _seen: dict[str, tuple[int, str, int]] = field(default_factory=dict)
    _said: str = ""

    def begin(self, asked: int) -> None:
        """Say what there is to do. `asked`: for so many at once."""
        new = sum(not one.duplicate for one in self.submitted.steps) + len(self.submitted.retried)
        done = sum(one.status is Status.COMPLETED for one in self.submitted.steps)
        words = f"plan {self.plan.slug}: {len(self.plan.steps)} steps, {new} new"
        self.show(News(NewsKind.SUBMITTED, f"{words}, {done} done already" if done else words))
        if asked > self.project.max_running:
            self.show(
                News(
                    NewsKind.SUBMITTED,
                    f"project {self.project.name} runs {self.project.max_running} at a time, not {asked}: "
                    "its max_running in pilot.yaml says so",
                )
            )

    async def watch(self) -> None:
        """Until no step can move any more, or somebody wants the end."""
        loop = asyncio.get_running_loop()
        while not self.interrupted and self.dispatcher.accepting:
            begun = loop.time()
            with contextlib.suppress(Busy):
                rows = await self.look()
                if not any(row.status in (Status.QUEUED, Status.RUNNING) for row in rows.values()):
                    break
                await self._narrate(rows)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(LOOK, 10 * (loop.time() - begun))):
                    await self._wake.wait()
        if left := len(self.dispatcher.worker_status()):
            what = "running" if self.interrupted else "running that are not this plan's"
            patience = self.context.settings.dispatcher.drain_timeout
            self.show(News(NewsKind.STOPPING, f"waiting for {left} {what}, {patience:g}s at most; Ctrl-C: at once"))

    async def look(self) -> dict[str, Execution]:
        """How the steps stand now; what has changed is told."""
        rows = await self._rows()
        for step in self.plan.steps:
            row = rows[step.id]
            state = (row.id, str(row.status), row.attempt)
            before = self._seen.get(step.id)
            if before != state:
                self._seen[step.id] = state
                if (text := _told(row, first=before is None)) is not None:
                    self.show(News(NewsKind.STEP, text, step, row))
        return rows

    async def _rows(self) -> dict[str, Execution]:
        """The newest execution of each step: somebody may have retried one meanwhile."""
        queue = self.context.store.queue
        found = {row.task_id: row for row in await queue.steps_of(self.project.id, self.plan.slug)}
        rows = {}
        for step, new in zip(self.plan.steps, self.submitted.steps, strict=True):
            row = found.get(self.plan.task_id(step))
            # The newest run may be another one by now; then ours have ended, and stand as they are.
            rows[step.id] = row if row is not None and row.id >= new.id else await queue.get(new.id)
        return rows

    async def _narrate(self, rows: Mapping[str, Execution]) -> None:
        """Say for whom or what it waits, when nothing of it runs."""
        queued = [row for row in rows.values() if row.status is Status.QUEUED]
        text = ""
        if queued and not any(row.status is Status.RUNNING for row in rows.values()):
            own = next((row for row in queued if not row.external), None)
            if own is None:
                text = f"workers elsewhere are to do {', '.join(row.task_id for row in queued[:5])}"
            elif (why := await self.context.store.history.why(own.id, self.context.store.database.clock())) is not None:
                text = "; ".join(hold.detail for hold in why.holds)
        if text and text != self._said:
            self.show(News(NewsKind.WAITING, text))
        self._said = text

    @contextlib.contextmanager
    def interrupts(self) -> Iterator[None]:
        """What signals mean to it, until everything has ended."""
        loop = asyncio.get_running_loop()
        again: list[asyncio.TimerHandle] = []

        def force() -> None:
            # said again until it is heeded: asked, ended without grace, left as it is
            self.dispatcher.force()
            again[:] = [loop.call_later(HURRY, force)]

        def interrupt() -> None:
            if not self.dispatcher.accepting:  # on its way out already
                for handle in again:
                    handle.cancel()
                force()
                return
            self.interrupted = True
            self.dispatcher.drain()
            self._wake.set()

        try:
            with on_interrupt(interrupt):
                yield
        finally:
            for handle in again:
                handle.cancel()


def _told(row: Execution, *, first: bool) -> str | None:
    """What is said of a step that stands so now; None: nothing. `first`: it is the first look at it."""
    match row.status:
        case Status.RUNNING:
            return f"attempt {row.attempt}" if row.attempt > 1 else ""
        case Status.QUEUED if row.external:
            return f"a worker elsewhere is to do it (lane {row.lane})"
        case Status.QUEUED if row.attempt and not first:
            return row.reason or row.error or "goes on later"
        case Status.BLOCKED | Status.QUEUED:
            return None
        case Status.COMPLETED if first:
            return None
        case Status.COMPLETED:
            return row.reason or ("nothing to change" if row.outcome == "no_change" else "")
    return row.reason or row.error or ""
