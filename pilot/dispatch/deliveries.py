"""The outbox's one loop per node: takes what is owed to the outside, has it done, and notes what came of it."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import structlog

from pilot.domain.delivery import Effect, EffectKind
from pilot.domain.errors import PilotError
from pilot.domain.outside import GiveUp, Later, Outbox
from pilot.domain.ports import Clock
from pilot.domain.text import one_line

log = structlog.get_logger()
FIRST, LONGEST = 10_000, 300_000
"""ms: the first pause after a failure, doubled each time, and the longest."""

SELF_FENCE = 0.6
"""Part of the lease after which work is broken off if it could not be renewed."""

Handler = Callable[[Effect], Awaitable[Mapping[str, Any] | None]]
"""Does one effect, however often it is asked to: it looks before it writes. What it returns is kept.

Raises `Later` and `GiveUp`; after any other error it is tried again.
"""


def pause(tries: int, jitter: float) -> int:
    """ms before the next try after `tries` failures before this one; `jitter` in [0, 1) spreads the upper half."""
    full = min(FIRST << min(tries, 10), LONGEST)
    return int(full * (0.5 + jitter / 2))


@dataclass(frozen=True, slots=True)
class Owed:
    """That something could not be delivered, and why."""

    reason: str


@dataclass(slots=True)
class _Work:
    """One effect under way; `held` is when (loop time) its lease was last known to begin."""

    effect: Effect
    task: asyncio.Task[None]
    held: float


@dataclass(slots=True)
class Deliveries:
    """Lanes go on side by side, `at_once` of them; within one everything is in order, which the outbox sees to.

    `handlers`: by kind; other kinds are left to other nodes. `projects` (ids) is asked each time, so that a reload
    counts. `lease` (ms) is renewed as long as a handler is at work; one that has lost it, or can't renew it before it
    ends, is broken off: another node may be at it then. `timeout` (s) is for one effect, `drain_timeout` (s) for those
    under way at the end. Whoever hears the store's signals calls `nudge`; that is a hint, and every wait has a timer of
    `poll` seconds.
    """

    outbox: Outbox
    node: str
    handlers: Mapping[EffectKind, Handler]
    projects: Callable[[], Collection[int]]
    clock: Clock
    at_once: int = 4
    lease: int = 60_000
    timeout: float = 900.0
    drain_timeout: float = 20.0
    poll: float = 1.0
    jitter: Callable[[], float] = random.random
    _hint: asyncio.Event = field(default_factory=asyncio.Event)
    _stopping: bool = False
    _under_way: dict[int, _Work] = field(default_factory=dict)
    _postponed: dict[int | None, str] = field(default_factory=dict)  # by execution

    async def run(self) -> None:
        """Until `stop`; then what is under way may end within `drain_timeout`. Cancelled, it is broken off."""
        async with self._working():
            while not self._stopping:
                self._hint.clear()
                with self._watched():
                    await self._start(max=self.at_once - len(self._under_way))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(await self._until_due()):
                        await self._hint.wait()
            await self._ended(self.drain_timeout)

    async def drain(self, execution: int, seconds: float) -> Owed | None:
        """Deliver what one execution owes, for at most that long; None: it owes nothing of these kinds any more.

        Something that has to wait ends it, since nothing may go before it. What stands before it in its lane, of an
        earlier execution, is delivered, too.
        """
        self._postponed.clear()
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        async with self._working():
            while execution not in self._postponed and loop.time() < end:
                started = await self._start(max=self.at_once, execution=execution)
                if not started and not self._under_way:
                    waits = await self.outbox.owing(execution, tuple(self.handlers))
                    if waits is None:
                        return None
                    if not await self._start(max=self.at_once):
                        if waits or self._postponed:
                            return Owed(waits or "something that is owed before it waits")
                        await asyncio.sleep(self.poll)  # another node is at it
                await self._ended(end - loop.time(), first=True)
            await self._ended(max(end - loop.time(), 0.0))
        return Owed(self._postponed.get(execution, "it takes longer"))

    def nudge(self) -> None:
        """There may be something to do."""
        self._hint.set()

    def stop(self) -> None:
        """Begin nothing new."""
        self._stopping = True
        self._hint.set()

    @contextlib.asynccontextmanager
    async def _working(self) -> AsyncIterator[None]:
        """Whoever leaves this leaves nothing under way behind."""
        keeping = asyncio.create_task(self._keep())
        try:
            yield
        finally:
            keeping.cancel()
            tasks = [work.task for work in self._under_way.values()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(keeping, *tasks, return_exceptions=True)

    async def _start(self, *, max: int, execution: int | None = None) -> int:
        if max <= 0:
            return 0
        asked = asyncio.get_running_loop().time()
        effects = await self.outbox.take(
            self.node,
            tuple(self.handlers),
            lease=self.lease,
            max=max,
            projects=self.projects(),
            execution=execution,
        )
        for effect in effects:
            task = asyncio.create_task(self._deliver(effect))
            self._under_way[effect.id] = _Work(effect, task, asked)
            task.add_done_callback(lambda _, id=effect.id: self._done(id))  # type: ignore[misc]
        return len(effects)

    def _done(self, id: int) -> None:
        self._under_way.pop(id, None)
        self._hint.set()  # the next one of its lane

    async def _ended(self, seconds: float, *, first: bool = False) -> None:
        """Wait for what is under way, or for the first of it."""
        tasks = [work.task for work in self._under_way.values()]
        if tasks:
            when = asyncio.FIRST_COMPLETED if first else asyncio.ALL_COMPLETED
            await asyncio.wait(tasks, timeout=max(seconds, 0.0), return_when=when)
            await asyncio.sleep(0)  # their callbacks

    async def _until_due(self) -> float:
        """Seconds until something may be due, `poll` at most: others' signals may be lost."""
        if len(self._under_way) >= self.at_once:
            return self.poll
        due = None
        with self._watched():
            due = await self.outbox.next_due(tuple(self.handlers), self.node)
        wait = self.poll if due is None else (due - self.clock()) / 1000
        return min(wait, self.poll) if wait > 0 else self.poll  # due, and not for this node: it was just asked

    async def _keep(self) -> None:
        """Renew the leases of what is under way, and end what has lost its own."""
        loop, seconds = asyncio.get_running_loop(), self.lease / 1000
        while True:
            await asyncio.sleep(seconds / 3)
            working = {id: work for id, work in self._under_way.items() if not work.task.done()}
            if not working:
                continue
            asked, held = loop.time(), None
            with self._watched(), contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds / 3):
                    held = await self.outbox.renew([work.effect for work in working.values()], self.node, self.lease)
            for id, work in working.items():
                if held is not None and id in held:
                    work.held = asked
                elif held is not None or loop.time() - work.held > seconds * SELF_FENCE:
                    log.warning("delivery.lease_lost", effect=work.effect.key, node=self.node)
                    work.task.cancel()

    async def _deliver(self, effect: Effect) -> None:
        try:
            with self._watched():
                await self._handled(effect)
        except asyncio.CancelledError:
            # whoever comes next need not wait for the lease's end; without the lease it writes nothing
            with self._watched():
                await self.outbox.postpone(effect, self.node, self.clock(), "it was broken off")
            raise

    async def _handled(self, effect: Effect) -> None:
        facts = {"kind": str(effect.kind), "execution": effect.execution, "tries": effect.tries + 1}
        try:
            async with asyncio.timeout(self.timeout):
                result = await self.handlers[effect.kind](effect)
        except Later as error:
            later = self._later(effect)
            await self._postpone(effect, later if error.at is None else max(error.at, self.clock() + 1000), str(error))
            log.info("delivery.postponed", reason=one_line(str(error)), **facts)
        except GiveUp as error:
            await self.outbox.give_up(effect, self.node, str(error))
            log.error("delivery.failed", reason=one_line(str(error)), **facts)
        except TimeoutError:
            await self._postpone(effect, self._later(effect), f"it did not end within {self.timeout:g} s")
            log.error("delivery.timed_out", **facts)
        except PilotError as error:
            await self._postpone(effect, self._later(effect), str(error))
            log.error("delivery.delayed", reason=one_line(str(error)), **facts)
        except Exception as error:  # the border: one service's oddity is not the others' end
            await self._postpone(effect, self._later(effect), f"{type(error).__name__}: {error}")
            log.exception("delivery.broke", **facts)
        else:
            await self.outbox.delivered(effect, self.node, result)
            log.info("delivery.done", **facts)

    def _later(self, effect: Effect) -> int:
        return self.clock() + pause(effect.tries, self.jitter())

    async def _postpone(self, effect: Effect, until: int, reason: str) -> None:
        self._postponed[effect.execution] = reason
        await self.outbox.postpone(effect, self.node, until, reason)

    @contextlib.contextmanager
    def _watched(self) -> Any:
        """A store that can't just now has changed nothing: the lease ends, and somebody does it again."""
        try:
            yield
        except PilotError as error:
            log.error("outbox.failed", error=str(error))
