"""Figures of the queue: what waits, what gets done, what fails; quick beside a million ended rows."""

from __future__ import annotations

from typing import Any

from pilot.domain.execution import Status
from pilot.domain.outcome import FailureClass
from pilot.domain.task import Kind
from pilot.store.stats import DAY, SAMPLE, stats
from tests.store.bed import HOUR, MINUTE, SECOND, Bed, asked, broken, done


async def figures(store: Bed) -> dict[str, Any]:
    """The document."""
    return await store.store.work.stats()


async def test_an_empty_store_has_figures_of_nothing(store: Bed) -> None:
    document = await figures(store)

    assert set(document["counts"]) == set(map(str, Status))
    assert set(document["kinds"]) == set(map(str, Kind))
    assert document["kinds"]["code"] == {
        "blocked": 0, "queued": 0, "running": 0, "needs_human": 0, "oldest_wait_seconds": None,
        "completed_24h": 0, "failed_24h": 0,
    }  # fmt: skip
    assert document["oldest_wait_seconds"] is None
    assert document["failures"] == {"rate": None, "by_class": {}}
    assert document["run_time"] == {"of": 0, "average_seconds": None, "p50_seconds": None, "p95_seconds": None}


async def test_what_waits_by_kind_and_for_how_long(store: Bed) -> None:
    api, web, app = [await store.project(name) for name in ("api", "web", "app")]
    await store.node()
    await store.put(api, kind=Kind.BUILD)
    await store.put(api, kind=Kind.BUILD)
    store.clock.tick(MINUTE)
    parent = await store.put(web, kind=Kind.DEPLOY)
    await store.put(web, kind=Kind.DEPLOY, after=(parent,))
    await store.put(web, kind=Kind.DEPLOY, available_at=store.clock.now + 30 * SECOND)
    await store.put(web, kind=Kind.DEPLOY, available_at=store.clock.now + HOUR)
    await store.queue.finish(asked(await store.take(web)))
    await store.put(app)
    await store.take(app)
    store.clock.tick(MINUTE)

    document = await figures(store)

    kinds = document["kinds"]
    assert document["oldest_wait_seconds"] == 120
    assert (kinds["build"]["queued"], kinds["build"]["oldest_wait_seconds"]) == (2, 120)
    assert (kinds["deploy"]["queued"], kinds["deploy"]["needs_human"]) == (2, 1)
    assert kinds["deploy"]["blocked"] == 1
    assert kinds["deploy"]["oldest_wait_seconds"] == 30, "due, though nobody has marked it so yet"
    assert (kinds["code"]["running"], kinds["code"]["queued"], kinds["code"]["oldest_wait_seconds"]) == (1, 0, None)
    assert document["counts"]["blocked"] == 1


async def test_what_got_done_and_what_failed_of_what(store: Bed) -> None:
    api = await store.project()
    await store.node()

    async def end(failure: FailureClass | None = None, kind: Kind = Kind.CODE, seconds: int = 1) -> None:
        await store.put(api, kind=kind)
        execution = await store.take(api)
        store.clock.tick(seconds * SECOND)
        await store.queue.finish(done(execution) if failure is None else broken(execution, failure=failure))

    await end(seconds=500)
    await end(FailureClass.CI)
    store.clock.tick(DAY)
    await end(kind=Kind.TEST, seconds=60)
    await end(FailureClass.TEST, kind=Kind.TEST)
    await end(FailureClass.STALL)
    store.clock.tick(HOUR)
    for seconds in (10, 20, 30):
        await end(seconds=seconds)
    await end(FailureClass.STALL)
    await store.put(api)
    await store.queue.cancel((await store.put(api)), "me")

    document = await figures(store)

    assert document["throughput"] == {
        "last_hour": {"completed": 3, "failed": 1}, "last_24h": {"completed": 4, "failed": 3}
    }  # fmt: skip
    assert document["failures"]["rate"] == 3 / 7
    assert list(document["failures"]["by_class"].items()) == [("stall", 2), ("test", 1)]
    assert (document["kinds"]["test"]["completed_24h"], document["kinds"]["test"]["failed_24h"]) == (1, 1)
    assert (document["kinds"]["code"]["completed_24h"], document["kinds"]["code"]["failed_24h"]) == (3, 2)
    assert document["run_time"] == {"of": 4, "average_seconds": 30.0, "p50_seconds": 20.0, "p95_seconds": 60.0}
    assert (await store.store.history.status(store.clock.now))["stats"] == document


async def test_a_day_has_exactly_a_day(store: Bed) -> None:
    api = await store.project()
    await store.node()
    await store.put(api)
    await store.run(api)
    store.clock.tick(DAY - 1)
    assert (await figures(store))["throughput"]["last_24h"]["completed"] == 1

    store.clock.tick(1)

    assert (await figures(store))["throughput"]["last_24h"]["completed"] == 0


async def test_of_run_times_the_last_ones_count(store: Bed) -> None:
    api = await store.project()
    await store.sql(
        "INSERT INTO executions (project_id, project, project_path, task_id, title, body, source, kind, labels, "
        "priority, lane, status, available_at, max_attempts, backend, created_at, started_at, finished_at) "
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < :most + 5) "
        "SELECT :project, 'api', '/', 'T-' || i, 't', '', 'cli', 'code', '[]', 2, 0, 'completed', 0, 3, 'agent', 0, "
        ":now - i - CASE WHEN i > :most THEN 900000 ELSE 1000 END, :now - i FROM n",
        project=api.id, now=store.clock.now, most=SAMPLE,
    )  # fmt: skip

    run_time = (await stats(store.database, {}, store.clock.now))["run_time"]

    assert run_time == {"of": SAMPLE, "average_seconds": 1.0, "p50_seconds": 1.0, "p95_seconds": 1.0}
    await store.sql("DELETE FROM executions")
