"""What completes by itself: notes, and what is there already under its dedupe key."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from pilot.domain.errors import UsageError
from pilot.domain.execution import Enqueued, Execution, Status
from pilot.domain.outcome import Ending
from pilot.domain.ports import Finish
from pilot.domain.task import Project
from pilot.domain.work import Artifact
from tests.store.bed import HOUR, Bed, again, asked, broken, done, interrupted, task
from tests.store.test_artifacts import bringing

AGAIN: list[Callable[[Execution], Finish]] = [again, interrupted]


async def made(store: Bed, project: Project, key: str, *artifacts: Artifact, **more: Any) -> int:
    """A completed execution with a result under that key."""
    id = await store.put(project, dedupe=key)
    await store.queue.finish(bringing(await store.take(project), *artifacts, **more))
    return id


async def test_a_note_is_completed_when_it_comes(store: Bed) -> None:
    api = await store.project()
    await store.node()

    new = await store.queue.enqueue(task(api, "note", instant=True, callback_url="https://example.org/x"))

    row = await store.queue.get(new.id)
    assert new == Enqueued(new.id, Status.COMPLETED, duplicate=False)
    assert (row.status, row.outcome, row.reason) == (Status.COMPLETED, "done", "nobody has to do it")
    assert (row.attempt, row.node, row.started_at, row.finished_at) == (0, None, None, store.clock.now)
    assert (row.artifacts, row.instant) == (None, True)
    assert await store.events(new.id) == ["queued", "completed"]
    told = await store.value("SELECT data FROM events WHERE type = 'execution.completed'")
    assert json.loads(told)["reason"] == row.reason
    assert await store.value("SELECT count(*) FROM outbox WHERE kind = 'callback'") == 1
    assert await store.claimed(api) == []
    assert await store.value("SELECT count(*) FROM results") == 0


async def test_a_note_waits_for_what_it_waits_for_and_for_nothing_else(store: Bed) -> None:
    api, web = await store.project(), await store.project("web")
    await store.node()
    first = await store.put(api)
    note = await store.put(web, after=(first,), instant=True, available_at=store.clock.now + HOUR, external=True)
    last = await store.put(web, after=(note,))
    await store.queue.pause(web.id, "me", "no")

    assert await store.status(note) is Status.BLOCKED
    await store.run(api)

    assert await store.status(note) is Status.COMPLETED
    assert await store.events(note) == ["queued", "unblocked", "completed"]
    assert await store.status(last) is Status.QUEUED
    assert await store.claimed(web) == []


async def test_a_note_that_waits_for_what_fails_is_cancelled(store: Bed) -> None:
    api = await store.project()
    await store.node()
    first = await store.put(api)
    note = await store.put(api, after=(first,), instant=True)

    await store.queue.finish(broken(await store.take(api)))

    assert await store.status(note) is Status.CANCELLED


async def test_a_note_that_is_held_waits_for_its_answer(store: Bed) -> None:
    api = await store.project()
    id = await store.put(api, held="look at it", instant=True)
    after = await store.put(api, after=(id,))
    assert await store.status(id) is Status.NEEDS_HUMAN

    await store.queue.answer(id, "fine", "me")

    assert await store.status(id) is Status.COMPLETED
    assert await store.status(after) is Status.QUEUED
    assert await store.events(id) == ["queued", "asked", "answered", "completed"]


async def test_a_chain_of_notes_and_known_results_goes_in_one_go(store: Bed) -> None:
    api = await store.project()
    await store.node()
    await made(store, api, "known")
    chain = [await store.put(api)]
    for n in range(40):
        chain.append(
            await store.put(api, after=tuple(chain[-2:]), instant=n % 2 == 0, dedupe=None if n % 2 == 0 else "known")
        )
    last = await store.put(api, after=(chain[-1],))

    assert await store.run(api) == chain[0]

    assert {await store.status(id) for id in chain} == {Status.COMPLETED}
    assert await store.claimed(api) == [last]


async def test_what_is_known_is_pointed_to(store: Bed) -> None:
    api, web = await store.project(), await store.project("web")
    await store.node()
    diff = Artifact("a.diff", b"+x")
    first = await made(store, api, "k", diff, head_sha="b" * 40, base_sha="a" * 40)

    new = await store.queue.enqueue(task(api, "again", dedupe="k"))
    elsewhere = await store.queue.enqueue(task(web, "again", dedupe="k"))

    row = await store.queue.get(new.id)
    assert new.status is Status.COMPLETED
    assert row.artifacts == [{"execution": first}, {"name": "a.diff", "sha256": diff.sha256, "size": 2}]
    assert (row.head_sha, row.base_sha, row.branch, row.delivery) == ("b" * 40, "a" * 40, None, "none")
    assert row.reason == f"nobody has to do it again: k is what execution {first} made"
    assert elsewhere.status is Status.QUEUED  # what one project has made is nothing to another
    assert await store.store.artifacts.of(new.id) == {"a.diff": b"+x"}


async def test_a_result_completes_what_waits_in_the_queue(store: Bed) -> None:
    api = await store.project()
    await store.node()
    first = await store.put(api, dedupe="k", priority=0)
    twin = await store.put(api, dedupe="k")
    later = await store.put(api, dedupe="k", available_at=store.clock.now + HOUR)
    other = await store.put(api, dedupe="other")
    waits = await store.put(api, after=(twin,))
    blocked = await store.put(api, dedupe="k", after=(other,))

    assert await store.run(api) == first

    assert {await store.status(id) for id in (twin, later)} == {Status.COMPLETED}
    assert [await store.status(id) for id in (other, waits, blocked)] == [Status.QUEUED, Status.QUEUED, Status.BLOCKED]
    assert await store.run(api) == other
    assert await store.status(blocked) is Status.COMPLETED
    assert await store.claimed(api) == [waits]


@pytest.mark.parametrize("end", [broken, asked, again, interrupted])
async def test_only_what_completes_is_a_result(store: Bed, end: Callable[[Execution], Finish]) -> None:
    api = await store.project()
    await store.node()
    await store.put(api, dedupe="k")
    await store.queue.finish(end(await store.take(api)))

    assert (await store.queue.enqueue(task(api, "other", dedupe="k"))).status is Status.QUEUED


async def test_no_change_is_a_result(store: Bed) -> None:
    api = await store.project()
    await store.node()
    await made(store, api, "k", ending=Ending.NO_CHANGE)

    assert (await store.queue.enqueue(task(api, "other", dedupe="k"))).status is Status.COMPLETED


@pytest.mark.parametrize("end", AGAIN)
async def test_what_goes_back_to_the_queue_is_not_done_again_either(
    store: Bed, end: Callable[[Execution], Finish]
) -> None:
    api = await store.project(max_running=2)
    await store.node()
    first, second = await store.put(api, dedupe="k"), await store.put(api, dedupe="k")
    one, two = await store.take(api), await store.take(api)
    await store.journal.note(two, head_sha="c" * 40)  # half of it
    waits = await store.put(api, after=(second,))
    await store.queue.finish(done(one))
    assert await store.status(second) is Status.RUNNING

    await store.queue.finish(end(two))

    row = await store.queue.get(second)
    assert (row.status, row.failure_class, row.error) == (Status.COMPLETED, None, None)
    assert (row.artifacts, row.head_sha) == ([{"execution": first}], None)
    assert await store.events(second) == ["queued", "started", "requeued", "completed"]
    assert await store.status(waits) is Status.QUEUED


async def test_a_lost_node_s_work_is_not_done_again_either(store: Bed) -> None:
    api = await store.project(max_running=2)
    await store.node()
    await store.node("n2")
    await store.put(api, dedupe="k")
    second = await store.put(api, dedupe="k")
    one, _ = await store.take(api), await store.take(api, "n2")
    await store.queue.finish(done(one))

    await store.queue.recover(["n2"], "killed")

    assert await store.status(second) is Status.COMPLETED


async def test_of_two_results_in_one_commit_the_first_counts(store: Bed) -> None:
    api = await store.project(max_running=3)
    await store.node()
    first, second = await store.put(api, dedupe="k"), await store.put(api, dedupe="k")
    claims = [await store.take(api), await store.take(api)]
    third = await store.put(api, dedupe="k")

    await asyncio.gather(*(store.queue.finish(done(claim)) for claim in claims))

    assert await store.rows("SELECT key, execution_id FROM results") == [("k", first)]
    assert (await store.queue.get(second)).artifacts is None
    assert (await store.queue.get(third)).artifacts == [{"execution": first}]


async def test_of_two_results_the_first_stands(store: Bed) -> None:
    api = await store.project(max_running=2)
    await store.node()
    first, second = await store.put(api, dedupe="k"), await store.put(api, dedupe="k")
    claims = [await store.take(api), await store.take(api)]
    for claim in claims:
        await store.queue.finish(done(claim))

    third = await store.put(api, dedupe="k")
    assert (await store.queue.get(third)).artifacts == [{"execution": first}]
    assert (await store.queue.get(second)).artifacts is None


async def test_an_answer_to_what_is_known_by_now_completes_it(store: Bed) -> None:
    api = await store.project(max_running=2)
    await store.node()
    asks = await store.put(api, dedupe="k")
    await store.queue.finish(asked(await store.take(api)))
    first = await made(store, api, "k")

    await store.queue.answer(asks, "yes", "me")

    assert (await store.queue.get(asks)).artifacts == [{"execution": first}]


async def test_who_retries_what_completed_wants_it_made_anew(store: Bed) -> None:
    api = await store.project()
    await store.node()
    first = await made(store, api, "k")

    new = await store.queue.retry(first)
    assert new.status is Status.QUEUED
    assert (await store.queue.retry(first)).duplicate
    assert await store.run(api) == new.id

    other = await store.queue.enqueue(task(api, "other", dedupe="k"))
    assert (await store.queue.get(other.id)).artifacts == [{"execution": new.id}]


async def test_a_retry_of_what_failed_is_content_with_what_is_known(store: Bed) -> None:
    api = await store.project()
    await store.node()
    failed = await store.put(api, dedupe="k")
    await store.queue.finish(broken(await store.take(api)))
    await made(store, api, "k")

    assert (await store.queue.retry(failed)).status is Status.COMPLETED
    note = await store.put(api, instant=True)
    assert (await store.queue.retry(note)).status is Status.COMPLETED


async def test_a_known_key_of_a_request_and_a_known_result_are_two_things(store: Bed) -> None:
    api = await store.project()
    await store.node()
    await made(store, api, "k")
    first = await store.queue.enqueue(task(api, "x", dedupe="k", idempotency_key="r"))

    assert await store.queue.enqueue(task(api, "x", dedupe="k", idempotency_key="r")) == Enqueued(
        first.id, Status.COMPLETED, duplicate=True
    )


async def test_pruned_results_are_handed_on_or_forgotten(store: Bed) -> None:
    api = await store.project()
    await store.node()
    diff = Artifact("a.diff", b"+x")
    first = await made(store, api, "k", diff)
    await made(store, api, "gone")
    store.clock.tick(HOUR)
    before = store.clock.now
    second = await store.put(api, dedupe="k")

    assert await store.queue.prune(before) == 2

    third = await store.queue.enqueue(task(api, "third", dedupe="k"))
    assert (await store.queue.get(second)).artifacts[0] == {"execution": first}
    files = [{"name": "a.diff", "sha256": diff.sha256, "size": 2}]
    assert (await store.queue.get(third.id)).artifacts == [{"execution": second}, *files]
    assert await store.store.artifacts.get(diff.sha256) == b"+x"
    assert (await store.queue.enqueue(task(api, "fourth", dedupe="gone"))).status is Status.QUEUED


async def test_no_key_is_no_key(store: Bed) -> None:
    api = await store.project()
    await store.node()
    await made(store, api, "")

    assert await store.value("SELECT count(*) FROM results") == 0
    assert (await store.queue.enqueue(task(api, "x", dedupe=""))).status is Status.QUEUED


async def test_too_many_artifacts_leave_no_result(store: Bed) -> None:
    api = await store.project()
    await store.node()
    await store.put(api, dedupe="k")
    execution = await store.take(api)

    with pytest.raises(UsageError):
        await store.queue.finish(bringing(execution, *[Artifact(str(n), b"") for n in range(65)]))

    assert await store.value("SELECT count(*) FROM results") == 0
    await store.queue.finish(done(execution))
