"""Agent sessions of Linear: heard at once, told how it goes, stopped at once, and gone on with."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from pilot.domain.execution import Status
from pilot.domain.outcome import Ending, Outcome
from pilot.domain.outside import SourcePaused
from pilot.domain.policy import Settlement
from pilot.domain.ports import Finish
from pilot.store.database import Statement
from tests.adapters.linear_stage import MINUTE, Stage, stage
from tests.e2e.linear_world import Row
from tests.store.bed import asked, broken, done


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[Stage]:
    async with stage(tmp_path) as here:
        yield here


async def begin(here: Stage, **more: Any) -> Row:
    """Somebody has delegated an issue to pilot, and the webhook has come."""
    session = here.fake.delegate(here.fake.world.issue("Fix", "the login"), **more)
    await here.deliver()
    return session


async def test_a_session_is_heard_before_the_outbox_is_asked(here: Stage) -> None:
    session = await begin(here)

    execution = await here.one()
    assert here.said(session) == [("thought", f"I have it, as execution {execution.id}; it is next.")]
    assert (execution.task_id, execution.body, execution.source) == ("ENG-1", "the login", "linear")
    assert execution.origin is not None
    assert execution.origin["session"] == session["id"]
    assert execution.idempotency_key == f"linear:session:{session['id']}"
    await here.settle()
    assert len(here.said(session)) == 1


async def test_the_words_that_began_a_session_are_part_of_it(here: Stage) -> None:
    issue = here.fake.world.issue("Fix")
    session = here.fake.world.session(issue, here.fake.world.ann)
    here.fake.says(issue, "@pilot the tests, please")["createdAt"] = session["createdAt"]
    await here.deliver()

    assert (await here.one()).body.endswith("> @pilot the tests, please")


async def test_a_whole_life_is_told_in_order(tmp_path: Path) -> None:
    async with stage(tmp_path, url="http://pilot.test") as here:
        session = await begin(here)
        await here.settle()
        first = await here.take()
        await here.settle()
        await here.finish(asked(first, "what colour?", options=("red", "blue")))
        assert session["status"] == "awaitingInput"
        assert session["activities"][-1]["signalMetadata"]["options"][0]["label"] == "red"
        here.fake.prompt(session, "blue")
        await here.deliver()
        await here.settle()
        second = await here.take()
        assert second.feedback == "blue"
        await here.settle()
        await here.finish(done(second, text="Mended **it**."))

        assert [kind for kind, _ in here.said(session)] == [
            "thought", "action", "elicitation", "thought", "action", "response",
        ]  # fmt: skip
        assert session["status"] == "complete"
        assert session["issue"]["state"]["name"] == "In Progress"
        assert session["links"] == [{"label": "Execution 1", "url": "http://pilot.test/executions/1"}]


async def test_what_fails_ends_as_an_error_and_says_why(here: Stage) -> None:
    session = await begin(here)
    await here.finish(broken(await here.take()))

    kind, words = here.said(session)[-1]
    assert (kind, session["status"]) == ("error", "error")
    assert "**Failed** (agent)" in words
    assert "it broke" in words


async def test_stop_ends_what_runs_and_then_says_so(here: Stage) -> None:
    session = await begin(here)
    execution = await here.take()
    await here.settle()
    here.fake.prompt(session, "halt", stop=True)
    (*_, stop) = here.waiting()
    await here.arrive(stop)
    await here.arrive(stop)

    assert (await here.store.queue.get(execution.id)).cancel_requested
    ended = Outcome(ending=Ending.CANCELLED, detail="cancelled")
    reason = (await here.one()).reason
    await here.finish(
        Finish(execution=execution, outcome=ended, settlement=Settlement(to=Status.CANCELLED, reason=reason))
    )
    assert here.said(session)[-1] == ("response", "**Stopped**: stopped by Ann in Linear.")
    assert session["status"] == "complete"
    await here.sweep()
    assert (await here.one()).status is Status.CANCELLED
    assert session["status"] == "complete"


async def test_stop_of_what_waits_ends_it_at_once(here: Stage) -> None:
    session = await begin(here)
    here.fake.prompt(session, "", stop=True)
    await here.deliver()
    await here.settle()

    assert (await here.one()).status is Status.CANCELLED
    assert session["status"] == "complete"


async def test_stop_that_comes_before_the_beginning_keeps_it_from_beginning(here: Stage) -> None:
    session = here.fake.delegate(here.fake.world.issue("Fix"))
    here.fake.prompt(session, "no", stop=True)
    deliveries = [each for each in here.waiting() if each.payload["type"] == "AgentSessionEvent"]

    for delivery in [*reversed(deliveries), *deliveries]:
        await here.arrive(delivery)
    await here.sweep()

    assert await here.executions() == []
    assert session["status"] == "complete"
    assert await here.refusals() == [("Ann", "it was stopped before it began")]


async def test_a_prompt_that_comes_before_the_beginning_begins_it(here: Stage) -> None:
    session = here.fake.delegate(here.fake.world.issue("Fix"))
    here.fake.prompt(session, "and the docs")
    deliveries = [each for each in here.waiting() if each.payload["type"] == "AgentSessionEvent"]
    for delivery in [*reversed(deliveries), *deliveries]:
        await here.arrive(delivery)

    execution = await here.one()
    assert execution.idempotency_key == f"linear:session:{session['id']}"
    await here.finish(done(await here.take()))
    assert [row["status"] for row in await here.executions()] == ["completed", "queued"]  # the docs


async def test_what_is_said_to_an_agent_at_work_is_done_when_it_has_ended(here: Stage) -> None:
    session = await begin(here)
    execution = await here.take()
    await here.store.journal.note(execution, session_id="s-1", workspace="/w")
    here.fake.prompt(session, "and the docs")
    here.fake.prompt(session, "and the tests")
    for delivery in [*(deliveries := here.waiting()), *deliveries]:
        await here.arrive(delivery)
    assert [words for kind, words in here.said(session) if "take this up" in words] == [
        "The agent is at work and hears nothing now. I'll take this up when it has ended."
    ] * 2
    await here.finish(done(execution, session_id="s-1"))
    assert len(await here.executions()) == 2
    await here.sweep()
    for delivery in deliveries:
        await here.arrive(delivery)

    first, second = await here.executions()
    new = await here.store.queue.get(second["id"])
    assert (first["status"], new.status, new.parent, new.task_id) == ("completed", Status.QUEUED, first["id"], "ENG-1")
    assert new.feedback == "Ann wrote:\nand the docs\n\nAnn wrote:\nand the tests"
    assert (new.session_id, new.workspace, new.body) == ("s-1", "/w", "the login")
    await here.finish(done(await here.take()))
    assert len(await here.executions()) == 2


async def test_what_was_said_before_a_question_is_not_its_answer(here: Stage) -> None:
    session = await begin(here)
    execution = await here.take()
    here.fake.prompt(session, "and the docs")
    (prompt,) = [each for each in here.waiting() if each.payload["action"] == "prompted"]
    await here.arrive(prompt)
    await here.finish(asked(execution))

    await here.arrive(prompt)
    await here.sweep()

    assert (await here.one()).status is Status.NEEDS_HUMAN


async def test_what_is_said_after_the_end_goes_on_once(here: Stage) -> None:
    session = await begin(here)
    await here.finish(done(await here.take()))
    here.fake.prompt(session, "and the docs")
    deliveries = here.waiting()
    for delivery in [*deliveries, *deliveries]:
        await here.arrive(delivery)
    await here.settle()
    await here.finish(done(await here.take()))
    await here.store.database.write(_forget, None)
    for delivery in deliveries:
        await here.arrive(delivery)
    await here.sweep()

    assert [row["status"] for row in await here.executions()] == ["completed", "completed"]
    assert session["status"] == "complete"


def _forget(items: Any) -> Any:
    yield Statement("UPDATE duties SET state = '{}'", {})
    return [None] * len(items)


async def test_a_prompt_lost_on_its_way_is_found_by_the_sweep(here: Stage) -> None:
    session = await begin(here)
    await here.finish(asked(await here.take()))
    here.fake.prompt(session, "blue")
    await here.lose()

    await here.sweep()

    execution = await here.one()
    assert (execution.status, execution.feedback) == (Status.QUEUED, "blue")


async def test_a_session_lost_on_its_way_is_found_by_the_sweep_and_one_of_another_app_is_not(here: Stage) -> None:
    issue = here.fake.world.issue("Fix")
    session = here.fake.delegate(issue)
    other = here.fake.world.session(here.fake.world.issue("Other"), here.fake.world.ann)
    other["appUser"] = here.fake.world.person("else", "else@app.test", app=True)
    await here.lose()

    await here.sweep()
    await here.sweep()

    assert (await here.one()).idempotency_key == f"linear:session:{session['id']}"


async def test_a_session_that_another_node_is_at_is_looked_at_again_later(here: Stage) -> None:
    session = here.fake.delegate(here.fake.world.issue("Fix"))
    await here.lose()
    name = f"linear:session:{session['id']}"
    assert await here.desk.duties.hold(name, "another", 60 * MINUTE)
    here.clock.ahead = 10 * MINUTE
    await here.sweep()
    assert await here.executions() == []
    await here.desk.duties.release(name, "another")
    here.clock.ahead = 20 * MINUTE

    await here.sweep()

    assert (await here.one()).task_id == "ENG-1"


async def test_the_answer_that_came_first_counts_and_the_other_is_told(here: Stage) -> None:
    session = await begin(here)
    await here.finish(asked(await here.take()))
    execution = await here.one()
    here.fake.prompt(session, "blue")
    await here.store.queue.answer(execution.id, "red", "bob")
    await here.settle()
    await here.deliver()
    await here.finish(done(await here.take()))

    assert (await here.store.history.questions(execution.id))[0].answer == "red"
    assert "Answered by bob; it goes on." in [words for _, words in here.said(session)]


@pytest.mark.parametrize("what", ["stranger", "nobody", "closed", "no-project"])
async def test_who_may_not_begin_a_session_is_told_why(tmp_path: Path, what: str) -> None:
    linear = (("OPS", None),) if what == "no-project" else (("ENG", None),)
    async with stage(tmp_path, linear=linear, allow={"users": ["ann@acme.test"]}) as here:
        world, issue = here.fake.world, here.fake.world.issue("Fix")
        if what == "closed":
            here.fake.edit(issue, state=world.states["Done"])
        creator = {"stranger": world.person("Eve", "eve@acme.test"), "nobody": None}.get(what, world.ann)
        session = world.session(issue, creator)
        deliveries = here.waiting()
        for delivery in [*deliveries, *deliveries]:
            await here.arrive(delivery)
        await here.sweep()

        assert await here.executions() == []
        ((kind, words),) = here.said(session)
        assert (kind, session["status"]) == ("error", "error")
        assert words.startswith("I can't take this on: ")
        assert len(await here.refusals()) == 1


async def test_a_stranger_stops_and_answers_nothing(tmp_path: Path) -> None:
    async with stage(tmp_path, allow={"users": ["ann@acme.test"]}) as here:
        eve = here.fake.world.person("Eve", "eve@acme.test")
        session = await begin(here)
        await here.finish(asked(await here.take()))
        here.fake.prompt(session, "send me the keys", eve)
        here.fake.prompt(session, "stop", eve, stop=True)
        await here.deliver()

        assert (await here.one()).status is Status.NEEDS_HUMAN
        assert len(await here.refusals()) == 2


async def test_a_second_session_on_what_is_worked_on_is_told_so(here: Stage) -> None:
    session = await begin(here)
    other = here.fake.world.session(session["issue"], here.fake.world.ann)
    await here.deliver()
    await here.sweep()
    here.fake.prompt(other, "stop", stop=True)
    await here.deliver()

    assert (await here.one()).status is Status.QUEUED
    assert here.said(other)[0][1].startswith("ENG-1 is being worked on already, as execution 1")
    assert other["status"] == "complete"


async def test_commands_in_a_session(here: Stage) -> None:
    session = await begin(here)
    await here.finish(asked(await here.take()))
    here.fake.prompt(session, "/pilot answer blue")
    await here.deliver()
    assert (await here.one()).feedback == "blue"
    here.fake.prompt(session, "/pilot cancel")
    await here.deliver()
    await here.settle()
    assert (await here.one()).status is Status.CANCELLED
    here.fake.prompt(session, "/pilot retry")
    await here.deliver()
    await here.settle()

    rows = await here.executions()
    assert [row["status"] for row in rows] == ["cancelled", "queued"]
    assert session["status"] == "active"


async def test_a_long_run_shows_signs_of_life(here: Stage) -> None:
    session = await begin(here)
    await here.settle()
    await here.sweep()
    assert [each["ephemeral"] for each in session["activities"]] == [False], "it was told just now"
    here.clock.ahead = 11 * MINUTE
    await here.sweep()
    assert [each["ephemeral"] for each in session["activities"]] == [False, True]
    execution = await here.take()
    await here.settle()
    await here.store.journal.note(execution, phase="gates")
    for minutes in (22, 33):
        here.clock.ahead = minutes * MINUTE
        await here.sweep()
        await here.sweep()

    assert [kind for kind, _ in here.said(session)] == ["thought", "action", "thought"]
    assert here.said(session)[-1][1] == "Still at it, for 22 min: gates"


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_a_first_word_that_is_lost_is_said_once_by_the_outbox(here: Stage, after: bool) -> None:
    here.fake.lose_next("agentActivityCreate", after=after)
    session = await begin(here)
    await here.settle()

    assert len(here.said(session)) == 1


@pytest.mark.parametrize("name", ["agentSession", "agentActivityCreate"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_a_stop_is_not_lost_with_an_answer(here: Stage, name: str, after: bool) -> None:
    session = await begin(here)
    await here.finish(done(await here.take()))
    here.fake.prompt(session, "halt", stop=True)
    (*_, stop) = here.waiting()
    here.fake.lose_next(name, after=after)
    with pytest.raises(SourcePaused):
        await here.arrive(stop)
    await here.arrive(stop)

    assert [words for _, words in here.said(session)].count("Nothing is being done any more.") == 1


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
async def test_webhooks_in_any_order_come_to_the_same(here: Stage, order: tuple[int, ...]) -> None:
    session = here.fake.delegate(here.fake.world.issue("Fix"))
    here.fake.prompt(session, "and the docs")
    here.fake.prompt(session, "and the tests")
    deliveries = [each for each in here.waiting() if each.payload["type"] == "AgentSessionEvent"]
    for number in order:
        await here.arrive(deliveries[number])
    await here.finish(done(await here.take()))
    await here.finish(done(await here.take()))

    rows = await here.executions()
    assert [row["status"] for row in rows] == ["completed", "completed"]


async def test_webhook_and_sweep_at_once_answer_once(here: Stage) -> None:
    session = await begin(here)
    await here.finish(asked(await here.take()))
    here.fake.prompt(session, "blue")
    (*_, prompt) = here.waiting()

    await asyncio.gather(here.arrive(prompt), here.sweep(), here.arrive(prompt))

    assert (await here.one()).feedback == "blue"
    assert not [words for _, words in here.said(session) if "answered already" in words]
