"""Nothing is lost and nothing is done twice: nodes that die, stand still or are cut off, each on its own machine."""

from __future__ import annotations

import time
from itertools import pairwise

from tests.faults.network import partition, possible
from tests.faults.rig import Rig
from tests.postgres import Cluster, name_of

LEASE = 2.0
TAKEOVER = LEASE + 2.0
"""Seconds after which others have what a node had that is no more."""


async def test_what_a_killed_node_had_is_taken_over_and_done_once(rig: Rig, url: str) -> None:
    rig.follow()
    one, _ = (rig.start(url, lease=LEASE, tasks=15.0, most=2) for _ in range(2))
    await rig.ready()
    ids = await rig.hold()
    mine = [id for id, name in rig.at_work(ids).items() if name == one.name]
    assert len(mine) == 2
    await rig.ready(rig.start(url, lease=LEASE))
    one.kill()
    assert one.gone is not None
    assert await rig.taken_over(mine, one.gone, [one.name]) < TAKEOVER
    turns = [entry["at"] for entry in rig.diary("duty")]
    await rig.until(lambda: rig.diary("duty")[-1]["at"] > turns[-1], "the duty goes on")
    assert max(b - a for a, b in pairwise(turns)) / 1e9 < TAKEOVER
    for id in set(ids) - set(mine):
        await rig.store.queue.cancel(id, "ann")
    await rig.settle()
    story = await rig.account()
    assert {fact.execution for fact in story.log if fact.type == "execution.lost"} >= set(mine)


async def test_a_node_that_stood_still_beyond_its_lease_changes_nothing_any_more(rig: Rig, url: str) -> None:
    rig.follow()
    for n in range(4):
        rig.start(url, lease=LEASE, tasks=5.0, most=2 if n else 4)
    await rig.ready()
    ids = await rig.hold(seconds=3.0)
    working = rig.at_work(ids)
    victim = next(member for member in rig.members if member.name in working.values())
    mine = [id for id, name in working.items() if name == victim.name]
    victim.stop()
    assert await rig.taken_over(mine, victim.still[0], [victim.name]) < TAKEOVER
    await rig.until(lambda: time.monotonic_ns() - victim.still[0] > 3.2e9, "its agents are done as soon as it goes on")
    going_on = time.monotonic_ns()
    victim.go_on()

    def late() -> set[int]:
        return {e["id"] for e in rig.diary("late") if e["node"] == victim.name and e["at"] > going_on}

    def stopped() -> set[int]:
        return {e["id"] for e in rig.diary("stopped") if e["node"] == victim.name and e["at"] > going_on}

    await rig.until(lambda: set(mine) <= late() | stopped(), "it tries to write, and is told that it is late")
    await rig.until(lambda: rig.diary("began")[-1]["at"] > going_on, "work goes on")
    await rig.settle()
    await rig.account()


async def test_a_node_that_is_cut_off_ends_its_agents_before_others_take_over(
    rig: Rig, url: str, server: Cluster
) -> None:
    rig.follow()
    name, target = name_of(url), ("127.0.0.1", server.port)
    with partition(target, by_network=False) as first, partition(target, by_network=possible()) as second:
        ways = {}
        for way in (first, second):
            host = way.proxy.host
            there = server.url(name, port=way.proxy.port).replace("127.0.0.1", host)
            ways[rig.start(there, prefix=way.prefix, lease=LEASE, tasks=5.0, most=2).name] = way
        rig.start(url, lease=LEASE, tasks=5.0)
        await rig.ready()
        ids = await rig.hold()
        for victim, way in ways.items():
            print(f"{victim} is cut off by {way.how}")
            mine = [id for id, node in rig.at_work(ids).items() if node == victim]
            since = time.monotonic_ns()
            way.begin()
            if mine:
                assert await rig.taken_over(mine, since, [victim]) < TAKEOVER
            else:
                await rig.until(lambda since=since: time.monotonic_ns() - since > LEASE * 1e9, "its lease ends")  # type: ignore[misc]
            way.end()
        healed = time.monotonic_ns()
        for id in set(ids):
            await rig.store.queue.cancel(id, "ann")
        await rig.until(
            lambda: {e["node"] for e in rig.diary("ended") if e["at"] > healed} >= ways.keys(), "they work again"
        )
        await rig.settle()
        await rig.account()
