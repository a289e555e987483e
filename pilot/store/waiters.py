"""Workers that wait for work: one look at the store for all of them, however many they are.

Signals are hints, and a timer is behind each. What is found for one that has gone meanwhile is given back.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field

from pilot.domain.work import Claim
from pilot.store.database import Listener
from pilot.store.pool import Ask

TIMER = 1.0
"""Seconds after which the store is looked at, whatever signals came or were lost."""


@dataclass(eq=False, slots=True)
class _Waiter:
    ask: Ask
    answer: asyncio.Future[list[Claim]]
    asking: bool = False
    """It is in a claim that is under way."""
    late: bool = False
    """Its time is over: it gets what that claim brings."""
    gone: bool = False


@dataclass(eq=False, slots=True)
class Waiters:
    """`worthwhile`: whether one of these could get something. `take`: claim for all of them, in this order.

    `due`: seconds until time alone makes something runnable. `give_back` does so on its own.
    """

    listen: Callable[[Listener], Callable[[], None]]
    worthwhile: Callable[[Sequence[Ask]], Awaitable[bool]]
    take: Callable[[Sequence[Ask]], Awaitable[list[list[Claim]]]]
    give_back: Callable[[Sequence[Claim]], None]
    due: Callable[[], Awaitable[float | None]]
    heard: int = 0
    """How many signals came; whoever asked before the last of them has to be looked at again."""
    _waiting: dict[_Waiter, None] = field(default_factory=dict)
    _news: asyncio.Event = field(default_factory=asyncio.Event)
    _loop: asyncio.Task[None] | None = None
    _closed: bool = False

    async def wait(self, ask: Ask, seconds: float, heard: int) -> list[Claim]:
        """What comes for it in time. `heard`: the value of before it asked in vain."""
        if self._closed:
            return []
        waiter = _Waiter(ask, asyncio.get_running_loop().create_future())
        self._waiting[waiter] = None
        if self._loop is None:
            self._loop = asyncio.create_task(self._run())
        elif heard != self.heard:
            self._news.set()
        try:
            await asyncio.wait({waiter.answer}, timeout=seconds)
            if not waiter.answer.done() and not waiter.asking:
                return []
            waiter.late = True
            return await asyncio.shield(waiter.answer)
        except asyncio.CancelledError:
            waiter.gone = True
            if waiter.answer.done() and not waiter.answer.exception():
                self.give_back(waiter.answer.result())
            raise
        finally:
            if not waiter.asking:
                self._waiting.pop(waiter, None)

    async def close(self) -> None:
        """Answer all who wait with nothing, from now on at once."""
        self._closed = True
        self._news.set()
        for waiter in tuple(self._waiting):
            if not waiter.asking:
                self._answer(waiter, [])
        if self._loop is not None:
            await asyncio.wait([self._loop])

    def _hear(self, tokens: Collection[str]) -> None:
        if any(token == "*" or token.isdecimal() for token in tokens):  # noqa: S105  a word of the signals
            self.heard += 1
            self._news.set()

    async def _run(self) -> None:
        leave = self.listen(self._hear)
        try:
            while self._waiting and not self._closed:
                self._news.clear()
                pause = TIMER
                try:
                    if await self.worthwhile([waiter.ask for waiter in self._waiting]):
                        await self._claim()
                    due = await self.due()
                    pause = TIMER if due is None else max(0.001, min(TIMER, due))
                except Exception as error:  # noqa: BLE001  who waits gets it, and asks again
                    for waiter in tuple(self._waiting):
                        self._fail(waiter, error)
                if self._waiting:
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(pause):
                            await self._news.wait()
        finally:
            leave()
            self._loop = None

    async def _claim(self) -> None:
        asking = [waiter for waiter in self._waiting if not waiter.gone]
        for waiter in asking:
            waiter.asking = True
        try:
            found = await self.take([waiter.ask for waiter in asking])
        except Exception as error:  # noqa: BLE001  likewise
            for waiter in asking:
                self._fail(waiter, error)
            return
        for waiter, claims in zip(asking, found, strict=True):
            waiter.asking = False
            if waiter.gone:
                self._waiting.pop(waiter, None)
                self.give_back(claims)
            elif claims or waiter.late or self._closed:
                self._answer(waiter, claims)

    def _answer(self, waiter: _Waiter, claims: list[Claim]) -> None:
        self._waiting.pop(waiter, None)
        if not waiter.answer.done():
            waiter.answer.set_result(claims)

    def _fail(self, waiter: _Waiter, error: Exception) -> None:
        waiter.asking = False
        self._waiting.pop(waiter, None)
        if not waiter.answer.done() and not waiter.gone:
            waiter.answer.set_exception(error)
