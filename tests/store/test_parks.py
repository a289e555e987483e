"""Parks: a backend that says when to come back is left alone until then, by every node."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from pilot.domain.errors import PilotError
from pilot.domain.execution import Execution, Status
from pilot.domain.outcome import FailureClass
from tests.store.bed import (
    HOUR,
    SECOND,
    Bed,
    done,
    limited,
)


async def claimed(store: Bed, **more: Any) -> Execution:
    api = await store.project()
    await store.node()
    await store.put(api, **more)
    return await store.take(api)


async def test_a_park_is_stored_for_every_node_and_its_event_with_it(store: Bed, other: Bed) -> None:
    execution = await claimed(store)
    api = await store.project()

    await store.queue.finish(limited(execution, store.clock.now + HOUR))

    row = await store.queue.get(execution.id)
    assert (row.status, row.failures) == (Status.QUEUED, 0)
    assert await other.rows("SELECT backend, failure, reason, until, since, execution_id FROM parks") == [
        ("agent", "rate_limit", "come back later", store.clock.now + HOUR, store.clock.now, execution.id)
    ]
    assert await other.claimed(api) == []
    assert await store.events(execution.id) == ["queued", "started", "requeued", "parked"]


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize(
    ("untils", "kept"), [((2, 1), 2), ((1, 2), 2), ((None, 5), None), ((5, None), None), ((None, None), None)]
)
async def test_the_longer_park_of_a_backend_wins(
    store: Bed, together: bool, untils: tuple[int | None, ...], kept: int | None
) -> None:
    api = await store.project(max_running=2)
    await store.node()
    await store.put(api)
    await store.put(api)
    running = [await store.take(api), await store.take(api)]

    def at(hours: int | None) -> int | None:
        return None if hours is None else store.clock.now + hours * HOUR

    finishes = [limited(e, at(until)) for e, until in zip(running, untils, strict=True)]
    if together:
        await asyncio.gather(*map(store.queue.finish, finishes))
    else:
        for finish in finishes:
            await store.queue.finish(finish)

    assert await store.value("SELECT until FROM parks") == at(kept)


async def test_what_a_person_has_to_mend_is_still_named_after_a_limit_that_came_later(store: Bed) -> None:
    api = await store.project(max_running=2)
    await store.node()
    for _ in range(2):
        await store.put(api)
    refused, late = [limited(await store.take(api), until) for until in (None, store.clock.now + HOUR)]
    assert refused.settlement.park is not None
    park = replace(refused.settlement.park, failure=FailureClass.AUTH, reason="no key")

    await store.queue.finish(replace(refused, settlement=replace(refused.settlement, park=park)))
    await store.queue.finish(late)

    assert await store.rows("SELECT failure, reason, until FROM parks") == [("auth", "no key", None)]


async def test_a_park_until_the_end_of_time_is_a_time(store: Bed) -> None:
    execution = await claimed(store)

    await store.queue.finish(limited(execution, 10**30))

    until = await store.value("SELECT until FROM parks")
    assert isinstance(until, int)
    assert until > store.clock.now + 10**12


async def test_the_end_of_a_park_is_a_time_to_wake_once(store: Bed) -> None:
    api = await store.project()
    await store.node()
    id = await store.put(api)
    await store.queue.finish(limited(await store.take(api), store.clock.now + SECOND))

    assert await store.queue.next_due() == store.clock.now + SECOND
    assert await store.claimed(api) == []
    store.clock.tick(SECOND)
    assert await store.queue.next_due() is None  # or its node would look a thousand times a second
    assert api.id in await store.queue.ready()
    assert await store.claimed(api) == [id]


async def test_a_park_of_a_backend_is_none_of_another(store: Bed) -> None:
    api, web = await store.project("api"), await store.project("web")
    await store.node()
    first = await store.put(api, backend="full")
    await store.queue.finish(limited(await store.take(api), None))
    same, free = await store.put(web, backend="full"), await store.put(web, backend="free")

    assert await store.claimed(api) == []
    assert await store.claimed(web) == [free]
    store.clock.tick(1000 * HOUR)
    assert await store.queue.expire_parks() == []  # one for a person does not end by time
    assert await store.claimed(api) == []
    await store.queue.unpark("full", "me")
    assert await store.claimed(api) == [first]
    await store.queue.unpark("full", "me")  # it is open to a try already
    await store.queue.finish(done(await store.queue.get(free)))
    assert await store.claimed(web) == []  # and one is enough
    await store.queue.finish(done(await store.queue.get(first)))
    assert await store.claimed(web) == [same]
    with pytest.raises(PilotError, match="not parked"):
        await store.queue.unpark("full", "me")
