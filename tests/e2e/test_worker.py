"""Workers elsewhere, with the real daemon: another configuration, another state directory, another clone."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx2
import pytest
import yaml

from tests.adapters.hook_server import HookServer
from tests.e2e.daemon import Command, Daemon, Home

LEASE = 3
ATTEMPTS = "SELECT node, outcome FROM attempts ORDER BY execution_id, number"


class Elsewhere:
    """A machine that has a clone of the project, and an agent; its workers speak to the server by HTTP alone."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.state = home.root / "elsewhere"
        self.clone = home.root / "clones" / "web"
        home.git(home.root, "clone", "-q", str(home.repositories["web"]), str(self.clone))
        executor = {**home.settings["executor"], "type": "command"}
        settings = {
            "state_dir": str(self.state),
            "dispatcher": {"drain_timeout": "1s"},
            "executor": executor,
            "projects": [{"name": "web", "path": str(self.clone)}],
        }
        self.file = home.root / "elsewhere.yaml"
        self.file.write_text(yaml.safe_dump(settings))

    def worker(self, url: str, *args: object, holder: str = "w1") -> Command:
        token = self.home.state / "token"
        return self.home.start(
            "worker", "--config", self.file, "--server", url, "--token-file", token, "--holder", holder,
            "--lease", LEASE, *args,
        )  # fmt: skip

    def agents(self) -> list[int]:
        """The pids of its agents that live."""
        found = []
        for entry in Path("/proc").iterdir():
            with suppress(OSError):
                lines = (entry / "environ").read_bytes() if entry.name.isdigit() else b""
                if re.search(rb"PILOT_RUN=worker-[^\0]*", lines) and str(self.home.root).encode() in lines:
                    found.append(int(entry.name))
        return found


@pytest.fixture
def elsewhere(home: Home) -> Iterator[Elsewhere]:
    """The server's project is left to workers."""
    home.repo("web", executor={"type": "external"})
    there = Elsewhere(home)
    try:
        yield there
    finally:
        home.clear_away()
        for pid in there.agents():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def port_of(daemon: Daemon) -> str:
    return daemon.url.rpartition(":")[2]


def test_a_worker_elsewhere_does_the_task(home: Home, elsewhere: Elsewhere) -> None:
    with home.serve() as daemon:
        id = home.enqueue("web", "say hello from afar", task_id="T-1")
        worker = elsewhere.worker(daemon.url, "--once")
        assert worker.wait() == 0, worker.log
        home.reach("completed", id)

        shown = home.pilot("show", id, "--json").json
        away = home.pilot("show", id, "--json", "--server", daemon.url).json
        said = home.pilot("logs", id, "--server", daemon.url)
        artifact = shown["artifacts"][0]
        nodes = home.pilot("status", "--json").json["nodes"]

    assert shown == away
    assert (shown["outcome"], shown["branch"], home.rows(ATTEMPTS)) == ("done", "pilot/T-1", [("worker:w1", "done")])
    assert "hello from afar" in said.out
    assert artifact["name"] == "t-1.diff"
    assert [node["id"] for node in nodes if node["kind"] == "worker"] == ["worker:w1"]
    # Its branch is where it was made, and only there; the diff is with the server, and applies.
    assert home.git(elsewhere.clone, "show", "pilot/T-1:T-1.txt") == "T-1"
    assert home.git(home.repositories["web"], "branch", "--list", "pilot/*") == ""
    ((content,),) = home.rows("SELECT content FROM artifacts WHERE sha256 = ?", artifact["sha256"])
    subprocess.run(["git", "apply", "--check"], cwd=home.repositories["web"], input=content, check=True)
    assert elsewhere.agents() == []


def test_what_a_killed_worker_held_goes_to_another(home: Home, elsewhere: Elsewhere) -> None:
    with home.serve() as daemon:
        id = home.enqueue("web", "do 1: child", "do 1: wait never", task_id="T-1")
        first = elsewhere.worker(daemon.url)
        home.began("T-1")
        assert home.value(id, "status") == "running"
        first.kill9()
        assert elsewhere.agents() != []

        second = elsewhere.worker(daemon.url, "--once", holder="w2")
        assert second.wait() == 0, second.log
        home.reach("completed", id)

    assert [node for node, _ in home.rows(ATTEMPTS)] == ["worker:w1", "worker:w2"]
    assert home.value(id, "failures") == 0
    assert elsewhere.agents() == [], "the killed worker's agents were ended before another began"
    assert home.diary("OVERLAP") == []


def test_a_worker_that_slept_past_its_lease_changes_nothing(home: Home, elsewhere: Elsewhere) -> None:
    with home.serve() as daemon:
        id = home.enqueue("web", "do 1: wait go", "do 1: say too late", "lane other", task_id="T-1")
        first = elsewhere.worker(daemon.url)
        home.began("T-1")
        first.send(signal.SIGSTOP)
        home.until(lambda: home.value(id, "status") == "queued", "it is taken back")

        fence = json.loads(
            home.pilot(
                "queue", "claim", "--worker", "me", "--lease", "60", "--json", "--wait", "10", "--server", daemon.url
            ).out
        )["executions"][0]["fence"]
        home.go("go")
        first.send(signal.SIGCONT)
        first.says("no longer this worker's")

        row = home.rows("SELECT status, node, fence, attempt FROM executions WHERE id = ?", id)
        assert row == [("running", "worker:me", fence, 2)]
        assert "too late" not in home.pilot("logs", id).out
        done = home.pilot("queue", "complete", id, "--worker", "me", "--summary", "mine", "--server", daemon.url)
        assert "completed" in done.out
        first.term()
        assert first.wait() == 0, first.log


def test_a_worker_outlives_its_server(home: Home, elsewhere: Elsewhere) -> None:
    with home.serve() as daemon:
        port = port_of(daemon)
        id = home.enqueue("web", "wait go", "say after the restart", task_id="T-1")
        worker = elsewhere.worker(daemon.url, "--once", "--lease", "30")
        home.began("T-1")
        daemon.kill9()
        home.go("go")
        with home.serve("--port", port):
            assert worker.wait() == 0, worker.log
            home.reach("completed", id)

    assert "after the restart" in home.pilot("logs", id).out
    assert home.value(id, "attempt") == 1
    assert len(home.diary("start")) == 1


def test_a_worker_that_is_told_to_stop_gives_back_what_runs_and_heeds_a_cancel(
    home: Home, elsewhere: Elsewhere
) -> None:
    with home.serve() as daemon:
        id = home.enqueue("web", "child", "stubborn", "wait never", task_id="T-1")
        worker = elsewhere.worker(daemon.url)
        home.began("T-1")
        worker.term()
        assert worker.wait() == 0, worker.log
        home.reach("queued", id)
        assert elsewhere.agents() == []
        assert home.value(id, "failures") == 0

        again = elsewhere.worker(daemon.url, "--once")
        home.began("T-1", times=2)
        home.pilot("cancel", id, "--server", daemon.url)
        assert again.wait() == 130, again.log
        home.reach("cancelled", id)
    assert elsewhere.agents() == []


def test_an_agent_in_a_pane_works_by_hand_and_one_that_is_closed_gives_back(home: Home, elsewhere: Elsewhere) -> None:
    with home.serve() as daemon:
        id = home.enqueue("web", "say nothing", task_id="T-1")
        closed = home.start("worker", "--mode", "agent", "--json", "--server", daemon.url)
        home.until(lambda: '"event": "task"' in closed.out, "the task is shown")
        closed.send(signal.SIGINT)
        assert closed.wait() == 0
        home.reach("queued", id)
        assert home.value(id, "failures") == 0

        pane = home.start(
            "worker", "--mode", "agent", "--once", "--server", daemon.url, "--holder", "pane", "--lease", LEASE
        )
        home.until(lambda: "pilot queue complete" in pane.out, "the task is shown")
        assert "Do T-1." in pane.out
        command = re.search(rf"pilot (queue complete {id} .*) --summary", pane.out)
        assert command is not None
        home.until(
            lambda: home.value(id, "lease_until") - home.value(id, "started_at") > LEASE * 1000 + 500, "it is renewed"
        )
        home.pilot(*command[1].split(), "--summary", "by hand", "--branch", "pilot/T-1")
        assert pane.wait() == 0, pane.log
        home.reach("completed", id)
        assert f"{id} is completed" in pane.log


def test_a_task_over_http_is_called_back_about(home: Home, elsewhere: Elsewhere) -> None:
    secret = "s" * 40
    home.configure(server={"port": 0, "callbacks": {"secret": secret, "allow_private": True}})
    with HookServer() as hook, home.serve() as daemon:
        answer = httpx2.post(
            f"{daemon.url}/api/v1/executions",
            json={"project": "web", "title": "Deploy it", "kind": "deploy", "callback_url": hook.url},
            headers={"Authorization": f"Bearer {(home.state / 'token').read_text().strip()}", "Idempotency-Key": "k"},
            timeout=60,
        )
        assert answer.status_code == 201, answer.text
        id = answer.json()["id"]
        there = ("--worker", "deployer", "--server", daemon.url)
        home.pilot("queue", "claim", "--kind", "deploy", "--lease", 60, *there)
        home.pilot("queue", "complete", id, "--summary", "it is live", *there)
        home.until(lambda: hook.posts, "the callback")

    (post,) = hook.posts
    assert post.signed_by(secret)
    assert (post.document["event"], post.document["execution"]["id"]) == ("execution.completed", id)
