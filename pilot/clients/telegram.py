"""A Telegram bot: words, files and buttons out; messages and clicks of known people in.

A thin layer over python-telegram-bot, which is imported when a bot is made and not before. Text goes out as it is,
without any markup that an agent's words could break.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from pilot.clients.telegram_edits import EVERY, Edits
from pilot.clients.telegram_errors import (
    BotError,
    RateLimited,
    Refused,
    Taken,
    Unauthorized,
    Unavailable,
    translated,
)
from pilot.clients.telegram_text import BUTTON, CAPTION, MESSAGE, cut, is_token, sayable, units
from pilot.domain.errors import UsageError
from pilot.store import wall_clock

if TYPE_CHECKING:
    import telegram

__all__ = [
    "Bot",
    "BotError",
    "Button",
    "RateLimited",
    "Refused",
    "Taken",
    "Unauthorized",
    "Unavailable",
]

API = "https://api.telegram.org/bot"
TIMEOUT = 15.0
"""Seconds for an answer."""
PATIENCE = 60.0
"""Seconds that a message waits when Telegram wants to be left alone; for longer, its sender is told."""
FAREWELL = 5.0
"""Seconds for the last edits when a bot is closed."""


@dataclass(frozen=True, slots=True)
class Button:
    """A button below a message. `data`: what a click says, 1 to 64 bytes."""

    text: str
    data: str

    def __post_init__(self) -> None:
        size = len(self.data.encode())
        if not 1 <= size <= BUTTON:
            raise ValueError(f"a button says 1 to {BUTTON} bytes, and this one {size}: {self.data!r}")


Rows = Sequence[Sequence[Button]]


class Bot:
    """One bot; an async context manager, open for as long as it is to speak. Calls raise `BotError`.

    `base_url` ends in `/bot`; None: Telegram's own. `every`: seconds between two edits in one chat. Raises
    `UsageError` when python-telegram-bot is not installed, `Unauthorized` for what can't be a token.

    Telegram knows no idempotency: a message whose answer was lost may be there, and is there twice when it is sent
    again. Edits say what is to stand there, and may be made as often as one likes.
    """

    def __init__(
        self, token: str, *, base_url: str | None = None, every: float = EVERY, clock: Callable[[], int] = wall_clock
    ) -> None:
        self.api = _api(token, base_url)
        self.id = int(token.partition(":")[0])
        self.clock = clock
        self.username = ""
        """How people address it in a group; known once it is open."""
        self._every = every
        self._edits: Edits | None = None
        self._opening = asyncio.Lock()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def open(self) -> None:
        """Begin to speak; nothing when it is open. One that could not be opened may be tried again."""
        async with self._opening:
            if self._edits is None:
                await self._initialize()
                self._edits = Edits(self.clock, self._every)

    async def _initialize(self) -> None:
        try:
            with translated(self.clock):
                await self.api.initialize()
                self.username = self.api.username
        except (LookupError, TypeError, ValueError):  # what the library says to an answer that is not Telegram's
            await self.api.shutdown()
            raise Unavailable("what answers does not answer as Telegram does; check base_url") from None
        except BaseException:
            await self.api.shutdown()
            raise

    async def close(self) -> None:
        """Make the last edits, for a few seconds at most, and end; it may be opened again."""
        async with self._opening:
            edits, self._edits = self._edits, None
            try:
                if edits is not None:
                    await edits.close(FAREWELL)
            finally:
                await self.api.shutdown()

    async def offer(self, commands: Sequence[tuple[str, str]]) -> None:
        """Have Telegram suggest these commands (name, what it does) to whoever writes to the bot."""
        with translated(self.clock):
            await self.api.set_my_commands(commands)

    async def send(
        self,
        chat: int,
        text: str,
        *,
        buttons: Rows = (),
        reply_to: int | None = None,
        fixed: bool = False,
        file_name: str = "message.txt",
    ) -> int:
        """Say something; the message's id. `fixed`: in a fixed-width font. Text that is too long goes as a file.

        Waits when Telegram wants it to, up to a minute; sent twice, it is there twice.
        """
        text = sayable(text)
        if units(text) > MESSAGE:
            return await self.send_file(chat, file_name, text.encode(), text, buttons=buttons, reply_to=reply_to)
        entities = [_entity("pre", units(text))] if fixed else None

        async def say() -> telegram.Message:
            return await self.api.send_message(
                chat,
                text,
                entities=entities,
                reply_markup=_markup(buttons),
                reply_parameters=_reply(reply_to),
                link_preview_options=_no_preview(),
            )

        return await self._patiently(say)

    async def send_file(
        self,
        chat: int,
        name: str,
        content: bytes,
        caption: str = "",
        *,
        buttons: Rows = (),
        reply_to: int | None = None,
    ) -> int:
        """Send a file with words below it, which are cut to what Telegram shows; the message's id."""
        from telegram import InputFile

        async def say() -> telegram.Message:
            return await self.api.send_document(
                chat,
                InputFile(content, filename=name),
                caption=cut(sayable(caption), CAPTION),
                reply_markup=_markup(buttons),
                reply_parameters=_reply(reply_to),
                disable_content_type_detection=True,
            )

        return await self._patiently(say)

    def edit(
        self, chat: int, message: int, text: str, *, buttons: Rows = (), fixed: bool = False
    ) -> asyncio.Future[None]:
        """Have a message say this instead, with these buttons; what is too long is cut.

        Nothing needs to be awaited: edits of a chat go out one by one, seconds apart, and what would be overwritten
        meanwhile is left out. The future ends when this text, or a later one, stands there.
        """
        if self._edits is None:
            raise RuntimeError("the bot is not open")
        text = cut(sayable(text))
        entities = [_entity("pre", units(text))] if fixed else None

        async def change() -> None:
            try:
                with translated(self.clock):
                    await self.api.edit_message_text(
                        text,
                        chat,
                        message,
                        entities=entities,
                        reply_markup=_markup(buttons),
                        link_preview_options=_no_preview(),
                    )
            except Refused as error:
                if "message is not modified" not in str(error).lower():
                    raise

        return self._edits.put(chat, message, change)

    async def acknowledge(self, click: str, text: str = "") -> None:
        """End a click's waiting, with a word on the screen if there is one; a click too old for that is forgotten."""
        try:
            with translated(self.clock):
                await self.api.answer_callback_query(click, cut(sayable(text), 200) or None)
        except Refused as error:
            if "query is too old" not in str(error).lower():
                raise

    async def _patiently(self, say: Callable[[], Any]) -> int:
        deadline = self.clock() + round(PATIENCE * 1000)
        while True:
            try:
                with translated(self.clock):
                    sent: telegram.Message = await say()
                    return sent.message_id
            except RateLimited as error:
                if error.until > deadline:
                    raise
                await asyncio.sleep(max(0.0, (error.until - self.clock()) / 1000))


def _api(token: str, base_url: str | None) -> telegram.Bot:
    if not is_token(token):
        raise Unauthorized("the Telegram token is not like 123456:ABC…; take it from @BotFather as it is")
    # Each address of the API has the token in it, and these tell addresses.
    for name in ("httpx", "httpcore", "telegram"):
        logger = logging.getLogger(name)
        logger.setLevel(max(logging.WARNING, logger.level))
    # The library's next generation counts time so; without it, every wait that Telegram asks for is a warning.
    os.environ.setdefault("PTB_TIMEDELTA", "true")
    try:
        import telegram
        from telegram.request import HTTPXRequest
    except ImportError as error:
        raise UsageError("Telegram needs python-telegram-bot: pip install 'pilot-dispatcher[telegram]'") from error

    def request(connections: int) -> HTTPXRequest:
        return HTTPXRequest(
            connection_pool_size=connections,
            read_timeout=TIMEOUT,
            write_timeout=TIMEOUT,
            connect_timeout=TIMEOUT,
            pool_timeout=TIMEOUT,
        )

    return telegram.Bot(token, base_url or API, request=request(8), get_updates_request=request(1))


def _markup(rows: Rows) -> telegram.InlineKeyboardMarkup | None:
    from telegram import InlineKeyboardButton, InlineKeyboardMarkup

    if not rows:
        return None
    return InlineKeyboardMarkup(
        [[InlineKeyboardButton(sayable(button.text), callback_data=button.data) for button in row] for row in rows]
    )


def _reply(message: int | None) -> telegram.ReplyParameters | None:
    from telegram import ReplyParameters

    return None if message is None else ReplyParameters(message, allow_sending_without_reply=True)


def _entity(kind: str, length: int) -> telegram.MessageEntity:
    from telegram import MessageEntity

    return MessageEntity(kind, 0, length)


def _no_preview() -> telegram.LinkPreviewOptions:
    from telegram import LinkPreviewOptions

    return LinkPreviewOptions(is_disabled=True)  # else Telegram fetches whatever address an agent names
