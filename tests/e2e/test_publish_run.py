"""`pilot run` up to the pull request: real commands, real git over HTTP, GitHub on loopback."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.daemon import Home, prompt
from tests.e2e.git_host import GitHost
from tests.e2e.github_fake import GitHubFake
from tests.e2e.github_state import Item, Repo


@dataclass
class Forge:
    """A project `web` whose repository is at GitHub, too."""

    home: Home
    fake: GitHubFake
    host: GitHost
    repo: Repo
    web: Path
    token: str

    @property
    def pulls(self) -> list[Item]:
        return [item for item in self.repo.items.values() if item.pull]


@pytest.fixture
def forge(home: Home, tmp_path: Path) -> Iterator[Forge]:
    with GitHubFake() as fake:
        host = GitHost(fake, tmp_path / "host")
        repo = fake.repo("acme/web", private=True, robot="write", mona="admin")
        gates = [{"name": "test", "run": "true"}]
        web = home.repo("web", github="acme/web", gates=gates)
        host.take(repo, web)
        token = fake.token("robot")
        home.environment["GITHUB_TOKEN"] = token
        home.configure(sources={"github": {"token": "${GITHUB_TOKEN}", "base_url": fake.url}})
        yield Forge(home, fake, host, repo, web, token)


def test_a_run_ends_with_its_pull_request(forge: Forge) -> None:
    done = forge.home.pilot("run", prompt("T-1"), "--task-id", "T-1", cwd=forge.web)

    (item,) = forge.pulls
    url = f"{forge.fake.view.web}/acme/web/pull/{item.number}"
    assert "• pushing pilot/T-1 to acme/web\n" in done.err
    assert f"• pull request: {url}\n" in done.err
    assert url in done.out
    assert forge.repo.head("pilot/T-1") == forge.home.value(1, "head_sha")
    assert (item.title, item.draft) == ("Do T-1.", True)
    assert "<code>T&#45;1&#46;txt</code> | 1 | 0 |" in item.body
    assert "| ✅ <code>test</code> | <code>true</code> | 0 |" in item.body
    assert "on exactly this tree" in item.body
    shown = forge.home.pilot("show", 1, "--json").json
    assert (shown["delivery"], shown["pr_url"]) == ("pr_open", url)
    forge.home.audit(completed=1)


def test_the_document_has_the_address_and_no_file_has_the_token(forge: Forge) -> None:
    orders = prompt("T-1", "environment")
    document = forge.home.pilot("run", orders, "--task-id", "T-1", "--json", cwd=forge.web).json

    assert (document["status"], document["delivery"]) == ("completed", "pr_open")
    assert document["pr_url"].endswith(f"/acme/web/pull/{forge.pulls[0].number}")
    for place in (forge.home.state, forge.home.control, forge.web, forge.home.root / "home"):
        for path in place.rglob("*"):
            if path.is_file() and not path.is_symlink():
                assert forge.token.encode() not in path.read_bytes(), path


def test_when_github_is_down_the_task_is_done_and_serve_delivers_it(forge: Forge) -> None:
    forge.host.lose_next("git-receive-pack", after=True)

    done = forge.home.pilot("run", prompt("T-1"), "--task-id", "T-1", cwd=forge.web, code=0)

    assert "1 completed (done)" in done.out
    assert "not delivered yet: " in done.err
    assert "`pilot serve`, or `pilot sync 1`, goes on with it" in done.err
    assert not forge.pulls
    ((tries,),) = forge.home.rows("SELECT tries FROM outbox WHERE delivered_at IS NULL AND kind = 'publish'")
    assert tries == 1

    with forge.home.serve() as daemon:
        forge.home.until(lambda: forge.pulls, "the pull request", 40)
        forge.home.until(lambda: forge.home.value(1, "delivery") == "pr_open", "the execution knows it")
        daemon.term()
        assert daemon.wait() == 0
    assert len(forge.pulls) == 1


def test_a_wrong_token_fails_no_task_and_parks_nothing(forge: Forge) -> None:
    forge.fake.revoke(forge.token)

    done = forge.home.pilot("run", prompt("T-1"), "--task-id", "T-1", cwd=forge.web, code=0)

    assert "not delivered yet: " in done.err
    assert "401" in done.err
    assert forge.token not in done.err + done.out
    assert not forge.home.rows("SELECT * FROM parks")


def test_an_interrupt_leaves_the_delivery_to_others(forge: Forge) -> None:
    hook = forge.host.root / "acme/web.git/hooks/pre-receive"
    sign = forge.home.root / "pushing"
    hook.write_text(f"#!/bin/sh\ntouch {sign}; sleep 3\n")
    hook.chmod(0o755)
    run = forge.home.start("run", prompt("T-1"), "--task-id", "T-1", cwd=forge.web)
    forge.home.until(sign.exists, "the push")

    run.send(signal.SIGINT)

    assert run.wait() == 0, "the task itself is done"
    assert "not delivered yet: it was broken off" in run.log


def test_a_killed_run_is_delivered_by_others(forge: Forge) -> None:
    hook = forge.host.root / "acme/web.git/hooks/pre-receive"
    sign = forge.home.root / "pushing"
    hook.write_text(f"#!/bin/sh\ntouch {sign}; sleep 0.5\n")
    hook.chmod(0o755)
    run = forge.home.start("run", prompt("T-1"), "--task-id", "T-1", cwd=forge.web)
    forge.home.until(sign.exists, "the push")
    run.kill9()
    assert forge.home.value(1, "status") == "completed"

    with forge.home.serve():
        forge.home.until(lambda: forge.pulls, "the pull request", 40)
        forge.home.until(lambda: forge.home.value(1, "delivery") == "pr_open", "the execution knows it")
    assert len(forge.pulls) == 1


def test_without_github_nothing_of_it_is_loaded(home: Home) -> None:
    web = home.repo("web")
    home.environment["PYTHONPROFILEIMPORTTIME"] = "1"
    done = home.pilot("run", prompt("T-1"), "--task-id", "T-1", cwd=web)
    loaded = {line.rpartition("|")[2].strip() for line in done.err.splitlines() if line.startswith("import time:")}
    assert "pilot.app.direct" in loaded
    assert not {"github", "pilot.clients.github", "pilot.publish.publisher", "telegram"} & loaded
