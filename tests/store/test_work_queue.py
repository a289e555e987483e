"""Workers elsewhere: each execution once, one per project, by what they take; and only a claim that stands counts."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator, Sequence
from typing import Any

import pytest

from pilot.domain.agent import OutputKind
from pilot.domain.budget import Budget
from pilot.domain.errors import LeaseLost, NotFound, UsageError
from pilot.domain.execution import Execution, Status
from pilot.domain.outcome import Ending, FailureClass, Outcome, Publication, Question, Usage, failed
from pilot.domain.policy import RULES, Rule
from pilot.domain.task import Kind
from pilot.domain.work import Artifact, Claim, Progress, Wanted, WorkQueue
from pilot.store import open_queue, open_store
from pilot.store.database import Rows, Statement, Step
from pilot.store.pool import Ask, filter_of
from pilot.store.work_queue import SqlWorkQueue
from tests.store.bed import HOUR, MINUTE, SECOND, Bed, Clock, limited, task

DONE = Outcome(ending=Ending.DONE, text="all well")
BROKE = failed(FailureClass.AGENT, "it broke", excerpt="line 1")


async def take(store: Bed, worker: str = "w", **more: Any) -> Claim:
    """One claim; there must be one."""
    (claim,) = await store.store.work.claim(worker, **more)
    return claim


async def taken(store: Bed, worker: str = "w", **more: Any) -> list[int]:
    """The ids of what a worker gets."""
    return [claim.execution.id for claim in await store.store.work.claim(worker, **more)]


async def complete(store: Bed, claim: Claim, worker: str = "w") -> Execution:
    """Done."""
    return (await store.store.work.complete(claim.execution.id, worker, claim.fence, DONE)).execution


async def test_enqueue_three_claim_two_release_one_complete_one(url: str, clock: Clock) -> None:
    """The first of the systems that this takes the place of: a queue of code jobs with leases."""
    async with open_queue(url, clock=clock) as q:
        one, two, three = await q.register([(f"host:/src/{n}", n, f"/src/{n}", 1) for n in ("one", "two", "three")])
        for project in (one, two, three):
            await q.enqueue(task(project, "job", kind=Kind.BUILD))
        clock.tick(5 * SECOND)
        first, second = await q.claim("agent-1", max=2)
        released = await q.release(second.execution.id, "agent-1", second.fence, "not mine")
        await q.complete(first.execution.id, "agent-1", first.fence, DONE)

        assert (released.execution.status, released.execution.reason) == (Status.QUEUED, "not mine")
        counts = {status: n for status, n in (await q.counts()).items() if n}
        assert counts == {Status.QUEUED: 2, Status.COMPLETED: 1}
        figures = await q.stats()
        assert figures["counts"]["queued"] == 2
        build = figures["kinds"]["build"]
        assert (build["queued"], build["running"], build["completed_24h"]) == (2, 0, 1)
        assert build["oldest_wait_seconds"] == 5
        assert (await q.get(first.execution.id)).status is Status.COMPLETED


async def test_it_is_the_port_that_workers_speak_to(store: Bed) -> None:
    port: WorkQueue = store.store.work  # mypy holds it to that
    assert await port.claim("w") == []


async def test_a_claim_says_all_that_a_worker_has_to_know(store: Bed) -> None:
    api = await store.project()
    parent = await store.put(api, "step-1")
    child = await store.put(api, "step-2", after=(parent,))
    claim = await take(store)
    outcome = Outcome(ending=Ending.DONE, branch="pilot/step-1", head_sha="a" * 40)
    await store.store.work.complete(parent, "w", claim.fence, outcome, [Artifact("out.txt", b"x")])
    store.clock.tick(SECOND)

    claim = await take(store, lease=10 * SECOND)

    execution = claim.execution
    assert execution == await store.queue.get(child)
    assert (execution.status, execution.node, execution.attempt) == (Status.RUNNING, "worker:w", 1)
    assert (claim.fence, claim.lease_until) == (execution.fence, store.clock.now + 10 * SECOND)
    (made,) = claim.made
    assert (made.id, made.task_id, made.branch, made.head_sha) == (parent, "step-1", "pilot/step-1", "a" * 40)
    assert [dict(a) for a in made.artifacts] == [
        {"name": "out.txt", "sha256": Artifact("out.txt", b"x").sha256, "size": 1}
    ]
    assert await store.store.history.made(execution) == claim.made


async def test_what_has_waited_longest_comes_first_and_a_project_gives_one(store: Bed) -> None:
    api, web, app = await store.project("api"), await store.project("web"), await store.project("app", 2)
    first = await store.put(web)
    await store.put(web)
    second = await store.put(app)
    third = await store.put(api)
    fourth = await store.put(app)
    await store.put(app)

    assert await taken(store, "a", max=2) == [first, second]
    assert await taken(store, "b", max=9) == [third, fourth]
    assert await taken(store, "c", max=9) == []


async def test_one_claim_fills_all_slots_of_a_project(store: Bed) -> None:
    api = await store.project("api", 2)
    first, second, _ = [await store.put(api) for _ in range(3)]

    claims = await store.store.work.claim("w", max=9)

    assert [(c.execution.id, c.execution.slot) for c in claims] == [(first, 0), (second, 1)]
    assert claims[0].fence < claims[1].fence


async def test_lane_3_is_not_lane_33(store: Bed) -> None:
    await store.put(await store.project(), lane=3)

    assert await taken(store, wanted=Wanted(lanes=(33, 13, 31))) == []


async def test_priority_goes_before_age(store: Bed) -> None:
    api, web = await store.project("api"), await store.project("web")
    await store.put(api)
    urgent = await store.put(web, priority=0)

    assert await taken(store) == [urgent]


@pytest.mark.parametrize(
    "wanted",
    [Wanted(lanes=(7, 3)), Wanted(kinds=("deploy",)), Wanted(lanes=(3,), kinds=("deploy", "test"))],
)
async def test_what_a_worker_does_not_take_holds_up_nothing_behind_it(store: Bed, wanted: Wanted) -> None:
    api = await store.project()
    for _ in range(3):
        await store.put(api, lane=33, kind=Kind.CODE)
    mine = await store.put(api, lane=3, kind=Kind.DEPLOY)
    also = await store.put(api, lane=3, kind=Kind.DEPLOY)

    claim = await take(store, wanted=wanted)

    assert claim.execution.id == mine
    await complete(store, claim)
    assert await taken(store, wanted=wanted) == [also]


async def test_a_worker_may_take_some_projects_only(store: Bed) -> None:
    api, web = await store.project("api"), await store.project("web")
    await store.put(api)
    mine = await store.put(web)

    assert await taken(store, wanted=Wanted(projects=("nobody's",))) == []
    assert await taken(store, wanted=Wanted(projects=("web", "nobody's")), max=5) == [mine]
    assert await taken(store, wanted=Wanted(projects=("web",))) == []


async def test_workers_that_want_different_things_are_served_together(store: Bed) -> None:
    api, web = await store.project("api"), await store.project("web")
    one = await store.put(api, lane=1)
    two = await store.put(web, lane=2)
    work = store.store.work

    answers = await asyncio.gather(
        work.claim("two", wanted=Wanted(lanes=(2,))),
        work.claim("any"),
        work.claim("one", wanted=Wanted(lanes=(1,))),
        work.claim("none", wanted=Wanted(lanes=(3,))),
    )

    assert [[c.execution.id for c in claims] for claims in answers] == [[two], [one], [], []]


async def test_what_is_left_to_workers_is_theirs_and_the_rest_as_well(store: Bed) -> None:
    api, web = await store.project("api"), await store.project("web")
    left, other = await store.put(api, external=True), await store.put(web)
    await store.node()
    assert await store.claimed(api) == []

    assert await taken(store, max=2) == [left, other]


async def test_a_direct_run_that_is_next_keeps_its_project(store: Bed) -> None:
    api = await store.project()
    await store.node("run-1")
    await store.put(api, reserved_for="run-1", priority=-1)
    await store.put(api)

    assert await taken(store) == []


async def test_pauses_parks_time_and_slots_hold_for_workers_too(store: Bed) -> None:
    api, web, app, doc = [await store.project(name) for name in ("api", "web", "app", "doc")]
    await store.node()
    await store.put(api)
    await store.queue.pause(api.id, "me", "no")
    await store.put(web)
    await store.put(web)
    await store.take(web)
    later = await store.put(app, available_at=store.clock.now + MINUTE)
    parked = await store.put(doc, backend="full")
    await store.queue.finish(limited(await store.take(doc), store.clock.now + 2 * MINUTE))

    assert await taken(store, max=9) == []
    store.clock.tick(MINUTE)
    assert await taken(store, max=9, lease=HOUR) == [later]
    store.clock.tick(MINUTE)
    assert await taken(store, max=9) == [parked]


async def test_a_day_without_money_gives_workers_nothing(store: Bed) -> None:
    api, web = await store.project("api"), await store.project("web")
    await store.put(api)
    await store.put(web)
    store.store.work.govern(lambda: RULES, lambda: Budget(5.0, 8.0))

    claim = await take(store, max=2)

    assert await taken(store, max=2) == []
    await store.store.work.complete(
        claim.execution.id, "w", claim.fence, Outcome(ending=Ending.DONE, usage=Usage(1, 1, 1.0))
    )
    assert len(await taken(store, max=2)) == 1


async def test_a_day_without_money_costs_a_look_for_many_projects_at_once(store: Bed) -> None:
    """All wait for a claim that is made: while nobody gets anything, it must not look at everything for each."""
    work = store.store.work
    for n in range(60):
        await store.put(await store.project(f"p{n}"))
    work.govern(lambda: RULES, lambda: Budget(5.0, 8.0))
    await take(store)
    looks = 0

    def counted(asks: Sequence[Ask]) -> Generator[Step, Rows, Any]:
        nonlocal looks
        steps, rows = work._claims(asks), None
        while True:
            try:
                step = next(steps) if rows is None else steps.send(rows)
            except StopIteration as end:
                return end.value
            looks += isinstance(step, Statement) and "walk" in step.sql
            rows = yield step

    nothing = Ask("worker:w", 1, 30 * SECOND, 0, Budget(5.0, 8.0), filter_of(Wanted()))
    assert await store.database.write(counted, nothing) == []

    assert looks <= 8


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"worker": ""}, "1 to 80"),
        ({"worker": "x" * 81}, "1 to 80"),
        ({"worker": "a\x1b[2J"}, "1 to 80"),
        ({"worker": " "}, "1 to 80"),
        ({"max": 0}, "out of range"),
        ({"max": 101}, "out of range"),
        ({"lease": 999}, "1 to 3600 seconds, not 0.999"),
        ({"lease": 3_600_001}, "1 to 3600 seconds"),
        ({"wait": -1}, "makes no sense"),
        ({"wait": float("nan")}, "makes no sense"),
    ],
)
async def test_a_claim_that_makes_no_sense_takes_nothing(store: Bed, arguments: dict[str, Any], words: str) -> None:
    await store.put(await store.project())
    before = await store.dump()

    with pytest.raises(UsageError, match=words):
        await store.store.work.claim(**{"worker": "w"} | arguments)

    assert await store.dump() == before


async def test_a_heartbeat_renews_one_lease_and_brings_the_wish_for_an_end(store: Bed) -> None:
    api, web = await store.project("api"), await store.project("web")
    await store.put(api)
    await store.put(web)
    first, second = await store.store.work.claim("w", max=2)
    store.clock.tick(20 * SECOND)

    beaten = await store.store.work.heartbeat(first.execution.id, "w", first.fence, lease=MINUTE)

    assert (beaten.lease_until, beaten.cancel_requested) == (store.clock.now + MINUTE, False)
    assert (await store.queue.get(first.execution.id)).lease_until == beaten.lease_until
    assert (await store.queue.get(second.execution.id)).lease_until == second.lease_until
    await store.queue.cancel(first.execution.id, "me")
    assert (await store.store.work.heartbeat(first.execution.id, "w", first.fence)).cancel_requested


async def test_a_heartbeat_brings_what_the_worker_knows(store: Bed) -> None:
    await store.put(await store.project())
    claim = await take(store)
    facts = {"phase": "tests", "session_id": "s-1", "branch": "b"}

    await store.store.work.heartbeat(
        claim.execution.id, "w", claim.fence, progress=Progress(facts=facts, usage=Usage(1, 2, 0.5))
    )

    row = await store.queue.get(claim.execution.id)
    (attempt,) = await store.store.history.attempts(row.id)
    assert (row.session_id, row.branch, attempt.phase, attempt.cost_usd) == ("s-1", "b", "tests", 0.5)
    with pytest.raises(UsageError, match="no such fact: colour; there are answered, base_sha"):
        await store.store.work.heartbeat(row.id, "w", claim.fence, progress=Progress(facts={"colour": "red"}))


async def test_output_is_kept_in_order(store: Bed) -> None:
    id = await store.put(await store.project())
    claim = await take(store)
    work = store.store.work

    await work.output(id, "w", claim.fence, [(OutputKind.STDOUT, b"1"), (OutputKind.TEXT, b"2")])
    await work.output(id, "w", claim.fence, [(OutputKind.STDERR, b"3")])

    assert [(p.attempt, p.seq, p.data) for p in await store.store.history.output(id)] == [
        (1, 1, b"1"), (1, 2, b"2"), (1, 3, b"3")
    ]  # fmt: skip


def saying(verb: str) -> Callable[[WorkQueue, int, str, int], Awaitable[Any]]:
    """What a worker may say of its claim."""
    match verb:
        case "heartbeat":
            return lambda q, id, w, f: q.heartbeat(id, w, f, progress=Progress(facts={"phase": "x"}))
        case "output":
            return lambda q, id, w, f: q.output(id, w, f, [(OutputKind.TEXT, b"late")])
        case "complete":
            return lambda q, id, w, f: q.complete(id, w, f, DONE, [Artifact("a", b"late")])
        case "fail":
            return lambda q, id, w, f: q.fail(id, w, f, BROKE)
        case _:
            return lambda q, id, w, f: q.release(id, w, f, "late")


VERBS = ("heartbeat", "output", "complete", "fail", "release")


@pytest.mark.parametrize("verb", VERBS)
async def test_who_has_no_claim_changes_nothing(store: Bed, verb: str) -> None:
    api = await store.project()
    id = await store.put(api)
    await store.put(api)
    say = saying(verb)
    claim = await take(store)
    store.clock.tick(SECOND)  # so that a renewed lease would be another
    before = await store.dump()

    for worker, fence in (("w", claim.fence + 1), ("w", claim.fence - 1), ("other", claim.fence)):
        with pytest.raises(LeaseLost, match=f"execution {id} is not worker:{worker}'s under fence {fence}"):
            await say(store.store.work, id, worker, fence)
    for unknown in (id + 99, 0, 1 << 70):
        with pytest.raises(NotFound, match="no execution"):
            await say(store.store.work, unknown, "w", claim.fence)
    with pytest.raises(UsageError, match="out of range"):
        await say(store.store.work, id, "w", 1 << 70)

    assert await store.dump() == before


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("again", [True, False])
async def test_who_lost_its_claim_changes_nothing(store: Bed, verb: str, again: bool) -> None:
    api = await store.project()
    id = await store.put(api)
    claim = await take(store)
    store.clock.tick(30 * SECOND + 1)
    if again:
        assert await taken(store, "other") == [id]
    else:
        await store.queue.pause(0, "me", "so that nobody else has it yet")
        assert await taken(store, "other") == []
    before = await store.dump()

    with pytest.raises(LeaseLost):
        await saying(verb)(store.store.work, id, "w", claim.fence)

    assert await store.dump() == before


async def test_a_late_heartbeat_is_in_time_as_long_as_nobody_took_it_back(store: Bed) -> None:
    id = await store.put(await store.project())
    claim = await take(store)
    store.clock.tick(HOUR)

    await store.store.work.heartbeat(id, "w", claim.fence)

    assert await taken(store, "other") == []


@pytest.mark.parametrize("verb", ["complete", "fail", "release"])
async def test_the_last_word_again_gives_the_same_answer(store: Bed, verb: str) -> None:
    id = await store.put(await store.project())
    claim = await take(store)
    say = saying(verb)

    first = await say(store.store.work, id, "w", claim.fence)
    before = await store.dump()
    second = await say(store.store.work, id, "w", claim.fence)

    assert (first.duplicate, second.duplicate) == (False, True)
    assert second.execution == first.execution
    for other in {"complete", "fail", "release"} - {verb}:
        with pytest.raises(LeaseLost):
            await saying(other)(store.store.work, id, "w", claim.fence)
    assert await store.dump() == before


@pytest.mark.parametrize("verb", ["complete", "fail", "release"])
async def test_of_two_last_words_at_once_one_counts(store: Bed, verb: str) -> None:
    id = await store.put(await store.project())
    claim = await take(store)
    say, other = saying(verb), saying("fail" if verb == "complete" else "complete")

    answers: list[Any] = await asyncio.gather(
        *(say(store.store.work, id, "w", claim.fence) for _ in range(3)),
        other(store.store.work, id, "w", claim.fence),
        return_exceptions=True,
    )

    assert [answer.duplicate for answer in answers[:3]] == [False, True, True]
    assert isinstance(answers[3], LeaseLost)
    (attempt,) = await store.store.history.attempts(id)
    assert attempt.finished_at is not None


async def test_a_repeated_last_word_shows_what_became_of_it_since(store: Bed) -> None:
    id = await store.put(await store.project())
    claim = await take(store)
    await store.store.work.release(id, "w", claim.fence)
    assert await taken(store, "other") == [id]
    before = await store.dump()

    again = await store.store.work.release(id, "w", claim.fence)

    assert (again.duplicate, again.execution.status, again.execution.node) == (True, Status.RUNNING, "worker:other")
    assert await store.dump() == before


async def test_ended_leases_go_back_uncounted_and_fail_after_max_attempts_in_a_row(store: Bed) -> None:
    id = await store.put(await store.project(), max_attempts=3)
    fence = 0
    for n in range(1, 4):
        claim = await take(store, f"w{n}", lease=SECOND)
        fence = claim.fence
        assert claim.execution.attempt == n
        store.clock.tick(SECOND)
        assert await taken(store, "eager") == [], "not a millisecond past its lease"
        store.clock.tick(1)
        if n < 3:
            await store.queue.pause(0, "me", "")
            assert await taken(store, "eager") == []
            row = await store.queue.get(id)
            assert (row.status, row.losses, row.failures) == (Status.QUEUED, n, 0)
            assert row.reason == f"node worker:w{n} was lost: its lease ended"
            await store.queue.resume(0)

    assert await taken(store, "eager") == []
    row = await store.queue.get(id)
    assert (row.status, row.failure_class, row.failures) == (Status.FAILED, "infra", 0)
    assert (
        row.reason == "infra: node worker:w3 was lost: its lease ended; that happened 3 times in a row (max_attempts)"
    )
    assert (await store.events(id))[-2:] == ["lost", "failed"]
    with pytest.raises(LeaseLost):
        await store.store.work.fail(id, "w3", fence, BROKE)


async def test_an_attempt_that_ends_by_itself_ends_the_row_of_losses(store: Bed) -> None:
    id = await store.put(await store.project(), max_attempts=2)
    await take(store, lease=SECOND)
    store.clock.tick(2 * SECOND)
    claim = await take(store)
    assert claim.execution.losses == 1

    await store.store.work.release(id, "w", claim.fence)

    assert (await take(store)).execution.losses == 0


async def test_the_lease_of_a_node_is_not_a_workers_to_judge(store: Bed) -> None:
    api = await store.project()
    await store.node()
    id = await store.put(api)
    await store.take(api, lease=SECOND)
    store.clock.tick(MINUTE)

    assert await taken(store) == []
    assert (await store.queue.get(id)).node == "n1"


async def test_whose_end_was_asked_for_is_cancelled_when_it_is_given_back_or_lost(store: Bed) -> None:
    api, web = await store.project("api"), await store.project("web")
    first, second = await store.put(api), await store.put(web)
    claim, _ = await store.store.work.claim("w", max=2)
    for id in (first, second):
        await store.queue.cancel(id, "me", "not wanted")

    settled = await store.store.work.release(first, "w", claim.fence)
    store.clock.tick(MINUTE)
    assert await taken(store) == []

    for row in (settled.execution, await store.queue.get(second)):
        assert (row.status, row.reason) == (Status.CANCELLED, "not wanted")


async def test_a_failure_goes_by_the_rules_and_these_may_change(store: Bed) -> None:
    id = await store.put(await store.project(), max_attempts=5)
    claim = await take(store)
    first = (await store.store.work.fail(id, "w", claim.fence, BROKE)).execution
    assert (first.status, first.failures, first.failure_class, first.feedback) == (Status.QUEUED, 1, "agent", "line 1")
    assert first.available_at > store.clock.now
    store.clock.tick(HOUR)
    store.store.work.govern(lambda: {**RULES, FailureClass.AGENT: Rule(counts=True, cap=0)}, Budget)
    claim = await take(store)

    settled = await store.store.work.fail(id, "w", claim.fence, failed(FailureClass.AGENT, "another"))

    assert (settled.execution.status, settled.execution.error) == (Status.FAILED, "another")


async def test_a_worker_without_allowance_parks_nobody(store: Bed) -> None:
    api, web = await store.project("api"), await store.project("web")
    limit, login = await store.put(api), await store.put(web)
    first, second = await store.store.work.claim("w", max=2)
    reset = store.clock.now + HOUR

    one = await store.store.work.fail(limit, "w", first.fence, failed(FailureClass.RATE_LIMIT, "slow", retry_at=reset))
    two = await store.store.work.fail(login, "w", second.fence, failed(FailureClass.AUTH, "log in"))

    assert (one.execution.status, one.execution.available_at, one.execution.failures) == (Status.QUEUED, reset, 0)
    assert (two.execution.status, two.execution.reason) == (Status.NEEDS_HUMAN, "auth: log in")
    assert await store.rows("SELECT * FROM parks") == []


async def test_unnamed_pauses_of_a_worker_grow(store: Bed) -> None:
    id = await store.put(await store.project())
    pauses = []
    for _ in range(3):
        claim = await take(store)
        settled = await store.store.work.fail(id, "w", claim.fence, failed(FailureClass.QUOTA, "none left"))
        pauses.append(settled.execution.available_at - store.clock.now)
        store.clock.tick(HOUR)

    assert pauses[0] > 0
    assert pauses[0] < pauses[1] < pauses[2]


async def test_a_question_waits_for_its_answer(store: Bed) -> None:
    id = await store.put(await store.project())
    claim = await take(store)
    asks = Outcome(ending=Ending.QUESTION, question=Question("what colour?", ("red",)), session_id="s")

    settled = await store.store.work.complete(id, "w", claim.fence, asks)

    assert (settled.execution.status, settled.execution.reason) == (Status.NEEDS_HUMAN, "what colour?")
    await store.queue.answer(id, "red", "me")
    claim = await take(store, "another")
    assert (claim.execution.feedback, claim.execution.session_id) == ("red", "s")


async def test_nothing_to_change_is_an_end(store: Bed) -> None:
    id = await store.put(await store.project())
    claim = await take(store)

    settled = await store.store.work.complete(id, "w", claim.fence, Outcome(ending=Ending.NO_CHANGE))

    assert (settled.execution.status, settled.execution.outcome) == (Status.COMPLETED, "no_change")


@pytest.mark.parametrize(
    ("payload", "names", "words"),
    [
        (None, ["a.diff", "b.txt"], "either one .diff or whole files"),
        ("@doc:LLM_TASK write", ["a.diff", "b.diff"], "gives one .diff, not 2"),
        (None, ["../a"], "relative path"),
        ("@nobody knows:", ["a.diff", "b.txt"], "either one .diff"),
    ],
)
async def test_what_breaks_the_single_writer_rule_is_refused_and_the_claim_stands(
    store: Bed, payload: str | None, names: list[str], words: str
) -> None:
    id = await store.put(await store.project(), payload=payload)
    claim = await take(store)
    before = await store.dump()

    with pytest.raises(UsageError, match=words):
        await store.store.work.complete(id, "w", claim.fence, DONE, [Artifact(name, b"x") for name in names])
    assert await store.dump() == before

    settled = await store.store.work.complete(id, "w", claim.fence, DONE, [Artifact("a.diff", b"x")])
    assert [a["name"] for a in settled.execution.artifacts] == ["a.diff"]


async def test_one_that_breaks_the_rule_does_not_spoil_the_others_words(store: Bed) -> None:
    api, web = await store.project("api"), await store.project("web")
    for project in (api, web):
        await store.put(project)
    first, second = await store.store.work.claim("w", max=2)
    work = store.store.work

    bad, good = await asyncio.gather(
        work.complete(first.execution.id, "w", first.fence, DONE, [Artifact("/a", b"")]),
        work.complete(second.execution.id, "w", second.fence, DONE),
        return_exceptions=True,
    )

    assert isinstance(bad, UsageError)
    assert not isinstance(good, BaseException)
    assert good.execution.status is Status.COMPLETED
    assert (await store.queue.get(first.execution.id)).status is Status.RUNNING


async def test_dual_payloads_may_give_both(store: Bed) -> None:
    id = await store.put(await store.project(), payload="@file:specs/x.md#dual")
    claim = await take(store)

    settled = await store.store.work.complete(
        id, "w", claim.fence, DONE, [Artifact("a.diff", b"x"), Artifact("b.txt", b"y")]
    )

    assert len(settled.execution.artifacts) == 2


@pytest.mark.parametrize(
    ("verb", "outcome"),
    [("complete", BROKE), ("complete", Outcome(ending=Ending.INTERRUPTED)), ("fail", DONE)],
)
async def test_an_end_that_is_not_what_it_says_is_refused(store: Bed, verb: str, outcome: Outcome) -> None:
    id = await store.put(await store.project())
    claim = await take(store)

    with pytest.raises(UsageError, match=f"what is {outcome.ending}"):
        await getattr(store.store.work, verb)(id, "w", claim.fence, outcome)

    assert (await store.queue.get(id)).status is Status.RUNNING


async def test_nobody_here_is_to_push_what_a_worker_has(store: Bed) -> None:
    id = await store.put(await store.project())
    claim = await take(store)
    outcome = Outcome(ending=Ending.DONE, branch="b", head_sha="a" * 40, publication=Publication(repo="a/b", base="m"))

    await store.store.work.complete(id, "w", claim.fence, outcome)

    assert await store.rows("SELECT * FROM outbox WHERE kind = 'publish'") == []


async def test_a_failed_dependency_of_a_workers_cancels_what_waits_for_it(store: Bed) -> None:
    api = await store.project()
    parent = await store.put(api, max_attempts=1)
    child = await store.put(api, after=(parent,))
    claim = await take(store)

    await store.store.work.fail(parent, "w", claim.fence, BROKE)

    assert (await store.queue.get(child)).status is Status.CANCELLED


@pytest.mark.parametrize("jump", [HOUR, -HOUR])
async def test_after_a_jump_of_the_clock_who_lives_may_speak_first(url: str, clock: Clock, jump: int) -> None:
    passed = 0.0
    async with open_store(url, clock=clock) as opened:
        store = Bed(opened, clock)
        work = SqlWorkQueue(opened.database, opened.queue, opened.journal, steady=lambda: passed)
        api, web = await store.project("api"), await store.project("web")
        first, second = await store.put(api), await store.put(web)
        claims = await work.claim("w", max=2)
        clock.tick(jump)  # the machine slept, or its clock was set

        assert await work.claim("other") == []
        await work.heartbeat(first, "w", claims[0].fence, lease=HOUR)
        for seconds in range(1, 31):
            assert await work.claim("other") == [], "for as long as a lease lasts"
            passed, clock.now = float(seconds), clock.now + SECOND
        back = await work.claim("other", max=2)

        assert [claim.execution.id for claim in back] == ([second] if jump > 0 else [])
        await store.check()
