"""What a node does that hears of new work: it claims first, and looks a little later."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from pilot.dispatch.courtesy import Courtesy
from pilot.dispatch.run import Attempts
from pilot.dispatch.turns import Turns
from pilot.dispatch.watch import Watch
from pilot.dispatch.worker import ProjectWorker
from pilot.domain.execution import Execution, Status
from tests.core.stage import MINUTE, Stage, Through, Work, until

NEW = {"+1", "1"}


@dataclass
class Node:
    """A watch whose looks, cancels and wake-ups are counted; only signals make it look."""

    ready: list[int] = field(default_factory=list)
    wakes: list[tuple[int, bool]] = field(default_factory=list)
    looks: int = 0
    heeded: int = 0
    turns: Turns = field(default_factory=lambda: Turns(1))
    courtesy: Courtesy = field(default_factory=Courtesy)

    async def look(self) -> tuple[list[int], int | None]:
        self.looks += 1
        return self.ready, None

    async def changed(self) -> bool:
        return False

    async def heed(self) -> None:
        self.heeded += 1

    def wake(self, project_id: int, *, seen: bool) -> None:
        self.wakes.append((project_id, seen))

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[Watch]:
        watch = Watch(
            self.look, self.changed, self.heed, self.wake, turns=self.turns, courtesy=self.courtesy,
            clock=lambda: 0, poll_interval=60.0,
        )  # fmt: skip
        running = asyncio.create_task(watch.run())
        watch.tell({"*"})
        await until(lambda: self.looks == 1)
        await asyncio.sleep(0.01)
        self.wakes.clear()
        try:
            yield watch
            assert not running.done(), running
        finally:
            running.cancel()
            await asyncio.wait([running])


async def test_it_claims_in_the_moment_it_is_told_and_looks_later() -> None:
    node = Node(ready=[1])

    async with node.watching() as watch:
        watch.tell(NEW)
        assert node.wakes == [(1, True)]
        assert node.looks == 1
        await until(lambda: node.looks == 2)

    watch.tell(NEW)
    assert node.wakes[1:] == [(1, False)], "it watches no more, and nothing but the look woke anybody"


async def test_nothing_is_claimed_before_it_watches() -> None:
    """A dead node's agents may still be in the repository."""
    node = Node()
    watch = Watch(
        node.look, node.changed, node.heed, node.wake, turns=node.turns, courtesy=node.courtesy,
        clock=lambda: 0, poll_interval=60.0,
    )  # fmt: skip

    watch.tell(NEW)

    assert node.wakes == []


async def test_more_that_comes_before_the_look_is_not_missed() -> None:
    node = Node(ready=[1])

    async with node.watching() as watch:
        watch.tell(NEW)
        await until(lambda: node.wakes == [(1, True)])
        await node.turns.take()
        waiting = asyncio.create_task(node.turns.take(2))  # the look is later than it was to be
        await asyncio.sleep(0)
        node.wakes.clear()
        watch.tell({"1"})
        await until(lambda: node.looks == 2)
        await until(lambda: node.wakes, "its worker may have asked before that came")
        waiting.cancel()

    assert node.wakes == [(1, False)], "it was claimed from a moment ago: nothing there does not mean too late"


async def test_a_look_waits_for_new_work_but_not_long(monkeypatch: pytest.MonkeyPatch) -> None:
    node = Node()

    async with node.watching() as watch:
        for _ in range(50):  # without an end
            watch.tell(NEW)
            await asyncio.sleep(0.002)
            if node.looks > 1:
                break

    assert len(node.wakes) > 1
    assert node.looks == 2


async def test_what_came_with_new_work_is_not_forgotten() -> None:
    node = Node()

    async with node.watching() as watch:
        before = node.heeded
        watch.tell(NEW | {"cancel"})
        await until(lambda: node.heeded > before)
        watch.tell({"+9", "9"})  # no project of this node: its wake-up is for nothing
        watch.tell({"2"})
        await until(lambda: node.looks == 3)

    assert (1, True) in node.wakes


@pytest.mark.parametrize(
    "token", ["+", "+-1", "+²", "+1.0", "++1", "+٣", "9" * 20, "+" + "9" * 20, "9" * 5000, "+" + "9" * 5000, "\x00"]
)
async def test_rubbish_from_outside_does_no_harm(token: str) -> None:
    node = Node(ready=[1])

    async with node.watching() as watch:
        watch.tell({token})
        await asyncio.sleep(0.05)
        watch.tell(NEW)
        await until(lambda: (1, True) in node.wakes)


@pytest.mark.parametrize("late", [False, True])
async def test_who_came_too_late_of_late_only_looks(late: bool) -> None:
    node = Node()

    async with node.watching() as watch:
        node.courtesy.came(not late)
        watch.tell(NEW)
        await until(lambda: node.looks == 2)

    assert node.wakes == ([] if late else [(1, True)])


async def test_a_node_without_room_looks_before_it_claims() -> None:
    node = Node(turns=Turns(0))
    waiting = asyncio.create_task(node.turns.take(2))

    async with node.watching() as watch:
        watch.tell(NEW)
        await until(lambda: node.looks == 2)
        waiting.cancel()

    assert node.wakes == []


class Slow(Through):
    """The first claim's answer comes when the test says."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage.queue)
        self.asked, self.answer = asyncio.Event(), asyncio.Event()

    async def claim(self, node: str, **how: Any) -> list[Execution]:
        found = await super().claim(node, **how)
        self.asked.set()
        await self.answer.wait()
        return found


async def test_what_is_seen_while_the_project_fills_up_is_no_reason_to_ask_for_it_later(stage: Stage) -> None:
    api = await stage.project("api")
    queue, came = Slow(stage), list[bool]()
    stage.script.acts["T-0"] = work = Work()
    await stage.task(api, "T-0")
    worker = ProjectWorker(
        api, queue, Attempts(queue, stage.script, stage.clock, lambda: 0.0), Turns(2), node="n1", lease=MINUTE,
        own=False, admitting=lambda: True, came=came.append,
    )  # fmt: skip
    worker.wake(seen=True)

    serving = asyncio.create_task(worker.run())
    await queue.asked.wait()
    last = await stage.task(api, "T-1")
    worker.wake(seen=True)  # and what it has seen there is done in the turn of the first
    queue.answer.set()
    await work.begun.wait()
    work.go.set()
    await stage.reach(Status.COMPLETED, last)
    await until(lambda: queue.calls["claim"] == 2 and not worker.busy)
    await asyncio.sleep(0.05)
    serving.cancel()
    await asyncio.wait([serving])

    assert came == [True], "nobody was quicker"
