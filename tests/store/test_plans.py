"""Plans in the store: all or nothing, in order, once; and retried from the step that failed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

import pytest

from pilot.domain.errors import NotFound, UsageError
from pilot.domain.execution import Enqueued, Status
from pilot.domain.ports import PlanQueue, PlanSteps
from pilot.domain.task import Project
from tests.store.bed import Bed, broken, done, task


def plan(project: Project, edges: Mapping[str, Sequence[str]], run: str = "1", **more: Mapping[str, Any]) -> PlanSteps:
    """Steps by name with what each waits for; `more` is of single tasks."""
    names = list(edges)
    tasks = tuple(
        task(project, f"p::{name}", plan="p", idempotency_key=f"plan:p:{run}:{name}", **more.get(name, {}))
        for name in names
    )
    after = {n: tuple(names.index(other) for other in edges[name]) for n, name in enumerate(names)}
    return PlanSteps(tasks=tasks, after=after)


DIAMOND = {"a": [], "b": ["a"], "c": ["a"], "d": ["b", "c"]}


def made(answers: Sequence[Enqueued]) -> list[tuple[int, str, bool]]:
    """Each as a tuple."""
    return [(one.id, one.status.value, one.duplicate) for one in answers]


async def statuses(store: Bed, project: Project) -> dict[str, str]:
    """How the steps of `p` stand now, by the end of their names."""
    return {e.task_id.removeprefix("p::"): e.status.value for e in await store.queue.steps_of(project.id, "p")}


def test_the_queue_takes_plans(store: Bed) -> None:
    queue: PlanQueue = store.queue
    assert queue is store.queue


async def test_a_plan_is_many_executions_that_wait_for_each_other(store: Bed) -> None:
    api = await store.project()
    await store.node()
    before = await store.put(api)
    given = plan(api, DIAMOND, a={"after": (before,)})

    answers = await store.queue.submit(given)

    first = before + 1
    assert made(answers) == [(first + n, "blocked", False) for n in range(4)]
    assert await store.rows("SELECT execution_id, depends_on FROM dependencies ORDER BY 1, 2") == [
        *((first, before), (first + 1, first), (first + 2, first), (first + 3, first + 1), (first + 3, first + 2))
    ]
    assert [await store.run(api) for _ in range(5)] == [before, *range(first, first + 4)]
    assert set((await statuses(store, api)).values()) == {"completed"}
    assert await store.value("SELECT count(*) FROM executions WHERE has_dependents = 1") == 4


async def test_a_step_may_stand_before_what_it_waits_for(store: Bed) -> None:
    api = await store.project()
    await store.node()

    answers = await store.queue.submit(plan(api, {"z": ["y"], "y": ["x"], "x": []}))

    assert [await store.run(api) for _ in range(3)] == [one.id for one in reversed(answers)]


async def test_the_same_plan_again_changes_nothing_also_when_it_has_ended(store: Bed) -> None:
    api = await store.project()
    await store.node()
    first = await store.queue.submit(plan(api, DIAMOND))
    before = await store.dump()

    again = await store.queue.submit(plan(api, DIAMOND))
    assert [(one.id, one.status, True) for one in first] == [(one.id, one.status, one.duplicate) for one in again]
    assert await store.dump() == before
    twice = await asyncio.gather(*(store.queue.submit(plan(api, DIAMOND)) for _ in range(3)))
    assert twice == [again] * 3

    for _ in range(4):
        await store.run(api)
    before = await store.dump()
    assert {one.status for one in await store.queue.submit(plan(api, DIAMOND))} == {Status.COMPLETED}
    assert await store.dump() == before


async def test_one_plan_from_many_at_once_is_submitted_once(store: Bed, other: Bed) -> None:
    api = await store.project()
    queues = [store.queue, other.queue] * 4

    answers = await asyncio.gather(*(queue.submit(plan(api, DIAMOND)) for queue in queues))

    assert len({tuple(one.id for one in answer) for answer in answers}) == 1
    assert sum(not one.duplicate for answer in answers for one in answer) == 4
    assert await store.value("SELECT count(*) FROM executions") == 4


async def test_what_is_open_from_another_submission_is_named_and_nothing_is_written(store: Bed) -> None:
    api = await store.project()
    await store.node()
    many: dict[str, list[str]] = {f"s{n:02}": [] for n in range(30)}
    answers = await store.queue.submit(plan(api, many))
    await store.run(api)
    before = await store.dump()

    with pytest.raises(UsageError) as raised:
        await store.queue.submit(plan(api, {"new": [], **many}, run="2"))

    assert "p::s01 (2, queued)" in str(raised.value)
    assert "p::s20 (21, queued) and 9 more" in str(raised.value)
    assert "pilot cancel 2 3" in str(raised.value)
    assert await store.dump() == before
    for one in answers[1:]:
        await store.queue.cancel(one.id, "me")
    assert not any(one.duplicate for one in await store.queue.submit(plan(api, many, run="2")))


async def test_a_bad_plan_fails_alone_and_leaves_nothing(store: Bed) -> None:
    api, web = await store.project(), await store.project("web")
    bad = PlanSteps(tasks=(*plan(web, DIAMOND).tasks, task(Project(99, "", "", ""), "p::x", idempotency_key="x")))
    late = plan(web, {"a": [], "b": ["a"]}, b={"after": (999,)})
    large = plan(web, {"a": [], "b": ["a"]}, b={"body": "x", "parent": 12345})

    answers = await asyncio.gather(
        store.queue.submit(bad),
        store.queue.submit(plan(api, DIAMOND)),
        store.queue.submit(late),
        store.queue.submit(large),
        return_exceptions=True,
    )

    assert isinstance(answers[0], NotFound)
    assert isinstance(answers[2], UsageError)
    assert isinstance(answers[3], Exception)
    assert await store.value("SELECT count(*) FROM executions") == 4
    assert await store.value("SELECT count(*) FROM executions WHERE project_id = :id", id=web.id) == 0
    assert await store.value("SELECT count(*) FROM events WHERE project_id = :id", id=web.id) == 0


def changed(given: PlanSteps, **more: Any) -> PlanSteps:
    return PlanSteps(**{"tasks": given.tasks, "after": given.after} | more)


@pytest.mark.parametrize(
    ("edges", "more", "words"),
    [
        ({"a": ["b"], "b": ["c"], "c": ["a"]}, {}, "wait for each other: p::"),
        ({"a": ["a"]}, {}, "wait for each other: p::a → p::a"),
        ({"a": []}, {"a": {"idempotency_key": None}}, "p::a has no idempotency key"),
        ({"a": [], "b": []}, {"b": {"task_id": "p::a"}}, "p::a stands twice"),
        ({"a": [], "b": []}, {"b": {"idempotency_key": "plan:p:1:a"}}, "p::b stands twice"),
        ({"a": [], "b": ["a"]}, {"b": {"held": "why"}}, "p::b is held for a person"),
        ({"a": []}, {"a": {"title": " "}}, "a task needs a title"),
    ],
)
async def test_what_is_no_plan_is_refused_whole(
    store: Bed, edges: dict[str, list[str]], more: dict[str, dict[str, Any]], words: str
) -> None:
    api = await store.project()
    names = list(edges)
    tasks = tuple(
        task(api, **{"task_id": f"p::{name}", "plan": "p", "idempotency_key": f"plan:p:1:{name}"} | more.get(name, {}))
        for name in names
    )
    given = PlanSteps(tasks=tasks, after={n: tuple(map(names.index, edges[name])) for n, name in enumerate(names)})

    with pytest.raises(UsageError, match=words):
        await store.queue.submit(given)
    assert await store.value("SELECT count(*) FROM executions") == 0


@pytest.mark.parametrize("after", [{0: (2,)}, {0: (-1,)}, {7: (0,)}])
async def test_a_step_that_is_not_there_is_refused(store: Bed, after: dict[int, tuple[int, ...]]) -> None:
    api = await store.project()

    with pytest.raises(UsageError, match="the plan has no step number"):
        await store.queue.submit(changed(plan(api, {"a": [], "b": []}), after=after))


async def test_an_empty_plan_is_nothing(store: Bed) -> None:
    assert await store.queue.submit(PlanSteps(tasks=())) == []
    assert await store.queue.steps_of(1, "p") == []


async def test_a_plan_that_grew_under_its_key_gets_what_is_new(store: Bed) -> None:
    api = await store.project()
    await store.node()
    first = await store.queue.submit(plan(api, {"a": [], "b": ["a"]}))
    await store.run(api)

    more = await store.queue.submit(plan(api, {"a": [], "b": ["a"], "c": ["a"], "d": ["b", "c"]}))

    assert made(more)[:2] == [(first[0].id, "completed", True), (first[1].id, "queued", True)]
    assert [(one.status, one.duplicate) for one in more[2:]] == [(Status.QUEUED, False), (Status.BLOCKED, False)]
    assert [await store.run(api) for _ in range(3)] == [first[1].id, more[2].id, more[3].id]
    assert list(await statuses(store, api)) == ["a", "b", "c", "d"]  # all one run


async def test_what_is_new_can_not_wait_for_what_failed_before_that_is_retried(store: Bed) -> None:
    api = await store.project()
    await store.node()
    (a,) = await store.queue.submit(plan(api, {"a": []}))
    await store.queue.finish(broken(await store.take(api)))
    grown = plan(api, {"a": [], "b": ["a"]})
    before = await store.dump()

    with pytest.raises(UsageError, match=rf"p::b waits for p::a, and that is failed .*`pilot retry {a.id}`"):
        await store.queue.submit(grown)
    assert await store.dump() == before

    retried = await store.queue.retry(a.id)
    answers = await store.queue.submit(grown)
    assert made(answers)[0] == (retried.id, "queued", True)  # the newest stands for it
    assert [await store.run(api), await store.run(api)] == [retried.id, answers[1].id]


# Retries.


async def failed_plan(store: Bed, project: Project, edges: Mapping[str, Sequence[str]], *names: str) -> dict[str, int]:
    """A plan in which these steps failed, and all that could run has run; ids by name."""
    answers = await store.queue.submit(plan(project, edges))
    await drain(store, project, *names)
    return dict(zip(edges, (one.id for one in answers), strict=True))


async def drain(store: Bed, project: Project, *failing: str) -> list[str]:
    """Run all there is; the names in the order of their runs."""
    ran = []
    while claimed := await store.claim(project):
        name = claimed[0].task_id.removeprefix("p::")
        await store.queue.finish(broken(claimed[0]) if name in failing else done(claimed[0]))
        ran.append(name)
    return ran


async def test_a_failed_step_is_retried_with_all_that_was_cancelled_because_of_it(store: Bed) -> None:
    api = await store.project()
    await store.node()
    edges = {**DIAMOND, "e": ["d"], "apart": []}
    ids = await failed_plan(store, api, edges, "b")
    assert await statuses(store, api) == {
        **dict.fromkeys("ac", "completed"), "b": "failed", **dict.fromkeys("de", "cancelled"), "apart": "completed",
    }  # fmt: skip

    new = await store.queue.retry(ids["b"])

    assert new.status is Status.QUEUED
    assert await statuses(store, api) == {
        **dict.fromkeys("ac", "completed"), "b": "queued", **dict.fromkeys("de", "blocked"), "apart": "completed",
    }  # fmt: skip
    rows = {e.task_id.removeprefix("p::"): e for e in await store.queue.steps_of(api.id, "p")}
    assert {name: rows[name].parent for name in "bde"} == {name: ids[name] for name in "bde"}
    waits = await store.rows("SELECT depends_on FROM dependencies WHERE execution_id = :id", id=rows["d"].id)
    assert sorted(waits) == [(ids["c"],), (new.id,)]
    assert await drain(store, api) == ["b", "d", "e"]
    assert set((await statuses(store, api)).values()) == {"completed"}


async def test_a_step_that_would_wait_in_vain_names_what_to_retry_instead(store: Bed) -> None:
    api = await store.project()
    await store.node()
    ids = await failed_plan(store, api, {"a": [], "b": ["a"], "c": ["b"]}, "a")
    before = await store.dump()

    for name in "bc":
        with pytest.raises(UsageError, match=f"retry {ids['a']} instead"):
            await store.queue.retry(ids[name])
    assert await store.dump() == before


async def test_a_retry_that_fails_is_retried_by_any_of_its_ids(store: Bed) -> None:
    api = await store.project()
    await store.node()
    ids = await failed_plan(store, api, DIAMOND, "a")
    second = await store.queue.retry(ids["a"])
    assert await drain(store, api, "a") == ["a"]

    third = await store.queue.retry(ids["a"])  # the first of them

    assert third.id > second.id
    assert await store.value("SELECT parent FROM executions WHERE id = :id", id=third.id) == second.id
    assert (await store.queue.retry(second.id)) == Enqueued(third.id, Status.QUEUED, duplicate=True)
    assert await drain(store, api) == list("abcd")
    assert await store.value("SELECT count(*) FROM executions") == 12


async def test_what_waits_for_two_failed_steps_comes_with_the_second(store: Bed) -> None:
    api = await store.project()
    await store.node()
    ids = await failed_plan(store, api, {"a": [], "b": [], "c": ["a", "b"], "d": ["c"]}, "a", "b")

    await store.queue.retry(ids["a"])
    assert await statuses(store, api) == {"a": "queued", "b": "failed", "c": "cancelled", "d": "cancelled"}
    await store.queue.retry(ids["b"])
    assert await statuses(store, api) == {"a": "queued", "b": "queued", "c": "blocked", "d": "blocked"}

    assert await drain(store, api) == list("abcd")


async def test_what_a_person_cancelled_stays_cancelled_unless_asked_for(store: Bed) -> None:
    api = await store.project()
    await store.node()
    answers = await store.queue.submit(plan(api, {"a": [], "b": ["a"], "c": ["b"], "d": ["a"]}))
    a, b, _, _ = (one.id for one in answers)
    await store.queue.cancel(b, "me")
    await drain(store, api, "a")

    await store.queue.retry(a)

    assert await statuses(store, api) == {"a": "queued", "b": "cancelled", "c": "cancelled", "d": "blocked"}
    await store.queue.retry(b)
    assert await statuses(store, api) == {"a": "queued", "b": "blocked", "c": "blocked", "d": "blocked"}


async def test_a_whole_plan_is_retried_at_once(store: Bed) -> None:
    api = await store.project()
    await store.node()
    await failed_plan(store, api, {"z": [], **DIAMOND, "x": [], "y": ["x", "d"]}, "b", "x")

    new = await store.queue.retry_plan(api.id, "p")

    assert [one.status for one in new] == [Status.QUEUED, Status.BLOCKED, Status.QUEUED, Status.BLOCKED]
    assert await store.queue.retry_plan(api.id, "p") == []
    assert await drain(store, api) == ["b", "d", "x", "y"]
    assert set((await statuses(store, api)).values()) == {"completed"}
    assert await store.queue.retry_plan(api.id, "p") == []


async def test_the_newest_run_of_a_plan_is_retried(store: Bed) -> None:
    api = await store.project()
    await store.node()
    old = await failed_plan(store, api, {"gone": [], "a": []}, "gone", "a")
    await store.queue.submit(plan(api, {"a": [], "b": ["a"]}, run="2"))
    await drain(store, api, "a")

    await store.queue.retry_plan(api.id, "p")

    assert await statuses(store, api) == {"a": "queued", "b": "blocked"}
    assert (await store.queue.retry(old["gone"])).status is Status.QUEUED  # an older run's step, by its id
    # What another run has open already is that one.
    assert (await store.queue.retry(old["a"])).duplicate
    assert await statuses(store, api) == {"a": "queued", "b": "blocked"}


async def test_dependents_that_another_run_has_open_are_named(store: Bed) -> None:
    api = await store.project()
    await store.node()
    ids = await failed_plan(store, api, {"a": [], "b": ["a"]}, "a")
    await store.queue.submit(plan(api, {"b": []}, run="2"))
    before = await store.dump()

    with pytest.raises(UsageError, match="p::b"):
        await store.queue.retry(ids["a"])
    assert await store.dump() == before


async def test_a_plan_that_never_was_is_not_found(store: Bed) -> None:
    api = await store.project()
    await store.queue.submit(plan(api, DIAMOND))

    with pytest.raises(NotFound, match="no plan other"):
        await store.queue.retry_plan(api.id, "other")
    with pytest.raises(NotFound):
        await store.queue.retry_plan(api.id + 1, "p")


async def test_notes_and_known_results_of_a_plan_complete_with_it(store: Bed) -> None:
    api = await store.project()
    await store.node()
    await store.put(api, dedupe="k")
    await store.run(api)
    edges = {"a": [], "b": ["a"], "c": ["b"], "d": ["c"]}

    answers = await store.queue.submit(
        plan(api, edges, a={"instant": True}, b={"dedupe": "k"}, c={"instant": True, "priority": 0})
    )

    assert [one.status for one in answers] == [Status.COMPLETED] * 3 + [Status.QUEUED]
    assert (await store.queue.submit(plan(api, edges)))[0].status is Status.COMPLETED


async def test_two_steps_with_one_key_are_done_once(store: Bed) -> None:
    api = await store.project()
    await store.node()
    answers = await store.queue.submit(plan(api, {"a": [], "b": [], "c": ["b"]}, a={"dedupe": "k"}, b={"dedupe": "k"}))

    assert [await store.run(api), await store.run(api)] == [answers[0].id, answers[2].id]


async def test_what_an_older_run_has_open_is_no_retry_of_the_newest(store: Bed) -> None:
    """Else it is said to go on, and what was cancelled because of its only failed step never does."""
    api = await store.project()
    await store.node()
    first = await store.queue.submit(plan(api, {"a": []}, run="1"))
    await store.queue.finish(broken(await store.take(api)))
    await store.queue.submit(plan(api, {"a": [], "b": ["a"]}, run="2"))
    await store.queue.finish(broken(await store.take(api)))
    older = (await store.queue.retry(first[0].id)).id

    with pytest.raises(UsageError, match=rf"open already, by another run of the plan: p::a \({older}\)"):
        await store.queue.retry_plan(api.id, "p")


async def test_a_retry_goes_on_behind_what_came_before_it(store: Bed) -> None:
    api = await store.project()
    await store.node()
    before = await store.put(api, "before")
    answers = await store.queue.submit(plan(api, {"a": [], "b": ["a"]}, a={"after": (before,)}))
    await store.queue.finish(broken(await store.take(api)))

    with pytest.raises(UsageError, match=f"retry {before} instead"):
        await store.queue.retry(answers[0].id)
    with pytest.raises(UsageError, match=f"retry {before} instead"):
        await store.queue.retry(answers[1].id)


async def test_four_times_the_steps_cost_four_times_the_work(store: Bed, engine: str) -> None:
    """Nothing of it is quadratic: that would be sixteen times. How long it takes is the benchmarks' to say."""
    api = await store.project()
    dice = Random(1)
    cost: dict[int, float] = {}
    few = {"sqlite": 750, "postgres": 200}[engine]
    for count in (few, 4 * few):
        slug = f"p{count}"
        tasks = tuple(
            task(api, f"{slug}::s{n}", plan=slug, idempotency_key=f"plan:{slug}:{n}", payload="@cmd:make x")
            for n in range(count)
        )
        after = {n: tuple(dice.sample(range(max(0, n - 50), n), min(4, n))) for n in range(count)}
        began = time.process_time()
        answers = await store.queue.submit(PlanSteps(tasks=tasks, after=after))
        await store.queue.submit(PlanSteps(tasks=tasks, after=after))
        await store.queue.cancel(answers[0].id, "me")
        again = await store.queue.retry_plan(api.id, slug)
        cost[count] = time.process_time() - began
        assert [one.id - answers[0].id for one in answers] == list(range(count))
        assert len(again) > count * 0.9

    assert cost[4 * few] < 9 * cost[few], cost
