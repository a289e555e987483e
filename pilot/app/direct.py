"""`pilot run`: one task here and now, under the same project slot as everybody else."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from pilot.app.agents import check_direct
from pilot.app.context import HURRY, Context, limits_of, open_context
from pilot.config.load import Loaded
from pilot.dispatch.deliveries import Deliveries
from pilot.dispatch.dispatcher import Dispatcher
from pilot.dispatch.intake import TaskRequest
from pilot.domain.agent import OutputKind
from pilot.domain.delivery import PullState
from pilot.domain.errors import Busy, PilotError, StoreError
from pilot.domain.execution import Execution, Status
from pilot.domain.outcome import Usage
from pilot.domain.ports import Journal, NodeKind
from pilot.domain.task import DIRECT_PRIORITY
from pilot.domain.text import one_line
from pilot.runner.proctree import become_subreaper


class ProgressKind(StrEnum):
    """What a line of live progress is about."""

    QUEUED = "queued"  #: the id, and whether it is new
    WAITING = "waiting"  #: for whom or what
    PHASE = "phase"  #: what the attempt does now
    OUTPUT = "output"  #: a piece of the agent's words


@dataclass(frozen=True, slots=True)
class Progress:
    """One thing to show while it runs. `output` says what sort of words `text` is."""

    kind: ProgressKind
    text: str
    output: OutputKind | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectRequest:
    """A task request, where, and whether to wait for the project's slot."""

    task: TaskRequest
    project: str | None = None
    wait: bool = True


Show = Callable[[Progress], None]

DELIVERY = 300.0
"""Seconds for push and pull request, after which they are left to others."""
_FOR_A_PERSON = ("parked", "paused")
"""What a person may end, by a command that has to be said: it does not pass by itself."""


@dataclass(slots=True)
class _ShownJournal:
    """The journal, with a window in it."""

    journal: Journal
    show: Show

    async def note(self, execution: Execution, usage: Usage | None = None, /, **facts: str | None) -> None:
        await self.journal.note(execution, usage, **facts)
        if facts.get("phase"):
            self.show(Progress(ProgressKind.PHASE, facts["phase"] or ""))

    async def write(self, execution: Execution, pieces: Sequence[tuple[OutputKind, bytes]]) -> None:
        await self.journal.write(execution, pieces)
        for kind, data in pieces:
            self.show(Progress(ProgressKind.OUTPUT, data.decode(errors="replace"), kind))


async def run_direct(loaded: Loaded, request: DirectRequest, show: Show = lambda _progress: None) -> Execution:
    """Run it, waiting for its turn; the execution as it ended. Raises `Busy` when it may not wait.

    The first SIGINT, SIGTERM or SIGHUP (the terminal is closed) cancels it in order, a second one at once.
    """
    become_subreaper()
    async with open_context(loaded) as context:
        project, own = await context.project(request.project, unconfigured=True)
        node = context.node(NodeKind.RUN, 1)
        limits = replace(limits_of(context.settings), max_running=1, poll_interval=0.5)
        journal = _ShownJournal(context.store.journal, show)
        dispatcher = context.dispatcher(node, limits, [project], journal, request.task.backend)
        async with dispatcher:
            task = replace(
                request.task,
                source="cli",
                priority=DIRECT_PRIORITY,
                reserved_for=node.id,
                max_attempts=request.task.max_attempts or 1,
            )
            ready = context.intake().task(task, project, own)
            check_direct(ready.backend, ready.model, context.settings.executor_for(own))
            new = await context.store.queue.enqueue(ready)
            if new.duplicate:
                raise Busy(
                    f"{task.task_id} is execution {new.id} already ({new.status}); see `pilot show {new.id}`, "
                    f"or end it with `pilot cancel {new.id}`"
                )
            show(Progress(ProgressKind.QUEUED, str(new.id)))
            with _interrupts(context, dispatcher, new.id):
                narrator = asyncio.create_task(_narrate(context, new.id, show, wait=request.wait))
                try:
                    ended = await dispatcher.wait_for_execution(new.id)
                    if ended.status is Status.CANCELLED and not request.wait:
                        await narrator  # it may be what has cancelled it, and says why
                finally:
                    narrator.cancel()
                    await asyncio.gather(narrator, return_exceptions=True)
            return await _delivered(context, node.id, ended, show)


async def _delivered(context: Context, node: str, ended: Execution, show: Show) -> Execution:
    """Push what it has made and open its pull request; the execution as it stands then.

    What does not work now stays owed: the task is done all the same. An interrupt leaves it to others at once.
    """
    pull = await context.store.pulls.of(ended.id) if ended.status is Status.COMPLETED else None
    if pull is None or pull.execution != ended.id or pull.state not in (PullState.OWED, PullState.OPEN):
        return ended
    from pilot.app.outside import make_deliveries  # only here: it loads the client for GitHub

    def say(words: str) -> None:
        show(Progress(ProgressKind.PHASE, one_line(words, 600)))

    say(f"pushing {pull.branch} to {pull.repo}")
    async with make_deliveries(context, node) as deliveries:
        reason = "there is no sources.github" if deliveries is None else await _drained(deliveries, ended.id)
    pull = await context.store.pulls.of(ended.id) or pull
    if pull.state is PullState.FAILED:
        say(f"no pull request: {pull.error}")
    elif reason:
        say(f"not delivered yet: {reason}; `pilot serve`, or `pilot sync {ended.id}`, goes on with it")
    elif pull.url is not None:
        say(f"pull request: {pull.url}")
    return await context.store.queue.get(ended.id)


async def _drained(deliveries: Deliveries, id: int) -> str:
    """Why not all of it could be delivered; empty when it could."""
    task = asyncio.create_task(deliveries.drain(id, DELIVERY))
    try:
        with on_interrupt(task.cancel):
            await asyncio.wait({task})
        if task.cancelled():
            return "it was broken off"
        left = task.result()
    except PilotError as error:
        return str(error)
    finally:
        task.cancel()
    return "" if left is None else left.reason


async def _narrate(context: Context, id: int, show: Show, *, wait: bool) -> None:
    """Say for whom or what it waits, each time that changes, between its attempts too.

    Without `wait`: gives up at the first thing to wait for.
    """
    said = ""
    while not (execution := await context.store.queue.get(id)).status.final:
        if execution.status is not Status.QUEUED:
            said = ""
            await asyncio.sleep(0.25)
            continue
        why = await context.store.history.why(id, context.store.database.clock())
        # That it is kept for this process is no news to the person in front of it.
        holds = [hold.detail for hold in why.holds if hold.kind != "reserved"] if why is not None else []
        hold = "; ".join(holds)
        if why is not None and hold and why.holds[0].kind in _FOR_A_PERSON:
            hold += f". {why.next}"
        if hold and not wait:
            await context.store.queue.cancel(id, by="pilot", reason=f"was not to wait: {hold}")
            raise Busy(f"{execution.project} is busy: {hold}")
        if hold and hold != said:
            said = hold
            show(Progress(ProgressKind.WAITING, hold))
        await asyncio.sleep(0.05)


@contextlib.contextmanager
def _interrupts(context: Context, dispatcher: Dispatcher, id: int) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    tasks: list[asyncio.Task[None]] = []
    again: list[asyncio.TimerHandle] = []

    async def cancel() -> None:
        while True:  # a store that is locked or full just now does not make a wish go away
            try:
                await context.store.queue.cancel(id, by="the terminal")
            except (Busy, StoreError):
                await asyncio.sleep(0.2)
            else:
                return

    def force() -> None:
        # one that comes together with the first is one to who is being cancelled: so it is said again
        dispatcher.force()
        again[:] = [loop.call_later(HURRY, force)]

    def interrupt() -> None:
        if tasks:
            for handle in again:
                handle.cancel()
            force()
        tasks.append(asyncio.create_task(cancel()))

    try:
        with on_interrupt(interrupt):
            yield
    finally:
        for handle in again:
            handle.cancel()
        for task in tasks:
            task.cancel()


@contextlib.contextmanager
def on_interrupt(act: Callable[[], object]) -> Iterator[None]:
    """Call it at every signal that asks for the end."""
    loop = asyncio.get_running_loop()
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup has it
        numbers.append(signal.SIGHUP)
    for number in numbers:
        loop.add_signal_handler(number, act)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
