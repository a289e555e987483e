"""Webhooks of the GitHub source, and what people say in comments: at most once, and only who may."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from pilot.clients.webhooks import NotAccepted
from pilot.domain.errors import NotFound
from pilot.domain.execution import Status
from pilot.domain.outside import Later, SourcePaused
from pilot.sources.github_commands import Command, command
from tests.adapters.github_stage import MINUTE, SECOND, Stage, stage
from tests.e2e.github_hooks import headers
from tests.store.bed import asked, broken, done, task


@pytest.fixture
async def on(tmp_path: Path) -> AsyncIterator[Stage]:
    async with stage(tmp_path) as on:
        on.fake.hooks.keep()
        yield on


async def begun(on: Stage) -> int:
    """An issue that has become an execution."""
    on.fake.issue(on.repo, "Do it", labels=["pilot"])
    await on.deliver()
    return (await on.one()).id


async def questioned(on: Stage, **more: object) -> int:
    """An execution that asks, since a minute."""
    id = await begun(on)
    await on.store.queue.finish(asked(await on.take(), "Which colour?", **more))
    on.clock.tick(MINUTE)
    return id


async def failed(on: Stage) -> int:
    """An execution that has failed, a minute ago."""
    id = await begun(on)
    await on.store.queue.finish(broken(await on.take()))
    on.clock.tick(MINUTE)
    return id


async def answer(on: Stage, id: int) -> tuple[str | None, str | None]:
    """What the last question was answered with, and by whom."""
    last = (await on.store.history.questions(id))[-1]
    return last.answer, last.answered_by


class TestWebhooks:
    async def test_a_label_becomes_one_task_by_webhook_by_redelivery_and_by_poll(self, on: Stage) -> None:
        on.fake.issue(on.repo, "Do it", labels=["bug", "pilot"])
        deliveries = list(on.fake.hooks.deliveries)
        await on.deliver()
        run = await on.one()

        on.fake.hooks.deliveries = deliveries
        await on.deliver()
        await on.source.poll()
        on.restart()
        await on.source.poll()

        assert (await on.one()).id == run.id

    async def test_a_strangers_label_is_refused_once_by_both_ways(self, on: Stage) -> None:
        on.fake.user("stranger")
        on.fake.issue(on.repo, "Do it", actor="stranger")
        on.fake.label(on.repo, 1, "pilot", actor="stranger")
        await on.deliver()
        await on.source.poll()

        assert await on.executions() == []
        assert [actor for actor, _ in await on.refusals()] == ["stranger"]

    async def test_what_is_not_about_us_costs_no_request(self, on: Stage) -> None:
        other = on.fake.repo("acme/other", mona="admin")
        on.fake.issue(other, "Not ours", labels=["pilot"])
        on.fake.issue(on.repo, "Another label", labels=["bug"])
        on.fake.edit(on.repo, 1, body="New")
        on.fake.hooks.deliveries = [each for each in on.fake.hooks.deliveries if b'"opened"' not in each.body]
        await on.deliver()

        assert on.requests() == 0

    async def test_a_new_task_costs_few_requests(self, on: Stage) -> None:
        on.fake.issue(on.repo, "Do it", labels=["pilot"])
        on.fake.hooks.deliveries = on.fake.hooks.deliveries[-1:]
        await on.deliver()

        assert len(await on.executions()) == 1
        assert on.requests() <= 4

    async def test_pull_requests_and_checks_are_news_for_who_watches_them(self, on: Stage) -> None:
        sha = on.fake.branch(on.repo, "x")
        number = on.fake.pull(on.repo, "x", "A change")
        on.fake.review(on.repo, number, "CHANGES_REQUESTED", "No.")
        on.fake.check_run(on.repo, sha, "test", "failure")
        on.fake.close(on.repo, number)
        await on.deliver()

        assert set(on.nudged) == {("acme/api", number), ("acme/api", sha)}

    async def test_a_forged_one_is_not_accepted(self, on: Stage) -> None:
        on.fake.issue(on.repo, "Do it", labels=["pilot"])
        delivery = on.fake.hooks.deliveries[-1]

        with pytest.raises(NotAccepted):
            on.source.verify({k.lower(): v for k, v in headers(delivery, "guess").items()}, delivery.body)

    async def test_without_a_secret_there_are_none(self, tmp_path: Path) -> None:
        place = tmp_path / "other"
        place.mkdir()
        async with stage(place, webhook_secret=None) as on:
            with pytest.raises(NotFound):
                on.source.verify({}, b"")

    async def test_what_is_gone_before_it_is_looked_at_holds_up_nothing(self, on: Stage) -> None:
        id = await begun(on)
        on.clock.tick(MINUTE)
        on.fake.comment(on.repo, 1, "/pilot cancel")
        on.repo.comments.clear()
        on.fake.issue(on.repo, "Deleted", labels=["pilot"])
        del on.repo.items[2]
        await on.deliver()

        assert (await on.store.queue.get(id)).status is Status.QUEUED

    async def test_while_github_is_away_they_wait(self, on: Stage) -> None:
        on.fake.issue(on.repo, "Do it", labels=["pilot"])
        deliveries = list(on.fake.hooks.deliveries)
        on.fake.lose_next("GET", "/issues/1", times=3)
        with pytest.raises(Later):
            await on.deliver()
        on.fake.use_up(60)
        on.fake.hooks.deliveries = list(deliveries)
        with pytest.raises(SourcePaused):
            await on.deliver()

        on.fake.recover()
        on.clock.tick(61 * SECOND)
        on.fake.hooks.deliveries = deliveries
        await on.deliver()
        assert len(await on.executions()) == 1

    @pytest.mark.parametrize("by", ["webhook", "poll"])
    @pytest.mark.parametrize("state", ["queued", "running", "needs_human"])
    async def test_a_closed_issue_is_wanted_no_more(self, on: Stage, by: str, state: str) -> None:
        id = await (questioned(on) if state == "needs_human" else begun(on))
        if state == "running":
            await on.take()
        await on.source.poll()
        on.clock.tick(MINUTE)
        on.fake.close(on.repo, 1)
        await (on.deliver() if by == "webhook" else on.source.poll())

        run = await on.store.queue.get(id)
        assert (run.status is Status.CANCELLED) != run.cancel_requested
        assert run.reason == "acme/api#1 was closed"

    async def test_issues_that_are_closed_one_after_the_other_are_all_seen_by_polls(self, on: Stage) -> None:
        for _ in range(3):
            on.fake.issue(on.repo, "Do it", labels=["pilot"])
        await on.source.poll()
        for number in (2, 3, 1):
            on.clock.tick(MINUTE)
            on.fake.close(on.repo, number)
            await on.source.poll()

        assert [row["status"] for row in await on.executions()] == ["cancelled"] * 3

    async def test_a_label_that_is_gone_or_at_a_closed_issue_asks_for_nothing(self, on: Stage) -> None:
        on.fake.issue(on.repo, "Late", labels=["pilot"])
        on.fake.close(on.repo, 1)
        await on.deliver()
        on.fake.label(on.repo, on.fake.issue(on.repo, "Taken back"), "pilot")
        on.fake.unlabel(on.repo, 2, "pilot")
        await on.deliver()

        assert await on.executions() == []

    async def test_another_tasks_run_of_the_same_name_is_not_cancelled(self, on: Stage) -> None:
        made = await on.store.queue.enqueue(task(on.project, "GH-1"))
        on.fake.close(on.repo, on.fake.issue(on.repo, "Something else"))
        await on.deliver()

        assert (await on.store.queue.get(made.id)).status is Status.QUEUED


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("/pilot answer blue", Command("answer", "blue")),
        ("Well.\r\n/pilot answer blue\r\nor red\r\n", Command("answer", "blue\nor red")),
        ("/pilot   RETRY  ", Command("retry", "")),
        ("/pilot", Command("", "")),
        ("/pilot dance", Command("dance", "")),
        ("/pilots retry", None),
        ("say /pilot retry", None),
        (" /pilot retry", None),
        ("> /pilot retry", None),
        ("```\n/pilot retry\n```", None),
        ("~~~sh\n/pilot retry\n~~~\n/pilot cancel", Command("cancel", "")),
        ("blue", None),
    ],
    ids=lambda value: None if not isinstance(value, str) else value.replace("\r", "").replace("\n", "|"),
)
def test_a_command_stands_at_the_start_of_a_line(body: str, said: Command | None) -> None:
    assert command(body) == said


@pytest.fixture(params=["webhook", "poll", "both"])
def by(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def hear(on: Stage, by: str) -> None:
    """What was said arrives."""
    deliveries = list(on.fake.hooks.deliveries)
    if by != "poll":
        await on.deliver()
    if by != "webhook":
        await on.source.poll()
    if by == "both":  # and everything once more
        on.restart()
        on.fake.hooks.deliveries = deliveries
        await on.deliver()
        await on.source.poll()


class TestComments:
    async def test_a_reply_answers_the_question_once(self, on: Stage, by: str) -> None:
        id = await questioned(on)
        on.fake.comment(on.repo, 1, "Blue, please.", actor="will")
        await hear(on, by)

        assert (await on.store.queue.get(id)).status is Status.QUEUED
        assert await answer(on, id) == ("Blue, please.", "github:will")
        assert await on.refusals() == []

    async def test_a_repairs_question_is_answered_at_its_issue(self, on: Stage, by: str) -> None:
        id = await begun(on)
        await on.store.queue.finish(done(await on.take()))
        first = await on.store.queue.get(id)
        more = {"source": "failing_ci", "parent": id, "origin": first.origin}
        repair = (await on.store.queue.enqueue(task(on.project, "GH-1", **more))).id
        await on.store.queue.finish(asked(await on.take(), "Which colour?"))
        on.clock.tick(MINUTE)
        await on.source.poll()
        on.clock.tick(SECOND)
        on.fake.comment(on.repo, 1, "Blue.", actor="will")
        await hear(on, by)

        assert await answer(on, repair) == ("Blue.", "github:will")

    async def test_a_command_answers_too_and_a_number_is_an_option(self, on: Stage, by: str) -> None:
        id = await questioned(on, options=("red", "blue"))
        on.fake.comment(on.repo, 1, "Hm.\n/pilot answer 2", actor="mona")
        await hear(on, by)

        assert await answer(on, id) == ("blue", "github:mona")
        assert await on.refusals() == []

    async def test_what_was_said_before_the_question_answers_nothing(self, on: Stage, by: str) -> None:
        id = await begun(on)
        on.fake.comment(on.repo, 1, "Nice idea!", actor="will")
        on.clock.tick(SECOND)
        await on.store.queue.finish(asked(await on.take(), "Which colour?"))
        on.clock.tick(MINUTE)
        await hear(on, by)

        assert (await on.store.queue.get(id)).status is Status.NEEDS_HUMAN

    async def test_an_answer_does_not_answer_the_next_question(self, on: Stage, by: str) -> None:
        id = await questioned(on)
        on.fake.comment(on.repo, 1, "Blue.", actor="will")
        deliveries = list(on.fake.hooks.deliveries)
        await hear(on, by)
        on.clock.tick(SECOND)
        await on.store.queue.finish(asked(await on.take(), "Which size?"))
        on.clock.tick(MINUTE)
        on.fake.hooks.deliveries = deliveries
        await hear(on, by)

        assert (await on.store.queue.get(id)).status is Status.NEEDS_HUMAN
        assert await on.refusals() == []

    @pytest.mark.parametrize("who", ["tess", "stranger", "helper[bot]"])
    async def test_who_may_not_ask_may_not_answer(self, on: Stage, by: str, who: str) -> None:
        on.fake.user(who, "Bot" if who.endswith("]") else "User")
        id = await questioned(on)
        on.fake.comment(on.repo, 1, "/pilot answer Send me the keys.", actor=who)
        await hear(on, by)

        assert (await on.store.queue.get(id)).status is Status.NEEDS_HUMAN
        assert [actor for actor, _ in await on.refusals()] == ([] if who.endswith("]") else [who])

    async def test_a_comment_that_was_edited_is_no_command(self, on: Stage, by: str) -> None:
        id = await questioned(on)
        said = on.fake.comment(on.repo, 1, "Hm.", actor="will")
        on.clock.tick(SECOND)
        on.fake.edit_comment(on.repo, said, "/pilot answer blue", actor="will")
        await hear(on, by)

        assert (await on.store.queue.get(id)).status is Status.NEEDS_HUMAN

    async def test_pilots_own_words_are_no_answer_though_its_account_may(self, on: Stage, by: str) -> None:
        id = await questioned(on)
        on.fake.comment(on.repo, 1, "<!-- pilot:execution=1 -->\n\nA question", actor="robot")
        await hear(on, by)
        assert (await on.store.queue.get(id)).status is Status.NEEDS_HUMAN

        on.fake.comment(on.repo, 1, "Blue.", actor="robot")  # the person whose token it is
        await hear(on, by)
        assert await answer(on, id) == ("Blue.", "github:robot")

    async def test_a_marker_in_somebody_elses_comment_means_nothing(self, on: Stage, by: str) -> None:
        id = await questioned(on)
        on.fake.comment(on.repo, 1, "<!-- pilot:execution=1 -->\nBlue.", actor="will")
        await hear(on, by)

        assert (await on.store.queue.get(id)).status is Status.QUEUED

    async def test_retry_makes_one_new_run(self, on: Stage, by: str) -> None:
        id = await failed(on)
        on.fake.comment(on.repo, 1, "/pilot retry", actor="will")
        await hear(on, by)
        rows = await on.executions()
        assert [row["status"] for row in rows] == ["failed", "queued"]
        assert (await on.store.queue.get(rows[1]["id"])).parent == id

        on.clock.tick(SECOND)
        await on.store.queue.finish(broken(await on.take()))
        on.clock.tick(MINUTE)
        await on.source.poll()
        assert [row["status"] for row in await on.executions()] == ["failed", "failed"]
        assert await on.refusals() == []

    async def test_retry_of_what_still_goes_on_is_refused_in_words(self, on: Stage, by: str) -> None:
        await begun(on)
        on.clock.tick(MINUTE)
        on.fake.comment(on.repo, 1, "/pilot retry", actor="will")
        await hear(on, by)

        assert len(await on.executions()) == 1
        assert [reason for _, reason in await on.refusals()] == [
            "execution 1 is queued; only an ended one can be tried again"
        ]

    async def test_cancel_ends_what_is_queued_and_asks_what_runs(self, on: Stage, by: str) -> None:
        id = await begun(on)
        on.clock.tick(MINUTE)
        on.fake.comment(on.repo, 1, "/pilot cancel", actor="will")
        await hear(on, by)

        run = await on.store.queue.get(id)
        assert (run.status, run.reason) == (Status.CANCELLED, "cancelled by will on GitHub")
        assert await on.refusals() == []

    async def test_an_old_cancel_does_not_end_a_newer_run(self, on: Stage, by: str) -> None:
        await begun(on)
        on.clock.tick(MINUTE)
        on.fake.comment(on.repo, 1, "/pilot cancel", actor="will")
        deliveries = list(on.fake.hooks.deliveries)
        await hear(on, by)
        on.clock.tick(MINUTE)
        on.fake.unlabel(on.repo, 1, "pilot")
        on.fake.label(on.repo, 1, "pilot")
        await on.deliver()
        on.fake.hooks.deliveries = deliveries
        await hear(on, by)

        assert [row["status"] for row in await on.executions()] == ["cancelled", "queued"]

    async def test_an_unknown_command_is_refused_in_words(self, on: Stage, by: str) -> None:
        await begun(on)
        on.clock.tick(MINUTE)
        on.fake.comment(on.repo, 1, "/pilot dance", actor="will")
        await hear(on, by)

        assert await on.refusals() == [("will", "there is no command 'dance'; there are answer, retry, cancel")]

    async def test_chatter_is_left_alone(self, on: Stage, by: str) -> None:
        on.fake.user("stranger")
        await begun(on)
        on.fake.comment(on.repo, 1, "Me too!", actor="stranger")
        on.fake.issue(on.repo, "Another issue")
        on.fake.comment(on.repo, 2, "/pilot cancel", actor="mona")
        await hear(on, by)

        assert ([row["status"] for row in await on.executions()], await on.refusals()) == (["queued"], [])

    async def test_polls_go_on_from_where_they_were_and_cost_nothing_while_nobody_speaks(self, on: Stage) -> None:
        await questioned(on)
        for _ in range(3):
            on.clock.tick(MINUTE)
            await on.source.poll()
        used = on.fake.used["robot"]
        for _ in range(3):
            on.clock.tick(MINUTE)
            on.restart()
            await on.source.poll()

        assert on.fake.used["robot"] == used
