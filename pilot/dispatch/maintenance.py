"""What a node does besides running: renewing its leases, and taking back what dead nodes held."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Protocol

import structlog

from pilot.dispatch.run import Run, Stop
from pilot.domain.errors import PilotError
from pilot.domain.execution import Execution
from pilot.domain.ports import Clock, Held, Node

log = structlog.get_logger()


class LeaseQueue(Protocol):
    """The part of the queue that leases and recovery need."""

    async def heartbeat(self, node: str, lease: int) -> list[Held]:
        """See `ports.Queue.heartbeat`."""
        ...

    async def cancels(self, node: str) -> list[int]:
        """What this node runs and somebody wants ended."""
        ...

    async def nodes(self) -> list[tuple[Node, int]]:
        """Every known node and the end (UTC ms) of its lease."""
        ...

    async def held_by(self, nodes: Collection[str]) -> list[Execution]:
        """What these nodes run, and whatever runs on an ended lease."""
        ...

    async def recover(
        self, nodes: Collection[str], why: str, fences: frozenset[tuple[int, int]] | None = None
    ) -> list[Execution]:
        """Take back what dead nodes held."""
        ...

    async def expire_parks(self) -> list[str]:
        """Open the backends whose time has come."""
        ...


@dataclass(slots=True)
class Leases:
    """Renews every lease of the node in one statement, and ends the runs whose lease is gone.

    A node that can't reach its store ends its agents before its leases end (self-fence): another node may take the
    work from then on, and two must never work on one repository.
    """

    queue: LeaseQueue
    node: str
    lease: int
    runs: Mapping[int, Run]

    async def run(self) -> None:
        """Every third of the lease, for ever."""
        loop = asyncio.get_running_loop()
        renewed = loop.time()
        while True:
            await asyncio.sleep(self.lease / 3000)
            try:
                await self.renew()
                renewed = loop.time()
            except PilotError as error:
                log.error("heartbeat.failed", error=str(error))  # noqa: TRY400
                if loop.time() - renewed > self.lease / 1000 * 0.6:
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
    execution's claim left running here, verified, given (execution id, fence).
    """

    queue: LeaseQueue
    node: Node
    clock: Clock
    alive: Callable[[Node], bool | None]
    end_processes: Callable[[int, int], Awaitable[Collection[int]]]
    every: float = 15.0

    async def run(self) -> None:
        """Periodically; the first time is the dispatcher's, before it admits anything."""
        while True:
            await asyncio.sleep(self.every)
            try:
                await self.once()
            except PilotError as error:
                log.error("recovery.failed", error=str(error))  # noqa: TRY400

    async def once(self) -> list[Execution]:
        """One sweep; what was taken back. A failed read raises: it is never taken for "nothing there"."""
        nodes = {node.id: (node, until) for node, until in await self.queue.nodes()}
        now = self.clock()
        dead = [n.id for n, until in nodes.values() if n.id != self.node.id and self._is_dead(n, until, now)]
        lost = await self.queue.held_by(dead)
        if not lost and not dead:
            await self.queue.expire_parks()
            await self.queue.recover((), "", frozenset())  # direct runs whose process is gone
            return []
        for execution in lost:
            # First its processes, then its row: a repository is free only when nobody works in it any more.
            ended = await self.end_processes(execution.id, execution.fence)
            log.warning("execution.lost", execution=execution.id, node=execution.node, processes_ended=len(ended))
        fences = frozenset((execution.id, execution.fence) for execution in lost)
        taken = await self.queue.recover(dead, "its process is gone", fences)
        await self.queue.expire_parks()
        return taken

    def _is_dead(self, node: Node, lease_until: int, now: int) -> bool:
        alive = self.alive(node)
        return lease_until < now - 60_000 if alive is None else not alive
