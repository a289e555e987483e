"""Turns: first come, first served, and none gets lost."""

from __future__ import annotations

import asyncio

from pilot.dispatch.turns import Turns
from tests.core.stage import until


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
