"""What a node does besides running: renewing its leases, and taking back what dead nodes held."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field

import structlog

from pilot.dispatch.run import Run, Stop
from pilot.domain.errors import LeaseLost, PilotError
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
SELF_FENCE = 0.6
"""Part of the lease after which runs are ended if it could not be renewed; the rest is theirs to end in."""


@dataclass(slots=True)
class Leases:
    """Renews every lease of the node in one statement, and ends the runs whose lease is gone.

    A node that can't reach its store ends its agents before its leases end (self-fence): another node may take the
    work from then on, and two must never work on one repository.
    """

    queue: DispatchQueue
    node: str
    lease: int
    clock: Clock
    runs: Mapping[int, Run]
    _unheld: frozenset[tuple[int, int]] = field(default_factory=frozenset)

    async def run(self) -> None:
        """Every third of the lease, sooner after a failure, for ever."""
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
                except (PilotError, TimeoutError) as error:
                    log.error("heartbeat.failed", error=str(error) or "no answer")
                    pause = period / 4
                    if fence.when() <= loop.time():  # for what was claimed since it fell
                        fence = loop.call_later(limit, self._fence)
                else:
                    # From before the statement: the lease may have begun then.
                    fence.cancel()
                    pause, fence = period, loop.call_at(asked + limit, self._fence)
        finally:
            fence.cancel()

    def _fence(self) -> None:
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
        settlement = Settlement(to=Status.QUEUED, reason=outcome.detail, available_at=self.clock(), keep_session=True)
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
class Recovery:
    """Takes back what nodes that are no more were running: by process on this host, by lease on others.

    `alive` judges a node of this host by its process; None for a node of another host. `end_processes` ends what an
    execution's claim left running here, verified, given (execution id, fence). A lease has ended when its time is
    over *and* it was not renewed for `silence` seconds of this process: wall clocks jump, and machines sleep. The
    claim of a worker has a lease of its own, which is short: half of a usual one is silence enough.
    """

    queue: DispatchQueue
    node: Node
    clock: Clock
    alive: Callable[[Node], bool | None]
    end_processes: Callable[[int, int], Awaitable[Collection[int]]]
    every: float = 15.0
    silence: float = 30.0
    _ended: dict[str | tuple[int, int], tuple[int, float]] = field(default_factory=dict)

    async def run(self) -> None:
        """Periodically, each second while a claim's lease has ended; the first time is the dispatcher's, before it
        admits anything.
        """
        while True:
            overdue = any(isinstance(key, tuple) for key in self._ended)
            await asyncio.sleep(min(self.every, 1.0) if overdue else self.every)
            try:
                await self.once()
            except (PilotError, OSError) as error:
                log.error("recovery.failed", error=str(error))

    async def once(self) -> list[Execution]:
        """One sweep; what was taken back. A failed read raises: it is never taken for "nothing there"."""
        nodes = {node.id: (node, until) for node, until in await self.queue.nodes()}
        now = self.clock()
        dead = [n.id for n, until in nodes.values() if n.id != self.node.id and self._is_dead(n, until, now)]
        # Its own claims are its heartbeat's business.
        held = [execution for execution in await self.queue.held_by(dead) if execution.node != self.node.id]
        silent = self._silent(
            {id: until for id, (_, until) in nodes.items() if until < now and id != self.node.id}
            | {(execution.id, execution.fence): execution.lease_until or 0 for execution in held},
            frozenset((e.id, e.fence) for e in held if (e.node or "").startswith(WORKER)),
        )
        quiet = frozenset(key for key in silent if isinstance(key, str))
        lost = [e for e in held if e.node in dead or (e.id, e.fence) in silent]
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

    def _silent(
        self, ended: Mapping[str | tuple[int, int], int], workers: Collection[tuple[int, int]]
    ) -> frozenset[str | tuple[int, int]]:
        """Of what has an ended lease (node id, or claim): what has been so, with the same end, for long enough.

        `workers`: the claims of workers among them.
        """
        now = asyncio.get_running_loop().time()
        before, self._ended = self._ended, {}
        for key, until in ended.items():
            seen = before.get(key)
            self._ended[key] = seen if seen is not None and seen[0] == until else (until, now)
        enough: dict[str | tuple[int, int], float] = {key: min(self.silence, LEASE / 2000) for key in workers}
        return frozenset(key for key, (_, since) in self._ended.items() if now - since >= enough.get(key, self.silence))
