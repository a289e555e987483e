"""The feed: sources are polled, webhooks handed over, and nothing that goes wrong in one stops another."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from pilot.domain.delivery import Arrival, Report
from pilot.domain.errors import NotFound
from pilot.domain.outside import Later, SourcePaused
from pilot.sources import feed as feeding
from pilot.sources.feed import TRIES, Feed
from pilot.store import Store, open_store
from tests.adapters.desks import Clock, desk
from tests.core.stage import until

Step = Callable[[], Any]


class Told:
    """A source that does what it is told, and writes down what it was asked."""

    def __init__(self, name: str = "told", every: float | None = 60.0, *, webhooks: bool = True) -> None:
        self.name = name
        self.every = every
        self.webhooks = webhooks
        self.polls = 0
        self.handled: list[str] = []
        self.on_poll: Callable[[int], None] = lambda _n: None
        self.on_handle: Callable[[Arrival], None] = lambda _arrival: None
        self.slow: asyncio.Event | None = None

    async def poll(self) -> None:
        self.polls += 1
        self.on_poll(self.polls)
        if self.slow is not None:
            await self.slow.wait()

    def verify(self, headers: Mapping[str, str], body: bytes) -> Any:
        if not self.webhooks:
            raise NotFound("none")

    async def handle(self, arrival: Arrival) -> None:
        self.handled.append(str(arrival.payload["n"]))
        self.on_handle(arrival)
        if self.slow is not None:
            await self.slow.wait()

    async def acknowledge(self, report: Report) -> None:
        return None

    async def report(self, report: Report) -> None:
        return None


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def store(tmp_path: Path, clock: Clock) -> AsyncIterator[Store]:
    async with open_store(f"sqlite:///{tmp_path}/pilot.db", clock=clock) as store:
        yield store


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeding, "SWEEP", 0.05)
    monkeypatch.setattr(feeding, "GRACE", 0.5)
    monkeypatch.setattr(feeding, "LEASE", 0.3)


@asynccontextmanager
async def running(store: Store, *sources: Told, node: str = "node-1") -> AsyncIterator[Feed]:
    feed = Feed(sources, desk(store, (), node=node), jitter=lambda: 0.5)
    task = asyncio.create_task(feed.run())
    try:
        yield feed
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def arrive(store: Store, *numbers: int, source: str = "told") -> None:
    for n in numbers:
        body = json.dumps({"n": n})
        assert await store.inbox.store(source, f"id-{n}", f"digest-{n}", "issues", "labeled", body)


async def health(store: Store, name: str = "told") -> tuple[Any, ...] | None:
    rows = await store.database.read("SELECT status, reason, until FROM sources WHERE name = :name", {"name": name})
    return tuple(rows[0]) if rows else None


async def shown(store: Store, status: str, name: str = "told") -> tuple[Any, ...]:
    found = None
    for _ in range(400):
        found = await health(store, name)
        if found is not None and found[0] == status:
            return found
        await asyncio.sleep(0.01)
    raise AssertionError(f"{name} is {found}, not {status}")


async def waiting(store: Store) -> int:
    ((count,),) = await store.database.read("SELECT count(*) FROM inbox WHERE handled_at IS NULL")
    return int(count)


# Polls


async def test_a_source_is_polled_at_once_and_then_at_its_pace(store: Store) -> None:
    source, rare = Told(every=0.05), Told("rare", every=60)
    async with running(store, source, rare):
        await until(lambda: source.polls > 3)
        assert rare.polls == 1
        assert await shown(store, "ok", "rare") == ("ok", "", None)


async def test_of_two_nodes_one_polls_and_the_other_takes_over(store: Store, clock: Clock) -> None:
    one, other = Told(every=0.02), Told(every=0.02)
    async with running(store, one):
        await until(lambda: one.polls > 1)
        async with running(store, other, node="node-2"):
            before = one.polls
            await until(lambda: one.polls > before + 5)
            assert other.polls == 0
    async with running(store, other, node="node-2"):
        await until(lambda: other.polls > 1, "a feed that ends gives its duty back")


async def test_a_node_that_went_silent_is_followed_by_another(store: Store, clock: Clock) -> None:
    assert await store.duties.hold("source:told", "dead", 30_000)
    source = Told(every=0.02)
    async with running(store, source):
        await asyncio.sleep(0.25)
        assert source.polls == 0
        clock.tick(30_001)
        await until(lambda: source.polls > 1)


async def test_a_duty_is_taken_over_when_its_lease_ends_though_nobody_looks_so_often(
    store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feeding, "LEASE", 3600.0)  # a node that has none looks every 20 minutes
    monkeypatch.setattr(feeding, "SOON", 0.01)
    assert await store.duties.hold("source:told", "dead", 150)
    source = Told(every=0.02)
    async with running(store, source):
        await asyncio.sleep(0.05)
        assert source.polls == 0
        clock.tick(151)
        await until(lambda: source.polls > 1)


async def test_who_waits_for_a_duty_writes_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    assert await store.duties.hold("source:told", "another", 60_000)
    written, write = [], store.database.write

    async def seen(operation: Any, item: Any) -> Any:
        written.append(operation.__name__)
        return await write(operation, item)

    monkeypatch.setattr(store.database, "write", seen)
    async with running(store, Told(every=0.02)):
        await asyncio.sleep(0.35)  # it looks every 100 ms
        assert "_hold" not in written


async def test_a_long_poll_keeps_its_duty(store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeding, "LEASE", 3.0)
    source, other = Told(every=0.02), Told(every=0.02)
    source.slow = asyncio.Event()
    async with running(store, source):
        await until(lambda: source.polls == 1)
        clock.tick(2500)
        while await store.database.read("SELECT until FROM duties") != [(clock() + 3000,)]:
            await asyncio.sleep(0.02)  # it is renewed at a third of its time
        clock.tick(2500)
        async with running(store, other, node="node-2"):
            await asyncio.sleep(0.1)
            assert other.polls == 0
        source.slow.set()


async def test_a_poll_whose_duty_is_anothers_is_ended(store: Store) -> None:
    source = Told(every=0.02)
    source.slow = asyncio.Event()
    async with running(store, source):
        await until(lambda: source.polls == 1)
        await store.duties.release("source:told", "node-1")
        assert await store.duties.hold("source:told", "node-2", 60_000)
        assert "too long" in (await shown(store, "paused"))[1]


async def test_a_paused_source_rests_until_then_and_says_so(store: Store, clock: Clock) -> None:
    source = Told(every=0.01)

    def limited(n: int) -> None:
        if n == 1:
            raise SourcePaused("the rate limit is used up", clock() + 2000)

    source.on_poll = limited
    async with running(store, source) as feed:
        assert await shown(store, "paused") == ("paused", "the rate limit is used up", clock() + 2000)
        feed.hurry("told")
        await asyncio.sleep(0.1)
        assert source.polls == 1
        await until(lambda: source.polls > 2)
        assert (await shown(store, "ok"))[1:] == ("", None)


async def test_what_only_a_person_can_mend_says_how(store: Store) -> None:
    source = Told(every=0.01)

    def refused(_: int) -> None:
        raise SourcePaused("bad credentials", remedy="put a good token in")

    source.on_poll = refused
    async with running(store, source):
        status, reason, until_ = await shown(store, "failing")
        assert (status, reason) == ("failing", "bad credentials; put a good token in")
        assert until_ is not None


async def test_a_broken_source_is_no_others_trouble(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeding, "FIRST_PAUSE", 0.01)
    broken, sound = Told("broken", every=0.01), Told("sound", every=0.01)

    def bug(n: int) -> None:
        if n < 8:
            raise ZeroDivisionError("a bug")

    broken.on_poll = bug
    async with running(store, broken, sound):
        await until(lambda: sound.polls > 3)
        assert "ZeroDivisionError: a bug" in (await shown(store, "failing", "broken"))[1]
        await shown(store, "ok", "broken")


async def test_pauses_grow(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeding, "FIRST_PAUSE", 0.05)
    source, at = Told(every=0.01), []

    def bug(_: int) -> None:
        at.append(asyncio.get_running_loop().time())
        raise OSError("down")

    source.on_poll = bug
    async with running(store, source):
        await until(lambda: len(at) == 4)
    gaps = [b - a for a, b in itertools.pairwise(at)]
    assert gaps[0] >= 0.04
    assert gaps[1] >= 0.09
    assert gaps[2] >= 0.19


async def test_a_look_can_be_asked_for(store: Store) -> None:
    source = Told(every=600)
    async with running(store, source) as feed:
        await until(lambda: source.polls == 1)
        feed.hurry("told")
        await until(lambda: source.polls == 2)


async def test_a_source_with_a_loop_of_its_own_is_kept_running(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeding, "FIRST_PAUSE", 0.02)

    class Listener(Told):
        runs, cancelled = 0, 0

        async def run(self) -> None:
            self.runs += 1
            if self.runs < 3:
                raise SourcePaused("taken by another")
            try:
                await asyncio.Event().wait()
            finally:
                self.cancelled += 1

    source = Listener(every=None, webhooks=False)
    async with running(store, source):
        assert (await shown(store, "paused"))[1] == "taken by another"
        await until(lambda: source.runs == 3)
        assert source.polls == 0
    assert source.cancelled == 1


# Webhooks


async def test_webhooks_are_handed_over_in_order_and_at_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeding, "SWEEP", 60.0)
    source = Told()
    await arrive(store, 1, 2, 3, 4, 5, 6)
    async with running(store, source) as feed:
        await until(lambda: len(source.handled) == 6)
        await arrive(store, 7)
        feed.nudge("told")
        await until(lambda: len(source.handled) == 7)
    assert source.handled == ["1", "2", "3", "4", "5", "6", "7"]
    assert await waiting(store) == 0


async def test_a_lost_signal_costs_a_moment_and_no_webhook(store: Store) -> None:
    source = Told()
    async with running(store, source):
        await arrive(store, 1)
        await until(lambda: source.handled == ["1"])


async def test_a_poisoned_webhook_holds_up_nobody_and_is_put_aside(
    store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Told()

    def poison(arrival: Arrival) -> None:
        if arrival.payload["n"] == 1:
            raise ZeroDivisionError("poison")

    source.on_handle = poison
    await arrive(store, 1, 2)
    async with running(store, source):
        await until(lambda: source.handled == ["1", "2"])
        for tries in range(2, TRIES + 1):
            clock.tick(400_000)
            await until(lambda tries=tries: source.handled.count("1") == tries)  # type: ignore[misc]
        clock.tick(4_000_000)
        await asyncio.sleep(0.2)
    assert source.handled.count("1") == TRIES
    assert await waiting(store) == 0


async def test_what_can_only_be_done_later_is_done_later_however_often(store: Store, clock: Clock) -> None:
    source = Told()

    def later(_: Arrival) -> None:
        if len(source.handled) <= TRIES + 2:
            raise Later("GitHub is down", clock() + 1000)

    source.on_handle = later
    await arrive(store, 1)
    async with running(store, source):
        for tries in range(1, TRIES + 4):
            await until(lambda tries=tries: len(source.handled) == tries)  # type: ignore[misc]
            await asyncio.sleep(0.1)
            assert len(source.handled) == tries
            clock.tick(1000)
        for _ in range(200):
            if await waiting(store) == 0:
                break
            await asyncio.sleep(0.01)
    assert await waiting(store) == 0


async def test_a_paused_source_keeps_its_webhooks(store: Store, clock: Clock) -> None:
    source, paused = Told(every=None), [True]

    def limited(_: Arrival) -> None:
        if paused[0]:
            raise SourcePaused("the rate limit is used up", clock() + 200)

    source.on_handle = limited
    await arrive(store, 1, 2, 3)
    async with running(store, source):
        await shown(store, "paused")
        assert source.handled == ["1"]
        paused[0] = False
        clock.tick(100_000)  # and the lease of those that were in hand
        await until(lambda: sorted(source.handled[1:]) == ["1", "2", "3"])
    assert await waiting(store) == 0


async def test_what_is_being_done_is_done_to_its_end_at_a_stop(store: Store) -> None:
    source = Told(every=None)
    source.slow = asyncio.Event()
    await arrive(store, 1)
    async with running(store, source):
        await until(lambda: source.handled == ["1"])
        asyncio.get_running_loop().call_later(0.1, source.slow.set)
    assert await waiting(store) == 0


async def test_what_does_not_end_is_broken_off_and_free_for_another(store: Store) -> None:
    source, other = Told(every=None), Told(every=None)
    source.slow = asyncio.Event()
    await arrive(store, 1)
    async with running(store, source):
        await until(lambda: source.handled == ["1"])
    async with running(store, other, node="node-2"):
        await until(lambda: other.handled == ["1"], "without waiting for the lease")


async def test_a_reload_changes_the_sources_and_loses_nothing(store: Store) -> None:
    source, new, gone = Told(every=0.01), Told(every=0.01), Told("gone", every=0.01)
    async with running(store, source, gone) as feed:
        await until(lambda: source.polls > 1)
        feed.reconfigure([new])
        await arrive(store, 1)
        await until(lambda: new.polls > 1 and new.handled == ["1"])
        before = source.polls, gone.polls
        await asyncio.sleep(0.05)
        assert (source.polls, gone.polls) == before


async def test_a_source_without_webhooks_gets_none(store: Store) -> None:
    source = Told(webhooks=False)
    await arrive(store, 1)
    async with running(store, source) as feed:
        feed.nudge("told")
        await until(lambda: source.polls == 1)
        await asyncio.sleep(0.1)
    assert source.handled == []
