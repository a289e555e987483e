"""Nodes: leases are renewed together, and what a dead node ran is taken back by rule, never by guess."""

from __future__ import annotations

from pathlib import Path

import pytest

from pilot.domain.errors import LeaseLost
from pilot.domain.execution import Execution, Status
from pilot.domain.outcome import FailureClass, failed
from pilot.domain.policy import MAX_LOSSES
from pilot.domain.ports import NodeKind
from pilot.store import migrate, open_store
from tests.store.bed import HOUR, MINUTE, SECOND, Bed, Clock, again, asked, done


async def test_a_node_is_known_with_all_that_names_it(store: Bed) -> None:
    await store.node("n1", lease=MINUTE, kind=NodeKind.RUN, pid=42)

    ((node, until),) = await store.queue.nodes()

    assert (node.id, node.kind, node.host, node.boot_id, node.pid) == ("n1", "run", "host", "boot", 42)
    assert until == store.clock.now + MINUTE
    await store.queue.drain_node("n1")
    assert await store.value("SELECT state FROM nodes") == "draining"


async def test_one_statement_renews_every_lease_of_a_node_and_no_others(store: Bed) -> None:
    projects = [await store.project(name) for name in ("a", "b", "c")]
    await store.node("n1")
    await store.node("n2")
    for project in projects:
        await store.put(project)
    mine = [await store.take(projects[0]), await store.take(projects[1])]
    theirs = await store.take(projects[2], "n2")
    store.clock.tick(SECOND)

    held = await store.queue.heartbeat("n1", HOUR)

    assert sorted((h.id, h.fence, h.cancel_requested) for h in held) == [(e.id, e.fence, False) for e in mine]
    until = {(await store.queue.get(e.id)).lease_until for e in mine}
    assert until == {store.clock.now + HOUR}
    assert (await store.queue.get(theirs.id)).lease_until == theirs.lease_until
    assert await store.value("SELECT seen_at FROM nodes WHERE id = 'n1'") == store.clock.now
    assert await store.value("SELECT seen_at FROM nodes WHERE id = 'n2'") < store.clock.now


async def test_an_ended_lease_that_nobody_took_back_is_renewed(store: Bed) -> None:
    api = await store.project()
    await store.node()
    await store.put(api)
    execution = await store.take(api, lease=MINUTE)

    store.clock.tick(2 * HOUR)  # the machine slept, or its clock was set
    assert [e.id for e in await store.queue.held_by([])] == [execution.id]
    assert [h.id for h in await store.queue.heartbeat("n1", MINUTE)] == [execution.id]
    assert await store.queue.held_by([]) == []
    assert await store.queue.recover([], "") == []

    store.clock.tick(MINUTE + 1)
    await store.queue.recover([], "")
    assert await store.queue.heartbeat("n1", MINUTE) == []


async def test_a_lease_ends_by_its_time_whatever_the_age(store: Bed) -> None:
    api = await store.project()
    await store.node()
    id = await store.put(api)
    await store.take(api, lease=MINUTE)
    for _ in range(100):  # a long run of a node that lives
        store.clock.tick(MINUTE - 1)
        await store.queue.heartbeat("n1", MINUTE)
        assert await store.queue.recover([], "") == []

    store.clock.tick(MINUTE)
    assert await store.queue.recover([], "") == []
    store.clock.tick(1)
    (lost,) = await store.queue.recover([], "")

    assert (lost.id, lost.status) == (id, Status.RUNNING)  # as it was
    row = await store.queue.get(id)
    assert (row.status, row.losses, row.failures, row.node) == (Status.QUEUED, 1, 0, None)
    assert row.reason == "node n1 was lost: its lease ended"
    assert await store.events(id) == ["queued", "started", "lost", "requeued"]
    assert await store.claimed(api, "n2") == [id]


async def test_a_dead_node_is_recovered_at_once_and_only_it(store: Bed) -> None:
    projects = [await store.project(name) for name in ("a", "b")]
    await store.node("dead")
    await store.node("alive")
    first, second = await store.put(projects[0]), await store.put(projects[1])
    await store.take(projects[0], "dead")
    await store.take(projects[1], "alive")
    assert [e.id for e in await store.queue.held_by(["dead"])] == [first]

    lost = await store.queue.recover(["dead"], "its process is gone")

    assert [e.id for e in lost] == [first]
    assert (await store.queue.get(first)).reason == "node dead was lost: its process is gone"
    assert await store.status(second) is Status.RUNNING
    assert [node.id for node, _ in await store.queue.nodes()] == ["alive"]
    stopped = await store.rows("SELECT data FROM events WHERE type = 'node.stopped'")
    assert stopped == [('{"node":"dead","reason":"its process is gone"}',)]


async def test_recovery_takes_only_the_claims_that_were_cleaned_up_after(store: Bed) -> None:
    projects = [await store.project(name) for name in ("a", "b")]
    await store.node("dead")
    for project in projects:
        await store.put(project)
    clean, dirty = await store.take(projects[0], "dead"), await store.take(projects[1], "dead")

    lost = await store.queue.recover(["dead"], "gone", frozenset({(clean.id, clean.fence), (dirty.id, 99)}))

    assert [e.id for e in lost] == [clean.id]
    assert await store.status(dirty.id) is Status.RUNNING
    # Its node is no longer known; its lease still brings it back.
    store.clock.tick(HOUR)
    assert [e.id for e in await store.queue.recover([], "")] == [dirty.id]


async def test_recovering_twice_changes_nothing_the_second_time(store: Bed) -> None:
    api = await store.project()
    await store.node("dead")
    await store.put(api)
    execution = await store.take(api, "dead")
    await store.queue.recover(["dead"], "gone")
    before = await store.dump()

    assert await store.queue.recover(["dead"], "gone", frozenset({(execution.id, execution.fence)})) == []

    after = await store.dump()
    assert {table: rows for table, rows in after.items() if table != "events"} == {
        table: rows for table, rows in before.items() if table != "events"
    }
    assert await store.events(execution.id) == ["queued", "started", "lost", "requeued"]


async def test_the_late_end_of_a_recovered_claim_is_refused(store: Bed) -> None:
    api = await store.project()
    await store.node("dead")
    await store.put(api)
    execution = await store.take(api, "dead")
    await store.queue.recover(["dead"], "gone")

    with pytest.raises(LeaseLost):
        await store.queue.finish(done(execution))

    current = await store.take(api, "n2")
    with pytest.raises(LeaseLost):
        await store.queue.finish(done(execution))
    assert (await store.queue.get(execution.id)) == current


async def lose(store: Bed, id: int, name: str) -> Execution:
    api = await store.project()
    await store.node(name)
    execution = await store.take(api, name)
    assert execution.id == id
    await store.queue.recover([name], "killed")
    return await store.queue.get(id)


async def test_a_task_that_kills_its_nodes_is_held_for_a_person(store: Bed) -> None:
    api = await store.project()
    id, behind = await store.put(api), await store.put(api)

    for n in range(1, MAX_LOSSES):
        row = await lose(store, id, f"n{n}")
        assert (row.status, row.losses, row.failures) == (Status.QUEUED, n, 0)
    row = await lose(store, id, "last")

    assert (row.status, row.failures) == (Status.NEEDS_HUMAN, 0)
    assert f"{MAX_LOSSES} times in a row" in (row.reason or "")
    assert await store.value("SELECT count(*) FROM questions WHERE answered_at IS NULL") == 1
    await store.queue.answer(id, "try again", "me")
    row = await lose(store, id, "another")
    assert (row.status, row.losses) == (Status.QUEUED, 1)  # a person has looked at it: it counts anew
    await store.queue.cancel(id, "me")
    assert await store.claimed(api, "n9") == [behind]


async def test_losses_count_in_a_row_only(store: Bed) -> None:
    api = await store.project()
    await store.node()
    id = await store.put(api)
    for n in range(MAX_LOSSES - 1):
        await lose(store, id, f"a{n}")
    await store.queue.finish(again(await store.take(api)))

    assert (await lose(store, id, "b")).losses == 1


async def test_a_node_that_leaves_in_order_costs_its_tasks_nothing(store: Bed) -> None:
    api = await store.project()
    id = await store.put(api)
    for n in range(MAX_LOSSES - 1):
        await lose(store, id, f"a{n}")
    await store.node("leaves")
    await store.take(api, "leaves")

    await store.queue.leave("leaves")

    row = await store.queue.get(id)
    assert (row.status, row.failures, row.reason) == (Status.QUEUED, 0, "shutdown")
    assert (await store.events(id))[-2:] == ["started", "requeued"]
    assert await store.queue.nodes() == []


async def test_a_node_that_leaves_takes_back_its_own_only(store: Bed) -> None:
    # What another node lost may still have its agent in the repository: that is for a recovery to end first.
    projects = [await store.project(name) for name in ("a", "b")]
    await store.node("dead", lease=MINUTE)
    await store.node("leaves")
    theirs, mine = await store.put(projects[0]), await store.put(projects[1])
    await store.take(projects[0], "dead", lease=MINUTE)
    await store.take(projects[1], "leaves", lease=HOUR)
    store.clock.tick(2 * MINUTE)

    await store.queue.leave("leaves")

    assert await store.status(mine) is Status.QUEUED
    assert await store.status(theirs) is Status.RUNNING
    assert [node.id for node, _ in await store.queue.nodes()] == ["dead"]


async def test_what_was_to_be_cancelled_when_its_node_died_is_cancelled(store: Bed) -> None:
    api = await store.project()
    await store.node("dead")
    id = await store.put(api)
    child = await store.put(api, after=(id,))
    await store.take(api, "dead")
    await store.queue.cancel(id, "me", "not needed")

    await store.queue.recover(["dead"], "gone")

    row = await store.queue.get(id)
    assert (row.status, row.reason) == (Status.CANCELLED, "not needed")
    assert await store.status(child) is Status.CANCELLED


async def test_a_direct_run_ends_with_its_process(store: Bed) -> None:
    api, web = await store.project("api"), await store.project("web")
    await store.node("run-1")
    running = await store.put(api, priority=-1, reserved_for="run-1")
    await store.take(api, "run-1", own=True)
    queued = await store.put(api, priority=-1, reserved_for="run-1")
    parent = await store.put(web)
    blocked = await store.put(api, reserved_for="run-1", after=(parent,))
    child = await store.put(web, after=(queued,))
    other = await store.put(api)

    await store.queue.recover(["run-1"], "its process is gone")

    for id in (running, queued, blocked, child):
        row = await store.queue.get(id)
        assert row.status is Status.CANCELLED
        assert row.reason
    assert "`pilot run`" in ((await store.queue.get(queued)).reason or "")
    assert await store.claimed(api, "serve") == [other]
    assert await store.status(parent) is Status.QUEUED


@pytest.mark.parametrize("known", [True, False])
async def test_a_direct_run_whose_node_is_gone_is_found_without_naming_it(store: Bed, known: bool) -> None:
    api = await store.project()
    if known:
        await store.node("run-1", lease=MINUTE)
    id = await store.put(api, priority=-1, reserved_for="run-1")
    if known:
        await store.queue.recover([], "")
        assert await store.status(id) is Status.QUEUED
        store.clock.tick(MINUTE + 1)

    await store.queue.recover([], "", frozenset())

    assert await store.status(id) is Status.CANCELLED


async def test_a_direct_run_on_an_ended_lease_waits_until_its_node_was_silent_for_long(store: Bed) -> None:
    api = await store.project()
    await store.node("run-1", lease=MINUTE)
    id = await store.put(api, priority=-1, reserved_for="run-1")
    store.clock.tick(MINUTE + 1)

    await store.queue.recover([], "", frozenset(), frozenset())
    await store.queue.recover([], "", frozenset(), frozenset({"another"}))
    assert await store.status(id) is Status.QUEUED
    await store.queue.recover([], "", frozenset(), frozenset({"run-1"}))

    assert await store.status(id) is Status.CANCELLED


async def test_a_question_of_a_direct_run_outlives_its_process(store: Bed) -> None:
    api = await store.project()
    await store.node("run-1")
    id = await store.put(api, priority=-1, reserved_for="run-1")
    await store.queue.finish(asked(await store.take(api, "run-1", own=True)))

    await store.queue.leave("run-1")

    assert await store.status(id) is Status.NEEDS_HUMAN


async def test_recovery_covers_every_open_state_and_leaves_what_waits_alone(store: Bed) -> None:
    api = await store.project()
    await store.node("dead")
    held = await store.put(api)
    await store.queue.finish(asked(await store.take(api, "dead")))
    running = await store.put(api)
    await store.take(api, "dead")
    queued = await store.put(api)
    blocked = await store.put(api, after=(queued,))
    later = await store.put(api, available_at=store.clock.now + HOUR)

    await store.queue.recover(["dead"], "gone")

    statuses = [await store.status(id) for id in (held, running, queued, blocked, later)]
    assert statuses == [Status.NEEDS_HUMAN, Status.QUEUED, Status.QUEUED, Status.BLOCKED, Status.QUEUED]


async def test_a_worker_is_a_node_as_long_as_it_is_heard_of(store: Bed) -> None:
    api = await store.project()
    id = await store.put(api)
    (claim,) = await store.store.work.claim("w")
    store.clock.tick(SECOND)

    (node,) = (await store.store.history.status(store.clock.now))["nodes"]

    assert (node["id"], node["kind"], node["state"], node["running"]) == ("worker:w", "worker", "up", 1)
    assert (node["host"], node["pid"], node["max_running"]) == ("", 0, None)
    started = await store.rows("SELECT type, data FROM events WHERE type = 'node.started'")
    assert started == [("node.started", '{"node":"worker:w","kind":"worker"}')]
    store.clock.tick(25 * SECOND)
    await store.store.work.heartbeat(id, "w", claim.fence, lease=MINUTE)
    store.clock.tick(MINUTE)
    (node,) = (await store.store.history.status(store.clock.now - 1))["nodes"]
    assert node["state"] == "up"
    (node,) = (await store.store.history.status(store.clock.now))["nodes"]
    assert node["state"] == "lost"


async def test_a_worker_that_is_good_for_long_enough_costs_no_write(store: Bed) -> None:
    await store.store.work.claim("w")
    before = await store.rows("SELECT * FROM nodes")
    store.clock.tick(14 * SECOND)
    await store.store.work.claim("w")
    assert await store.rows("SELECT * FROM nodes") == before

    store.clock.tick(2 * SECOND)
    await store.store.work.claim("w")

    assert await store.value("SELECT lease_until FROM nodes") == store.clock.now + 30 * SECOND
    assert await store.value("SELECT started_at FROM nodes") == store.clock.now - 16 * SECOND


async def test_a_worker_of_long_ago_is_forgotten_when_a_new_one_comes(store: Bed) -> None:
    await store.store.work.claim("old", lease=SECOND)
    store.clock.tick(SECOND + HOUR)
    await store.store.work.claim("new")
    assert await store.rows("SELECT id FROM nodes ORDER BY id") == [("worker:new",), ("worker:old",)]

    store.clock.tick(1)
    await store.store.work.claim("newer")

    assert await store.rows("SELECT id FROM nodes ORDER BY id") == [("worker:new",), ("worker:newer",)]


async def test_a_worker_tells_nobody_and_people_are_not_owed_for_it(store: Bed) -> None:
    api = await store.project()
    await store.put(api, max_attempts=1)
    (claim,) = await store.store.work.claim("w")

    await store.store.work.fail(claim.execution.id, "w", claim.fence, failed(FailureClass.AGENT, "broke"))

    assert await store.rows("SELECT * FROM outbox") == []


async def test_why_names_the_workers_that_may_take_it(store: Bed) -> None:
    api, web = await store.project("api"), await store.project("web")
    local, left = await store.put(api), await store.put(web, external=True)
    history, now = store.store.history, store.clock.now
    await store.queue.pause(0, "me", "")
    await store.store.work.claim("w")
    await store.queue.resume(0)

    for id, words in (
        (local, "no node is up; `pilot serve` runs one; may take it: worker:w"),
        (left, "left to a worker that claims over HTTP; may take it: worker:w"),
    ):
        why = await history.why(id, now)
        assert why is not None
        (hold,) = why.holds
        assert hold.detail.startswith(words)


async def test_a_worker_never_keeps_a_store_from_its_upgrade(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url, clock = f"sqlite:///{tmp_path}/pilot.db", Clock()
    async with open_store(url, clock=clock) as store:
        await store.work.claim("w", lease=HOUR)
    known = migrate.migrations("sqlite")
    more = (len(known) + 1, "more.sql", "CREATE TABLE more (id INTEGER);\n")
    monkeypatch.setattr(migrate, "migrations", lambda _engine: [*known, more])

    async with open_store(url, clock=clock) as store:
        assert await store.database.read("SELECT * FROM more") == []
