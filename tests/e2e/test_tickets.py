"""From a label to a merged pull request, with a real daemon, a GitHub on loopback and real git."""

from __future__ import annotations

import signal
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.forge import Forge, forge


@pytest.fixture
def github(tmp_path: Path) -> Iterator[Forge]:
    gates = [{"name": "test", "run": "test -f GH-1.txt"}]
    with forge(tmp_path, gates=gates) as made:
        yield made


def test_from_a_label_to_a_merged_pull_request(github: Forge) -> None:
    with github.serve() as daemon:
        number = github.ask("Fix the login", "wait go")
        github.home.began("GH-1")
        github.home.until(lambda: github.labels(number) == ["pilot:running"], "the label of what runs")
        (comment,) = github.home.until(lambda: github.ours(number), "the comment")
        assert "<!-- pilot:execution=1 -->" in comment

        github.home.go("go")
        pull = github.pull()
        github.home.until(lambda: github.labels(number) == ["pilot:done"], "the label of what is done")
        assert f"Closes #{number}" in pull.body
        assert pull.draft
        assert pull.author.login == "robot"
        assert github.host.git("-C", str(github.bare), "show", "pilot/GH-1:GH-1.txt") == "GH-1"
        head = github.repo.head("pilot/GH-1")
        assert head is not None
        github.reach(status="completed", delivery="pr_open", head_sha=head)

        github.fake.check_run(github.repo, head, "ci")
        github.reach(checks="pending")
        github.fake.check_run(github.repo, head, "ci", "success")
        github.reach(checks="passed")

        github.fake.merge(github.repo, pull.number)
        github.reach(delivery="merged", status="completed")
        assert not github.repo.items[number].open
        github.home.until(lambda: not list(github.home.state.glob("workspaces/*/*")), "workspaces cleared away")
        assert len(github.ours(number)) == 1
        daemon.term()
        assert daemon.wait() == 0
    assert len(github.pulls()) == 1
    github.home.audit(completed=1)


def at_once(github: Forge) -> None:
    """Whatever waits for its next try is tried now."""
    with closing(sqlite3.connect(github.home.state / "pilot.db", timeout=30)) as database, database:
        database.execute("UPDATE outbox SET available_at = 0 WHERE delivered_at IS NULL")


def owed(github: Forge, kind: str) -> int:
    """How many of them have been tried and are owed still."""
    ((count,),) = github.home.rows(
        "SELECT count(*) FROM outbox WHERE delivered_at IS NULL AND tries > 0 AND kind = ?", kind
    )
    return int(count)


def opened(github: Forge) -> int:
    """How often a pull request was asked for."""
    return sum(one.method == "POST" and one.path.endswith("/pulls") for one in github.fake.requests)


@pytest.mark.timeout(300)
def test_killed_at_each_point_between_the_claim_and_the_merge(github: Forge) -> None:
    home, fake = github.home, github.fake
    with github.serve():  # killed while the agent works
        number = github.ask("Fix the login", "wait go")
        home.began("GH-1")
    home.go("go")
    github.host.lose_next("git-receive-pack", after=False)
    with github.serve():  # killed before the branch is pushed
        github.reach(status="completed")
        home.until(lambda: owed(github, "publish"), "a push that was lost")
    assert github.repo.head("pilot/GH-1") is None

    at_once(github)
    github.host.lose_next("git-receive-pack", after=True)
    with github.serve():  # killed when it is pushed, and pilot does not know
        home.until(lambda: github.repo.head("pilot/GH-1"), "the branch there")
    at_once(github)
    fake.lose_next("POST", r"/pulls$", after=False)
    with github.serve():  # killed before the pull request is opened
        home.until(lambda: opened(github) == 1, "a request that was lost")
    at_once(github)
    fake.lose_next("POST", r"/pulls$", after=True)
    with github.serve():  # killed when it is opened, and pilot does not know
        home.until(github.pulls, "a pull request whose answer was lost")
    assert len(github.pulls()) == 1
    assert github.row("delivery") == ("branch",)

    at_once(github)
    with github.serve():  # killed with the checks under way
        github.reach(delivery="pr_open")
        head = github.repo.head("pilot/GH-1")
        assert head is not None
        fake.check_run(github.repo, head, "ci")
        github.reach(checks="pending")
    fake.check_run(github.repo, head, "ci", "success")
    with github.serve():
        github.reach(checks="passed")
    fake.merge(github.repo, github.pull().number)  # merged while pilot was dead
    at_once(github)
    with github.serve() as daemon:
        github.reach(delivery="merged", status="completed", checks="passed")
        home.until(lambda: github.labels(number) == ["pilot:done"], "the label of what is done")
        at_once(github)
        home.until(lambda: home.rows("SELECT 1 FROM outbox WHERE delivered_at IS NULL") == [], "nothing owed")
        daemon.term()
        assert daemon.wait() == 0

    assert len(github.pulls()) == 1
    assert len(github.ours(number)) == 1
    assert not list(home.state.glob("workspaces/*/*"))
    home.audit(completed=1)


def test_sources_are_reloaded_whole_or_not_at_all(github: Forge) -> None:
    home, wanted = github.home, github.sources["github"]
    home.configure(sources={})
    with github.serve() as daemon:
        first = github.ask("Fix the login")
        home.configure(sources={"github": wanted})
        daemon.send(signal.SIGHUP)
        daemon.says("config.reloaded")
        github.reach(task_id=f"GH-{first}", status="completed")

        broken = {**wanted, "app": {"id": "1", "installation": 2, "private_key_file": str(home.root / "no.pem")}}
        home.configure(sources={"github": {key: value for key, value in broken.items() if key != "token"}})
        daemon.send(signal.SIGHUP)
        daemon.says("config.refused.*no.pem")
        second = github.ask("Fix the logout", "write GH-1.txt so that its gate is green")
        github.reach(task_id=f"GH-{second}", status="completed")
        daemon.term()
        assert daemon.wait() == 0


def test_what_is_being_delivered_at_a_stop_stays_the_nodes_own_until_it_is_done(
    github: Forge, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody else may take it meanwhile, and that it is done is written down."""
    home, served, go = github.home, github.host._served, threading.Event()

    def slow(handler: Any, path: str, *rest: Any) -> Any:
        assert "git-receive-pack" not in path or go.wait(60)
        return served(handler, path, *rest)

    monkeypatch.setattr(github.host, "_served", slow)
    held = "SELECT claimed_by IS NOT NULL FROM outbox WHERE kind = 'publish' AND delivered_at IS NULL"
    with github.serve() as daemon:
        github.ask("Fix the login")
        home.until(lambda: home.rows(held) == [(1,)], "a push under way", 60)
        daemon.term()
        daemon.says("serve.draining")
        home.until(lambda: home.rows("SELECT state FROM nodes") != [("up",)], "a node that takes no more")
        time.sleep(0.5)
        assert home.rows(held) == [(1,)]
        go.set()
        assert daemon.wait() == 0
        assert "delivery.lease_lost" not in daemon.log
    assert home.rows(
        "SELECT delivery, tries FROM executions JOIN outbox ON execution_id = 1 AND outbox.kind = 'publish'"
    ) == [("pr_open", 0)]
    assert home.rows("SELECT id FROM nodes") == []
    assert len(github.pulls()) == 1


def test_what_runs_ends_well_though_a_reload_takes_its_project_out(github: Forge) -> None:
    home, projects = github.home, github.home.settings["projects"]
    with github.serve() as daemon:
        number = github.ask("Fix the login", "wait go")
        home.began("GH-1")
        home.configure(projects=[])
        daemon.send(signal.SIGHUP)
        daemon.says("config.reloaded.*projects=0")
        home.go("go")
        github.reach(status="completed", failures=0, attempt=1, delivery="branch")
        home.configure(projects=projects)  # and what is owed is delivered when it is back
        daemon.send(signal.SIGHUP)
        github.reach(delivery="pr_open")
        home.until(lambda: github.labels(number) == ["pilot:done"], "the label of what is done")
    home.audit(completed=1)
