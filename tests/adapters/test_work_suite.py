"""How every `WorkQueue` behaves, whoever implements it: the store itself, and the client with a server behind it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from pilot.api.work import claim_document
from pilot.client import Client
from pilot.domain.access import Scope
from pilot.domain.agent import OutputKind
from pilot.domain.errors import LeaseLost, NotFound, UsageError
from pilot.domain.execution import Status
from pilot.domain.outcome import Ending, FailureClass, GateResult, Outcome, Question, Usage, failed
from pilot.domain.task import Kind, Task
from pilot.domain.work import Artifact, Claim, Next, Progress, Wanted, WorkQueue
from pilot.store.work_queue import SqlWorkQueue
from tests.adapters.api_rig import Rig, serving

DONE = Outcome(ending=Ending.DONE, text="did it")


def the_client(client: Client) -> WorkQueue:
    return client


def the_store(queue: SqlWorkQueue) -> WorkQueue:
    return queue


@dataclass(slots=True)
class Desk:
    """A queue under test, and the store behind it."""

    rig: Rig
    queue: WorkQueue

    async def put(self, project: str = "api", task_id: str = "T-1", **more: Any) -> int:
        given: dict[str, Any] = {"title": f"do {task_id}", "backend": "external", "external": True}
        task = Task(project_id=self.rig.project(project).id, task_id=task_id, **given | more)
        return (await self.rig.store.queue.enqueue(task)).id

    async def take(self, worker: str = "w", **more: Any) -> Claim:
        (claim,) = await self.queue.claim(worker, **more)
        return claim

    async def row(self, id: int, column: str) -> Any:
        ((value,),) = await self.rig.store.database.read(f"SELECT {column} FROM executions WHERE id = :id", {"id": id})
        return value

    async def dump(self) -> Any:
        tables = ("executions", "attempts", "output", "events", "questions", "artifacts", "outbox", "results")
        return {name: await self.rig.store.database.read(f"SELECT * FROM {name}") for name in tables}


@pytest.fixture(params=["store", "client"])
async def desk(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Desk]:
    async with serving(tmp_path) as rig, Client(rig.url, rig.tokens[Scope.WORK]) as client:
        yield Desk(rig, the_store(rig.store.work) if request.param == "store" else the_client(client))


async def test_nothing_to_claim_is_an_empty_list(desk: Desk) -> None:
    assert await desk.queue.claim("w") == []
    assert await desk.queue.claim("w", wait=0.05) == []


async def test_what_has_waited_longest_comes_first_and_one_of_each_project(desk: Desk) -> None:
    first, _, other = await desk.put("api", "A-1"), await desk.put("api", "A-2"), await desk.put("web", "W-1")

    claims = await desk.queue.claim("w", max=10)

    assert [claim.execution.id for claim in claims] == [first, other]
    assert await desk.queue.claim("v", max=10) == []


async def test_a_worker_gets_all_that_it_needs_to_do_the_task(desk: Desk) -> None:
    id = await desk.put(
        title="Say hello", body="Say hello\nto everybody", kind=Kind.CONTENT, lane=3, labels=("docs",), priority=1,
        payload={"a": [1, None]}, options={"branch": "pilot/x"}, model="m",
    )  # fmt: skip

    claim = await desk.take(lease=60_000)
    execution = claim.execution

    assert (execution.id, execution.project, execution.status, execution.node) == (id, "api", "running", "worker:w")
    assert (execution.title, execution.body) == ("Say hello", "Say hello\nto everybody")
    assert (execution.kind, execution.lane, execution.labels, execution.priority) == ("content", 3, ("docs",), 1)
    assert (execution.payload, execution.options["branch"], execution.model) == ({"a": [1, None]}, "pilot/x", "m")
    assert (execution.attempt, execution.fence) == (1, claim.fence)
    assert claim.lease_until == await desk.row(id, "lease_until")
    assert claim.lease_until - (execution.started_at or 0) == 60_000


async def test_a_last_word_may_take_what_is_next(desk: Desk) -> None:
    first, second, third = [await desk.put("api", f"A-{n}") for n in range(3)]
    other = await desk.put("web", "W-1", lane=1)
    claim = await desk.take()
    assert claim.execution.id == first

    settled = await desk.queue.complete(first, "w", claim.fence, DONE, next=Next(max=2, lease=60_000))

    assert (settled.execution.status, settled.duplicate) == (Status.COMPLETED, False)
    assert [one.execution.id for one in settled.claims] == [second, other]  # of its own project, too: it has just ended
    assert {one.execution.node for one in settled.claims} == {"worker:w"}
    assert settled.claims[0].lease_until == await desk.row(second, "lease_until")
    assert settled.claims[0].fence > claim.fence

    wanted = Next(wanted=Wanted(lanes=(0,)))
    failing = await desk.queue.fail(
        second, "w", settled.claims[0].fence, failed(FailureClass.REFUSAL, "no"), next=wanted
    )
    assert failing.execution.status is not Status.RUNNING
    assert [one.execution.id for one in failing.claims] == [third]
    assert (await desk.queue.complete(third, "w", failing.claims[0].fence, DONE)).claims == ()


async def test_a_last_word_that_does_not_count_takes_nothing(desk: Desk) -> None:
    one, _ = await desk.put("api", "A-1"), await desk.put("web", "W-1")
    claim = await desk.take()
    before = await desk.dump()

    with pytest.raises(LeaseLost):
        await desk.queue.complete(one, "w", claim.fence + 1, DONE, next=Next())
    two = [Artifact("a.diff", b"a"), Artifact("b.diff", b"b")]
    with pytest.raises(UsageError, match=r"one \.diff"):
        await desk.queue.complete(one, "w", claim.fence, DONE, two, next=Next())
    for senseless in (Next(max=0), Next(max=101), Next(lease=1)):
        with pytest.raises(UsageError):
            await desk.queue.complete(one, "w", claim.fence, DONE, next=senseless)

    assert await desk.dump() == before


async def test_a_last_word_that_is_said_again_takes_what_there_is_still(desk: Desk) -> None:
    one, two = await desk.put("api", "A-1"), await desk.put("web", "W-1")
    claim = await desk.take()
    await desk.queue.complete(one, "w", claim.fence, DONE)

    again = await desk.queue.complete(one, "w", claim.fence, DONE, next=Next())

    assert again.duplicate
    assert [each.execution.id for each in again.claims] == [two]


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (Wanted(lanes=(2,)), "web"),
        (Wanted(kinds=("test",)), "web"),
        (Wanted(projects=("web",)), "web"),
        (Wanted(projects=("api", "nobody's")), "api"),
        (Wanted(lanes=(2,), projects=("api",)), None),
    ],
)
async def test_a_worker_takes_only_what_it_wants(desk: Desk, wanted: Wanted, found: str | None) -> None:
    await desk.put("api", "A-1", lane=1)
    await desk.put("web", "W-1", lane=2, kind=Kind.TEST)

    claims = await desk.queue.claim("w", max=10, wanted=wanted)

    assert [claim.execution.project for claim in claims] == ([found] if found else [])


async def test_who_waits_is_woken_by_what_comes(desk: Desk) -> None:
    waiting = asyncio.create_task(desk.queue.claim("w", wait=20))
    await asyncio.sleep(0.05)

    id = await desk.put()
    (claim,) = await asyncio.wait_for(waiting, 5)

    assert claim.execution.id == id


async def test_a_heartbeat_renews_and_tells_how_it_goes(desk: Desk) -> None:
    claim = await desk.take(lease=5_000) if await desk.put() else None
    assert claim is not None
    progress = Progress(facts={"phase": "tests", "session_id": "s", "model": "m"}, usage=Usage(5, 7, 0.25))

    beaten = await desk.queue.heartbeat(claim.execution.id, "w", claim.fence, lease=50_000, progress=progress)

    assert beaten.lease_until == await desk.row(claim.execution.id, "lease_until") > claim.lease_until + 40_000
    assert not beaten.cancel_requested
    assert await desk.row(claim.execution.id, "session_id") == "s"
    (attempt,) = await desk.rig.store.history.attempts(claim.execution.id)
    assert (attempt.phase, attempt.model, attempt.input_tokens, attempt.cost_usd) == ("tests", "m", 5, 0.25)


async def test_a_heartbeat_brings_the_wish_that_it_ends(desk: Desk) -> None:
    id = await desk.put()
    claim = await desk.take()
    await desk.rig.store.queue.cancel(id, "ann")

    assert (await desk.queue.heartbeat(id, "w", claim.fence)).cancel_requested
    settled = await desk.queue.release(id, "w", claim.fence, "as you wish")

    assert settled.execution.status is Status.CANCELLED


async def test_output_is_kept_in_order_and_byte_for_byte(desk: Desk) -> None:
    id = await desk.put()
    claim = await desk.take()

    await desk.queue.output(id, "w", claim.fence, [(OutputKind.STDOUT, b"a\xff\x00"), (OutputKind.TOOL, "ü".encode())])
    await desk.queue.output(id, "w", claim.fence, [(OutputKind.STDERR, b"b")])

    pieces = await desk.rig.store.history.output(id)
    assert [(piece.kind, piece.data) for piece in pieces] == [
        ("stdout", b"a\xff\x00"), ("tool", "ü".encode()), ("stderr", b"b"),
    ]  # fmt: skip


async def test_done_is_said_once_and_again_without_harm(desk: Desk) -> None:
    id = await desk.put()
    claim = await desk.take()
    gate = GateResult("test", "test", "make test", True, 0, 1200, "a" * 40)
    head, base = "b" * 40, "c" * 40
    outcome = replace(
        DONE, branch="pilot/T-1", base_sha=base, head_sha=head, tree="a" * 40, gates=(gate,), usage=Usage(1, 2, 0.5)
    )
    artifact = Artifact("out/T-1.diff", b"--- a\n+++ b\xff\n")

    first = await desk.queue.complete(id, "w", claim.fence, outcome, [artifact])
    before = await desk.dump()
    again = await desk.queue.complete(id, "w", claim.fence, outcome, [artifact])

    assert (first.duplicate, again.duplicate) == (False, True)
    now = first.execution
    assert (now.status, now.outcome, now.branch, now.head_sha, now.cost_usd) == (
        "completed", "done", "pilot/T-1", head, 0.5,
    )  # fmt: skip
    assert [entry["sha256"] for entry in now.artifacts] == [artifact.sha256]
    assert again.execution.status == "completed"
    assert await desk.dump() == before
    (attempt,) = await desk.rig.store.history.attempts(id)
    assert attempt.summary == "did it"
    assert attempt.gates[0]["command"] == "make test"


async def test_another_last_word_than_the_first_is_refused(desk: Desk) -> None:
    id = await desk.put()
    claim = await desk.take()
    await desk.queue.complete(id, "w", claim.fence, DONE)

    with pytest.raises(LeaseLost):
        await desk.queue.fail(id, "w", claim.fence, failed(FailureClass.AGENT, "no"))
    with pytest.raises(LeaseLost):
        await desk.queue.release(id, "w", claim.fence)


async def test_nothing_to_change_is_no_failure(desk: Desk) -> None:
    id = await desk.put()
    claim = await desk.take()

    settled = await desk.queue.complete(id, "w", claim.fence, Outcome(ending=Ending.NO_CHANGE, text="is so already"))

    assert (settled.execution.status, settled.execution.outcome) == ("completed", "no_change")


async def test_a_failure_is_judged_by_its_class(desk: Desk) -> None:
    id = await desk.put(max_attempts=2)
    claim = await desk.take()

    settled = await desk.queue.fail(id, "w", claim.fence, failed(FailureClass.TEST, "2 are red", excerpt="E assert"))
    again = await desk.queue.fail(id, "w", claim.fence, failed(FailureClass.TEST, "2 are red", excerpt="E assert"))

    now = settled.execution
    assert (now.status, now.failures, now.failure_class) == ("queued", 1, "test")
    assert again.duplicate
    (attempt,) = await desk.rig.store.history.attempts(id)
    assert (attempt.detail, attempt.excerpt) == ("2 are red", "E assert")


async def test_what_is_given_back_is_queued_and_counts_nothing(desk: Desk) -> None:
    id = await desk.put()
    claim = await desk.take()

    settled = await desk.queue.release(id, "w", claim.fence, "lunch")

    assert (settled.execution.status, settled.execution.failures) == ("queued", 0)
    assert (await desk.queue.release(id, "w", claim.fence, "lunch")).duplicate
    assert (await desk.take("v")).fence > claim.fence


async def test_a_question_comes_back_with_its_answer(desk: Desk) -> None:
    id = await desk.put()
    claim = await desk.take()
    question = Question("red or blue?", ("red", "blue"), "red")

    settled = await desk.queue.complete(
        id, "w", claim.fence, Outcome(ending=Ending.QUESTION, question=question, session_id="s-1")
    )
    assert settled.execution.status == "needs_human"
    (asked,) = await desk.rig.store.history.questions(id)
    assert (asked.text, asked.options, asked.preset) == ("red or blue?", ("red", "blue"), "red")

    await desk.rig.store.queue.answer(id, "blue", "ann")
    again = await desk.take()
    assert (again.execution.session_id, again.execution.attempt) == ("s-1", 2)
    assert again.execution.feedback is not None
    assert "blue" in again.execution.feedback


async def test_a_stale_fence_changes_nothing(desk: Desk) -> None:
    id = await desk.put()
    old = await desk.take("w")
    await desk.queue.release(id, "w", old.fence)
    new = await desk.take("w")
    before = await desk.dump()
    said: list[Any] = [
        desk.queue.heartbeat(id, "w", old.fence, progress=Progress(facts={"phase": "late"})),
        desk.queue.output(id, "w", old.fence, [(OutputKind.STDOUT, b"late")]),
        desk.queue.complete(id, "w", old.fence, DONE, [Artifact("a.diff", b"x")]),
        desk.queue.fail(id, "w", old.fence, failed(FailureClass.AGENT, "late")),
        desk.queue.heartbeat(id, "somebody", new.fence),
        desk.queue.complete(id, "somebody", new.fence, DONE),
    ]

    for word in said:
        with pytest.raises(LeaseLost):
            await word

    assert await desk.dump() == before


async def test_an_id_that_never_was_is_not_found(desk: Desk) -> None:
    with pytest.raises(NotFound):
        await desk.queue.heartbeat(12345, "w", 1)
    with pytest.raises(NotFound):
        await desk.queue.complete(12345, "w", 1, DONE)


async def test_a_result_has_one_writer(desk: Desk) -> None:
    id = await desk.put()
    claim = await desk.take()

    with pytest.raises(UsageError, match=r"either one \.diff or whole files"):
        await desk.queue.complete(id, "w", claim.fence, DONE, [Artifact("a.diff", b"1"), Artifact("b.txt", b"2")])

    assert await desk.row(id, "status") == "running"
    await desk.queue.heartbeat(id, "w", claim.fence)


async def test_a_name_that_is_none_is_refused(desk: Desk) -> None:
    for name in ("", "a\nb", "x" * 81):
        with pytest.raises(UsageError):
            await desk.queue.claim(name)


async def test_what_came_before_comes_with_the_claim(desk: Desk) -> None:
    first = await desk.put("web", "W-1")
    claim = await desk.take()
    outcome = replace(DONE, branch="pilot/W-1", base_sha="c" * 40, head_sha="b" * 40)
    await desk.queue.complete(first, "w", claim.fence, outcome, [Artifact("W-1.diff", b"x")])
    await desk.put("api", "A-1", after=(first,))

    (made,) = (await desk.take()).made

    assert (made.id, made.task_id, made.branch, made.head_sha) == (first, "W-1", "pilot/W-1", "b" * 40)
    assert [artifact["name"] for artifact in made.artifacts] == ["W-1.diff"]


async def test_of_what_is_behind_one_that_made_nothing_only_what_brought_something_comes(desk: Desk) -> None:
    """A long chain of commands would come whole with each claim; and nobody waited for what is behind."""
    ids: list[int] = []
    nothing = Outcome(ending=Ending.NO_CHANGE)
    for outcome in (replace(DONE, branch="pilot/A-0", head_sha="b" * 40), nothing, nothing):
        ids.append(await desk.put("web", f"A-{len(ids)}", after=tuple(ids[-1:])))
        claim = await desk.take()
        await desk.queue.complete(ids[-1], "w", claim.fence, outcome)
    await desk.put("web", "A-3", after=(ids[-1],))

    claim = await desk.take()

    assert [(made.id, made.direct) for made in claim.made] == [(ids[0], False), (ids[2], True)]
    assert claim_document(claim)["after"] == [ids[2]]
