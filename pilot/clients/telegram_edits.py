"""Edits of messages, as slowly as Telegram wants them: of what is edited often, the last state counts."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from pilot.clients.telegram_errors import BotError, RateLimited, Unavailable

EVERY = 3.0
"""Seconds between two edits in one chat: a group takes 20 messages a minute."""
TRIES = 5
"""How often an edit is sent while there is no answer; it may be sent again, since it says the same."""
LONGEST_REST = 30.0
"""Seconds between two tries, at most."""

Edit = Callable[[], Awaitable[None]]


@dataclass(slots=True)
class _Waiting:
    """The latest edit of a message, and who wants to know that it, or a later one, was made."""

    edit: Edit
    asked: list[asyncio.Future[None]] = field(default_factory=list)
    tries: int = 0

    def end(self, error: BotError | None = None) -> None:
        for future in self.asked:
            if future.done():
                continue
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)

    def drop(self) -> None:
        for future in self.asked:
            future.cancel()


@dataclass(slots=True)
class _Chat:
    """What waits in one chat, by message, in the order it came."""

    waiting: dict[int, _Waiting] = field(default_factory=dict)
    next: float = 0.0
    task: asyncio.Task[None] | None = None


class Edits:
    """Sends edits in tasks of its own, one for each chat, until it is closed. `every`: seconds between them."""

    def __init__(self, clock: Callable[[], int], every: float = EVERY) -> None:
        self._clock = clock
        self._every = every
        self._chats: dict[int, _Chat] = {}
        self._hurry = asyncio.Event()

    def put(self, chat: int, message: int, edit: Edit) -> asyncio.Future[None]:
        """Have the message edited, in place of an edit that still waits.

        The future ends when this edit, or a later one of the message, was made, or with a `BotError`. Nobody needs
        to wait for it.
        """
        here = self._chats.setdefault(chat, _Chat())
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        future.add_done_callback(_looked_at)
        waiting = here.waiting.setdefault(message, _Waiting(edit))
        waiting.edit = edit
        waiting.asked.append(future)
        if here.task is None or here.task.done():
            here.task = asyncio.create_task(self._work(here))
        return future

    async def close(self, timeout: float) -> None:
        """Send what waits without a pause, for `timeout` seconds at most; what is left then is dropped."""
        self._hurry.set()
        tasks = [here.task for here in self._chats.values() if here.task is not None]
        try:
            if tasks:
                await asyncio.wait(tasks, timeout=timeout)
        finally:
            for task in tasks:
                task.cancel()
            for here in self._chats.values():
                for waiting in here.waiting.values():
                    waiting.drop()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _work(self, here: _Chat) -> None:
        loop = asyncio.get_running_loop()
        while here.waiting:
            await self._rest(here.next - loop.time())
            message = next(iter(here.waiting))
            sent = here.waiting.pop(message)
            pause = self._every
            try:
                await sent.edit()
            except asyncio.CancelledError:
                sent.drop()
                raise
            except BotError as error:
                wait = self._wait(sent, error)
                if wait is None:
                    sent.end(error)
                else:
                    pause = max(pause, wait)
                    self._put_back(here, message, sent)
            else:
                sent.end()
            here.next = loop.time() + pause

    def _wait(self, sent: _Waiting, error: BotError) -> float | None:
        """Seconds until it is worth another try; None: it is not."""
        if self._hurry.is_set():
            return None
        if isinstance(error, RateLimited):
            return max(0.0, (error.until - self._clock()) / 1000)
        sent.tries += 1
        if isinstance(error, Unavailable) and sent.tries < TRIES:
            return min(LONGEST_REST, 2.0**sent.tries)
        return None

    def _put_back(self, here: _Chat, message: int, sent: _Waiting) -> None:
        newer = here.waiting.get(message)
        if newer is None:
            here.waiting[message] = sent
        else:
            newer.asked += sent.asked
            newer.tries = sent.tries

    async def _rest(self, seconds: float) -> None:
        if seconds > 0:
            try:
                async with asyncio.timeout(seconds):
                    await self._hurry.wait()
            except TimeoutError:
                pass


def _looked_at(future: asyncio.Future[None]) -> None:
    """Nobody has to ask how an edit went."""
    if not future.cancelled():
        future.exception()
