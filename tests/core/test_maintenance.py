"""Recovery: what dead nodes held is taken back, by process here and by lease elsewhere, and nothing else is."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection
from typing import Any

import pytest

from pilot.dispatch.dispatcher import Limits
from pilot.domain.errors import StoreError
from pilot.domain.execution import Execution, Status
from pilot.domain.outcome import Ending, FailureClass, Outcome, Question, failed
from pilot.domain.ports import Node, NodeKind
from pilot.domain.task import Project
from tests.core.stage import MINUTE, SECOND, Stage, Through, Work, in_turn, returns, until

SOON = Limits(lease=0.2, poll_interval=0.05)
"""Recovery every 50 ms. Leases are judged by the clock of the test, which stands still."""


STEADY = Limits(lease=4.0, poll_interval=0.05)
"""Recovery every 300 ms, heartbeats every 400 ms."""
HOUR = 60 * MINUTE


class Reaper:
    """Stands for the processes of this machine: who lives, and what was ended."""

    def __init__(self, stage: Stage, *dead: Node) -> None:
        self.stage = stage
        self.dead = {node.id for node in dead}
        self.away: set[str] = set()
        self.ended: list[tuple[int, int]] = []
        self.errors: list[Exception] = []

    def alive(self, node: Node) -> bool | None:
        return None if node.id in self.away else node.id not in self.dead

    async def end_processes(self, id: int, fence: int) -> Collection[int]:
        row = await self.stage.row(id)
        assert (row.status, row.fence) == (Status.RUNNING, fence), "its row is not free before they are gone"
        assert not self.stage.script.running, "and nobody works there yet"
        if self.errors:
            raise self.errors.pop(0)
        self.ended.append((id, fence))
        return [4711]

    @property
    def seams(self) -> dict[str, Any]:
        return {"alive": self.alive, "end_processes": self.end_processes}


async def left_behind(stage: Stage, project: Project, node: Node, task_id: str = "T-1", **values: Any) -> Execution:
    """An execution in the hands of a node that will never speak again."""
    await stage.queue.start_node(node, MINUTE)
    await stage.task(project, task_id, **values)
    return await stage.claimed(project, node)


async def test_what_a_dead_node_ran_is_taken_back_at_once(stage: Stage) -> None:
    api = await stage.project("api")
    dead = stage.node()
    lost = await left_behind(stage, api, dead)
    await stage.store.journal.note(lost, session_id="s-1")
    await stage.task(api, "behind")
    reaper = Reaper(stage, dead)

    async with stage.dispatcher(**reaper.seams):
        (row,) = await stage.reach(Status.COMPLETED, lost.id)

    assert reaper.ended == [(lost.id, lost.fence)]
    assert (row.attempt, row.failures) == (2, 0)
    assert stage.script.order[0] == "T-1", "it goes on before those behind it"
    assert stage.script.spans[0].execution.session_id == "s-1"
    types = [type for type, _ in await stage.events(lost.id)]
    assert types[2:4] == ["execution.lost", "execution.requeued"]
    stopped = [data for type, data in await stage.events() if type == "node.stopped"]
    assert stopped[0] == {"node": dead.id, "reason": "its process is gone"}


async def test_nothing_is_admitted_before_what_was_left_is_cleared(stage: Stage) -> None:
    api, web = await stage.project("api"), await stage.project("web")
    dead = stage.node()
    lost = await left_behind(stage, api, dead)
    other = await stage.task(web, "other")
    reaper, gone = Reaper(stage, dead), asyncio.Event()

    async def slowly(id: int, fence: int) -> Collection[int]:
        await gone.wait()
        return await reaper.end_processes(id, fence)

    dispatcher = stage.dispatcher(alive=reaper.alive, end_processes=slowly)
    running = asyncio.create_task(dispatcher.run())
    for _ in range(20):
        assert (await stage.row(other)).status is Status.QUEUED
    assert not dispatcher.accepting
    gone.set()
    await stage.reach(Status.COMPLETED, lost.id, other)
    dispatcher.drain()
    await running


async def test_what_a_living_node_runs_is_left_alone(stage: Stage) -> None:
    api = await stage.project("api")
    busy = await left_behind(stage, api, stage.node())
    reaper = Reaper(stage)

    async with stage.dispatcher(limits=SOON, **reaper.seams):
        stage.clock.advance(MINUTE)  # not a millisecond past its lease
        for _ in range(20):
            await asyncio.sleep(0.01)
            assert await stage.row(busy.id) == busy

    assert reaper.ended == []


async def test_another_hosts_node_is_judged_by_its_lease(stage: Stage) -> None:
    api = await stage.project("api")
    node = stage.node(host="there")
    lost = await left_behind(stage, api, node)
    reaper = Reaper(stage)
    reaper.away.add(node.id)

    async with stage.dispatcher(limits=SOON, **reaper.seams):
        stage.clock.advance(MINUTE)
        for _ in range(20):
            await asyncio.sleep(0.01)
            assert (await stage.row(lost.id)).node == node.id
        stage.clock.advance(1)
        (row,) = await stage.reach(Status.COMPLETED, lost.id)

    assert (row.attempt, row.losses, row.failures) == (2, 0, 0)
    assert reaper.ended == [(lost.id, lost.fence)]
    (told,) = [data for type, data in await stage.events(lost.id) if type == "execution.lost"]
    assert told["why"] == f"node {node.id} was lost: its lease ended"


async def test_a_node_that_dies_later_is_found(stage: Stage) -> None:
    api = await stage.project("api")
    node = stage.node()
    lost = await left_behind(stage, api, node)
    reaper = Reaper(stage)

    async with stage.dispatcher(limits=SOON, **reaper.seams):
        for _ in range(5):
            await asyncio.sleep(0.01)
            assert (await stage.row(lost.id)).status is Status.RUNNING
        reaper.dead.add(node.id)
        await stage.reach(Status.COMPLETED, lost.id)
        nodes = await stage.queue.nodes()
        assert [n.id for n, _ in nodes] != [node.id]
        assert len(nodes) == 1


class Blind(Through):
    """One read fails, so many times."""

    def __init__(self, stage: Stage, what: str, times: int) -> None:
        super().__init__(stage.queue)
        self.what, self.times = what, times

    async def _see(self, what: str, call: Callable[[], Any]) -> Any:
        if what == self.what and self.times:
            self.times -= 1
            raise StoreError(f"{what}: can't read")
        return await call()

    async def nodes(self) -> list[tuple[Node, int]]:
        found: list[tuple[Node, int]] = await self._see("nodes", self._queue.nodes)
        return found

    async def held_by(self, nodes: Collection[str]) -> list[Execution]:
        found: list[Execution] = await self._see("held_by", lambda: self._queue.held_by(nodes))
        return found


@pytest.mark.parametrize("what", ["nodes", "held_by"])
async def test_a_failed_read_at_the_start_is_not_taken_for_nothing_there(stage: Stage, what: str) -> None:
    api = await stage.project("api")
    dead = stage.node()
    lost = await left_behind(stage, api, dead)
    behind = await stage.task(api, "behind")
    reaper = Reaper(stage, dead)

    with pytest.raises(StoreError, match=what):
        async with stage.dispatcher(queue=Blind(stage, what, 1), **reaper.seams):
            raise AssertionError("never entered")

    assert await stage.row(lost.id) == lost
    assert (await stage.row(behind)).attempt == 0
    assert reaper.ended == []


@pytest.mark.parametrize("what", ["nodes", "held_by"])
async def test_a_failed_read_later_changes_nothing_until_one_succeeds(stage: Stage, what: str) -> None:
    api = await stage.project("api")
    node = stage.node()
    lost = await left_behind(stage, api, node)
    reaper = Reaper(stage)
    queue = Blind(stage, what, 0)

    async with stage.dispatcher(queue=queue, limits=SOON, **reaper.seams):
        reaper.dead.add(node.id)
        queue.times = 3
        await until(lambda: queue.times == 1)
        assert await stage.row(lost.id) == lost
        await stage.reach(Status.COMPLETED, lost.id)


async def test_a_repository_with_processes_that_can_not_be_judged_stays_closed(stage: Stage) -> None:
    api, web = await stage.project("api"), await stage.project("web")
    dead, also = stage.node(), stage.node()
    stuck, lost = await left_behind(stage, api, dead), await left_behind(stage, web, also, "T-2")
    reaper = Reaper(stage, dead, also)
    reaper.errors = [OSError(24, "Too many open files")] * 3

    stage.script.acts["T-2"] = work = Work()
    async with stage.dispatcher(limits=SOON, alive=reaper.alive, end_processes=_patient(reaper, stuck.id)):
        await work.begun.wait()
        assert await stage.row(stuck.id) == stuck
        await stage.reach(Status.COMPLETED, stuck.id)
        work.go.set()
        await stage.reach(Status.COMPLETED, lost.id)

    assert reaper.errors == []


def _patient(reaper: Reaper, id: int) -> Callable[[int, int], Any]:
    """Fails for one execution only, while the reaper has errors left."""

    async def end(execution: int, fence: int) -> Collection[int]:
        if execution == id and reaper.errors:
            raise reaper.errors.pop()
        return []

    return end


async def test_a_task_under_which_nodes_keep_dying_is_held_for_a_person(stage: Stage) -> None:
    api = await stage.project("api")
    id = await stage.task(api, "T-1")
    behind = await stage.task(api, "behind")
    row = await stage.row(id)
    for n in range(1, 6):
        node = stage.node()
        await stage.queue.start_node(node, MINUTE)
        assert (await stage.claimed(api, node)).id == id
        reaper = Reaper(stage, node)
        dispatcher = stage.dispatcher(**reaper.seams)
        dispatcher.drain()
        await dispatcher.run()
        row = await stage.row(id)
        assert (row.losses, row.failures) == (n, 0)
        assert row.status is (Status.QUEUED if n < 5 else Status.NEEDS_HUMAN)

    assert "5 times in a row" in (row.reason or "")
    async with stage.dispatcher():
        await stage.reach(Status.COMPLETED, behind)
        await stage.queue.answer(id, "go on", by="ann")
        await stage.reach(Status.COMPLETED, id)


async def test_an_attempt_that_ends_makes_the_losses_forgotten(stage: Stage) -> None:
    api = await stage.project("api")
    node = stage.node()
    lost = await left_behind(stage, api, node)
    red = failed(FailureClass.NETWORK, "reset")
    stage.script.acts["T-1"] = in_turn(returns(red), returns(Outcome(ending=Ending.DONE)))

    async with stage.dispatcher(**Reaper(stage, node).seams):
        await until(lambda: stage.script.spans and stage.script.spans[0].ended)
        (row,) = await stage.reach(Status.QUEUED, lost.id)
        assert row.losses == 0
        stage.clock.advance(MINUTE)
        await stage.reach(Status.COMPLETED, lost.id)


async def test_a_cancel_that_its_node_never_heard_is_heeded(stage: Stage) -> None:
    api = await stage.project("api")
    dead = stage.node()
    lost = await left_behind(stage, api, dead)
    await stage.queue.cancel(lost.id, by="ann", reason="not needed")

    async with stage.dispatcher(**Reaper(stage, dead).seams):
        (row,) = await stage.reach(Status.CANCELLED, lost.id)

    assert row.reason == "not needed"
    assert stage.script.order == []


@pytest.mark.parametrize("state", ["queued", "blocked", "running"])
async def test_a_direct_run_ends_with_its_process(stage: Stage, state: str) -> None:
    api, web = await stage.project("api"), await stage.project("web")
    run = stage.node(NodeKind.RUN)
    await stage.queue.start_node(run, MINUTE)
    after = (await stage.task(web, "parent", available_at=stage.clock.now + MINUTE),) if state == "blocked" else ()
    id = await stage.task(api, "mine", reserved_for=run.id, after=after)
    behind = await stage.task(api, "behind")
    if state == "running":
        claim = await stage.queue.claim(run.id, lease=MINUTE, projects=(api.id,), own=True)
        assert [execution.id for execution in claim] == [id]
    assert (await stage.row(id)).status == state

    async with stage.dispatcher(**Reaper(stage, run).seams):
        await stage.reach(Status.CANCELLED, id)
        await stage.reach(Status.COMPLETED, behind)

    assert "mine" not in stage.script.order


async def test_a_direct_run_elsewhere_ends_with_its_lease(stage: Stage) -> None:
    api = await stage.project("api")
    run = stage.node(NodeKind.RUN, host="there")
    await stage.queue.start_node(run, MINUTE)
    id, behind = await stage.task(api, "mine", reserved_for=run.id, priority=0), await stage.task(api, "behind")
    reaper = Reaper(stage)
    reaper.away.add(run.id)

    async with stage.dispatcher(limits=SOON, **reaper.seams):
        for _ in range(20):
            await asyncio.sleep(0.01)
            assert (await stage.row(id)).status is Status.QUEUED
        stage.clock.advance(MINUTE + 1)
        await stage.reach(Status.CANCELLED, id)
        await stage.reach(Status.COMPLETED, behind)


async def test_a_direct_run_that_asks_outlives_its_process(stage: Stage) -> None:
    """Exit code 3: whoever answers later lets another node go on."""
    api = await stage.project("api")
    asks = returns(Outcome(ending=Ending.QUESTION, question=Question("Which?"), session_id="s-1"))
    stage.script.acts["mine"] = in_turn(asks, returns(Outcome(ending=Ending.DONE)))
    run = stage.node(NodeKind.RUN)
    async with stage.dispatcher(node=run) as direct:
        id = await stage.task(api, "mine", reserved_for=run.id, max_attempts=1)
        await direct.wait_for_execution(id)

    async with stage.dispatcher(**Reaper(stage, run).seams):
        assert (await stage.row(id)).status is Status.NEEDS_HUMAN
        await stage.queue.answer(id, "this one", by="ann")
        await stage.reach(Status.COMPLETED, id)

    assert stage.script.spans[-1].execution.session_id == "s-1"


async def test_two_nodes_that_find_the_same_dead_one_take_it_back_once(stage: Stage) -> None:
    api = await stage.project("api")
    dead = stage.node()
    lost = await left_behind(stage, api, dead)
    reaper = Reaper(stage, dead)
    stage.script.acts["T-1"] = work = Work()

    first = stage.dispatcher(limits=SOON, alive=reaper.alive)
    second = stage.dispatcher(limits=SOON, alive=reaper.alive)
    runs = [asyncio.create_task(node.run()) for node in (first, second)]
    await work.begun.wait()
    assert (await stage.row(lost.id)).attempt == 2
    work.go.set()
    await stage.reach(Status.COMPLETED, lost.id)
    for node in (first, second):
        node.drain()
    await asyncio.gather(*runs)

    assert len(stage.script.spans) == 1
    assert [type for type, _ in await stage.events(lost.id)].count("execution.lost") == 1


async def test_a_park_that_nobody_tries_is_forgotten_after_a_week(stage: Stage) -> None:
    api = await stage.project("api")
    limited = failed(FailureClass.RATE_LIMIT, "429", retry_at=stage.clock.now + 10 * SECOND)
    stage.script.acts["T-1"] = returns(limited)
    id = await stage.task(api, "T-1")

    async with stage.dispatcher(limits=SOON):
        await until(lambda: stage.script.spans and stage.script.spans[0].ended)
        await stage.reach(Status.QUEUED, id)
        await stage.queue.cancel(id, by="ann")
        stage.clock.advance(8 * 24 * HOUR)
        while await stage.parks():
            await asyncio.sleep(0.01)

    opened = [data for type, data in await stage.events() if type == "backend.unparked"]
    assert opened == [{"backend": "claude", "account": "", "by": "time"}]


@pytest.mark.parametrize("hours", [2, -2])
@pytest.mark.parametrize("nodes", [1, 2])
async def test_a_wall_clock_that_jumps_costs_a_living_node_nothing(stage: Stage, nodes: int, hours: int) -> None:
    api, web = await stage.project("api"), await stage.project("web")
    stage.script.acts["T-1"] = work = Work()
    id = await stage.task(api, "T-1")
    direct = stage.node(NodeKind.RUN)
    await stage.queue.start_node(direct, MINUTE)
    waits = await stage.task(web, "waits", reserved_for=direct.id, available_at=stage.clock.now + 10 * HOUR)
    reaper, beats = Reaper(stage), Through(stage.queue)

    async with contextlib.AsyncExitStack() as up:
        for _ in range(nodes):
            # The first to look at the leases after the jump is a recovery, for heartbeats are rarer.
            await up.enter_async_context(stage.dispatcher(queue=beats, limits=STEADY, **reaper.seams))
        await work.begun.wait()
        stage.clock.advance(hours * HOUR)
        before = beats.calls["heartbeat"]
        await stage.queue.heartbeat(direct.id, MINUTE)
        await until(lambda: beats.calls["heartbeat"] >= before + 2 * nodes)
        assert (await stage.row(waits)).status is Status.QUEUED
        work.go.set()
        (row,) = await stage.reach(Status.COMPLETED, id)
        assert len(await stage.queue.nodes()) == nodes + 1
        await stage.queue.leave(direct.id)

    assert (row.attempt, row.losses, work.cancels) == (1, 0, 0)
    assert reaper.ended == []


async def test_a_process_that_lives_and_is_silent_loses_what_it_holds(stage: Stage) -> None:
    """Stopped in a terminal, or hung: its lease ends, its direct run makes way."""
    api, web = await stage.project("api"), await stage.project("web")
    hung = stage.node(NodeKind.RUN)
    lost = await left_behind(stage, api, hung)
    mine = await stage.task(web, "mine", reserved_for=hung.id, priority=-1)
    behind = await stage.task(web, "behind")
    reaper = Reaper(stage)

    async with stage.dispatcher(limits=SOON, **reaper.seams):
        stage.clock.advance(MINUTE + 1)
        await stage.reach(Status.COMPLETED, lost.id, behind)
        await stage.reach(Status.CANCELLED, mine)

    assert reaper.ended == [(lost.id, lost.fence)]


async def test_what_a_worker_held_comes_back_after_its_own_lease(stage: Stage) -> None:
    api = await stage.project("api")
    id = await stage.task(api, "T-1")
    (claim,) = await stage.store.work.claim("w", lease=5 * SECOND)
    reaper = Reaper(stage)

    async with stage.dispatcher(limits=SOON, **reaper.seams):
        stage.clock.advance(5 * SECOND)  # not a millisecond past its lease
        for _ in range(20):
            await asyncio.sleep(0.01)
            assert (await stage.row(id)).node == "worker:w"
        stage.clock.advance(1)
        (row,) = await stage.reach(Status.COMPLETED, id)

    assert (row.attempt, row.failures) == (2, 0)
    assert reaper.ended == [(id, claim.fence)], "it may be one of this machine"


async def test_a_worker_that_speaks_in_time_keeps_its_work_though_the_clock_jumps(stage: Stage) -> None:
    api = await stage.project("api")
    id = await stage.task(api, "T-1")
    (claim,) = await stage.store.work.claim("w")
    beats = Through(stage.queue)

    async with stage.dispatcher(queue=beats, limits=STEADY, **Reaper(stage).seams):
        stage.clock.advance(HOUR)
        before = beats.calls["heartbeat"]
        for _ in range(4):
            await stage.store.work.heartbeat(id, "w", claim.fence, lease=SECOND)
            await until(lambda n=beats.calls["heartbeat"]: beats.calls["heartbeat"] > n)  # type: ignore[misc]
        assert beats.calls["heartbeat"] > before
        row = await stage.row(id)
        assert (row.status, row.node, row.losses) == (Status.RUNNING, "worker:w", 0)
        await stage.store.work.release(id, "w", claim.fence)
        await stage.reach(Status.COMPLETED, id)


async def test_a_worker_is_listed_for_an_hour_after_its_lease(stage: Stage) -> None:
    await stage.store.work.claim("w", lease=SECOND)
    reaper = Reaper(stage)
    reaper.away.add("worker:w")

    async with stage.dispatcher(limits=SOON, **reaper.seams):
        stage.clock.advance(SECOND + HOUR)
        for _ in range(20):
            await asyncio.sleep(0.01)
            assert "worker:w" in [node.id for node, _ in await stage.queue.nodes()]
        stage.clock.advance(1)
        async with asyncio.timeout(10):
            while "worker:w" in [node.id for node, _ in await stage.queue.nodes()]:
                await asyncio.sleep(0.01)
