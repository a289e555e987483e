"""Workers that wait for work: woken at once, together, and what nobody is there to take is not taken."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from pilot.domain.errors import StoreError
from pilot.domain.execution import Status
from pilot.domain.work import Claim, Wanted
from pilot.store import open_store
from pilot.store.pool import Ask
from pilot.store.waiters import TIMER
from pilot.store.work_queue import GONE, SqlWorkQueue
from tests.store.bed import HOUR, MINUTE, Bed, done

LONG = 20.0
"""Seconds that nobody waits if all is well."""


async def until(condition: Callable[[], bool]) -> None:
    """Wait for it, not for luck."""
    async with asyncio.timeout(LONG):
        while not condition():
            await asyncio.sleep(0.002)


def waiting(work: SqlWorkQueue) -> int:
    """How many wait."""
    return len(work._waiters._waiting)


def counted(work: SqlWorkQueue) -> list[int]:
    """How many asks each claim of the store had, from now on."""
    sizes: list[int] = []
    operation = work._pool.__call__

    class Counting:
        def __call__(self, asks: Sequence[Ask], now: int, **more: Any) -> Any:
            sizes.append(len(asks))
            return operation(asks, now, **more)

        def __getattr__(self, name: str) -> Any:
            return getattr(pool, name)

    pool = work._pool
    work._pool = Counting()  # type: ignore[assignment]
    return sizes


@pytest.fixture
async def work(store: Bed) -> SqlWorkQueue:
    return store.store.work


async def test_who_waits_gets_what_comes(store: Bed, work: SqlWorkQueue) -> None:
    api = await store.project()
    asking = asyncio.create_task(work.claim("w", wait=LONG))
    await until(lambda: waiting(work) == 1)
    began = time.monotonic()

    id = await store.put(api)
    (claim,) = await asking

    assert claim.execution.id == id
    assert time.monotonic() - began < TIMER / 2, "a signal woke it, not the timer"


async def test_another_process_wakes_who_waits(store: Bed, other: Bed, work: SqlWorkQueue) -> None:
    api = await store.project()
    asking = asyncio.create_task(work.claim("w", wait=LONG))
    await until(lambda: waiting(work) == 1)
    began = time.monotonic()

    id = await other.put(api)
    (claim,) = await asking

    assert claim.execution.id == id
    assert time.monotonic() - began < TIMER / 2


async def test_a_lost_signal_costs_a_second_at_most(store: Bed, other: Bed, work: SqlWorkQueue) -> None:
    api = await store.project()
    work._waiters.listen = lambda _listener: lambda: None
    asking = asyncio.create_task(work.claim("w", wait=LONG))
    await until(lambda: waiting(work) == 1)

    id = await other.put(api)

    assert [claim.execution.id for claim in await asking] == [id]


@pytest.mark.parametrize("how", ["time", "lease", "slot", "pause"])
async def test_whatever_lets_it_run_wakes_who_waits(store: Bed, work: SqlWorkQueue, how: str) -> None:
    api = await store.project()
    await store.node()
    if how == "time":
        await store.put(api, available_at=store.clock.now + HOUR)
    else:
        await store.put(api)
    if how == "lease":
        await work.claim("dead")
    running = await store.take(api) if how == "slot" else None
    if running is not None:
        await store.put(api)
    if how == "pause":
        await store.queue.pause(api.id, "me", "")
    asking = asyncio.create_task(work.claim("w", wait=LONG))
    await until(lambda: waiting(work) == 1)

    store.clock.tick(HOUR)
    if running is not None:
        await store.queue.finish(done(running))
    if how == "pause":
        await store.queue.resume(api.id)

    assert len(await asking) == 1


async def test_nothing_in_time_is_an_answer(store: Bed, work: SqlWorkQueue) -> None:
    assert await work.claim("w", wait=0.05) == []

    assert waiting(work) == 0


async def test_five_hundred_that_wait_do_not_all_ask_the_store(store: Bed, work: SqlWorkQueue) -> None:
    api = await store.project()
    asking = [asyncio.create_task(work.claim(f"w{n}", wait=LONG)) for n in range(500)]
    await until(lambda: waiting(work) == 500)
    claims = counted(work)

    id = await store.put(api)
    (first,), rest = await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)

    assert [claim.execution.id for claim in first.result()] == [id]
    assert len(claims) <= 2
    await work.drain()
    assert all(task.result() == [] for task in (await asyncio.wait(rest))[0])


async def test_who_waits_for_something_else_is_not_woken_by_it(store: Bed, work: SqlWorkQueue) -> None:
    api = await store.project()
    asking = asyncio.create_task(work.claim("w", wanted=Wanted(lanes=(2,)), wait=LONG))
    await until(lambda: waiting(work) == 1)
    claims = counted(work)
    await store.put(api, lane=1)
    await asyncio.sleep(0.05)

    assert claims == []
    mine = await store.put(api, lane=2)
    assert [claim.execution.id for claim in await asking] == [mine]


async def test_who_came_first_is_served_first(store: Bed, work: SqlWorkQueue) -> None:
    api, web = await store.project("api"), await store.project("web")
    asking = []
    for n in range(3):
        asking.append(asyncio.create_task(work.claim(f"w{n}", wait=LONG)))
        await until(lambda: waiting(work) == len(asking))

    first = await store.put(api)
    assert [claim.execution.id for claim in await asking[0]] == [first]
    second = await store.put(web)
    assert [claim.execution.id for claim in await asking[1]] == [second]
    await work.drain()
    assert await asking[2] == []


async def test_who_leaves_while_it_waits_has_taken_nothing(store: Bed, work: SqlWorkQueue) -> None:
    api = await store.project()
    asking = asyncio.create_task(work.claim("w", wait=LONG))
    await until(lambda: waiting(work) == 1)
    asking.cancel()
    await asyncio.wait([asking])

    id = await store.put(api)

    assert waiting(work) == 0
    assert (await store.queue.get(id)).attempt == 0
    assert [claim.execution.id for claim in await work.claim("other")] == [id]


def slowed(work: SqlWorkQueue) -> tuple[asyncio.Event, asyncio.Event]:
    """From now on what it has claimed comes only after the second; the first: it is claimed."""
    take, begun, go = work._waiters.take, asyncio.Event(), asyncio.Event()

    async def slowly(asks: Sequence[Ask]) -> list[list[Claim]]:
        found = await take(asks)
        begun.set()
        await go.wait()
        return found

    work._waiters.take = slowly
    return begun, go


@pytest.mark.parametrize("wait", [0.0, LONG])
async def test_who_leaves_while_it_claims_gives_it_back(store: Bed, work: SqlWorkQueue, wait: float) -> None:
    api = await store.project()
    id = 0 if wait else await store.put(api)
    begun, go = slowed(work) if wait else (asyncio.Event(), asyncio.Event())
    asking = asyncio.create_task(work.claim("w", wait=wait))
    if wait:
        await until(lambda: waiting(work) == 1)
        id = await store.put(api)
        await begun.wait()
    else:
        await asyncio.sleep(0)  # its claim is on its way
    asking.cancel()
    await asyncio.wait([asking])
    go.set()

    async with asyncio.timeout(LONG):
        while (await store.queue.get(id)).attempt == 0 or (await store.queue.get(id)).status is Status.RUNNING:
            await asyncio.sleep(0.002)
    row = await store.queue.get(id)
    assert (row.status, row.reason, row.failures) == (Status.QUEUED, GONE, 0)
    assert [claim.execution.id for claim in await work.claim("other")] == [id]


async def test_a_claim_that_is_on_its_way_when_its_time_is_over_is_not_lost(store: Bed, work: SqlWorkQueue) -> None:
    api = await store.project()
    begun, go = slowed(work)
    asking = asyncio.create_task(work.claim("w", wait=0.3))
    await until(lambda: waiting(work) == 1)
    id = await store.put(api)
    await begun.wait()
    await asyncio.sleep(0.35)
    assert not asking.done()
    go.set()

    assert [claim.execution.id for claim in await asking] == [id]


async def test_a_claim_that_brings_nothing_after_its_time_is_an_answer(work: SqlWorkQueue) -> None:
    begun, go = asyncio.Event(), asyncio.Event()

    async def worthwhile(_asks: Sequence[Ask]) -> bool:
        return True

    async def nothing(asks: Sequence[Ask]) -> list[list[Claim]]:
        begun.set()
        await go.wait()
        return [[] for _ in asks]

    work._waiters.worthwhile, work._waiters.take = worthwhile, nothing
    asking = asyncio.create_task(work.claim("w", wait=0.05))
    await begun.wait()
    await asyncio.sleep(0.1)
    assert not asking.done()
    go.set()

    async with asyncio.timeout(LONG):
        assert await asking == []


async def test_who_waits_is_told_when_the_store_can_not_be_read(store: Bed, work: SqlWorkQueue) -> None:
    async def broken(_asks: Sequence[Ask]) -> bool:
        raise StoreError("can't read")

    work._waiters.worthwhile = broken

    with pytest.raises(StoreError, match="can't read"):
        await work.claim("w", wait=LONG)


async def test_a_store_that_closes_keeps_nobody_waiting(url: str) -> None:
    async with open_store(url) as store:
        asking = asyncio.create_task(store.work.claim("w", wait=LONG))
        await until(lambda: waiting(store.work) == 1)

    assert await asking == []


async def test_after_the_drain_nobody_waits_but_work_is_given(store: Bed, work: SqlWorkQueue) -> None:
    await work.drain()
    began = time.monotonic()

    assert await work.claim("w", wait=LONG) == []

    assert time.monotonic() - began < LONG / 2
    id = await store.put(await store.project())
    assert [claim.execution.id for claim in await work.claim("w", wait=LONG)] == [id]


async def test_who_waits_is_known_for_as_long(store: Bed, work: SqlWorkQueue) -> None:
    asking = asyncio.create_task(work.claim("w", lease=1000, wait=60))
    await until(lambda: waiting(work) == 1)

    (node,) = (await store.store.history.status(store.clock.now + MINUTE))["nodes"]

    assert (node["id"], node["kind"], node["state"]) == ("worker:w", "worker", "up")
    await work.drain()
    await asking
