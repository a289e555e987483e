"""Pull requests that hold up their project: what is new waits, what belongs to them goes on, and `why` says which."""

from __future__ import annotations

import pytest

from pilot.domain.delivery import EffectKind, Pull, PullState
from pilot.domain.execution import Status
from pilot.domain.ports import Hold
from pilot.domain.task import Project
from pilot.store.documents import moment
from tests.store.bed import HOUR, MINUTE, SECOND, Bed, again, asked, done, task
from tests.store.test_pulls import PUBLISHED, finish, opened, pull_of


async def project(store: Bed, next_after: str = "finish", most: int | None = None, max_running: int = 1) -> Project:
    key = ("host:/src/api/.git", "api", "/src/api", max_running, next_after, most)
    (project,) = await store.queue.register([key])
    return project


async def hold(store: Bed, id: int) -> Hold | None:
    """What of pull requests holds it."""
    why = await store.store.history.why(id, store.clock.now)
    assert why is not None
    found = [hold for hold in why.holds if hold.kind == "pull_request"]
    return found[0] if found else None


async def starts(store: Bed, project: Project) -> bool:
    """Whether the project would give its next one; `ready` and the claim agree."""
    ready = project.id in await store.queue.ready(node="n1")
    claimed = await store.claim(project)
    assert ready == bool(claimed)
    for execution in claimed:
        await store.queue.finish(again(execution, at=store.clock.now))
        # as if it had never begun
        await store.sql("DELETE FROM attempts WHERE execution_id = :id", id=execution.id)
        await store.sql("UPDATE executions SET attempt = 0, fence = 0 WHERE id = :id", id=execution.id)
    return bool(claimed)


async def owed(store: Bed, api: Project, task_id: str = "T") -> Pull:
    await store.put(api, task_id)
    return await pull_of(store, await finish(store, api))


STATES = ("owed", "no checks yet", "pending", "failed", "passed", "merged", "no checks at all")


@pytest.mark.parametrize(
    ("next_after", "holding"),
    [
        ("finish", ()),
        ("pr_open", ("owed",)),
        ("checks_passed", ("owed", "no checks yet", "pending", "failed")),
        ("merged", ("owed", "no checks yet", "pending", "failed", "passed", "no checks at all")),
    ],
)
async def test_the_next_task_waits_as_long_as_the_project_says(
    store: Bed, next_after: str, holding: tuple[str, ...]
) -> None:
    api = await project(store, next_after)
    await store.node()
    pull = await owed(store, api)
    next = await store.put(api)
    pulls, held = store.store.pulls, []

    for state in STATES:
        match state:
            case "no checks yet":
                await pulls.opened(pull.id, number=7, url="https://x/7", head_sha=pull.head_sha)
            case "pending" | "failed" | "passed":
                await pulls.saw(pull.id, checks=state)
            case "no checks at all":
                await store.put(api, "U")
                await store.queue.cancel(next, "me")
                if "owed" in holding:
                    await store.sql("UPDATE projects SET next_after = 'finish'")
                pull = await pull_of(store, await finish(store, api))
                await pulls.opened(pull.id, number=8, url="https://x/8", head_sha=pull.head_sha)
                await project(store, next_after)
                store.clock.tick(2 * MINUTE)
                next = await store.put(api)
            case "merged":
                await pulls.saw(pull.id, state=PullState.MERGED)
        why = await hold(store, next)
        if not await starts(store, api):
            held.append(state)
        assert (why is not None) == (state in held), state
        assert why is None or next_after in why.detail

    assert held == [state for state in STATES if state in holding]


async def test_no_more_pull_requests_than_the_project_may_have(store: Bed) -> None:
    api = await project(store, most=2)
    await store.node()
    first = await opened(store, api, "A", 1)
    next = await store.put(api, "C")
    assert await starts(store, api)
    await store.queue.cancel(next, "me")
    second = await owed(store, api, "B")
    next = await store.put(api, "C")

    assert not await starts(store, api)
    why = await hold(store, next)
    assert why is not None
    assert why.detail.startswith("2 pull requests are open, and 2 may be (max_open_prs): https://x/1, that of pilot/B")
    await store.store.pulls.saw(first.id, state=PullState.CLOSED)
    assert await starts(store, api)
    assert second.state is PullState.OWED


async def test_one_that_could_not_be_made_holds_up_nothing(store: Bed) -> None:
    api = await project(store, "merged", 1)
    await store.node()
    await owed(store, api)
    await store.put(api)
    assert not await starts(store, api)

    (effect,) = await store.store.outbox.take("n1", [EffectKind.PUBLISH], lease=HOUR)
    await store.store.outbox.give_up(effect, "n1", "no such repository")

    assert await starts(store, api)


async def test_another_project_is_not_held_up(store: Bed) -> None:
    api, web = await project(store, "merged"), await store.project("web")
    await store.node()
    await owed(store, api)
    await store.put(api)
    await store.put(web)

    assert await store.queue.ready(node="n1") == [web.id]


async def test_work_on_the_pull_request_itself_goes_on(store: Bed) -> None:
    api = await project(store, "merged", 1)
    await store.node()
    pull = await opened(store, api)
    new = await store.put(api, "new", priority=0)

    repair = await store.store.pulls.repair(pull.id, task(api, "T", idempotency_key="ci"), limit=1)

    assert repair is not None
    assert await store.claimed(api) == [repair.id]
    assert await hold(store, new) is not None
    execution = await store.queue.get(repair.id)
    # the finish that asks for more gets nothing new either
    end = done(execution, publication=PUBLISHED, head_sha="b" * 40, next_lease=MINUTE)
    assert await store.queue.finish(end) is None
    await store.put(api, "T")  # a rerun
    assert len(await store.claimed(api)) == 1


async def test_what_has_begun_goes_on(store: Bed) -> None:
    api = await project(store, "merged")
    await store.node()
    begun = await store.put(api, "begun")
    await store.queue.finish(asked(await store.take(api)))
    await opened(store, api)
    new = await store.put(api, "new", priority=0)

    await store.queue.answer(begun, "go on", "me")

    assert await hold(store, begun) is None
    assert await store.claimed(api) == [begun]
    assert await store.status(new) is Status.QUEUED


async def test_a_person_who_waits_is_not_held_up_and_is_told(store: Bed) -> None:
    api = await project(store, "merged")
    await store.node()
    await store.node("run")
    await opened(store, api)
    await store.put(api)
    direct = await store.put(api, reserved_for="run", priority=-1)

    why = await store.store.history.why(direct, store.clock.now)

    assert why is not None
    assert why.holds == ()
    assert "does not hold it up" in why.next
    assert await store.claimed(api, "n1") == []
    assert await store.claimed(api, "run", own=True) == [direct]


async def test_why_names_the_pull_request_and_what_to_do(store: Bed) -> None:
    api = await project(store, "checks_passed")
    await store.node()
    pull = await owed(store, api)
    next = await store.put(api)
    (effect,) = await store.store.outbox.take("n1", [EffectKind.PUBLISH], lease=HOUR)
    found = await hold(store, next)
    assert found is not None
    assert found.detail == "waits until that of pilot/T in acme/api is opened (next_after: checks_passed)"
    assert found.execution == pull.execution

    await store.store.outbox.postpone(effect, "n1", store.clock.now + MINUTE, "502 from GitHub")
    found = await hold(store, next)
    assert found is not None
    assert "is opened, which was put off: 502 from GitHub" in found.detail
    await store.store.pulls.opened(pull.id, number=7, url="https://x/7", head_sha=pull.head_sha)
    found = await hold(store, next)
    assert found is not None
    until = store.clock.now + 2 * MINUTE
    assert found.until == until
    assert f"the first checks of https://x/7, until {moment(until)} at most" in found.detail
    assert await store.queue.next_due() == until
    await store.store.pulls.saw(pull.id, checks="failed", red=["lint"])
    found = await hold(store, next)
    assert found is not None
    assert "the checks of https://x/7 pass, and they are red; repair, merge or close it" in found.detail
    why = await store.store.history.why(next, store.clock.now)
    assert why is not None
    assert why.next == (f"It starts when that has come so far: `pilot show {pull.execution}` says how far it is.")
    assert (await store.store.outbox.report(next)).holds == (found.detail,)  # a ticket says so, too


async def test_the_end_of_the_grace_is_due(store: Bed) -> None:
    api = await project(store, "checks_passed")
    await store.node()
    await opened(store, api)
    await store.put(api)
    due = await store.queue.next_due()
    assert due == store.clock.now + 2 * MINUTE

    store.clock.tick(2 * MINUTE - SECOND)
    assert not await starts(store, api)
    store.clock.now = due
    assert await starts(store, api)
    assert await store.queue.next_due() is None


async def test_a_changed_setting_counts_at_once_and_wakes(store: Bed) -> None:
    api = await project(store, "merged", 3)
    await store.node()
    await opened(store, api)
    await store.put(api)
    assert not await starts(store, api)
    heard: set[str] = set()
    store.queue.listen(heard.update)

    await store.queue.register([("host:/src/api/.git", "api", "/src/api", None)])  # not configured here
    assert not await starts(store, api)
    heard.clear()
    await store.queue.register([("host:/src/api/.git", "api", "/src/api", 1)])

    assert str(api.id) in heard
    assert await starts(store, api)
    assert await store.rows("SELECT next_after, max_open_prs FROM projects") == [("finish", None)]
