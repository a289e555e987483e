"""Ending processes for certain: steps that a cancellation shortens but never breaks off."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import structlog

from pilot.runner.proctree import Family, Seen, is_alive, is_subreaper, reap, send

_T = TypeVar("_T")
_log = structlog.get_logger(__name__)
_HURRY = 0.1
"""Seconds that is left of any grace once the task was cancelled."""
_GIVE_UP = 10.0
"""Seconds for killed processes to go, before they are reported as survivors."""
_CLEAN = 2
"""Looks in a row that have to find nobody: one may miss a process that was just being forked."""
_TRIES = 100
_UNWAITED = 2.0
"""Seconds after which a dead child can't be one that somebody still waits for."""


class Patience:
    """Waits that go on when their task is cancelled, only shorter; `settle` raises the cancellation at the end.

    It works on the task itself rather than shielding a second one, since a closing event loop cancels both.
    """

    def __init__(self) -> None:
        self.hurry = False

    async def wait(self, future: asyncio.Future[_T], seconds: float | None, *, firm: bool = False) -> bool:
        """Whether the future is done within that time. `firm`: a cancellation does not shorten it."""
        loop = asyncio.get_running_loop()
        deadline = None if seconds is None else loop.time() + seconds
        while not future.done():
            if self.hurry and not firm:
                soon = loop.time() + _HURRY
                deadline = soon if deadline is None else min(deadline, soon)
            try:
                await asyncio.wait((future,), timeout=None if deadline is None else deadline - loop.time())
            except asyncio.CancelledError:
                self.hurry = True
                continue
            break
        return future.done()

    async def finish(self, future: asyncio.Future[_T]) -> None:
        """Wait until it is done, however long that takes."""
        await self.wait(future, None, firm=True)

    async def pause(self, seconds: float) -> None:
        """Let that much time pass."""
        await self.wait(asyncio.get_running_loop().create_future(), seconds)

    async def run(self, function: Callable[[], _T]) -> _T:
        """Do it in a thread, so that a machine with thousands of processes does not stop the loop."""
        try:
            future = asyncio.get_running_loop().run_in_executor(None, function)
        except RuntimeError:  # no thread to be had, or the loop is shutting down
            return function()
        await self.finish(future)
        return future.result()

    async def courtesy(self, ask: Callable[[_T], Awaitable[None]], whom: _T, seconds: float) -> None:
        """Give a polite request its time. Its own failure changes nothing."""

        async def asked() -> None:
            try:
                await ask(whom)
            except Exception as error:  # noqa: BLE001  the ladder goes on, whatever the first rung is made of
                _log.warning("process.interrupt_failed", error=repr(error))

        task = asyncio.ensure_future(asked())
        await self.wait(task, seconds)
        if not task.done():
            task.cancel()
            await self.wait(task, _HURRY, firm=True)

    def settle(self) -> None:
        """Raise the cancellation that was put off, if there was one."""
        if self.hurry:
            raise asyncio.CancelledError


async def remember(family: Family, patience: Patience) -> None:
    """Look who is there, for later; a machine out of files must not keep anyone from being ended."""
    try:
        await patience.run(family.scan)
    except OSError as error:
        _log.warning("process.scan_failed", error=str(error))


async def end_family(family: Family, patience: Patience, short: float) -> list[int]:
    """End every process of the family: SIGTERM, `short` seconds, SIGKILL, until looks find nobody.

    Returns the pids that did not go: not ours to signal, or stuck in the kernel. Raises OSError when the machine
    is too short of files to tell who lives.
    """
    loop = asyncio.get_running_loop()
    alive = await _alive(family, patience)
    if alive:
        for one in alive:
            send(one, signal.SIGTERM)
            send(one, signal.SIGCONT)  # who is stopped can't obey
        await _gone(alive, patience, short)
        clean, deadline = 0, loop.time() + _GIVE_UP
        while clean < _CLEAN and loop.time() < deadline:
            alive = await _alive(family, patience)
            clean = 0 if alive else clean + 1
            for one in alive:
                send(one, signal.SIGKILL)
            await _gone(alive, patience, 0.5)
    if family.dead and is_subreaper():
        loop.call_later(_UNWAITED, _reap_all, family.dead)
    return [one.pid for one in alive if _lives(one)]


async def _alive(family: Family, patience: Patience) -> list[Seen]:
    """Look, and look again when the machine was out of files: then nobody was seen, which is not nobody."""
    for _ in range(_TRIES):
        try:
            return await patience.run(family.scan) + family.orphans()
        except OSError as error:
            _log.warning("process.scan_failed", error=str(error))
            await patience.pause(0.05)
    return await patience.run(family.scan) + family.orphans()


async def _gone(alive: Sequence[Seen], patience: Patience, seconds: float) -> None:
    loop = asyncio.get_running_loop()
    deadline, step = loop.time() + seconds, 0.002
    while (alive := [one for one in alive if _lives(one)]) and loop.time() < deadline:
        if patience.hurry:
            deadline = min(deadline, loop.time() + _HURRY)
        await patience.pause(step)
        step = min(2 * step, 0.05)


def _lives(one: Seen) -> bool:
    try:
        return is_alive(one.pid, one.ticks)
    except OSError:  # out of files: not known to be gone
        return True


def _reap_all(dead: Sequence[Seen]) -> None:
    for one in dead:
        reap(one.pid, one.ticks)
