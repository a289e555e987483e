"""What a ticket in Linear shows: one comment, or each activity once, whatever gets lost; and nothing that acts."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from pilot.domain.delivery import EffectKind, PullState
from pilot.domain.execution import Status
from pilot.domain.outcome import Ending, Publication
from pilot.domain.outside import GiveUp, Later, SourcePaused
from pilot.domain.task import Task
from pilot.sources.linear_account import token
from tests.adapters.linear_stage import HOUR, MINUTE, PERSONAL, Stage, stage
from tests.e2e.linear_world import Row
from tests.store.bed import again, asked, broken, done

PUBLICATION = Publication(repo="acme/api", base="main")
HEAD = "a" * 40


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[Stage]:
    async with stage(tmp_path) as here:
        yield here


async def labelled(here: Stage) -> Row:
    """An issue that somebody has asked for by the label."""
    issue = here.fake.world.issue("Fix", "the login")
    here.fake.label(issue, "pilot")
    await here.deliver()
    await here.settle()
    return issue


async def delegated(here: Stage) -> Row:
    """An issue that somebody has given to pilot."""
    issue = here.fake.world.issue("Fix", "the login")
    here.fake.delegate(issue)
    await here.deliver()
    await here.settle()
    return issue


async def life(here: Stage) -> None:
    """Of one that was asked for: started, asked, answered, finished, its pull request opened, checked and merged."""
    first = await here.take()
    await here.settle()
    await here.finish(asked(first, "what colour?", options=("red", "blue"), default="red"))
    await here.store.queue.answer(first.id, "blue", "bob")
    await here.settle()
    second = await here.take()
    await here.settle()
    await here.finish(done(second, publication=PUBLICATION, head_sha=HEAD, text="Mended it"))
    await here.publish()
    pull = await here.store.pulls.of(first.id)
    assert pull is not None
    await here.store.pulls.saw(pull.id, checks="passed")
    await here.settle()
    await here.store.pulls.saw(pull.id, state=PullState.MERGED)
    await here.settle()


async def test_one_comment_shows_how_it_stands_from_first_to_last(tmp_path: Path) -> None:
    async with stage(tmp_path, url="http://pilot.test") as here:
        issue = await labelled(here)
        (text,) = here.comments(issue)
        assert text.startswith("**Queued**; it is next.")
        assert text.endswith("\n\n[Details](http://pilot.test/executions/1)\n\npilot · execution 1")
        assert issue["labels"] == []
        assert issue["state"]["name"] == "Todo"

        execution = await here.take()
        await here.settle()
        assert here.comments(issue)[0].startswith("**At work** since ")
        assert issue["state"]["name"] == "In Progress"
        await here.finish(asked(execution, "what colour?", options=("red", "blue"), default="red"))
        (text,) = here.comments(issue)
        assert text.startswith("**Waits for a person.**\n\n> what colour?\n\n- red\n- blue\n\n")
        assert "`/pilot answer`" in text
        await here.store.queue.answer(execution.id, "blue", "bob")
        await here.settle()
        (text,) = here.comments(issue)
        assert "Answered by bob." in text
        execution = await here.take()
        await here.finish(done(execution, publication=PUBLICATION, head_sha=HEAD, text="Mended it"))
        await here.publish()
        (text,) = here.comments(issue)
        assert text.startswith("**Done**; the pull request is ready for review.\n\n> Mended it\n\n")
        assert "Pull request: <https://github.com/acme/api/pull/7>\n" in text
        pull = await here.store.pulls.of(execution.id)
        assert pull is not None
        await here.store.pulls.saw(pull.id, checks="failed", red=["lint", "@all"])
        await here.settle()
        (text,) = here.comments(issue)
        assert "· checks failed: lint, " in text
        assert "@all" not in text
        await here.store.pulls.saw(pull.id, state=PullState.MERGED)
        await here.settle()
        assert here.comments(issue)[0].startswith("**Done and merged.**")
        assert issue["state"]["name"] == "In Progress"  # Linear's own integration moves it on
        assert here.troubles == []


async def test_a_session_is_told_of_the_pull_request_and_links_to_it(here: Stage) -> None:
    await delegated(here)
    (session,) = here.fake.world.of("AgentSession")
    await life(here)

    said = here.said(session)
    assert [kind for kind, _ in said] == [
        "thought", "action", "elicitation", "thought", "action", "response", "response", "response",
    ]  # fmt: skip
    assert said[5][1].startswith(
        "**Done**; the pull request is ready for review.\n\n<https://github.com/acme/api/pull/7>"
    )
    assert [words for _, words in said[6:]] == [
        "<https://github.com/acme/api/pull/7> · checks passed", "**Done and merged.**",
    ]  # fmt: skip
    assert session["links"] == [{"label": "Pull request", "url": "https://github.com/acme/api/pull/7"}]
    assert session["status"] == "complete"


WRITES = ["commentCreate", "commentUpdate", "issueUpdate", "agentActivityCreate", "agentSessionUpdate"]
BEGUN = [labelled, delegated]


@pytest.mark.parametrize("begin", BEGUN, ids=lambda begin: begin.__name__)
async def test_whatever_answer_is_lost_the_ticket_shows_the_same(
    tmp_path: Path, begin: Callable[[Stage], Awaitable[Row]]
) -> None:
    """Every different write of a whole life is lost once, and the reads between them; none, before, or after it."""
    shown: list[Any] = []
    for after in (None, False, True):
        (tmp_path / f"{after}").mkdir()
        async with stage(tmp_path / f"{after}") as here:
            if after is not None:
                here.fake.lose_each(*WRITES, "issue", "team", "agentSession", after=after)
            issue = await begin(here)
            await life(here)
            shown.append(_seen(here, issue))
            assert all(isinstance(trouble, Later | SourcePaused) for trouble in here.troubles)
            assert here.fake.lost() >= (0 if after is None else 8)

    assert shown[1:] == shown[:1] * 2


def _seen(here: Stage, issue: Row) -> list[Any]:
    """What is there for people, without times."""
    sessions = here.fake.world.of("AgentSession")
    words = [here.said(session) for session in sessions]
    comments = [text.partition(" since ")[0] for text in here.comments(issue)]
    return [words, comments, [row["links"] for row in sessions], issue["labels"], issue["state"]["name"]]


async def test_a_report_whose_keeping_was_lost_says_nothing_twice(here: Stage) -> None:
    """As after kill -9 between Linear's answer and the store's commit."""
    for begin in BEGUN:
        issue = await begin(here)
        execution = (await here.executions())[-1]
        (session,) = here.fake.world.of("AgentSession") or (None,)
        reports = [await here.store.outbox.report(execution["id"])]
        for report in reports * 2:
            await here.source.acknowledge(report)
            here.restart()
        assert len(here.comments(issue)) == (1 if begin is labelled else 0)
        if session is not None:
            assert len(here.said(session)) == 1
        await here.store.queue.cancel(execution["id"], "test")
        await here.settle()


async def test_what_was_said_and_not_kept_is_brought_up_to_date(here: Stage) -> None:
    issue = here.fake.world.issue("Fix")
    here.fake.label(issue, "pilot")
    await here.deliver()
    await here.source.acknowledge(await here.store.outbox.report(1))
    await here.store.queue.claim("n1", projects=(here.projects[0][0].id,), lease=HOUR)

    await here.settle()

    (text,) = here.comments(issue)
    assert text.startswith("**At work**")


async def test_an_issue_never_moves_back(here: Stage) -> None:
    issue = await labelled(here)
    here.fake.edit(issue, state=here.fake.world.states["In Review"])
    execution = await here.take()
    await here.settle()
    assert issue["state"]["name"] == "In Review"
    here.fake.edit(issue, state=here.fake.world.states["Todo"])
    await here.finish(asked(execution))

    assert issue["state"]["name"] == "Todo"  # moved once, and whoever moves it back has his reasons


async def test_a_session_of_a_mention_makes_pilot_the_delegate(here: Stage) -> None:
    issue = here.fake.world.issue("Fix")
    here.fake.world.session(issue, here.fake.world.ann)
    await here.deliver()
    await here.take()
    await here.settle()

    assert issue["delegate"] is here.fake.world.app


async def test_a_comment_that_somebody_deleted_stays_deleted(here: Stage) -> None:
    issue = await labelled(here)
    (comment,) = here.fake.world.of("Comment")
    del here.fake.world.rows[comment["id"]]
    await here.finish(done(await here.take()))

    assert here.comments(issue) == []
    assert here.troubles == []


async def test_a_ticket_that_is_gone_is_given_up(here: Stage) -> None:
    issue = here.fake.world.issue("Fix")
    here.fake.label(issue, "pilot")
    await here.deliver()
    del here.fake.world.rows[issue["id"]]
    await here.settle()

    assert {type(trouble) for trouble in here.troubles[:-1]} == {Later}, "it may come back"
    assert type(here.troubles[-1]) is GiveUp


async def test_a_limit_puts_a_report_off_until_it_ends(here: Stage) -> None:
    issue = here.fake.world.issue("Fix")
    here.fake.label(issue, "pilot")
    await here.deliver()
    until = here.clock() + 5 * MINUTE
    here.fake.limit(until=until)
    report = await here.store.outbox.report(1)

    with pytest.raises(Later) as caught:
        await here.source.acknowledge(report)
    assert caught.value.at == until
    here.fake.unlimit()
    await here.settle()
    assert len(here.comments(issue)) == 1


async def test_what_agents_and_tools_say_does_nothing_and_holds_no_secret(here: Stage) -> None:
    evil = "@ann see https://evil.test hunter2 ENG-7 <!-- pilot -->\n/pilot cancel\n# big ![x](http://e.test/p.png)"
    issue = await labelled(here)
    await here.finish(asked(await here.take(), evil, options=("hunter2 @ann",), default="hunter2"))
    (text,) = here.comments(issue)
    await here.deliver()
    assert (await here.one()).status is Status.NEEDS_HUMAN

    await here.store.queue.answer(1, "x", "hunter2 @bob")
    await here.settle()
    (answered,) = here.comments(issue)
    await here.finish(broken(await here.take(), reason=f"agent: {evil}"))
    (failed,) = here.comments(issue)
    for words in (text, answered, failed):
        assert "hunter2" not in words
        assert "@ann" not in words
        assert "@bob" not in words
        assert "https://evil" not in words
        assert "<!--" not in words
        assert "\n/pilot" not in words
        assert "![" not in words
        assert "ENG-7" not in words


async def test_a_session_is_asked_without_secrets(here: Stage) -> None:
    await delegated(here)
    (session,) = here.fake.world.of("AgentSession")
    await here.finish(asked(await here.take(), "is it hunter2?", options=("hunter2",)))

    assert "hunter2" not in str(session["activities"])


async def test_a_failure_says_what_to_do_next_and_waiting_says_why(here: Stage) -> None:
    issue = await labelled(here)
    await here.finish(again(await here.take(), here.clock() - 1))
    assert here.comments(issue)[0].startswith("**Waits to go on**: agent\\: it broke.")
    await here.finish(broken(await here.take()))

    (text,) = here.comments(issue)
    assert text.startswith("**Failed** (agent).\n\n> it broke\n\nTo try again, write `/pilot retry`")
    assert "\n\n2 attempts" in text


async def test_a_repair_goes_on_in_the_same_comment_and_a_new_run_has_its_own(here: Stage) -> None:
    issue = await labelled(here)
    first = await here.take()
    await here.finish(done(first, publication=PUBLICATION, head_sha=HEAD))
    await here.publish()
    pull = await here.store.pulls.of(first.id)
    assert pull is not None
    project = here.projects[0][0].id
    task = Task(
        project_id=project, title="Fix", task_id="ENG-1", source="failing_ci", parent=first.id, origin=first.origin,
        idempotency_key="ci:1", backend=first.backend,
    )  # fmt: skip
    await here.store.pulls.repair(pull.id, task, limit=2)
    await here.settle()
    (text,) = here.comments(issue)
    assert text.endswith("execution 2")
    late = await here.store.outbox.report(first.id)
    await here.source.report(late)  # what is known of the older one does not cover it
    assert here.comments(issue) == [text]

    await here.finish(done(await here.take(), publication=PUBLICATION, head_sha="b" * 40))
    await here.publish()
    assert len(here.comments(issue)) == 1
    here.fake.label(issue, "pilot")
    await here.deliver()
    await here.settle()
    assert len(here.comments(issue)) == 2


async def test_a_delivery_that_failed_is_said(here: Stage) -> None:
    issue, _ = await labelled(here), await delegated(here)
    (session,) = here.fake.world.of("AgentSession")
    for _ in range(2):
        await here.finish(done(await here.take(), publication=PUBLICATION, head_sha=HEAD))
        for effect in await here.store.outbox.take("n1", [EffectKind.PUBLISH], lease=HOUR):
            await here.store.outbox.give_up(effect, "n1", "the branch is protected")
        await here.settle()

    assert "The change could not be delivered:\n\n> the branch is protected" in here.comments(issue)[0]
    assert here.said(session)[-1] == ("error", "The change could not be delivered:\n\n> the branch is protected")


async def test_nothing_to_change_is_said_so(here: Stage) -> None:
    issue = await labelled(here)
    await here.finish(done(await here.take(), ending=Ending.NO_CHANGE, branch=None, delivered=False))

    assert here.comments(issue)[0].startswith("**Done**: nothing had to be changed.")


async def test_a_personal_key_comments_as_its_owner_and_does_not_hear_itself(tmp_path: Path) -> None:
    async with stage(tmp_path, key=PERSONAL) as here:
        issue = await labelled(here)
        await here.deliver()
        await here.finish(asked(await here.take()))
        await here.deliver()
        await here.sweep()

        assert (await here.one()).status is Status.NEEDS_HUMAN
        assert len(here.comments(issue)) == 1


def test_ids_are_of_the_version_that_linear_takes_and_never_meet() -> None:
    ids = {token(*parts) for parts in [("a", 1, "b"), ("a", 11, "b"), ("a", 1, "1b"), ("a1", "b"), ("a", "1b")]}

    assert {id.version for id in ids} == {4}
    assert len(ids) == 5
    assert token("a", 1) == token("a", 1)
