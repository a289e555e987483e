"""The end that a person asks for: at once for what waits, in order for what runs, wherever it runs."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from pilot.dispatch.dispatcher import Limits
from pilot.domain.execution import Execution, Status
from pilot.domain.outcome import Ending, FailureClass, Outcome, Question, Usage, failed
from pilot.store import open_store
from tests.core.stage import MINUTE, Deaf, Stage, Stubborn, Through, Work, returns, until

BY_SIGNAL = Limits(poll_interval=60.0, lease=600.0)
BY_TIMER = Limits(poll_interval=0.05, lease=600.0)
BY_HEARTBEAT = Limits(poll_interval=60.0, lease=0.3)


@pytest.mark.parametrize("waits", ["in the queue", "for its time", "for another", "for a person"])
async def test_what_waits_is_cancelled_at_once_and_never_runs(stage: Stage, waits: str) -> None:
    api = await stage.project("api")
    stage.script.acts["head"] = head = Work(Outcome(ending=Ending.QUESTION, question=Question("Which?")))
    first = await stage.task(api, "head")
    more: dict[str, dict[str, Any]] = {
        "for its time": {"available_at": stage.clock.now + MINUTE},
        "for another": {"after": (first,)},
    }
    id = first if waits == "for a person" else await stage.task(api, "T-1", **more.get(waits, {}))

    async with stage.dispatcher():
        await head.begun.wait()
        if waits == "for a person":
            head.go.set()
            await stage.reach(Status.NEEDS_HUMAN, first)
        assert await stage.queue.cancel(id, by="ann") is Status.CANCELLED
        head.go.set()
        await stage.reach(Status.COMPLETED, await stage.task(api, "last"))
        stage.clock.advance(MINUTE)

    assert (await stage.row(id)).reason == "cancelled by ann"
    assert stage.script.order == ["head", "last"]


@pytest.mark.parametrize(
    ("limits", "heard"), [(BY_SIGNAL, True), (BY_TIMER, False), (BY_HEARTBEAT, False)], ids=["signal", "timer", "beat"]
)
@pytest.mark.parametrize("asks", ["this process", "another one"])
async def test_what_runs_is_ended_whoever_asks_and_whatever_gets_lost(
    stage: Stage, tmp_path: Path, limits: Limits, heard: bool, asks: str
) -> None:
    api = await stage.project("api")
    stage.script.acts["T-0"] = work = Work()
    id, behind = await stage.task(api, "T-0"), await stage.task(api, "behind")
    queue = stage.queue if heard else Deaf(stage.queue)

    async with open_store(f"sqlite:///{tmp_path}/pilot.db", clock=stage.clock) as other:
        asked = stage.queue if asks == "this process" else other.queue
        async with stage.dispatcher(queue=queue, limits=limits):
            await work.begun.wait()
            assert await asked.cancel(id, by="ann", reason="not needed") is Status.RUNNING
            await stage.reach(Status.CANCELLED, id)
            await stage.reach(Status.COMPLETED, behind)

    assert work.cancels == 1
    assert await stage.queue.cancel(id, by="ann") is Status.CANCELLED
    row = await stage.row(id)
    assert (row.failures, row.outcome, row.reason) == (0, "cancelled", "not needed")
    assert ("execution.cancelled", "not needed") in [
        (type, data.get("reason")) for type, data in await stage.events(id)
    ]


async def test_only_the_node_that_runs_it_ends_it(stage: Stage) -> None:
    api, web = await stage.project("api"), await stage.project("web")
    stage.script.acts.update({"T-0": Work(), "T-1": Work()})
    mine, theirs = stage.script.acts["T-0"], stage.script.acts["T-1"]
    assert isinstance(mine, Work)
    assert isinstance(theirs, Work)

    async with stage.dispatcher(projects=[api]), stage.dispatcher(projects=[web]):
        id, other = await stage.task(api, "T-0"), await stage.task(web, "T-1")
        await mine.begun.wait()
        await theirs.begun.wait()
        await stage.queue.cancel(id, by="ann")
        await stage.reach(Status.CANCELLED, id)
        assert theirs.cancels == 0
        theirs.go.set()
        await stage.reach(Status.COMPLETED, other)


@pytest.mark.parametrize("steps", range(0, 40, 3))
async def test_a_cancel_and_a_result_at_once_make_one_end(stage: Stage, steps: int) -> None:
    api = await stage.project("api")
    stage.script.acts["T-0"] = work = Work()
    id = await stage.task(api, "T-0")

    async with stage.dispatcher():
        await work.begun.wait()
        cancelling = asyncio.create_task(stage.queue.cancel(id, by="ann"))
        for _ in range(steps):
            await asyncio.sleep(0)
        work.go.set()
        answer = await cancelling
        await until(lambda: not stage.script.running)
        row = await stage.row(id)
        while not row.status.final:
            row = await stage.row(id)

    assert row.status in (Status.COMPLETED, Status.CANCELLED)
    assert answer in (Status.RUNNING, row.status)
    ends = [type for type, _ in await stage.events(id) if type in ("execution.completed", "execution.cancelled")]
    assert ends == [f"execution.{row.status}"]


@pytest.mark.parametrize(
    "again",
    [failed(FailureClass.TEST, "red"), Outcome(ending=Ending.QUESTION, question=Question("Which?"))],
    ids=["retry", "question"],
)
async def test_what_would_go_on_after_a_cancel_does_not(stage: Stage, again: Outcome) -> None:
    """The attempt ends by itself before its node has heard of the cancel."""
    api = await stage.project("api")
    stage.script.acts["T-0"] = work = Work(again)
    id = await stage.task(api, "T-0")

    async with stage.dispatcher(queue=Deaf(stage.queue), limits=Limits(poll_interval=60.0)):
        await work.begun.wait()
        await stage.queue.cancel(id, by="ann")
        work.go.set()
        await stage.reach(Status.CANCELLED, id)

    assert len(stage.script.spans) == 1


async def test_the_slot_is_not_free_before_the_agent_has_ended(stage: Stage) -> None:
    api = await stage.project("api")
    ending, gone = asyncio.Event(), asyncio.Event()

    async def slow(_: Execution) -> Outcome:
        try:
            await asyncio.Event().wait()
        finally:
            ending.set()
            await gone.wait()
        raise AssertionError

    stage.script.acts["T-0"] = slow
    id, behind = await stage.task(api, "T-0"), await stage.task(api, "behind")

    async with stage.dispatcher():
        await until(lambda: stage.script.running)
        await stage.queue.cancel(id, by="ann")
        await ending.wait()
        for _ in range(20):
            assert (await stage.row(id)).status is Status.RUNNING
        assert stage.script.order == ["T-0"]
        gone.set()
        await stage.reach(Status.CANCELLED, id)
        await stage.reach(Status.COMPLETED, behind)


@pytest.mark.parametrize(
    ("result", "end"),
    [
        (Outcome(ending=Ending.DONE), Status.COMPLETED),
        (Outcome(ending=Ending.NO_CHANGE), Status.COMPLETED),
        (failed(FailureClass.TEST, "red"), Status.CANCELLED),
        (Outcome(ending=Ending.QUESTION, question=Question("Which?")), Status.CANCELLED),
    ],
    ids=lambda value: str(value.ending) if isinstance(value, Outcome) else "",
)
async def test_an_agent_that_does_not_heed_the_word_ends_once(stage: Stage, result: Outcome, end: Status) -> None:
    api = await stage.project("api")
    stage.script.acts["T-0"] = work = Stubborn(result, ignores=1)
    id, behind = await stage.task(api, "T-0"), await stage.task(api, "behind")

    async with stage.dispatcher():
        await work.begun.wait()
        await stage.queue.cancel(id, by="ann")
        await until(lambda: work.cancels)
        assert (await stage.row(id)).status is Status.RUNNING
        work.go.set()
        await stage.reach(end, id)
        await stage.reach(Status.COMPLETED, behind)

    assert stage.script.order == ["T-0", "behind"]


async def test_a_second_cancel_does_not_hurry_what_is_ending(stage: Stage) -> None:
    api = await stage.project("api")
    stage.script.acts["T-0"] = work = Stubborn(ignores=1)
    id = await stage.task(api, "T-0")
    queue = Through(stage.queue)

    async with stage.dispatcher(queue=queue, limits=BY_HEARTBEAT):
        await work.begun.wait()
        await stage.queue.cancel(id, by="ann")
        await stage.queue.cancel(id, by="bob")
        await until(lambda: work.cancels)
        before = queue.calls["heartbeat"]
        await until(lambda: queue.calls["heartbeat"] > before + 1)
        assert work.cancels == 1
        work.go.set()
        await stage.reach(Status.COMPLETED, id)


async def test_what_a_cancelled_attempt_used_up_is_kept(stage: Stage) -> None:
    api = await stage.project("api")
    work = Stubborn(failed(FailureClass.AGENT, "ended", usage=Usage(10, 2, 0.5), branch="pilot/T-0"), ignores=1)
    stage.script.acts["T-0"] = work
    id = await stage.task(api, "T-0")

    async with stage.dispatcher():
        await work.begun.wait()
        await stage.queue.cancel(id, by="ann")
        await until(lambda: work.cancels)
        work.go.set()
        (row,) = await stage.reach(Status.CANCELLED, id)

    assert (row.input_tokens, row.cost_usd, row.branch) == (10, 0.5, "pilot/T-0")
    assert row.failure_class is None


async def test_what_depends_on_a_cancelled_one_is_cancelled(stage: Stage) -> None:
    api, web = await stage.project("api"), await stage.project("web")
    stage.script.acts["T-0"] = work = Work()
    id = await stage.task(api, "T-0")
    child = await stage.task(web, "child", after=(id,))
    grandchild = await stage.task(api, "grandchild", after=(child,))

    async with stage.dispatcher():
        await work.begun.wait()
        await stage.queue.cancel(id, by="ann")
        rows = await stage.reach(Status.CANCELLED, id, child, grandchild)

    assert rows[1].reason == f"execution {id}, which it waits for, was cancelled"
    assert stage.script.order == ["T-0"]


async def test_a_completed_one_stays_completed(stage: Stage) -> None:
    api = await stage.project("api")
    stage.script.acts["T-0"] = returns(Outcome(ending=Ending.DONE))
    id = await stage.task(api, "T-0")

    async with stage.dispatcher():
        await stage.reach(Status.COMPLETED, id)
        assert await stage.queue.cancel(id, by="ann") is Status.COMPLETED

    assert (await stage.row(id)).status is Status.COMPLETED


@pytest.mark.parametrize(("limits", "heard"), [(BY_SIGNAL, True), (BY_TIMER, False)], ids=["signal", "timer"])
async def test_a_cancel_is_heeded_while_the_node_drains(stage: Stage, limits: Limits, heard: bool) -> None:
    api = await stage.project("api")
    stage.script.acts["T-0"] = work = Work()
    id = await stage.task(api, "T-0")

    async with stage.dispatcher(queue=stage.queue if heard else Deaf(stage.queue), limits=limits) as dispatcher:
        await work.begun.wait()
        dispatcher.drain()
        await until(lambda: not dispatcher.accepting)
        assert await stage.queue.cancel(id, by="ann") is Status.RUNNING
        await stage.reach(Status.CANCELLED, id)
