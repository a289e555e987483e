"""After the pull request, with the real daemon: red CI comes back to the agent, green and merged end it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.daemon import Home
from tests.e2e.git_host import GitHost
from tests.e2e.github_fake import GitHubFake
from tests.e2e.github_state import Item, Repo

LOG = "2026-11-22T12:00:00.0000000Z E  assert the fix is there\n2026-11-22T12:00:00.0000000Z ##[error]exit code 1\n"


class World:
    """One project at a GitHub of its own."""

    def __init__(self, root: Path, fake: GitHubFake) -> None:
        self.fake = fake
        self.home = Home(root / "pilot")
        checkout = self.home.repo("api", project=False)
        self.repo: Repo = fake.repo("acme/api", mona="admin", robot="write")
        GitHost(fake, root / "host").take(self.repo, checkout)
        token = fake.token("robot")
        self.home.settings["sources"] = {"github": {"token": token, "base_url": fake.url, "poll_interval": "1s"}}
        self.home.settings["projects"].append({"name": "api", "path": str(checkout), "github": "acme/api"})
        self.home.configure()

    def task(self) -> int:
        """Done well at the second time."""
        return self.home.enqueue("api", "do 2: write fix.txt yes", task_id="T-1")

    @property
    def pulls(self) -> list[Item]:
        with self.fake.lock:
            return [item for item in self.repo.items.values() if item.pull]

    def opened(self) -> str:
        """Wait for the pull request; its commit."""
        self.until("SELECT state FROM pulls", [("open",)])
        return self.repo.head("pilot/T-1") or ""

    def until(self, sql: str, rows: list[Any], seconds: float = 60) -> None:
        self.home.until(lambda: self.home.rows(sql) == rows, f"{sql}: {rows}", seconds)

    def red(self, sha: str) -> None:
        with self.fake.lock:
            job = next(self.fake.ids)
            self.repo.logs[job] = LOG.encode()
            self.fake.check_run(self.repo, sha, "test", "failure", job=job)

    def executions(self) -> list[Any]:
        return self.home.rows("SELECT id, source, status, parent FROM executions ORDER BY id")


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with GitHubFake() as fake:
        made = World(tmp_path, fake)
        yield made
        made.home.clear_away()


def test_red_is_repaired_on_the_same_branch_and_merged_is_the_end(world: World) -> None:
    home = world.home
    with home.serve() as daemon:
        first = world.task()
        sha = world.opened()
        (workspace,) = home.rows("SELECT workspace FROM executions")[0]
        world.red(sha)
        world.until("SELECT checks, repairs, pushed_sha = head_sha FROM pulls", [("pending", 1, 1)])
        mended = world.repo.head("pilot/T-1") or ""

        assert mended != sha
        assert home.git(world.repo.git or Path(), "show", f"{mended}:fix.txt") == "yes"
        assert home.git(world.repo.git or Path(), "merge-base", sha, mended) == sha  # nothing was rewritten
        assert len(world.pulls) == 1
        assert world.executions() == [
            (first, "cli", "completed", None),
            (first + 1, "failing_ci", "completed", first),
        ]
        told = home.rows("SELECT execution_id, data FROM events WHERE type = 'pull.repair_queued'")
        assert [(id, json.loads(data)["why"]) for id, data in told] == [(first, "test")]

        world.fake.check_run(world.repo, mended, "test", "success")
        world.until("SELECT checks FROM pulls", [("passed",)])
        world.fake.merge(world.repo, world.pulls[0].number)
        world.until("SELECT delivery, checks FROM executions ORDER BY id", [("merged", "failed"), ("merged", "passed")])
        home.until(lambda: not workspace or not Path(workspace).exists(), "the workspace is gone")
        daemon.term()
        assert daemon.wait() == 0


def test_sync_reads_once_and_says_what_changed(world: World) -> None:
    home = world.home
    with home.serve() as daemon:
        first = world.task()
        sha = world.opened()
        daemon.term()
        daemon.wait()
    world.red(sha)
    world.fake.use_up(1800)
    assert "rate limit" in home.pilot("sync", code=75).err
    world.fake.recover()

    (found,) = home.pilot("sync", "--json").json["pulls"]
    again = home.pilot("sync", first)
    world.fake.merge(world.repo, world.pulls[0].number)
    last = home.pilot("sync")

    assert found["execution"] == first
    assert found["changes"]["checks"] == {"before": "none", "after": "failed"}
    assert found["changes"]["repairs"] == {"before": "0", "after": "1"}
    assert (found["pull"]["red"], found["trouble"], found["owed"]) == (["test"], None, None)
    assert again.out.split("\t")[-1].strip() == "no change"
    assert "state: open → merged" in last.out
    assert [source for _, source, _, _ in world.executions()] == ["cli", "failing_ci"]
    assert "no pull request" in home.pilot("sync").err
    assert home.pilot("sync", 4711, code=4).out == ""


def test_a_daemon_that_is_killed_between_seeing_and_asking_repairs_once(world: World) -> None:
    home = world.home
    with home.serve() as daemon:
        world.task()
        sha = world.opened()
        world.red(sha)
        home.until(lambda: home.rows("SELECT checks FROM pulls") == [("failed",)], "it was seen")
        daemon.kill9()
    with home.serve():
        home.pilot("sync", code=None)  # beside it
        world.until("SELECT repairs, pushed_sha = head_sha FROM pulls", [(1, 1)])

    assert [source for _, source, _, _ in world.executions()] == ["cli", "failing_ci"]
    assert len(world.pulls) == 1


def test_sync_needs_github(tmp_path: Path) -> None:
    home = Home(tmp_path / "pilot")
    home.repo("api")

    assert "sources.github is not configured" in home.pilot("sync", code=2).err
