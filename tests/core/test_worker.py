"""ProjectWorker: comes with work, goes when idle, survives what breaks around it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from structlog.testing import capture_logs

from pilot.dispatch.dispatcher import Dispatcher, Limits
from pilot.dispatch.run import Attempts
from pilot.dispatch.turns import Turns
from pilot.dispatch.worker import ProjectWorker
from pilot.domain.errors import Busy, StoreError
from pilot.domain.execution import Execution, Status
from pilot.domain.task import Project
from tests.core.stage import MINUTE, Deaf, Stage, Through, Work, until

BRIEF = Limits(linger=0.05, poll_interval=0.05)


def serving(dispatcher: Dispatcher) -> set[str]:
    """The projects that have a worker now."""
    return {worker.project.name for worker in dispatcher._workers.values()}


async def test_a_worker_comes_with_work_and_goes_when_idle(stage: Stage) -> None:
    api, web = await stage.project("api"), await stage.project("web")

    async with stage.dispatcher(limits=BRIEF) as dispatcher:
        assert serving(dispatcher) == set()
        for n in range(3):
            await stage.reach(Status.COMPLETED, await stage.task(api, f"T-{n}"))
            await until(lambda: serving(dispatcher) == set(), "the worker retires")
            assert dispatcher._tasks == set()
        await stage.reach(Status.COMPLETED, await stage.task(web, "last"))


async def test_a_worker_stays_while_something_of_its_project_runs(stage: Stage) -> None:
    api = await stage.project("api")
    stage.script.acts["T-0"] = work = Work()
    id = await stage.task(api, "T-0")

    async with stage.dispatcher(limits=Limits(linger=0.01, poll_interval=0.05)) as dispatcher:
        await work.begun.wait()
        (worker,) = dispatcher._workers.values()
        for _ in range(10):
            await asyncio.sleep(0.01)
            assert dispatcher._workers == {api.id: worker}
        work.go.set()
        await stage.reach(Status.COMPLETED, id)


@pytest.mark.parametrize("steps", range(0, 60, 6))
async def test_work_that_comes_while_the_worker_goes_is_not_missed(stage: Stage, steps: int) -> None:
    api = await stage.project("api")

    async with stage.dispatcher(limits=Limits(linger=0.0, poll_interval=60.0)):
        for n in range(5):
            await stage.reach(Status.COMPLETED, await stage.task(api, f"T-{n}"))
            for _ in range(steps):
                await asyncio.sleep(0)


class LooksEarly(Through):
    """A claim that found nothing, and whose answer comes when the test says."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage.queue)
        self.empty = asyncio.Event()
        self.answer = asyncio.Event()

    async def claim(self, node: str, **how: Any) -> list[Execution]:
        found = await super().claim(node, **how)
        if not found:
            self.empty.set()
            await self.answer.wait()
        return found


async def test_work_that_comes_while_the_worker_looks_is_not_missed(stage: Stage) -> None:
    api = await stage.project("api")
    queue = LooksEarly(stage)
    worker = ProjectWorker(
        api, queue, Attempts(queue, stage.script, stage.clock, lambda: 0.0), Turns(1), node="n1", lease=MINUTE,
        own=False, admitting=lambda: True, linger=60.0,
    )  # fmt: skip

    serving = asyncio.create_task(worker.run())
    await queue.empty.wait()
    id = await stage.task(api, "T-0")
    worker.wake()
    queue.answer.set()
    await stage.reach(Status.COMPLETED, id)
    serving.cancel()
    await asyncio.wait([serving])


class Breaks(Through):
    """A claim with a bug in it, `times` times."""

    def __init__(self, stage: Stage, error: Exception, times: int, project: Project) -> None:
        super().__init__(stage.queue)
        self.error = error
        self.times = times
        self.project = project
        self.when: list[float] = []

    async def claim(self, node: str, **how: Any) -> list[Execution]:
        if how["projects"] == (self.project.id,) and self.times:
            self.times -= 1
            self.when.append(asyncio.get_running_loop().time())
            raise self.error
        return await super().claim(node, **how)


async def test_a_worker_that_crashes_is_logged_and_restarted(stage: Stage) -> None:
    api, web = await stage.project("api"), await stage.project("web")
    queue = Breaks(stage, RuntimeError("a bug"), 3, api)
    broken, other = await stage.task(api, "T-0"), await stage.task(web, "T-1")

    with capture_logs() as logs:
        async with stage.dispatcher(queue=queue, limits=Limits(max_running=1, poll_interval=0.05)):
            await stage.reach(Status.COMPLETED, broken, other)

    crashes = [entry for entry in logs if entry["event"] == "worker.crashed"]
    assert [entry["error"] for entry in crashes] == ["RuntimeError('a bug')"] * 3
    pauses = [b - a for a, b in zip(queue.when, queue.when[1:], strict=False)]
    assert min(pauses) > 0.04, "not in a circle without a pause"


@pytest.mark.parametrize("error", [StoreError("can't"), Busy("locked")])
async def test_a_claim_that_fails_is_tried_again_without_any_signal(stage: Stage, error: Exception) -> None:
    api = await stage.project("api")
    queue = Breaks(stage, error, 2, api)
    id = await stage.task(api, "T-0")
    turns = Turns(1)
    worker = ProjectWorker(
        api, queue, Attempts(queue, stage.script, stage.clock, lambda: 0.0), turns, node="n1", lease=MINUTE,
        own=False, admitting=lambda: True, linger=0.01, retry_claim=0.05,
    )  # fmt: skip

    async with asyncio.timeout(5):
        await worker.run()

    assert (await stage.row(id)).status is Status.COMPLETED
    assert not turns.contended
    assert len(queue.when) == 2
    assert queue.when[1] - queue.when[0] > 0.04


async def test_a_failing_project_leaves_the_turn_to_others(stage: Stage) -> None:
    api, web = await stage.project("api"), await stage.project("web")
    queue = Breaks(stage, StoreError("can't"), 10**6, api)
    await stage.task(api, "T-0")
    ids = [await stage.task(web, f"T-{n}") for n in range(3)]

    async with stage.dispatcher(queue=queue, limits=Limits(max_running=1, poll_interval=0.05)):
        await stage.reach(Status.COMPLETED, *ids)


async def test_a_lane_whose_runner_breaks_does_not_take_the_worker_along(stage: Stage) -> None:
    api = await stage.project("api")
    ids = [await stage.task(api, f"T-{n}", max_attempts=1) for n in range(3)]

    async def breaks(_: Execution) -> Any:
        raise RuntimeError("a bug")

    stage.script.acts["T-1"] = breaks
    async with stage.dispatcher():
        await stage.reach(Status.COMPLETED, ids[0], ids[2])
        await stage.reach(Status.FAILED, ids[1])


async def test_nothing_is_claimed_when_nothing_is_admitted(stage: Stage) -> None:
    api = await stage.project("api")
    id = await stage.task(api, "T-0")
    queue = Deaf(stage.queue)
    worker = ProjectWorker(
        api, queue, Attempts(queue, stage.script, stage.clock, lambda: 0.0), Turns(1), node="n1", lease=MINUTE,
        own=False, admitting=lambda: False,
    )  # fmt: skip

    worker.wake()
    async with asyncio.timeout(5):
        await worker.run()

    assert queue.calls["claim"] == 0
    assert (await stage.row(id)).attempt == 0
