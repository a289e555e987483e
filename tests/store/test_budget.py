"""Money: set aside with the claim, settled at the end, and never more than the day has."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from pilot.domain.budget import DAY, Budget
from pilot.domain.execution import Status
from pilot.domain.outcome import Usage
from pilot.domain.task import Project
from tests.store.bed import HOUR, START, Bed, again, asked, done, interrupted, used

DOLLAR = 1_000_000
MIDNIGHT = (START // DAY + 1) * DAY


async def projects(store: Bed, count: int, budget: Budget, tasks: int = 1) -> list[Project]:
    made = [await store.project(f"p{n}") for n in range(count)]
    for project in made:
        for _ in range(tasks):
            await store.put(project)
    for name in ("n1", "n2"):
        await store.node(name, lease=100 * HOUR)
        await serve(store, budget, made, name)
    return made


async def serve(store: Bed, budget: Budget, served: list[Project], name: str = "n1") -> None:
    await store.queue.serve(name, [project.id for project in served], {}, budget)


async def money(store: Bed) -> list[tuple[float, float]]:
    """(spent, set aside) in dollars, by day."""
    rows = await store.rows("SELECT spent, reserved FROM spending ORDER BY day")
    return [(spent / DOLLAR, reserved / DOLLAR) for spent, reserved in rows]


async def test_without_limits_only_what_is_known_is_counted(store: Bed) -> None:
    (api,) = await projects(store, 1, Budget(), tasks=2)
    await store.queue.finish(done(await store.take(api)))
    assert await money(store) == []

    await store.queue.finish(used(await store.take(api), 1, 1, 0.25))

    assert await money(store) == [(0.25, 0)]


async def test_a_claim_sets_aside_what_it_may_cost_and_its_end_settles_it(store: Bed) -> None:
    (api,) = await projects(store, 1, Budget(5.0, None), tasks=2)
    execution = await store.take(api)
    assert await money(store) == [(0, 5)]

    await store.queue.finish(used(execution, 1, 1, 2.0))
    assert await money(store) == [(2, 0)]
    await store.queue.finish(done(await store.take(api)))

    assert await money(store) == [(2, 5)]  # nobody told what it cost: that is not nothing


async def test_a_later_attempt_sets_aside_what_is_left(store: Bed) -> None:
    (api,) = await projects(store, 1, Budget(5.0, None))
    execution = await store.take(api)
    await store.journal.note(execution, Usage(cost_usd=3.5))
    await store.queue.finish(interrupted(execution))

    await store.take(api)

    assert await money(store) == [(3.5, 1.5)]


async def test_a_lost_attempt_keeps_what_was_set_aside(store: Bed) -> None:
    (api,) = await projects(store, 1, Budget(None, 10.0))
    await store.take(api)
    await store.queue.recover(["n1"], "killed")

    assert await money(store) == [(0, 1)]


async def test_an_attempt_for_which_no_model_worked_gives_back_what_was_set_aside(store: Bed) -> None:
    (api,) = await projects(store, 1, Budget(None, 1.0))
    execution = await store.take(api)
    finish = interrupted(execution)

    await store.queue.finish(replace(finish, outcome=replace(finish.outcome, unspent=True)))

    assert await money(store) == [(0, 0)]
    assert (await store.queue.get(execution.id)).cost_usd is None  # what it will cost is not known for that
    assert await store.claimed(api) == [execution.id]


@pytest.mark.parametrize("together", [True, False])
async def test_what_would_pass_the_limit_of_the_day_is_not_begun(store: Bed, other: Bed, together: bool) -> None:
    made = await projects(store, 5, Budget(4.0, 10.0))
    asked_for = [(bed, project) for bed, project in zip([store, other] * 3, made, strict=False)]

    if together:
        answers = await asyncio.gather(*(bed.claimed(project) for bed, project in asked_for))
    else:
        answers = [await bed.claimed(project, "n2") for bed, project in asked_for]

    assert sum(map(len, answers)) == 2
    assert await money(store) == [(0, 8)]
    assert await store.queue.ready(node="n1") == []


async def test_the_next_day_begins_anew_and_is_waited_for(store: Bed) -> None:
    first, second = await projects(store, 2, Budget(4.0, 6.0))
    running = await store.take(first)
    assert await store.claimed(second) == []
    assert await store.queue.next_due() == MIDNIGHT

    store.clock.now = MIDNIGHT - 1
    assert await store.claimed(second) == []
    store.clock.now = MIDNIGHT
    assert await store.queue.ready(node="n1") == [second.id]
    assert len(await store.claimed(second)) == 1

    await store.queue.finish(used(running, 1, 1, 1.0))
    assert await money(store) == [(1, 0), (0, 4)]  # the day of its beginning bears it


async def test_a_higher_limit_counts_at_once(store: Bed) -> None:
    first, second = await projects(store, 2, Budget(4.0, 6.0))
    await store.take(first)
    assert await store.claimed(second) == []
    woken: list[str] = []
    store.queue.listen(lambda tokens: woken.extend(tokens))

    await serve(store, Budget(4.0, 8.0), [first, second])

    assert "*" in woken
    assert len(await store.claimed(second)) == 1


async def test_what_has_cost_what_it_may_waits_for_a_person_who_grants_as_much_again(store: Bed) -> None:
    (api,) = await projects(store, 1, Budget(5.0, None))
    execution = await store.take(api)
    await store.journal.note(execution, Usage(cost_usd=5.25))

    await store.queue.finish(again(execution, at=store.clock.now))

    row = await store.queue.get(execution.id)
    assert (row.status, row.failure_class) == (Status.NEEDS_HUMAN, "budget")
    assert row.reason is not None
    assert "$5.25 of the $5.00" in row.reason
    await store.queue.answer(row.id, "go on", "me")
    row = await store.queue.get(row.id)
    assert (row.failure_class, row.forgiven_usd) == (None, 5.25)
    execution = await store.take(api)
    assert await money(store) == [(5.25, 5)]
    await store.queue.finish(used(execution, 1, 1, 1.0))
    assert (await store.queue.get(row.id)).cost_usd == 6.25


async def test_a_shutdown_at_the_limit_is_held_too_and_a_lost_one_with_what_it_noted(store: Bed) -> None:
    first, second = await projects(store, 2, Budget(5.0, None))
    stopped, lost = await store.take(first), await store.take(second, "n2")
    for execution in (stopped, lost):
        await store.journal.note(execution, Usage(cost_usd=5.0))

    await store.queue.finish(interrupted(stopped))
    await store.queue.recover(["n2"], "killed")

    for execution in (stopped, lost):
        row = await store.queue.get(execution.id)
        assert (row.status, row.failure_class) == (Status.NEEDS_HUMAN, "budget")
    assert await money(store) == [(10, 0)]


async def test_a_lower_limit_passes_over_what_has_cost_more_and_holds_up_nobody(store: Bed) -> None:
    (api,) = await projects(store, 1, Budget(5.0, None), tasks=2)
    execution = await store.take(api)
    await store.journal.note(execution, Usage(cost_usd=3.0))
    await store.queue.finish(again(execution, at=store.clock.now))

    for name in ("n1", "n2"):
        await serve(store, Budget(2.0, None), [api], name)

    (following,) = await store.claimed(api)
    assert following != execution.id
    why = await store.store.history.why(execution.id, store.clock.now)
    assert why is not None
    assert why.holds[0].kind == "budget"
    assert "it has cost $3.00 of the $2.00" in why.holds[0].detail


async def test_a_task_may_cost_no_more_than_the_day_has(store: Bed) -> None:
    (api,) = await projects(store, 1, Budget(50.0, 6.0))

    assert len(await store.claimed(api)) == 1
    assert await money(store) == [(0, 6)]


async def test_a_question_is_not_held_for_its_cost_and_its_answer_lets_it_go_on(store: Bed) -> None:
    (api,) = await projects(store, 1, Budget(5.0, None))
    execution = await store.take(api)
    await store.journal.note(execution, Usage(cost_usd=9.0))
    await store.queue.finish(asked(execution))
    assert (await store.queue.get(execution.id)).reason == "what colour?"

    await store.queue.answer(execution.id, "blue", "me")

    assert await store.claimed(api) == [execution.id]


async def test_why_says_what_the_day_has_left(store: Bed) -> None:
    first, second = await projects(store, 2, Budget(4.0, 6.0))
    await store.queue.finish(used(await store.take(first), 1, 1, 3.0))
    id = await store.value("SELECT id FROM executions WHERE project_id = :id", id=second.id)

    why = await store.store.history.why(id, store.clock.now)
    status = await store.store.history.status(store.clock.now)

    assert why is not None
    (hold,) = why.holds
    assert (hold.kind, hold.until) == ("budget", MIDNIGHT)
    assert "$3.00 spent and $0.00 set aside of this day's $6.00" in hold.detail
    assert "$4.00 more" in hold.detail
    assert "budget.per_day_usd" in why.next
    assert status["budget"] == {
        "per_execution_usd": 4.0, "per_day_usd": 6.0, "spent_usd": 3.0, "reserved_usd": 0.0,
        "until": "2027-01-16T00:00:00.000Z",
    }  # fmt: skip
