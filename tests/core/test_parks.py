"""Dispatchers among parks and budgets: who is tried, who is woken, and nobody asks in vain."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from pilot.domain.budget import Budget
from pilot.domain.execution import Execution, Status
from pilot.domain.outcome import Ending, FailureClass, Outcome, Usage, failed
from pilot.domain.task import Project
from tests.core.stage import DONE, MINUTE, Deaf, Stage, Through, Work, in_turn, returns, until


def key(account: str, *projects: Project) -> Mapping[int, Mapping[str, str]]:
    return {project.id: {"claude": account} for project in projects}


def running(stage: Stage) -> list[str]:
    return [span.execution.task_id for span in stage.script.spans if span.ended is None]


async def test_one_of_many_tries_it_on_one_node_and_its_answer_lets_all_go(stage: Stage) -> None:
    projects = [await stage.project(name) for name in ("api", "web", "app")]
    limited = failed(FailureClass.QUOTA, "spent", retry_at=stage.clock.now + MINUTE)
    works = [Work() for _ in projects]
    ids = []
    for project, work in zip(projects, works, strict=True):
        first = returns(limited) if project is projects[0] else work
        stage.script.acts[project.name] = in_turn(first, work)

    # Two nodes, one of which hears no signal at all.
    one = stage.dispatcher(accounts=key("k", *projects))
    two = stage.dispatcher(accounts=key("k", *projects), queue=Deaf(stage.queue))
    async with one, two:
        ids.append(await stage.task(projects[0], "api"))
        await until(lambda: stage.script.spans and stage.script.spans[0].ended)
        await until_parked(stage)
        ids += [await stage.task(project, project.name) for project in projects[1:]]
        stage.clock.advance(MINUTE)
        await until(lambda: running(stage), "the probe")
        probe = running(stage)
        await stage.queue.cancel(await stage.task(projects[0], "noise"), by="me")  # a change, to look again
        await asyncio.gather(*(stage.queue.ready(node="x") for _ in range(20)))
        assert running(stage) == probe
        (execution,) = [span.execution for span in stage.script.spans if span.ended is None]

        await stage.store.journal.note(execution, answered="yes")

        await until(lambda: len(running(stage)) == 3, "the others")
        for work in works:
            work.go.set()
        await stage.reach(Status.COMPLETED, *ids)


async def until_parked(stage: Stage) -> None:
    while not await stage.parks():
        await asyncio.sleep(0.005)


async def test_what_waits_for_a_probe_goes_on_when_that_is_cancelled(stage: Stage) -> None:
    api, web = await stage.project("api"), await stage.project("web")
    limited = failed(FailureClass.QUOTA, "spent", retry_at=stage.clock.now + MINUTE)
    stage.script.acts["api"] = in_turn(returns(limited), Work())
    stage.script.acts["web"] = in_turn(Work(), DONE)

    async with stage.dispatcher():
        first = await stage.task(api, "api")
        await until_parked(stage)
        second = await stage.task(web, "web")
        stage.clock.advance(MINUTE)
        await until(lambda: running(stage), "the probe")
        (probe,) = running(stage)
        ids = {"api": first, "web": second}
        await stage.queue.cancel(ids.pop(probe), by="me")

        await until(lambda: running(stage) == [*ids], "the next")
        await stage.queue.cancel(next(iter(ids.values())), by="me")
        await stage.reach(Status.CANCELLED, first, second)


async def test_nobody_asks_for_what_is_not_to_be_had(stage: Stage) -> None:
    """Commits make a dispatcher look again, however often; to claim is for what may be given."""
    api, paused, remote = [await stage.project(name) for name in ("api", "paused", "remote")]
    stage.script.acts["T-1"] = returns(failed(FailureClass.AUTH, "no key"))
    await stage.queue.pause(paused.id, "me", "")
    queue = Through(stage.queue)

    async with stage.dispatcher(queue=queue):
        await stage.task(api, "T-1")
        await until_parked(stage)
        await stage.task(paused, "T-2", backend="other")
        await stage.task(remote, "T-3", backend="other", external=True)
        await stage.task(api, "T-4")
        other = await stage.queue.register([("elsewhere", "elsewhere", "/elsewhere", 1)])
        before = queue.calls["claim"]
        for n in range(20):
            looks = queue.calls["look"]
            await stage.task(other[0], f"noise-{n}")
            while queue.calls["look"] == looks:
                await asyncio.sleep(0.005)
        # whoever was enqueued here is woken by that once; a look at somebody else's news wakes nobody
        assert queue.calls["claim"] - before <= 3


async def test_a_new_key_and_a_higher_limit_count_from_the_reload_on(stage: Stage) -> None:
    api, web = await stage.project("api"), await stage.project("web")
    stage.script.acts["T-1"] = in_turn(returns(failed(FailureClass.AUTH, "no key")), DONE)
    costly = Outcome(ending=Ending.DONE, usage=Usage(cost_usd=1.5))
    stage.script.acts["T-2"] = stage.script.acts["T-3"] = returns(costly)
    dispatcher = stage.dispatcher(accounts=key("old", api), budget=Budget(None, 2.0))

    async with dispatcher:
        first = await stage.task(api, "T-1")
        await until_parked(stage)
        assert (await stage.row(first)).status is Status.QUEUED
        await dispatcher.reconfigure([api, web], key("new", api), Budget(None, 2.0))
        await stage.reach(Status.COMPLETED, first)

        second = await stage.task(web, "T-2")
        why = await stage.store.history.why(second, stage.clock.now)
        assert why is not None
        assert [hold.kind for hold in why.holds] == ["budget"]
        await dispatcher.reconfigure([api, web], key("new", api), Budget(None, 9.0))
        await stage.reach(Status.COMPLETED, second)


async def test_what_has_no_money_left_is_held_for_a_person(stage: Stage) -> None:
    api = await stage.project("api")
    limit = Outcome(
        ending=Ending.FAILED, failure=FailureClass.TEST, detail="red", excerpt="red", usage=Usage(cost_usd=2.0)
    )
    seen: list[float] = []

    async def act(execution: Execution) -> Outcome:
        left = Budget(2.0, None).left(execution)
        assert left is not None
        seen.append(left)
        return limit if len(seen) == 1 else Outcome(ending=Ending.DONE)

    stage.script.acts["T-1"] = act
    async with stage.dispatcher(budget=Budget(2.0, None)):
        id = await stage.task(api, "T-1")
        (row,) = await stage.reach(Status.NEEDS_HUMAN, id)
        assert row.failure_class == "budget"
        await stage.queue.answer(id, "go on", by="me")
        await stage.reach(Status.COMPLETED, id)
    assert seen == [2.0, 2.0]
