"""Several nodes: who judges whom, who takes over and when, who gets what, and how people reach all of them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pilot.app import node as naming
from pilot.app.node import PLACE, alive, new_node, place_of
from pilot.dispatch.courtesy import FIRST, LONGEST, Courtesy
from pilot.dispatch.dispatcher import Limits
from pilot.dispatch.maintenance import Recovery
from pilot.domain.agent import OutputKind
from pilot.domain.errors import Outdated, StoreError
from pilot.domain.execution import Execution, Status
from pilot.domain.outcome import Ending, Outcome, Question
from pilot.domain.ports import Node, NodeKind
from pilot.runner import proctree
from pilot.store import sqlite_path
from pilot.store.migrate import newest
from tests.core.nodes import ENGINES, Fleet, fleet
from tests.core.stage import Stage, Work, in_turn, returns


@pytest.fixture(params=ENGINES)
async def nodes(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Fleet]:
    """A store that several machines share."""
    sqlite = request.param == "sqlite"
    async with fleet(f"sqlite:///{tmp_path}/pilot.db" if sqlite else request.getfixturevalue("postgres_url")) as made:
        yield made


# Who judges whom


def this(**changes: Any) -> Node:
    return replace(new_node(NodeKind.SERVE, 1), **changes)


def ended() -> int:
    """The number of a process that is no more."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


@pytest.mark.parametrize("local", [True, False])
def test_a_process_of_this_boot_and_namespace_is_judged_by_itself(local: bool) -> None:
    assert alive(this(), local=local) is True
    assert alive(this(start_ticks=1), local=local) is False, "another one got its number"
    assert alive(this(pid=ended()), local=local) is False


@pytest.mark.parametrize("local", [True, False])
def test_a_container_of_the_same_name_is_judged_by_its_lease(local: bool) -> None:
    name, _, namespace = this().host.rpartition("/")
    assert alive(this(host=f"{name}/{int(namespace) + 1}"), local=local) is None


def test_the_same_image_on_another_machine_is_not_taken_for_a_dead_node_of_this_one() -> None:
    """Its host name, its machine id and even its first pid namespace are the same; not its boot."""
    other = this(boot_id="f3c0ffee", pid=ended())

    assert alive(other, local=False) is None
    assert alive(other, local=True) is False, "nobody elsewhere has this file open: it is from before a reboot"


def test_where_no_boot_is_told_only_a_lease_judges_over_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(naming, "boot_id", lambda: "")
    gone = this(boot_id="", pid=ended())

    assert alive(gone, local=False) is None
    assert alive(gone, local=True) is False


def test_a_process_that_is_there_and_not_shown_is_not_taken_for_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proctree, "look", lambda _pid: None)  # another user's, under hidepid
    hidden = this(pid=os.getppid())
    gone = this(pid=ended())

    assert alive(hidden, local=True) is None
    assert alive(gone, local=True) is False


def test_a_place_is_named_once_and_for_ever(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        names = set(pool.map(place_of, [tmp_path] * 32))

    assert len(names) == 1
    assert [path.name for path in tmp_path.iterdir()] == [PLACE]
    assert (tmp_path / PLACE).stat().st_mode & 0o777 == 0o600
    other = tmp_path / "other"
    other.mkdir()
    assert place_of(other) not in names


@pytest.mark.parametrize("text", ["", "two words", "\x1b[2J", "x" * 81])
def test_a_file_that_names_no_place_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / PLACE).write_text(text)

    with pytest.raises(StoreError, match="names no place; remove it"):
        place_of(tmp_path)
    assert (tmp_path / PLACE).read_text() == text


# Who takes over, and when


async def nothing(*_: Any) -> Collection[int]:
    return ()


async def test_what_a_lost_machine_ran_is_taken_back_when_its_lease_ends(nodes: Fleet) -> None:
    """Though the survivor looks every minute only: it was seen in time that nothing was heard."""
    api = await nodes.project("api")
    lost, here = await nodes.machine(), await nodes.machine()
    id = await nodes.put(api, "T-1")
    loop = asyncio.get_running_loop()
    await lost.store.queue.start_node(lost.node, 2500)
    await here.store.queue.start_node(here.node, 60_000)
    (claim,) = await lost.store.queue.claim(lost.node.id, lease=2500, projects=[api.id])
    await lost.store.queue.heartbeat(lost.node.id, 2500)
    heard = loop.time()

    async def known() -> None:
        raise AssertionError("it is known")

    recovery = Recovery(
        here.store.queue, here.node, here.store.database.clock, lambda _node: None, nothing, known, 60.0, 2.4
    )
    await recovery.once()
    running = asyncio.create_task(recovery.run())
    (row,) = await nodes.reach(Status.QUEUED, id)
    took = loop.time() - heard
    running.cancel()

    assert 2.45 < took < 2.5 + 2
    assert (row.losses, row.fence) == (1, claim.fence)


async def test_a_lease_that_a_clock_ended_is_not_the_end_of_a_node_that_is_heard_of(stage: Stage) -> None:
    api = await stage.project("api")
    other = stage.node(host="there")
    await stage.queue.start_node(other, 60_000)
    id = await stage.task(api, "T-1")
    await stage.claimed(api, other, 60_000)
    recovery = Recovery(stage.queue, stage.node(), stage.clock, lambda _node: None, nothing, nothing_at_all, 60.0, 50.0)
    await recovery.once()
    later(recovery, 30.0)
    await stage.queue.heartbeat(other.id, 60_000)  # its row says the same time as before; the clock stands still
    await recovery.once()
    later(recovery, 30.0)
    stage.clock.advance(3_600_000)

    assert await recovery.once() == []
    assert (await stage.row(id)).status is Status.RUNNING
    later(recovery, 30.0)
    assert [execution.id for execution in await recovery.once()] == [id]


def later(recovery: Recovery, seconds: float) -> None:
    """As if it had seen what it has seen so much earlier."""
    for watch in (recovery._nodes, recovery._claims):
        watch._seen = {key: (state, since - seconds) for key, (state, since) in watch._seen.items()}


async def nothing_at_all() -> None:
    return


async def test_a_node_that_was_given_up_makes_itself_known_again(nodes: Fleet) -> None:
    api = await nodes.project("api")
    one, other = await nodes.machine(), await nodes.machine()

    async with one.dispatcher([api], limits=Limits(lease=0.8)):
        await other.store.queue.recover([one.node.id], "it was silent for a day")
        async with asyncio.timeout(10):
            while not await served(nodes, one.node.id):
                await asyncio.sleep(0.02)
        id = await nodes.put(api, "T-1")
        await nodes.reach(Status.COMPLETED, id)


async def served(nodes: Fleet, node: str) -> bool:
    return bool(await nodes.store.database.read("SELECT 1 FROM node_projects WHERE node_id = :node", {"node": node}))


async def test_a_node_whose_store_a_newer_pilot_took_over_ends_and_says_so(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/pilot.db"
    async with fleet(url) as nodes:
        api = await nodes.project("api")
        one = await nodes.machine()
        one.script.acts["T-1"] = work = Work()
        id = await nodes.put(api, "T-1")
        dispatcher = one.dispatcher([api], limits=Limits(lease=0.9, drain_timeout=60.0))
        running = asyncio.create_task(dispatcher.run())
        await work.begun.wait()
        with contextlib.closing(sqlite3.connect(sqlite_path(url))) as newer:
            newer.execute(f"PRAGMA user_version = {newest('sqlite') + 1}")

        with pytest.raises(Outdated, match="start the newer pilot in its stead"):
            await asyncio.wait_for(running, 10)

        assert work.cancels == 1, "nothing of this node's runs afterwards"
        assert (await nodes.store.queue.get(id)).status is Status.RUNNING, "and nothing of it was written"


# Who gets what


async def test_neither_projects_nor_nodes_starve_where_there_is_little_room(nodes: Fleet) -> None:
    projects = [await nodes.project(f"p{n}") for n in range(8)]
    ids = [await nodes.put(project, f"{project.name}-{n}") for project in projects for n in range(5)]
    machines = [await nodes.machine(), await nodes.machine()]

    async def act(_: Execution) -> Outcome:
        await asyncio.sleep(0.01)
        return Outcome(ending=Ending.DONE)

    for machine in machines:
        machine.script.default = act
    async with contextlib.AsyncExitStack() as up:
        for machine in machines:
            await up.enter_async_context(machine.dispatcher(projects))
        await nodes.reach(Status.COMPLETED, *ids)

    order = await nodes.store.database.read(
        "SELECT project_id, execution_id FROM events WHERE type = 'execution.started' ORDER BY id"
    )
    for project in projects:
        assert [id for at, id in order if at == project.id] == sorted(id for at, id in order if at == project.id)
    # Two nodes of two places take from eight projects in turn: none is far behind another.
    begun = [next(n for n, (at, _) in enumerate(order) if at == project.id) for project in projects]
    assert max(begun) < 16, order
    shares = [len(machine.script.spans) for machine in machines]
    assert min(shares) >= len(ids) // 5, shares
    asked = sum(machine.asked["claim"] for machine in machines)
    assert asked <= 2 * len(ids), "claims in vain"


async def test_idle_nodes_do_not_storm_the_store(nodes: Fleet) -> None:
    api = await nodes.project("api")
    machines = [await nodes.machine() for _ in range(4)]
    async with contextlib.AsyncExitStack() as up:
        for machine in machines:
            await up.enter_async_context(machine.dispatcher([api]))
        for n in range(30):
            await nodes.reach(Status.COMPLETED, await nodes.put(api, f"T-{n}"))
        asked = sum(machine.asked["claim"] for machine in machines)
        before = asked
        await asyncio.sleep(0.5)
        idle = sum(machine.asked["claim"] for machine in machines) - before

    assert asked <= 30 * 2 + 30 * 2, "one takes it, and looks once more: 60; all four at it each time: 150 and more"
    assert idle <= 2


@pytest.mark.parametrize("slots", [3, 6])
async def test_nodes_go_from_one_end_to_the_next_claim_in_one_step(nodes: Fleet, slots: int) -> None:
    """Whether the slots of all are scarce, or as many as projects: a claim of its own for each is many in vain."""
    projects = [await nodes.project(f"p{n}") for n in range(24)]
    ids = await asyncio.gather(*(nodes.put(project, f"T-{n}") for project in projects for n in range(12)))
    machines = [await nodes.machine() for _ in range(4)]
    async with contextlib.AsyncExitStack() as up:
        for machine in machines:
            await up.enter_async_context(machine.dispatcher(projects, limits=Limits(max_running=slots)))
        await nodes.reach(Status.COMPLETED, *ids)
    asked = sum((machine.asked for machine in machines), Counter[str]())

    assert sum(len(machine.script.spans) for machine in machines) == len(ids)
    assert asked["claim"] <= len(ids), asked
    assert asked["look"] <= len(ids) // 2, asked


async def test_who_is_late_lets_others_go_first_and_is_not_for_ever() -> None:
    courtesy = Courtesy(jitter=lambda: 0.5)
    assert courtesy.seconds == 0
    for _ in range(10):
        courtesy.came(False)
    assert courtesy.seconds == LONGEST
    for _ in range(5):
        courtesy.came(True)
    assert courtesy.seconds == 0
    courtesy.came(False)
    assert courtesy.seconds == FIRST


async def test_a_node_serves_what_it_can_reach_and_another_the_rest(nodes: Fleet) -> None:
    api, web = await nodes.project("api"), await nodes.project("web")
    one, other = await nodes.machine(), await nodes.machine()
    async with one.dispatcher([api]), other.dispatcher([web]):
        ids = [await nodes.put(project, f"T-{n}") for n in range(3) for project in (api, web)]
        await nodes.reach(Status.COMPLETED, *ids)

    assert {span.execution.project for span in one.script.spans} == {"api"}
    assert {span.execution.project for span in other.script.spans} == {"web"}


async def test_an_answer_sends_it_back_to_where_it_was_begun(nodes: Fleet) -> None:
    api = await nodes.project("api")
    one, other = await nodes.machine(), await nodes.machine()
    asks = returns(Outcome(ending=Ending.QUESTION, question=Question("Which?"), session_id="s-1"))
    one.script.acts["T-1"] = in_turn(asks, returns(Outcome(ending=Ending.DONE)))
    async with one.dispatcher([api]):
        id = await nodes.put(api, "T-1")
        await nodes.reach(Status.NEEDS_HUMAN, id)
        async with other.dispatcher([api]):
            await other.store.queue.answer(id, "this one", by="ann")
            await nodes.reach(Status.COMPLETED, id)

    assert other.script.spans == []
    assert one.script.spans[-1].execution.session_id == "s-1"


# How people reach all of them


async def test_cancel_and_pause_reach_the_node_that_it_concerns_from_any_other(nodes: Fleet) -> None:
    api, web = await nodes.project("api"), await nodes.project("web")
    one, other = await nodes.machine(), await nodes.machine()
    one.script.acts["T-1"] = work = Work()
    async with one.dispatcher([api]), other.dispatcher([web]):
        id = await nodes.put(api, "T-1")
        await work.begun.wait()
        assert await other.store.queue.cancel(id, by="ann", reason="no more") is Status.RUNNING
        (row,) = await nodes.reach(Status.CANCELLED, id)
        assert (work.cancels, row.reason) == (1, "no more")

        await one.store.queue.pause(0, "ann", "a freeze")
        held = await nodes.put(web, "T-2")
        await asyncio.sleep(0.2)
        assert (await nodes.store.queue.get(held)).status is Status.QUEUED
        await one.store.queue.resume(0)
        await nodes.reach(Status.COMPLETED, held)


async def test_what_any_node_runs_and_says_is_read_from_every_other(nodes: Fleet) -> None:
    api = await nodes.project("api")
    one, other = await nodes.machine(), await nodes.machine()
    begun, go = asyncio.Event(), asyncio.Event()

    async def act(execution: Execution) -> Outcome:
        await one.store.journal.write(execution, [(OutputKind.TEXT, b"I am at it")])
        await one.store.journal.note(execution, workspace="/var/lib/pilot/workspaces/1-T-1/api", phase="agent")
        begun.set()
        await go.wait()
        return Outcome(ending=Ending.DONE)

    one.script.default = act
    async with one.dispatcher([api]), other.dispatcher([]):
        id = await nodes.put(api, "T-1")
        await begun.wait()
        pieces = await other.store.history.output(id)
        assert [piece.data for piece in pieces] == [b"I am at it"]
        status = await other.store.history.status(other.store.database.clock())
        shown = {node["id"]: (node["state"], node["running"], node["place"]) for node in status["nodes"]}
        assert shown == {"node-1": ("up", 1, "place-1"), "node-2": ("up", 0, "place-2")}
        assert [(row["id"], row["node"]) for row in status["running"]] == [(id, "node-1")]
        document = await other.store.history.document(await other.store.queue.get(id))
        assert document["workspace"] == "/var/lib/pilot/workspaces/1-T-1/api"
        assert document["place"] == "place-1", "on whose disk that is"
        go.set()
        await nodes.reach(Status.COMPLETED, id)
