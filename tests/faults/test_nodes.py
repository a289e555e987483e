"""Nothing is lost and nothing is done twice: nodes that die, stand still or are cut off, each on its own machine."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import pairwise

import pytest

from tests.faults.network import Partition, partition, possible
from tests.faults.rig import Member, Rig
from tests.postgres import Cluster, name_of

LEASE = 3.0
TAKEOVER = LEASE + 2.0
"""Seconds after which others have what a node had that is no more."""
STEPS = 4
"""In each of these it is late by as much as its machine is: the lease is seen to end, ended, claimed, begun."""


@pytest.fixture
def way(postgres: Cluster) -> Iterator[Partition]:
    """To the server, by a proxy that may fall silent."""
    with partition(str(postgres.folder / f".s.PGSQL.{postgres.port}"), by_network=False) as made:
        yield made


def through(way: Partition, postgres: Cluster, url: str) -> str:
    """The same store, that way."""
    return postgres.url(name_of(url), port=way.proxy.port).replace("127.0.0.1", way.proxy.host)


async def taken_over(rig: Rig, mine: list[int], victim: Member, since: int, others: set[str]) -> None:
    """Within its lease and two seconds: what the victim had is begun by somebody who is well."""
    seconds = await rig.taken_over(mine, since, others)
    print(f"{len(mine)} taken over from {victim.name} after {seconds:.2f} s; lease {LEASE:g} s, lag {rig.lag:.2f} s")
    assert seconds < TAKEOVER + STEPS * rig.lag


async def test_what_a_killed_node_of_two_had_is_taken_over_and_done_once(rig: Rig, url: str) -> None:
    rig.follow()
    for _ in range(2):
        rig.start(url, lease=LEASE, tasks=4.0, projects=2)
    await rig.ready()
    ids = await rig.hold()
    working = rig.at_work(ids)
    victim = next(member for member in rig.members if member.name in working.values())
    mine = [id for id, name in working.items() if name == victim.name]
    victim.kill()
    assert victim.gone is not None
    await taken_over(rig, mine, victim, victim.gone, {victim.name})
    turns = [entry["at"] for entry in rig.diary("duty")]
    await rig.until(lambda: rig.diary("duty")[-1]["at"] > turns[-1], "the duty goes on")
    assert max(b - a for a, b in pairwise(turns)) / 1e9 < TAKEOVER + STEPS * rig.lag
    for id, name in working.items():
        if name != victim.name:
            await rig.store.queue.cancel(id, "ann")
    await rig.settle()
    story = await rig.account()
    assert "execution.lost" in {fact.type for fact in story.log}


async def test_of_four_nodes_one_stands_still_one_is_cut_off_and_one_is_killed(
    rig: Rig, url: str, way: Partition, postgres: Cluster
) -> None:
    rig.follow()
    still = rig.start(url, lease=LEASE, tasks=1.0, most=1)
    cut = rig.start(through(way, postgres, url), lease=LEASE, tasks=1.0, most=1)
    killed = rig.start(url, lease=LEASE, tasks=1.0, most=1)
    await rig.ready()
    ids = await rig.hold(seconds=6.0, projects=3)
    await rig.ready(rig.start(url, lease=LEASE, tasks=2.0))
    working = rig.at_work(ids)  # on a busy machine one may have given up by then
    way.begin()
    since = time.monotonic_ns()
    still.stop()
    killed.kill()
    victims = (still, cut, killed)
    for victim in victims:
        mine = [id for id, name in working.items() if name == victim.name]
        if mine:
            await taken_over(rig, mine, victim, since, {member.name for member in victims})
    await rig.until(lambda: time.monotonic_ns() - since > 6.1e9, "the first attempts' time is over")
    still.go_on()
    way.end()
    healed = time.monotonic_ns()
    await rig.until(
        lambda: (
            {still.name, cut.name} <= {e["node"] for e in rig.diary("duty", "ended", "delivered") if e["at"] > healed}
        ),
        "they work again",
    )
    await rig.settle()
    story = await rig.account()
    assert {fact.execution for fact in story.log if fact.type == "execution.lost"} >= set(working)


async def test_a_node_that_loses_its_network_ends_its_agents_before_another_takes_over(
    rig: Rig, url: str, postgres: Cluster
) -> None:
    rig.follow()
    with partition(str(postgres.folder / f".s.PGSQL.{postgres.port}"), by_network=possible()) as way:
        print(f"cut off by {way.how}")
        victim = rig.start(through(way, postgres, url), prefix=way.prefix, lease=LEASE, tasks=1.0)
        await rig.ready()
        ids = await rig.hold(projects=2)
        await rig.ready(rig.start(url, lease=LEASE, tasks=1.0))
        mine = list(rig.at_work(ids))
        since = time.monotonic_ns()
        way.begin()
        if mine:
            await taken_over(rig, mine, victim, since, {victim.name})
        way.end()
        healed = time.monotonic_ns()
        await rig.until(
            lambda: victim.name in {e["node"] for e in rig.diary("ended", "duty", "delivered") if e["at"] > healed},
            "it works again",
        )
        await rig.settle()
        await rig.account()
