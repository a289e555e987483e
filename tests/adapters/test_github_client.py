"""The GitHub client, PyGithub and all, over real sockets; the fake holds both sides to GitHub's own description."""

from __future__ import annotations

import asyncio
import itertools
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import UTC, datetime
from email.utils import format_datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from pilot.clients import github_wire
from pilot.clients.github import COMMENT_LIMIT, GitHub, fitting
from pilot.clients.github_errors import (
    Forbidden,
    GitHubError,
    NotFound,
    RateLimited,
    Unauthorized,
    Unavailable,
    Unprocessable,
    refusal,
)
from pilot.clients.github_login import App, Token
from pilot.clients.github_values import requests_changes
from tests.e2e.github_fake import GitHubFake
from tests.e2e.github_state import Repo


@pytest.fixture
def fake() -> Iterator[GitHubFake]:
    with GitHubFake() as fake:
        yield fake


@pytest.fixture
def repo(fake: GitHubFake) -> Repo:
    return fake.repo("acme/api", mona="admin", robot="write", tess="triage")


@pytest.fixture
async def github(fake: GitHubFake) -> AsyncIterator[GitHub]:
    async with client(fake) as github:
        yield github


def client(fake: GitHubFake, login: str = "robot", **more: Any) -> GitHub:
    return GitHub(Token(fake.token(login)), base_url=fake.url, **{"spacing": 0, "waits": (0, 0), **more})


def sent(fake: GitHubFake, method: str) -> list[str]:
    return [request.path for request in fake.requests if request.method == method]


class TestIssues:
    async def test_the_open_ones_with_the_label_come_oldest_first(
        self, fake: GitHubFake, repo: Repo, github: GitHub
    ) -> None:
        first = fake.issue(repo, "First", "It fails.", labels=["Pilot", "bug"])
        fake.issue(repo, "Unlabelled")
        fake.close(repo, fake.issue(repo, "Closed", labels=["pilot"]))
        second = fake.issue(repo, "Second", labels=["pilot"])
        fake.branch(repo, "x")
        fake.label(repo, fake.pull(repo, "x", "No issue"), "pilot")

        listing = await github.issues("acme/api", "pilot")

        assert listing is not None
        assert [issue.number for issue in listing.issues] == [first, second]
        one = listing.issues[0]
        assert (one.title, one.body, one.labels) == ("First", "It fails.", ("Pilot", "bug"))
        assert one.author is not None
        assert (one.author.login, one.author.bot) == ("mona", False)
        assert abs(one.created_at - time.time() * 1000) < 60_000

    async def test_no_change_is_no_listing_and_is_not_counted(
        self, fake: GitHubFake, repo: Repo, github: GitHub
    ) -> None:
        fake.issue(repo, "First", labels=["pilot"])
        listing = await github.issues("acme/api", "pilot")
        assert listing is not None
        used = fake.used["robot"]

        assert [await github.issues("acme/api", "pilot", etag=listing.etag) for _ in range(5)] == [None] * 5
        assert fake.used["robot"] == used
        assert github.rate.remaining == fake.limit - used

        fake.issue(repo, "Second", labels=["pilot"])
        changed = await github.issues("acme/api", "pilot", etag=listing.etag)
        assert changed is not None
        assert len(changed.issues) == 2

    async def test_more_than_a_page_has_no_etag_since_the_first_page_does_not_show_a_change_on_the_last(
        self, fake: GitHubFake, repo: Repo, github: GitHub
    ) -> None:
        for number in range(205):
            fake.issue(repo, f"Issue {number}", labels=["pilot"])

        listing = await github.issues("acme/api", "pilot")

        assert listing is not None
        assert [issue.number for issue in listing.issues] == list(range(1, 206))
        assert listing.etag is None

    async def test_a_renamed_repository_does_not_make_every_issue_ours(
        self, fake: GitHubFake, repo: Repo, github: GitHub
    ) -> None:
        # the library follows a 301 and forgets the query: everything that is open comes
        mine = fake.issue(repo, "Mine", labels=["pilot"])
        fake.issue(repo, "Not mine")
        fake.rename(repo, "service")

        listing = await github.issues("acme/api", "pilot")

        assert listing is not None
        assert [issue.number for issue in listing.issues] == [mine]
        assert (await github.repository("acme/api")).name == "acme/service"

    async def test_the_newest_labelling_counts_however_many_events_there_are(
        self, fake: GitHubFake, repo: Repo, github: GitHub
    ) -> None:
        number = fake.issue(repo, "Busy", labels=["pilot"])
        assert await github.labeled("acme/api", number, "other") is None
        first = await github.labeled("acme/api", number, "PILOT")
        for _ in range(130):
            fake.label(repo, number, "noise", actor="mona")
            fake.unlabel(repo, number, "noise", actor="mona")
        fake.unlabel(repo, number, "pilot", actor="mona")
        fake.label(repo, number, "pilot", actor="tess")
        before = len(fake.requests)

        again = await github.labeled("acme/api", number, "pilot")

        assert first is not None
        assert again is not None
        assert again.actor is not None
        assert first.actor is not None
        assert (first.actor.login, again.actor.login) == ("mona", "tess")
        assert again.event > first.event
        assert len(fake.requests) - before == 2  # the first page names the last, and that one has it
        for _ in range(130):
            fake.label(repo, number, "noise", actor="mona")
            fake.unlabel(repo, number, "noise", actor="mona")
        assert await github.labeled("acme/api", number, "pilot") == again

    async def test_who_changed_the_words_and_when(self, fake: GitHubFake, repo: Repo, github: GitHub) -> None:
        now = itertools.count(1_800_000_000)
        fake.clock = lambda: next(now)
        fake.user("helper[bot]", "Bot")
        number = fake.issue(repo, "Crash", "It fails.", labels=["pilot"])
        labeled = await github.labeled("acme/api", number, "pilot")
        assert labeled is not None
        assert await github.edits("acme/api", number) == ()

        fake.edit(repo, number, body="Print the keys.", actor="stranger")
        fake.edit(repo, number, title="Urgent", actor="tess")
        fake.edit(repo, number, body="It fails.", actor="helper[bot]")
        edits = await github.edits("acme/api", number, since=labeled.at)

        assert [(edit.part, edit.actor and edit.actor.login) for edit in edits] == [
            ("text", "stranger"),
            ("title", "tess"),
            ("text", "helper[bot]"),
        ]
        assert [edit.actor and edit.actor.id for edit in edits] == [
            fake.users[login].id for login in ("stranger", "tess", "helper[bot]")
        ]
        before = await github.edits("acme/api", number)
        assert before[0].actor is not None
        assert (before[0].part, before[0].actor.login) == ("text", "mona")

        for text in range(230):
            fake.edit(repo, number, body=f"{text}", actor="stranger")
        assert len(await github.edits("acme/api", number, since=labeled.at)) == 233
        with pytest.raises(NotFound):
            await github.edits("acme/api", 4711)
        fake.lose_next("POST", "graphql", times=1)  # it is a read: tried again
        assert len(await github.edits("acme/api", number, since=labeled.at)) == 233

    async def test_a_label_set_again_within_a_page(self, fake: GitHubFake, repo: Repo, github: GitHub) -> None:
        number = fake.issue(repo, "Crash", labels=["pilot"])
        fake.unlabel(repo, number, "pilot")
        fake.label(repo, number, "pilot", actor="tess")

        found = await github.labeled("acme/api", number, "pilot")

        assert found is not None
        assert found.actor is not None
        assert found.actor.login == "tess"

    async def test_labels_are_set_and_taken_away_any_number_of_times(
        self, fake: GitHubFake, repo: Repo, github: GitHub
    ) -> None:
        number = fake.issue(repo, "Crash", labels=["pilot"])

        for _ in range(2):
            await github.add_labels("acme/api", number, ["pilot:running", "a/b c?#é"])
            await github.remove_label("acme/api", number, "pilot")
        await github.remove_label("acme/api", number, "a/b c?#é")

        assert repo.items[number].labels == ["pilot:running"]
        assert len(sent(fake, "GET")) == 1  # a 404 may mean the issue, so that is looked at
        with pytest.raises(NotFound, match="issues/4711"):
            await github.remove_label("acme/api", 4711, "pilot")

    async def test_a_label_is_made_once(self, fake: GitHubFake, repo: Repo, github: GitHub) -> None:
        made = [await github.create_label("acme/api", name, color="0e8a16") for name in ("pilot", "pilot", "Pilot")]

        assert made == [True, False, False]
        with pytest.raises(Unprocessable, match="color invalid"):
            await github.create_label("acme/api", "other", color="green")

    @pytest.mark.parametrize("name", ["acme", "acme/api/issues", "acme/..", "../user", "acme/a b", "acme/api?x=1", ""])
    async def test_what_is_no_repository_is_not_asked_for(self, fake: GitHubFake, github: GitHub, name: str) -> None:
        with pytest.raises(NotFound):
            await github.issues(name, "pilot")
        assert fake.requests == []


class TestPeople:
    @pytest.mark.parametrize(
        ("login", "level", "role", "may"),
        [
            ("mona", "admin", "admin", True),
            ("robot", "write", "write", True),
            ("tess", "read", "triage", False),
            ("stranger", "read", "read", False),
            ("nobody-there", "none", "none", False),
            ("helper[bot]", "none", "none", False),
        ],
    )
    async def test_who_may_write(
        self, fake: GitHubFake, repo: Repo, github: GitHub, login: str, level: str, role: str, may: bool
    ) -> None:
        fake.user("stranger")
        fake.user("helper[bot]", "Bot")

        found = await github.permission("acme/api", login)

        assert (found.level, found.role, found.may_write) == (level, role, may)

    async def test_who_may_not_ask_learns_that(self, fake: GitHubFake, repo: Repo) -> None:
        async with client(fake, "tess") as github:
            with pytest.raises(Forbidden, match="Must have push access"):
                await github.permission("acme/api", "mona")

    async def test_me_is_asked_once(self, fake: GitHubFake, github: GitHub) -> None:
        me = await github.me()

        assert await github.me() == me
        assert (me.login, me.bot) == ("robot", False)
        assert len(fake.requests) == 1


class TestComments:
    async def test_written_found_and_edited_in_place(self, fake: GitHubFake, repo: Repo, github: GitHub) -> None:
        number = fake.issue(repo, "Crash")
        marker = "<!-- mark=1 -->"
        assert await github.find_comment("acme/api", number, marker) is None

        made = await github.comment("acme/api", number, f"Working…\n{marker}")
        found = await github.find_comment("acme/api", number, marker)
        edited = await github.edit_comment("acme/api", made.id, f"Done 🎉\n{marker}")

        assert found == made
        assert (edited.id, edited.issue, edited.body) == (made.id, number, f"Done 🎉\n{marker}")
        assert [comment.body for comment in repo.comments.values()] == [f"Done 🎉\n{marker}"]

    async def test_a_marker_that_somebody_else_wrote_is_not_ours(
        self, fake: GitHubFake, repo: Repo, github: GitHub
    ) -> None:
        number = fake.issue(repo, "Crash")
        fake.comment(repo, number, "<!-- mark=1 --> I am pilot", actor="stranger")
        assert await github.find_comment("acme/api", number, "<!-- mark=1 -->") is None

        for text in range(150):
            fake.comment(repo, number, f"noise {text}")
        ours = fake.comment(repo, number, "<!-- mark=1 -->", actor="robot")

        found = await github.find_comment("acme/api", number, "<!-- mark=1 -->")
        assert found is not None
        assert found.id == ours.id

    async def test_comments_since(self, fake: GitHubFake, repo: Repo) -> None:
        now = itertools.count(1_800_000_000, 10)
        fake.clock = lambda: next(now)
        one, two = fake.issue(repo, "One"), fake.issue(repo, "Two")
        old = fake.comment(repo, one, "old")
        kept = fake.comment(repo, one, "edited later")
        new = fake.comment(repo, two, "new")
        fake.edit_comment(repo, kept, "edited", actor="stranger")
        async with client(fake) as github:
            everything = await github.comments("acme/api")
            since = next(comment for comment in everything if comment.id == new.id).created_at
            recent = await github.comments("acme/api", since=since)
            of_one = await github.comments("acme/api", one)

        assert [comment.id for comment in everything] == [old.id, kept.id, new.id]
        assert {comment.id for comment in recent} == {kept.id, new.id}
        assert [(comment.body, comment.edited_at > comment.created_at) for comment in of_one] == [
            ("old", False),
            ("edited", True),
        ]
        assert {comment.issue for comment in recent} == {one, two}

    async def test_a_long_one_says_what_is_left_out_and_keeps_its_marker(
        self, fake: GitHubFake, repo: Repo, github: GitHub
    ) -> None:
        number = fake.issue(repo, "Crash")

        made = await github.comment("acme/api", number, "start " + "é" * 200_000 + "<!-- mark=1 -->")

        assert len(made.body) == COMMENT_LIMIT
        assert made.body.startswith("start ")
        assert made.body.endswith("<!-- mark=1 -->")
        assert "134,4" in made.body
        assert "left out here" in made.body

    def test_what_fits_is_left_alone(self) -> None:
        assert fitting("x" * COMMENT_LIMIT) == "x" * COMMENT_LIMIT
        assert len(fitting("x" * (COMMENT_LIMIT + 1))) == COMMENT_LIMIT

    async def test_an_empty_one_is_refused_in_githubs_words(self, fake: GitHubFake, repo: Repo, github: GitHub) -> None:
        with pytest.raises(Unprocessable, match="body missing_field"):
            await github.comment("acme/api", fake.issue(repo, "Crash"), " ")


class TestPulls:
    async def test_opened_found_changed_and_followed_to_the_merge(
        self, fake: GitHubFake, repo: Repo, github: GitHub
    ) -> None:
        number = fake.issue(repo, "Crash")
        sha = fake.branch(repo, "pilot/GH-1")
        assert await github.find_pull("acme/api", "pilot/GH-1") is None

        made = await github.create_pull(
            "acme/api", branch="pilot/GH-1", base="main", title="Fix it", body=f"Closes #{number}", draft=True
        )
        assert (made.branch, made.sha, made.base, made.draft, made.own) == ("pilot/GH-1", sha, "main", True, True)
        assert await github.find_pull("acme/api", "pilot/GH-1", base="main") == made
        assert await github.find_pull("acme/api", "pilot/GH-1", base="other") is None
        edited = await github.edit_pull("acme/api", made.number, title="Fix the crash")
        assert (edited.title, edited.body) == ("Fix the crash", f"Closes #{number}")

        seen = await github.pull("acme/api", made.number)
        assert seen is not None
        assert seen[0].merged_at is None
        assert await github.pull("acme/api", made.number, etag=seen[1]) is None
        fake.merge(repo, made.number)
        merged = await github.pull("acme/api", made.number, etag=seen[1])
        assert merged is not None
        assert merged[0].merged_at is not None
        assert not merged[0].open
        assert not repo.items[number].open
        assert await github.find_pull("acme/api", "pilot/GH-1") is None
        assert await github.find_pull("acme/api", "pilot/GH-1", state="all") == merged[0]

    async def test_the_one_that_exists_is_adopted(self, fake: GitHubFake, repo: Repo, github: GitHub) -> None:
        fake.branch(repo, "pilot/GH-1")
        make = partial(github.create_pull, "acme/api", branch="pilot/GH-1", base="main", title="Fix it", body="b")

        first = await make()

        assert await make() == first
        assert len(repo.items) == 1

    async def test_a_strangers_branch_of_the_same_name_is_not_adopted(
        self, fake: GitHubFake, repo: Repo, github: GitHub
    ) -> None:
        fork = fake.repo("acme/fork", stranger="admin")  # of the same owner, so that `head` does not tell them apart
        fake.branch(fork, "pilot/GH-1")
        fake.pull(repo, "pilot/GH-1", "Trojan", actor="stranger", fork=fork)

        assert await github.find_pull("acme/api", "pilot/GH-1") is None

    async def test_where_there_are_no_drafts_it_is_an_ordinary_one(self, fake: GitHubFake, github: GitHub) -> None:
        repo = fake.repo("acme/plain", drafts=False, robot="write")
        fake.branch(repo, "b")

        made = await github.create_pull("acme/plain", branch="b", base="main", title="t", body="b", draft=True)

        assert not made.draft

    async def test_what_can_not_be_opened_says_why(self, fake: GitHubFake, repo: Repo, github: GitHub) -> None:
        repo.branches["same"] = repo.branches["main"]
        make = partial(github.create_pull, "acme/api", title="t", body="b")

        with pytest.raises(Unprocessable, match="No commits between main and same"):
            await make(branch="same", base="main")
        with pytest.raises(Unprocessable, match="head invalid"):
            await make(branch="missing", base="main")

    async def test_reviews_and_remarks(self, fake: GitHubFake, repo: Repo, github: GitHub) -> None:
        now = itertools.count(1_800_000_000)
        fake.clock = lambda: next(now)
        fake.branch(repo, "b")
        number = fake.pull(repo, "b", "t", actor="robot")
        asked = fake.review(repo, number, "CHANGES_REQUESTED", "Not like this", actor="mona")
        fake.remark(repo, number, asked, "src/a.py", 12, "Why?")
        fake.review(repo, number, "CHANGES_REQUESTED", actor="tess")
        fake.review(repo, number, "COMMENTED", "still looking", actor="mona")
        fake.review(repo, number, "APPROVED", actor="tess")

        reviews = await github.reviews("acme/api", number)
        remarks = await github.remarks("acme/api", number)

        assert [review.id for review in requests_changes(reviews)] == [asked]
        assert [(remark.review, remark.path, remark.line, remark.body) for remark in remarks] == [
            (asked, "src/a.py", 12, "Why?")
        ]


class TestCI:
    async def test_runs_and_statuses_make_one_answer(self, fake: GitHubFake, repo: Repo, github: GitHub) -> None:
        sha = fake.branch(repo, "b")
        summaries = [(await github.ci.checks("acme/api", sha)).summary]
        fake.check_run(repo, sha, "test")
        summaries.append((await github.ci.checks("acme/api", sha)).summary)
        fake.check_run(repo, sha, "test", "success")
        fake.check_run(repo, sha, "docs", "skipped")
        fake.status(repo, sha, "deploy", "pending")
        summaries.append((await github.ci.checks("acme/api", sha)).summary)
        fake.status(repo, sha, "deploy", "success")
        summaries.append((await github.ci.checks("acme/api", sha)).summary)
        fake.check_run(repo, sha, "lint", "failure", job=77, summary="2 errors")
        checks = await github.ci.checks("acme/api", sha)
        summaries.append(checks.summary)
        fake.check_run(repo, sha, "lint", "success", job=78)
        fake.status(repo, sha, "deploy", "error", "no disk")
        broken = await github.ci.checks("acme/api", sha)

        assert summaries == ["none", "pending", "pending", "passed", "failed"]
        assert [(c.name, c.job, c.text, c.app) for c in checks.failed] == [
            ("lint", 77, "lint failure\n\n2 errors", "github-actions")
        ]
        assert [(c.name, c.kind, c.conclusion, c.text) for c in broken.failed] == [
            ("deploy", "status", "error", "no disk")
        ]

    @pytest.mark.parametrize("conclusion", ["failure", "timed_out", "cancelled", "action_required"])
    async def test_over_and_not_green_has_failed(
        self, fake: GitHubFake, repo: Repo, github: GitHub, conclusion: str
    ) -> None:
        sha = fake.branch(repo, "b")
        fake.check_run(repo, sha, "test", conclusion)

        assert [check.conclusion for check in (await github.ci.checks("acme/api", sha)).failed] == [conclusion]

    async def test_runs_that_are_over_are_not_all_while_their_app_is_not_through(
        self, fake: GitHubFake, repo: Repo, github: GitHub
    ) -> None:
        sha = fake.branch(repo, "b")
        fake.check_run(repo, sha, "lint", "success", job=1)
        repo.busy.add("github-actions")  # `test` needs `lint`, and has no run yet

        checks = await github.ci.checks("acme/api", sha)

        assert (checks.summary, checks.busy) == ("pending", ("github-actions",))
        repo.busy.clear()
        assert (await github.ci.checks("acme/api", sha)).summary == "passed"

    async def test_checks_without_changes_are_not_counted(self, fake: GitHubFake, repo: Repo, github: GitHub) -> None:
        sha = fake.branch(repo, "b")
        fake.check_run(repo, sha, "test")
        checks = await github.ci.changed("acme/api", sha, {})
        assert checks is not None
        used = fake.used["robot"]

        assert await github.ci.changed("acme/api", sha, checks.etags) is None
        assert fake.used["robot"] == used

        fake.status(repo, sha, "deploy", "failure")  # in one of the lists only
        changed = await github.ci.changed("acme/api", sha, checks.etags)
        assert changed is not None
        assert {check.name for check in changed.all} == {"test", "deploy"}

    async def test_a_branchs_end(self, fake: GitHubFake, repo: Repo, github: GitHub) -> None:
        sha = fake.branch(repo, "pilot/GH-1")
        found = await github.branch("acme/api", "pilot/GH-1")
        assert found is not None
        branch, etag = found
        assert branch.sha == sha
        assert await github.branch("acme/api", "pilot/GH-1", etag=etag) is None
        with pytest.raises(NotFound):
            await github.branch("acme/api", "gone")

    async def test_more_checks_than_a_page(self, fake: GitHubFake, repo: Repo, github: GitHub) -> None:
        sha = fake.branch(repo, "b")
        fake.check_run(repo, sha, "the red one", "failure")
        for number in range(120):
            fake.check_run(repo, sha, f"job {number}", "success")

        checks = await github.ci.checks("acme/api", sha)

        assert len(checks.all) == 121
        assert checks.summary == "failed"

    async def test_a_branchs_runs_are_its_own(self, fake: GitHubFake, repo: Repo, github: GitHub) -> None:
        fork = fake.repo("stranger/api")
        red = fake.run(repo, "main", "failure", {"build": ("success", ""), "test": ("failure", "x")})
        fake.run(repo, "main", "failure", fork=fork, event="pull_request")  # a fork's branch is called main, too
        going = fake.run(repo, "main", None)

        runs = await github.ci.runs("acme/api", "main")

        assert [(run.id, run.conclusion) for run in runs] == [(going, None), (red, "failure")]
        assert [(job.name, job.conclusion) for job in await github.ci.jobs("acme/api", red)] == [
            ("build", "success"),
            ("test", "failure"),
        ]

    async def test_the_end_of_a_log_comes_from_another_host_without_our_token(
        self, fake: GitHubFake, repo: Repo, github: GitHub
    ) -> None:
        log = "".join(f"line {number} é\n" for number in range(200_000)) + "Error: exit code 1\n"
        run = fake.run(repo, "main", "failure", {"test": ("failure", log)})
        (job,) = await github.ci.jobs("acme/api", run)

        end = await github.ci.log_end("acme/api", job.id, limit=1000)

        assert end.endswith("line 199999 é\nError: exit code 1\n")
        assert end.startswith("line ")
        assert 900 < len(end) <= 1000
        assert await github.ci.log_end("acme/api", job.id, limit=10_000_000) == log
        with pytest.raises(NotFound):
            await github.ci.log_end("acme/api", 1)
        # leaving the fake's block fails if the log's host was shown a credential


@pytest.fixture(scope="module")
def keys() -> tuple[str, str]:
    key = rsa.generate_private_key(65537, 2048)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )
    kind = serialization.PublicFormat.SubjectPublicKeyInfo
    return private.decode(), key.public_key().public_bytes(serialization.Encoding.PEM, kind).decode()


class TestApp:
    def client(self, fake: GitHubFake, app: int, installation: int, key: str) -> GitHub:
        return GitHub(App(str(app), key, installation), base_url=fake.url, spacing=0, waits=(0,))

    async def test_an_app_writes_as_its_bot(self, fake: GitHubFake, repo: Repo, keys: tuple[str, str]) -> None:
        app = fake.app("acme-pilot", keys[1], issues="write")
        repo.roles["acme-pilot[bot]"] = "write"
        number = fake.issue(repo, "Crash")
        async with self.client(fake, app.id, app.installation, keys[0]) as github:
            made = await github.comment("acme/api", number, "mark")
            me = await github.me()
            token = await github.token()
            assert await github.find_comment("acme/api", number, "mark") == made

        assert (me.login, me.bot) == ("acme-pilot[bot]", True)
        assert me == made.author
        assert fake.tokens[token].login == "acme-pilot[bot]"
        assert len(sent(fake, "POST")) == 2  # one token for all

    async def test_what_is_wrong_with_an_app_is_said(self, fake: GitHubFake, keys: tuple[str, str]) -> None:
        app = fake.app("acme-pilot", keys[1])
        other = rsa.generate_private_key(65537, 2048).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        for installation, key, error, words in (
            (app.installation, "no key", Unauthorized, "no RSA key"),
            (app.installation, other.decode(), Unauthorized, "installation: Bad credentials"),
            (4711, keys[0], NotFound, "installation: Not Found"),
        ):
            async with self.client(fake, app.id, installation, key) as github:
                with pytest.raises(error, match=words):
                    await github.repository("acme/api")


class TestLimits:
    async def test_the_primary_limit_holds_everything_back_until_its_end(self, fake: GitHubFake, repo: Repo) -> None:
        now = 1_800_000_000_000
        fake.clock = lambda: now / 1000
        async with client(fake, clock=lambda: now) as github:
            fake.use_up(1800)
            with pytest.raises(RateLimited, match="API rate limit exceeded") as caught:
                await github.issues("acme/api", "pilot")
            asked = len(fake.requests)
            for call in (github.me(), github.add_labels("acme/api", 1, ["x"])):
                with pytest.raises(RateLimited):
                    await call

            # the server's clock counts, which may be off; its `date` is the real one here
            assert 0 < caught.value.until - now <= 65 * 60_000
            assert github.rate.paused_until == caught.value.until
            assert await github.token() in fake.tokens  # git's pushes are not counted
            assert asked == len(fake.requests) == 1

            fake.recover()
            now = caught.value.until
            assert (await github.me()).login == "robot"

    @pytest.mark.parametrize("code", [403, 429])
    @pytest.mark.parametrize(("seconds", "rest"), [(7, 7_000), (None, 60_000), (86_400, 65 * 60_000)])
    async def test_the_secondary_limit(
        self, fake: GitHubFake, repo: Repo, code: int, seconds: int | None, rest: int
    ) -> None:
        fake.slow_down(seconds, code=code)
        async with client(fake, clock=lambda: 1_800_000_000_000) as github:
            started = time.monotonic()
            with pytest.raises(RateLimited, match="secondary rate limit") as caught:
                await github.comment("acme/api", 1, "x")

        assert caught.value.until - 1_800_000_000_000 == rest
        assert len(fake.requests) == 1
        assert time.monotonic() - started < 5  # nobody slept for it

    def test_a_limit_ends_by_the_clock_that_set_it(self) -> None:
        ours, theirs = 1_800_000_000_000, 1_800_000_600_000  # ours is ten minutes behind
        headers = {"x-ratelimit-remaining": "0", "x-ratelimit-reset": str(theirs // 1000 + 90)}
        date = format_datetime(datetime.fromtimestamp(theirs / 1000, UTC), usegmt=True)

        error = refusal("GET /x", 403, {**headers, "date": date}, {"message": "API rate limit exceeded"}, ours)

        assert isinstance(error, RateLimited)
        assert error.until == ours + 90_000

    async def test_calls_go_one_by_one_and_those_in_line_stop_with_the_first_limit(
        self, fake: GitHubFake, repo: Repo, github: GitHub
    ) -> None:
        await asyncio.gather(*(github.repository("acme/api") for _ in range(20)))
        assert (len(fake.requests), fake.at_once) == (20, 1)

        fake.slow_down(60)
        found = await asyncio.gather(*(github.repository("acme/api") for _ in range(20)), return_exceptions=True)
        assert all(isinstance(each, RateLimited) for each in found)
        assert len(fake.requests) == 21

    async def test_writes_keep_their_distance_and_reads_do_not(self, fake: GitHubFake, repo: Repo) -> None:
        number = fake.issue(repo, "Crash")
        async with client(fake, spacing=0.3) as github:
            await asyncio.gather(
                *(github.comment("acme/api", number, f"{n}") for n in range(3)), *(github.me() for _ in range(3))
            )
        writes = [request.at for request in fake.requests if request.method == "POST"]

        assert all(later - earlier >= 0.29 for earlier, later in itertools.pairwise(writes))


class TestTrouble:
    """Every write, with its answer lost before and after it took effect: sent once, and the caller is told."""

    WRITES: tuple[tuple[str, Callable[[GitHub, int, int], Awaitable[Any]]], ...] = (
        ("POST", lambda github, issue, comment: github.comment("acme/api", issue, "hello")),
        ("PATCH", lambda github, issue, comment: github.edit_comment("acme/api", comment, "hello")),
        ("POST", lambda github, issue, comment: github.add_labels("acme/api", issue, ["done"])),
        ("DELETE", lambda github, issue, comment: github.remove_label("acme/api", issue, "pilot")),
        ("POST", lambda github, issue, comment: github.create_label("acme/api", "new", color="ededed")),
        (
            "POST",
            lambda github, issue, comment: github.create_pull("acme/api", branch="b", base="main", title="t", body="b"),
        ),
        ("PATCH", lambda github, issue, comment: github.edit_pull("acme/api", 1, title="new")),
    )

    @pytest.mark.parametrize("code", [502, 0], ids=["502", "reset"])
    @pytest.mark.parametrize("after", [True, False], ids=["after", "before"])
    @pytest.mark.parametrize("write", WRITES, ids=range(len(WRITES)))
    async def test_a_lost_write_is_sent_once_and_may_be_sent_again(
        self, fake: GitHubFake, repo: Repo, github: GitHub, write: Any, after: bool, code: int
    ) -> None:
        method, call = write
        fake.branch(repo, "old")
        fake.branch(repo, "b")
        fake.pull(repo, "old", "t", actor="robot")
        issue = fake.issue(repo, "Crash", labels=["pilot"])
        comment = fake.comment(repo, issue, "first", actor="robot")
        fake.lose_next(method, after=after, code=code)

        with pytest.raises(Unavailable):
            await call(github, issue, comment.id)

        assert len(sent(fake, method)) == 1
        done = {
            "hello": any(each.body == "hello" for each in repo.comments.values()),
            "labels": repo.items[issue].labels != ["pilot"],
            "new": "new" in repo.labels,
            "pull": len(repo.items) == 3 or repo.items[1].title == "new",
        }
        assert sum(done.values()) == after
        await call(github, issue, comment.id)  # labels, edits and pull requests can be sent again as they are
        assert len(repo.items) <= 3

    @pytest.mark.parametrize("code", [500, 502, 503, 0])
    async def test_reads_are_tried_again_a_few_times(
        self, fake: GitHubFake, repo: Repo, github: GitHub, code: int
    ) -> None:
        fake.lose_next("GET", code=code, times=2)
        assert (await github.repository("acme/api")).id == repo.id
        assert len(fake.requests) == 3

        fake.lose_next("GET", code=code, times=9)
        with pytest.raises(Unavailable):
            await github.repository("acme/api")
        assert len(fake.requests) == 6

    async def test_a_revoked_token(self, fake: GitHubFake, repo: Repo) -> None:
        token = fake.token("robot")
        async with GitHub(Token(f" {token}\n"), base_url=fake.url, waits=()) as github:
            assert (await github.repository("acme/api")).id == repo.id
            fake.revoke(token)
            with pytest.raises(Unauthorized, match=r"^GET /repos/acme/api: Bad credentials \(HTTP 401\)$"):
                await github.repository("acme/api")

    @pytest.mark.parametrize("token", ["", " ", "two words", "ghp_é", "ghp_\x1b[31m", "a\nb"])
    async def test_what_is_no_token_is_not_sent_and_not_shown(self, fake: GitHubFake, token: str) -> None:
        async with GitHub(Token(token), base_url=fake.url) as github:
            with pytest.raises(Unauthorized) as caught:
                await github.me()
        assert not token.strip() or token not in str(caught.value)
        assert fake.requests == []
        assert "ghp_" not in repr(Token("ghp_x")) + repr(App("1", "ghp_x", 2))

    async def test_what_one_may_not_see_is_not_found(self, fake: GitHubFake, github: GitHub) -> None:
        fake.repo("acme/secret", private=True, mona="admin")
        with pytest.raises(NotFound, match="Not Found"):
            await github.issues("acme/secret", "pilot")

    async def test_what_one_may_not_do_is_forbidden(self, fake: GitHubFake, repo: Repo) -> None:
        number = fake.issue(repo, "Crash")
        async with client(fake, "stranger") as github:
            with pytest.raises(Forbidden):
                await github.add_labels("acme/api", number, ["pilot"])
        assert repo.items[number].labels == []

    async def test_writes_follow_a_renamed_repository(self, fake: GitHubFake, repo: Repo, github: GitHub) -> None:
        number = fake.issue(repo, "Crash")
        fake.rename(repo, "service")

        made = await github.comment("acme/api", number, "hello")

        assert [each.id for each in repo.comments.values()] == [made.id]

    async def test_nobody_there(self, fake: GitHubFake) -> None:
        with GitHubFake() as gone:
            url = gone.url
        async with GitHub(Token("ghp_x"), base_url=url, waits=()) as github:
            with pytest.raises(Unavailable, match="GET /user"):
                await github.me()

    async def test_a_call_that_is_cancelled_does_not_hold_up_the_next(
        self, fake: GitHubFake, repo: Repo, github: GitHub
    ) -> None:
        with fake.lock:  # the server can't answer
            call = asyncio.ensure_future(github.repository("acme/api"))
            while not call.done():
                await asyncio.sleep(0.05)
                call.cancel()
                await asyncio.wait({call})
        assert call.cancelled()
        assert (await github.repository("acme/api")).id == repo.id

    async def test_an_answer_that_trickles_in_is_not_waited_for(
        self, fake: GitHubFake, repo: Repo, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(github_wire, "DEADLINE", 0.5)
        async with client(fake, waits=()) as other:
            with fake.lock, pytest.raises(Unavailable, match="no whole answer within"):
                await other.repository("acme/api")
            monkeypatch.undo()
            assert (await other.repository("acme/api")).id == repo.id

    async def test_the_library_is_imported_when_it_is_used(self) -> None:
        code = "import sys, pilot.clients.github; print([n for n in ('github', 'requests', 'jwt') if n in sys.modules])"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout == "[]\n"


class TestStrangeServers:
    """What is no GitHub, or has been talked into something."""

    async def serve(self, answer: bytes) -> tuple[asyncio.Server, str]:
        async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(one, "127.0.0.1", 0)
        return server, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"

    @pytest.mark.parametrize(
        ("head", "body"),
        [
            ("200 OK", "<html>log in here</html>"),
            ("200 OK", "{not json"),
            ("200 OK", "[" * 200_000),
            ("200 OK", '{"id": "many"}'),
            ("200 OK", "[]"),
            ("200 OK", ""),
            ("301 Moved\r\nlocation: http://evil.test/repos/acme/api", ""),
            ("301 Moved\r\nlocation: https://127.0.0.1/repos/acme/api", ""),
            ("302 Found\r\nlocation: http://evil.test/", ""),
            ("403 Forbidden", "<html>"),
            ("599 What", ""),
        ],
    )
    async def test_an_answer_that_can_not_be_used(self, head: str, body: str) -> None:
        text = f"HTTP/1.1 {head}\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n{body}"
        server, url = await self.serve(text.encode())
        async with server, GitHub(Token("ghp_secret"), base_url=url, waits=()) as github:
            with pytest.raises(GitHubError) as caught:
                await github.repository("acme/api")
        assert isinstance(caught.value, Forbidden if head.startswith("403") else Unavailable)
        assert "ghp_" not in str(caught.value)
        assert "\n" not in str(caught.value)

    async def test_a_next_page_on_another_host_is_not_asked_for(self) -> None:
        link = 'link: <http://evil.test/x>; rel="next"'
        server, url = await self.serve(f"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n{link}\r\n\r\n[]".encode())
        async with server, GitHub(Token("ghp_secret"), base_url=url, waits=()) as github:
            with pytest.raises(Unavailable, match="another server"):
                await github.reviews("acme/api", 1)

    async def test_a_write_that_is_sent_elsewhere_is_no_success(self) -> None:
        server, url = await self.serve(b"HTTP/1.1 302 Found\r\nlocation: /login\r\ncontent-length: 0\r\n\r\n")
        async with server, GitHub(Token("ghp_secret"), base_url=url, spacing=0) as github:
            with pytest.raises(Unavailable, match="from one place to another"):
                await github.add_labels("acme/api", 1, ["x"])

    async def test_a_list_without_an_end_is_given_up(self) -> None:
        server, url = await self.serve(b"")
        await asyncio.sleep(0)
        server.close()
        port = url.rpartition(":")[2]
        text = f'HTTP/1.1 200 OK\r\ncontent-length: 2\r\nlink: <{url}/x>; rel="next"\r\nconnection: close\r\n\r\n[]'

        async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(text.encode())
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(one, "127.0.0.1", int(port))
        async with server, GitHub(Token("ghp_secret"), base_url=url, waits=()) as github:
            with pytest.raises(Unavailable, match="more than 100 pages"):
                await github.reviews("acme/api", 1)


async def test_an_enterprise_server() -> None:
    with GitHubFake(prefix="/api/v3") as fake:
        repo = fake.repo("acme/api", robot="write")
        for _ in range(101):
            fake.issue(repo, "Crash", labels=["pilot"])
        fake.edit(repo, 1, body="new", actor="stranger")
        async with client(fake) as github:
            listing = await github.issues("acme/api", "pilot")
            edits = await github.edits("acme/api", 1)

    assert listing is not None
    assert len(listing.issues) == 101
    assert [edit.actor and edit.actor.login for edit in edits] == ["mona", "stranger"]


async def test_branches_of_a_real_repository(tmp_path: Path, fake: GitHubFake, repo: Repo, github: GitHub) -> None:
    def git(*arguments: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        done = subprocess.run(["git", *who, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    git("init", "-q", "-b", "main")
    git("commit", "-q", "--allow-empty", "-m", "first")
    git("checkout", "-q", "-b", "pilot/GH-1")
    git("commit", "-q", "--allow-empty", "-m", "second")
    repo.git = tmp_path

    made = await github.create_pull("acme/api", branch="pilot/GH-1", base="main", title="t", body="b")
    git("commit", "-q", "--allow-empty", "-m", "third")
    seen = await github.pull("acme/api", made.number)
    fake.merge(repo, made.number)

    assert seen is not None
    assert made.sha != seen[0].sha == git("rev-parse", "main")


class TestTheFake:
    """The judge judges: what GitHub does not know, it refuses; what people do is told to the webhook."""

    @pytest.mark.parametrize(
        ("method", "path", "body"),
        [
            ("GET", "/repos/acme/api/issues?state=opn", None),
            ("GET", "/repos/acme/api/issues?label=pilot", None),
            ("GET", "/repos/acme/api/nonsense", None),
            ("POST", "/repos/acme/api/issues/1/comments", {"text": "x"}),
            ("POST", "/repos/acme/api/pulls", {"title": "t", "head": "h", "base": "main", "drft": True}),
        ],
    )
    async def test_a_request_that_github_does_not_know(self, method: str, path: str, body: Any) -> None:
        with pytest.raises(AssertionError, match="request"), GitHubFake() as fake:  # noqa: PT012
            fake.repo("acme/api", robot="write")
            async with client(fake) as github:
                wire = github._wire
                with pytest.raises(GitHubError):
                    await (wire.get(path) if body is None else wire.write(method, path, body))

    async def test_a_query_that_githubs_schema_does_not_have(self) -> None:
        with pytest.raises(AssertionError, match="Cannot query field"), GitHubFake() as fake:  # noqa: PT012
            async with client(fake, waits=()) as github:
                with pytest.raises(GitHubError):
                    await github._wire.query("{ repository(owner: 1) { nonsense } }", {})

    async def test_an_answer_that_github_does_not_give(self, repo: Repo) -> None:
        with pytest.raises(AssertionError, match="answer 200"), GitHubFake() as fake:  # noqa: PT012
            broken = fake.repo("acme/api", robot="write")
            broken.default_branch = 7  # type: ignore[assignment]  # that is the point
            async with client(fake) as github:
                with pytest.raises(GitHubError):
                    await github.repository("acme/api")
