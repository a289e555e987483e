"""Who asked to be called back is: signed, in order, again until it is heard, and not for ever."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from pilot.dispatch.deliveries import Deliveries
from pilot.publish.callbacks import REFUSALS
from pilot.publish.patience import PATIENCE, TRIES
from pilot.store import Store, open_store
from tests.adapters.caller import calling
from tests.adapters.hook_server import SECRET, HookServer
from tests.adapters.telegram_stage import until
from tests.store.bed import HOUR, SECOND, Bed, Clock, asked, broken, done

ROOT = Path(__file__).parents[2]


@dataclass
class Caller:
    """A store with one project, and a node that calls back."""

    bed: Bed
    make: Callable[[], Deliveries]

    async def put(self, url: str, **more: Any) -> int:
        return await self.bed.put(await self.bed.project(), callback_url=url, **more)

    async def owed(self) -> list[tuple[int, str]]:
        """What is not delivered: tries and error."""
        rows = await self.bed.rows("SELECT tries, error FROM outbox WHERE delivered_at IS NULL ORDER BY id")
        return [(tries, error or "") for tries, error in rows]

    async def failed(self) -> list[str]:
        """The reasons of what is not delivered any more."""
        rows = await self.bed.rows("SELECT data FROM events WHERE type = 'delivery.failed' ORDER BY id")
        return [str(data) for (data,) in rows]

    async def round(self) -> None:
        """Try what is due, each lane's oldest; wait until it has ended."""
        deliveries = self.make()
        running = asyncio.create_task(deliveries.run())

        async def nothing_due() -> bool:
            now = self.bed.clock()
            return not await self.bed.rows(
                "SELECT 1 FROM outbox o WHERE o.kind = 'callback' AND o.delivered_at IS NULL "
                "AND (o.available_at <= :now OR o.claimed_by IS NOT NULL) AND NOT EXISTS ("
                "SELECT 1 FROM outbox b WHERE b.lane = o.lane AND b.id < o.id AND b.delivered_at IS NULL)",
                now=now,
            )

        await until(nothing_due, "all that is due is tried")
        deliveries.stop()
        await running


@pytest.fixture
def hook() -> Iterator[HookServer]:
    with HookServer() as hook:
        yield hook


@asynccontextmanager
async def caller_at(path: Path, **more: Any) -> AsyncIterator[Caller]:
    clock = Clock()
    async with (
        open_store(f"sqlite:///{path}/pilot.db", clock=clock) as store,
        calling(store, "n1", clock=clock, **more) as make,
    ):
        yield Caller(Bed(store, clock), make)


@pytest.fixture
async def caller(tmp_path: Path) -> AsyncIterator[Caller]:
    async with caller_at(tmp_path) as caller:
        yield caller


async def test_the_end_of_a_task_is_told_signed_and_whole(caller: Caller, hook: HookServer) -> None:
    id = await caller.put(hook.url, title="Paint it hunter2", origin={"source": "github"})
    await caller.bed.queue.finish(done(await caller.bed.take(await caller.bed.project())))
    await caller.round()

    (post,) = hook.posts
    assert post.path == "/news?key=hidden"
    assert post.signed_by(SECRET)
    assert post.headers["x-pilot-event"] == "execution.completed"
    assert post.headers["x-pilot-delivery"].startswith("callback:")
    assert list(post.document) == ["event", "execution"]
    assert post.document["event"] == "execution.completed"
    execution = post.document["execution"]
    assert (execution["id"], execution["status"], execution["title"]) == (id, "completed", "Paint it [redacted]")
    assert execution == {
        **await caller.bed.store.history.document(await caller.bed.queue.get(id)), "title": "Paint it [redacted]"
    }  # fmt: skip


async def test_each_ending_and_each_question_is_told_and_nothing_else(caller: Caller, hook: HookServer) -> None:
    bed, project = caller.bed, await caller.bed.project()
    await bed.put(project)  # asked for nothing
    await bed.run(project)
    await caller.put(hook.url)
    await bed.queue.finish(broken(await bed.take(project)))
    cancelled = await caller.put(hook.url)
    await bed.queue.cancel(cancelled, "ann")
    await caller.put(hook.url)
    await bed.queue.finish(asked(await bed.take(project)))
    await caller.round()

    assert sorted(post.document["event"] for post in hook.posts) == [
        "execution.asked", "execution.cancelled", "execution.failed",
    ]  # fmt: skip
    assert len({post.headers["x-pilot-delivery"] for post in hook.posts}) == 3


async def test_they_come_in_order_even_when_the_first_is_late(caller: Caller, hook: HookServer) -> None:
    bed = caller.bed
    id = await caller.put(hook.url)
    await bed.queue.finish(asked(await bed.take(await bed.project())))
    hook.answers.append((500, {}))
    await caller.round()
    await bed.queue.answer(id, "blue", "ann")
    await bed.queue.finish(done(await bed.take(await bed.project())))
    await caller.round()
    assert len(hook.posts) == 1
    bed.clock.tick(HOUR)
    await caller.round()

    assert [post.document["event"] for post in hook.posts] == [
        "execution.asked", "execution.asked", "execution.completed",
    ]  # fmt: skip
    first, again, _ = (post.headers["x-pilot-delivery"] for post in hook.posts)
    assert first == again


async def ended(caller: Caller, url: str) -> None:
    await caller.put(url)
    await caller.bed.queue.finish(done(await caller.bed.take(await caller.bed.project())))


@pytest.mark.parametrize("status", [404, 410])
async def test_a_receiver_that_is_no_more_is_not_asked_again(caller: Caller, hook: HookServer, status: int) -> None:
    hook.answers.append((status, {}))
    await ended(caller, hook.url)
    await caller.round()

    assert await caller.owed() == []
    (reason,) = await caller.failed()
    assert f"127.0.0.1 answered {status}" in reason
    assert "hidden" not in reason


@pytest.mark.parametrize("status", [301, 307, 400, 401, 422])
async def test_a_refusal_counts_when_it_has_stood(caller: Caller, hook: HookServer, status: int) -> None:
    with HookServer() as other:
        hook.answers += [(status, {"Location": other.url})] * REFUSALS
        await ended(caller, hook.url)
        for _ in range(REFUSALS):
            assert await caller.failed() == []
            await caller.round()
            caller.bed.clock.tick(HOUR)
        assert other.posts == []

    assert await caller.owed() == []
    assert len(await caller.failed()) == 1
    assert len(hook.posts) == REFUSALS


async def test_trouble_is_outlasted_for_a_day(caller: Caller, hook: HookServer) -> None:
    hook.answers += [(503, {})] * 40
    await ended(caller, hook.url)
    begun = caller.bed.clock()
    pauses = []
    while await caller.failed() == []:
        before = len(hook.posts)
        await caller.round()
        assert len(hook.posts) == before + 1
        if await caller.owed():
            due = await caller.bed.value("SELECT available_at FROM outbox WHERE delivered_at IS NULL")
            pauses.append(due - caller.bed.clock())
            caller.bed.clock.tick(max(pauses[-1], 2 * HOUR if len(hook.posts) > 6 else 0))
    assert caller.bed.clock() - begun > PATIENCE
    assert len(hook.posts) > TRIES
    assert pauses[:3] == [5 * SECOND, 10 * SECOND, 20 * SECOND]
    assert "given up after a day: 127.0.0.1 answered 503" in (await caller.failed())[0]


async def test_a_receiver_says_when(caller: Caller, hook: HookServer) -> None:
    hook.answers.append((429, {"Retry-After": "120"}))
    await ended(caller, hook.url)
    await caller.round()
    due = await caller.bed.value("SELECT available_at FROM outbox WHERE delivered_at IS NULL")
    assert due == caller.bed.clock() + 120 * SECOND

    caller.bed.clock.tick(120 * SECOND)
    await caller.round()
    assert len(hook.posts) == 2
    assert await caller.owed() == []


async def test_addresses_inside_are_not_called_and_people_learn_it(tmp_path: Path, hook: HookServer) -> None:
    async with caller_at(tmp_path, private=False) as caller:
        await ended(caller, hook.url)
        await caller.round()

        assert hook.posts == []
        assert await caller.owed() == []
        (reason,) = await caller.failed()
        assert "127.0.0.1 is an address of a private network or of this machine" in reason
        assert "allow_private" in reason
        assert "hidden" not in reason


async def test_a_host_at_which_nobody_answers_holds_up_one_place_at_a_time(tmp_path: Path, hook: HookServer) -> None:
    async with caller_at(tmp_path, timeout=2) as caller:
        with HookServer("127.0.0.2") as silent:
            silent.silence = 30
            await ended(caller, silent.url)
            await caller.round()
            for _ in range(5):
                await ended(caller, silent.url)
            await ended(caller, hook.url)
            await caller.round()
            assert len(silent.posts) == 1  # the others did not even try
            assert len(hook.posts) == 1
            errors = [error for _, error in await caller.owed()]
            assert "127.0.0.2 gave no answer in 2 s" in errors[0]
            assert all("left alone" in error for error in errors[1:])
            assert len(errors) == 6

            silent.silence = 0
            for _ in range(3):
                caller.bed.clock.tick(HOUR)
                await caller.round()
            assert await caller.owed() == []
            assert len({post.headers["x-pilot-delivery"] for post in silent.posts}) == 6


async def test_kill_9_between_the_post_and_its_note_tells_it_again_by_the_same_name(
    tmp_path: Path, hook: HookServer
) -> None:
    hook.silence = 60
    path = tmp_path / "pilot.db"
    async with open_store(f"sqlite:///{path}") as store:
        await _ended(store, hook.url)
        process = subprocess.Popen([sys.executable, "-m", "tests.adapters.caller", str(path)], cwd=ROOT)
        try:
            await until(lambda: hook.posts or process.poll() is not None, "the first POST")
        finally:
            process.kill()
            process.wait()
        hook.silence = 0
        await store.queue.recover(["killed"], "killed")
        async with calling(store, "n2") as make:
            deliveries = make()
            running = asyncio.create_task(deliveries.run())
            await until(lambda: len(hook.posts) == 2, "the second POST")
            deliveries.stop()
            await running
        owed = await store.database.read("SELECT key FROM outbox WHERE delivered_at IS NULL AND kind = 'callback'")
        assert owed == []
    first, second = hook.posts
    assert first.headers["x-pilot-delivery"] == second.headers["x-pilot-delivery"]
    assert first.body == second.body


async def _ended(store: Store, url: str) -> None:
    bed = Bed(store, Clock())
    project = await bed.project()
    await bed.node("n1")
    await bed.put(project, callback_url=url)
    await bed.run(project)


async def test_what_was_pruned_is_told_nobody(caller: Caller, hook: HookServer) -> None:
    await ended(caller, hook.url)
    deliveries = caller.make()
    handler = next(iter(deliveries.handlers.values()))
    (effect,) = await caller.bed.store.outbox.take("n1", tuple(deliveries.handlers), lease=HOUR)

    assert await handler(replace(effect, execution=99)) is None
    assert hook.posts == []
