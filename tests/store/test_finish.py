"""Finish: every end of a claim with all that follows from it, or, for a lost lease, nothing at all."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from pilot.domain.agent import OutputKind
from pilot.domain.errors import LeaseLost
from pilot.domain.execution import Execution, Status
from pilot.domain.outcome import Ending, FailureClass, GateResult, Outcome, Usage
from pilot.domain.policy import Settlement, settle
from pilot.domain.ports import Finish
from tests.store.bed import (
    HOUR,
    MINUTE,
    SECOND,
    Bed,
    again,
    asked,
    broken,
    done,
    interrupted,
    limited,
)

ENDS: Mapping[str, Callable[[Execution], Finish]] = {
    "done": done,
    "broken": broken,
    "again": again,
    "asked": asked,
    "interrupted": interrupted,
    "limited": lambda execution: limited(execution, None),
}


async def claimed(store: Bed, **more: Any) -> Execution:
    api = await store.project()
    await store.node()
    await store.put(api, **more)
    return await store.take(api)


async def test_success_is_written_whole(store: Bed) -> None:
    execution = await claimed(store)
    store.clock.tick(SECOND)
    gate = GateResult("test", "test", "make test", True, 0, 1500, "tree", tail="ok \x00 \ud800")

    outcome = Outcome(
        ending=Ending.DONE, text="All done.", session_id="s", model="big", usage=Usage(10, 5, 0.25),
        branch="pilot/T", base_sha="b" * 40, head_sha="h" * 40, tree="t" * 40, delivered=True, gates=(gate,),
    )  # fmt: skip
    settlement = Settlement(to=Status.COMPLETED, keep_session=True)
    assert await store.queue.finish(Finish(execution=execution, outcome=outcome, settlement=settlement)) is None

    row = await store.queue.get(execution.id)
    assert (row.status, row.outcome, row.reason, row.delivery) == (Status.COMPLETED, "done", None, "branch")
    assert (row.branch, row.base_sha, row.head_sha) == ("pilot/T", "b" * 40, "h" * 40)
    assert (row.session_id, row.model, row.input_tokens, row.output_tokens, row.cost_usd) == ("s", "big", 10, 5, 0.25)
    assert (row.node, row.slot, row.lease_until, row.finished_at) == (None, None, None, store.clock.now)
    ((ended, summary, gates, tree, cost),) = await store.rows(
        "SELECT finished_at, summary, gates, tree, cost_usd FROM attempts"
    )
    assert (ended, summary, tree, cost) == (store.clock.now, "All done.", "t" * 40, 0.25)
    (kept,) = json.loads(gates)
    assert (kept["name"], kept["exit_code"], kept["tree"]) == ("test", 0, "tree")
    assert "\x00" not in kept["tail"]
    kept["tail"].encode()
    assert await store.events(execution.id) == ["queued", "started", "completed"]


async def test_no_change_is_no_failure(store: Bed) -> None:
    execution = await claimed(store)

    await store.queue.finish(done(execution, ending=Ending.NO_CHANGE, branch=None, delivered=False))

    row = await store.queue.get(execution.id)
    assert (row.status, row.outcome, row.delivery, row.failures) == (Status.COMPLETED, "no_change", "none", 0)


async def test_failure_keeps_its_class_and_evidence(store: Bed) -> None:
    execution = await claimed(store)

    await store.queue.finish(broken(execution, failure=FailureClass.TEST))

    row = await store.queue.get(execution.id)
    assert (row.status, row.outcome, row.failure_class, row.error) == (Status.FAILED, "failed", "test", "it broke")
    assert (row.reason, row.failures, row.streak, row.mark) == ("test: it broke", 1, 1, "m")
    assert await store.rows("SELECT failure_class, detail, excerpt FROM attempts") == [("test", "it broke", "line 1")]
    assert await store.events(execution.id) == ["queued", "started", "failed"]


async def test_another_try_waits_for_its_time(store: Bed) -> None:
    execution = await claimed(store)
    api = await store.project()

    await store.queue.finish(again(execution, at=store.clock.now + MINUTE, feedback="fix x", keep_session=True))

    row = await store.queue.get(execution.id)
    assert (row.status, row.failures, row.feedback, row.finished_at) == (Status.QUEUED, 1, "fix x", None)
    assert row.available_at == store.clock.now + MINUTE
    assert await store.claimed(api) == []
    store.clock.tick(MINUTE)
    assert await store.claimed(api) == [execution.id]
    assert await store.events(execution.id) == ["queued", "started", "requeued", "started"]


async def test_a_session_is_kept_only_where_it_may_go_on(store: Bed) -> None:
    execution = await claimed(store)
    api = await store.project()
    await store.journal.note(execution, session_id="first")

    await store.queue.finish(interrupted(execution))
    assert (await store.queue.get(execution.id)).session_id == "first"
    await store.queue.finish(again(await store.take(api), keep_session=False))
    assert (await store.queue.get(execution.id)).session_id is None


async def test_a_shutdown_costs_nothing_and_forgets_nothing(store: Bed) -> None:
    execution = await claimed(store)
    api = await store.project()
    await store.queue.finish(again(execution, feedback="fix x", mark="abc", streak=1))

    await store.queue.finish(interrupted(await store.take(api)))

    row = await store.queue.get(execution.id)
    assert (row.status, row.failures, row.losses, row.attempt) == (Status.QUEUED, 1, 0, 2)
    assert (row.feedback, row.mark, row.streak, row.failure_class) == ("fix x", "abc", 1, "agent")


async def test_an_answer_outlives_a_shutdown(store: Bed) -> None:
    execution = await claimed(store)
    api = await store.project()
    await store.queue.finish(asked(execution))
    await store.queue.answer(execution.id, "blue", "me")

    await store.queue.finish(interrupted(await store.take(api)))

    assert (await store.take(api)).feedback == "blue"


async def test_a_question_holds_the_execution_and_frees_the_slot(store: Bed) -> None:
    execution = await claimed(store)
    api = await store.project()
    behind = await store.put(api)

    await store.queue.finish(asked(execution, "what colour?\x00", options=("red", "blue\ud800"), default="red"))

    row = await store.queue.get(execution.id)
    assert (row.status, row.node, row.session_id) == (Status.NEEDS_HUMAN, None, "session")
    ((id, attempt, text, options, preset, at),) = await store.rows(
        "SELECT execution_id, attempt, text, options, preset, asked_at FROM questions"
    )
    assert (id, attempt, text, preset, at) == (execution.id, 1, "what colour?\ufffd", "red", store.clock.now)
    assert json.loads(options)[0] == "red"
    assert await store.claimed(api) == [behind]
    assert await store.events(execution.id) == ["queued", "started", "asked"]


@pytest.mark.parametrize("ending", ["done", "broken", "again", "asked", "interrupted", "limited"])
@pytest.mark.parametrize("lost", ["fence", "requeued", "ended", "reclaimed", "never"])
async def test_a_lost_lease_writes_nothing_at_all(store: Bed, ending: str, lost: str) -> None:
    api = await store.project()
    await store.node()
    child_of = await store.put(api)
    await store.put(api, after=(child_of,))
    execution = await store.take(api)
    match lost:
        case "fence":
            execution = replace(execution, fence=execution.fence + 1)
        case "requeued":
            await store.queue.finish(interrupted(execution))
        case "ended":
            await store.queue.finish(broken(execution))
        case "reclaimed":
            await store.queue.finish(interrupted(execution))
            await store.take(api)
        case "never":
            execution = replace(execution, id=999)
    before = await store.dump()

    late = ENDS[ending](execution)
    with pytest.raises(LeaseLost, match=str(execution.id)):
        await store.queue.finish(replace(late, next_lease=MINUTE))
    with pytest.raises(LeaseLost):
        await store.journal.write(execution, [(OutputKind.TEXT, b"late")])
    with pytest.raises(LeaseLost):
        await store.journal.note(execution, branch="late", phase="late", session_id="late")

    assert await store.dump() == before


async def test_a_late_end_is_refused_beside_the_right_one_in_the_same_commit(store: Bed) -> None:
    api = await store.project(max_running=3)
    await store.node()
    for _ in range(3):
        await store.put(api)
    late = await store.take(api)
    await store.queue.finish(interrupted(late))
    right, _, _ = [await store.take(api) for _ in range(3)]
    assert right.id == late.id

    answers = await asyncio.gather(
        store.queue.finish(broken(late)), store.queue.finish(done(right)), return_exceptions=True
    )

    assert isinstance(answers[0], LeaseLost)
    assert answers[1] is None
    assert await store.events(late.id) == ["queued", "started", "requeued", "started", "completed"]
    assert await store.value("SELECT running FROM projects") == 2


async def test_the_same_end_twice_in_one_commit_counts_once(store: Bed) -> None:
    api = await store.project(max_running=3)
    await store.node()
    for _ in range(3):
        await store.put(api)
    first, _, _ = [await store.take(api) for _ in range(3)]

    answers = await asyncio.gather(*(store.queue.finish(done(first)) for _ in range(3)), return_exceptions=True)

    assert [type(answer) for answer in answers] == [type(None), LeaseLost, LeaseLost]
    assert await store.value("SELECT running FROM projects") == 2
    assert await store.events(first.id) == ["queued", "started", "completed"]


async def test_the_next_claim_comes_in_the_same_transaction(store: Bed) -> None:
    execution = await claimed(store)
    api = await store.project()
    second = await store.put(api)

    following = await store.queue.finish(done(execution, next_lease=MINUTE))

    assert following is not None
    assert (following.id, following.node, following.slot) == (second, "n1", 0)
    assert following.lease_until == store.clock.now + MINUTE
    assert following.fence > execution.fence
    assert await store.queue.finish(done(following, next_lease=MINUTE)) is None


async def test_many_ends_with_their_next_claims_share_one_commit(store: Bed) -> None:
    projects = [await store.project(f"p{n}") for n in range(20)]
    await store.node()
    for project in projects:
        await store.put(project)
        await store.put(project)
    running = [await store.take(project) for project in projects]

    following = await asyncio.gather(*(store.queue.finish(done(e, next_lease=MINUTE)) for e in running))

    assert [e.project_id if e else None for e in following] == [project.id for project in projects]


async def test_two_ends_of_a_project_that_may_run_fewer_by_now_go_on_in_one_slot(store: Bed) -> None:
    api = await store.project(max_running=2)
    await store.node()
    for _ in range(4):
        await store.put(api)
    running = [await store.take(api), await store.take(api)]
    await store.project(max_running=1)

    following = await asyncio.gather(*(store.queue.finish(done(e, next_lease=MINUTE)) for e in running))

    assert [e.slot for e in following if e is not None] == [0]
    assert await store.value("SELECT running FROM projects") == 1


@pytest.mark.parametrize("why", ["nothing there", "paused", "lowered", "late"])
async def test_a_slot_that_nobody_takes_over_is_free(store: Bed, why: str) -> None:
    api, web = await store.project(max_running=2), await store.project("web")
    await store.node()
    for project in (api, api, web, web, *([] if why == "nothing there" else [api])):
        await store.put(project)
    first, second, other = await store.take(api), await store.take(api), await store.take(web)
    if why == "paused":
        await store.queue.pause(api.id, "me", "later")
    elif why == "lowered":
        await store.project(max_running=1)
    elif why == "late":
        await store.queue.finish(interrupted(first, at=store.clock.now + HOUR))

    ended, following = await asyncio.gather(
        store.queue.finish(done(first, next_lease=MINUTE)),
        store.queue.finish(done(other, next_lease=MINUTE)),
        return_exceptions=True,
    )

    assert isinstance(ended, LeaseLost) if why == "late" else ended is None
    assert isinstance(following, Execution), "another's end in the same commit goes on"
    assert (await store.queue.get(second.id)).status is Status.RUNNING
    assert await store.rows("SELECT running FROM projects ORDER BY id") == [(1,), (1,)]


@pytest.mark.parametrize("ending", ["again", "asked", "interrupted", "limited"])
async def test_a_cancel_asked_meanwhile_wins_over_another_try(store: Bed, ending: str) -> None:
    execution = await claimed(store)
    api = await store.project()
    child = await store.put(api, after=(execution.id,))
    assert await store.queue.cancel(execution.id, "me", "not needed") is Status.RUNNING

    await store.queue.finish(ENDS[ending](execution))

    row = await store.queue.get(execution.id)
    assert (row.status, row.reason, row.cancel_requested) == (Status.CANCELLED, "not needed", False)
    assert await store.value("SELECT count(*) FROM questions") == 0
    assert await store.status(child) is Status.CANCELLED
    assert await store.claimed(api) == []
    # What was learnt of the backend is true for the others, too.
    assert await store.value("SELECT count(*) FROM parks") == (1 if ending == "limited" else 0)


@pytest.mark.parametrize("ending", ["done", "broken"])
async def test_a_cancel_that_comes_too_late_changes_no_end(store: Bed, ending: str) -> None:
    execution = await claimed(store)
    await store.queue.cancel(execution.id, "me", "not needed")

    await store.queue.finish(ENDS[ending](execution))

    row = await store.queue.get(execution.id)
    assert row.status is (Status.COMPLETED if ending == "done" else Status.FAILED)
    assert row.reason == (None if ending == "done" else "agent: it broke")


async def test_cancel_and_finish_at_once_end_in_one_state(store: Bed, other: Bed) -> None:
    api = await store.project()
    await store.node()
    for n in range(20):
        await store.put(api)
        execution = await store.take(api)
        first, second = store.queue.finish(again(execution)), other.queue.cancel(execution.id, "me")
        await asyncio.gather(*((first, second) if n % 2 else (second, first)))
        row = await store.queue.get(execution.id)
        assert row.status is Status.CANCELLED
        assert (await store.events(execution.id)).count("cancelled") == 1


async def test_a_direct_run_that_asks_may_be_taken_on_by_anybody(store: Bed) -> None:
    api = await store.project()
    await store.node("run-1")
    await store.node("serve")
    id = await store.put(api, priority=-1, reserved_for="run-1")
    await store.queue.finish(asked(await store.take(api, "run-1", own=True)))

    await store.queue.answer(id, "yes", "me")

    assert await store.claimed(api, "serve") == [id]


async def test_all_failure_classes_settle_into_what_the_row_can_hold(store: Bed) -> None:
    projects = await store.queue.register([(f"k{f}", str(f), "/", 1) for f in FailureClass])
    await store.node()
    for project, failure in zip(projects, FailureClass, strict=True):
        await store.put(project, backend=f"agent-{failure}", max_attempts=2)
        for _ in range(8):
            found = await store.claim(project)
            if not found:
                break
            outcome = Outcome(ending=Ending.FAILED, failure=failure, detail="broke", excerpt=f"{store.clock.now}")
            settlement = settle(found[0], outcome, now=store.clock.now, jitter=0.5)
            await store.queue.finish(Finish(execution=found[0], outcome=outcome, settlement=settlement))
            store.clock.tick(2 * HOUR)
            await store.check()
    waiting = await store.rows("SELECT failure_class FROM executions WHERE status IN ('running', 'blocked')")
    assert waiting == []


async def test_the_next_is_of_the_first_project_that_waits_and_has_something(store: Bed) -> None:
    api, taken, empty, web, app = [await store.project(name) for name in ("api", "taken", "empty", "web", "app")]
    for project in (api, api, taken, taken, web, app):
        await store.put(project)
    await store.take(taken, "n2")
    execution = await store.take(api)
    await store.queue.pause(app.id, "ada", "later")
    told: list[str] = []
    store.queue.listen(told.extend)

    following = await store.queue.finish(
        replace(done(execution, next_lease=MINUTE), first=(taken.id, app.id, empty.id, web.id))
    )

    assert following is not None
    assert (following.project_id, following.node) == (web.id, execution.node)
    assert str(api.id) in told, "its project has more, and nobody took it"
    own = await store.take(api)
    told.clear()
    following = await store.queue.finish(replace(done(own, next_lease=MINUTE), first=(taken.id, web.id)))
    assert following is None, "none of them has anything, nor has its own"


async def test_none_of_those_that_wait_has_anything_then_its_own_project_goes_on(store: Bed) -> None:
    api, taken = await store.project("api"), await store.project("taken")
    for project in (api, api, taken, taken):
        await store.put(project)
    await store.take(taken, "n2")
    execution = await store.take(api)
    told: list[str] = []
    store.queue.listen(told.extend)

    following = await store.queue.finish(replace(done(execution, next_lease=MINUTE), first=(taken.id,)))

    assert following is not None
    assert following.project_id == api.id
    assert str(api.id) not in told, "nobody has to look"


async def test_several_ends_of_one_group_share_what_waits(store: Bed) -> None:
    projects = [await store.project(name) for name in "abcde"]
    for project in projects:
        await store.put(project)
        await store.put(project)
    ids = tuple(project.id for project in projects)
    running = [await store.take(project) for project in projects[:3]]

    following = await asyncio.gather(
        *(store.queue.finish(replace(done(e, next_lease=MINUTE), first=ids[3:])) for e in running)
    )

    assert sorted(e.project_id for e in following if e is not None) == [ids[2], ids[3], ids[4]]
