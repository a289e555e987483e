"""What every source promises, whatever service is behind it: once, by whoever may, told once, and nothing lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from pilot.clients.webhooks import NotAccepted
from pilot.dispatch.reports import Reports
from pilot.domain.delivery import EffectKind
from pilot.domain.errors import NotFound
from pilot.domain.execution import Execution
from pilot.domain.outside import GiveUp, Later, SourcePaused
from pilot.store.history import History
from tests.adapters.source_cases import ASKED_BY_PEOPLE, CASES, HOUR, IDEMPOTENT, PAUSED, WITH_WEBHOOKS, Case


@pytest.fixture
async def case(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Case]:
    async with CASES[request.param](tmp_path) as case:
        yield case


def each(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", names or tuple(CASES), indirect=True)


async def executions(case: Case) -> list[Execution]:
    history: History = case.desk.history
    return (await history.executions(everything=True))[0]


async def refusals(case: Case) -> int:
    return len(await case.desk.history.events(types=("trigger.refused",)))


async def tell(case: Case) -> None:
    """Deliver reports until none is owed; what is put off comes again at once."""
    desk = case.desk
    reports = Reports(desk.outbox, lambda: {case.source.name: case.source}, desk.clock)
    for _ in range(40):
        effects = await desk.outbox.take(desk.node, [EffectKind.REPORT], lease=HOUR)
        if not effects:
            return
        for effect in effects:
            try:
                result = await reports(effect)
            except Later as error:
                await desk.outbox.postpone(effect, desk.node, desk.clock(), str(error))
            except GiveUp as error:
                await desk.outbox.give_up(effect, desk.node, str(error))
            else:
                await desk.outbox.delivered(effect, desk.node, result)
    raise AssertionError("it never came to an end")


@each()
async def test_what_is_asked_is_one_execution_however_often_it_is_looked_at(case: Case) -> None:
    case.ask()
    await case.poll()
    await case.poll()

    (execution,) = await executions(case)
    assert execution.source == case.source.name
    assert execution.idempotency_key
    assert execution.task_id
    origin = execution.origin
    assert origin is not None
    assert {"source", "url", "ref", "actor", "at"} <= origin.keys()
    assert origin["source"] == case.source.name
    assert isinstance(origin["at"], int)


@each()
async def test_a_restart_in_between_asks_nothing_twice(case: Case) -> None:
    case.ask()
    await case.poll()
    case.restart()
    await case.poll()

    assert len(await executions(case)) == 1


@each()
async def test_its_end_is_no_reason_to_do_it_again(case: Case) -> None:
    case.ask()
    await case.poll()
    (execution,) = await executions(case)
    await case.desk.queue.cancel(execution.id, by="me", reason="no")
    case.restart()
    await case.poll()

    assert [one.status for one in await executions(case)] == ["cancelled"]


@each()
async def test_nothing_asked_is_nothing_done(case: Case) -> None:
    await case.poll()
    await case.poll()

    assert await executions(case) == []
    assert await refusals(case) == 0


@each(*WITH_WEBHOOKS)
async def test_a_webhook_and_a_poll_come_to_the_same(case: Case) -> None:
    assert case.hear is not None
    case.ask()
    await case.hear()
    assert len(await executions(case)) == 1
    await case.poll()
    case.restart()
    await case.poll()

    assert len(await executions(case)) == 1


@each(*WITH_WEBHOOKS)
async def test_a_webhook_and_a_poll_at_once_come_to_the_same(case: Case) -> None:
    assert case.hear is not None
    case.ask()
    await asyncio.gather(case.hear(), case.poll())

    assert len(await executions(case)) == 1


@each(*WITH_WEBHOOKS)
async def test_what_a_lost_webhook_told_of_is_found(case: Case) -> None:
    assert case.drop is not None
    case.ask()
    case.drop()
    await case.poll()

    assert len(await executions(case)) == 1


@each(*ASKED_BY_PEOPLE)
async def test_a_stranger_is_refused_once_and_nothing_is_run(case: Case) -> None:
    assert case.stranger is not None
    case.stranger()
    await case.poll()
    if case.hear is not None:
        await case.hear()
    case.restart()
    await case.poll()

    assert await executions(case) == []
    assert await refusals(case) == 1
    (event,) = await case.desk.history.events(types=("trigger.refused",))
    assert event.data["source"] == case.source.name
    assert event.data["actor"]
    assert event.data["reason"]


@each(*IDEMPOTENT)
@pytest.mark.parametrize("lost", ["nothing", "request", "answer"])
async def test_it_is_told_once_whatever_gets_lost(case: Case, lost: str) -> None:
    assert case.lose is not None
    assert case.shown is not None
    case.ask()
    await case.poll()
    (execution,) = await executions(case)
    if lost != "nothing":
        case.lose(lost == "answer")
    await tell(case)
    assert case.shown() == 1

    await case.desk.queue.cancel(execution.id, by="me", reason="no")
    case.restart()
    await tell(case)
    assert case.shown() == 1


@each("todo_scan", "failing_ci")
async def test_where_nobody_waits_nothing_is_told(case: Case) -> None:
    case.ask()
    await case.poll()
    await tell(case)

    (execution,) = await executions(case)
    report = await case.desk.outbox.report(execution.id)
    assert await case.source.report(report) is None
    assert await case.source.acknowledge(report) is None


@each(*PAUSED)
async def test_a_service_that_says_no_pauses_its_source_and_loses_nothing(case: Case) -> None:
    assert case.pause is not None
    assert case.recover is not None
    case.ask()
    if case.drop is not None:
        case.drop()
    case.pause()
    with pytest.raises(SourcePaused) as caught:
        await case.poll()
    assert str(caught.value)
    assert caught.value.until is not None or caught.value.remedy
    assert await executions(case) == []

    case.recover()
    if caught.value.until is not None and hasattr(case.desk.clock, "tick"):
        case.desk.clock.tick(max(0, caught.value.until - case.desk.clock()))
    elif caught.value.until is not None and hasattr(case.desk.clock, "ahead"):
        case.desk.clock.ahead += max(0, caught.value.until - case.desk.clock())
    await case.poll()
    assert len(await executions(case)) == 1


@each(*WITH_WEBHOOKS)
async def test_a_forged_webhook_is_not_accepted(case: Case) -> None:
    assert case.forged is not None
    with pytest.raises(NotAccepted):
        case.source.verify(*case.forged)


@each("telegram", "todo_scan", "failing_ci")
async def test_who_takes_no_webhooks_says_so(case: Case) -> None:
    with pytest.raises(NotFound):
        case.source.verify({}, b"{}")


@each()
async def test_its_pace_is_known(case: Case) -> None:
    assert case.source.name in CASES
    assert case.source.every is None or case.source.every >= 1
    assert (case.source.every is None) == hasattr(case.source, "run")
