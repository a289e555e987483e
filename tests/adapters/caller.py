"""Another process that calls back: `python -m tests.adapters.caller PATH`, until it is killed."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from pilot.clients.addresses import CheckedTransport
from pilot.clients.hooks import TIMEOUT, Hooks
from pilot.dispatch.deliveries import Deliveries
from pilot.domain.delivery import EffectKind
from pilot.domain.ports import Clock
from pilot.publish.callbacks import Callbacks
from pilot.store import Store, open_store, wall_clock
from tests.adapters.hook_server import SECRET
from tests.store.bed import HOUR, node


def hide(text: str) -> str:
    """A redactor for tests."""
    return text.replace("hunter2", "[redacted]")


@asynccontextmanager
async def calling(
    store: Store, name: str, *, private: bool = True, clock: Clock = wall_clock, timeout: float = TIMEOUT
) -> AsyncIterator[Callable[[], Deliveries]]:
    """A node that can call back; each call makes an outbox loop of it."""
    await store.queue.start_node(node(name), HOUR)
    checked = CheckedTransport(private=private)
    async with Hooks(SECRET, clock=clock, timeout=timeout, transport=checked) as hooks:
        callbacks = Callbacks(store.outbox, store.history, hooks, clock=clock, redact=hide)

        def deliveries() -> Deliveries:
            return Deliveries(
                store.outbox, name, {EffectKind.CALLBACK: callbacks}, lambda: [1], clock,
                poll=0.02, jitter=lambda: 0.0,
            )  # fmt: skip

        yield deliveries


async def _main(path: str) -> None:
    async with open_store(f"sqlite:///{path}") as store, calling(store, "killed") as deliveries:
        await deliveries().run()


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1]))
