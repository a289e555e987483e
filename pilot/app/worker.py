"""`pilot worker`, local mode: claims from a server elsewhere and runs it here, by this machine's own settings."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import structlog

from pilot.app.context import HURRY
from pilot.app.machine import Machine
from pilot.app.worker_choice import chosen, machine_of
from pilot.app.worker_claims import Claims, Held
from pilot.app.worker_diff import diff_of
from pilot.app.worker_place import Place
from pilot.config.load import Loaded
from pilot.dispatch.run import Attempts, Stop
from pilot.domain.agent import OutputKind
from pilot.domain.errors import Busy, StoreError
from pilot.domain.execution import Execution
from pilot.domain.outcome import Ending, Outcome, Usage
from pilot.domain.ports import Clock, Journal
from pilot.domain.work import LEASE, Artifact, Claim, Made, Wanted, WorkQueue
from pilot.runner.git import Git
from pilot.runner.proctree import become_subreaper
from pilot.runner.runner import AttemptRunner
from pilot.runner.workspace import Workspaces

log = structlog.get_logger()
WAIT = 20.0
"""Seconds that a claim is left waiting at the server."""
_LONGEST = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerRequest:
    """Who works, for what, how much at once. `lease` is ms. `backend`: whatever the routes say."""

    holder: str
    wanted: Wanted = field(default_factory=Wanted)
    max: int = 1
    lease: int = LEASE
    once: bool = False
    backend: str | None = None


@dataclass(frozen=True, slots=True)
class News:
    """Something to tell people, and the same for programs. `what` is one word."""

    what: str
    text: str
    facts: dict[str, Any] = field(default_factory=dict)


Tell = Callable[[News], None]


class Server(WorkQueue, Protocol):
    """Where it claims."""

    @property
    def place(self) -> str:
        """What people call it."""
        ...

    async def get(self, id: int) -> Execution:
        """One execution."""
        ...


async def run_worker(
    loaded: Loaded, server: Server, place: Place, request: WorkerRequest, clock: Clock, tell: Tell
) -> Execution | None:
    """Work until told to stop, or (`once`) for one execution, which is returned as it stands then.

    The first SIGTERM or SIGINT lets what runs end within `dispatcher.drain_timeout`, then gives it back, uncounted;
    a second one gives it back at once.
    """
    machine = machine_of(loaded, request.wanted.projects, request.backend)
    become_subreaper()
    with place.taken():
        await place.sweep()
        await place.began()
        worker = Worker(machine, server, place, request, clock, tell)
        with worker.signals():
            last = await worker.run()
        await place.ended()
    return None if last is None else await server.get(last)


class Worker:
    """Claims, runs, and says how it ended; one task per execution, one more that renews its lease."""

    def __init__(
        self, machine: Machine, server: Server, place: Place, request: WorkerRequest, clock: Clock, tell: Tell
    ) -> None:
        self._machine, self._server, self._place = machine, server, place
        self._request, self._tell = request, tell
        self._ids = {own.name: id for id, own in machine.projects.items()}
        self._made: dict[int, tuple[Made, ...]] = {}
        self._stopping, self._hurry = asyncio.Event(), asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._git = Git()
        runs: dict[int, Any] = {}
        self._claims = Claims(server, request.holder, request.lease, runs, self._artifacts)
        rules = machine.settings.retry_rules()
        self._attempts = Attempts(self._claims, self._runner(), clock, random.random, rules, runs)

    def _runner(self) -> AttemptRunner:
        machine = self._machine

        async def made(execution: Execution) -> Sequence[Made]:
            return self._made.get(execution.id, ())

        return AttemptRunner(
            project=machine.own,
            backend=machine.backend,
            executor=machine.executor,
            workspaces=Workspaces(machine.state_dir, git=self._git),
            journal=_Heard(self._claims, self._say),
            state_dir=machine.state_dir,
            store_id=self._place.id,
            confine=machine.confine,
            budget=lambda execution: machine.budget().left(execution),
            redact=lambda: machine.redact,
            made=made,
        )

    async def run(self) -> int | None:
        """Until told to stop; with `once`, the id of the execution that it ran."""
        request = self._request
        self._say("started", f"{request.holder} works for {self._server.place}", projects=sorted(self._ids))
        last: int | None = None
        try:
            while not self._stopping.is_set():
                if len(self._tasks) >= request.max:
                    await self._one_ended()
                    continue
                for claim, asked in await self._claimed(request.max - len(self._tasks)):
                    last = claim.execution.id
                    task = asyncio.create_task(self._carry_out(claim, asked), name=f"execution {last}")
                    self._tasks.add(task)
                    task.add_done_callback(self._tasks.discard)
                if request.once and last is not None:
                    break
            await self._drain(grace=None if request.once and not self._stopping.is_set() else self._grace)
        except BaseException:
            self._hurry.set()
            await self._drain(grace=0.0)
            raise
        self._say("stopped", f"{request.holder} has ended")
        return last if request.once else None

    @property
    def _grace(self) -> float:
        return self._machine.settings.dispatcher.drain_timeout

    async def _one_ended(self) -> None:
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait({stopping, *self._tasks}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()

    async def _claimed(self, free: int) -> list[tuple[Claim, float]]:
        """What the server gives, with the time before it was asked for; nothing when told to stop meanwhile."""
        loop, request, pause, away = asyncio.get_running_loop(), self._request, 0.5, ""
        wanted = replace(request.wanted, projects=request.wanted.projects or tuple(sorted(self._ids)))
        stopping = asyncio.ensure_future(self._stopping.wait())
        try:
            while not self._stopping.is_set():
                # Once the answer is on its way its lease has begun: at the latest when it was asked to wait until.
                asked = loop.time()
                asking = asyncio.ensure_future(
                    self._server.claim(
                        request.holder,
                        max=1 if request.once else free,
                        wanted=wanted,
                        lease=request.lease,
                        wait=min(WAIT, request.lease / 3000),
                    )
                )
                try:
                    await asyncio.wait({asking, stopping}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    if not asking.done():
                        asking.cancel()
                        await asyncio.wait({asking})
                if asking.cancelled():
                    break
                try:
                    found = asking.result()
                except (Busy, StoreError) as error:
                    if str(error) != away:
                        self._say("away", f"waits for the server: {error}")
                    away = str(error)
                    await asyncio.wait({stopping}, timeout=pause * (0.5 + random.random() / 2))  # noqa: S311
                    pause = min(pause * 2, _LONGEST)
                    continue
                if away:
                    self._say("back", f"{self._server.place} is there again")
                    pause, away = 0.5, ""
                if found:
                    return [(claim, asked) for claim in found]
        finally:
            stopping.cancel()
        return []

    async def _carry_out(self, claim: Claim, asked: float) -> None:
        execution, held = claim.execution, self._claims.take(claim, asked)
        renewing = asyncio.create_task(self._claims.renew(held))
        try:
            await self._run(claim, held)
        finally:
            renewing.cancel()
            await asyncio.wait({renewing})
            self._claims.drop(held)
            self._made.pop(execution.id, None)

    async def _run(self, claim: Claim, held: Held) -> None:
        given = claim.execution
        id = given.id
        own = self._machine.projects[self._ids[given.project]] if given.project in self._ids else None
        execution = replace(given, project_id=self._ids.get(given.project, 0))
        if own is not None:
            execution = chosen(self._machine.settings, own, self._request.backend, execution)
        self._made[id] = claim.made
        self._say("claimed", f"{id} {given.task_id}: {given.title}", id, project=given.project, fence=claim.fence)
        await self._place.sweep_others()
        await self._attempts.carry_out(execution, lambda: (None, ()), begin=not self._stopping.is_set())
        if held.lost.is_set():
            self._say("lost", f"{id} is no longer this worker's; nothing more is said of it", id)
            return
        settled = self._claims.settled.pop(id, None)
        if settled is not None:
            now = settled.execution
            why = f": {now.reason}" if now.reason else ""
            self._say("ended", f"{id} is {now.status}{why}", id, status=str(now.status), outcome=now.outcome)

    async def _artifacts(self, execution: Execution, outcome: Outcome) -> Sequence[Artifact]:
        if outcome.ending is not Ending.DONE:
            return ()
        return await diff_of(self._git, self._machine.own(execution), self._machine.state_dir, execution, outcome)

    # Its end

    async def _drain(self, grace: float | None) -> None:
        """Let what runs end for `grace` seconds, then end it; it goes back to the queue, uncounted."""
        idle = asyncio.create_task(self._idle())
        try:
            while not idle.done():
                hurry = asyncio.create_task(self._hurry.wait())
                stopping = asyncio.create_task(self._stopping.wait() if grace is None else asyncio.sleep(grace))
                await asyncio.wait({idle, hurry, stopping}, return_when=asyncio.FIRST_COMPLETED)
                hurry.cancel()
                stopping.cancel()
                if idle.done():
                    break
                if grace is None and not self._hurry.is_set():
                    grace = self._grace
                    continue
                self._hurry.clear()
                grace = HURRY * 5
                for run in tuple(self._attempts.runs.values()):
                    run.stop(Stop.SHUTDOWN)
        finally:
            idle.cancel()

    async def _idle(self) -> None:
        while self._tasks:
            await asyncio.wait(self._tasks)

    def stop(self) -> None:
        """Take nothing new; again: end what runs at once."""
        if self._stopping.is_set():
            self._hurry.set()
            return
        self._stopping.set()
        self._say("draining", f"takes nothing new; {len(self._tasks)} running", running=len(self._tasks))

    @contextlib.contextmanager
    def signals(self) -> Iterator[None]:
        """SIGTERM and SIGINT are `stop`."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)

    def _say(self, what: str, text: str, execution: int | None = None, **facts: Any) -> None:
        about = {} if execution is None else {"execution": execution}
        self._tell(News(what, text, about | facts))


@dataclass(slots=True)
class _Heard:
    """The journal, whose phases are told here, too."""

    journal: Journal
    say: Callable[..., None]

    async def note(self, execution: Execution, usage: Usage | None = None, /, **facts: str | None) -> None:
        await self.journal.note(execution, usage, **facts)
        if phase := facts.get("phase"):
            self.say("phase", f"{execution.id} {phase}", execution.id, phase=phase)

    async def write(self, execution: Execution, pieces: Sequence[tuple[OutputKind, bytes]]) -> None:
        await self.journal.write(execution, pieces)
