"""Parks by account, and the one claim that may find out whether a park is over."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from pilot.domain.execution import Execution, Status
from pilot.domain.outcome import Ending, FailureClass, Outcome
from pilot.domain.policy import MINUTE, settle
from pilot.domain.ports import Finish
from pilot.domain.task import Project
from tests.store.bed import HOUR, SECOND, Bed, again, broken, done, interrupted, limited


async def projects(store: Bed, count: int) -> list[Project]:
    """Projects with one task each, and two nodes that serve them with the same key."""
    made = [await store.project(f"p{n}") for n in range(count)]
    for project in made:
        await store.put(project)
    for name in ("n1", "n2"):
        await store.node(name, lease=1000 * HOUR)
        await serve(store, name, made, "key")
    return made


async def serve(store: Bed, node: str, served: list[Project], account: str) -> None:
    ids = [project.id for project in served]
    await store.queue.serve(node, ids, {id: {"agent": account} for id in ids})


async def half_open(store: Bed, project: Project) -> Execution:
    """The project's task found its account used up, and the time of the park is over."""
    execution = await store.take(project)
    await store.queue.finish(limited(execution, store.clock.now + HOUR))
    store.clock.tick(HOUR)
    return execution


async def parks(store: Bed) -> list[tuple[object, ...]]:
    return await store.rows("SELECT backend, account, until, tries FROM parks ORDER BY backend, account")


async def test_a_park_is_of_the_account_that_was_used(store: Bed) -> None:
    first, second = await projects(store, 2)
    await serve(store, "n2", [first, second], "another")

    await store.queue.finish(limited(await store.take(first, "n1"), None))

    assert await store.rows("SELECT backend, account FROM parks") == [("agent", "key")]
    assert await store.claimed(second, "n1") == []
    assert await store.queue.ready(node="n1") == []
    assert await store.queue.ready(node="n2") == [first.id, second.id]
    assert len(await store.claimed(second, "n2")) == 1


async def test_an_account_that_nobody_knows_parks_all_of_the_backend(store: Bed) -> None:
    first, second = await projects(store, 2)
    await serve(store, "n2", [first], "")

    await store.queue.finish(limited(await store.take(first, "n2"), None))

    assert await store.rows("SELECT account FROM parks") == [("",)]
    assert await store.claimed(second, "n1") == []


async def test_a_new_key_is_not_parked(store: Bed) -> None:
    (api,) = await projects(store, 1)
    execution = await store.take(api)
    await store.queue.finish(limited(execution, None))
    assert await store.claimed(api) == []

    await serve(store, "n1", [api], "new key")

    assert await store.claimed(api) == [execution.id]


async def test_a_key_that_changes_in_the_middle_parks_the_one_that_was_used(store: Bed) -> None:
    (api,) = await projects(store, 1)
    execution = await store.take(api)

    await serve(store, "n1", [api], "new key")
    await store.queue.finish(limited(execution, None))

    assert await store.rows("SELECT account FROM parks") == [("key",)]
    assert await store.claimed(api) == [execution.id]


@pytest.mark.parametrize("together", [True, False])
async def test_one_claim_tries_it_and_the_others_wait(store: Bed, together: bool) -> None:
    made = await projects(store, 3)
    await half_open(store, made[0])
    asked = [(project, node) for project in made for node in ("n1", "n2")]

    if together:
        answers = await asyncio.gather(*(store.claimed(project, node) for project, node in asked))
    else:
        answers = [await store.claimed(project, node) for project, node in asked]

    assert sorted(map(len, answers)) == [0, 0, 0, 0, 0, 1]
    assert await store.queue.ready(node="n1") == []
    assert await store.queue.next_due() is None
    (row,) = await store.rows("SELECT type, execution_id FROM events WHERE type = 'backend.probed'")
    assert row[1] in [id for answer in answers for id in answer]


async def test_its_answer_opens_the_backend_for_all(store: Bed) -> None:
    made = await projects(store, 3)
    await half_open(store, made[0])
    probe = await store.take(made[1])
    woken: list[str] = []
    store.queue.listen(lambda tokens: woken.extend(tokens))

    await store.journal.note(probe, answered="yes")

    assert await parks(store) == []
    assert "*" in woken
    assert len(await store.claimed(made[0])) == len(await store.claimed(made[2], "n2")) == 1
    assert await store.rows("SELECT data FROM events WHERE type = 'backend.unparked'") == [
        (f'{{"backend":"agent","account":"key","by":"execution {probe.id}"}}',)
    ]


async def test_the_answer_of_who_is_not_the_probe_opens_nothing(store: Bed) -> None:
    first, second, third = await projects(store, 3)
    old = await store.take(second)
    await half_open(store, first)
    await store.take(third)

    await store.journal.note(old, answered="yes")
    await store.queue.finish(done(old))

    assert len(await parks(store)) == 1


@pytest.mark.parametrize(
    ("failure", "opens"),
    [
        (None, True),
        (FailureClass.TEST, True),
        (FailureClass.TIMEOUT, False),
        (FailureClass.STALL, False),
        (FailureClass.INFRA, False),
        (FailureClass.NETWORK, False),
        (FailureClass.CONFLICT, False),
    ],
)
async def test_an_end_that_tells_of_the_account_opens_it(store: Bed, failure: FailureClass | None, opens: bool) -> None:
    first, second = await projects(store, 2)
    await half_open(store, first)
    probe = await store.take(second)

    await store.queue.finish(done(probe) if failure is None else broken(probe, failure=failure))

    assert (await parks(store) == []) is opens
    assert len(await store.claimed(first)) == 1


async def test_a_probe_that_parks_again_parks_for_longer(store: Bed) -> None:
    first, second = await projects(store, 2)
    outcome = Outcome(ending=Ending.FAILED, failure=FailureClass.RATE_LIMIT, detail="429")
    for tries, pause in enumerate((MINUTE, 2 * MINUTE, 4 * MINUTE), 1):
        probe = await store.take((first, second)[tries % 2])  # whoever tries it, the park counts
        settlement = settle(probe, outcome, now=store.clock.now, jitter=1.0)
        await store.queue.finish(Finish(execution=probe, outcome=outcome, settlement=settlement))

        until = store.clock.now + pause
        assert await parks(store) == [("agent", "key", until, tries)]
        assert await store.queue.next_due() == until
        assert await store.claimed(first) == await store.claimed(second) == []
        store.clock.now = until

    named = replace(outcome, retry_at=store.clock.now + 9 * SECOND)
    probe = await store.take(first)
    settlement = settle(probe, named, now=store.clock.now, jitter=1.0)
    await store.queue.finish(Finish(execution=probe, outcome=named, settlement=settlement))
    assert await parks(store) == [("agent", "key", store.clock.now + 9 * SECOND, 4)]


@pytest.mark.parametrize("end", ["cancelled", "interrupted", "lost", "gone"])
async def test_a_probe_without_an_answer_leaves_its_place_to_the_next(store: Bed, end: str) -> None:
    first, second = await projects(store, 2)
    await half_open(store, first)
    probe = await store.take(first, "n2")
    assert await store.claimed(second) == []
    woken: list[str] = []
    store.queue.listen(lambda tokens: woken.extend(tokens))

    match end:
        case "cancelled":
            await store.queue.cancel(probe.id, "me")
            await store.queue.finish(interrupted(probe))
        case "interrupted":
            await store.queue.finish(interrupted(probe, at=store.clock.now + HOUR))
        case "lost":
            await store.queue.recover(["n2"], "killed")
        case "gone":
            await store.queue.leave("n2")

    assert "*" in woken
    assert len(await parks(store)) == 1
    assert len(await store.claimed(second)) == 1
    assert await store.claimed(first) == []


async def test_an_older_attempt_that_parks_closes_it_again_over_the_probe(store: Bed) -> None:
    first, second, third = await projects(store, 3)
    old = await store.take(third)
    await half_open(store, first)
    probe = await store.take(second)

    await store.queue.finish(limited(old, store.clock.now + HOUR))
    await store.journal.note(probe, answered="yes")

    assert await parks(store) == [("agent", "key", store.clock.now + HOUR, 2)]
    assert await store.claimed(first) == []


async def test_a_person_opens_it_for_one_whatever_the_clock_does(store: Bed) -> None:
    first, second = await projects(store, 2)
    await store.queue.finish(limited(await store.take(first), None))

    await store.queue.unpark("agent", "me", "key")
    store.clock.tick(-10 * HOUR)

    assert await store.queue.ready(node="n1") == [first.id, second.id]
    assert len(await store.claimed(first)) == 1
    assert await store.claimed(second) == []


async def test_a_clock_that_goes_back_closes_a_park_until_its_time(store: Bed) -> None:
    first, second = await projects(store, 2)
    await half_open(store, first)

    store.clock.tick(-SECOND)
    assert await store.claimed(second) == []
    assert await store.queue.next_due() == store.clock.now + SECOND
    store.clock.tick(SECOND)
    assert len(await store.claimed(second)) == 1


async def test_the_next_of_the_same_project_is_the_probe_in_the_same_transaction(store: Bed) -> None:
    first, second = await projects(store, 2)
    execution = await store.take(first)
    await store.queue.finish(limited(execution, store.clock.now))  # a time that is over already
    running = await store.take(first)

    following = await store.queue.finish(replace(again(running, at=store.clock.now), next_lease=MINUTE))

    assert following is not None
    assert following.id == execution.id
    assert (await store.queue.get(execution.id)).status is Status.RUNNING
    assert await parks(store) == []
    assert len(await store.claimed(second)) == 1


async def test_what_is_forgotten_after_a_week(store: Bed) -> None:
    first, second = await projects(store, 2)
    await half_open(store, first)
    probe = await store.take(first)
    store.clock.tick(8 * 24 * HOUR)
    assert await store.queue.expire_parks() == []  # it is being tried
    await store.queue.finish(interrupted(probe))

    assert await store.queue.expire_parks() == ["agent"]
    assert len(await store.claimed(first)) == len(await store.claimed(second)) == 1


async def test_parks_of_the_first_schema_are_of_every_account(store: Bed) -> None:
    await store.sql(
        "INSERT INTO parks (backend, account, failure, reason, until, since, changed_at) "
        "VALUES ('agent', '', 'quota', '', 0, 0, 0)"
    )
    first, second = await projects(store, 2)
    probe = await store.take(first)

    assert await store.claimed(second) == []
    await store.queue.finish(limited(probe, None))

    assert [row[1] for row in await parks(store)] == ["", "key"]
    await serve(store, "n2", [first, second], "another")
    assert len(await store.claimed(second, "n2")) == 1
