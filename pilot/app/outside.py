"""The outside world of one node: sources that ask, webhooks that arrive, deliveries that go out; started and ended."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from pilot.app.context import Context
from pilot.app.parts import Parts, desk_of, login_of, publisher_of
from pilot.clients.webhooks import Delivery
from pilot.config.schema import Settings
from pilot.dispatch.deliveries import Deliveries, Handler
from pilot.domain.delivery import EffectKind
from pilot.domain.errors import PilotError, UsageError
from pilot.domain.outside import Inbox
from pilot.sources.feed import Feed

if TYPE_CHECKING:
    from pilot.api.webhooks import Receiver

RETIREMENT = 30.0
"""Seconds that what a reload has replaced stays open, for what is still under way with it."""


class Outside:
    """All of it, for `pilot serve`: `prepare`, `adopt`, `run`; then `stop_asking`, `stop`, and behind `run` `close`."""

    def __init__(self, context: Context, node: str) -> None:
        self._context = context
        self._desk = desk_of(context, node)
        self.feed = Feed((), self._desk)
        self._handlers: dict[EffectKind, Handler] = {}
        self.deliveries = Deliveries(
            outbox=self._desk.outbox,
            node=node,
            handlers=self._handlers,
            projects=lambda: tuple(context.projects),
            clock=self._desk.clock,
        )
        self._parts = Parts()
        self._feeding: asyncio.Task[None] | None = None
        self._delivering: asyncio.Task[None] | None = None
        self._retiring: set[asyncio.Task[None]] = set()

    @property
    def notifies(self) -> bool:
        """Whether this node tells people what needs them."""
        return self._parts.notifies

    @property
    def inbox(self) -> Inbox:
        """Where webhooks are stored."""
        return self._desk.inbox

    def receivers(self) -> Mapping[str, Receiver]:
        """What takes webhooks, by source."""
        from pilot.api.webhooks import Receiver

        return {
            source.name: Receiver(verify=source.verify, wants=getattr(source, "wants", _everything))
            for source in self._parts.sources
        }

    async def prepare(self, settings: Settings) -> Parts:
        """What these settings ask for, for `adopt`, or to be closed. Raises `UsageError`."""
        wanted = (settings.sources, settings.notify, settings.server.callbacks)
        if self._parts.made_from == wanted:
            return self._parts  # projects are asked for each time
        new = Parts(wanted)
        try:
            new.add(settings, self._context, self._desk, self.feed.hurry)
        except (PilotError, OSError) as error:
            await new.close()
            raise error if isinstance(error, PilotError) else UsageError(str(error)) from error
        return new

    def adopt(self, new: Parts) -> None:
        """Work with these from now on; what is under way with others goes on for a while."""
        if new is self._parts:
            return
        old, self._parts = self._parts, new
        self._handlers.clear()
        self._handlers.update(new.handlers)
        self.feed.reconfigure(new.sources, new.pollers)
        task = asyncio.create_task(self._retire(old))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    async def discard(self, parts: Parts) -> None:
        """They are not adopted after all."""
        if parts is not self._parts:
            await parts.close()

    async def _retire(self, parts: Parts) -> None:
        try:
            if parts.sources or parts.handlers:
                await asyncio.sleep(RETIREMENT)
        finally:
            await parts.close()

    async def run(self) -> None:
        """Ask the sources until `stop_asking`, deliver until `stop`. What ends it otherwise is a bug, and raised."""
        leave = self._desk.queue.listen(self._heard)
        try:
            async with asyncio.TaskGroup() as group:
                self._feeding = group.create_task(self.feed.run())
                self._delivering = group.create_task(self.deliveries.run())
        finally:
            leave()

    def _heard(self, tokens: Collection[str]) -> None:
        if "outbox" in tokens or "*" in tokens:
            self.deliveries.nudge()
        if "inbox" in tokens:
            for source in self._parts.sources:
                self.feed.nudge(source.name)

    def stop_asking(self) -> None:
        """Take in nothing new; what is being dealt with comes to its end."""
        if self._feeding is not None:
            self._feeding.cancel()

    def stop(self) -> None:
        """Deliver what is under way, and begin nothing more."""
        self.stop_asking()
        self.deliveries.stop()

    def force(self) -> None:
        """Break off what is under way; it is done again later."""
        if self._delivering is not None:
            self._delivering.cancel()

    async def close(self) -> None:
        """Let go of all connections, after `run` has returned."""
        for task in self._retiring:
            task.cancel()
        await asyncio.gather(*self._retiring, return_exceptions=True)
        await self._parts.close()


def _everything(_delivery: Delivery) -> bool:
    return True


@asynccontextmanager
async def make_deliveries(context: Context, node: str) -> AsyncIterator[Deliveries | None]:
    """What delivers a direct run's own work; None when nothing that it makes goes anywhere."""
    own = context.settings.sources.github
    if own is None:
        yield None
        return
    from pilot.clients.github import GitHub

    desk = desk_of(context, node)
    async with contextlib.AsyncExitStack() as stack:
        github = GitHub(login_of(own), base_url=own.base_url, clock=desk.clock)
        stack.push_async_callback(github.aclose)
        yield Deliveries(
            outbox=desk.outbox,
            node=node,
            handlers={EffectKind.PUBLISH: publisher_of(context, desk, github, own)},
            projects=lambda: tuple(context.projects),
            clock=desk.clock,
        )
