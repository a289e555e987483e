"""Turns: how many executions a node runs at once, first come first served between its projects."""

from __future__ import annotations

import asyncio


class Turns:
    """A fair semaphore that can say whether somebody else waits.

    A project that has had its turn goes behind those that wait, so none starts twice while another waits.
    """

    def __init__(self, limit: int) -> None:
        self._semaphore = asyncio.Semaphore(limit)
        self._waiting = 0

    @property
    def contended(self) -> bool:
        """Whether a turn given back now would be taken at once."""
        return self._waiting > 0

    async def take(self) -> None:
        """Wait for a turn, in the order of asking."""
        self._waiting += 1
        try:
            await self._semaphore.acquire()
        finally:
            self._waiting -= 1

    def give_back(self) -> None:
        """Let the next one in."""
        self._semaphore.release()
