"""What people do: cancel, answer, pause, each in every state, once, and seen by who runs it."""

from __future__ import annotations

import asyncio

import pytest

from pilot.domain.errors import NotFound, UsageError
from pilot.domain.execution import Status
from pilot.domain.task import Project
from tests.store.bed import HOUR, Bed, asked, broken, done, interrupted

STATES = tuple(Status)


async def in_state(store: Bed, project: Project, status: Status) -> int:
    """An execution that stands there."""
    match status:
        case Status.BLOCKED:
            elsewhere = await store.project("elsewhere")
            return await store.put(project, after=(await store.put(elsewhere),))
        case Status.QUEUED:
            return await store.put(project)
    id = await store.put(project)
    execution = await store.take(project)
    match status:
        case Status.NEEDS_HUMAN:
            await store.queue.finish(asked(execution))
        case Status.COMPLETED:
            await store.queue.finish(done(execution))
        case Status.FAILED:
            await store.queue.finish(broken(execution))
        case Status.CANCELLED:
            await store.queue.cancel(id, "somebody")
            await store.queue.finish(interrupted(execution))
    assert await store.status(id) is status
    return id


@pytest.mark.parametrize("status", [Status.BLOCKED, Status.QUEUED, Status.NEEDS_HUMAN])
async def test_what_nobody_runs_is_cancelled_at_once(store: Bed, status: Status) -> None:
    api = await store.project()
    await store.node()
    id = await in_state(store, api, status)

    assert await store.queue.cancel(id, "me", "not needed") is Status.CANCELLED

    row = await store.queue.get(id)
    assert (row.status, row.reason, row.finished_at) == (Status.CANCELLED, "not needed", store.clock.now)
    assert (await store.events(id))[-1] == "cancelled"
    assert await store.claimed(api) == []
    assert await store.value("SELECT count(*) FROM questions WHERE answered_at IS NULL") == 0


async def test_what_runs_is_asked_to_end_and_its_node_hears_of_it(store: Bed, other: Bed) -> None:
    api = await store.project()
    await store.node()
    await store.put(api)
    execution = await store.take(api)
    told: set[str] = set()
    leave = store.database.listen(told.update)

    assert await other.queue.cancel(execution.id, "me") is Status.RUNNING

    assert await store.queue.cancels("n1") == [execution.id]
    assert await store.queue.cancels("n2") == []
    (held,) = await store.queue.heartbeat("n1", HOUR)
    assert (held.id, held.fence, held.cancel_requested) == (execution.id, execution.fence, True)
    row = await store.queue.get(execution.id)
    assert (row.status, row.cancel_requested, row.reason) == (Status.RUNNING, True, "cancelled by me")
    assert await store.events(execution.id) == ["queued", "started", "cancel_requested"]
    for _ in range(100):  # the wake-up came through a pipe
        if "cancel" in told:
            break
        await asyncio.sleep(0.05)
    assert "cancel" in told
    leave()


async def test_the_first_cancel_of_a_run_says_why(store: Bed) -> None:
    api = await store.project()
    await store.node()
    await store.put(api)
    execution = await store.take(api)

    await asyncio.gather(
        store.queue.cancel(execution.id, "me", "first"), store.queue.cancel(execution.id, "you", "second")
    )
    await store.queue.cancel(execution.id, "they", "third")

    assert (await store.queue.get(execution.id)).reason == "first"
    assert (await store.events(execution.id)).count("cancel_requested") == 1


@pytest.mark.parametrize("status", [Status.COMPLETED, Status.FAILED, Status.CANCELLED])
async def test_nothing_ends_twice(store: Bed, status: Status) -> None:
    api = await store.project()
    await store.node()
    id = await in_state(store, api, status)
    before = await store.dump()

    assert await store.queue.cancel(id, "me", "too late") is status
    with pytest.raises(UsageError, match="asks nothing"):
        await store.queue.answer(id, "yes", "me")

    assert await store.dump() == before


async def test_an_answer_to_a_question_is_none_to_the_next(store: Bed) -> None:
    project = await store.project()
    await store.node()
    id = await store.put(project)
    await store.queue.finish(asked(await store.take(project), "what colour?"))
    (first,) = await store.store.history.questions(id)
    await store.queue.answer(id, "red", "ann", first.id)
    await store.queue.finish(asked(await store.take(project), "how dark?"))
    _, second = await store.store.history.questions(id)

    with pytest.raises(UsageError, match="not open any more"):
        await store.queue.answer(id, "blue", "bob", first.id)
    other = await store.put(project)
    with pytest.raises(UsageError):
        await store.queue.answer(other, "blue", "bob", second.id)

    assert await store.status(id) is Status.NEEDS_HUMAN
    await store.queue.answer(id, "very", "bob", second.id)
    assert (await store.queue.get(id)).feedback == "very"


async def test_many_are_cancelled_in_one_commit_also_with_what_depends_on_them(store: Bed) -> None:
    api = await store.project()
    parents = [await store.put(api) for _ in range(5)]
    child = await store.put(api, after=tuple(parents))

    found = await asyncio.gather(
        *(store.queue.cancel(id, "me") for id in [*parents, child, 999]), return_exceptions=True
    )

    assert found[:-1] == [Status.CANCELLED] * 6
    assert isinstance(found[-1], NotFound)
    assert (await store.events(child)).count("cancelled") == 1


async def test_a_cancelled_task_may_be_asked_for_again(store: Bed) -> None:
    api = await store.project()
    id = await store.put(api, "T")
    await store.queue.cancel(id, "me")

    assert await store.put(api, "T") != id


async def test_hostile_words_of_people_are_kept_as_words(store: Bed) -> None:
    api = await store.project()
    await store.node()
    id = await store.put(api)
    await store.queue.finish(asked(await store.take(api)))

    await store.queue.answer(id, "x\x00'; --\ud800", "me\x00\ud800")
    assert (await store.queue.get(id)).feedback == "x\ufffd'; --\ufffd"
    await store.queue.cancel(id, "me", "y\x00\ud800")
    assert (await store.queue.get(id)).reason is not None
    await store.queue.pause(api.id, "me\x00\ud800", "z\x00\ud800")
    assert len(await store.queue.resume(api.id)) == 1


async def test_an_answer_sends_it_back_to_its_place(store: Bed) -> None:
    api = await store.project()
    await store.node()
    id = await store.put(api)
    await store.queue.finish(asked(await store.take(api)))
    await store.put(api)
    await store.sql("UPDATE executions SET streak = 6 WHERE id = :id", id=id)
    store.clock.tick(HOUR)

    await store.queue.answer(id, "  blue \n", "me")

    assert await store.rows("SELECT answer, answered_by, answered_at FROM questions") == [
        ("blue", "me", store.clock.now)
    ]
    execution = await store.take(api)
    assert (execution.id, execution.feedback, execution.session_id) == (id, "blue", "session")
    assert execution.streak == 0
    assert await store.events(id) == ["queued", "started", "asked", "answered", "started"]


async def test_the_first_of_two_answers_wins(store: Bed, other: Bed) -> None:
    api = await store.project()
    await store.node()
    id = await store.put(api)
    await store.queue.finish(asked(await store.take(api)))

    found = await asyncio.gather(
        *(bed.queue.answer(id, f"{n}", f"{n}") for n, bed in enumerate([store, other] * 3)), return_exceptions=True
    )

    assert [type(one) for one in found].count(type(None)) == 1
    assert [type(one) for one in found].count(UsageError) == 5
    (winner,) = (str(n) for n, one in enumerate(found) if one is None)
    assert await store.rows("SELECT answer, answered_by FROM questions") == [(winner, winner)]
    assert (await store.take(api)).feedback == winner


@pytest.mark.parametrize("status", [s for s in STATES if s is not Status.NEEDS_HUMAN])
async def test_only_what_asks_is_answered(store: Bed, status: Status) -> None:
    api = await store.project()
    await store.node()
    id = await in_state(store, api, status)

    with pytest.raises(UsageError, match=f"is {status}; it asks nothing"):
        await store.queue.answer(id, "yes", "me")


@pytest.mark.parametrize("text", ["", "  ", "\n"])
async def test_an_empty_answer_is_none(store: Bed, text: str) -> None:
    api = await store.project()
    await store.node()
    id = await in_state(store, api, Status.NEEDS_HUMAN)

    with pytest.raises(UsageError, match="empty"):
        await store.queue.answer(id, text, "me")
    assert await store.status(id) is Status.NEEDS_HUMAN


async def test_it_may_ask_again(store: Bed) -> None:
    api = await store.project()
    await store.node()
    id = await store.put(api)
    for n in range(3):
        await store.queue.finish(asked(await store.take(api), f"question {n}"))
        await store.queue.answer(id, f"answer {n}", "me")

    assert await store.rows("SELECT attempt, text, answer FROM questions ORDER BY id") == [
        (n + 1, f"question {n}", f"answer {n}") for n in range(3)
    ]


async def test_cancel_and_answer_at_once_agree(store: Bed, other: Bed) -> None:
    api = await store.project()
    await store.node()
    for n in range(10):
        id = await in_state(store, api, Status.NEEDS_HUMAN)
        calls = [store.queue.answer(id, "yes", "me"), other.queue.cancel(id, "you")]
        await asyncio.gather(*(calls if n % 2 else reversed(calls)), return_exceptions=True)
        assert await store.status(id) is Status.CANCELLED  # an answer only puts off what a cancel ends
        await store.check()


@pytest.mark.parametrize("status", [s for s in STATES if not s.final])
async def test_only_what_has_ended_is_retried(store: Bed, status: Status) -> None:
    api = await store.project()
    await store.node()
    id = await in_state(store, api, status)

    with pytest.raises(UsageError, match="only an ended one"):
        await store.queue.retry(id)


@pytest.mark.parametrize("status", [s for s in STATES if s.final])
async def test_a_retry_leaves_the_old_one_as_it_ended(store: Bed, status: Status) -> None:
    api = await store.project()
    await store.node()
    id = await in_state(store, api, status)
    before = await store.queue.get(id)

    new = await store.queue.retry(id)

    assert not new.duplicate
    assert (await store.queue.get(new.id)).parent == id
    assert await store.queue.get(id) == before


async def test_a_retry_while_another_is_open_is_that_one(store: Bed) -> None:
    api = await store.project()
    await store.node()
    old = await store.put(api, "T")
    await store.queue.finish(broken(await store.take(api)))
    open_ = await store.put(api, "T")

    found = await store.queue.retry(old)

    assert (found.id, found.duplicate) == (open_, True)
