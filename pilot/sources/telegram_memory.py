"""What the bot's reader has to remember: it stands in the duty's state, and so goes over to whoever reads next."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pilot.domain.errors import LeaseLost
from pilot.domain.outside import Duties

SEEN = 300
"""How many messages and clicks are known again. Telegram brings again what one poll brought: 100 at most."""
PENDING = 50
"""How many requests may wait for a confirmation; more push out the oldest."""
LIFETIME = 60 * 60 * 1000
"""Milliseconds for which a request waits for its confirmation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pending:
    """Words that wait for a project and a yes of who said them. (`chat`, `message`) is their own message."""

    chat: int
    message: int
    user: int
    name: str
    text: str
    at: int

    @property
    def key(self) -> str:
        """Its name."""
        return f"{self.chat}.{self.message}"


class Memory:
    """One reader's. Everything is durable on return; raises `LeaseLost` when the bot has another reader now."""

    def __init__(self, duties: Duties, duty: str, node: str) -> None:
        self._duties = duties
        self._duty = duty
        self._node = node
        self._seen: dict[str, None] = {}
        self._pending: dict[str, Pending] = {}
        self._watched: frozenset[int] = frozenset()
        self._writing = asyncio.Lock()

    async def load(self) -> None:
        """Take over what there is."""
        state = await self._duties.recall(self._duty)
        self._seen = dict.fromkeys(map(str, state.get("seen", ())))
        found = [Pending(**each) for each in state.get("pending", ())]
        self._pending = {each.key: each for each in found}
        self._watched = frozenset(map(int, state.get("watched", ())))

    def knows(self, key: str) -> bool:
        """Whether that message or click was dealt with."""
        return key in self._seen

    async def saw(self, key: str) -> None:
        """That message or click has been dealt with."""
        async with self._writing:
            self._seen[key] = None
            while len(self._seen) > SEEN:
                del self._seen[next(iter(self._seen))]
            await self._write()

    def pending(self, key: str, now: int) -> Pending | None:
        """What waits under that name, unless it has waited too long."""
        found = self._pending.get(key)
        return None if found is None or found.at + LIFETIME < now else found

    async def ask(self, pending: Pending) -> None:
        """Have it wait."""
        async with self._writing:
            living = [each for each in self._pending.values() if each.at + LIFETIME >= pending.at]
            self._pending = {each.key: each for each in [*living, pending][-PENDING:]}
            await self._write()

    async def settle(self, key: str) -> None:
        """It waits no more."""
        async with self._writing:
            if self._pending.pop(key, None) is not None:
                await self._write()

    @property
    def watched(self) -> frozenset[int]:
        """Executions whose message may say something that is over."""
        return self._watched

    async def watch(self, executions: Collection[int]) -> None:
        """These are it now."""
        async with self._writing:
            if self._watched != frozenset(executions):
                self._watched = frozenset(executions)
                await self._write()

    async def _write(self) -> None:
        state: Mapping[str, Any] = {
            "seen": list(self._seen),
            "pending": [asdict(each) for each in self._pending.values()],
            "watched": sorted(self._watched),
        }
        if not await self._duties.remember(self._duty, self._node, state):
            raise LeaseLost("another node reads this bot's messages now")
