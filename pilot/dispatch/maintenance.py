"""What a node does besides running: renewing its leases, and taking back what dead nodes held."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Collection, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

import structlog

from pilot.dispatch.run import Run, Stop
from pilot.domain.errors import LeaseLost, Outdated, PilotError
from pilot.domain.execution import Execution, Status
from pilot.domain.outcome import Ending, Outcome
from pilot.domain.policy import Settlement
from pilot.domain.ports import Clock, DispatchQueue, Finish, Node, NodeKind
from pilot.domain.work import LEASE, WORKER

log = structlog.get_logger()
FORGOTTEN = 24 * 60 * 60 * 1000
"""ms after the end of its lease when another host's node is no longer listed."""
UNHEARD = 60 * 60 * 1000
"""The same of a worker, which claims again under the same name when it comes back."""
PAST = 20
"""ms after the end of a lease when it is looked at."""
SELF_FENCE = 0.6
"""Part of the lease after which runs are ended if it could not be renewed; the rest is theirs to end in."""


@dataclass(slots=True)
class Leases:
    """Renews every lease of the node in one statement, and ends the runs whose lease is gone.

    A node that can't reach its store ends its agents before its leases end (self-fence): another node may take the
    work from then on, and two must never work on one repository. Until it has renewed them it begins nothing: of what
    is claimed meanwhile nobody knows when its lease began. `renewed` is called when that is over.
    """

    queue: DispatchQueue
    node: str
    lease: int
    clock: Clock
    runs: Mapping[int, Run]
    renewed: Callable[[], None] = lambda: None
    fenced: bool = False
    _unheld: frozenset[tuple[int, int]] = field(default_factory=frozenset)

    async def run(self) -> None:
        """Every third of the lease, sooner after a failure, for ever. Raises `Outdated`."""
        loop = asyncio.get_running_loop()
        period, limit = self.lease / 3000, self.lease / 1000 * SELF_FENCE
        pause, fence = period, loop.call_later(limit, self._fence)
        try:
            while True:
                await asyncio.sleep(pause)
                asked = loop.time()
                try:
                    # A store that does not answer is as bad as one that says no.
                    async with asyncio.timeout(limit):
                        await self.renew()
                except Outdated:
                    self._fence()  # nothing of them can be written any more
                    raise
                except (PilotError, TimeoutError) as error:
                    log.error("heartbeat.failed", error=str(error) or "no answer")
                    pause = period / 4
                else:
                    # From before the statement: the lease may have begun then.
                    fence.cancel()
                    pause, fence = period, loop.call_at(asked + limit, self._fence)
                    if self.fenced:
                        self.fenced = False
                        self.renewed()
        finally:
            fence.cancel()

    def _fence(self) -> None:
        if not self.fenced:
            self.fenced = True
            log.warning("node.fenced", reason="its lease could not be renewed; it begins nothing until it is")
        for run in tuple(self.runs.values()):
            run.stop(Stop.LOST, "the lease could not be renewed")

    async def renew(self) -> None:
        """Once; also brings the cancels."""
        # Only what was running before the statement can be judged by its answer.
        before = tuple(self.runs.values())
        held = {h.id: h for h in await self.queue.heartbeat(self.node, self.lease)}
        for run in before:
            mine = held.get(run.execution.id)
            if mine is None or mine.fence != run.execution.fence:
                if not run.task.done():
                    run.stop(Stop.LOST, "the lease went to another node")
            elif mine.cancel_requested and run.stopped is None:
                run.stop(Stop.CANCEL)
        # A claim that no run stands for (self-fenced, crashed, half-known) would be renewed for ever. Seen twice,
        # since one may be on its way from the store.
        unheld = frozenset((h.id, h.fence) for h in held.values() if h.id not in self.runs)
        for id, fence in unheld & self._unheld:
            await self._give_back(id, fence)
        self._unheld = unheld

    async def _give_back(self, id: int, fence: int) -> None:
        execution = await self.queue.get(id)
        if execution.status is not Status.RUNNING or execution.fence != fence:
            return
        log.warning("execution.unheld", execution=id, project=execution.project, fence=fence)
        outcome = Outcome(ending=Ending.INTERRUPTED, detail="its run ended without a result")
        settlement = Settlement(to=Status.QUEUED, reason=outcome.detail, keep_session=True)
        with contextlib.suppress(LeaseLost):
            await self.queue.finish(Finish(execution=execution, outcome=outcome, settlement=settlement))

    async def heed_cancels(self) -> None:
        """End what people want ended."""
        if not self.runs:
            return
        for id in await self.queue.cancels(self.node):
            run = self.runs.get(id)
            if run is not None and run.stopped is None:
                run.stop(Stop.CANCEL)


@dataclass(slots=True)
class _Watch:
    """Since when (seconds of this process) something is the same, by what it is: a wall clock jumps, this does not."""

    _seen: dict[Hashable, tuple[object, float]] = field(default_factory=dict)

    def look(self, things: Mapping[Any, object]) -> dict[Hashable, float]:
        """Seconds for which each of these has been as it is; what is not there any more is forgotten."""
        now = asyncio.get_running_loop().time()
        before, self._seen = self._seen, {}
        for key, state in things.items():
            known = before.get(key)
            self._seen[key] = known if known is not None and known[0] == state else (state, now)
        return {key: now - since for key, (_, since) in self._seen.items()}


@dataclass(slots=True)
class Recovery:
    """Takes back what nodes that are no more were running: by process on this host, by lease on others.

    `alive` judges a node of this host by its process; None for one that only its lease can judge. `end_processes`
    ends what an execution's claim left running here, verified, given (execution id, fence). A lease has ended when
    its time is over *and* its node was not heard of for `silence` seconds of this process: wall clocks jump, and
    machines sleep. The claim of a worker has a lease of its own, which is short: half of a usual one is silence
    enough. `forgotten` is called when the store knows this node no more.
    """

    queue: DispatchQueue
    node: Node
    clock: Clock
    alive: Callable[[Node], bool | None]
    end_processes: Callable[[int, int], Awaitable[Collection[int]]]
    forgotten: Callable[[], Awaitable[None]]
    every: float = 15.0
    silence: float = 30.0
    _nodes: _Watch = field(default_factory=_Watch)
    _claims: _Watch = field(default_factory=_Watch)
    _overdue: bool = False

    async def run(self) -> None:
        """Periodically, when a lease ends, and each second while one has ended that nobody gave up; the first time is
        the dispatcher's, before it admits anything.
        """
        while True:
            await asyncio.sleep(await self._pause())
            try:
                await self.once()
            except (PilotError, OSError) as error:
                log.error("recovery.failed", error=str(error))

    async def _pause(self) -> float:
        """Seconds until it is worth while to look again."""
        pause = min(self.every, 1.0) if self._overdue else self.every
        with contextlib.suppress(PilotError):  # then `once` says what is wrong
            end = await self.queue.next_lease_end(self.node.id)
            if end is not None:
                pause = min(pause, max(0.0, end + PAST - self.clock()) / 1000)
        return pause

    async def once(self) -> list[Execution]:
        """One sweep; what was taken back. A failed read raises: it is never taken for "nothing there"."""
        nodes = {node.id: (node, until) for node, until in await self.queue.nodes()}
        if self.node.id not in nodes:  # stopped for so long that it was given up
            await self.forgotten()
        others = {id: known for id, known in nodes.items() if id != self.node.id}
        now = self.clock()
        dead = [node.id for node, until in others.values() if self._is_dead(node, until, now)]
        # Its own claims are its heartbeat's business.
        held = [execution for execution in await self.queue.held_by(dead) if execution.node != self.node.id]
        unheard = self._nodes.look({id: (node.beats, until) for id, (node, until) in others.items()})
        quiet = frozenset(id for id, (_, until) in others.items() if until < now and unheard[id] >= self.silence)
        silent = {(e.id, e.fence) for e in self._silent(held, unheard)}
        lost = [e for e in held if e.node in dead or (e.id, e.fence) in silent]
        self._overdue = len(lost) < len(held)
        if not lost and not dead:
            await self.queue.expire_parks()
            await self.queue.recover((), "", frozenset(), quiet)  # direct runs whose process is gone
            return []
        fences: set[tuple[int, int]] = set()
        for execution in lost:
            # First its processes, then its row: a repository is free only when nobody works in it any more.
            try:
                ended = await self.end_processes(execution.id, execution.fence)
            except OSError as error:  # too little of the machine left to tell who lives: the next sweep may
                log.error("recovery.delayed", execution=execution.id, error=str(error))
                dead = [node for node in dead if node != execution.node]
                continue
            fences.add((execution.id, execution.fence))
            log.warning("execution.lost", execution=execution.id, node=execution.node, processes_ended=len(ended))
        taken = await self.queue.recover(dead, "its process is gone", frozenset(fences), quiet)
        await self.queue.expire_parks()
        return taken

    def _is_dead(self, node: Node, lease_until: int, now: int) -> bool:
        alive = self.alive(node)
        known_for = UNHEARD if node.kind == NodeKind.WORKER else FORGOTTEN
        return lease_until < now - known_for if alive is None else not alive

    def _silent(self, held: Collection[Execution], unheard: Mapping[Hashable, float]) -> list[Execution]:
        """Of what runs on an ended lease, that of which nothing was heard for long enough.

        A node renews all that it runs whenever it renews itself, so that it is known before the lease ends whether
        it was heard of. A worker renews each claim for itself.
        """
        seen = self._claims.look({(e.id, e.fence): e.lease_until for e in held})
        short = min(self.silence, LEASE / 2000)
        found = []
        for e in held:
            worker = (e.node or "").startswith(WORKER)
            since = 0.0 if worker else unheard.get(e.node, 0.0)
            if max(since, seen[e.id, e.fence]) >= (short if worker else self.silence):
                found.append(e)
        return found
