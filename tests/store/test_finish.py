"""Finish: every end of a claim with all that follows from it, or, for a lost lease, nothing at all."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from pilot.domain.errors import LeaseLost
from pilot.domain.execution import Execution, Status
from pilot.domain.outcome import Ending, FailureClass, GateResult, Outcome, Usage
from pilot.domain.policy import Settlement, settle
from pilot.domain.ports import Finish, OutputKind
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
    task,
    used,
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
            await store.queue.finish(interrupted(execution, at=store.clock.now))
        case "ended":
            await store.queue.finish(broken(execution))
        case "reclaimed":
            await store.queue.finish(interrupted(execution, at=store.clock.now))
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
    await store.queue.finish(interrupted(late, at=store.clock.now))
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


async def test_completion_releases_what_waited(store: Bed) -> None:
    api, web = await store.project("api"), await store.project("web")
    await store.node()
    top = await store.put(api)
    left, right = await store.put(web, after=(top,)), await store.put(api, after=(top,))
    bottom = await store.put(api, after=(left, right))
    told: list[str] = []
    leave = store.database.listen(lambda tokens: told.extend(tokens))

    assert await store.run(api) == top
    assert {str(api.id), str(web.id)} <= set(told)
    leave()
    assert await store.status(bottom) is Status.BLOCKED
    assert await store.events(left) == ["queued", "unblocked"]
    assert [await store.run(web), await store.run(api)] == [left, right]
    assert (await store.queue.get(bottom)).deps_left == 0
    assert await store.run(api) == bottom


async def test_parents_that_end_in_one_commit_both_count(store: Bed) -> None:
    projects = [await store.project(f"p{n}") for n in range(5)]
    await store.node()
    parents = [await store.put(project) for project in projects]
    child = await store.put(projects[0], after=tuple(parents))
    running = [await store.take(project) for project in projects]

    await asyncio.gather(*(store.queue.finish(done(e)) for e in running))

    assert await store.status(child) is Status.QUEUED
    assert await store.events(child) == ["queued", "unblocked"]


async def test_a_released_row_still_waits_for_its_time(store: Bed) -> None:
    api = await store.project()
    await store.node()
    parent = await store.put(api)
    child = await store.put(api, after=(parent,), available_at=store.clock.now + HOUR)

    await store.run(api)

    assert await store.status(child) is Status.QUEUED
    assert await store.claimed(api) == []
    store.clock.tick(HOUR)
    assert await store.claimed(api) == [child]


@pytest.mark.parametrize("end", ["failed", "cancelled"])
async def test_what_depends_on_a_failure_is_cancelled_with_it_and_says_so(store: Bed, end: str) -> None:
    api = await store.project()
    await store.node()
    parent = await store.put(api)
    child = await store.put(api, after=(parent,))
    grandchild = await store.put(api, after=(child, parent))
    apart = await store.put(api)

    if end == "failed":
        await store.queue.finish(broken(await store.take(api)))
        said = f"execution {parent}, which it waits for, failed"
    else:
        await store.queue.cancel(parent, "me")
        said = f"execution {parent}, which it waits for, was cancelled"

    rows = {id: await store.queue.get(id) for id in (child, grandchild, apart)}
    assert rows[child].status is rows[grandchild].status is Status.CANCELLED
    assert rows[child].reason == said
    assert rows[grandchild].reason is not None
    assert rows[child].finished_at == store.clock.now
    assert rows[apart].status is Status.QUEUED
    assert await store.events(grandchild) == ["queued", "cancelled"]


@pytest.mark.parametrize("hold", ["again", "asked", "interrupted"])
async def test_what_may_still_complete_cancels_nobody(store: Bed, hold: str) -> None:
    api = await store.project()
    await store.node()
    parent = await store.put(api)
    child = await store.put(api, after=(parent,))
    execution = await store.take(api)

    await store.queue.finish(ENDS[hold](execution))

    assert await store.status(child) is Status.BLOCKED
    if hold == "asked":
        await store.queue.answer(parent, "yes", "me")
    assert await store.run(api) == parent
    assert await store.run(api) == child


@pytest.mark.parametrize("end", ["completed", "failed"])
async def test_a_chain_of_two_thousand(store: Bed, end: str) -> None:
    api = await store.project()
    await store.node()
    chain = [await store.put(api)]
    await store.sql(
        "INSERT INTO executions (id, project_id, project, project_path, task_id, title, body, source, kind, labels, "
        "priority, lane, status, available_at, deps_left, has_dependents, max_attempts, backend, created_at) "
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2000) "
        "SELECT e.id + n.i, project_id, project, project_path, 'chain-' || n.i, title, body, source, kind, labels, "
        "priority, lane, 'blocked', available_at, 1, 1, max_attempts, backend, created_at "
        "FROM executions e, n WHERE e.id = :first",
        first=chain[0],
    )
    await store.sql(
        "INSERT INTO dependencies SELECT id, id - 1 FROM executions WHERE id > :first",
        first=chain[0],
    )
    await store.sql("UPDATE executions SET has_dependents = 1")
    await store.sql(
        "INSERT INTO events (at, type, execution_id, data) SELECT 0, 'execution.queued', id, "
        '\'{"status":"blocked"}\' FROM executions WHERE id > :first',
        first=chain[0],
    )

    execution = await store.take(api)
    await store.queue.finish(done(execution) if end == "completed" else broken(execution))

    counts: dict[str, int] = dict(await store.rows("SELECT status, count(*) FROM executions GROUP BY status"))
    if end == "completed":
        assert counts == {"completed": 1, "queued": 1, "blocked": 1999}
    else:
        assert counts == {"failed": 1, "cancelled": 2000}


async def test_usage_is_summed_and_unknown_stays_unknown(store: Bed) -> None:
    execution = await claimed(store)
    api = await store.project()

    async def attempt(tokens_in: int | None, tokens_out: int | None, cost: float | None) -> tuple[Any, ...]:
        running = (await store.claim(api) or [execution])[0]
        finish = again(running)
        outcome = replace(finish.outcome, usage=Usage(tokens_in, tokens_out, cost))
        await store.queue.finish(replace(finish, outcome=outcome))
        row = await store.queue.get(execution.id)
        return row.input_tokens, row.output_tokens, row.cost_usd

    assert await attempt(None, None, None) == (None, None, None)
    assert await attempt(10, None, 0.0) == (10, None, 0.0)
    assert await attempt(5, 7, None) == (15, 7, 0.0)
    assert await attempt(None, None, 0.5) == (15, 7, 0.5)


@pytest.mark.parametrize("nonsense", [math.nan, math.inf, -math.inf, -1, 1e300])
async def test_usage_that_can_not_be_is_unknown(store: Bed, nonsense: float) -> None:
    execution = await claimed(store)
    api = await store.project()

    # The neighbour in the same commit is not harmed either.
    _, neighbour = await asyncio.gather(
        store.queue.finish(used(execution, 10**400, 7, nonsense)), store.queue.enqueue(task(api, "next"))
    )

    row = await store.queue.get(execution.id)
    assert (row.status, row.input_tokens, row.output_tokens, row.cost_usd) == (Status.COMPLETED, None, 7, None)
    assert await store.status(neighbour.id) is Status.QUEUED


@pytest.mark.parametrize("text", ["\x00", "\ud800", "a\x00b", "x" * 1_000_000, "\n" * 100_000])
async def test_whatever_an_agent_says_is_stored_and_read_again(store: Bed, text: str) -> None:
    execution = await claimed(store)
    outcome = Outcome(
        ending=Ending.FAILED, failure=FailureClass.UNKNOWN, detail=text, excerpt=text, text=text, session_id=text,
        model=text, branch=text, base_sha=text, head_sha=text, tree=text,
    )  # fmt: skip
    settlement = settle(execution, outcome, now=store.clock.now, jitter=0.5)

    await store.journal.note(execution, session_id=text, branch=text, phase=text, workspace=text, model=text)
    await store.queue.finish(Finish(execution=execution, outcome=outcome, settlement=settlement))

    row = await store.queue.get(execution.id)
    assert row.status is Status.QUEUED
    assert len(row.error or "") < 10_000
    assert len(row.reason or "") < 10_000
    for value in (row.error, row.reason, row.branch, row.model, row.head_sha, row.workspace):
        assert value is not None
        assert "\x00" not in value
        value.encode()


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


async def test_a_park_is_stored_for_every_node_and_its_event_with_it(store: Bed, other: Bed) -> None:
    execution = await claimed(store)
    api = await store.project()

    await store.queue.finish(limited(execution, store.clock.now + HOUR))

    row = await store.queue.get(execution.id)
    assert (row.status, row.failures) == (Status.QUEUED, 0)
    assert await other.rows("SELECT backend, failure, reason, until, since, execution_id FROM parks") == [
        ("agent", "rate_limit", "come back later", store.clock.now + HOUR, store.clock.now, execution.id)
    ]
    assert await other.claimed(api) == []
    assert await store.events(execution.id) == ["queued", "started", "requeued", "parked"]


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize(
    ("untils", "kept"), [((2, 1), 2), ((1, 2), 2), ((None, 5), None), ((5, None), None), ((None, None), None)]
)
async def test_the_longer_park_of_a_backend_wins(
    store: Bed, together: bool, untils: tuple[int | None, ...], kept: int | None
) -> None:
    api = await store.project(max_running=2)
    await store.node()
    await store.put(api)
    await store.put(api)
    running = [await store.take(api), await store.take(api)]

    def at(hours: int | None) -> int | None:
        return None if hours is None else store.clock.now + hours * HOUR

    finishes = [limited(e, at(until)) for e, until in zip(running, untils, strict=True)]
    if together:
        await asyncio.gather(*map(store.queue.finish, finishes))
    else:
        for finish in finishes:
            await store.queue.finish(finish)

    assert await store.value("SELECT until FROM parks") == at(kept)


async def test_a_park_until_the_end_of_time_is_a_time(store: Bed) -> None:
    execution = await claimed(store)

    await store.queue.finish(limited(execution, 10**30))

    until = await store.value("SELECT until FROM parks")
    assert isinstance(until, int)
    assert until > store.clock.now + 10**12


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
