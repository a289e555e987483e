"""What an agent says of itself and costs: summed where known, kept whatever it is made of."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace
from typing import Any

import pytest

from pilot.domain.execution import Execution, Status
from pilot.domain.outcome import Ending, FailureClass, Outcome, Usage
from pilot.domain.policy import settle
from pilot.domain.ports import Finish
from tests.store.bed import (
    Bed,
    again,
    interrupted,
    task,
    used,
)


async def claimed(store: Bed, **more: Any) -> Execution:
    api = await store.project()
    await store.node()
    await store.put(api, **more)
    return await store.take(api)


async def test_usage_is_summed_and_unknown_stays_unknown(store: Bed) -> None:
    execution = await claimed(store)
    api = await store.project()

    async def attempt(tokens_in: int | None, tokens_out: int | None, cost: float | None) -> tuple[Any, ...]:
        running = (await store.claim(api) or [execution])[0]
        finish = again(running)
        outcome = replace(finish.outcome, usage=Usage(tokens_in, tokens_out, cost))
        await store.queue.finish(replace(finish, outcome=outcome))
        row = await store.queue.get(execution.id)
        return row.input_tokens, row.output_tokens, row.cost_usd

    assert await attempt(None, None, None) == (None, None, None)
    assert await attempt(10, None, 0.0) == (10, None, 0.0)
    assert await attempt(5, 7, None) == (15, 7, 0.0)
    assert await attempt(None, None, 0.5) == (15, 7, 0.5)


async def test_what_an_attempt_noted_on_its_way_is_in_the_sum_once(store: Bed) -> None:
    execution = await claimed(store)
    api = await store.project()

    for tokens in (10, 5):
        await store.journal.note(execution, Usage(tokens, None, 0.5))
        await store.queue.finish(interrupted(execution))
        execution = await store.take(api)

    await store.queue.finish(used(execution, 1, 1, None))
    row = await store.queue.get(execution.id)
    assert (row.input_tokens, row.output_tokens, row.cost_usd) == (16, 1, 1.0)


@pytest.mark.parametrize("nonsense", [math.nan, math.inf, -math.inf, -1, 1e300])
async def test_usage_that_can_not_be_is_unknown(store: Bed, nonsense: float) -> None:
    execution = await claimed(store)
    api = await store.project()

    # The neighbour in the same commit is not harmed either.
    _, neighbour = await asyncio.gather(
        store.queue.finish(used(execution, 10**400, 7, nonsense)), store.queue.enqueue(task(api, "next"))
    )

    row = await store.queue.get(execution.id)
    assert (row.status, row.input_tokens, row.output_tokens, row.cost_usd) == (Status.COMPLETED, None, 7, None)
    assert await store.status(neighbour.id) is Status.QUEUED


@pytest.mark.parametrize("text", ["\x00", "\ud800", "a\x00b", "x" * 1_000_000, "\n" * 100_000])
async def test_whatever_an_agent_says_is_stored_and_read_again(store: Bed, text: str) -> None:
    execution = await claimed(store)
    outcome = Outcome(
        ending=Ending.FAILED, failure=FailureClass.UNKNOWN, detail=text, excerpt=text, text=text, session_id=text,
        model=text, branch=text, base_sha=text, head_sha=text, tree=text,
    )  # fmt: skip
    settlement = settle(execution, outcome, now=store.clock.now, jitter=0.5)

    await store.journal.note(execution, session_id=text, branch=text, phase=text, workspace=text, model=text)
    await store.queue.finish(Finish(execution=execution, outcome=outcome, settlement=settlement))

    row = await store.queue.get(execution.id)
    assert row.status is Status.QUEUED
    assert len(row.error or "") < 10_000
    assert len(row.reason or "") < 10_000
    for value in (row.error, row.reason, row.branch, row.model, row.head_sha, row.workspace):
        assert value is not None
        assert "\x00" not in value
        value.encode()
