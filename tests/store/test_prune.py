"""Prune: old history goes, with all that belongs to it; what anything open or owed needs stays."""

from __future__ import annotations

from pilot.domain.agent import OutputKind
from pilot.domain.execution import Status
from pilot.domain.outcome import Ending, Outcome
from tests.store.bed import HOUR, Bed, asked, broken, done
from tests.store.test_plans import plan


async def test_what_ended_before_the_time_goes_with_all_that_is_its(store: Bed) -> None:
    api = await store.project()
    await store.node()
    old = await store.put(api)
    execution = await store.take(api)
    await store.journal.write(execution, [(OutputKind.TEXT, b"x")])
    await store.queue.finish(asked(execution))
    await store.queue.answer(old, "yes", "me")
    await store.run(api)
    store.clock.tick(HOUR)
    young = await store.put(api)
    await store.run(api)
    open_ = await store.put(api)

    assert await store.queue.prune(store.clock.now) == 1

    for table in ("attempts", "output", "questions", "events"):
        found = await store.rows(f"SELECT DISTINCT execution_id FROM {table} WHERE execution_id IS NOT NULL")
        assert {id for (id,) in found} <= {young, open_}, table
    assert [id for (id,) in await store.rows("SELECT id FROM executions ORDER BY id")] == [young, open_]
    assert await store.queue.prune(store.clock.now) == 0


async def test_nothing_open_goes_whatever_its_age(store: Bed) -> None:
    api = await store.project(max_running=2)
    await store.node()
    held, running = await store.put(api), await store.put(api)
    await store.queue.finish(asked(await store.take(api)))
    await store.take(api)
    queued = await store.put(api)
    blocked = await store.put(api, after=(queued,))
    store.clock.tick(10**12)

    assert await store.queue.prune(store.clock.now) == 0
    assert [id for (id,) in await store.rows("SELECT id FROM executions ORDER BY id")] == [
        held,
        running,
        queued,
        blocked,
    ]


async def test_what_something_open_waited_for_stays_until_that_has_ended(store: Bed) -> None:
    api = await store.project()
    await store.node()
    parent = await store.put(api)
    child = await store.put(api, after=(parent, await store.put(api)))
    await store.run(api)
    store.clock.tick(HOUR)

    assert await store.queue.prune(store.clock.now) == 0
    await store.run(api)
    await store.run(api)
    store.clock.tick(HOUR)
    assert await store.queue.prune(store.clock.now) == 3
    assert await store.put(api) == child + 1  # an id is given out once, whatever became of its execution


async def test_a_run_of_a_plan_goes_as_a_whole(store: Bed) -> None:
    """What made nothing stands for what it waited for, and the same plan again finds all that was done."""
    api = await store.project()
    given = plan(api, {"code": [], "test": ["code"], "ship": ["test"]})
    await store.queue.submit(given)
    for outcome in (
        Outcome(ending=Ending.DONE, branch="pilot/code", base_sha="0" * 40, head_sha="1" * 40),
        Outcome(ending=Ending.NO_CHANGE),
    ):
        (claim,) = await store.store.work.claim("w")
        await store.store.work.complete(claim.execution.id, "w", claim.fence, outcome)
    store.clock.tick(HOUR)

    assert await store.queue.prune(store.clock.now) == 0
    assert [one.duplicate for one in await store.queue.submit(given)] == [True] * 3
    (ship,) = await store.store.work.claim("w")
    assert [made.head_sha for made in ship.made] == ["1" * 40, None]

    await store.store.work.complete(ship.execution.id, "w", ship.fence, Outcome(ending=Ending.NO_CHANGE))
    assert await store.queue.prune(store.clock.now) == 0, "its end is not old yet"
    store.clock.tick(1)
    assert await store.queue.prune(store.clock.now) == 3


async def test_a_chain_of_retries_goes_in_one_call(store: Bed) -> None:
    api = await store.project()
    await store.node()
    id = await store.put(api)
    for _ in range(5):
        await store.queue.finish(broken(await store.take(api)))
        id = (await store.queue.retry(id)).id
    store.clock.tick(HOUR)

    assert await store.queue.prune(store.clock.now) == 0  # the last retry is open, and tells where it came from
    await store.run(api)
    store.clock.tick(HOUR)
    assert await store.queue.prune(store.clock.now) == 6


async def test_what_still_owes_the_outside_something_stays(store: Bed) -> None:
    api = await store.project()
    await store.node()
    id = await store.put(api)
    await store.run(api)
    await store.sql(
        "INSERT INTO outbox (lane, execution_id, kind, key, fence, payload, available_at, created_at) "
        "VALUES ('l', :id, 'callback', 'k', 1, '{}', 0, 0)",
        id=id,
    )
    store.clock.tick(HOUR)

    assert await store.queue.prune(store.clock.now) == 0
    await store.sql("UPDATE outbox SET delivered_at = 1")
    assert await store.queue.prune(store.clock.now) == 1


async def test_more_than_a_batch(store: Bed) -> None:
    api = await store.project()
    await store.node()
    await store.put(api)
    await store.run(api)
    await store.sql(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2500) "
        "INSERT INTO executions (project_id, project, project_path, task_id, title, body, source, kind, labels, "
        "priority, lane, status, available_at, max_attempts, backend, created_at, finished_at) "
        "SELECT project_id, project, project_path, 'old-' || n.i, title, body, source, kind, labels, "
        "priority, lane, 'completed', available_at, max_attempts, backend, created_at, 1 FROM executions, n"
    )
    await store.sql(
        "INSERT INTO events (at, type, execution_id, data) SELECT 0, t.type, e.id, t.data FROM executions e JOIN "
        "(SELECT 'execution.queued' AS type, '{\"status\":\"queued\"}' AS data UNION ALL "
        "SELECT 'execution.started', '{}' UNION ALL SELECT 'execution.completed', '{}') AS t ON e.finished_at = 1"
    )

    assert await store.queue.prune(store.clock.now) == 2500
    assert await store.value("SELECT count(*) FROM executions") == 1


async def test_a_pruned_id_is_never_given_again(store: Bed) -> None:
    api = await store.project()
    await store.node()
    last = await store.put(api)
    await store.run(api)
    store.clock.tick(1)
    await store.queue.prune(store.clock.now)

    id = await store.put(api)

    assert id > last
    assert await store.status(id) is Status.QUEUED
    await store.queue.finish(done(await store.take(api)))
