"""Places: what was begun goes on where it lies, what is new is for whoever is free, and nothing waits for ever."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pilot.domain.delivery import EffectKind
from pilot.domain.execution import Status
from pilot.domain.outcome import Ending, Outcome, Publication
from pilot.domain.policy import Settlement
from pilot.domain.ports import Finish, NodeKind
from pilot.domain.task import Project
from pilot.store.places import BACK
from tests.store.bed import HOUR, MINUTE, SECOND, Bed, broken, done, interrupted, node


async def up(store: Bed, id: str, place: str, project: Project, **more: Any) -> None:
    """A node of a place that serves the project."""
    await store.queue.start_node(replace(node(id, **more), place=place), HOUR)
    await store.queue.serve(id, [project.id])


async def begun(store: Bed, **more: Any) -> tuple[Project, int]:
    """A project that two nodes of two places serve, and an execution of it that was begun at the first."""
    api = await store.project()
    await up(store, "a1", "a", api)
    await up(store, "b1", "b", api)
    id = await store.put(api, **more)
    execution = await store.take(api, "a1")
    await store.journal.note(
        execution, session_id="s-1", workspace="/state/1/api", branch="pilot/T-1", base_sha="0" * 40
    )
    await store.queue.finish(interrupted(execution))
    return api, id


async def ready(store: Bed, api: Project, node: str) -> list[int]:
    return (await store.queue.look([api.id], node))[0]


async def test_what_was_begun_goes_on_where_it_lies(store: Bed) -> None:
    api, id = await begun(store)
    behind = await store.put(api)

    # Not passed over, either: those behind it would be at its work.
    assert await ready(store, api, "b1") == []
    assert await store.claim(api, "b1") == []
    why = await store.store.history.why(id, store.clock.now)
    assert why is not None
    assert why.holds == (), "its own place has room for it"
    assert await ready(store, api, "a1") == [api.id]
    execution = await store.take(api, "a1")

    assert (execution.id, execution.place, execution.session_id) == (id, "a", "s-1")
    await store.queue.finish(done(execution))
    assert (await store.take(api, "b1")).id == behind, "what is new is for whoever is free"


async def test_it_goes_to_another_place_when_the_lease_of_its_own_has_ended(store: Bed) -> None:
    api, id = await begun(store)
    store.clock.tick(HOUR)
    await store.queue.heartbeat("b1", HOUR)
    assert await store.claim(api, "b1") == []  # to the last millisecond
    store.clock.tick(1)

    assert await ready(store, api, "b1") == [api.id]
    execution = await store.take(api, "b1")

    assert (execution.id, execution.place) == (id, "b")
    assert (execution.session_id, execution.workspace, execution.branch, execution.base_sha) == (None,) * 4
    ((data,),) = await store.rows("SELECT data FROM events WHERE type = 'execution.started' ORDER BY id DESC LIMIT 1")
    assert "what was begun of it lies on a" in data


async def test_a_place_whose_node_left_in_order_is_waited_for_a_while(store: Bed) -> None:
    api, id = await begun(store)
    await store.queue.leave("a1")

    assert await store.claim(api, "b1") == []
    why = await store.store.history.why(id, store.clock.now)
    assert why is not None
    (hold,) = why.holds
    assert (hold.kind, hold.until) == ("place", store.clock.now + BACK)
    assert await store.queue.next_due() == store.clock.now + BACK + 1, "others look as soon as nobody waits any more"
    store.clock.tick(BACK)
    await up(store, "a2", "a", api)  # as after an upgrade
    store.clock.tick(MINUTE)
    assert await store.claim(api, "b1") == []
    await store.queue.leave("a2")
    store.clock.tick(BACK + 1)

    assert (await store.take(api, "b1")).id == id
    await up(store, "a3", "a", api)
    await store.queue.leave("a3")
    assert await store.value("SELECT count(*) FROM places") == 1, "what nobody waits for any more is forgotten"


async def test_a_direct_run_keeps_no_place(store: Bed) -> None:
    api, id = await begun(store)
    await store.queue.recover(["a1"], "its process is gone")
    await up(store, "run", "a", api, kind=NodeKind.RUN)

    assert (await store.take(api, "b1")).id == id


async def test_a_node_of_the_place_that_does_not_serve_the_project_does_not_count(store: Bed) -> None:
    api, id = await begun(store)
    await store.queue.serve("a1", [])

    assert (await store.take(api, "b1")).id == id


async def test_nodes_of_one_place_take_it_from_each_other(store: Bed) -> None:
    api, id = await begun(store)
    await up(store, "a2", "a", api)

    execution = await store.take(api, "a2")

    assert (execution.id, execution.session_id) == (id, "s-1")


async def test_a_worker_elsewhere_does_not_get_it_either(store: Bed) -> None:
    _, id = await begun(store)

    assert await store.store.work.claim("w") == []
    await store.queue.recover(["a1"], "its process is gone")
    ((claim),) = await store.store.work.claim("w")
    assert (claim.execution.id, claim.execution.place) == (id, None)


async def test_a_retry_and_a_repair_go_where_that_lies_which_they_follow(store: Bed) -> None:
    api = await store.project()
    await up(store, "a1", "a", api)
    await up(store, "b1", "b", api)
    first = await store.put(api)
    execution = await store.take(api, "a1")
    await store.queue.finish(broken(execution))

    new = await store.queue.retry(first)

    assert await store.claim(api, "b1") == []
    assert (await store.take(api, "a1")).id == new.id


@pytest.mark.parametrize("changed", [True, False])
async def test_what_starts_from_anothers_branch_is_done_where_that_is(store: Bed, changed: bool) -> None:
    api = await store.project()
    await up(store, "a1", "a", api)
    await up(store, "b1", "b", api)
    first = await store.put(api)
    second = await store.put(api, after=(first,))
    execution = await store.take(api, "a1")
    outcome = Outcome(ending=Ending.DONE, head_sha="1" * 40 if changed else None, branch="pilot/T-1")
    await store.queue.finish(Finish(execution=execution, outcome=outcome, settlement=Settlement(to=Status.COMPLETED)))

    assert await store.claimed(api, "b1") == ([] if changed else [second])
    assert await store.claimed(api, "a1") == ([second] if changed else [])


async def test_a_fresh_row_is_bound_to_nothing(store: Bed) -> None:
    api = await store.project()
    await up(store, "a1", "a", api)
    id = await store.put(api)

    assert (await store.queue.get(id)).place is None
    await up(store, "b1", "b", api)
    assert (await store.take(api, "b1")).place == "b"
    assert (await store.queue.get(id)).lease_until == store.clock.now + 60 * SECOND


async def test_what_is_to_be_published_is_pushed_from_the_place_whatever_its_host_is_called_now(store: Bed) -> None:
    """A container has a pid namespace, and mostly a name, of its own after each start; its disk stays."""
    api = await store.project()
    await up(store, "a1", "a", api, host="container-1")
    await store.put(api)
    publication = Publication(repo="acme/api", base="main")
    await store.queue.finish(done(await store.take(api, "a1"), publication=publication, head_sha="a" * 40))
    await store.queue.leave("a1")
    await up(store, "b1", "b", api, host="container-2")
    await up(store, "a2", "a", api, host="container-3")

    async def owed(node: str) -> list[str]:
        effects = await store.store.outbox.take(node, [EffectKind.PUBLISH], lease=MINUTE, projects=[api.id])
        return [effect.key for effect in effects]

    assert await owed("b1") == []
    assert await owed("a2") == ["publish:1:1"]


@pytest.mark.parametrize("plan", [True, False])
async def test_what_is_left_to_workers_has_no_place_to_wait_for(store: Bed, plan: bool) -> None:
    """Neither as a step of a plan of which another was done at one, nor as what starts from another's branch."""
    api = await store.project()
    await up(store, "a1", "a", api)
    first = await store.put(api)
    second = await store.put(api, after=(first,), external=True)
    if plan:
        await store.sql("UPDATE executions SET plan = 'ship', plan_run = 1")
    execution = await store.take(api, "a1")
    await store.queue.finish(done(execution, head_sha="1" * 40, branch="pilot/T-1"))

    (claim,) = await store.store.work.claim("w")

    assert (claim.execution.id, claim.execution.place) == (second, None)
    ((data,),) = await store.rows("SELECT data FROM events WHERE type = 'execution.started' ORDER BY id DESC LIMIT 1")
    assert "anew" not in data
