"""A bot at work: the real store, outbox loop, source and notifications, and a fake Telegram over real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pilot.clients.hooks import Hooks
from pilot.clients.telegram import Bot
from pilot.config.schema import ProjectSettings, TelegramSettings
from pilot.dispatch.deliveries import Deliveries
from pilot.domain.delivery import Effect, EffectKind
from pilot.domain.execution import Execution
from pilot.domain.ports import Accounts
from pilot.publish.notify import Notify
from pilot.sources.desk import Desk
from pilot.sources.telegram import TelegramSource
from pilot.store import Store, open_store
from tests.adapters.desks import desk, served
from tests.adapters.hook_server import SECRET
from tests.e2e.telegram_fake import TOKEN, TelegramFake
from tests.store.bed import node

ANN_ID, BOB_ID = 11, 12
NOBODY: Accounts = {}


def hide(text: str) -> str:
    """A redactor for tests."""
    return text.replace("hunter2", "[redacted]")


async def until(condition: Callable[[], object | Awaitable[object]], what: str = "", seconds: float = 20) -> None:
    """Wait until it holds."""
    end = asyncio.get_running_loop().time() + seconds
    while True:
        found = condition()
        if isinstance(found, Awaitable):
            found = await found
        if found:
            return
        if asyncio.get_running_loop().time() > end:
            raise AssertionError(f"never came true: {what}")
        await asyncio.sleep(0.01)


@dataclass
class Stage:
    """One node. `bot`, `source`, `notify` and `deliveries` are its own; other nodes share `store` and `fake`."""

    store: Store
    fake: TelegramFake
    desk: Desk
    bot: Bot
    source: TelegramSource
    notify: Notify
    deliveries: Deliveries
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def start(self, *, reading: bool = True, delivering: bool = True) -> None:
        if delivering:
            self.tasks.append(asyncio.create_task(self.deliveries.run()))
        if reading:
            self.tasks.append(asyncio.create_task(self.source.run()))

    async def stop(self, *, cleanly: bool = True) -> None:
        """`cleanly` False: as if it had been killed, except that its sockets are closed."""
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        self.tasks = []
        if cleanly:
            await self.bot.close()

    async def executions(self) -> list[Execution]:
        found, _ = await self.store.history.executions(everything=True)
        return sorted(found, key=lambda execution: execution.id)

    async def the_one(self) -> Execution:
        await until(self.executions, "an execution")
        (execution,) = await self.executions()
        return execution

    async def claim(self, name: str = "n1") -> Execution:
        """Let a node begin the next one."""
        found: list[Execution] = []

        async def claimed() -> bool:
            found.extend(await self.store.queue.claim(name, lease=600_000))
            return bool(found)

        await until(claimed, "something to claim")
        return found[0]

    def shows(self, words: str, *, chat: int = ANN_ID) -> bool:
        return any(words in text for text in self.fake.texts(chat))

    async def shown(self, words: str, *, chat: int = ANN_ID) -> int:
        """Wait until one of the bot's messages in that chat says this; the message's id."""
        await until(lambda: self.shows(words, chat=chat), f"{words!r} in {self.fake.texts(chat)}")
        return next(
            id for (at, id), message in self.fake.messages() if at == chat and words in str(message.get("text", ""))
        )

    def buttons(self, message: int, *, chat: int = ANN_ID) -> dict[str, str]:
        """What each button below a message says back, by its words."""
        markup = self.fake.message(chat, message).get("reply_markup") or {"inline_keyboard": []}
        return {each["text"]: each["callback_data"] for row in markup["inline_keyboard"] for each in row}

    async def click(self, user: Mapping[str, Any], message: int, button: str, *, chat: int = ANN_ID) -> str:
        """Click a button by its words; what the click is answered."""
        click = self.fake.clicks(dict(user), chat, message, self.buttons(message, chat=chat)[button])
        await until(lambda: self.fake.answered(click) != "?", f"an answer to {button!r}")
        return self.fake.answered(click)

    async def owed(self) -> list[tuple[str, str | None]]:
        """What the outbox still owes: key and error."""
        rows = await self.store.database.read("SELECT key, error FROM outbox WHERE delivered_at IS NULL ORDER BY id")
        return [(str(key), error) for key, error in rows]

    async def settled(self) -> None:
        """Wait until nothing is owed."""

        async def nothing() -> bool:
            return not await self.owed()

        await until(nothing, "nothing owed")


@asynccontextmanager
async def stage(
    path: Path,
    fake: TelegramFake,
    *,
    name: str = "n1",
    projects: Sequence[str] = ("api", "web"),
    users: Collection[int] = (ANN_ID, BOB_ID),
    groups: Collection[int] = (),
    told: Sequence[int] = (),
    webhooks: Sequence[str] = (),
    lease: float = 30,
    every: float = 0.05,
) -> AsyncIterator[Stage]:
    """A node that has not started yet. Nodes with the same path share a store."""
    async with open_store(f"sqlite:///{path}/pilot.db") as store, Hooks(SECRET) as hooks:
        rows = await served(store, *(ProjectSettings(name=each, path=path / each) for each in projects))
        await store.queue.start_node(node(name), 600_000)
        await store.queue.serve(name, [row.id for row, _ in rows], NOBODY, notifies=True)
        own = desk(store, rows, node=name, redact=hide)
        bot = Bot(TOKEN, base_url=fake.base_url, every=0.05)
        settings = TelegramSettings.model_validate({"token": TOKEN, "allowed_users": list(users)})
        source = TelegramSource(own, bot, settings, chats=groups, every=every, lease=lease, poll=2)
        notify = Notify(
            store.outbox, store.history, clock=store.database.clock, redact=hide, bot=bot, telegram=told,
            hooks=hooks, webhooks=webhooks,
        )  # fmt: skip

        async def report(effect: Effect) -> Mapping[str, Any] | None:
            assert effect.execution is not None
            found = await store.outbox.report(effect.execution)
            result = await source.report(found)
            await store.outbox.supersede(effect, found.event)
            return result

        deliveries = Deliveries(
            store.outbox,
            name,
            {EffectKind.REPORT: report, EffectKind.NOTIFY: notify.notify, EffectKind.TELL: notify.tell},
            lambda: [row.id for row, _ in rows],
            store.database.clock,
            poll=0.05,
            jitter=lambda: 0.0,
        )
        here = Stage(store, fake, own, bot, source, notify, deliveries)
        try:
            yield here
        finally:
            await here.stop(cleanly=False)
            with suppress(Exception):
                await bot.close()
