"""The outbox's loop on a real store: each effect once, in order, retried, and by one node at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest

from pilot.dispatch.deliveries import Deliveries, pause
from pilot.dispatch.reports import TRIES, Reports
from pilot.domain.delivery import Effect, EffectKind, Report
from pilot.domain.errors import StoreError
from pilot.domain.outside import GiveUp, Later
from pilot.domain.task import Project
from tests.core.stage import MINUTE, SECOND, Stage, until

Act = Callable[[Effect], Awaitable[Mapping[str, Any] | None]]


class Post:
    """A handler that remembers, and does what its script says; the last line of that stays."""

    def __init__(self, *script: Act | BaseException | None) -> None:
        self.script = list(script) or [None]
        self.seen: list[Effect] = []
        self.at_once = 0
        self.most = 0

    async def __call__(self, effect: Effect) -> Mapping[str, Any] | None:
        self.seen.append(effect)
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        try:
            act = self.script.pop(0) if len(self.script) > 1 else self.script[0]
            if isinstance(act, BaseException):
                raise act
            return {"id": effect.id} if act is None else await act(effect)
        finally:
            self.at_once -= 1

    @property
    def types(self) -> list[str]:
        return [str(effect.payload.get("type")) for effect in self.seen]


async def owed(stage: Stage, project: Project, task_id: str = "GH-1", **more: Any) -> int:
    """A task with a ticket: its being queued is to be told."""
    return await stage.task(project, task_id, origin={"source": "github", "ref": "acme/api#1"}, **more)


async def open_effects(stage: Stage) -> list[tuple[Any, ...]]:
    return await stage.store.database.read(
        "SELECT tries, available_at, error FROM outbox WHERE delivered_at IS NULL ORDER BY id"
    )


async def node_of(stage: Stage) -> str:
    node = stage.node()
    await stage.queue.start_node(node, 60 * MINUTE)
    return node.id


async def deliveries(stage: Stage, handler: Any, **more: Any) -> Deliveries:
    given: dict[str, Any] = {
        "handlers": {EffectKind.REPORT: handler},
        "projects": lambda: [project.id for project in stage.projects],
        "clock": stage.clock,
        "poll": 0.02,
        "jitter": lambda: 0.0,
    }
    return Deliveries(stage.store.outbox, await node_of(stage), **given | more)


@asynccontextmanager
async def running(*loops: Deliveries) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(loop.run()) for loop in loops]
    try:
        yield
    finally:
        for loop in loops:
            loop.stop()
        await asyncio.gather(*tasks)


async def settled(stage: Stage) -> None:
    """Wait until nothing is owed."""
    loop = asyncio.get_running_loop()
    end = loop.time() + 10
    while await open_effects(stage):
        assert loop.time() < end, await open_effects(stage)
        await asyncio.sleep(0.01)


async def test_what_is_owed_is_done_once_and_its_result_is_kept(stage: Stage) -> None:
    id, post = await owed(stage, await stage.project("api")), Post()

    async with running(await deliveries(stage, post)):
        await settled(stage)
        await asyncio.sleep(0.06)

    assert post.types == ["execution.queued"]
    assert (await stage.store.outbox.report(id)).sent == {"report": {"id": post.seen[0].id}}


async def test_several_nodes_never_work_on_one_effect_and_keep_the_order_of_a_lane(stage: Stage) -> None:
    project = await stage.project("api")
    done: list[tuple[str, int]] = []
    busy: set[str] = set()

    async def slowly(effect: Effect) -> None:
        assert effect.lane not in busy, "two at once in a lane"
        busy.add(effect.lane)
        await asyncio.sleep(0.002)
        busy.remove(effect.lane)
        done.append((effect.lane, effect.id))

    ids = [await owed(stage, project, f"GH-{n}") for n in range(8)]
    for id in ids:
        await stage.queue.cancel(id, by="mona")
    nodes = [await deliveries(stage, Post(slowly)) for _ in range(3)]
    async with running(*nodes):
        await settled(stage)

    assert len(done) == len(set(done)) == 16
    for lane in {lane for lane, _ in done}:
        assert [id for where, id in done if where == lane] == sorted(id for where, id in done if where == lane)


async def test_lanes_go_on_side_by_side_up_to_a_limit(stage: Stage) -> None:
    project, go = await stage.project("api"), asyncio.Event()

    async def waits(_: Effect) -> None:
        await go.wait()

    for n in range(6):
        await owed(stage, project, f"GH-{n}")
    post = Post(waits)
    async with running(await deliveries(stage, post, at_once=4)):
        await until(lambda: post.at_once == 4)
        await asyncio.sleep(0.06)
        assert len(post.seen) == 4
        go.set()
        await settled(stage)
    assert (post.most, len(post.seen)) == (4, 6)


@pytest.mark.parametrize(
    "error",
    [Later("busy"), StoreError("locked"), RuntimeError("a bug"), TimeoutError()],
    ids=["later", "pilots", "bug", "timeout"],
)
async def test_what_fails_is_tried_again_after_a_growing_pause(stage: Stage, error: BaseException) -> None:
    await owed(stage, await stage.project("api"))
    post = Post(error, error, None)
    began = stage.clock.now
    async with running(await deliveries(stage, post)):
        await until(lambda: len(post.seen) == 1)
        await until_async(lambda: tried(stage, 1))
        ((_, at, said),) = await open_effects(stage)
        assert (at, bool(said)) == (began + 5 * SECOND, True)
        await asyncio.sleep(0.06)
        assert len(post.seen) == 1, "not before its time"
        stage.clock.advance(5 * SECOND)
        await until_async(lambda: tried(stage, 2))
        ((_, at, _),) = await open_effects(stage)
        assert at == stage.clock.now + 10 * SECOND
        stage.clock.advance(10 * SECOND)
        await settled(stage)
    assert [effect.tries for effect in post.seen] == [0, 1, 2]


async def tried(stage: Stage, times: int) -> bool:
    return [tries for tries, _, _ in await open_effects(stage)] == [times]


async def leased_until(stage: Stage, at: int) -> bool:
    return [(at,)] == await stage.store.database.read("SELECT claimed_until FROM outbox WHERE delivered_at IS NULL")


async def until_async(condition: Callable[[], Awaitable[bool]]) -> None:
    loop = asyncio.get_running_loop()
    end = loop.time() + 10
    while not await condition():
        assert loop.time() < end
        await asyncio.sleep(0.01)


async def test_later_names_its_time(stage: Stage) -> None:
    await owed(stage, await stage.project("api"))
    async with running(await deliveries(stage, Post(Later("rate limit", stage.clock.now + 7 * MINUTE)))):
        await until_async(lambda: tried(stage, 1))
    assert await open_effects(stage) == [(1, stage.clock.now + 7 * MINUTE, "rate limit")]


async def test_what_is_given_up_is_said_and_is_not_tried_again(stage: Stage) -> None:
    id = await owed(stage, await stage.project("api"))
    post = Post(GiveUp("the repository is gone"), None)
    async with running(await deliveries(stage, post)):
        await settled(stage)
    events = dict(await stage.events(id))
    assert events["delivery.failed"]["reason"] == "the repository is gone"
    assert post.types == ["execution.queued"]


async def test_a_dead_nodes_effect_is_done_by_another_when_its_lease_is_over(stage: Stage) -> None:
    await owed(stage, await stage.project("api"))
    dead = await node_of(stage)
    assert await stage.store.outbox.take(dead, [EffectKind.REPORT], lease=MINUTE)
    post = Post()
    async with running(await deliveries(stage, post)):
        await asyncio.sleep(0.06)
        assert not post.seen
        stage.clock.advance(MINUTE + 1)
        await settled(stage)
    assert len(post.seen) == 1


async def test_a_long_handler_keeps_its_lease(stage: Stage) -> None:
    await owed(stage, await stage.project("api"))
    go = asyncio.Event()

    async def waits(_: Effect) -> None:
        await go.wait()

    first, second = Post(waits), Post()
    mine = await deliveries(stage, first, lease=4500)
    async with running(mine):
        await until(lambda: len(first.seen) == 1)
        async with running(await deliveries(stage, second)):
            for _ in range(3):
                stage.clock.advance(3000)
                await until_async(lambda: leased_until(stage, stage.clock.now + 4500))
        go.set()
        await settled(stage)
    assert (len(first.seen), len(second.seen)) == (1, 0)


async def test_whoever_lost_the_lease_is_ended_and_writes_nothing(stage: Stage) -> None:
    await owed(stage, await stage.project("api"))
    ended = asyncio.Event()

    async def hangs(_: Effect) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    first, second = Post(hangs), Post()
    async with running(await deliveries(stage, first, lease=3000)):
        await until(lambda: len(first.seen) == 1)
        other = await node_of(stage)
        while not (taken := await stage.store.outbox.take(other, [EffectKind.REPORT], lease=60 * MINUTE)):
            stage.clock.advance(MINUTE)  # again, where it was renewed just then
        await ended.wait()
        await asyncio.sleep(0.02)
        assert [effect.tries for effect in taken] == [0]
        ((tries, _, error),) = await open_effects(stage)
        assert (tries, error) == (0, None)
    assert not second.seen


async def test_whoever_can_not_renew_ends_its_work_before_the_lease_does(stage: Stage) -> None:
    class Cut:
        def __getattr__(self, name: str) -> Any:
            async def fails(*_args: Any, **_more: Any) -> Any:
                raise StoreError("the database is gone")

            return fails if name == "renew" else getattr(stage.store.outbox, name)

    await owed(stage, await stage.project("api"))
    ended = asyncio.Event()

    async def hangs(_: Effect) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    loop = await deliveries(stage, Post(hangs, None), lease=300)
    loop.outbox = Cut()
    async with running(loop):
        await ended.wait()
        await settled(stage)


async def test_at_the_end_what_is_under_way_is_finished_and_nothing_is_begun(stage: Stage) -> None:
    project, go = await stage.project("api"), asyncio.Event()

    async def waits(_: Effect) -> None:
        await go.wait()

    id, post = await owed(stage, project), Post(waits)
    loop = await deliveries(stage, post)
    task = asyncio.create_task(loop.run())
    await until(lambda: len(post.seen) == 1)
    await stage.queue.cancel(id, by="mona")
    loop.stop()
    await asyncio.sleep(0.05)
    assert not task.done()
    go.set()
    await task

    assert post.types == ["execution.queued"]
    assert [tries for tries, _, _ in await open_effects(stage)] == [0]


async def test_what_does_not_end_in_time_is_broken_off_and_free_for_others(stage: Stage) -> None:
    await owed(stage, await stage.project("api"))

    async def hangs(_: Effect) -> None:
        await asyncio.Event().wait()

    post = Post(hangs)
    loop = await deliveries(stage, post, drain_timeout=0.05)
    task = asyncio.create_task(loop.run())
    await until(lambda: len(post.seen) == 1)
    loop.stop()
    await task

    other = Post()
    async with running(await deliveries(stage, other)):
        await settled(stage)
    assert len(other.seen) == 1


async def test_a_handler_that_takes_too_long_is_ended(stage: Stage) -> None:
    await owed(stage, await stage.project("api"))

    async def hangs(_: Effect) -> None:
        await asyncio.Event().wait()

    async with running(await deliveries(stage, Post(hangs), timeout=0.05)):
        await until_async(lambda: tried(stage, 1))
    ((_, _, error),) = await open_effects(stage)
    assert "did not end within 0.05 s" in error


async def test_only_projects_of_this_node_are_delivered(stage: Stage) -> None:
    api, web = await stage.project("api"), await stage.project("web")
    await owed(stage, api)
    await owed(stage, web)
    post = Post()
    async with running(await deliveries(stage, post, projects=lambda: [web.id])):
        await until(lambda: post.seen)
        await asyncio.sleep(0.06)
    assert [effect.project_id for effect in post.seen] == [web.id]


async def test_a_store_that_fails_for_a_moment_stops_nothing(stage: Stage) -> None:
    class Shaky:
        def __init__(self) -> None:
            self.left = 3

        def __getattr__(self, name: str) -> Any:
            real = getattr(stage.store.outbox, name)

            async def call(*args: Any, **more: Any) -> Any:
                if name in ("take", "delivered") and self.left > 0:
                    self.left -= 1
                    raise StoreError("disk full")
                return await real(*args, **more)

            return call

    await owed(stage, await stage.project("api"))
    post = Post()
    loop = await deliveries(stage, post)
    loop.outbox = Shaky()
    async with running(loop):
        await until(lambda: loop.outbox.left == 0)  # type: ignore[attr-defined]
        stage.clock.advance(2 * MINUTE)
        await settled(stage)


async def test_a_hint_is_heard_at_once(stage: Stage) -> None:
    project, post = await stage.project("api"), Post()
    loop = await deliveries(stage, post, poll=30.0)
    leave = stage.queue.listen(lambda _: loop.nudge())
    async with running(loop):
        await asyncio.sleep(0.05)
        await owed(stage, project)
        await until(lambda: post.seen)
    leave()


class TestDrain:
    """What a direct run does at its end."""

    async def test_everything_of_the_one_execution_and_nothing_else(self, stage: Stage) -> None:
        project = await stage.project("api")
        id, other = await owed(stage, project), await owed(stage, project, "GH-2")
        await stage.queue.cancel(id, by="mona")
        post = Post()
        assert await (await deliveries(stage, post)).drain(id, 5) is None
        assert post.types == ["execution.queued", "execution.cancelled"]
        assert {effect.execution for effect in post.seen} == {id}
        assert len(await open_effects(stage)) == 1, other

    async def test_what_has_to_wait_is_left_and_said(self, stage: Stage) -> None:
        id = await owed(stage, await stage.project("api"))
        left = await (await deliveries(stage, Post(Later("GitHub is down")))).drain(id, 5)
        assert left is not None
        assert left.reason == "GitHub is down"

    async def test_what_an_earlier_execution_of_the_task_owes_goes_first(self, stage: Stage) -> None:
        project = await stage.project("api")
        first = await owed(stage, project)
        await stage.queue.cancel(first, by="mona")
        second = await owed(stage, project)
        post = Post()
        assert await (await deliveries(stage, post)).drain(second, 5) is None
        assert [effect.execution for effect in post.seen] == [first, first, second]

    async def test_what_stands_before_it_and_waits_is_no_success(self, stage: Stage) -> None:
        project = await stage.project("api")
        first = await owed(stage, project)
        await stage.queue.cancel(first, by="mona")
        second = await owed(stage, project)
        left = await (await deliveries(stage, Post(Later("GitHub is down")))).drain(second, 5)
        assert left is not None
        assert left.reason == "something that is owed before it waits"

    async def test_what_another_node_is_at_is_waited_for(self, stage: Stage) -> None:
        id, go = await owed(stage, await stage.project("api")), asyncio.Event()

        async def waits(_: Effect) -> None:
            await go.wait()

        theirs, mine = Post(waits), Post()
        async with running(await deliveries(stage, theirs)):
            await until(lambda: theirs.seen)
            draining = asyncio.create_task((await deliveries(stage, mine)).drain(id, 5))
            await asyncio.sleep(0.06)
            assert not draining.done()
            go.set()
            assert await draining is None
        assert not mine.seen

    async def test_it_ends_at_its_time(self, stage: Stage) -> None:
        async def hangs(_: Effect) -> None:
            await asyncio.Event().wait()

        id = await owed(stage, await stage.project("api"))
        left = await (await deliveries(stage, Post(hangs))).drain(id, 0.05)
        assert left is not None
        assert await tried(stage, 1), "free for others"


async def given_up(stage: Stage, id: int) -> bool:
    return any(type == "delivery.failed" for type, _ in await stage.events(id))


class Ticket:
    """A source that shows things."""

    def __init__(self) -> None:
        self.shown: list[tuple[str, str]] = []
        self.before: Callable[[], Awaitable[Any]] | None = None
        self.refusals = 0

    async def acknowledge(self, report: Report) -> Mapping[str, Any] | None:
        if self.refusals:
            self.refusals -= 1
            raise GiveUp("403")
        self.shown.append(("acknowledged", report.type))
        return {"comment": 1}

    async def report(self, report: Report) -> Mapping[str, Any] | None:
        self.shown.append(("reported", report.type))
        return {"comment": 1}


class TestReports:
    async def loop(self, stage: Stage, sources: Mapping[str, Any]) -> Deliveries:
        return await deliveries(stage, Reports(stage.store.outbox, lambda: sources, stage.clock))

    async def test_the_first_word_is_an_acknowledgement_the_rest_are_reports(self, stage: Stage) -> None:
        ticket = Ticket()
        project = await stage.project("api")
        async with running(await self.loop(stage, {"github": ticket})):
            id = await owed(stage, project)
            await settled(stage)
            await stage.queue.cancel(id, by="mona")
            await settled(stage)
        assert ticket.shown == [("acknowledged", "execution.queued"), ("reported", "execution.cancelled")]

    async def test_one_report_covers_the_events_before_it(self, stage: Stage) -> None:
        ticket = Ticket()
        id = await owed(stage, await stage.project("api"))
        await stage.queue.cancel(id, by="mona")
        async with running(await self.loop(stage, {"github": ticket})):
            await settled(stage)
        assert ticket.shown == [("reported", "execution.cancelled")]

    async def test_a_refusal_counts_when_it_has_stood_for_a_while(self, stage: Stage) -> None:
        id = await owed(stage, await stage.project("api"))
        ticket = Ticket()
        ticket.refusals = TRIES + 1
        loop = await self.loop(stage, {"github": ticket})
        for times in range(1, TRIES + 1):
            async with running(loop):
                await until_async(lambda times=times: tried(stage, times))  # type: ignore[misc]
            assert not [type for type, _ in await stage.events(id) if type == "delivery.failed"]
            stage.clock.advance(6 * MINUTE)
            loop = await self.loop(stage, {"github": ticket})
        async with running(loop):
            await until_async(lambda: given_up(stage, id))
        assert not ticket.shown

    async def test_a_source_that_nobody_has_is_waited_for(self, stage: Stage) -> None:
        await owed(stage, await stage.project("api"))
        ticket = Ticket()
        async with running(await self.loop(stage, {"linear": Ticket()})):
            await until_async(lambda: tried(stage, 1))
        ((_, at, said),) = await open_effects(stage)
        assert at == stage.clock.now + MINUTE
        assert said == "source github is not configured on the nodes that run"
        stage.clock.advance(MINUTE)
        async with running(await self.loop(stage, {"github": ticket})):
            await settled(stage)
        assert ticket.shown == [("acknowledged", "execution.queued")]

    async def test_a_task_without_a_ticket_is_told_to_nobody(self, stage: Stage) -> None:
        await stage.task(await stage.project("api"), "T-1")
        assert await open_effects(stage) == []


@pytest.mark.parametrize(("tries", "ms"), [(0, 10_000), (1, 20_000), (4, 160_000), (5, 300_000), (99, 300_000)])
def test_pauses_grow_to_five_minutes_and_are_spread(tries: int, ms: int) -> None:
    assert pause(tries, 0.0) == ms // 2
    assert ms * 0.99 < pause(tries, 0.999) < ms
