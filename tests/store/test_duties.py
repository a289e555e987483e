"""Duties: one node of all at a time, also when it dies; and what it has learnt goes on to the next."""

from __future__ import annotations

import asyncio

from tests.store.bed import MINUTE, Bed


async def test_one_node_has_a_duty_until_its_time_is_over(store: Bed, other: Bed) -> None:
    duties, others = store.store.duties, other.store.duties

    taken = await asyncio.gather(duties.hold("poll", "n1", MINUTE), others.hold("poll", "n2", MINUTE))

    assert sorted(taken) == [False, True]
    first, second = ("n1", "n2") if taken[0] else ("n2", "n1")
    store.clock.tick(MINUTE - 1)
    assert not await duties.hold("poll", second, MINUTE)
    assert await duties.hold("poll", first, MINUTE)  # kept: from now on
    store.clock.tick(MINUTE - 1)
    assert not await duties.hold("poll", second, MINUTE)
    store.clock.tick(1)
    assert await duties.hold("poll", second, MINUTE)
    assert not await duties.hold("poll", first, MINUTE)
    assert await duties.hold("another", first, MINUTE)


async def test_what_was_remembered_is_the_next_ones(store: Bed) -> None:
    duties = store.store.duties
    assert await duties.recall("poll") == {}
    assert not await duties.remember("poll", "n1", {"etag": "x"})  # never taken

    await duties.hold("poll", "n1", MINUTE)
    assert await duties.remember("poll", "n1", {"etag": "x", "seen": [1, 2]})
    store.clock.tick(2 * MINUTE)
    assert await duties.remember("poll", "n1", {"etag": "y"})  # late, and nobody else's yet
    await duties.hold("poll", "n2", MINUTE)

    assert await duties.recall("poll") == {"etag": "y"}
    assert not await duties.remember("poll", "n1", {"etag": "stale"})
    assert await duties.recall("poll") == {"etag": "y"}


async def test_a_released_duty_is_free_at_once(store: Bed) -> None:
    duties = store.store.duties
    await duties.hold("poll", "n1", MINUTE)
    await duties.release("poll", "n2")  # not its own
    assert not await duties.hold("poll", "n2", MINUTE)

    await duties.release("poll", "n1")

    assert await duties.hold("poll", "n2", MINUTE)


async def test_a_source_is_as_it_was_last_seen(store: Bed) -> None:
    health, clock = store.store.health, store.clock
    columns = "SELECT status, reason, until, last_poll, changed_at FROM sources WHERE name = 'github'"

    await health.saw("github", "ok")
    first = clock.now
    clock.tick(MINUTE)
    await health.saw("github", "ok")
    assert await store.rows(columns) == [("ok", "", None, first + MINUTE, first)]
    clock.tick(MINUTE)
    await health.saw("github", "paused", reason="rate limit", until=clock.now + MINUTE)
    assert await store.rows(columns) == [("paused", "rate limit", clock.now + MINUTE, first + MINUTE, clock.now)]
