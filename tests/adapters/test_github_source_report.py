"""What an issue shows: the right label and one comment, whatever gets lost on the way."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pilot.config.schema import GithubLabelSettings
from pilot.domain.delivery import Pull, PullState, Report
from pilot.domain.execution import Execution
from pilot.domain.outcome import Ending, GateResult
from pilot.domain.outside import GiveUp, Later
from pilot.sources.github_words import Words, marker
from tests.adapters.github_stage import HOUR, MINUTE, SECOND, Stage, stage
from tests.store.bed import asked, broken, done, task


@pytest.fixture
async def on(tmp_path: Path) -> AsyncIterator[Stage]:
    async with stage(tmp_path) as on:
        yield on


async def begun(on: Stage) -> int:
    """An issue that has become an execution."""
    on.fake.issue(on.repo, "Do it", labels=["bug", "pilot"])
    await on.source.poll()
    return (await on.executions())[-1]["id"]  # type: ignore[no-any-return]


def pull(**more: Any) -> Pull:
    """A pull request of ours."""
    given: dict[str, Any] = {
        "id": 1, "project_id": 1, "execution": 1, "task_id": "GH-1", "branch": "pilot/GH-1", "repo": "acme/api",
        "base": "main", "draft": True, "number": 7, "url": "https://github.com/acme/api/pull/7", "head_sha": "a" * 40,
        "pushed_sha": None, "state": PullState.OPEN, "checks": "none", "red": (), "repairs": 0, "seen": {},
        "error": None, "created_at": 0, "opened_at": 0, "ended_at": None,
    }  # fmt: skip
    return Pull(**given | more)


class TestLabels:
    async def test_they_follow_the_run(self, on: Stage) -> None:
        id = await begun(on)
        await on.report(id)
        assert on.labels() == ["bug", "pilot:running"]

        await on.store.queue.finish(asked(await on.take()))
        await on.report(id)
        assert on.labels() == ["bug", "pilot:needs-human"]

        await on.store.queue.answer(id, "blue", "mona")
        await on.report(id)
        assert on.labels() == ["bug", "pilot:running"]

        await on.store.queue.finish(done(await on.take()))
        await on.report(id)
        assert on.labels() == ["bug", "pilot:done"]

    async def test_failed_and_cancelled_look_the_same(self, on: Stage) -> None:
        id = await begun(on)
        await on.store.queue.finish(broken(await on.take()))
        await on.report(id)
        assert on.labels() == ["bug", "pilot:failed"]

        id = (await on.store.queue.retry(id)).id
        await on.report(id)
        assert on.labels() == ["bug", "pilot:running"]
        await on.store.queue.cancel(id, "mona")
        await on.report(id)
        assert on.labels() == ["bug", "pilot:failed"]

    async def test_they_have_a_colour_and_names_of_ones_own(self, tmp_path: Path) -> None:
        async with stage(tmp_path, label="do-it", labels=GithubLabelSettings(running="doing")) as on:
            on.fake.issue(on.repo, "Do it", labels=["do-it"])
            await on.source.poll()
            id = (await on.one()).id
            await on.report(id)
            assert (on.labels(), on.repo.labels["doing"]) == (["doing"], "fbca04")
            await on.store.queue.cancel(id, "mona")
            await on.report(id)
            assert on.labels() == ["do-it:failed"]

    async def test_a_label_that_is_there_in_another_case_is_that_label(self, on: Stage) -> None:
        on.repo.labels["Pilot:Running"] = "000000"
        id = await begun(on)
        await on.report(id)
        await on.take()
        await on.report(id)

        assert (on.labels(), on.repo.labels["Pilot:Running"]) == (["Pilot:Running", "bug"], "000000")

    async def test_an_older_run_does_not_say_how_the_issue_stands(self, on: Stage) -> None:
        first = await begun(on)
        await on.store.queue.finish(broken(await on.take()))
        second = (await on.store.queue.retry(first)).id
        await on.report(second)
        await on.report(first)

        assert on.labels() == ["bug", "pilot:running"]
        assert len(on.said()) == 2

    async def test_a_request_that_nobody_has_seen_yet_is_not_taken_away(self, on: Stage) -> None:
        id = await begun(on)
        await on.report(id)
        await on.store.queue.finish(done(await on.take()))
        on.fake.label(on.repo, 1, "pilot")
        await on.report(id)
        assert on.labels() == ["bug", "pilot", "pilot:done"]

        await on.source.poll()
        second = (await on.executions())[-1]["id"]
        await on.report(second)
        assert (second != id, on.labels()) == (True, ["bug", "pilot:running"])

    async def test_a_request_while_it_runs_is_the_same_run_and_is_taken_away(self, on: Stage) -> None:
        id = await begun(on)
        await on.report(id)
        await on.take()
        on.fake.label(on.repo, 1, "pilot")
        await on.source.poll()
        await on.report(id)

        assert (len(await on.executions()), on.labels()) == (1, ["bug", "pilot:running"])

    @pytest.mark.parametrize(
        ("more", "label"),
        [
            ({"pull": pull(state=PullState.FAILED, error="no")}, "pilot:failed"),
            ({"pull": pull(), "type": "pull.repairs_used_up"}, "pilot:needs-human"),
            ({"pull": pull(state=PullState.CLOSED)}, "pilot:done"),
        ],
        ids=["no-pull", "repairs-used-up", "closed"],
    )
    async def test_after_the_end_the_pull_request_counts(self, on: Stage, more: dict[str, Any], label: str) -> None:
        id = await begun(on)
        await on.store.queue.finish(done(await on.take()))
        await on.report(id, **more)

        assert on.labels() == ["bug", label]

    async def test_a_repair_that_changed_nothing_leaves_the_say_to_whom_it_was_to_mend(self, on: Stage) -> None:
        id = await begun(on)
        await on.store.queue.finish(done(await on.take()))
        run = await on.store.queue.get(id)
        repair = mending(run)
        await on.store.queue.enqueue(task(on.project, run.task_id, **repair))
        await on.report(id + 1)
        await on.report(id, pull=pull())
        assert on.labels() == ["bug", "pilot:running"]

        await on.store.queue.finish(done(await on.take(), ending=Ending.NO_CHANGE))
        await on.report(id + 1)
        await on.report(id, pull=pull(), type="pull.repairs_used_up", data={"why": "a repair\nchanged nothing"})
        assert on.labels() == ["bug", "pilot:needs-human"]
        (comment,) = on.said()
        assert "**A person has to look:** a repair changed nothing" in comment.body

    async def test_a_repair_goes_on_in_the_comment_of_what_it_mends(self, on: Stage) -> None:
        id = await begun(on)
        await on.report(id)
        await on.store.queue.finish(done(await on.take()))
        await on.report(id, pull=pull())
        run = await on.store.queue.get(id)
        await on.store.queue.enqueue(task(on.project, run.task_id, **mending(run)))
        await on.report(id + 1)
        await on.report(id, pull=pull())  # late: the repair speaks now
        (comment,) = on.said()
        assert comment.body.startswith(marker(id))
        assert "**Accepted.**" in comment.body

        await on.store.queue.finish(done(await on.take()))
        for _ in range(2):
            await on.report(id + 1, pull=pull(checks="passed"))
        (comment,) = on.said()
        assert "**Done:**" in comment.body
        assert f"execution {id + 1}" in comment.body

    async def test_a_closed_issue_gets_no_running_label_back(self, on: Stage) -> None:
        id = await begun(on)
        on.fake.close(on.repo, 1)
        await on.store.queue.cancel(id, "github", "acme/api#1 was closed")
        await on.report(id)

        assert on.labels() == ["bug", "pilot:failed"]


def mending(run: Execution) -> dict[str, Any]:
    """As a repair is asked for when CI is red."""
    key = f"ci:1:{run.id}"
    return {
        "source": "failing_ci", "parent": run.id, "origin": run.origin, "backend": "command", "idempotency_key": key
    }  # fmt: skip


class TestComment:
    async def test_there_is_one_and_it_is_edited(self, on: Stage) -> None:
        id = await begun(on)
        for _ in range(2):
            await on.report(id)
        await on.take()
        await on.report(id)

        (comment,) = on.said()
        assert comment.body.startswith(f"<!-- pilot:execution={id} -->")
        assert "**Running** since 2027-01-15 08:00 UTC" in comment.body

    async def test_the_same_words_are_not_written_twice(self, on: Stage) -> None:
        id = await begun(on)
        await on.report(id)
        writes = len(on.writes())
        await on.report(id)
        assert len(on.writes()) == writes

    async def test_a_new_run_has_its_own(self, on: Stage) -> None:
        id = await begun(on)
        await on.store.queue.finish(broken(await on.take()))
        await on.report(id)
        await on.report((await on.store.queue.retry(id)).id)

        assert ["**Failed:**" in comment.body for comment in on.said()] == [True, False]

    async def test_somebody_elses_with_our_marker_is_not_ours(self, on: Stage) -> None:
        on.fake.user("stranger")
        id = await begun(on)
        fake = on.fake.comment(on.repo, 1, f"<!-- pilot:execution={id} -->\nAll done!", actor="stranger")
        await on.report(id)

        assert fake.body.endswith("All done!")
        assert len(on.said()) == 1

    async def test_one_that_somebody_deleted_is_written_again(self, on: Stage) -> None:
        id = await begun(on)
        await on.report(id)
        on.repo.comments.clear()
        await on.take()
        await on.report(id)

        assert len(on.said()) == 1

    async def test_of_a_very_long_story_the_middle_is_left_out(self, on: Stage) -> None:
        id = await begun(on)
        await on.store.queue.finish(done(await on.take()))
        gates = [gate(f"gate {number}" + "x" * 60, exit_code=0) for number in range(2000)]
        await on.report(id, summary="y" * 100_000, gates=tuple(gates))

        (comment,) = on.said()
        assert len(comment.body) <= 65_536


WRITES = ["label-made", "label-added", "label-removed", "asking-removed", "comment", "comment-edited"]


async def shown(on: Stage, write: str) -> tuple[int, str, str]:
    """An execution whose next report has to do that write; its method and path."""
    id = await begun(on)
    if write in ("label-removed", "comment-edited"):
        await on.report(id)
        await on.store.queue.finish(done(await on.take()))
    method, path = {
        "label-made": ("POST", "/api/labels"),
        "label-added": ("POST", "/issues/1/labels"),
        "label-removed": ("DELETE", "/labels/pilot:running|/labels/pilot%3Arunning"),
        "asking-removed": ("DELETE", "/labels/pilot$"),
        "comment": ("POST", "/issues/1/comments"),
        "comment-edited": ("PATCH", "/issues/comments"),
    }[write]
    return id, method, path


@pytest.mark.parametrize("code", [502, 0], ids=["502", "broken"])
@pytest.mark.parametrize("after", [True, False], ids=["done", "not-done"])
@pytest.mark.parametrize("write", WRITES)
async def test_a_write_whose_answer_is_lost_is_done_once(on: Stage, write: str, after: bool, code: int) -> None:
    id, method, path = await shown(on, write)
    on.fake.lose_next(method, path, after=after, code=code)

    with pytest.raises(Later):
        await on.report(id)
    assert on.fake.losses[-1].times == 0
    on.restart()
    await on.report(id)
    await on.report(id)

    assert len(on.said()) == 1
    ended = write in ("label-removed", "comment-edited")
    assert on.labels() == ["bug", "pilot:done" if ended else "pilot:running"]
    assert ("**Done.**" in on.said()[0].body) == ended


async def test_what_was_delivered_but_not_noted_is_found_again(on: Stage) -> None:
    id = await begun(on)
    await on.report(id, keep=False)
    await on.take()
    await on.report(id, keep=False)

    (comment,) = on.said()
    assert "**Running**" in comment.body


class TestTrouble:
    async def test_a_rate_limit_is_for_later(self, on: Stage) -> None:
        id = await begun(on)
        on.fake.slow_down(90)
        with pytest.raises(Later) as later:
            await on.report(id)
        assert later.value.at is not None
        assert later.value.at >= on.clock() + 90 * SECOND

    async def test_a_revoked_token_loses_nothing(self, on: Stage) -> None:
        id = await begun(on)
        on.fake.revoke(next(iter(on.fake.tokens)))
        with pytest.raises(Later):
            await on.report(id)

    async def test_an_issue_that_is_gone_is_given_up_in_words(self, on: Stage) -> None:
        id = await begun(on)
        del on.repo.items[1]
        with pytest.raises(GiveUp, match="404"):
            await on.report(id)

    async def test_a_right_that_is_gone_is_given_up_in_words(self, on: Stage) -> None:
        id = await begun(on)
        on.repo.roles["robot"] = "read"
        with pytest.raises(GiveUp, match="403"):
            await on.report(id)


def gate(name: str, *, exit_code: int = 1, **more: Any) -> GateResult:
    """A check that pilot ran."""
    given: dict[str, Any] = {"name": name, "kind": "test", "command": f"make {name}", "required": True}
    return GateResult(**given | {"exit_code": exit_code, "duration": 5, "tree": "t"} | more)


class TestWords:
    async def of(self, on: Stage, execution: Execution, **more: Any) -> str:
        report = Report(execution=execution, origin=execution.origin, event=1, **{"type": "x", **more})
        words = Words("pilot", on.desk.redact)
        return words.comment(report, report.execution.id, on.clock())

    async def test_a_queued_one_says_where_it_stands(self, on: Stage) -> None:
        run = await on.store.queue.get(await begun(on))
        assert "It is next." in await self.of(on, run, ahead=0)
        assert "1 other task before it." in await self.of(on, run, ahead=1)
        held = await self.of(on, run, ahead=0, holds=("waits until https://x/7 is merged (next_after: merged)",))
        assert "What holds it up: waits until https://x/7 is merged" in held
        assert "It is next" not in held
        later = replace(run, attempt=1, available_at=on.clock() + HOUR, reason="network: no route")
        assert "network\\: no route. It is tried again at 2027-01-15 09:00 UTC" in await self.of(on, later)

    async def test_a_question_says_how_to_answer_it(self, on: Stage) -> None:
        id = await begun(on)
        await on.store.queue.finish(asked(await on.take(), "Which colour?", options=("red", "blue"), default="red"))
        await on.report(id)

        body = on.said()[0].body
        assert "> Which colour?" in body
        assert "1. red\n2. blue" in body
        assert "Suggested: red" in body
        assert "`/pilot answer`" in body

    async def test_a_held_one_says_why(self, on: Stage) -> None:
        on.fake.user("stranger")
        on.fake.issue(on.repo, "Do it", actor="stranger")
        on.fake.label(on.repo, 1, "pilot")
        on.clock.tick(SECOND)
        on.fake.edit(on.repo, 1, actor="stranger", body="New")
        await on.source.poll()
        await on.report((await on.one()).id)

        assert "stranger changed the issue after the label was set" in on.said()[0].body
        assert on.labels() == ["pilot:needs-human"]

    async def test_a_failure_says_what_and_what_to_do(self, on: Stage) -> None:
        id = await begun(on)
        await on.store.queue.finish(broken(await on.take()))
        body = await self.of(on, await on.store.queue.get(id), gates=(gate("test", tail="1 failed"),))

        assert "**Failed:** the agent gave up or crashed" in body
        assert "```text\nit broke\n```" in body
        assert "`make test` said:\n\n```text\n1 failed\n```" in body
        assert "set the label `pilot` once more or write `/pilot retry`" in body

    async def test_the_end_has_a_receipt(self, on: Stage) -> None:
        id = await begun(on)
        running = await on.take()
        on.clock.tick(3 * MINUTE)
        await on.store.queue.finish(done(running))
        run = await on.store.queue.get(id)

        assert "<sub>execution 1 · 1 attempt · " in await self.of(on, run)
        known = replace(run, input_tokens=12_000, output_tokens=345, cost_usd=0.4249, model="big")
        assert "12,345 tokens · $0.42 · 3 min</sub>" in await self.of(on, known)
        assert "tokens unknown · cost unknown" in await self.of(on, replace(known, input_tokens=None, cost_usd=None))

    @pytest.mark.parametrize(
        ("more", "words"),
        [
            ({"state": PullState.OWED}, "The pull request is being opened."),
            ({"state": PullState.FAILED, "error": "no such base"}, "could not be opened:** no such base"),
            ({}, "**Done:** https://github.com/acme/api/pull/7"),
            ({"checks": "pending"}, "Checks are under way."),
            ({"checks": "failed", "red": ("lint", "a `b`")}, "Checks are red: `lint`, `` a `b` ``."),
            ({"state": PullState.MERGED}, "**Merged:** https://github.com/acme/api/pull/7"),
            ({"state": PullState.CLOSED}, "**Closed without being merged:**"),
        ],
        ids=["owed", "failed", "open", "pending", "red", "merged", "closed"],
    )
    async def test_the_pull_request(self, on: Stage, more: dict[str, Any], words: str) -> None:
        id = await begun(on)
        await on.store.queue.finish(done(await on.take()))
        assert words in await self.of(on, await on.store.queue.get(id), pull=pull(**more))

    HOSTILE = (
        "@mona fixes #12, closes acme/api#3 and GH-4.\n/pilot cancel\n<!-- pilot:execution=99 -->\n</sub>\n"
        "```\n[click](https://evil.example/x) ![](https://evil.example/y)\nhunter2 \x1b[31m\u202e\n# Title\n- [ ] x"
    )

    @pytest.mark.parametrize("where", ["summary", "question", "option", "reason", "detail", "tail", "name", "branch"])
    async def test_text_from_outside_does_nothing(self, on: Stage, where: str) -> None:
        id = await begun(on)
        running = await on.take()
        more: dict[str, Any] = {}
        if where in ("question", "option"):
            text, options = (self.HOSTILE, ()) if where == "question" else ("?", (self.HOSTILE,))
            await on.store.queue.finish(asked(running, text, options=options))
        elif where in ("reason", "detail", "tail"):
            await on.store.queue.finish(broken(running))
        else:
            await on.store.queue.finish(done(running))
        run = await on.store.queue.get(id)
        if where == "reason":
            run = replace(run, failure_class=None, reason=self.HOSTILE)
        elif where == "detail":
            run = replace(run, error=self.HOSTILE)
        elif where == "branch":
            run = replace(run, branch=self.HOSTILE)
        elif where == "tail":
            more["gates"] = (gate("test", tail=self.HOSTILE),)
        elif where == "name":
            more["gates"] = (gate(self.HOSTILE, exit_code=0),)
        elif where == "summary":
            more["summary"] = self.HOSTILE
        await on.report(id, **more) if where in ("question", "option") else None
        body = on.said()[-1].body if where in ("question", "option") else await self.of(on, run, **more)

        assert "hunter2" not in body
        assert not set("\x1b\u202e") & set(body)
        live = inert(body)
        assert re.findall(r"@\w|#\d|GH-\d|://(?!github)|\]\(", live) == []
        assert re.findall(r"^\s*/pilot", live, re.MULTILINE) == []
        assert live.count("<!--") == live.count("-->") == live.count("<sub>") == live.count("</sub>") == 1
        assert re.findall(r"^#|^ {0,3}- \[", live, re.MULTILINE) == []


def inert(body: str) -> str:
    """What Markdown would look at: without blocks and pieces of code."""
    body = re.sub(r"^(`{3,})text\n.*?\n\1$", "", body, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"(?<![`\\])(`+)(?!`).*?(?<!`)\1(?!`)", "", body)
