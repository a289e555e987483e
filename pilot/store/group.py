"""What waits together: items of each operation, with the futures of who asked. One group at a time is written."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from pilot.store.database import Item, Operation, Result

Group = dict[Operation[Any, Any], list[tuple[Any, asyncio.Future[Any]]]]
Work = Sequence[tuple[Operation[Any, Any], list[Any]]]

CROWD, GATHER = 3, 0.0015
"""After a group of so many the next one waits for so many seconds, unless as many have come again: what costs is the
statements of a group, not the items in them.
"""


class Groups:
    """Has all that waits at the moment written together: by `commit`, which answers or refuses a group."""

    def __init__(self, commit: Callable[[Group], Awaitable[None]]) -> None:
        self._commit = commit
        self._pending: Group = {}
        self._draining: asyncio.Task[None] | None = None

    async def write(self, operation: Operation[Item, Result], item: Item) -> Result:
        """See `Database.write`."""
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._pending.setdefault(operation, []).append((item, future))
        if self._draining is None:
            self._draining = asyncio.create_task(self._drain())
        return await future

    async def settled(self) -> None:
        """Until nothing waits."""
        while self._draining is not None:
            await asyncio.wait([self._draining])

    async def _drain(self) -> None:
        try:
            while self._pending:
                group, self._pending = self._pending, {}
                try:
                    await self._commit(group)
                except Exception as error:  # noqa: BLE001  whatever it is: nobody waits for an answer for ever
                    refuse(group, error)
                # The callers just answered come back with their next request before the next group closes.
                await asyncio.sleep(0)
                if _size(group) >= CROWD and _size(self._pending) < _size(group):
                    await asyncio.sleep(GATHER)  # those of them who are at the end of a socket, too
        finally:
            self._draining = None


def _size(group: Mapping[Any, Sequence[Any]]) -> int:
    return sum(map(len, group.values()))


def refuse(group: Group, error: Exception) -> None:
    """The same answer to everybody."""
    for waiting in group.values():
        for _, future in waiting:
            if not future.done():
                future.set_exception(error)


def answer(group: Group, results: Sequence[Sequence[Any]]) -> None:
    """To each its own."""
    for waiting, answers in zip(group.values(), results, strict=True):
        for (_, future), result in zip(waiting, answers, strict=True):
            if future.done():
                continue
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)
