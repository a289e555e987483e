"""Who does it instead, and what is left to remote workers."""

from __future__ import annotations

import json

from pilot.domain.outcome import FailureClass
from tests.store.bed import HOUR, MINUTE, Bed, done, limited


async def close(store: Bed, *backends: str) -> None:
    """Park these for a person, by a task of a project of their own."""
    scratch = await store.project("scratch")
    for backend in backends:
        await store.put(scratch, backend=backend)
        execution = await store.take(scratch)
        await store.queue.finish(limited(execution, None, FailureClass.QUOTA))
        await store.queue.cancel(execution.id, "me")


async def test_the_first_that_takes_work_stands_in(store: Bed) -> None:
    api = await store.project()
    await store.node()
    await close(store, "agent", "codex")
    id = await store.put(api, fallback=("codex", "goose", "gemini"), model="opus")

    execution = await store.take(api)

    assert (execution.id, execution.backend, execution.fallback) == (id, "goose", ("codex", "gemini", "agent"))
    assert (execution.model, execution.session_id) == (None, None)
    assert await store.value("SELECT backend FROM attempts WHERE execution_id = :id", id=id) == "goose"
    assert await store.events(id) == ["queued", "rerouted", "started"]
    data = await store.value("SELECT data FROM events WHERE type = 'execution.rerouted'")
    assert json.loads(data) == {
        "from": "agent", "to": "goose", "reason": "agent takes no work: quota: come back later",
    }  # fmt: skip


async def test_a_task_whose_agent_is_used_up_goes_on_with_the_next_and_without_its_session(store: Bed) -> None:
    api = await store.project()
    await store.node()
    id = await store.put(api, fallback=("codex",))
    execution = await store.take(api)
    await store.journal.note(execution, session_id="of agent", model="opus")

    following = await store.queue.finish(limited(execution, None))
    assert following is None
    assert (await store.queue.get(id)).session_id == "of agent"  # it is still his, if he is the first to be free
    execution = await store.take(api)

    assert (execution.backend, execution.fallback, execution.session_id) == ("codex", ("agent",), None)
    await store.queue.unpark("agent", "me")
    await store.journal.note(execution, session_id="of codex")
    await store.queue.finish(limited(execution, None))
    execution = await store.take(api)
    assert (execution.backend, execution.session_id) == ("agent", None)


async def test_order_stays_and_only_what_nobody_takes_is_passed_over(store: Bed) -> None:
    api = await store.project()
    await store.node()
    await close(store, "agent", "codex")
    stuck = await store.put(api, fallback=("codex",))
    first = await store.put(api, fallback=("codex", "goose"))
    second = await store.put(api, backend="goose")

    assert await store.run(api) == first
    assert await store.run(api) == second
    assert await store.claimed(api) == []
    assert api.id not in await store.queue.ready()
    await store.queue.unpark("codex", "me")
    assert await store.queue.ready() == [api.id]
    assert (await store.take(api)).id == stuck


async def test_a_half_open_backend_is_tried_by_its_own_and_the_next_ones_go_on(store: Bed) -> None:
    api, web = await store.project("api"), await store.project("web")
    await store.node()
    await close(store, "agent")
    await store.queue.unpark("agent", "me")
    await store.put(api, fallback=("codex",))
    await store.put(web, fallback=("codex",))

    probe, rerouted = await store.take(api), await store.take(web)

    assert (probe.backend, rerouted.backend) == ("agent", "codex")


async def test_a_retry_keeps_who_does_it(store: Bed) -> None:
    api = await store.project()
    await store.node()
    await close(store, "agent")
    id = await store.put(api, fallback=("codex",))
    await store.run(api)

    new = await store.queue.retry(id)

    row = await store.queue.get(new.id)
    assert (row.backend, row.fallback) == ("codex", ("agent",))


async def test_what_is_left_to_remote_workers_holds_up_nobody_here(store: Bed) -> None:
    api = await store.project()
    await store.node()
    remote = await store.put(api, backend="deploy", external=True)
    assert await store.queue.ready() == []
    local = await store.put(api)
    await store.node("worker")

    assert await store.claimed(api) == [local]
    await store.queue.finish(done(await store.queue.get(local)))
    assert await store.claimed(api) == []
    assert await store.queue.claim("worker", lease=MINUTE, max=9) == []
    (execution,) = await store.queue.claim("worker", lease=MINUTE, max=9, external=True)
    assert execution.id == remote
    assert execution.external


async def test_a_remote_worker_gets_the_first_whatever_it_is(store: Bed) -> None:
    api = await store.project()
    await store.node("worker")
    local = await store.put(api)
    await store.put(api, external=True, available_at=store.clock.now + HOUR)

    (execution,) = await store.queue.claim("worker", lease=MINUTE, external=True)

    assert execution.id == local
