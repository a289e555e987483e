"""`pilot worker`, agent mode: claims, shows each task to who is in front of it, and keeps the lease meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable
from dataclasses import dataclass

from pilot.app.worker import News, Server, Tell, WorkerRequest
from pilot.domain.errors import Busy, LeaseLost, NotFound, StoreError
from pilot.domain.execution import Execution, Status
from pilot.domain.work import Claim

LOOK = 1.0
"""Seconds between looks whether it has been completed, failed or released."""
WAIT = 20.0
_LONGEST = 10.0


@dataclass(slots=True)
class Pane:
    """One task at a time. `show` puts it before who is to do it; `ended` forgets it."""

    server: Server
    request: WorkerRequest
    show: Callable[[Claim], None]
    tell: Tell

    async def run(self) -> Execution | None:
        """Until SIGINT or SIGTERM, which gives back what is held; with `once` until the first has ended."""
        loop, me = asyncio.get_running_loop(), asyncio.current_task()
        assert me is not None  # noqa: S101  this is a coroutine
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, me.cancel)
        self._say("started", f"{self.request.holder} waits for work from {self.server.place}")
        try:
            while True:
                claim = await self._claimed()
                last = await self._watched(claim)
                if self.request.once:
                    return last
        except asyncio.CancelledError:
            self._say("stopped", f"{self.request.holder} has ended")
            return None
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)

    async def _claimed(self) -> Claim:
        pause, away = 0.5, ""
        request = self.request
        while True:
            try:
                found = await self.server.claim(
                    request.holder, wanted=request.wanted, lease=request.lease, wait=min(WAIT, request.lease / 3000)
                )
            except (Busy, StoreError) as error:
                if str(error) != away:
                    self._say("away", f"waits for the server: {error}")
                away = str(error)
                await asyncio.sleep(pause)
                pause = min(pause * 2, _LONGEST)
                continue
            pause, away = 0.5, ""
            if found:
                return found[0]

    async def _watched(self, claim: Claim) -> Execution:
        """Keep it until it has ended, or is somebody else's; how it stands then."""
        id = claim.execution.id
        try:
            self.show(claim)
            self._say("claimed", f"{id} {claim.execution.task_id}", id)
            now = await self._kept(claim)
        except asyncio.CancelledError:
            await asyncio.shield(self._given_back(claim))
            raise
        if now.status is Status.RUNNING or now.fence != claim.fence:
            self._say("lost", f"{id} is no longer yours: stop, nothing that you say of it counts", id)
        else:
            why = f": {now.reason}" if now.reason else ""
            self._say("ended", f"{id} is {now.status}{why}", id)
        return now

    async def _kept(self, claim: Claim) -> Execution:
        loop, id, warned = asyncio.get_running_loop(), claim.execution.id, False
        beat = 0.0
        while True:
            try:
                if loop.time() >= beat:
                    beaten = await self.server.heartbeat(id, self.request.holder, claim.fence, lease=self.request.lease)
                    beat = loop.time() + self.request.lease / 2000
                    if beaten.cancel_requested and not warned:
                        warned = True
                        self._say("cancel", f"somebody wants {id} ended: stop, then `pilot queue release {id}`", id)
                now = await self.server.get(id)
            except LeaseLost:
                return await self._as_it_stands(id)
            except (Busy, StoreError) as error:
                self._say("away", f"the server is away, the lease of {id} may end: {error}", id)
            else:
                if now.status is not Status.RUNNING or now.fence != claim.fence:
                    return now
            await asyncio.sleep(min(LOOK, self.request.lease / 4000))

    async def _as_it_stands(self, id: int) -> Execution:
        while True:
            with contextlib.suppress(Busy, StoreError):
                return await self.server.get(id)
            await asyncio.sleep(LOOK)

    async def _given_back(self, claim: Claim) -> None:
        id = claim.execution.id
        with contextlib.suppress(LeaseLost, NotFound, Busy, StoreError):
            await self.server.release(id, self.request.holder, claim.fence, "the pane was closed")
            self._say("released", f"{id} is given back", id)

    def _say(self, what: str, text: str, execution: int | None = None) -> None:
        self.tell(News(what, text, {} if execution is None else {"execution": execution}))
