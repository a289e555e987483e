"""Refusals: kept once per request, told once, and known to whoever looks next."""

from __future__ import annotations

import asyncio

from pilot.domain.delivery import Refusal
from tests.store.bed import Bed, task


def refusal(key: str = "k", project: int | None = 1, reason: str = "may not") -> Refusal:
    return Refusal(
        key=key, project_id=project, source="github", task_id="GH-1", actor="mallory", reason=reason, url="https://x/1"
    )


async def test_a_request_is_refused_once_by_whoever_it_is(store: Bed, other: Bed) -> None:
    api = await store.project()

    both = (store.store.refusals, other.store.refusals)
    answers = await asyncio.gather(*(by.refuse(refusal(project=api.id)) for by in both * 5))

    assert sorted(answers) == [False] * 9 + [True]
    ((project, data),) = await store.rows("SELECT project_id, data FROM events WHERE type = 'trigger.refused'")
    assert project == api.id
    assert all(word in data for word in ("github", "mallory", "may not", "GH-1", "https://x/1"))


async def test_what_was_decided_is_known(store: Bed) -> None:
    api, web = await store.project(), await store.project("web")
    await store.put(api, "T", idempotency_key="taken")
    await store.queue.enqueue(task(api, "T", idempotency_key="same"))
    await store.store.refusals.refuse(refusal("no", api.id))

    known = await store.store.refusals.known(api.id, ["taken", "same", "no", "new"])

    assert known == {"taken": "accepted", "same": "accepted", "no": "refused"}
    assert await store.store.refusals.known(web.id, ["taken", "same", "no"]) == {}
    assert await store.store.refusals.known(api.id, []) == {}


async def test_what_was_accepted_is_not_refused_afterwards(store: Bed) -> None:
    api = await store.project()
    await store.put(api, "T", idempotency_key="taken")

    assert not await store.store.refusals.refuse(refusal("taken", api.id))
    assert await store.rows("SELECT 1 FROM refusals") == []


async def test_a_refusal_may_be_of_no_project(store: Bed) -> None:
    assert await store.store.refusals.refuse(refusal(project=None, reason="no \ud800 project\x00"))
    assert not await store.store.refusals.refuse(refusal(project=None))
    assert await store.value("SELECT project_id FROM events WHERE type = 'trigger.refused'") is None
