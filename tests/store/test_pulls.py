"""Pull requests: one per branch at a time, final states that stay, repairs that never pass their limit."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from pilot.domain.delivery import Effect, EffectKind, Pull, PullState
from pilot.domain.errors import NotFound
from pilot.domain.execution import Enqueued, Execution, Status
from pilot.domain.outcome import Publication
from pilot.domain.ports import Finish
from pilot.domain.task import Project
from tests.store.bed import HOUR, MINUTE, Bed, again, asked, broken, done, task

PUBLISHED = Publication(repo="acme/api", base="main")
TICKET = {"source": "github", "ref": "acme/api#1"}


async def finish(store: Bed, project: Project, sha: str = "a", node: str = "n1", **more: Any) -> int:
    """The next execution, done, with a change to publish."""
    execution = await store.take(project, node)
    if "workspace" in more:
        await store.journal.note(execution, workspace=more.pop("workspace"))
    await store.queue.finish(done(execution, publication=PUBLISHED, head_sha=sha * 40, **more))
    return execution.id


async def pull_of(store: Bed, execution: int) -> Pull:
    pull = await store.store.pulls.of(execution)
    assert pull is not None
    return pull


async def opened(store: Bed, project: Project, task_id: str = "T", number: int = 7, **more: Any) -> Pull:
    """A pull request that is open."""
    await store.put(project, task_id, origin=TICKET)
    pull = await pull_of(store, await finish(store, project, **more))
    assert await store.store.pulls.opened(pull.id, number=number, url=f"https://x/{number}", head_sha=pull.head_sha)
    return await pull_of(store, pull.execution)


async def told(store: Bed, what: str) -> list[tuple[int, str]]:
    rows = await store.rows("SELECT execution_id, data FROM events WHERE type = :what ORDER BY id", what=f"pull.{what}")
    return [(id, data) for id, data in rows]


async def test_a_finished_change_owes_its_pull_request_from_its_end_on(store: Bed) -> None:
    api = await store.project()
    await store.node()
    id = await store.put(api, "T")
    await finish(store, api)

    pull = await pull_of(store, id)

    assert (pull.state, pull.branch, pull.repo, pull.base) == (PullState.OWED, "pilot/T", "acme/api", "main")
    assert (pull.draft, pull.head_sha, pull.checks, pull.number) == (True, "a" * 40, "none", None)
    assert await store.store.pulls.live([api.id]) == [pull]
    assert await store.store.pulls.live([]) == []
    assert await store.rows("SELECT kind FROM outbox") == [("publish",)]


@pytest.mark.parametrize("how", ["no publication", "no change", "failed", "asks", "goes on"])
async def test_nothing_else_owes_one(store: Bed, how: str) -> None:
    api = await store.project()
    await store.node()
    await store.put(api)
    execution = await store.take(api)
    ends: dict[str, Callable[[Execution], Finish]] = {"failed": broken, "asks": asked, "goes on": again}
    end = ends.get(how, done)(execution)
    if how != "no publication":
        branch = None if how == "no change" else "pilot/T"
        end = replace(end, outcome=replace(end.outcome, publication=PUBLISHED, branch=branch, head_sha="a" * 40))

    await store.queue.finish(end)

    assert await store.rows("SELECT * FROM pulls") == []
    assert await store.rows("SELECT * FROM outbox WHERE kind = 'publish'") == []


async def test_a_lost_claim_owes_nothing(store: Bed) -> None:
    api = await store.project()
    await store.node()
    await store.put(api)
    execution = await store.take(api)
    await store.queue.recover(["n1"], "gone")

    with pytest.raises(Exception, match="no longer this run's"):
        await store.queue.finish(done(execution, publication=PUBLISHED, head_sha="a" * 40))

    assert await store.rows("SELECT * FROM pulls") == []


async def test_opening_it_is_seen_on_its_execution_once(store: Bed) -> None:
    api = await store.project()
    await store.node()
    pull = await opened(store, api)

    assert await store.store.pulls.opened(pull.id, number=7, url="https://x/7", head_sha=pull.head_sha)

    assert (pull.state, pull.number, pull.pushed_sha) == (PullState.OPEN, 7, pull.head_sha)
    assert pull.opened_at == store.clock.now
    execution = await store.queue.get(pull.execution)
    assert (execution.delivery, execution.pr_url) == ("pr_open", "https://x/7")
    assert [id for id, _ in await told(store, "opened")] == [pull.execution]
    assert await store.store.pulls.by_number(api.id, 7) == pull
    assert await store.store.pulls.by_number(api.id, 8) is None


async def test_the_next_run_of_a_branch_takes_its_live_pull_request_over(store: Bed) -> None:
    api = await store.project()
    await store.node()
    pull = await opened(store, api)
    await store.store.pulls.saw(pull.id, checks="failed", red=["lint"])
    await store.put(api, "T", origin=TICKET)
    second = await finish(store, api, sha="b")

    after = await pull_of(store, second)

    assert (after.id, after.execution, after.head_sha) == (pull.id, second, "b" * 40)
    assert (after.state, after.checks, after.red) == (PullState.OPEN, "pending", ())
    assert (await store.queue.get(second)).delivery == "branch"  # until it is pushed
    # the first one's push is told of late: it says nothing of the second's
    assert await store.store.pulls.opened(pull.id, number=7, url="https://x/7", head_sha=pull.head_sha)
    assert (await store.queue.get(second)).delivery == "branch"
    assert await store.store.pulls.opened(pull.id, number=7, url="https://x/7", head_sha=after.head_sha)
    assert (await store.queue.get(second)).delivery == "pr_open"
    assert [id for id, _ in await told(store, "opened")] == [pull.execution, second]
    assert len(await store.store.pulls.live([api.id])) == 1


async def test_what_is_seen_is_written_to_its_execution(store: Bed) -> None:
    api = await store.project()
    await store.node()
    pull = await opened(store, api)
    pulls = store.store.pulls

    assert await pulls.saw(pull.id, checks="pending", seen={"etag": "x"})
    assert not await pulls.saw(pull.id, checks="pending", seen={"etag": "y"})
    assert await pulls.saw(pull.id, checks="failed", red=["lint", "test"])
    assert await pulls.saw(pull.id, checks="failed", red=["lint"])
    assert not await pulls.saw(pull.id, checks="passed", sha="f" * 40)  # of a commit that is not ours any more

    after = await pull_of(store, pull.execution)
    assert (after.checks, after.red, after.seen) == ("failed", ("lint",), {"etag": "y"})
    assert (await store.queue.get(pull.execution)).checks == "failed"
    assert len(await told(store, "checks")) == 3
    with pytest.raises(NotFound):
        await pulls.saw(99, checks="passed")


@pytest.mark.parametrize("state", [PullState.MERGED, PullState.CLOSED])
async def test_its_end_is_final_and_cleans_up_on_its_own_host(store: Bed, state: PullState) -> None:
    api = await store.project()
    await store.node()
    pull = await opened(store, api, workspace="/w/1")
    await store.put(api, "T")
    second = await finish(store, api, sha="b")  # without a workspace
    pulls = store.store.pulls

    assert await pulls.saw(pull.id, state=state, checks="passed")
    for wrong in (PullState.MERGED, PullState.CLOSED):
        assert not await pulls.saw(pull.id, state=wrong, checks="failed", seen={"a": 1}, stuck="x")
    assert not await pulls.opened(pull.id, number=8, url="u", head_sha="c" * 40)
    await pulls.pushed(pull.id, "d" * 40)
    assert await pulls.repair(pull.id, task(api, "T", idempotency_key="r"), limit=9) is None

    after = await pull_of(store, second)
    assert (after.state, after.checks, after.ended_at, after.number) == (state, "passed", store.clock.now, 7)
    for id in (pull.execution, second):
        assert (await store.queue.get(id)).delivery == state
    assert [id for id, _ in await told(store, state)] == [pull.execution, second]
    ((key, host),) = await store.rows("SELECT key, host FROM outbox WHERE kind = 'clean'")
    assert (key, host) == (f"clean:{pull.id}:{pull.execution}", "host")
    (clean,) = await cleaning(store)
    assert clean.payload == {"pull": pull.id, "workspace": "/w/1", "state": state}
    await store.put(api, "T")  # after its end, the branch may have another one
    third = await pull_of(store, await finish(store, api, sha="c"))
    assert third.id > pull.id
    assert third.state is PullState.OWED


@pytest.mark.parametrize("state", [PullState.MERGED, PullState.CLOSED])
async def test_work_that_came_too_late_for_it_gets_one_of_its_own(store: Bed, state: PullState) -> None:
    """It is not said to be merged, and is published still."""
    api = await store.project()
    await store.node()
    pull = await opened(store, api)
    await store.put(api, "T", origin=TICKET)
    second = await finish(store, api, sha="b")

    assert await store.store.pulls.saw(pull.id, state=state, sha="a" * 40)

    own = await pull_of(store, second)
    assert (own.state, own.number, own.branch, own.head_sha) == (PullState.OWED, None, pull.branch, "b" * 40)
    assert (await store.queue.get(pull.execution)).delivery == state
    assert (await store.queue.get(second)).delivery == "branch"
    assert [id for id, _ in await told(store, state)] == [pull.execution]
    before = await pull_of(store, pull.execution)
    assert (before.state, before.execution, before.head_sha) == (state, pull.execution, "a" * 40)
    assert await store.store.pulls.opened(own.id, number=8, url="https://x/8", head_sha=own.head_sha)
    assert (await store.queue.get(second)).pr_url == "https://x/8"


@pytest.mark.parametrize("sha", ["b", "p"], ids=["ours", "a person's on top of ours"])
async def test_work_that_came_to_it_ends_with_it(store: Bed, sha: str) -> None:
    """Also when nobody had time to write down that it was pushed."""
    api = await store.project()
    await store.node()
    pull = await opened(store, api)
    await store.put(api, "T", origin=TICKET)
    second = await finish(store, api, sha="b")
    if sha == "p":
        assert await store.store.pulls.opened(pull.id, number=7, url="https://x/7", head_sha="b" * 40)

    assert await store.store.pulls.saw(pull.id, state=PullState.MERGED, sha=sha * 40)

    assert (await pull_of(store, second)).id == pull.id
    assert (await store.queue.get(second)).delivery == "merged"


async def test_work_that_could_not_be_pushed_is_not_said_to_be_merged(store: Bed) -> None:
    api = await store.project()
    await store.node()
    pull = await opened(store, api)
    await store.put(api, "T")
    second = await finish(store, api, sha="b")
    while effects := await store.store.outbox.take("n1", list(EffectKind), lease=MINUTE):
        for effect in effects:
            if (effect.kind, effect.execution) == (EffectKind.PUBLISH, second):
                await store.store.outbox.give_up(effect, "n1", "somebody else's commits")
            else:
                await store.store.outbox.delivered(effect, "n1")

    assert await store.store.pulls.saw(pull.id, state=PullState.MERGED, sha="a" * 40)

    own = await pull_of(store, second)
    assert (own.state, own.error) == (PullState.FAILED, "somebody else's commits")
    assert (await store.queue.get(second)).delivery == "branch"
    assert not await store.store.pulls.live([api.id])


@pytest.mark.parametrize("running", [True, False], ids=["running", "queued"])
async def test_who_closes_it_ends_its_repair(store: Bed, running: bool) -> None:
    api = await store.project()
    await store.node()
    pull = await opened(store, api)
    wanted = task(api, "T", idempotency_key=f"ci:{pull.id}:x", parent=pull.execution)
    repair = await store.store.pulls.repair(pull.id, wanted, limit=2)
    assert repair is not None
    execution = await store.take(api) if running else await store.queue.get(repair.id)

    assert await store.store.pulls.saw(pull.id, state=PullState.CLOSED, sha="a" * 40)

    after = await store.queue.get(repair.id)
    assert after.cancel_requested if running else after.status is Status.CANCELLED
    assert after.reason == "pull request 7, which it repairs, was closed"
    assert execution.id == repair.id


async def test_who_closes_it_ends_no_new_run(store: Bed) -> None:
    api = await store.project()
    await store.node()
    pull = await opened(store, api)
    again = await store.put(api, "T", idempotency_key="github:labeled:2")

    assert await store.store.pulls.saw(pull.id, state=PullState.CLOSED, sha="a" * 40)

    assert (await store.queue.get(again)).status is Status.QUEUED


async def cleaning(store: Bed) -> list[Effect]:
    return await store.store.outbox.take("n1", [EffectKind.CLEAN], lease=MINUTE)


async def test_nobody_cleans_up_where_its_task_is_open(store: Bed) -> None:
    api = await store.project()
    await store.node()
    pull = await opened(store, api, workspace="/w")
    id = await store.put(api, "T")
    await store.store.pulls.saw(pull.id, state=PullState.MERGED)

    assert await cleaning(store) == []
    assert await store.store.outbox.next_due([EffectKind.CLEAN]) is None
    await store.queue.cancel(id, "me")
    assert len(await cleaning(store)) == 1


async def test_repairs_never_pass_their_limit_whoever_asks(store: Bed, other: Bed) -> None:
    api = await store.project(max_running=9)
    await store.node()
    pull = await opened(store, api)

    def ask(by: Bed, key: str) -> Any:
        wanted = task(api, f"T-{key}", idempotency_key=key, parent=pull.execution, source="failing_ci")
        return by.store.pulls.repair(pull.id, wanted, limit=2)

    answers = await asyncio.gather(*(ask(by, str(n)) for by in (store, other) for n in range(5)))

    granted = {answer.id for answer in answers if answer is not None}
    assert len(granted) == 2
    assert (await pull_of(store, pull.execution)).repairs == 2
    assert len(await told(store, "repair_queued")) == 2
    ((id, data),) = await told(store, "repairs_used_up")
    assert id == pull.execution
    assert "2 of 2 repairs did not help" in data


async def test_a_repair_is_asked_for_once_per_key_and_told_why(store: Bed) -> None:
    api = await store.project()
    await store.node()
    pull = await opened(store, api)
    await store.store.pulls.saw(pull.id, checks="failed", red=["lint"])
    wanted = task(
        api, "T", idempotency_key="ci:1:a", parent=pull.execution, source="failing_ci", session_id="s", workspace="/w"
    )

    first = await store.store.pulls.repair(pull.id, wanted, limit=1)
    assert first is not None
    repeated = await store.store.pulls.repair(pull.id, wanted, limit=1)
    assert repeated == Enqueued(first.id, Status.QUEUED, duplicate=True)
    ((_, data),) = await told(store, "repair_queued")
    assert f'"execution":{first.id},"why":"lint"' in data
    assert await told(store, "repairs_used_up") == []
    execution = await store.take(api)
    assert (execution.session_id, execution.workspace, execution.parent) == ("s", "/w", pull.execution)
    await store.queue.finish(done(execution, publication=PUBLISHED, head_sha="b" * 40))
    assert (await pull_of(store, first.id)).execution == first.id
    repeated = await store.store.pulls.repair(pull.id, wanted, limit=1)
    assert repeated == Enqueued(first.id, Status.COMPLETED, duplicate=True)


async def test_one_that_finds_its_task_open_is_not_counted(store: Bed) -> None:
    api = await store.project()
    await store.node()
    pull = await opened(store, api)
    standing = await store.put(api, "T")

    answer = await store.store.pulls.repair(pull.id, task(api, "T", idempotency_key="r"), limit=1)

    assert answer == Enqueued(standing, Status.QUEUED, duplicate=True)
    assert (await pull_of(store, pull.execution)).repairs == 0
    with pytest.raises(NotFound):
        await store.store.pulls.repair(99, task(api, "U"), limit=1)


async def test_a_stuck_one_is_told_once_until_there_is_new_work(store: Bed) -> None:
    api = await store.project()
    await store.node()
    pull = await opened(store, api)
    pulls = store.store.pulls

    assert await pulls.saw(pull.id, stuck="the same failure twice")
    assert not await pulls.saw(pull.id, stuck="the same failure twice")
    await store.put(api, "T")
    await finish(store, api, sha="b")
    assert await pulls.saw(pull.id, stuck="and again")

    assert ["twice" in data for _, data in await told(store, "repairs_used_up")] == [True, False]


async def test_a_push_of_an_open_one_that_can_not_be_leaves_it_open(store: Bed) -> None:
    api = await store.project()
    await store.node()
    pull = await opened(store, api)
    await store.put(api, "T")
    second = await finish(store, api, sha="b")
    outbox = store.store.outbox
    while effects := await outbox.take("n1", list(EffectKind), lease=HOUR):
        for effect in effects:
            if effect.kind is EffectKind.PUBLISH and effect.execution == second:
                await outbox.give_up(effect, "n1", "somebody else pushed")
            else:
                await outbox.delivered(effect, "n1")

    after = await pull_of(store, second)
    assert (after.state, after.error) == (PullState.OPEN, "somebody else pushed")
    assert await store.store.pulls.saw(pull.id, state=PullState.MERGED)


async def test_what_a_later_run_took_over_does_not_fail_with_the_earlier_push(store: Bed) -> None:
    api = await store.project()
    await store.node()
    await store.put(api, "T")
    first = await finish(store, api)
    (effect,) = await store.store.outbox.take("n1", [EffectKind.PUBLISH], lease=HOUR)
    await store.put(api, "T")
    second = await finish(store, api, sha="b")

    await store.store.outbox.give_up(effect, "n1", "no")

    assert (await pull_of(store, first)).state is PullState.OWED
    (effect,) = await store.store.outbox.take("n1", [EffectKind.PUBLISH], lease=HOUR)
    assert effect.execution == second
