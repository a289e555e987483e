"""ProjectWorker: the coroutine that serves one repository: wake → turn → claim → attempt → finish."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection
from typing import Protocol

import structlog

from pilot.dispatch.run import Attempts
from pilot.dispatch.turns import Turns
from pilot.domain.errors import Busy, StoreError
from pilot.domain.execution import Execution
from pilot.domain.task import Project

log = structlog.get_logger()


class ClaimQueue(Protocol):
    """The part of the queue that gives out work."""

    async def claim(self, node: str, *, lease: int, projects: Collection[int], own: bool = False) -> list[Execution]:
        """See `ports.Queue.claim`."""
        ...


class ProjectWorker:
    """Made when its project has work, gone when it has been idle for `linger` seconds.

    Serialization is not its doing: the database gives out a slot once, whoever asks. `came` is told whether what was
    seen to be there was still there to be claimed.
    """

    def __init__(
        self,
        project: Project,
        queue: ClaimQueue,
        attempts: Attempts,
        turns: Turns,
        *,
        node: str,
        lease: int,
        own: bool,
        admitting: Callable[[], bool],
        came: Callable[[bool], None] = lambda _in_time: None,
        linger: float = 30.0,
        retry_claim: float = 1.0,
    ) -> None:
        self.project = project
        self._queue = queue
        self._attempts = attempts
        self._turns = turns
        self._node = node
        self._lease = lease
        self._own = own
        self._admitting = admitting
        self._came = came
        self._seen = False
        self._linger = linger
        self._retry_claim = retry_claim
        self._wake = asyncio.Event()
        self._refused = False
        self._lanes: set[asyncio.Task[None]] = set()

    @property
    def busy(self) -> bool:
        """Whether an attempt of the project runs here."""
        return bool(self._lanes)

    @property
    def woken(self) -> bool:
        """Whether somebody called `wake` since it last looked."""
        return self._wake.is_set()

    def wake(self, *, seen: bool = False) -> None:
        """There may be work: look. `seen`: there was some a moment ago."""
        self._seen |= seen and len(self._lanes) < self.project.max_running
        self._wake.set()

    async def run(self) -> None:
        """Serve until idle for long, or told to stop; running attempts are waited for."""
        try:
            while True:
                # Cleared before looking: what comes while we look wakes us again.
                self._wake.clear()
                while self._admitting() and len(self._lanes) < self.project.max_running:
                    execution = await self._next()
                    if execution is None:
                        break
                    lane = asyncio.create_task(self._serve(execution), name=f"execution {execution.id}")
                    self._lanes.add(lane)
                    # What it had to give while it filled up is done in these turns; later there may be nothing left.
                    self._seen &= len(self._lanes) < self.project.max_running
                    lane.add_done_callback(self._lane_ended)
                if not (self._admitting() or self.busy) or not await self._woken():
                    return
        finally:
            await _settled(self._lanes)

    async def _woken(self) -> bool:
        """Wait for work; False after a long silence with nothing running."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._retry_claim if self._refused else self._linger):
                await self._wake.wait()
        return self.woken or self.busy or self._refused

    async def _next(self) -> Execution | None:
        """A claim together with the turn to run it, or neither."""
        execution, self._refused = await self._turns.take(self.project.id), False
        seen, self._seen = self._seen, False
        if execution is not None:
            return execution
        try:
            if self._admitting():
                found = await self._queue.claim(
                    self._node, lease=self._lease, projects=(self.project.id,), own=self._own
                )
                execution = found[0] if found else None
                if seen:
                    self._came(execution is not None)
        except (StoreError, Busy) as error:
            log.error("claim.failed", project=self.project.name, error=str(error))
            self._refused = True
        finally:
            if execution is None:
                self._turns.give_back()
        return execution

    async def _serve(self, first: Execution) -> None:
        """Run the claimed execution, and the project's next ones while none that waits for the turn has any."""
        execution: Execution | None = first
        holding = True
        try:
            while execution is not None:
                # What was claimed while the node was told to stop goes back as it came.
                execution = await self._attempts.carry_out(execution, self._following, begin=self._admitting())
                if execution is not None and self._turns.hand(execution):
                    execution, holding = None, False
        finally:
            if holding:
                self._turns.give_back()

    def _following(self) -> tuple[int | None, tuple[int, ...]]:
        return (self._lease, self._turns.waiting) if self._admitting() else (None, ())

    def _lane_ended(self, lane: asyncio.Task[None]) -> None:
        self._lanes.discard(lane)
        self._wake.set()
        if not lane.cancelled() and (error := lane.exception()) is not None:
            log.error("worker.lane_crashed", project=self.project.name, error=repr(error))


async def _settled(tasks: set[asyncio.Task[None]]) -> None:
    """Wait until the set is empty. A cancellation is handed on to the tasks, and raised when they have ended."""
    cancelled = False
    while tasks:
        try:
            await asyncio.wait(tasks)
        except asyncio.CancelledError:
            cancelled = True
            for task in tasks:
                task.cancel()
    if cancelled:
        raise asyncio.CancelledError
