"""Claim: a project's head, once, under a fence that only rises; what can't run holds up nothing behind it."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from pilot.domain.errors import PilotError
from pilot.domain.execution import Status
from tests.store.bed import HOUR, MINUTE, SECOND, Bed, again, asked, done, limited, task


async def test_a_claim_says_who_runs_what_and_until_when(store: Bed) -> None:
    api = await store.project()
    await store.node()
    id = await store.put(api, model="big")
    store.clock.tick(SECOND)

    execution = await store.take(api, lease=MINUTE)

    assert execution == await store.queue.get(id)
    assert (execution.status, execution.node, execution.slot) == (Status.RUNNING, "n1", 0)
    assert (execution.attempt, execution.fence) == (1, 1)
    assert execution.lease_until == store.clock.now + MINUTE
    assert execution.started_at == store.clock.now
    assert await store.events(id) == ["queued", "started"]
    assert await store.rows("SELECT number, fence, node, backend, model, started_at, finished_at FROM attempts") == [
        (1, 1, "n1", "agent", "big", store.clock.now, None)
    ]


async def test_first_in_first_out_by_priority_and_id(store: Bed) -> None:
    api = await store.project()
    await store.node()
    ids = {}
    for name, priority in (("a", 2), ("b", 2), ("c", 0), ("d", 1), ("e", 0), ("f", -1)):
        ids[name] = await store.put(api, name, priority=priority)
        store.clock.tick(-SECOND)  # a clock that goes back changes no order

    store.clock.tick(HOUR)
    order = [await store.run(api) for _ in ids]

    assert order == [ids[name] for name in "fcedab"]


async def test_what_is_tried_again_keeps_its_place(store: Bed) -> None:
    api = await store.project()
    await store.node()
    first, second = await store.put(api), await store.put(api)

    await store.queue.finish(again(await store.take(api), at=store.clock.now))

    assert [await store.run(api), await store.run(api)] == [first, second]


async def test_a_row_that_waits_never_holds_up_the_rows_behind_it(store: Bed) -> None:
    api, web = await store.project(), await store.project("web")
    await store.node()
    parent = await store.put(web)
    person = await store.put(api, priority=0)
    await store.queue.finish(asked(await store.take(api)))
    limited_ = await store.put(api, priority=0, backend="full")
    await store.queue.finish(limited(await store.take(api), store.clock.now + HOUR))
    later = await store.put(api, priority=0, available_at=store.clock.now + HOUR)
    retried = await store.put(api, priority=0)
    await store.queue.finish(again(await store.take(api), at=store.clock.now + HOUR))
    blocked = await store.put(api, priority=0, after=(parent,))
    behind = await store.put(api, priority=2)

    assert await store.claimed(api) == [behind]
    await store.queue.finish(done(await store.queue.get(behind)))
    assert await store.claimed(api) == []

    store.clock.tick(HOUR)
    await store.run(web)
    await store.queue.answer(person, "blue", "me")
    await store.queue.expire_parks()
    assert [await store.run(api) for _ in range(5)] == [person, limited_, later, retried, blocked]


async def test_one_slot_runs_one(store: Bed) -> None:
    api = await store.project()
    await store.node()
    await store.put(api)
    await store.put(api)

    first = await store.take(api)

    assert await store.claimed(api) == []
    await store.queue.finish(done(first))
    assert (await store.take(api)).slot == 0


async def test_three_slots_run_three_and_the_free_one_is_used(store: Bed) -> None:
    api = await store.project(max_running=3)
    await store.node()
    for _ in range(6):
        await store.put(api)

    first, second, third = [await store.take(api) for _ in range(3)]
    assert [first.slot, second.slot, third.slot] == [0, 1, 2]
    assert await store.claimed(api) == []

    await store.queue.finish(done(second))
    assert (await store.take(api)).slot == 1
    await store.queue.finish(done(first))
    await store.queue.finish(done(third))
    assert sorted([(await store.take(api)).slot, (await store.take(api)).slot]) == [0, 2]  # type: ignore[type-var]
    assert await store.claimed(api) == []


async def test_fewer_slots_take_nothing_away_and_admit_nothing(store: Bed) -> None:
    api = await store.project(max_running=3)
    await store.node()
    for _ in range(4):
        await store.put(api)
    first, second, third = [await store.take(api) for _ in range(3)]

    await store.project(max_running=1)
    await store.queue.finish(done(first))
    await store.queue.finish(done(third))
    assert await store.claimed(api) == []
    await store.queue.finish(done(second))
    assert len(await store.claimed(api)) == 1


async def test_the_database_itself_refuses_a_second_in_a_slot(store: Bed) -> None:
    api = await store.project()
    await store.node()
    await store.put(api)
    second = await store.put(api)
    await store.take(api)

    with pytest.raises(PilotError, match=r"(?i)unique"):
        await store.sql(
            "UPDATE executions SET status = 'running', slot = 0, node = 'n2', lease_until = 1 WHERE id = :id", id=second
        )
    with pytest.raises(PilotError, match=r"(?i)unique"):
        await store.sql(
            "INSERT INTO executions (project_id, project, project_path, task_id, title, body, source, kind, labels, "
            "priority, lane, status, available_at, max_attempts, backend, created_at) SELECT project_id, project, "
            "project_path, task_id, title, body, source, kind, labels, priority, lane, 'queued', 0, 1, '', 0 "
            "FROM executions WHERE id = :id",
            id=second,
        )


async def test_a_wrong_count_can_not_make_two_run_in_one_slot(store: Bed) -> None:
    api = await store.project()
    await store.node()
    await store.put(api)
    await store.put(api)
    await store.take(api)
    await store.sql("UPDATE projects SET running = 0")  # as a bug would leave it

    with pytest.raises(PilotError, match=r"(?i)unique"):
        await store.claim(api)

    assert await store.value("SELECT count(*) FROM executions WHERE status = 'running'") == 1
    await store.sql("UPDATE projects SET running = 1")


async def test_a_fence_is_given_out_once_and_rises(store: Bed) -> None:
    api = await store.project(max_running=2)
    await store.node()
    fences = []
    for _ in range(3):
        await store.put(api)
        await store.put(api)
        first, second = await store.take(api), await store.take(api)
        fences += [first.fence, second.fence]
        await store.queue.finish(again(second))
        await store.queue.finish(done(first))
        retry = await store.take(api)
        fences.append(retry.fence)
        await store.queue.finish(done(retry))

    assert fences == sorted(set(fences))


async def test_a_fence_outlives_the_rows_that_had_it(store: Bed) -> None:
    api = await store.project()
    await store.node()
    await store.put(api)
    await store.run(api)
    store.clock.tick(HOUR)

    assert await store.queue.prune(store.clock.now) == 1
    await store.put(api)
    assert (await store.take(api)).fence == 2


async def test_two_claimers_never_get_the_same(store: Bed, other: Bed) -> None:
    api = await store.project(max_running=3)
    await store.node("a")
    await store.node("b")
    ids = [await store.put(api) for _ in range(10)]

    found = await asyncio.gather(*(bed.claim(api, name) for bed, name in [(store, "a"), (other, "b")] * 5))

    assert sorted(e.id for some in found for e in some) == ids[:3]
    await store.check()


async def test_claims_that_meet_in_one_commit_take_one_each(store: Bed) -> None:
    api, web = await store.project("api", 2), await store.project("web")
    await store.node()
    ids = [await store.put(api) for _ in range(4)]
    alone = await store.put(web)

    found = await asyncio.gather(*(store.claimed(project) for project in (api, web, api, web, api)))

    assert found == [[ids[0]], [alone], [ids[1]], [], []]


async def test_a_paused_project_gives_nothing_and_goes_on_running(store: Bed) -> None:
    api, web = await store.project("api"), await store.project("web")
    await store.node()
    await store.put(api)
    running = await store.take(api)
    await store.put(api)
    await store.put(web)

    await store.queue.pause(api.id, "me", "look at it first")

    assert await store.queue.finish(done(running, next_lease=MINUTE)) is None
    assert await store.claimed(api) == []
    assert len(await store.claimed(web)) == 1
    assert await store.queue.resume(api.id, "me") == ["me"]
    assert len(await store.claimed(api)) == 1


async def test_a_pause_of_all_is_one_of_each(store: Bed) -> None:
    api, web = await store.project("api"), await store.project("web")
    await store.node()
    await store.put(api)
    await store.put(web)

    await store.queue.pause(0, "me", "deploying")
    assert await store.claimed(api) == await store.claimed(web) == []
    assert await store.queue.resume(api.id) == []  # its own pauses; there are none
    assert await store.claimed(api) == []
    assert await store.queue.resume(0) == ["me"]
    assert await store.claimed(api) != []


async def test_two_pausers_do_not_undo_each_other(store: Bed) -> None:
    api = await store.project()
    await store.node()
    await store.put(api)
    await store.queue.pause(api.id, "breaker", "too many failures")
    await store.queue.pause(api.id, "me", "lunch")
    await store.queue.pause(api.id, "me", "long lunch")

    assert await store.rows("SELECT owner, reason FROM pauses ORDER BY owner") == [
        ("breaker", "too many failures"),
        ("me", "long lunch"),
    ]
    assert await store.queue.resume(api.id, "me") == ["me"]
    assert await store.queue.resume(api.id, "me") == []
    assert await store.claimed(api) == []
    assert await store.queue.resume(api.id) == ["breaker"]
    assert len(await store.claimed(api)) == 1
    types = [type for (type,) in await store.rows("SELECT type FROM events WHERE execution_id IS NULL ORDER BY id")]
    assert types == ["node.started", *["project.paused"] * 3, *["project.resumed"] * 2]


async def test_a_direct_run_goes_first_and_nobody_else_takes_it(store: Bed) -> None:
    api = await store.project()
    await store.node("serve")
    await store.node("run-1")
    queued = await store.put(api)
    direct = await store.put(api, priority=-1, reserved_for="run-1")

    assert await store.claimed(api, "serve") == []  # the person is next, also while his process looks away
    assert await store.claimed(api, "run-1", own=True) == [direct]
    await store.queue.finish(done(await store.queue.get(direct)))
    assert await store.claimed(api, "run-1", own=True) == []
    assert await store.claimed(api, "serve") == [queued]


async def test_claims_of_different_nodes_in_one_commit_do_not_hide_each_other(store: Bed) -> None:
    api = await store.project()
    await store.node("serve")
    await store.node("run-1")
    direct = await store.put(api, priority=-1, reserved_for="run-1")

    found = await asyncio.gather(
        store.claimed(api, "serve"), store.claimed(api, "serve"), store.claimed(api, "run-1", own=True)
    )

    assert list(found) == [[], [], [direct]]


async def test_a_fused_claim_of_a_direct_run_takes_no_work_of_others(store: Bed) -> None:
    api = await store.project()
    await store.node("run-1")
    await store.put(api, priority=-1, reserved_for="run-1")
    direct = await store.take(api, "run-1", own=True)
    await store.put(api)

    assert await store.queue.finish(done(direct, next_lease=MINUTE)) is None


async def test_a_claim_over_all_projects_takes_one_of_each_oldest_head_first(store: Bed) -> None:
    projects = [await store.project(name) for name in ("a", "b", "c", "d")]
    await store.node()
    b = await store.put(projects[1])
    a = await store.put(projects[0])
    await store.put(projects[1])
    urgent = await store.put(projects[3], priority=0)
    await store.queue.pause(projects[2].id, "me", "")
    await store.put(projects[2], priority=0)

    assert [e.id for e in await store.queue.claim("n1", max=2)] == [urgent, b]
    assert [e.id for e in await store.queue.claim("n1", max=9)] == [a]
    assert await store.queue.claim("n1", max=9) == []
    assert await store.queue.claim("n1", projects=(), max=9) == []


async def test_what_has_become_due_is_ready_without_anybody_claiming(store: Bed) -> None:
    api, web = await store.project("api"), await store.project("web")
    await store.node()
    late = await store.put(api, available_at=store.clock.now + SECOND)
    later = await store.put(web, available_at=store.clock.now + MINUTE)

    assert await store.queue.ready() == []
    assert await store.queue.next_due() == store.clock.now + SECOND
    store.clock.tick(SECOND)
    assert await store.queue.ready() == [api.id]
    assert await store.queue.ready([web.id]) == []
    assert await store.queue.next_due() == store.clock.now + MINUTE - SECOND
    assert [e.id for e in await store.queue.claim("n1", max=9)] == [late]
    store.clock.tick(MINUTE)
    assert [e.id for e in await store.queue.claim("n1", max=9)] == [later]
    assert await store.queue.next_due() is None


async def test_more_tasks_of_more_projects_than_one_statement_is_comfortable_with(store: Bed) -> None:
    projects = await store.queue.register([(f"k{n}", f"p{n}", f"/{n}", 1) for n in range(300)])
    await store.node()
    answers = await asyncio.gather(
        *(store.queue.enqueue(task(project, f"T-{n}")) for n in range(3) for project in projects)
    )
    assert len({answer.id for answer in answers}) == 900

    found = await asyncio.gather(*(store.claim(project) for project in projects for _ in range(2)))

    assert sorted(e.project_id for some in found for e in some) == [project.id for project in projects]
    nexts = await asyncio.gather(*(store.queue.finish(done(e, next_lease=MINUTE)) for some in found for e in some))
    assert {e.task_id for e in nexts if e} == {"T-1"}
    assert [e.project_id for e in nexts if e] == [e.project_id for some in found for e in some]


async def test_a_claim_remembers_what_came_before(store: Bed) -> None:
    api = await store.project()
    await store.node()
    id = await store.put(api)
    first = await store.take(api)
    store.clock.tick(SECOND)
    await store.queue.finish(replace(again(first), settlement=replace(again(first).settlement, feedback="try x")))

    second = await store.take(api)

    assert (second.id, second.attempt, second.failures, second.feedback) == (id, 2, 1, "try x")
    assert second.started_at == first.started_at  # of the execution, not of the attempt
    assert second.reason is None
    assert second.fence > first.fence
