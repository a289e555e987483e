"""How a node ends: nothing new is admitted, what runs may finish, the rest goes back and costs nothing."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from pilot.dispatch.dispatcher import Dispatcher, Limits
from pilot.domain.errors import StoreError
from pilot.domain.execution import Execution, Status
from pilot.domain.outcome import FailureClass, failed
from pilot.domain.ports import Finish, Node
from tests.core.stage import DEADLINE, Stage, Stubborn, Through, Work, until

PATIENT = Limits(drain_timeout=60.0, poll_interval=0.05)
"""Only a force ends what runs in the time that a test has."""
HASTY = Limits(drain_timeout=0.05, poll_interval=0.05)


async def ended(running: asyncio.Task[None]) -> None:
    """It returns in time, and in order."""
    async with asyncio.timeout(DEADLINE):
        await running


async def started(dispatcher: Dispatcher) -> asyncio.Task[None]:
    running = asyncio.create_task(dispatcher.run())
    await dispatcher.started(running)
    return running


async def given_back(stage: Stage, id: int) -> Execution:
    row = await stage.row(id)
    assert (row.status, row.failures, row.losses, row.streak) == (Status.QUEUED, 0, 0, 0)
    assert row.available_at <= stage.clock.now
    return row


async def test_what_runs_may_finish_and_nothing_new_begins(stage: Stage) -> None:
    api, web = await stage.project("api"), await stage.project("web")
    stage.script.acts["T-0"] = work = Work()
    id, behind = await stage.task(api, "T-0"), await stage.task(api, "behind")

    dispatcher = stage.dispatcher(limits=PATIENT)
    assert not dispatcher.accepting
    running = await started(dispatcher)
    assert dispatcher.accepting
    await work.begun.wait()
    dispatcher.drain()
    assert not dispatcher.accepting
    late = await stage.task(web, "late")
    await until(lambda: not running.done())
    (state,) = await stage.store.database.read("SELECT state FROM nodes")
    while state != ("draining",):
        (state,) = await stage.store.database.read("SELECT state FROM nodes")
    work.go.set()
    await ended(running)

    assert (await stage.row(id)).status is Status.COMPLETED
    assert stage.script.order == ["T-0"]
    assert [(await stage.row(n)).attempt for n in (behind, late)] == [0, 0]
    assert await stage.queue.nodes() == []


async def test_what_does_not_finish_goes_back_uncounted_with_its_session(stage: Stage) -> None:
    api = await stage.project("api")
    stage.script.acts["T-0"] = work = Work()
    id = await stage.task(api, "T-0")

    dispatcher = stage.dispatcher(limits=HASTY)
    running = await started(dispatcher)
    await work.begun.wait()
    (run,) = stage.script.spans
    await stage.store.journal.note(run.execution, session_id="s-1")
    dispatcher.drain()
    await ended(running)

    row = await given_back(stage, id)
    assert (row.session_id, row.attempt, row.reason) == ("s-1", 1, "shutdown")
    assert work.cancels == 1
    assert await stage.queue.nodes() == []
    (requeued,) = [data for type, data in await stage.events(id) if type == "execution.requeued"]
    assert requeued["counted"] is False

    work.go.set()
    async with stage.dispatcher():
        await stage.reach(Status.COMPLETED, id)
    assert stage.script.spans[-1].execution.session_id == "s-1"


async def test_a_force_does_not_wait_for_the_drain(stage: Stage) -> None:
    api = await stage.project("api")
    stage.script.acts["T-0"] = work = Work()
    id = await stage.task(api, "T-0")

    dispatcher = stage.dispatcher(limits=PATIENT)
    running = await started(dispatcher)
    await work.begun.wait()
    dispatcher.drain()
    dispatcher.force()
    await ended(running)

    await given_back(stage, id)


@pytest.mark.parametrize("limits", [PATIENT, HASTY])
async def test_a_force_hurries_one_that_does_not_heed_the_first_word(stage: Stage, limits: Limits) -> None:
    api = await stage.project("api")
    stage.script.acts["T-0"] = work = Stubborn(ignores=2)
    id = await stage.task(api, "T-0")

    dispatcher = stage.dispatcher(limits=limits)
    running = await started(dispatcher)
    await work.begun.wait()
    dispatcher.drain()
    for heard in (1, 2, 3):
        if limits is PATIENT or heard > 1:  # the end of the drain is the first word
            dispatcher.force()
        await until(lambda heard=heard: work.cancels == heard)  # type: ignore[misc]
    await ended(running)

    await given_back(stage, id)


async def test_a_forced_stop_does_not_keep_the_processor_busy(stage: Stage) -> None:
    api = await stage.project("api")
    stage.script.acts["T-0"] = work = Stubborn(ignores=9)
    await stage.task(api, "T-0")
    loop = asyncio.get_running_loop()

    dispatcher = stage.dispatcher(limits=PATIENT)
    running = await started(dispatcher)
    await work.begun.wait()
    dispatcher.force()
    await until(lambda: work.cancels)
    rounds, call_soon = 0, loop.call_soon

    def counted(*args: Any, **more: Any) -> asyncio.Handle:
        nonlocal rounds
        rounds += 1
        return call_soon(*args, **more)

    loop.call_soon = counted  # type: ignore[method-assign,assignment]
    try:
        await asyncio.sleep(0.2)
    finally:
        loop.call_soon = call_soon  # type: ignore[method-assign]
    work.go.set()
    await ended(running)

    assert rounds < 200


class HeldClaim(Through):
    """A claim that is committed, but whose answer comes when the test says."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage.queue)
        self.committed = asyncio.Event()
        self.answer = asyncio.Event()

    async def claim(self, node: str, **how: Any) -> list[Execution]:
        found = await super().claim(node, **how)
        if found:
            self.committed.set()
            await self.answer.wait()
        return found


@pytest.mark.parametrize("late", range(8))
async def test_a_claim_under_way_is_given_back(stage: Stage, late: int) -> None:
    api = await stage.project("api")
    stage.script.acts["T-0"] = Work()
    id = await stage.task(api, "T-0")
    queue = HeldClaim(stage)

    dispatcher = stage.dispatcher(queue=queue, limits=PATIENT)
    running = await started(dispatcher)
    await queue.committed.wait()
    dispatcher.drain()
    for _ in range(late):
        await asyncio.sleep(0)
    queue.answer.set()
    await ended(running)

    await given_back(stage, id)
    assert stage.script.order == []


async def test_a_claim_that_hangs_is_given_back_when_the_drain_is_over(stage: Stage) -> None:
    api = await stage.project("api")
    id = await stage.task(api, "T-0")
    queue = HeldClaim(stage)

    dispatcher = stage.dispatcher(queue=queue, limits=HASTY)
    running = await started(dispatcher)
    await queue.committed.wait()
    dispatcher.drain()
    await ended(running)

    await given_back(stage, id)
    assert stage.script.order == []


class DrainsAtFinish(Through):
    """The signal comes while a result, and the claim of the next one with it, is being committed."""

    dispatcher: Dispatcher

    async def finish(self, finish: Finish) -> Execution | None:
        claimed = await super().finish(finish)
        self.dispatcher.drain()
        return claimed


async def test_a_claim_that_came_with_a_result_is_given_back(stage: Stage) -> None:
    api = await stage.project("api")
    first, second = await stage.task(api, "T-0"), await stage.task(api, "T-1")
    stage.script.acts["T-1"] = Work()
    queue = DrainsAtFinish(stage.queue)

    queue.dispatcher = dispatcher = stage.dispatcher(queue=queue, limits=PATIENT)
    await ended(await started(dispatcher))

    assert (await stage.row(first)).status is Status.COMPLETED
    assert (await given_back(stage, second)).attempt == 1
    assert stage.script.order == ["T-0"]


async def test_one_that_waits_for_a_turn_does_not_start_in_a_drain(stage: Stage) -> None:
    api, web = await stage.project("api"), await stage.project("web")
    stage.script.acts["T-0"] = work = Work()
    await stage.task(api, "T-0")
    waits = await stage.task(web, "waits")

    dispatcher = stage.dispatcher(limits=Limits(max_running=1, drain_timeout=60.0, poll_interval=0.05))
    running = await started(dispatcher)
    await work.begun.wait()
    await until(lambda: dispatcher._turns.contended)
    dispatcher.drain()
    work.go.set()
    await ended(running)

    assert (await stage.row(waits)).attempt == 0


@pytest.mark.parametrize("how", ["once", "again and again"])
async def test_cancellation_leaves_nothing_running_and_no_row_held(stage: Stage, how: str) -> None:
    projects = [await stage.project(name) for name in ("api", "web")]
    works = [Work(), Stubborn(ignores=0 if how == "once" else 3)]
    ids = []
    for project, work in zip(projects, works, strict=True):
        stage.script.acts[project.name] = work
        ids.append(await stage.task(project, project.name))

    dispatcher = stage.dispatcher(limits=HASTY if how == "once" else PATIENT)
    running = await started(dispatcher)
    for work in works:
        await work.begun.wait()
    running.cancel()
    while how != "once" and not running.done():
        await asyncio.sleep(0.005)
        running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await ended(running)

    assert stage.script.running == []
    for id in ids:
        await given_back(stage, id)
    assert await stage.queue.nodes() == []


async def test_a_cancelled_drain_is_still_cancelled(stage: Stage) -> None:
    api = await stage.project("api")
    stage.script.acts["T-0"] = work = Work()
    await stage.task(api, "T-0")

    dispatcher = stage.dispatcher(limits=PATIENT)
    running = await started(dispatcher)
    await work.begun.wait()
    dispatcher.drain()
    await asyncio.sleep(0.01)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await ended(running)

    assert work.cancels == 1


class HangsAtStart(Through):
    """A store that does not answer when the node starts."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage.queue)
        self.asked = asyncio.Event()

    async def start_node(self, node: Node, lease: int) -> None:
        await self._queue.start_node(node, lease)
        self.asked.set()
        await asyncio.Event().wait()


async def test_who_gives_up_entering_leaves_no_dispatcher_behind(stage: Stage) -> None:
    queue = HangsAtStart(stage)

    async def enter() -> None:
        async with stage.dispatcher(queue=queue):
            raise AssertionError("never entered")

    before = asyncio.all_tasks()
    entering = asyncio.create_task(enter())
    await queue.asked.wait()
    entering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await entering

    await until(lambda: asyncio.all_tasks() <= before, "no task of the dispatcher is left")


async def test_a_drain_before_the_start_admits_nothing(stage: Stage) -> None:
    api = await stage.project("api")
    id = await stage.task(api, "T-0")

    dispatcher = stage.dispatcher()
    dispatcher.drain()
    async with asyncio.timeout(DEADLINE):
        await dispatcher.run()

    assert (await stage.row(id)).attempt == 0
    assert await stage.queue.nodes() == []


async def test_an_agent_that_fails_because_it_is_ended_has_not_failed(stage: Stage) -> None:
    api = await stage.project("api")
    id = await stage.task(api, "T-0")
    begun = asyncio.Event()

    async def killed(_: Execution) -> Any:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return failed(FailureClass.AGENT, "ended by signal 15", session_id="s-1")

    stage.script.acts["T-0"] = killed
    dispatcher = stage.dispatcher(limits=HASTY)
    running = await started(dispatcher)
    await begun.wait()
    dispatcher.drain()
    await ended(running)

    assert (await given_back(stage, id)).session_id == "s-1"


class FullDisk(Through):
    """Takes no result any more."""

    full = False

    async def finish(self, finish: Finish) -> Execution | None:
        if self.full:
            raise StoreError("the disk is full")
        return await super().finish(finish)


async def test_a_result_that_nobody_takes_does_not_hold_up_the_second_force(stage: Stage) -> None:
    api = await stage.project("api")
    stage.script.acts["T-0"] = work = Work()
    id = await stage.task(api, "T-0")
    queue = FullDisk(stage.queue)

    dispatcher = stage.dispatcher(queue=queue, limits=PATIENT)
    running = await started(dispatcher)
    await work.begun.wait()
    queue.full = True
    dispatcher.force()
    await until(lambda: work.cancels)
    dispatcher.force()
    await ended(running)

    await given_back(stage, id)
