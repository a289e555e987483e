"""`pilot sync`: what is owed for pull requests delivered now, and what became of them read now, beside any `serve`."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from pilot.app.context import Context, open_context
from pilot.app.parts import Parts, desk_of
from pilot.config.load import Loaded
from pilot.dispatch.deliveries import Deliveries
from pilot.domain.delivery import EffectKind, Pull, PullState
from pilot.domain.errors import UsageError
from pilot.domain.outside import Pulls, SourcePaused
from pilot.domain.ports import NodeKind
from pilot.publish.watch import PullWatch

DELIVERY = 60.0
"""Seconds for what one execution owes; another node may be at it."""
LEASE = 900_000
"""Milliseconds that the node is known for; it leaves when it is through."""
_KINDS = (EffectKind.PUBLISH, EffectKind.REPORT)
"""What people see. Workspaces are cleaned up by `serve`, once nobody is at work in them."""


@dataclass(frozen=True, slots=True)
class Synced:
    """A pull request before and after, by the execution that was asked for. `pull` None: that one has none.

    `trouble`: why it can't be read. `owed`: what could not be delivered, and why.
    """

    execution: int
    before: Pull | None
    pull: Pull | None
    trouble: str = ""
    owed: str = ""

    @property
    def changes(self) -> dict[str, tuple[str | None, str | None]]:
        """What is different now, as (before, after)."""
        old, new = self.before, self.pull
        if old is None or new is None:
            return {}
        pairs: dict[str, tuple[str | None, str | None]] = {
            "state": (old.state, new.state),
            "checks": (old.checks, new.checks),
            "red": (", ".join(old.red), ", ".join(new.red)),
            "repairs": (str(old.repairs), str(new.repairs)),
            "url": (old.url, new.url),
        }
        return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


@dataclass(frozen=True, slots=True)
class Sync:
    """All of it. `paused`: why the rest was not looked at; `needs_person`: waiting does not help."""

    found: tuple[Synced, ...]
    paused: str = ""
    needs_person: bool = False


async def sync(loaded: Loaded, ids: Sequence[int] = (), show: Callable[[str], None] = lambda _words: None) -> Sync:
    """Of these executions, or of all that are open. Raises `NotFound`, and `UsageError` where there is no GitHub."""
    async with open_context(loaded) as context:
        if context.settings.sources.github is None:
            raise UsageError("sources.github is not configured, so that there is nothing to read")
        pulls = context.store.pulls
        if ids:
            wanted = {id: await pulls.of((await context.store.queue.get(id)).id) for id in ids}
        else:
            wanted = {pull.execution: pull for pull in await pulls.live(tuple(context.projects))}
        async with _tools(context) as (deliveries, watch):
            return await _synced(wanted, pulls, deliveries, watch, show)


async def _synced(
    wanted: dict[int, Pull | None], pulls: Pulls, deliveries: Deliveries, watch: PullWatch, show: Callable[[str], None]
) -> Sync:
    found: list[Synced] = []
    paused: SourcePaused | None = None
    for id, before in wanted.items():
        show(f"{before.repo}#{before.number or before.branch}" if before else f"execution {id}")
        await deliveries.drain(id, DELIVERY)
        trouble, now = "", await pulls.of(id)
        if now is not None and now.state is PullState.OPEN and paused is None:
            try:
                looked = await watch.look([now])
                trouble = looked[0].trouble if looked else "its project is not in this configuration"
            except SourcePaused as error:
                paused, trouble = error, str(error)
        owed = await deliveries.drain(id, DELIVERY)
        found.append(Synced(id, before, await pulls.of(id), trouble, owed.reason if owed else ""))
    if paused is None:
        return Sync(tuple(found))
    words = f"{paused}; {paused.remedy}" if paused.remedy else str(paused)
    return Sync(tuple(found), words, bool(paused.remedy))


@asynccontextmanager
async def _tools(context: Context) -> AsyncIterator[tuple[Deliveries, PullWatch]]:
    """What delivers and what reads, as a node of this host: it has the branches."""
    node = context.node(NodeKind.RUN, 0)
    desk = desk_of(context, node.id)
    parts = Parts()
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(parts.close)
        parts.add(context.settings, context, desk, lambda _name: None)
        await context.store.queue.start_node(node, LEASE)
        stack.push_async_callback(context.store.queue.leave, node.id)
        deliveries = Deliveries(
            outbox=desk.outbox,
            node=node.id,
            handlers={kind: parts.handlers[kind] for kind in _KINDS if kind in parts.handlers},
            projects=lambda: tuple(context.projects),
            clock=desk.clock,
        )
        watch = next(poller for poller in parts.pollers if isinstance(poller, PullWatch))
        yield deliveries, watch
