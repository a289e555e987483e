"""Dependencies: what waits is released by the last completion, and ends with the first failure."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import pytest

from pilot.domain.execution import Execution, Status
from pilot.domain.ports import Finish
from tests.store.bed import (
    HOUR,
    Bed,
    again,
    asked,
    broken,
    done,
    interrupted,
)

ENDS: Mapping[str, Callable[[Execution], Finish]] = {"again": again, "asked": asked, "interrupted": interrupted}


async def test_completion_releases_what_waited(store: Bed) -> None:
    api, web = await store.project("api"), await store.project("web")
    await store.node()
    top = await store.put(api)
    left, right = await store.put(web, after=(top,)), await store.put(api, after=(top,))
    bottom = await store.put(api, after=(left, right))
    told: list[str] = []
    leave = store.database.listen(lambda tokens: told.extend(tokens))

    assert await store.run(api) == top
    assert {str(api.id), str(web.id)} <= set(told)
    leave()
    assert await store.status(bottom) is Status.BLOCKED
    assert await store.events(left) == ["queued", "unblocked"]
    assert [await store.run(web), await store.run(api)] == [left, right]
    assert (await store.queue.get(bottom)).deps_left == 0
    assert await store.run(api) == bottom


async def test_parents_that_end_in_one_commit_both_count(store: Bed) -> None:
    projects = [await store.project(f"p{n}") for n in range(5)]
    await store.node()
    parents = [await store.put(project) for project in projects]
    child = await store.put(projects[0], after=tuple(parents))
    running = [await store.take(project) for project in projects]

    await asyncio.gather(*(store.queue.finish(done(e)) for e in running))

    assert await store.status(child) is Status.QUEUED
    assert await store.events(child) == ["queued", "unblocked"]


async def test_a_released_row_still_waits_for_its_time(store: Bed) -> None:
    api = await store.project()
    await store.node()
    parent = await store.put(api)
    child = await store.put(api, after=(parent,), available_at=store.clock.now + HOUR)

    await store.run(api)

    assert await store.status(child) is Status.QUEUED
    assert await store.claimed(api) == []
    store.clock.tick(HOUR)
    assert await store.claimed(api) == [child]


@pytest.mark.parametrize("end", ["failed", "cancelled"])
async def test_what_depends_on_a_failure_is_cancelled_with_it_and_says_so(store: Bed, end: str) -> None:
    api = await store.project()
    await store.node()
    parent = await store.put(api)
    child = await store.put(api, after=(parent,))
    grandchild = await store.put(api, after=(child, parent))
    apart = await store.put(api)

    if end == "failed":
        await store.queue.finish(broken(await store.take(api)))
        said = f"execution {parent}, which it waits for, failed"
    else:
        await store.queue.cancel(parent, "me")
        said = f"execution {parent}, which it waits for, was cancelled"

    rows = {id: await store.queue.get(id) for id in (child, grandchild, apart)}
    assert rows[child].status is rows[grandchild].status is Status.CANCELLED
    assert rows[child].reason == said
    assert rows[grandchild].reason is not None
    assert rows[child].finished_at == store.clock.now
    assert rows[apart].status is Status.QUEUED
    assert await store.events(grandchild) == ["queued", "cancelled"]


@pytest.mark.parametrize("hold", ["again", "asked", "interrupted"])
async def test_what_may_still_complete_cancels_nobody(store: Bed, hold: str) -> None:
    api = await store.project()
    await store.node()
    parent = await store.put(api)
    child = await store.put(api, after=(parent,))
    execution = await store.take(api)

    await store.queue.finish(ENDS[hold](execution))

    assert await store.status(child) is Status.BLOCKED
    if hold == "asked":
        await store.queue.answer(parent, "yes", "me")
    assert await store.run(api) == parent
    assert await store.run(api) == child


@pytest.mark.parametrize("end", ["completed", "failed"])
async def test_a_chain_of_two_thousand(store: Bed, end: str) -> None:
    api = await store.project()
    await store.node()
    chain = [await store.put(api)]
    await store.sql(
        "INSERT INTO executions (id, project_id, project, project_path, task_id, title, body, source, kind, labels, "
        "priority, lane, status, available_at, deps_left, has_dependents, max_attempts, backend, created_at) "
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2000) "
        "SELECT e.id + n.i, project_id, project, project_path, 'chain-' || n.i, title, body, source, kind, labels, "
        "priority, lane, 'blocked', available_at, 1, 1, max_attempts, backend, created_at "
        "FROM executions e, n WHERE e.id = :first",
        first=chain[0],
    )
    await store.sql(
        "INSERT INTO dependencies SELECT id, id - 1 FROM executions WHERE id > :first",
        first=chain[0],
    )
    await store.sql("UPDATE executions SET has_dependents = 1")
    await store.sql(
        "INSERT INTO events (at, type, execution_id, data) SELECT 0, 'execution.queued', id, "
        '\'{"status":"blocked"}\' FROM executions WHERE id > :first',
        first=chain[0],
    )

    execution = await store.take(api)
    await store.queue.finish(done(execution) if end == "completed" else broken(execution))

    counts: dict[str, int] = dict(await store.rows("SELECT status, count(*) FROM executions GROUP BY status"))
    if end == "completed":
        assert counts == {"completed": 1, "queued": 1, "blocked": 1999}
    else:
        assert counts == {"failed": 1, "cancelled": 2000}
