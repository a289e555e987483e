"""Turns: first come, first served, and none gets lost."""

from __future__ import annotations

import asyncio
from typing import Any

from pilot.dispatch.turns import Turns
from tests.core.stage import Stage, until


async def test_turns_are_taken_in_the_order_of_asking() -> None:
    turns = Turns(2)
    order: list[int] = []

    async def one(n: int) -> None:
        await turns.take()
        order.append(n)
        await asyncio.sleep(0)
        turns.give_back()

    async with asyncio.TaskGroup() as group:
        for n in range(20):
            group.create_task(one(n))

    assert order == list(range(20))


async def test_who_has_had_a_turn_goes_behind_those_that_wait() -> None:
    turns = Turns(1)
    order: list[str] = []

    async def one(name: str) -> None:
        for _ in range(3):
            await turns.take()
            order.append(name)
            await asyncio.sleep(0)
            turns.give_back()

    async with asyncio.TaskGroup() as group:
        for name in "abc":
            group.create_task(one(name))

    assert "".join(order) == "abcabcabc"


async def test_a_turn_says_whether_somebody_waits_for_it() -> None:
    turns = Turns(1)
    await turns.take()
    assert not turns.contended

    waiting = asyncio.create_task(turns.take())
    await until(lambda: turns.contended)
    turns.give_back()
    await waiting
    assert not turns.contended


async def test_one_that_gives_up_waiting_takes_no_turn_along() -> None:
    turns = Turns(1)
    await turns.take()
    first, second = asyncio.create_task(turns.take()), asyncio.create_task(turns.take())
    await asyncio.sleep(0)

    first.cancel()
    turns.give_back()
    async with asyncio.timeout(5):
        await second
    assert not turns.contended

    # The turn was given to it already when it was told to give up.
    third, fourth = asyncio.create_task(turns.take()), asyncio.create_task(turns.take())
    await asyncio.sleep(0)
    turns.give_back()
    third.cancel()
    async with asyncio.timeout(5):
        await fourth
    await asyncio.wait([first, third])
    assert first.cancelled()
    assert third.cancelled()
    assert not turns.contended


async def test_a_turn_is_handed_on_with_what_is_claimed_for_it(stage: Stage) -> None:
    one, two = await stage.project("one"), await stage.project("two")
    await stage.task(two, "T-1")
    ((claimed),) = await stage.queue.claim("n", projects=(two.id,))
    turns = Turns(1)
    assert await turns.take(one.id) is None
    waiting: list[asyncio.Task[Any]] = [asyncio.create_task(turns.take(id)) for id in (one.id, two.id)]
    await until(lambda: len(turns.waiting) == 2)
    assert turns.waiting == (one.id, two.id)

    assert turns.hand(claimed)
    assert await waiting[1] == claimed
    assert not turns.hand(claimed), "nobody waits for it any more"

    turns.give_back()
    assert await waiting[0] is None
    # Given, and given up before it knew: the turn is the next one's.
    gone, last = asyncio.create_task(turns.take(two.id)), asyncio.create_task(turns.take(one.id))
    await until(lambda: len(turns.waiting) == 2)
    assert turns.hand(claimed)
    gone.cancel()
    async with asyncio.timeout(5):
        assert await last is None
