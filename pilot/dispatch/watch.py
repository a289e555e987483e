"""Watch: turns signals, and the timers behind them, into woken workers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Collection
from typing import Protocol

import structlog

from pilot.dispatch.courtesy import Courtesy, projects
from pilot.dispatch.turns import Turns
from pilot.domain.errors import PilotError
from pilot.domain.ports import Clock

log = structlog.get_logger()
REST = 0.005
"""Seconds before the next look at the queue, when one has found nothing."""
FULL = 0.05
"""Seconds between two looks of a node that has more than it can run already."""
LATER = 0.02
"""Seconds that a look waits for claims of new work, which are on their way without it."""
SWEEP = 30.0
"""Seconds after which every project with work is looked at, whatever signals came or were lost."""


class Wake(Protocol):
    """What wakes a project's worker."""

    def __call__(self, project_id: int, *, seen: bool) -> None:
        """Have it look for work; `seen`: there was some a moment ago."""
        ...


class Watch:
    """Of one node. `look`: the projects that have something for it, and when time alone makes the next; see
    `DispatchQueue.look`. `changed`: whether anybody wrote since the last call. `cancels`: heed what is to end here.
    """

    def __init__(
        self,
        look: Callable[[], Awaitable[tuple[list[int], int | None]]],
        changed: Callable[[], Awaitable[bool]],
        cancels: Callable[[], Awaitable[None]],
        wake: Wake,
        *,
        turns: Turns,
        courtesy: Courtesy,
        clock: Clock,
        poll_interval: float,
    ) -> None:
        self._look = look
        self._changed = changed
        self._cancels = cancels
        self._wake = wake
        self._turns = turns
        self._courtesy = courtesy
        self._clock = clock
        self._poll_interval = poll_interval
        self._signal = asyncio.Event()
        self._tokens: set[str] = set()
        self._due: int | None = None
        self._swept = -SWEEP
        self._hasty: set[int] = set()
        self._later = False
        self._running = False

    def tell(self, tokens: Collection[str]) -> None:
        """What `Notify` says, by whomever. A node with room claims new work at once; the look can wait for that."""
        fresh = self._courtesy.unseen(tokens) if self._running and not self._turns.contended else set[int]()
        self._tokens.update(token for token in tokens if not (fresh and token.startswith("+")))
        if not fresh:
            self._signal.set()
            return
        for id in fresh:
            self._wake(id, seen=True)
        self._hasty |= fresh
        if not self._later:
            self._later = True
            asyncio.get_running_loop().call_later(LATER, self._signal.set)

    async def run(self) -> None:
        """Until cancelled."""
        self._running = True
        try:
            await self._watch()
        finally:
            self._running = False

    async def _watch(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._pause()):
                    await self._signal.wait()
            await self._courtesy.wait()
            await asyncio.sleep(FULL if self._turns.contended else 0)
            self._signal.clear()
            tokens, self._tokens = self._tokens, set()
            if not await self._news(tokens):
                await asyncio.sleep(REST)  # whoever writes a lot that is none of this node's is not looked at each time

    def _pause(self) -> float:
        if self._due is None:
            return self._poll_interval
        return min(self._poll_interval, max(0.0, (self._due - self._clock()) / 1000) + 0.001)

    async def _news(self, tokens: set[str]) -> bool:
        """Look, if there is a reason, and wake who has something; whether anybody had."""
        loop = asyncio.get_running_loop()
        hasty, self._hasty, self._later, ready = self._hasty, set(), False, list[int]()
        # What waits for its turn here is no news. Looked at is what has something, or, if nobody can tell, told.
        named = projects(tokens)
        told = sorted(named.difference(self._turns.waiting))
        due = self._due is not None and self._due <= self._clock()
        try:
            full = "*" in tokens or loop.time() - self._swept > SWEEP or due
            news = full or bool(told) or (not named and await self._changed())
            if news:
                ready, self._due = await self._look()
                told = []
                self._swept = loop.time() if full else self._swept
            if news or tokens:
                await self._cancels()
        except PilotError as error:
            log.error("watch.failed", error=str(error))
            self._swept = loop.time() - 2 * SWEEP  # what this look did not find is still there
            await asyncio.sleep(self._poll_interval)
        for id in dict.fromkeys([*ready, *told]):  # as they have waited, they get their turns
            # Also what was claimed from in haste: this may have come since.
            self._wake(id, seen=id not in told and id not in hasty)
        return bool(ready)
