"""Enqueue: atomic, once per open task, all or nothing, and proof against whatever text comes in."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace
from typing import Any

import pytest

from pilot.domain.errors import NotFound, PilotError, StoreError, UsageError
from pilot.domain.execution import Enqueued, Status
from pilot.domain.task import Kind
from tests.store.bed import HOUR, SECOND, Bed, again, asked, broken, done, task

HOSTILE = [
    "plain",
    "ünïcödé 漢字 🚀 \u202egnp.exe",
    "'; DROP TABLE executions; --",
    '{"json": ["[1]", null]}',
    "$[0] % _ * ? :name @p",
    "line\nline\r\n\ttab",
    "\x1b[2J\x1b]0;title\x07",
    "\ufffe\uffff\U0010ffff",
    "\\u0000 is not a NUL, \\ud800 no surrogate",
    "  spaces around  ",
]


async def test_a_task_is_stored_as_it_was_asked(store: Bed) -> None:
    api = await store.project()

    enqueued = await store.queue.enqueue(
        task(
            api, "GH-46", title="Fix it", body="please\n", source="github", kind=Kind.BUILD, labels=("a", "b"),
            priority=1, lane=3, payload={"n": [1, None, "x"]}, options={"base": "main"}, backend="claude-code",
            model="big", max_attempts=5, callback_url="https://example.org/x", idempotency_key="k", plan="p",
        )
    )  # fmt: skip
    row = await store.queue.get(enqueued.id)

    assert enqueued == Enqueued(enqueued.id, Status.QUEUED, duplicate=False)
    assert (row.task_id, row.title, row.body, row.source) == ("GH-46", "Fix it", "please\n", "github")
    assert (row.kind, row.labels, row.priority, row.lane) == ("build", ("a", "b"), 1, 3)
    assert row.payload == {"n": [1, None, "x"]}
    assert row.options == {"base": "main"}
    assert (row.backend, row.model, row.max_attempts) == ("claude-code", "big", 5)
    assert (row.callback_url, row.idempotency_key, row.plan) == ("https://example.org/x", "k", "p")
    assert (row.project, row.project_path) == ("api", "/src/api")
    assert (row.attempt, row.failures, row.node, row.session_id, row.cost_usd) == (0, 0, None, None, None)
    assert row.created_at == row.available_at == store.clock.now
    assert row.started_at is row.finished_at is None
    assert await store.events(enqueued.id) == ["queued"]


async def test_a_task_that_is_open_is_not_asked_for_twice(store: Bed) -> None:
    api = await store.project()
    first = await store.put(api, "T")

    assert await store.queue.enqueue(task(api, "T", title="other words")) == Enqueued(first, Status.QUEUED, True)
    await store.node()
    execution = await store.take(api)
    assert await store.queue.enqueue(task(api, "T")) == Enqueued(first, Status.RUNNING, True)
    await store.queue.finish(asked(execution))
    assert await store.queue.enqueue(task(api, "T")) == Enqueued(first, Status.NEEDS_HUMAN, True)

    assert await store.value("SELECT count(*) FROM executions") == 1
    assert await store.value("SELECT count(*) FROM events WHERE type = 'execution.queued'") == 1
    assert (await store.queue.get(first)).title == "do T"


async def test_a_task_that_has_ended_may_be_asked_for_again(store: Bed) -> None:
    api = await store.project()
    await store.node()
    first = await store.put(api, "T")
    await store.run(api)

    second = await store.put(api, "T")

    assert second > first
    assert await store.status(first) is Status.COMPLETED


async def test_one_task_id_in_two_projects_is_two_tasks(store: Bed) -> None:
    api, web = await store.project("api"), await store.project("web")

    assert await store.put(api, "GH-1", idempotency_key="k") != await store.put(web, "GH-1", idempotency_key="k")


async def test_a_repeated_key_returns_the_first_even_when_it_has_ended(store: Bed) -> None:
    api = await store.project()
    await store.node()
    first = await store.put(api, "T", idempotency_key="delivery-1")

    assert await store.queue.enqueue(task(api, "U", idempotency_key="delivery-1")) == Enqueued(
        first, Status.QUEUED, True
    )
    await store.run(api)
    assert await store.queue.enqueue(task(api, "T", idempotency_key="delivery-1")) == Enqueued(
        first, Status.COMPLETED, True
    )
    # Also when what it waited for has failed meanwhile: the answer to the first request stands.
    assert (await store.queue.enqueue(task(api, "T", idempotency_key="delivery-1", after=(999,)))).duplicate
    assert (await store.queue.enqueue(task(api, "T", idempotency_key="delivery-2"))).duplicate is False


async def test_a_repeated_request_gets_its_first_answer_also_when_that_was_anothers(store: Bed) -> None:
    api, web = await store.project(), await store.project("web")
    await store.node()
    first = await store.put(api, "T")
    answers = await asyncio.gather(
        store.queue.enqueue(task(api, "T", idempotency_key="k1")),
        store.queue.enqueue(task(api, "T", idempotency_key="k2")),
        store.queue.enqueue(task(api, "T", idempotency_key="k2")),
    )
    assert {answer.id for answer in answers} == {first}
    await store.run(api)

    for key in ("k1", "k2"):  # the sender never saw the answer, and asks again when all is done
        again_ = await store.queue.enqueue(task(api, "T", idempotency_key=key))
        assert again_ == Enqueued(first, Status.COMPLETED, True)
    assert not (await store.queue.enqueue(task(web, "T", idempotency_key="k1"))).duplicate
    store.clock.tick(HOUR)
    assert await store.queue.prune(store.clock.now) == 1
    assert not (await store.queue.enqueue(task(api, "T", idempotency_key="k1"))).duplicate


async def test_no_key_is_no_key(store: Bed) -> None:
    api = await store.project()

    await store.put(api, "T", idempotency_key="")
    await store.put(api, "U", idempotency_key="")
    await store.put(api, "V", idempotency_key=None)

    assert await store.value("SELECT count(*) FROM executions WHERE idempotency_key IS NULL") == 3


async def test_a_hundred_that_ask_for_one_task_at_once_get_one(store: Bed) -> None:
    api = await store.project()

    answers = await asyncio.gather(*(store.queue.enqueue(task(api, "T", title=f"by {n}")) for n in range(100)))

    assert {answer.id for answer in answers} == {answers[0].id}
    assert [answer.duplicate for answer in answers].count(False) == 1
    assert not answers[0].duplicate
    assert await store.value("SELECT count(*) FROM executions") == 1
    assert await store.events(answers[0].id) == ["queued"]


async def test_a_hundred_with_one_key_at_once_get_one(store: Bed) -> None:
    api = await store.project()

    answers = await asyncio.gather(*(store.queue.enqueue(task(api, f"T-{n}", idempotency_key="k")) for n in range(100)))

    assert {answer.id for answer in answers} == {answers[0].id}
    assert [answer.duplicate for answer in answers].count(False) == 1


async def test_a_hundred_tasks_at_once_are_a_hundred_in_order(store: Bed, other: Bed) -> None:
    api = await store.project()

    answers = await asyncio.gather(
        *((store if n % 2 else other).queue.enqueue(task(api, f"T-{n}")) for n in range(100))
    )

    assert len({answer.id for answer in answers}) == 100
    assert not any(answer.duplicate for answer in answers)
    for half in (answers[0::2], answers[1::2]):  # each asker's own order is kept
        assert [answer.id for answer in half] == sorted(answer.id for answer in half)


async def test_one_bad_task_in_a_group_fails_alone(store: Bed) -> None:
    api = await store.project()
    tasks = [task(api, f"T-{n}") for n in range(10)]
    tasks[3] = replace(tasks[3], project_id=99)
    tasks[5] = replace(tasks[5], after=(99,))
    tasks[7] = replace(tasks[7], parent=99)
    tasks[8] = replace(tasks[8], payload=math.nan)

    answers = await asyncio.gather(*(store.queue.enqueue(t) for t in tasks), return_exceptions=True)

    assert [type(answers[n]) for n in (3, 5, 7, 8)] == [NotFound, UsageError, StoreError, UsageError]
    assert sum(isinstance(answer, Enqueued) for answer in answers) == 6
    assert await store.value("SELECT count(*) FROM executions") == 6
    assert await store.value("SELECT count(*) FROM events") == 6


@pytest.mark.parametrize("project_id", [0, -1, 99, 2**63, 2**100])
async def test_an_unknown_project_is_not_found(store: Bed, project_id: int) -> None:
    api = await store.project()

    with pytest.raises(NotFound, match="no project"):
        await store.queue.enqueue(replace(task(api, "T"), project_id=project_id))


@pytest.mark.parametrize("title", ["", "   ", "\n\t"])
async def test_a_task_needs_a_title_and_a_task_id(store: Bed, title: str) -> None:
    api = await store.project()

    with pytest.raises(UsageError, match="title"):
        await store.queue.enqueue(task(api, "T", title=title))
    with pytest.raises(UsageError, match="task_id"):
        await store.queue.enqueue(task(api, title))


@pytest.mark.parametrize("text", HOSTILE)
async def test_any_text_comes_back_as_it_was(store: Bed, text: str) -> None:
    api = await store.project()
    await store.node()

    id = await store.put(
        api, text, title=text, body=text, source=text, labels=(text, "x"), payload={text: [text]},
        options={"base": text}, backend=text, model=text, plan=text, callback_url=text, idempotency_key=text,
    )  # fmt: skip

    assert (await store.queue.enqueue(task(api, text))).id == id
    assert (await store.queue.enqueue(task(api, "other", idempotency_key=text))).id == id
    row = await store.take(api)
    assert (row.task_id, row.title, row.body, row.source, row.labels) == (text, text, text, text, (text, "x"))
    assert (row.payload, row.options) == ({text: [text]}, {"base": text})
    assert (row.backend, row.model, row.plan, row.callback_url, row.idempotency_key) == (text,) * 5


@pytest.mark.parametrize("bad", ["\x00", "\ud800", chr(0xDCFF)])
async def test_what_no_database_holds_is_replaced_and_tells_tasks_apart(store: Bed, bad: str) -> None:
    api = await store.project()
    await store.node()
    text = f"a{bad}b"

    id = await store.put(
        api, text, title=text, body=text, source=text, labels=(text,), payload={text: [text]},
        options={"base": text}, backend=text, model=text, plan=text, callback_url=text, idempotency_key=text,
    )  # fmt: skip

    assert (await store.queue.enqueue(task(api, text))).id == id
    assert not (await store.queue.enqueue(task(api, f"a{bad}c", idempotency_key=f"a{bad}c"))).duplicate
    row = await store.take(api)
    for value in (
        *(row.task_id, row.title, row.source, row.labels[0], row.backend, row.model, row.plan),
        *(row.callback_url, row.idempotency_key, row.options["base"], next(iter(row.payload))),
    ):
        assert isinstance(value, str)
        assert len(value) == 3
        assert value[0] + value[2] == "ab"
        assert bad not in value
        value.encode()


async def test_a_megabyte_is_stored_whole(store: Bed) -> None:
    api = await store.project()
    body = "é" * (1 << 20)

    id = await store.put(api, body=body, payload={"text": body})
    row = await store.queue.get(id)

    assert row.body == body
    assert row.payload == {"text": body}


@pytest.mark.parametrize("name", ["priority", "lane", "max_attempts", "available_at"])
@pytest.mark.parametrize("number", [2**62, -(2**62), 2**63, 10**40])
async def test_a_number_beyond_the_database_is_refused(store: Bed, name: str, number: int) -> None:
    api = await store.project()

    with pytest.raises(UsageError, match=f"{name} .* is out of range"):
        await store.queue.enqueue(task(api, "T", **{name: number}))


@pytest.mark.parametrize("payload", [math.nan, math.inf, {1, 2}, [[math.nan]], object()])
async def test_a_payload_that_is_no_json_is_refused(store: Bed, payload: Any) -> None:
    api = await store.project()

    with pytest.raises(UsageError, match="payload"):
        await store.queue.enqueue(task(api, "T", payload=payload))
    assert await store.value("SELECT count(*) FROM executions") == 0


async def test_a_bottomless_payload_is_refused(store: Bed) -> None:
    api = await store.project()
    payload: list[Any] = []
    for _ in range(100_000):
        payload = [payload]

    with pytest.raises(UsageError, match="payload"):
        await store.queue.enqueue(task(api, "T", payload=payload))


@pytest.mark.parametrize("number", [0, -1, 2**63 - 1, 2**63, 10**40])
async def test_an_id_that_never_was_is_not_found(store: Bed, number: int) -> None:
    for attempt in (
        store.queue.get(number),
        store.queue.cancel(number, "me"),
        store.queue.answer(number, "yes", "me"),
        store.queue.retry(number),
    ):
        with pytest.raises(NotFound, match=str(number)):
            await attempt


async def test_one_that_waits_is_blocked_until_the_others_complete(store: Bed) -> None:
    api, web = await store.project("api"), await store.project("web")
    await store.node()
    first, second = await store.put(api), await store.put(web)
    await store.run(web)

    waiting = await store.queue.enqueue(task(web, "W", after=(first, second, first)))

    assert waiting.status is Status.BLOCKED
    assert (await store.queue.get(waiting.id)).deps_left == 1  # the other had completed already
    assert await store.claimed(web) == []
    await store.run(api)
    assert await store.claimed(web) == [waiting.id]


async def test_one_that_waits_only_for_completed_ones_may_run(store: Bed) -> None:
    api = await store.project()
    await store.node()
    first = await store.put(api)
    await store.run(api)

    waiting = await store.queue.enqueue(task(api, "W", after=(first,)))

    assert waiting.status is Status.QUEUED
    assert await store.claimed(api) == [waiting.id]


async def test_nothing_can_wait_for_what_will_never_complete(store: Bed) -> None:
    api = await store.project()
    await store.node()
    failed, cancelled = await store.put(api), await store.put(api)
    await store.queue.finish(broken(await store.take(api)))
    await store.queue.cancel(cancelled, "me")

    for parent, word in ((failed, "failed"), (cancelled, "cancelled"), (999, "none"), (2**70, "none")):
        with pytest.raises(UsageError, match=word):
            await store.queue.enqueue(task(api, "W", after=(parent,)))
    assert await store.value("SELECT count(*) FROM executions") == 2


async def test_a_delayed_task_may_not_run_before_its_time(store: Bed) -> None:
    api = await store.project()
    await store.node()
    id = await store.put(api, available_at=store.clock.now + HOUR)

    assert await store.claimed(api) == []
    assert await store.queue.next_due() == store.clock.now + HOUR
    store.clock.tick(HOUR - 1)
    assert await store.claimed(api) == []
    store.clock.tick(1)
    assert await store.claimed(api) == [id]


async def test_a_direct_run_keeps_whom_it_is_for(store: Bed) -> None:
    api = await store.project()
    await store.node("run-1")
    id = await store.put(api, priority=-1, reserved_for="run-1")

    assert (await store.queue.get(id)).reserved_for == "run-1"
    assert await store.claimed(api, "run-1", own=True) == [id]


async def test_a_project_is_registered_once_whatever_it_is_called(store: Bed) -> None:
    (first,) = await store.queue.register([("key", "api", "/a", 2)])
    (second,) = await store.queue.register([("key", "renamed", "/b", None)])
    assert (second.id, second.name, second.max_running) == (first.id, "api", 2)

    (third, fresh) = await store.queue.register([("key", "renamed", "/b", 3), ("other", "x", "/x", None)])
    assert (third.id, third.name, third.path, third.max_running) == (first.id, "renamed", "/b", 3)
    assert (fresh.max_running, fresh.id != first.id) == (1, True)

    everywhere = await asyncio.gather(*(store.queue.register([("new", "n", "/n", None)]) for _ in range(10)))
    assert len({project.id for (project,) in everywhere}) == 1
    with pytest.raises(PilotError):
        await store.queue.register([("zero", "z", "/z", 0)])


async def test_a_retry_is_a_new_execution_of_the_same_task(store: Bed) -> None:
    api = await store.project()
    await store.node()
    old = await store.put(
        api, "T", body="b", labels=("x",), priority=-1, lane=2, payload={"a": 1}, options={"base": "m"}, model="big",
        max_attempts=7, plan="p", callback_url="https://example.org", idempotency_key="k", reserved_for="n1",
    )  # fmt: skip
    with pytest.raises(UsageError, match="queued"):
        await store.queue.retry(old)
    await store.queue.finish(broken(await store.take(api, own=True)))

    again_, twice = await asyncio.gather(store.queue.retry(old), store.queue.retry(old))

    assert again_.id == twice.id
    assert sorted((again_.duplicate, twice.duplicate)) == [False, True]
    new, before = await store.queue.get(again_.id), await store.queue.get(old)
    kept = ("task_id", "title", "body", "labels", "lane", "payload", "options", "backend", "model", "max_attempts",
            "plan", "callback_url", "project_id")  # fmt: skip
    assert [getattr(new, name) for name in kept] == [getattr(before, name) for name in kept]
    assert (new.parent, new.priority, new.reserved_for, new.idempotency_key) == (old, 2, None, None)
    assert (new.attempt, new.failures, new.status) == (0, 0, Status.QUEUED)
    assert before.status is Status.FAILED


async def test_waiting_is_never_a_failure(store: Bed) -> None:
    api = await store.project()
    await store.node(lease=10**12)
    id = await store.put(api)

    store.clock.tick(365 * 24 * HOUR)
    await store.queue.recover([], "")
    await store.queue.expire_parks()

    execution = await store.take(api)
    assert execution.id == id
    assert (execution.failures, execution.losses) == (0, 0)
    await store.queue.finish(again(execution, at=store.clock.now + SECOND))
    assert await store.status(id) is Status.QUEUED
    store.clock.tick(SECOND)
    await store.queue.finish(done(await store.take(api)))


async def test_a_ticket_is_kept_and_goes_on_with_its_retry(store: Bed) -> None:
    api = await store.project()
    await store.node()
    ticket = {"source": "github", "ref": "acme/api#46", "n": 46}

    first = await store.put(api, origin=ticket)
    execution = await store.take(api)
    assert (execution.id, execution.origin) == (first, ticket)
    await store.queue.finish(broken(execution))
    again = await store.queue.retry(first)

    assert (await store.queue.get(again.id)).origin == ticket
    assert (await store.queue.get(await store.put(api))).origin is None


async def test_what_goes_on_where_another_ended_begins_with_what_that_left(store: Bed) -> None:
    api = await store.project()
    await store.node()
    parent = await store.put(api)
    await store.run(api)

    await store.put(api, parent=parent, session_id="s", workspace="/w", feedback="red\x00")

    execution = await store.take(api)
    assert (execution.parent, execution.session_id, execution.workspace) == (parent, "s", "/w")
    assert execution.feedback == "red\ufffd"


async def test_a_held_task_waits_for_a_person(store: Bed) -> None:
    api = await store.project()
    await store.node()

    held = await store.queue.enqueue(task(api, "T", held="edited by mallory", origin={"source": "github"}))
    assert (held.status, held.duplicate) == (Status.NEEDS_HUMAN, False)
    assert (await store.queue.enqueue(task(api, "T"))).id == held.id
    assert await store.claimed(api) == []
    assert await store.events(held.id) == ["queued", "asked"]
    (question,) = await store.store.history.questions()
    assert (question.execution_id, question.text) == (held.id, "edited by mallory")

    await store.queue.answer(held.id, "run it", "me")

    assert await store.claimed(api) == [held.id]


async def test_a_held_task_says_why_and_waits_for_nothing_else(store: Bed) -> None:
    api = await store.project()
    first = await store.put(api)
    with pytest.raises(UsageError, match="needs a reason"):
        await store.put(api, held=" ")
    with pytest.raises(UsageError, match="wait for others"):
        await store.put(api, held="x", after=(first,))
