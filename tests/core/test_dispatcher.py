"""Who runs when: order, slots, turns, timers. A real database, and several nodes on it."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import pytest

from pilot.dispatch.dispatcher import Limits
from pilot.domain.budget import Budget
from pilot.domain.errors import NotFound, StoreError
from pilot.domain.execution import Execution, Status
from pilot.domain.outcome import Ending, FailureClass, Outcome, Question, failed
from pilot.domain.ports import NodeKind
from pilot.domain.task import DIRECT_PRIORITY, Project, Task
from pilot.store import open_store
from tests.core.stage import MINUTE, QUICK, Deaf, Span, Stage, Through, Work, returns, until

HOUR = 60 * MINUTE
BY_SIGNAL = Limits(poll_interval=60.0)
"""Only a signal is quick enough for a test that uses this."""


async def _short(_: Execution) -> Outcome:
    for _step in range(5):
        await asyncio.sleep(0)
    return Outcome(ending=Ending.DONE)


async def test_what_was_queued_before_the_start_runs_in_order_and_nothing_is_reaped(stage: Stage) -> None:
    api, web = await stage.project("api"), await stage.project("web")
    dead = stage.node()
    await stage.queue.start_node(dead, MINUTE)
    ids = [await stage.task(project, f"{project.name}-{n}") for n in range(5) for project in (api, web)]
    stage.clock.advance(10 * HOUR)  # waiting is no failure, however long

    async with stage.dispatcher(alive=lambda _: False):
        await stage.reach(Status.COMPLETED, *ids)

    for name in ("api", "web"):
        assert [ref for ref in stage.script.order if ref.startswith(name)] == [f"{name}-{n}" for n in range(5)]
        assert stage.script.most_at_once(name) == 1
    assert all(span.execution.attempt == 1 for span in stage.script.spans)


async def test_two_nodes_on_one_database_never_run_two_in_a_project(stage: Stage, tmp_path: Path) -> None:
    projects = [await stage.project(name) for name in ("api", "web", "app")]
    ids = [await stage.task(project, f"{project.name}-{n}") for n in range(8) for project in projects]
    stage.script.default = _short
    heads = stage.script.acts["api-0"], stage.script.acts["web-0"] = Work(), Work()
    one = Limits(max_running=1, poll_interval=0.02)

    async with open_store(f"sqlite:///{tmp_path}/pilot.db", clock=stage.clock) as other:
        first, second = stage.dispatcher(limits=one), stage.dispatcher(queue=other.queue, limits=one)
        async with first, second:
            await until(lambda: all(head.begun.is_set() for head in heads))
            assert len(first.worker_status()) == len(second.worker_status()) == 1
            for head in heads:
                head.go.set()
            await stage.reach(Status.COMPLETED, *ids)

    assert sorted(stage.script.order) == sorted(f"{p.name}-{n}" for n in range(8) for p in projects)
    for project in projects:
        assert stage.script.most_at_once(project.name) == 1
        assert [ref for ref in stage.script.order if ref.startswith(project.name)] == [
            f"{project.name}-{n}" for n in range(8)
        ]


async def test_a_project_with_three_slots_uses_three(stage: Stage) -> None:
    api = await stage.project("api", max_running=3)
    works = {f"T-{n}": Work() for n in range(5)}
    stage.script.acts.update(works)
    ids = [await stage.task(api, ref) for ref in works]

    async with stage.dispatcher(limits=Limits(max_running=10, poll_interval=0.02)):
        rows = await stage.reach(Status.RUNNING, *ids[:3])
        assert {row.slot for row in rows} == {0, 1, 2}
        works["T-1"].go.set()
        (fourth,) = await stage.reach(Status.RUNNING, ids[3])
        assert fourth.slot == 1
        for work in works.values():
            work.go.set()
        await stage.reach(Status.COMPLETED, *ids)

    assert stage.script.most_at_once("api") == 3


async def test_a_lower_number_goes_first_then_the_older_one(stage: Stage) -> None:
    api = await stage.project("api")
    ids = [await stage.task(api, f"T-{n}", priority=p) for n, p in enumerate([5, 2, 0, 2, 5, 0])]

    async with stage.dispatcher():
        await stage.reach(Status.COMPLETED, *ids)

    assert stage.script.order == ["T-2", "T-5", "T-1", "T-3", "T-0", "T-4"]


async def test_the_project_that_has_waited_longest_gets_the_first_turn(stage: Stage) -> None:
    projects = [await stage.project(f"p{n}") for n in range(9)]
    ids = [await stage.task(project, project.name) for project in reversed(projects)]

    async with stage.dispatcher(limits=Limits(max_running=1, poll_interval=0.05)):
        await stage.reach(Status.COMPLETED, *ids)

    assert stage.script.order == [project.name for project in reversed(projects)]


async def _later(stage: Stage, api: Project) -> int:
    return await stage.task(api, "head", available_at=stage.clock.now + HOUR)


async def _parked(stage: Stage, api: Project) -> int:
    stage.script.acts["head"] = returns(failed(FailureClass.AUTH, "not logged in"))
    return await stage.task(api, "head", backend="opencode")


async def _blocked(stage: Stage, api: Project) -> int:
    parent = await stage.task(await stage.project("web"), "parent")
    stage.script.acts["parent"] = Work()
    return await stage.task(api, "head", after=(parent,))


async def _asking(stage: Stage, api: Project) -> int:
    stage.script.acts["head"] = returns(Outcome(ending=Ending.QUESTION, question=Question("Which?")))
    return await stage.task(api, "head")


@pytest.mark.parametrize("held", [_later, _parked, _blocked, _asking])
async def test_a_head_that_is_held_does_not_hold_those_behind_it(stage: Stage, held) -> None:  # type: ignore[no-untyped-def]
    api = await stage.project("api")
    head = await held(stage, api)
    behind = [await stage.task(api, f"T-{n}") for n in range(3)]

    async with stage.dispatcher(limits=Limits(drain_timeout=0.0, poll_interval=0.05)):
        await stage.reach(Status.COMPLETED, *behind)
        assert not (await stage.row(head)).status.final


async def test_what_waits_for_its_time_runs_by_the_timer_alone(stage: Stage) -> None:
    api = await stage.project("api")
    id = await stage.task(api, "later", available_at=stage.clock.now + 100)
    queue = Deaf(stage.queue)

    async with stage.dispatcher(queue=queue, limits=BY_SIGNAL):
        await until(lambda: queue.calls["look"])
        assert stage.script.order == []
        stage.clock.advance(100)
        await stage.reach(Status.COMPLETED, id)


async def test_one_that_is_due_behind_a_running_one_does_not_make_the_node_spin(stage: Stage) -> None:
    api = await stage.project("api")
    stage.script.acts["long"] = work = Work()
    await stage.task(api, "long")
    later = await stage.task(api, "later", available_at=stage.clock.now + MINUTE)
    queue = Through(stage.queue)

    async with stage.dispatcher(queue=queue, limits=Limits(poll_interval=0.05)):
        await work.begun.wait()
        stage.clock.advance(MINUTE)
        before = queue.calls["look"]
        await asyncio.sleep(0.3)
        assert queue.calls["look"] - before < 12
        work.go.set()
        await stage.reach(Status.COMPLETED, later)


@pytest.mark.parametrize("who", ["this process", "another one"])
async def test_lost_signals_cost_one_poll_interval(stage: Stage, tmp_path: Path, who: str) -> None:
    api = await stage.project("api")

    async with open_store(f"sqlite:///{tmp_path}/pilot.db", clock=stage.clock) as other:
        queue = stage.queue if who == "this process" else other.queue
        async with stage.dispatcher(queue=Deaf(stage.queue)):
            for n in range(3):
                new = await queue.enqueue(Task(project_id=api.id, task_id=f"T-{n}", title="t", backend="claude"))
                await stage.reach(Status.COMPLETED, new.id)


@pytest.mark.parametrize("who", ["this process", "another one"])
async def test_a_signal_starts_work_without_any_timer(stage: Stage, tmp_path: Path, who: str) -> None:
    api = await stage.project("api")

    async with open_store(f"sqlite:///{tmp_path}/pilot.db", clock=stage.clock) as other:
        queue = stage.queue if who == "this process" else other.queue
        async with stage.dispatcher(limits=BY_SIGNAL):
            for n in range(3):
                new = await queue.enqueue(Task(project_id=api.id, task_id=f"T-{n}", title="t", backend="claude"))
                await stage.reach(Status.COMPLETED, new.id)


class FailsAtNews(Deaf):
    """The read that should have found the new row fails; nothing else will point at it."""

    broken = False
    failed = 0

    async def look(self, among: Collection[int], node: str) -> tuple[list[int], int | None]:
        found, due = await super().look(among, node)
        if found and self.broken:
            self.broken = False
            self.failed += 1
            raise StoreError("can't read")
        return found, due


async def test_a_failed_look_is_looked_at_again(stage: Stage) -> None:
    projects = [await stage.project(f"p{n}") for n in range(3)]
    queue = FailsAtNews(stage.queue)

    async with stage.dispatcher(queue=queue):
        for n, project in enumerate(projects):
            queue.broken = True
            await stage.reach(Status.COMPLETED, await stage.task(project, f"T-{n}"))
            assert queue.failed == n + 1


class Blind(Through):
    """A look takes for ever once the node has begun."""

    seeing = True

    async def look(self, among: Collection[int], node: str) -> tuple[list[int], int | None]:
        found = await super().look(among, node)
        while not self.seeing:
            await asyncio.sleep(0.01)
        return found


@pytest.mark.parametrize("how", [{}, {"available_at": 2 << 40}, {"external": True}], ids=["now", "later", "workers'"])
async def test_new_work_is_claimed_before_a_look(stage: Stage, how: dict[str, Any]) -> None:
    api = await stage.project("api")
    queue = Blind(stage.queue)

    async with stage.dispatcher(queue=queue):
        await until(lambda: queue.calls["look"] > 0)
        await asyncio.sleep(0.05)
        queue.seeing = False
        before = queue.calls["claim"]
        id = await stage.task(api, "T-1", **how)
        if not how:
            await stage.reach(Status.COMPLETED, id)
        await asyncio.sleep(0.05)
        queue.seeing = True

    assert (queue.calls["claim"] > before) == (not how), "what nobody may begin yet is not asked for"


def _unfair(spans: list[Span], slots: Mapping[str, int]) -> list[str]:
    """Starts of a project that had a turn for each of its slots already, while another one waited all the time."""
    found = []
    starts: dict[str, list[Span]] = {}
    for span in spans:
        starts.setdefault(span.execution.project, []).append(span)
    for name, own in starts.items():
        for first, second in zip(own, own[slots[name] :], strict=False):
            for other, theirs in starts.items():
                waits = theirs[-1].began > second.began
                had = any(s.began < second.began and (s.ended or 0) > first.began for s in theirs)
                if other != name and waits and not had:
                    found.append(f"{name} started {second.execution.task_id} while {other} waited")
    return found


@pytest.mark.parametrize("turns", [1, 2, 3])
@pytest.mark.parametrize("slots", [(1, 1, 1, 1, 1), (1, 3, 1, 2, 1)])
async def test_no_project_starts_twice_while_another_waits(stage: Stage, turns: int, slots: tuple[int, ...]) -> None:
    most = dict(zip("abcde", slots, strict=True))
    projects = [await stage.project(name, slots) for name, slots in most.items()]
    works: list[Work] = []

    async def one_after_another(execution: Execution) -> Outcome:
        works.append(Work())
        return await works[-1](execution)

    stage.script.default = one_after_another
    ids = [await stage.task(project, f"{project.name}{n}") for project in projects for n in range(4)]

    async with stage.dispatcher(limits=Limits(max_running=turns, poll_interval=0.05)):
        for n in range(len(ids)):
            # One ends only when every turn is taken again: who waits has asked by then.
            await until(lambda n=n: len(works) == min(n + turns, len(ids)))  # type: ignore[misc]
            works[n].go.set()
        await stage.reach(Status.COMPLETED, *ids)

    assert _unfair(stage.script.spans, most) == []
    assert stage.script.most_at_once() == turns


async def test_a_node_runs_no_more_than_it_may(stage: Stage) -> None:
    works = [Work() for _ in range(5)]
    ids = []
    for n, work in enumerate(works):
        stage.script.acts[f"T-{n}"] = work
        ids.append(await stage.task(await stage.project(f"p{n}"), f"T-{n}"))

    async with stage.dispatcher(limits=Limits(max_running=2, poll_interval=0.02)) as dispatcher:
        for n in range(5):
            await until(lambda n=n: len(stage.script.spans) == min(n + 2, 5))  # type: ignore[misc]
            assert len(dispatcher.worker_status()) <= 2
            works[stage.script.spans[n].execution.id - ids[0]].go.set()
        await stage.reach(Status.COMPLETED, *ids)

    assert stage.script.most_at_once() == 2


async def test_a_paused_project_waits_and_others_go_on(stage: Stage) -> None:
    api, web = await stage.project("api"), await stage.project("web")
    await stage.queue.pause(api.id, "ann", "release")
    held, other = await stage.task(api, "held"), await stage.task(web, "other")

    async with stage.dispatcher(limits=BY_SIGNAL):
        await stage.reach(Status.COMPLETED, other)
        assert (await stage.row(held)).status is Status.QUEUED
        await stage.queue.resume(api.id, "ann")
        await stage.reach(Status.COMPLETED, held)


async def test_new_settings_bring_projects_and_slots_while_it_runs(stage: Stage) -> None:
    api = await stage.project("api")
    works = [Work(), Work()]
    stage.script.acts.update({"T-0": works[0], "T-1": works[1]})
    ids = [await stage.task(api, f"T-{n}") for n in range(2)]

    async with stage.dispatcher(limits=BY_SIGNAL) as dispatcher:
        await works[0].begun.wait()
        web, wider = await stage.project("web"), await stage.project("api", max_running=2)
        new = await stage.task(web, "new")
        await dispatcher.reconfigure([web, wider], {}, Budget())
        await works[1].begun.wait()
        await stage.reach(Status.COMPLETED, new)
        for work in works:
            work.go.set()
        await stage.reach(Status.COMPLETED, *ids)


async def test_a_project_that_is_no_longer_served_ends_what_runs_and_begins_nothing(stage: Stage) -> None:
    api, web = await stage.project("api"), await stage.project("web")
    stage.script.acts["T-0"] = work = Work()
    running, left = await stage.task(api, "T-0"), await stage.task(api, "T-1")

    async with stage.dispatcher() as dispatcher:
        await work.begun.wait()
        await dispatcher.reconfigure([web], {}, Budget())
        work.go.set()
        await stage.reach(Status.COMPLETED, running)
        await stage.reach(Status.COMPLETED, await stage.task(web, "other"))
        assert (await stage.row(left)).attempt == 0
        await dispatcher.reconfigure([api, web], {}, Budget())
        await stage.reach(Status.COMPLETED, left)


async def test_a_project_that_the_node_does_not_serve_is_left_alone(stage: Stage) -> None:
    api, web = await stage.project("api"), await stage.project("web")
    foreign, own = await stage.task(api, "foreign"), await stage.task(web, "own")

    async with stage.dispatcher(projects=[web]):
        await stage.reach(Status.COMPLETED, own)

    assert (await stage.row(foreign)).attempt == 0


async def test_a_caller_can_wait_for_an_end_and_see_what_runs(stage: Stage) -> None:
    api = await stage.project("api")
    stage.script.acts["T-1"] = work = Work()

    async with stage.dispatcher() as dispatcher:
        id = await dispatcher.queue_task(Task(project_id=api.id, task_id="T-1", title="t", backend="claude"))
        assert await dispatcher.queue_task(Task(project_id=api.id, task_id="T-1", title="t")) == id
        await work.begun.wait()
        assert dispatcher.worker_status() == [
            {"execution": id, "project": "api", "task_id": "T-1", "attempt": 1, "since": stage.clock.now}
        ]
        waiting = asyncio.create_task(dispatcher.wait_for_execution(id))
        work.go.set()
        assert (await waiting).status is Status.COMPLETED
        with pytest.raises(NotFound):
            await dispatcher.wait_for_execution(999)


async def test_waiting_for_an_end_needs_no_signal(stage: Stage) -> None:
    api = await stage.project("api")
    stage.script.acts["T-1"] = returns(Outcome(ending=Ending.QUESTION, question=Question("Which?")))

    async with stage.dispatcher(queue=Deaf(stage.queue)) as dispatcher:
        held = await dispatcher.wait_for_execution(await stage.task(api, "T-1"))

    assert held.status is Status.NEEDS_HUMAN


async def test_a_direct_run_takes_only_what_is_its_own(stage: Stage) -> None:
    api = await stage.project("api")
    others = [await stage.task(api, f"T-{n}") for n in range(2)]
    node = stage.node(NodeKind.RUN)

    async with stage.dispatcher(node=node, limits=QUICK) as direct:
        mine = await stage.task(api, "mine", reserved_for=node.id, priority=DIRECT_PRIORITY)
        assert (await direct.wait_for_execution(mine)).status is Status.COMPLETED

    assert stage.script.order == ["mine"]
    assert [(await stage.row(id)).attempt for id in others] == [0, 0]


async def test_a_direct_run_goes_before_the_queue_and_waits_for_the_slot(stage: Stage) -> None:
    api = await stage.project("api")
    stage.script.acts["T-0"] = first = Work()
    ids = [await stage.task(api, f"T-{n}") for n in range(3)]
    node = stage.node(NodeKind.RUN)

    async with stage.dispatcher(), stage.dispatcher(node=node):
        await first.begun.wait()
        mine = await stage.task(api, "mine", reserved_for=node.id, priority=DIRECT_PRIORITY)
        await stage.queue.ready()
        assert stage.script.order == ["T-0"]
        first.go.set()
        await stage.reach(Status.COMPLETED, mine, *ids)

    assert stage.script.order == ["T-0", "mine", "T-1", "T-2"]
    assert stage.script.most_at_once("api") == 1
    assert {span.execution.node for span in stage.script.spans if span.execution.task_id == "mine"} == {node.id}


async def test_a_direct_run_that_ends_takes_its_row_along(stage: Stage) -> None:
    api = await stage.project("api")
    stage.script.acts["T-0"] = first = Work()
    await stage.task(api, "T-0")
    node = stage.node(NodeKind.RUN)

    async with stage.dispatcher():
        await first.begun.wait()
        async with stage.dispatcher(node=node):
            mine = await stage.task(api, "mine", reserved_for=node.id, priority=DIRECT_PRIORITY)
        assert (await stage.row(mine)).status is Status.CANCELLED
        first.go.set()
