"""Leases: renewed together, given up in time, and never worth anything to who has lost them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from pilot.dispatch.dispatcher import Limits
from pilot.domain.errors import StoreError
from pilot.domain.execution import Execution, Status
from pilot.domain.outcome import Ending, Outcome
from pilot.domain.ports import Finish, Held
from tests.core.stage import SECOND, Stage, Stubborn, Through, Work, until

LEASE = 2.4
SHORT = Limits(lease=LEASE, poll_interval=0.05)
"""Heartbeats every 800 ms, the self-fence at 1,440 ms. The clock of the store stands still."""


class Heart(Through):
    """A heartbeat that can fail, or hang; remembers when each good one was sent."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage.queue)
        self.sick = ""
        self.fails = 10**6
        self.good: list[float] = []
        self.statements = 0

    async def heartbeat(self, node: str, lease: int) -> list[Held]:
        sent = asyncio.get_running_loop().time()
        if self.sick and self.fails:
            self.fails -= 1
            if self.sick == "hangs":
                await asyncio.Event().wait()
            raise StoreError("no answer")
        held = await super().heartbeat(node, lease)
        self.good.append(sent)
        return held


async def test_one_heartbeat_renews_every_lease_of_the_node(stage: Stage) -> None:
    works = {f"p{n}": Work() for n in range(4)}
    stage.script.acts.update(works)
    ids = [await stage.task(await stage.project(name), name) for name in works]
    queue = Heart(stage)

    async with stage.dispatcher(queue=queue, limits=SHORT):
        await stage.reach(Status.RUNNING, *ids)
        stage.clock.advance(100)
        before = queue.calls["heartbeat"]
        await until(lambda: queue.calls["heartbeat"] == before + 1)
        await until(lambda: len(queue.good) > before)
        rows = [await stage.row(id) for id in ids]
        nodes = await stage.queue.nodes()
        for work in works.values():
            work.go.set()
        await stage.reach(Status.COMPLETED, *ids)

    end = stage.clock.now + int(LEASE * SECOND)
    assert {row.lease_until for row in rows} == {end}
    assert [until for _, until in nodes] == [end]


async def test_a_run_outlives_its_first_lease_by_far(stage: Stage) -> None:
    api = await stage.project("api")
    stage.script.acts["T-0"] = work = Work()
    id = await stage.task(api, "T-0")
    queue = Heart(stage)

    async with stage.dispatcher(queue=queue, limits=SHORT), stage.dispatcher(limits=SHORT):
        await work.begun.wait()
        for _ in range(2):
            beats = len(queue.good)
            stage.clock.advance(1600)
            await until(lambda beats=beats: len(queue.good) > beats + 1)  # type: ignore[misc]
        work.go.set()
        (row,) = await stage.reach(Status.COMPLETED, id)

    assert (row.attempt, work.cancels) == (1, 0)


@pytest.mark.parametrize("sick", ["fails", "hangs"])
async def test_who_can_not_renew_ends_its_runs_before_the_lease_does(stage: Stage, sick: str) -> None:
    api = await stage.project("api")
    stage.script.acts["T-0"] = work = Stubborn(Outcome(ending=Ending.DONE), ignores=10**6)
    id = await stage.task(api, "T-0")
    queue = Heart(stage)

    async with stage.dispatcher(queue=queue, limits=SHORT):
        await work.begun.wait()
        await until(lambda: queue.good)
        queue.sick = sick
        await until(lambda: work.cancels)
        now = asyncio.get_running_loop().time()
        assert now - queue.good[-1] < LEASE
        work.go.set()  # a result, though too late
        await until(lambda: not stage.script.running)
        for _ in range(20):
            await asyncio.sleep(0)
        row = await stage.row(id)
        queue.sick = ""

    assert (row.status, row.outcome) == (Status.RUNNING, None)
    assert queue.calls["finish"] == 0 or row.fence < (await stage.row(id)).fence


async def test_one_lost_heartbeat_ends_nothing(stage: Stage) -> None:
    api = await stage.project("api")
    stage.script.acts["T-0"] = work = Work()
    id = await stage.task(api, "T-0")
    queue = Heart(stage)

    async with stage.dispatcher(queue=queue, limits=SHORT):
        await work.begun.wait()
        await until(lambda: queue.good)
        queue.sick, queue.fails = "fails", 1
        beats = len(queue.good)
        await until(lambda: len(queue.good) > beats + 1)
        work.go.set()
        await stage.reach(Status.COMPLETED, id)

    assert work.cancels == 0


async def test_what_was_given_up_runs_again_when_the_store_is_back(stage: Stage) -> None:
    """Its lease is alive again with the next heartbeat, and no run stands for it: it must not stay so."""
    api = await stage.project("api")
    stage.script.acts["T-0"] = work = Work()
    id, behind = await stage.task(api, "T-0"), await stage.task(api, "behind")
    queue = Heart(stage)

    async with stage.dispatcher(queue=queue, limits=SHORT):
        await work.begun.wait()
        queue.sick = "fails"
        await until(lambda: work.cancels)
        work.go.set()
        queue.sick = ""
        rows = await stage.reach(Status.COMPLETED, id, behind)

    assert (rows[0].attempt, rows[0].failures, rows[0].losses) == (2, 0, 0)
    assert stage.script.order == ["T-0", "T-0", "behind"]


class BreaksAtFinish(Through):
    """A bug that nobody has thought of, in the way of every end of the first attempts."""

    def __init__(self, stage: Stage, times: int) -> None:
        super().__init__(stage.queue)
        self.times = times

    async def finish(self, finish: Finish) -> Execution | None:
        if self.times:
            self.times -= 1
            raise RuntimeError("a bug")
        return await super().finish(finish)


async def test_a_claim_whose_lane_crashed_does_not_stay_for_ever(stage: Stage) -> None:
    api = await stage.project("api")
    id, behind = await stage.task(api, "T-0"), await stage.task(api, "behind")

    async with stage.dispatcher(queue=BreaksAtFinish(stage, 2), limits=SHORT):
        rows = await stage.reach(Status.COMPLETED, id, behind)

    assert (rows[0].attempt, rows[0].failures) == (2, 0)


@pytest.mark.parametrize("late", ["result", "cancelled"])
async def test_who_lost_its_run_to_another_node_ends_it_and_writes_nothing(stage: Stage, late: str) -> None:
    api = await stage.project("api")
    old = Stubborn(Outcome(ending=Ending.DONE, head_sha="old"), ignores=10**6 if late == "result" else 0)
    new = Work(Outcome(ending=Ending.DONE, head_sha="new"))
    id = await stage.task(api, "T-0")
    first = stage.node()

    async def act(execution: Execution) -> Outcome:
        return await (old if execution.node == first.id else new)(execution)

    stage.script.acts["T-0"] = act
    async with stage.dispatcher(node=first, limits=SHORT):
        await old.begun.wait()
        # A second node takes the first for dead, as a clock that jumped or a sleeping machine can make it.
        async with stage.dispatcher(alive=lambda node: node.id != first.id):
            await new.begun.wait()
            taken = await stage.row(id)
            await until(lambda: old.cancels, "its heartbeat tells it")
            old.go.set()
            await until(lambda: len(stage.script.running) == 1)
            for _ in range(20):
                await asyncio.sleep(0)
            assert await stage.row(id) == taken
            new.go.set()
            (row,) = await stage.reach(Status.COMPLETED, id)

    assert (row.head_sha, row.attempt, row.fence) == ("new", 2, 2)


async def test_a_result_under_an_old_fence_is_refused_even_before_the_heartbeat_tells(stage: Stage) -> None:
    api = await stage.project("api")
    old, new = Work(Outcome(ending=Ending.DONE, head_sha="old")), Work(Outcome(ending=Ending.DONE, head_sha="new"))
    id = await stage.task(api, "T-0")
    first = stage.node()

    async def act(execution: Execution) -> Outcome:
        return await (old if execution.node == first.id else new)(execution)

    stage.script.acts["T-0"] = act
    async with stage.dispatcher(node=first, limits=Limits(poll_interval=60.0, lease=600.0)):
        await old.begun.wait()
        async with stage.dispatcher(alive=lambda node: node.id != first.id):
            await new.begun.wait()
            taken = await stage.row(id)
            old.go.set()
            await until(lambda: len(stage.script.running) == 1)
            for _ in range(20):
                await asyncio.sleep(0)
                assert await stage.row(id) == taken
            with pytest.raises(Exception, match="no longer this run's"):
                await stage.store.journal.note(stage.script.spans[0].execution, phase="late")
            new.go.set()
            (row,) = await stage.reach(Status.COMPLETED, id)

    assert row.head_sha == "new"


async def test_fences_rise_with_every_claim_of_the_project(stage: Stage) -> None:
    api = await stage.project("api")
    ids = [await stage.task(api, f"T-{n}") for n in range(3)]
    node = stage.node()
    fences = []
    for _ in range(2):
        fences.append((await stage.claimed(api, node)).fence)
        await stage.queue.recover([node.id], "gone")
    async with stage.dispatcher():
        await stage.reach(Status.COMPLETED, *ids)
    fences += [span.execution.fence for span in stage.script.spans]

    assert fences == [1, 2, 3, 4, 5]


class SlowClaim(Through):
    """The answer to a claim takes longer than a heartbeat."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage.queue)
        self.beats = 0
        self.answer = asyncio.Event()

    async def heartbeat(self, node: str, lease: int) -> list[Held]:
        held = await super().heartbeat(node, lease)
        self.beats += bool(held)
        return held

    async def claim(self, node: str, **how: Any) -> list[Execution]:
        found = await super().claim(node, **how)
        if found:
            await self.answer.wait()
        return found


async def test_a_claim_on_its_way_is_not_taken_for_one_that_nobody_runs(stage: Stage) -> None:
    api = await stage.project("api")
    id = await stage.task(api, "T-0")
    queue = SlowClaim(stage)

    async with stage.dispatcher(queue=queue, limits=SHORT):
        await until(lambda: queue.beats == 1)
        queue.answer.set()
        (row,) = await stage.reach(Status.COMPLETED, id)

    assert row.attempt == 1


async def test_who_can_not_renew_begins_nothing_until_it_can(stage: Stage) -> None:
    """When the lease of what it would claim has begun, only the store knows."""
    api, web = await stage.project("api"), await stage.project("web")
    first, second = Work(), Work()
    stage.script.acts.update({"T-0": first, "T-1": second})
    queue = Heart(stage)
    queue.sick = "fails"
    await stage.task(api, "T-0")

    async with stage.dispatcher(queue=queue, limits=SHORT):
        await until(lambda: first.cancels)
        first.go.set()
        claims = queue.calls["claim"]
        id = await stage.task(web, "T-1")
        left = queue.fails
        await until(lambda: queue.fails < left - 5)
        assert queue.calls["claim"] == claims
        assert not second.begun.is_set()

        queue.sick = ""
        second.go.set()
        await stage.reach(Status.COMPLETED, id)

    assert queue.good


@pytest.mark.parametrize("how", ["claim", "finish"])
async def test_a_claim_that_comes_when_the_leases_are_lost_is_given_back(stage: Stage, how: str) -> None:
    api = await stage.project("api")
    first = Work()
    stage.script.acts["T-0"] = first
    ids = [await stage.task(api, "T-0"), await stage.task(api, "T-1")]
    queue = LateClaim(stage, how)

    async with stage.dispatcher(queue=queue, limits=SHORT):
        first.go.set()
        await queue.claimed.wait()
        queue.sick = "fails"
        await asyncio.sleep(LEASE)  # they are lost by now
        queue.answer.set()
        begun, left = len(stage.script.order), queue.fails
        await until(lambda: queue.fails < left - 3)
        assert len(stage.script.order) == begun
        queue.sick = ""
        rows = await stage.reach(Status.COMPLETED, *ids)

    assert (rows[0].failures, rows[1].failures) == (0, 0)
    assert [row.attempt for row in rows] == ([2, 1] if how == "claim" else [1, 2])


class LateClaim(Heart):
    """The answer to a claim comes when nobody has renewed for long."""

    def __init__(self, stage: Stage, how: str) -> None:
        super().__init__(stage)
        self.how, self.claimed, self.answer = how, asyncio.Event(), asyncio.Event()

    async def claim(self, node: str, **how: Any) -> list[Execution]:
        found = await super().claim(node, **how)
        if found and self.how == "claim":
            self.claimed.set()
            await self.answer.wait()
        return found

    async def finish(self, finish: Finish) -> Execution | None:
        found = await super().finish(finish)
        if found is not None and self.how == "finish":
            self.claimed.set()
            await self.answer.wait()
        return found
