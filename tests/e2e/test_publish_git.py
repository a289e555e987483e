"""Pushes with a token to a real git server: what reaches it, what never does, and what becomes of lost answers."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from pilot.app.git_logins import login_for
from pilot.config.schema import GithubSettings, ProjectSettings
from pilot.domain.errors import UsageError, WorkspaceError
from pilot.domain.outcome import FailureClass
from pilot.domain.outside import GiveUp, Later
from pilot.publish.push import Push, git_root, prepare
from pilot.runner.git import Git
from pilot.runner.git_login import Login
from pilot.runner.source import Source, open_source
from tests.core.worksite import ENVIRON, git, repository
from tests.e2e.git_host import GitHost
from tests.e2e.github_fake import GitHubFake
from tests.e2e.github_state import Repo

BRANCH = "pilot/GH-1"


@dataclass
class Bench:
    """A project's repository, the server's, and a token that may write."""

    fake: GitHubFake
    host: GitHost
    repo: Repo
    bare: Path
    checkout: Path
    state: Path
    token: str
    source: Source = field(init=False)

    def __post_init__(self) -> None:
        own = ProjectSettings.model_validate({"name": "api", "path": self.checkout})
        self.source = open_source(Git(environ=ENVIRON), own, self.state)

    def work(self, text: str = "b = 2\n", *, on: str = "main", branch: str = BRANCH) -> str:
        """A commit of pilot's on its branch; its hash. The checkout itself stays on main."""
        tree = git(self.checkout, "write-tree")
        (self.checkout / "new.py").write_text(text)
        git(self.checkout, "add", "new.py")
        made = git(self.checkout, "commit-tree", "-p", on, "-m", "work", git(self.checkout, "write-tree"))
        git(self.checkout, "read-tree", tree)
        (self.checkout / "new.py").unlink()
        git(self.checkout, "update-ref", f"refs/heads/{branch}", made)
        return made

    def push(self, head: str, **changes: Any) -> Push:
        given: dict[str, Any] = {
            "root": git_root(self.fake.url),
            "repo": "acme/api",
            "branch": BRANCH,
            "head": head,
            "token": self.token,
        }
        return prepare(self.source, self.state, **given | changes)

    @property
    def there(self) -> str | None:
        return self.repo.head(BRANCH)

    def somebody_pushes(self, tmp: Path, name: str = "theirs.py") -> str:
        """A person's commit on top of the branch there."""
        clone = tmp / f"clone-{name}"
        self.host.git("clone", "--quiet", "--branch", BRANCH, str(self.bare), str(clone))
        (clone / name).write_text("theirs\n")
        git(clone, "add", name)
        git(clone, "commit", "--quiet", "-m", "theirs")
        git(clone, "push", "--quiet", "origin", f"HEAD:{BRANCH}")
        return git(clone, "rev-parse", "HEAD")


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    checkout = repository(tmp_path / "api")
    state = tmp_path / "state"
    state.mkdir()
    with GitHubFake() as fake:
        host = GitHost(fake, tmp_path / "host")
        repo = fake.repo("acme/api", private=True, robot="write", reader="read")
        bare = host.take(repo, checkout)
        yield Bench(fake, host, repo, bare, checkout, state, fake.token("robot"))


def descendants(pid: int) -> Iterator[Path]:
    """What this process has started, and what that has."""
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                yield Path("/proc") / child
                yield from descendants(int(child))


def posts(bench: Bench) -> list[str]:
    return [asked.service for asked in bench.host.requests if asked.method == "POST"]


@pytest.mark.parametrize(
    ("base_url", "root"),
    [
        ("https://api.github.com", "https://github.com"),
        ("https://github.acme.example/api/v3", "https://github.acme.example"),
        ("https://github.acme.example:8443/api/v3/", "https://github.acme.example:8443"),
        ("https://api.acme.ghe.com", "https://acme.ghe.com"),
        ("http://127.0.0.1:81", "http://127.0.0.1:81"),
        ("http://[::1]:81/x", "http://[::1]:81"),
        ("https://api.github.com.evil.example", "https://api.github.com.evil.example"),
    ],
    ids=["public", "enterprise", "port", "residency", "loopback", "loopback6", "evil"],
)
def test_the_git_server_is_the_one_that_belongs_to_the_api(base_url: str, root: str) -> None:
    assert git_root(base_url) == root


def test_no_token_goes_over_plain_http() -> None:
    with pytest.raises(UsageError, match="must not go over http to github"):
        git_root("http://github.acme.example/api/v3")


async def test_a_branch_arrives_and_is_sent_once(bench: Bench) -> None:
    head = bench.work()

    assert (await bench.push(head)(())).sha == head
    assert bench.there == head
    assert (await bench.push(head)(())).sha == head
    assert posts(bench).count("git-receive-pack") == 1
    assert bench.host.git("-C", str(bench.bare), "for-each-ref", "--format=%(refname)").split() == [
        "refs/heads/main",
        "refs/heads/pilot/GH-1",
    ]


async def test_later_work_on_top_goes_there(bench: Bench) -> None:
    first = bench.work()
    await bench.push(first)(())
    second = bench.work("b = 3\n", on=first)

    # our first push, whose answer and all memory of it got lost: nothing of it is left out
    await bench.push(second)(())

    assert bench.there == second


async def test_new_work_takes_the_place_of_what_pilot_left_there(bench: Bench) -> None:
    first = bench.work()
    await bench.push(first)(())
    anew = bench.work("b = 4\n")

    with pytest.raises(GiveUp, match="commits that pilot did not make"):
        await bench.push(anew)(())
    assert bench.there == first

    await bench.push(anew)({first})
    assert bench.there == anew


async def test_a_persons_commits_on_top_of_ours_are_adopted(bench: Bench, tmp_path: Path) -> None:
    head = bench.work()
    await bench.push(head)(())
    theirs = bench.somebody_pushes(tmp_path)

    pushed = await bench.push(head)({head})

    assert pushed.adopted
    assert pushed.sha == bench.there == theirs
    assert posts(bench).count("git-receive-pack") == 1


async def test_a_persons_commits_are_never_overwritten(bench: Bench, tmp_path: Path) -> None:
    head = bench.work()
    await bench.push(head)(())
    theirs = bench.somebody_pushes(tmp_path)
    repair = bench.work("b = 5\n", on=head)

    with pytest.raises(GiveUp, match="never overwritten: rename or delete that branch"):
        await bench.push(repair)({head})

    assert bench.there == theirs


async def test_a_push_between_the_look_and_ours_is_not_overwritten(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = bench.work()
    await bench.push(head)(())
    repair = bench.work("b = 5\n", on=head)
    push = bench.push(repair)
    looked = Push._remote
    theirs: list[str] = []

    async def overtaken(self: Push) -> str | None:
        found = await looked(self)
        if not theirs:
            theirs.append(bench.somebody_pushes(tmp_path))
        return found

    monkeypatch.setattr(Push, "_remote", overtaken)
    with pytest.raises(GiveUp, match="commits that pilot did not make"):
        await push({head})

    assert bench.there == theirs[0]


@pytest.mark.parametrize("after", [True, False], ids=["after", "before"])
async def test_a_lost_answer_is_found_out_by_looking(bench: Bench, after: bool) -> None:
    head = bench.work()
    bench.host.lose_next("git-receive-pack", after=after)

    with pytest.raises(Later, match="502"):
        await bench.push(head)(())
    assert (bench.there == head) is after
    await bench.push(head)(())

    assert bench.there == head
    assert posts(bench).count("git-receive-pack") == (1 if after else 2)


async def test_two_nodes_push_the_same_at_once(bench: Bench) -> None:
    head = bench.work()

    results = await asyncio.gather(*(bench.push(head)(()) for _ in range(3)), return_exceptions=True)

    assert bench.there == head
    # one may have met the other's lock; it looks again later
    assert all(isinstance(result, Later) or getattr(result, "sha", "") == head for result in results), results


@pytest.mark.parametrize("login", ["nobody", "reader"])
async def test_a_token_that_may_not_is_said_and_tried_again(bench: Bench, login: str) -> None:
    bench.token = "ghp_" + "x" * 36 if login == "nobody" else bench.fake.token(login)

    with pytest.raises(Later, match=r"does not take the token for git.*pilot doctor"):
        await bench.push(bench.work())(())

    assert bench.there is None


async def test_a_server_that_says_no_is_quoted(bench: Bench) -> None:
    hook = bench.bare / "hooks/pre-receive"
    hook.write_text("#!/bin/sh\necho 'error: GH013: Repository rule violations found' >&2; exit 1\n")
    hook.chmod(0o755)

    with pytest.raises(GiveUp, match=r"refuses branch pilot/GH-1: pre-receive hook declined; error: GH013"):
        await bench.push(bench.work())(())


async def test_a_commit_that_is_gone_is_given_up(bench: Bench) -> None:
    with pytest.raises(GiveUp, match="no longer in the project's repository"):
        await bench.push("1" * 40)(())


@pytest.mark.parametrize(
    "branch", ["main", "pilot", "pilot/../main", "pilot/x y", "refs/heads/pilot/x", "pilot/a:main"]
)
async def test_only_branches_of_pilots_own_are_pushed(bench: Bench, branch: str) -> None:
    with pytest.raises(GiveUp, match="pushes to no other"):
        bench.push(bench.work(), branch=branch)


async def test_nothing_that_the_repository_sets_counts(bench: Bench, tmp_path: Path) -> None:
    """An agent in a shared work tree can write all of this."""
    proof = tmp_path / "proof"
    head = bench.work()
    hooks = bench.checkout / ".git/hooks"
    for name in ("pre-push", "reference-transaction", "post-checkout"):
        (hooks / name).write_text(f"#!/bin/sh\ntouch {proof}\n")
        (hooks / name).chmod(0o755)
    for key, value in (
        ("core.hooksPath", str(hooks)),
        ("credential.helper", f"!touch {proof}; cat"),
        ("url.http://127.0.0.1:1/.insteadOf", git_root(bench.fake.url)),
        (f"http.{git_root(bench.fake.url)}/acme/api.git.proxy", "http://127.0.0.1:1"),
        ("http.proxy", "http://127.0.0.1:1"),
        ("core.sshCommand", f"touch {proof}"),
        ("push.gpgSign", "true"),
        ("remote.origin.url", "http://127.0.0.1:1/x"),
    ):
        git(bench.checkout, "config", key, value)

    await bench.push(head)(())

    assert bench.there == head
    assert not proof.exists()


async def test_a_redirect_is_not_followed_with_the_token(bench: Bench) -> None:
    heard: list[str | None] = []

    class Elsewhere(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            heard.append(self.headers.get("authorization"))
            self.send_response(401)
            self.send_header("www-authenticate", "Basic")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Elsewhere) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        bench.host.redirect = f"http://127.0.0.1:{server.server_port}"
        try:
            with pytest.raises(Later):
                await bench.push(bench.work())(())
        finally:
            server.shutdown()
            thread.join()
    assert heard == []


async def test_another_host_that_asks_is_told_nothing(bench: Bench) -> None:
    push = bench.push(bench.work(), root=git_root(bench.fake.url).replace("127.0.0.1", "localhost"))
    push = Push(push.git, f"{git_root(bench.fake.url)}/acme/api.git", push.branch, push.head)

    with pytest.raises(Later, match="does not take the token"):
        await push(())

    assert {asked.authorization for asked in bench.host.requests} <= {"", "Basic Og=="}


async def test_the_token_is_nowhere_but_in_the_pipe(
    bench: Bench, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[bytes] = []
    stop = threading.Event()

    def watch() -> None:
        while not stop.is_set():
            for process in descendants(os.getpid()):
                with contextlib.suppress(OSError):
                    seen.append((process / "cmdline").read_bytes() + (process / "environ").read_bytes())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        for text in ("b = 1\n", "b = 2\n", "b = 3\n"):
            head = bench.work(text)
            await bench.push(head)({bench.there or ""})
        bench.fake.revoke(bench.token)
        with pytest.raises(Later) as error:
            await bench.push(bench.work("b = 9\n"))({bench.there or ""})
    finally:
        stop.set()
        thread.join()

    token = bench.token.encode()
    assert any(b"ls-remote" in each or b"git-remote" in each or b"push" in each for each in seen)
    assert not any(token in each for each in seen)
    assert bench.token not in str(error.value) + repr(error.value.__cause__) + caplog.text
    for place in (bench.state, bench.checkout):
        for path in place.rglob("*"):
            if path.is_file():
                assert token not in path.read_bytes(), path
    assert not any(bench.token in value for value in os.environ.values())


async def test_a_cancelled_push_leaves_no_git_behind(bench: Bench) -> None:
    hook = bench.bare / "hooks/pre-receive"
    started = bench.state / "started"
    hook.write_text(f"#!/bin/sh\ntouch {started}; sleep 5\n")
    hook.chmod(0o755)
    task = asyncio.create_task(bench.push(bench.work())(()))
    while not started.exists():
        await asyncio.sleep(0.01)

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    for process in descendants(os.getpid()):
        with contextlib.suppress(OSError):
            assert b"--force-with-lease" not in (process / "cmdline").read_bytes()


class TestFetch:
    """A project that is given by its address is read with the same token, from the same server only."""

    def settings(self, bench: Bench) -> GithubSettings:
        return GithubSettings.model_validate({"token": bench.token, "base_url": bench.fake.url})

    def source(self, bench: Bench, url: str, settings: GithubSettings | None) -> Source:
        async def logins(url: str) -> Login | None:
            return await login_for(settings, url)

        own = ProjectSettings.model_validate({"name": "api", "url": url})
        return open_source(Git(environ=ENVIRON, logins=logins), own, bench.state)

    async def test_a_private_repository_is_cloned_and_nothing_keeps_the_token(self, bench: Bench) -> None:
        source = self.source(bench, f"{git_root(bench.fake.url)}/acme/api.git", self.settings(bench))

        await source.update()

        assert (await source.branches()).remote["main"] == bench.repo.head("main")
        for path in bench.state.rglob("*"):
            assert not path.is_file() or bench.token.encode() not in path.read_bytes(), path

    async def test_without_it_a_private_repository_is_none_of_ours(self, bench: Bench) -> None:
        source = self.source(bench, f"{git_root(bench.fake.url)}/acme/api.git", None)
        with pytest.raises(WorkspaceError) as error:
            await source.update()
        assert error.value.failure is FailureClass.AUTH

    @pytest.mark.parametrize(
        "url",
        [
            "https://evil.example/acme/api.git",
            "git@github.com:acme/api.git",
            "https://me:pw@github.com/acme/api.git",
            "https://github.com.evil.example/acme/api.git",
            "http://github.com/acme/api.git",
            "https://github.com:8443/acme/api.git",
            "/srv/api.git",
        ],
        ids=["elsewhere", "ssh", "own", "suffix", "plain", "port", "local"],
    )
    async def test_no_other_server_gets_it(self, url: str) -> None:
        settings = GithubSettings.model_validate({"token": "ghp_secret"})
        assert await login_for(settings, url) is None
        found = await login_for(settings, "https://github.com/acme/api.git")
        assert found == Login("https://github.com", "ghp_secret")
        assert "ghp_secret" not in repr(found)
