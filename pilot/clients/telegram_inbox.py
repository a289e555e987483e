"""What people say to a bot: read by polling, let in by who they are, handed on in order.

Telegram forgets what was read when it is asked for more. So it is asked for more when what it gave has been handled:
a process that dies in between gets it again, and whoever handles it goes by the message's or the click's id.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from pilot.clients.telegram import Bot
from pilot.clients.telegram_errors import RateLimited, Unavailable, translated

if TYPE_CHECKING:
    import telegram

log = structlog.get_logger()

POLL = 30
"""Seconds that Telegram may keep a poll waiting for something to happen."""
HANDLING = 10.0
"""Seconds for handling what one poll brought; what takes longer is not brought again after a crash."""
LONGEST_REST = 30.0
"""Seconds between two polls while there is no answer, at most."""
KINDS = ("message", "callback_query")


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """Somebody said something. (`chat`, `id`) names it for ever; `at` is UTC ms; `reply_to` is a message's id.

    `quoted`: what that message says, if the bot itself said it.
    """

    chat: int
    id: int
    user: int
    name: str
    text: str
    at: int
    private: bool
    reply_to: int | None = None
    quoted: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Click:
    """Somebody clicked a button below `message`, which says `data`. To be acknowledged by its id."""

    id: str
    chat: int
    user: int
    name: str
    message: int
    data: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Stranger:
    """Somebody, or somewhere, not known spoke or clicked; nothing of what they said is told. `what`: message, click."""

    chat: int
    user: int
    name: str
    what: str


Event = Message | Click | Stranger
Handler = Callable[[Event], Awaitable[None]]


class Inbox:
    """What one bot is told. One reader at a time for each bot, in all the world.

    `users` are ids of people (names can change hands); they are heard in private and in these `chats`.
    """

    def __init__(self, bot: Bot, users: Collection[int], chats: Collection[int] = (), *, poll: int = POLL) -> None:
        self.admit(users, chats)
        self._bot = bot
        self._poll = poll
        self._locks: dict[int, asyncio.Lock] = {}
        self._handling: set[asyncio.Task[None]] = set()
        self._polling = False
        self.last_poll: int | None = None
        """UTC ms of the last answer; None: none yet."""
        self.trouble = ""
        """Why there is no answer; empty: there is."""

    def admit(self, users: Collection[int], chats: Collection[int]) -> None:
        """Hear these from now on, as if it had been made so."""
        if not users:
            raise ValueError("a bot that listens to nobody is a mistake: name the users it may listen to")
        self._users, self._chats = frozenset(users), frozenset(chats)

    async def run(self, handle: Handler) -> None:
        """Hand on what comes until cancelled: what is said in one chat in order, chats side by side, clicks at once.

        `handle` stores and returns; long work is not its business. What it raises ends this, and Telegram gives the
        same again to the next run. Raises `Taken` for another reader, `Unauthorized` for a bad token; waits out
        everything else.
        """
        try:
            await self._read(handle)
        finally:
            for task in self._handling:
                task.cancel()
            await asyncio.gather(*self._handling, return_exceptions=True)
            self._handling.clear()

    async def _read(self, handle: Handler) -> None:
        offset: int | None = None
        failures = 0
        while True:
            try:
                updates = await self._more(offset)
            except RateLimited as error:
                self.trouble = str(error)
                await asyncio.sleep(max(0.0, (error.until - self._bot.clock()) / 1000))
                continue
            except Unavailable as error:
                self.trouble = str(error)
                failures += 1
                await asyncio.sleep(min(LONGEST_REST, 2.0 ** (failures - 1)))
                continue
            failures, self.trouble, self.last_poll = 0, "", self._bot.clock()
            for id, event in updates:
                offset = id + 1
                if event is not None:
                    self._handling.add(asyncio.create_task(self._in_turn(event, handle)))
            if self._handling:
                done, self._handling = await asyncio.wait(self._handling, timeout=HANDLING)
                for task in done:
                    task.result()

    async def _in_turn(self, event: Event, handle: Handler) -> None:
        if isinstance(event, Message):
            async with self._locks.setdefault(event.chat, asyncio.Lock()):
                await handle(event)
        else:
            await handle(event)  # a click that is to end something must not wait behind it

    async def _more(self, offset: int | None) -> list[tuple[int, Event | None]]:
        """What is new, by update id. None: nothing for a bot's ears."""
        api = self._bot.api
        with translated(self._bot.clock):
            if not self._polling:
                await api.delete_webhook()  # a bot that has one can't be polled; what waits for it stays
                self._polling = True
            try:
                updates = await api.get_updates(offset, timeout=self._poll, allowed_updates=KINDS)
            except (LookupError, TypeError, ValueError):
                return await self._first(offset)
            return [(update.update_id, self._event(update)) for update in updates]

    async def _first(self, offset: int | None) -> list[tuple[int, Event | None]]:
        """The first alone: one that the library can't read must not keep all others out."""
        from telegram import Update

        api = self._bot.api
        # Case is nothing to Telegram; called by its usual name, the library says that it has a method for this.
        found = await api.do_api_request("getupdates", {"offset": offset, "limit": 1, "allowed_updates": KINDS})
        try:
            if not found:
                return []
            (first,) = found
            id = int(first["update_id"])
        except (LookupError, TypeError, ValueError):
            raise Unavailable("what answers does not answer as Telegram does") from None
        try:
            return [(id, self._event(Update.de_json(first, api)))]
        except (LookupError, TypeError, ValueError):
            log.warning("telegram.update_unreadable", update=id)
            return [(id, None)]

    def _event(self, update: telegram.Update) -> Event | None:
        click, said = update.callback_query, update.message
        if click is not None:
            if click.message is None or click.data is None:
                return None
            user, chat = click.from_user, click.message.chat
            if not self._knows(user, chat):
                return Stranger(chat=chat.id, user=user.id, name=user.full_name, what="click")
            return Click(
                id=click.id,
                chat=chat.id,
                user=user.id,
                name=user.full_name,
                message=click.message.message_id,
                data=click.data,
            )
        if said is None or said.from_user is None:
            return None
        text = said.text or said.caption
        if not text:
            return None
        user, chat = said.from_user, said.chat
        if not self._knows(user, chat):
            return Stranger(chat=chat.id, user=user.id, name=user.full_name, what="message")
        return Message(
            chat=chat.id,
            id=said.message_id,
            user=user.id,
            name=user.full_name,
            text=text,
            at=round(said.date.timestamp() * 1000),
            private=chat.type == "private",
            reply_to=said.reply_to_message.message_id if said.reply_to_message is not None else None,
            quoted=self._own_words(said.reply_to_message),
        )

    def _own_words(self, message: telegram.Message | None) -> str:
        if message is None or message.from_user is None or message.from_user.id != self._bot.id:
            return ""
        return message.text or message.caption or ""

    def _knows(self, user: telegram.User, chat: telegram.Chat) -> bool:
        return user.id in self._users and not user.is_bot and (chat.type == "private" or chat.id in self._chats)
