"""Dispatcher: one per node. Wakes project workers, keeps its leases, and stops in order."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import structlog

from pilot.dispatch.courtesy import Courtesy
from pilot.dispatch.maintenance import Leases, Recovery
from pilot.dispatch.run import Attempts, Stop
from pilot.dispatch.stopping import in_full
from pilot.dispatch.turns import Turns
from pilot.dispatch.watch import Watch
from pilot.dispatch.worker import ProjectWorker
from pilot.domain.budget import Budget
from pilot.domain.errors import PilotError
from pilot.domain.execution import Execution, Status
from pilot.domain.outcome import FailureClass
from pilot.domain.policy import RULES, Rule
from pilot.domain.ports import Accounts, Clock, DispatchQueue, Node, NodeKind, Runner
from pilot.domain.task import Project, Task

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Limits:
    """How a node behaves in time; seconds."""

    max_running: int = 4
    lease: float = 60.0
    drain_timeout: float = 30.0
    poll_interval: float = 1.0
    linger: float = 30.0


async def _nothing_to_end(_execution: int, _fence: int) -> Collection[int]:
    return ()


class Dispatcher:
    """Runs what is queued for its projects: `async with Dispatcher(...)`, or `await run()`.

    `projects` are those this node can reach, `accounts` whose allowance it uses up there, `budget` what it may
    spend. Every wait has a timer behind it: signals are hints.
    """

    def __init__(
        self,
        queue: DispatchQueue,
        runner: Runner,
        *,
        node: Node,
        projects: Iterable[Project],
        clock: Clock,
        limits: Limits | None = None,
        accounts: Accounts | None = None,
        budget: Budget | None = None,
        rules: Mapping[FailureClass, Rule] = RULES,
        jitter: Callable[[], float] = random.random,
        alive: Callable[[Node], bool | None] = lambda _node: None,
        end_processes: Callable[[int, int], Awaitable[Collection[int]]] = _nothing_to_end,
    ) -> None:
        self._queue = queue
        self._node = node
        self._clock = clock
        self._limits = limits or Limits()
        self.projects: dict[int, Project] = {project.id: project for project in projects}
        self._accounts: Accounts = accounts or {}
        self._budget = budget or Budget()
        self._lease = int(self._limits.lease * 1000)
        self._attempts = Attempts(queue, runner, clock, jitter, rules)
        self._turns = Turns(self._limits.max_running)
        self._leases = Leases(queue, node.id, self._lease, clock, self._attempts.runs, lambda: self._watch.tell({"*"}))
        lease = self._limits.lease
        self._recovery = Recovery(
            queue, node, clock, alive, end_processes, self._known, every=min(5.0, lease / 4), silence=lease / 2
        )
        self._courtesy = Courtesy()
        self._watch = Watch(
            lambda: queue.look(self.projects, node.id),
            queue.changed,
            self._leases.heed_cancels,
            self._wake,
            turns=self._turns,
            courtesy=self._courtesy,
            clock=clock,
            poll_interval=self._limits.poll_interval,
        )
        self._workers: dict[int, ProjectWorker] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._resting: set[int] = set()
        self._draining = asyncio.Event()
        self._hurry = asyncio.Event()
        self._started = asyncio.Event()
        self._main: asyncio.Task[None] | None = None

    @property
    def accepting(self) -> bool:
        """Started, and not on its way out."""
        return self._started.is_set() and not self._draining.is_set()

    async def __aenter__(self) -> Dispatcher:
        self._main = asyncio.create_task(self.run())
        try:
            await self.started(self._main)
        except BaseException:
            self._main.cancel()
            await asyncio.gather(self._main, return_exceptions=True)
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self.drain()
        if self._main is not None:
            await self._main

    async def started(self, running: asyncio.Task[None]) -> None:
        """Wait until `running`, which is `run()`, has recovered and admits work; raises what ended it before."""
        waiting = asyncio.create_task(self._started.wait())
        try:
            await asyncio.wait({running, waiting}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
        if running.done():
            running.result()

    async def queue_task(self, task: Task) -> int:
        """Enqueue; the id of the execution that stands for the task, new or not."""
        return (await self._queue.enqueue(task)).id

    async def wait_for_execution(self, id: int) -> Execution:
        """The execution once it is final, or held for a person. Raises `NotFound`."""
        while True:
            execution = await self._queue.get(id)
            if execution.status.final or execution.status is Status.NEEDS_HUMAN:
                return execution
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._limits.poll_interval):
                    await self._moved(execution.project_id)

    async def _moved(self, project_id: int) -> None:
        moved = asyncio.Event()
        wanted = {str(project_id), "*"}
        leave = self._queue.listen(lambda tokens: moved.set() if wanted & set(tokens) else None)
        try:
            await moved.wait()
        finally:
            leave()

    def worker_status(self) -> list[dict[str, Any]]:
        """What this node runs now: {execution, project, task_id, attempt, since (UTC ms)}."""
        return [
            {
                "execution": run.execution.id,
                "project": run.execution.project,
                "task_id": run.execution.task_id,
                "attempt": run.execution.attempt,
                "since": run.execution.started_at,
            }
            for run in self._attempts.runs.values()
        ]

    async def reconfigure(
        self, projects: Iterable[Project], accounts: Accounts, budget: Budget, notifies: bool | None = None
    ) -> None:
        """Serve these projects from now on, as whom, and for how much; what runs goes on.

        `notifies`: whether this node tells people what needs them; None: as before.
        """
        self.projects = {project.id: project for project in projects}
        self._accounts, self._budget = accounts, budget
        for worker in self._workers.values():
            worker.project = self.projects.get(worker.project.id, worker.project)
        await self._serve(notifies)
        self._watch.tell({"*"})

    async def _known(self) -> None:
        """Make this node known, and what it serves."""
        await self._queue.start_node(self._node, self._lease)
        await self._serve()
        if self._draining.is_set():
            await self._queue.drain_node(self._node.id)

    async def _serve(self, notifies: bool | None = None) -> None:
        await self._queue.serve(self._node.id, self.projects, self._accounts, self._budget, notifies)

    def drain(self) -> None:
        """Take nothing new; `run` returns when what runs has ended, or its time is over."""
        self._draining.set()

    def force(self) -> None:
        """End what runs at once; it goes back to the queue, uncounted. Again: without any grace."""
        self._draining.set()
        self._hurry.set()

    async def run(self, last: Callable[[], Awaitable[None]] | None = None) -> None:
        """Recover, then serve until `drain` or cancellation; nothing of this node's is running afterwards.

        `last`: what the node still does then, before it leaves and lets go of all that it has in hand.
        """
        await self._known()
        leave = self._queue.listen(self._watch.tell)
        loops: list[asyncio.Task[None]] = []
        try:
            # Before anything is admitted: what a dead node of this host ran still has its agents in the repository.
            for execution in await self._recovery.once():
                log.info("execution.recovered", execution=execution.id, project=execution.project)
            loops = [
                asyncio.create_task(loop())
                for loop in (self._leases.run, self._watch.run, self._recovery.run, self._draining_wait)
            ]
            self._watch.tell({"*"})
            self._started.set()
            done, _ = await asyncio.wait(loops, return_when=asyncio.FIRST_COMPLETED)
            for loop in done:
                loop.result()
        finally:
            try:
                await in_full(self._stop(loops, last), self.force)
            finally:
                leave()

    async def _draining_wait(self) -> None:
        await self._draining.wait()

    async def _stop(self, loops: list[asyncio.Task[None]], last: Callable[[], Awaitable[None]] | None) -> None:
        self._draining.set()
        # Until the last run has ended its lease is renewed, and a cancel is heeded.
        lasting, others = loops[:2], loops[2:]
        for loop in others:
            loop.cancel()
        draining = asyncio.create_task(self._queue.drain_node(self._node.id))
        await self._end_workers()
        for loop in lasting:
            loop.cancel()
        await asyncio.gather(draining, *loops, return_exceptions=True)
        if last is not None:
            await last()
        with contextlib.suppress(PilotError):
            await self._queue.leave(self._node.id)

    async def _end_workers(self) -> None:
        """Let what runs end for `drain_timeout`, then interrupt it; each `force` interrupts it at once."""
        for worker in self._workers.values():
            worker.wake()
        idle = asyncio.create_task(self._idle())
        grace: float | None = self._limits.drain_timeout
        while not idle.done():
            hurry = asyncio.create_task(self._hurry.wait())
            await asyncio.wait({idle, hurry}, timeout=grace, return_when=asyncio.FIRST_COMPLETED)
            hurry.cancel()
            self._hurry.clear()
            if not idle.done():
                grace = None
                for run in tuple(self._attempts.runs.values()):
                    run.stop(Stop.SHUTDOWN)
                for task in tuple(self._tasks):
                    task.cancel()  # whatever claims, or waits for a turn; one that runs something waits for that

    async def _idle(self) -> None:
        while self._tasks:
            await asyncio.wait(self._tasks)

    def _wake(self, project_id: int, *, seen: bool) -> None:
        worker = self._workers.get(project_id)
        if worker is not None:
            worker.wake(seen=seen)
            return
        project = self.projects.get(project_id)
        if project is None or not self._admits(project_id) or project_id in self._resting:
            return
        worker = self._workers[project_id] = ProjectWorker(
            project,
            self._queue,
            self._attempts,
            self._turns,
            node=self._node.id,
            lease=self._lease,
            own=self._node.kind is NodeKind.RUN,
            admitting=lambda: self._admits(project_id),
            came=self._courtesy.came,
            linger=self._limits.linger,
        )
        worker.wake(seen=seen)
        task = asyncio.create_task(worker.run(), name=f"project {project.name}")
        self._tasks.add(task)
        task.add_done_callback(lambda task: self._retired(project_id, task))

    def _admits(self, project_id: int) -> bool:
        return project_id in self.projects and not (self._draining.is_set() or self._leases.fenced)

    def _retired(self, project_id: int, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        worker = self._workers.pop(project_id)
        crashed = not task.cancelled() and task.exception() is not None
        if crashed:
            log.error("worker.crashed", project=worker.project.name, error=repr(task.exception()))
            # Restarted, but not in a circle without a pause.
            self._resting.add(project_id)
            asyncio.get_running_loop().call_later(self._limits.poll_interval, self._rested, project_id)
        elif worker.woken:
            self._watch.tell({str(project_id)})  # woken between its last look and its end

    def _rested(self, project_id: int) -> None:
        self._resting.discard(project_id)
        self._watch.tell({str(project_id)})
