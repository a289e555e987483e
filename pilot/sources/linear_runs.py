"""The executions that came from an issue of Linear, and what of it was dealt with: both by the store alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Iterable, Mapping
from contextlib import asynccontextmanager

from pilot.domain.execution import OPEN, Execution
from pilot.domain.outside import Later
from pilot.sources.desk import Desk

SOURCE = "linear"
REPAIR = "failing_ci"
REMEMBERED = 500
"""How many comments or prompts of one ticket are known as dealt with; older ones are too old to count."""
TURN = 120_000
"""Milliseconds that a node may take over one ticket before another thinks it dead."""


class Runs:
    """Looks up, newest first. `Execution.origin` is what says where one came from; names are only the way there."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._lock = asyncio.Lock()

    async def of(self, issue: str, names: Iterable[str]) -> list[Execution]:
        """Those of an issue (by uuid) that has or had these identifiers; at most the last hundred of each."""
        found: dict[int, Execution] = {}
        for name in names:
            page, _ = await self._desk.history.executions(task_id=name, everything=True, limit=100)
            found |= {one.id: one for one in page if of_linear(one) and (one.origin or {}).get("issue") == issue}
        return [found[id] for id in sorted(found, reverse=True)]

    async def open(self) -> list[Execution]:
        """All that have not ended."""
        found: list[Execution] = []
        for source in (SOURCE, REPAIR):
            cursor: str | None = None
            while True:
                page, cursor = await self._desk.history.executions(
                    statuses=OPEN, source=source, limit=200, cursor=cursor
                )
                found += [one for one in page if of_linear(one)]
                if cursor is None:
                    break
        return sorted(found, key=lambda one: one.id, reverse=True)

    async def root(self, execution: Execution) -> Execution:
        """The one that a person asked for: of a repair, the execution that is repaired."""
        while execution.source == REPAIR and execution.parent is not None:
            before = await self._desk.history.execution(execution.parent)
            if before is None or before.task_id != execution.task_id:
                break
            execution = before
        return execution

    @asynccontextmanager
    async def turn(self, name: str) -> AsyncIterator[Done]:
        """Alone with a ticket: what of it was dealt with, kept however it ends. `Later`: another node is at it."""
        duties, node = self._desk.duties, self._desk.node
        async with self._lock:
            if not await duties.hold(name, node, TURN):
                raise Later(f"another node deals with {name}", self._desk.clock() + 5000)
            try:
                done = Done(await duties.recall(name))
                try:
                    yield done
                finally:
                    if done.changed:
                        await duties.remember(name, node, done.state())
            finally:
                await duties.release(name, node)


class Done:
    """Ids of comments or prompts: those dealt with, and those kept for later."""

    def __init__(self, state: object) -> None:
        known = state if isinstance(state, Mapping) else {}
        self._done = dict.fromkeys(known.get("done", ()))
        self._noted = dict.fromkeys(known.get("noted", ()))
        self.changed = False

    def __contains__(self, id: str) -> bool:
        return id in self._done

    def add(self, ids: Collection[str]) -> None:
        """They are dealt with."""
        self._done |= dict.fromkeys(ids)
        for id in ids:
            self._noted.pop(id, None)
        self.changed = True

    def note(self, id: str) -> None:
        """It waits for the end of what runs."""
        self._noted[id] = None
        self.changed = True

    def noted(self, id: str) -> bool:
        """Whether it waits."""
        return id in self._noted

    def state(self) -> dict[str, list[str]]:
        """What to remember."""
        return {"done": list(self._done)[-REMEMBERED:], "noted": list(self._noted)[-REMEMBERED:]}


def of_linear(execution: Execution) -> bool:
    """Whether it came from Linear, itself or as the repair of one that did."""
    return execution.origin is not None and execution.origin.get("source") == SOURCE
