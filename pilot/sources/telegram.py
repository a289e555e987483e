"""Telegram: people write to a bot what is to be done, follow it in one message, and answer its questions.

The bot is read by one node at a time, that of the duty `telegram:<bot id>`. Telegram brings an update again until the
next poll, and a request's key is its message: so what a killed node had read is read again by the next, and nothing
is started twice. What a chat is told goes through the outbox; only the lines of a run's progress do not, which the
reading node edits every few seconds.

Limits, which are the Bot API's: a message has no key of ours, so one whose answer was lost may be there twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, NoReturn

import structlog

from pilot.clients.telegram import Bot, BotError, RateLimited, Taken, Unauthorized
from pilot.clients.telegram_inbox import POLL, Click, Event, Inbox, Message, Stranger
from pilot.config.schema import TelegramSettings
from pilot.domain.delivery import Arrival, Refusal, Report
from pilot.domain.errors import LeaseLost, NotFound, PilotError, StoreError
from pilot.domain.outside import SourcePaused
from pilot.domain.text import one_line
from pilot.sources.desk import Desk
from pilot.sources.feed import until_free
from pilot.sources.telegram_board import EVERY, Board
from pilot.sources.telegram_commands import COMMANDS, SOURCE, Commands
from pilot.sources.telegram_memory import Memory
from pilot.sources.telegram_people import People

log = structlog.get_logger()

LEASE = 30.0
"""Seconds after which another node reads the bot when the one that did went silent."""
ASK = 5.0
"""Seconds after which a node that does not read asks again whether it is to."""
_STRANGERS = 1000


class TelegramSource:
    """Implements `outside.Source`, and reads by itself: `await run()`.

    `bot` is not open yet, and is closed by whoever made it, after this has ended. `chats`: groups in which the allowed
    users are heard, besides their own chats with the bot. `every`: seconds between two looks at what runs; `lease`:
    seconds; `poll`: seconds that Telegram may keep a poll waiting. Raises `ValueError` without allowed users.
    """

    name = SOURCE
    every: float | None = None

    def __init__(
        self,
        desk: Desk,
        bot: Bot,
        settings: TelegramSettings,
        *,
        chats: Collection[int] = (),
        every: float = EVERY,
        lease: float = LEASE,
        poll: int = POLL,
    ) -> None:
        self._desk = desk
        self._bot = bot
        self._duty = f"telegram:{bot.id}"
        self._lease = lease
        self._inbox = Inbox(bot, settings.allowed_users, chats, poll=poll)
        self._board = Board(desk, bot, every=every)
        self._commands = Commands(desk, bot, self._board.follow)
        self._memory = Memory(desk.duties, self._duty, desk.node)
        self._people = People(desk, bot, self._memory, self._commands)
        self._strangers: set[str] = set()

    def reconfigure(self, settings: TelegramSettings, chats: Collection[int] = ()) -> None:
        """Listen to these users and groups from now on."""
        self._inbox.admit(settings.allowed_users, chats)

    # What a source is

    async def poll(self) -> None:
        """Nothing: `run` reads."""

    def verify(self, headers: Mapping[str, str], body: bytes) -> NoReturn:
        """It takes no webhooks."""
        raise NotFound("Telegram is polled; it has no webhook here")

    async def handle(self, arrival: Arrival) -> None:
        """Nothing: no webhook of it is ever stored."""

    async def acknowledge(self, report: Report) -> Mapping[str, Any] | None:
        """See `Source.acknowledge`."""
        return await self._board.show(report)

    async def report(self, report: Report) -> Mapping[str, Any] | None:
        """See `Source.report`."""
        return await self._board.show(report)

    # What it does by itself

    async def run(self) -> None:
        """Read the bot's messages whenever this node has the duty. Until cancelled; raises `SourcePaused`."""
        try:
            while True:
                if await self._desk.duties.hold(self._duty, self._desk.node, self._lease_ms):
                    with suppress(LeaseLost):
                        await self._read()
                free = until_free(await self._desk.duties.free_at(self._duty), self._desk.clock())
                await asyncio.sleep(min(self._lease / 3, ASK, free))
        finally:
            with suppress(PilotError):
                await asyncio.shield(self._desk.duties.release(self._duty, self._desk.node))

    @property
    def _lease_ms(self) -> int:
        return int(self._lease * 1000)

    async def _read(self) -> None:
        """As the one reader. Raises `LeaseLost` when another node has become that."""
        keeping = asyncio.create_task(self._keep())
        try:
            await self._memory.load()
            reading = asyncio.create_task(self._listen())
            tasks = {keeping, reading}
            try:
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)
            for task in done:
                task.result()
        except Taken as error:
            remedy = "stop the other one, or give one of them a bot of its own"
            raise SourcePaused(str(error), remedy=remedy) from None
        except Unauthorized as error:
            raise SourcePaused(str(error), remedy="put the bot's token into sources.telegram.token") from None
        except RateLimited as error:
            raise SourcePaused(str(error), error.until) from None
        except BotError as error:
            raise SourcePaused(str(error)) from None
        finally:
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)

    async def _listen(self) -> None:
        await self._bot.open()
        await self._bot.offer(COMMANDS)
        showing = asyncio.create_task(self._show())
        try:
            await self._inbox.run(self._handle)
        finally:
            showing.cancel()
            await asyncio.gather(showing, return_exceptions=True)

    async def _show(self) -> None:
        """Keep the messages of what runs up to date; no trouble with that keeps anybody from being heard."""
        while True:
            try:
                await self._board.run(self._memory)
            except LeaseLost:
                return  # `_keep` finds out, too
            except PilotError as error:
                log.error("telegram.progress_failed", error=str(error))
            except Exception:  # a border
                log.exception("telegram.progress_broke")
            await asyncio.sleep(self._lease / 3)

    async def _keep(self) -> None:
        """Keep the duty, and say how reading goes."""
        heard: int | None = None
        while True:
            await asyncio.sleep(min(self._lease / 3, 1.0) if heard is None else self._lease / 3)
            if not await self._desk.duties.hold(self._duty, self._desk.node, self._lease_ms):
                raise LeaseLost("another node reads this bot's messages now")
            if self._inbox.trouble:
                await self._desk.health.saw(self.name, "paused", reason=self._inbox.trouble)
            elif self._inbox.last_poll is not None and self._inbox.last_poll != heard:
                heard = self._inbox.last_poll
                await self._desk.health.saw(self.name, "ok")

    async def _handle(self, event: Event) -> None:
        """Deal with one event, once. Raises `StoreError` and `LeaseLost`: then it comes again."""
        if isinstance(event, Stranger):
            await self._refuse(event)
            return
        key = event.id if isinstance(event, Click) else f"{event.chat}.{event.id}"
        if self._memory.knows(key):
            return
        try:
            await (self._people.clicked(event) if isinstance(event, Click) else self._people.said(event))
        except (StoreError, LeaseLost):
            raise
        except PilotError as error:
            await self._excuse(event, str(error))
        except BotError as error:
            log.warning("telegram.reply_lost", chat=event.chat, error=str(error))
        except Exception:  # a border: what can't be dealt with must not come again for ever
            log.exception("telegram.message_broke", chat=event.chat)
            await self._excuse(event, "That did not work, for a reason that only the log of pilot knows.")
        await self._memory.saw(key)

    async def _excuse(self, event: Message | Click, words: str) -> None:
        words = self._desk.redact(one_line(words, 1000))
        try:
            if isinstance(event, Click):
                await self._bot.acknowledge(event.id, words)
            else:
                await self._bot.send(event.chat, words, reply_to=event.id)
        except BotError as error:
            log.warning("telegram.reply_lost", chat=event.chat, error=str(error))

    async def _refuse(self, stranger: Stranger) -> None:
        """Turn somebody down, once a day: they have no right to fill the log."""
        day = datetime.fromtimestamp(self._desk.clock() / 1000, UTC).date().isoformat()
        own = stranger.chat == stranger.user
        key = f"telegram:{self._bot.id}:stranger:{stranger.user}:{'' if own else stranger.chat}:{day}"
        if key in self._strangers:
            return
        if len(self._strangers) > _STRANGERS:
            self._strangers.clear()
        name = f"{one_line(stranger.name, 60)} (Telegram {stranger.user})"
        where = "" if own else f" in chat {stranger.chat}"
        reason = (
            f"sources.telegram.allowed_users has no {stranger.user}"
            if own
            else f"user {stranger.user} is not in sources.telegram.allowed_users, or chat {stranger.chat} not in "
            "notify.telegram"
        )
        refusal = Refusal(
            key=key, source=self.name, project_id=None, task_id="", actor=f"{name}{where}", reason=reason
        )  # fmt: skip
        new = await self._desk.refusals.refuse(refusal)
        self._strangers.add(key)
        if new and own and stranger.what == "message":
            with suppress(BotError):  # so that whoever sets it up can tell whom to allow
                words = f"I don't know you. Your id is {stranger.user}; whoever runs me can allow it."
                await self._bot.send(stranger.chat, words)
