"""What a node takes for now, and the time at which it is written: behind the lock, by the server's clock.

On PostgreSQL the first is a few ms off, and late by as long as the lock was waited for. Nothing may hang on it.
"""

from __future__ import annotations

import pytest

from pilot.domain.budget import DAY, Budget
from pilot.domain.outcome import Ending, Outcome
from tests.store.bed import HOUR, MINUTE, SECOND, START, Bed, interrupted, used
from tests.store.test_budget import MIDNIGHT, money, projects

AHEAD, BEHIND = 3, -5 * SECOND


def off(store: Bed, ms: int) -> None:
    """From now on its operations are made ready at another time than they are written."""
    store.database.clock = lambda: store.clock() + ms


@pytest.mark.parametrize("how", ["finished", "lost", "released"])
async def test_what_goes_on_at_once_is_due_at_once(store: Bed, how: str) -> None:
    """Or what came behind it would go first."""
    api = await store.project()
    await store.node()
    first, _ = [await store.put(api) for _ in range(2)]
    off(store, AHEAD)
    follows = await store.put(api, after=(first,))
    if how == "finished":
        await store.queue.finish(interrupted(await store.take(api)))
    elif how == "lost":
        await store.store.work.claim("w", max=1, lease=SECOND)
        store.clock.tick(2 * SECOND)
    else:
        (claim,) = await store.store.work.claim("w", max=1, lease=SECOND)
        await store.store.work.release(claim.execution.id, "w", claim.fence)

    (claim,) = await store.store.work.claim("x", max=1, lease=HOUR)
    await store.store.work.complete(claim.execution.id, "x", claim.fence, Outcome(ending=Ending.DONE))

    assert claim.execution.id == first
    assert await store.value("SELECT due FROM executions WHERE id = :id", id=follows) == 1


async def test_money_is_of_the_day_in_which_the_attempt_began(store: Bed) -> None:
    (api,) = await projects(store, 1, Budget(5.0, 8.0))
    store.clock.now = MIDNIGHT - 1
    off(store, AHEAD)

    await store.queue.finish(used(await store.take(api), 1, 1, 2.0))

    assert await money(store) == [(2, 0)]


async def test_a_day_that_is_used_up_gives_nothing_before_its_end(store: Bed) -> None:
    (api,) = await projects(store, 1, Budget(5.0, 8.0), tasks=2)
    await store.queue.finish(used(await store.take(api), 1, 1, 8.0))
    store.clock.now = MIDNIGHT - 1
    off(store, AHEAD)

    await store.claimed(api)

    day = await store.value("SELECT spent + reserved FROM spending WHERE day = :day", day=START // DAY)
    assert day == 8_000_000


async def test_who_waited_over_midnight_gets_no_more_than_that_day_has(store: Bed, other: Bed) -> None:
    api, web = await projects(store, 2, Budget(5.0, 8.0))
    store.clock.now = MIDNIGHT + 1
    await store.take(api)
    off(other, BEHIND)

    await other.claimed(web, "n2")

    day = await store.value("SELECT spent + reserved FROM spending WHERE day = :day", day=MIDNIGHT // DAY)
    assert day <= 8_000_000


@pytest.mark.parametrize("ms", [AHEAD, BEHIND])
async def test_a_new_worker_is_told_of_and_one_long_unheard_is_not_kept(store: Bed, ms: int) -> None:
    off(store, ms)
    await store.store.work.claim("w", max=1, lease=SECOND)
    store.clock.tick(5 * HOUR)
    await store.store.work.claim("x", max=1, lease=SECOND)

    assert await store.rows("SELECT id FROM nodes ORDER BY id") == [("worker:x",)]
    types = [type for (type,) in await store.rows("SELECT type FROM events WHERE type LIKE 'node.%' ORDER BY id")]
    assert types == ["node.started", "node.started", "node.stopped"]


async def test_a_lease_lasts_from_when_it_is_written(store: Bed) -> None:
    """It is over before it begins, otherwise, and the next who asks takes the work away."""
    api = await store.project()
    await store.node(lease=4 * SECOND)
    off(store, BEHIND)
    for _ in range(2):
        await store.put(api)

    (claim,) = await store.store.work.claim("w", max=1, lease=2 * SECOND)
    assert claim.lease_until == (claim.execution.started_at or 0) + 2 * SECOND
    store.clock.tick(SECOND)
    beaten = await store.store.work.heartbeat(claim.execution.id, "w", claim.fence, lease=2 * SECOND)
    assert beaten.lease_until == claim.lease_until + SECOND
    assert not await store.store.work.claim("x", max=1, lease=MINUTE)

    await store.store.work.release(claim.execution.id, "w", claim.fence)
    await store.take(api)
    await store.queue.heartbeat("n1", 4 * SECOND)
    ((node, seen),) = await store.rows("SELECT lease_until, seen_at FROM nodes WHERE id = 'n1'")
    assert node == seen + 4 * SECOND
    assert await store.value("SELECT lease_until FROM executions WHERE status = 'running'") == node
