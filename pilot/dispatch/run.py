"""One attempt in the hands of this node: started, stoppable, settled, and written down."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Protocol

import structlog

from pilot.domain.errors import Busy, LeaseLost, StoreError, WorkspaceError
from pilot.domain.execution import Execution
from pilot.domain.outcome import Ending, FailureClass, Outcome, failed
from pilot.domain.policy import RULES, Rule, Settlement, settle
from pilot.domain.ports import Clock, Finish, Runner

log = structlog.get_logger()
Following = Callable[[], tuple[int | None, tuple[int, ...]]]
"""What is to be claimed with an end: under which lease (ms; None: nothing), and for which projects first."""
PATIENCE = 8
"""Tries (about 20 s) after which a result that the store does not take may be what is wrong, not the disk."""


class Stop(StrEnum):
    """Why a run is ended from outside."""

    CANCEL = "cancel"
    SHUTDOWN = "shutdown"
    LOST = "lost"  #: the lease went to somebody else, or can't be renewed: nothing may be written any more


class FinishQueue(Protocol):
    """The part of the queue that ends a claim."""

    async def finish(self, finish: Finish) -> Execution | None:
        """See `ports.Queue.finish`."""
        ...


@dataclass(slots=True)
class Run:
    """An attempt under way. `stop` may be called any number of times; a second call hurries the first."""

    execution: Execution
    task: asyncio.Future[Outcome]
    begun: bool = True
    stopped: Stop | None = None
    reason: str = ""

    def stop(self, why: Stop, reason: str = "") -> None:
        """End the agent; a lost lease outweighs every other reason."""
        if self.stopped is None or why is Stop.LOST:
            self.stopped, self.reason = why, reason
        self.task.cancel()


@dataclass(slots=True)
class Attempts:
    """Runs claimed executions to their end and writes what became of them."""

    queue: FinishQueue
    runner: Runner
    clock: Clock
    jitter: Callable[[], float]
    rules: Mapping[FailureClass, Rule] = field(default_factory=lambda: RULES)
    runs: dict[int, Run] = field(default_factory=dict)

    async def carry_out(self, execution: Execution, following: Following, *, begin: bool = True) -> Execution | None:
        """One attempt, from claimed to settled; the next claim if `following()` asks for it then.

        `begin` off: give the claim back as it came, for a node that was told to stop, or lost its leases, meanwhile.
        """
        facts = log.bind(execution=execution.id, project=execution.project, task=execution.task_id)
        facts.info("attempt.started", attempt=execution.attempt, fence=execution.fence, backend=execution.backend)
        task = asyncio.create_task(self._run(execution))
        run = self.runs[execution.id] = Run(execution, task, begin)
        if not begin:
            run.stop(Stop.SHUTDOWN, "given back as it came")
        try:
            outcome = await self._outcome(run)
            if outcome is None:
                facts.warning("attempt.lost", reason=run.reason)
                return None
            settlement = settle(execution, outcome, now=self.clock(), jitter=self.jitter(), rules=self.rules)
            facts.info("attempt.finished", outcome=outcome.ending, status=settlement.to, reason=settlement.reason)
            return await self._write(run, outcome, settlement, following)
        except LeaseLost as lost:
            facts.warning("attempt.lost", reason=str(lost))
            return None
        finally:
            if self.runs.get(execution.id) is run:
                del self.runs[execution.id]

    async def _run(self, execution: Execution) -> Outcome:
        # A task of its own even for a runner that raises before its first await.
        return await self.runner(execution)

    async def _outcome(self, run: Run) -> Outcome | None:
        """The runner's value; None when nothing may be written."""
        try:
            # Shielded: if this coroutine itself is cancelled, the agent is ended through `stop`, in order.
            while not run.task.done():
                try:
                    await asyncio.wait([run.task])
                except asyncio.CancelledError:
                    if run.stopped is None:
                        run.stop(Stop.SHUTDOWN)
            outcome = run.task.result()
        except asyncio.CancelledError:
            outcome = Outcome(ending=Ending.INTERRUPTED, detail=run.reason or "shutdown", unspent=not run.begun)
            if run.stopped is None:  # nobody asked for it: a bug, which must count, or it would run for ever
                outcome = failed(FailureClass.UNKNOWN, "the attempt cancelled itself")
        except LeaseLost:
            return None
        except WorkspaceError as error:
            outcome = failed(error.failure, str(error), excerpt=error.excerpt)
        except (StoreError, Busy, OSError) as error:
            log.exception("attempt.crashed", execution=run.execution.id)
            outcome = failed(FailureClass.INFRA, f"{type(error).__name__}: {error}")
        except Exception as error:  # the border: a bug in a backend must not take the worker along
            log.exception("attempt.crashed", execution=run.execution.id)
            outcome = failed(FailureClass.UNKNOWN, f"{type(error).__name__}: {error}")
        return self._judged(run, outcome)

    def _judged(self, run: Run, outcome: Outcome) -> Outcome | None:
        """What the outcome means, given why the run was stopped."""
        done = outcome.ending in (Ending.DONE, Ending.NO_CHANGE)
        if run.stopped is Stop.LOST:
            return None
        if run.stopped is Stop.CANCEL and not done:
            # What it found out and used up until then stays.
            return replace(
                outcome, ending=Ending.CANCELLED, failure=None, question=None, detail=run.reason or "cancelled"
            )
        failure = outcome.failure
        if run.stopped is Stop.SHUTDOWN and failure is not None and self.rules.get(failure, RULES[failure]).counts:
            # An agent that is being ended may say that it failed; a shutdown costs nothing.
            return replace(outcome, ending=Ending.INTERRUPTED, failure=None, detail="shutdown")
        return outcome

    async def _write(
        self, run: Run, outcome: Outcome, settlement: Settlement, following: Following
    ) -> Execution | None:
        """Write the end, however long the disk is full or locked: the lease is what limits it."""
        execution = run.execution
        pause, tries = 0.2, 0
        while True:
            try:
                lease, first = following()
                end = Finish(
                    execution=execution, outcome=outcome, settlement=settlement, next_lease=lease, first=first
                )  # fmt: skip
                return await self.queue.finish(end)
            except LeaseLost:
                raise
            except Exception as error:  # the border: whatever it is, the slot must become free again
                log.error("finish.delayed", execution=execution.id, error=repr(error))
                if run.stopped is Stop.LOST:
                    raise LeaseLost(f"execution {execution.id}: {error}") from error
                tries += 1
                if not isinstance(error, StoreError | Busy) or tries >= PATIENCE:
                    with contextlib.suppress(StoreError, Busy):
                        return await self.queue.finish(self._refused(execution, error))
            await asyncio.sleep(pause)
            pause = min(pause * 2, 5.0)

    def _refused(self, execution: Execution, error: Exception) -> Finish:
        """The end of an attempt whose own result can't be stored."""
        detail = f"its result could not be stored: {type(error).__name__}: {error}"
        outcome = failed(FailureClass.INFRA, detail)
        settlement = settle(execution, outcome, now=self.clock(), jitter=self.jitter(), rules=self.rules)
        return Finish(execution=execution, outcome=outcome, settlement=settlement)
