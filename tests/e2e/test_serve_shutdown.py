"""SIGTERM, whenever it comes: in order, uncounted, to be gone on with."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from tests.e2e.daemon import Home

_HELD = "touch {control}/{name}-held; while [ ! -e {control}/{name}-go ]; do sleep 0.02; done"


def _held(home: Home, name: str) -> str:
    """A shell command that says it is there, and stays until it may go."""
    return _HELD.format(control=home.control, name=name)


def _hold_git(home: Home, command: str) -> None:
    """Put a git first into PATH that stays in this command until `git-go` is there."""
    directory = home.root / "bin"
    directory.mkdir(exist_ok=True)
    look = f'for word in "$@"; do [ "$word" = {command} ] && {{ {_held(home, "git")}; }}; done'
    (directory / "git").write_text(f'#!/bin/sh\n{look}\nexec {shutil.which("git")} "$@"\n')
    (directory / "git").chmod(0o755)
    home.environment["PATH"] = f"{directory}{os.pathsep}{os.environ['PATH']}"


def _stopped_in(home: Home, id: int, held: str, *, twice: bool = False) -> str:
    """Run a daemon until something holds, end it by SIGTERM; the phase in which the attempt was."""
    sign = home.control / held
    sign.unlink(missing_ok=True)
    with home.serve() as daemon:
        home.until(sign.exists, f"{held} in an attempt")
        (phase,) = home.rows("SELECT phase FROM attempts WHERE execution_id = ? ORDER BY number DESC LIMIT 1", id)[0]
        daemon.term()
        if twice:
            daemon.says("serve.draining")
            daemon.term()
        assert daemon.wait() == 0
        assert "Traceback" not in daemon.log
    assert home.rows("SELECT status, failures, losses, failure_class FROM executions WHERE id = ?", id) == [
        ("queued", 0, 0, None)
    ], home.state_of_things()
    assert home.processes() == {}
    assert home.rows("SELECT count(*) FROM nodes") == [(0,)]
    return str(phase)


def test_sigterm_in_every_phase_of_an_attempt(home: Home) -> None:
    gate = {"name": "test", "run": f"test -f mended.txt || {{ {_held(home, 'gate')}; false; }}"}
    home.settings["dispatcher"]["drain_timeout"] = "0.2s"
    home.repo("web", setup=[_held(home, "setup")], gates=[gate])
    orders = (
        "write half.txt done",
        "do 1: tell agent-held",
        "do 1: wait agent-never",
        "do 5: tell repair-held",
        "do 5: wait repair-go",
        "do 6: write mended.txt yes",
    )
    id = home.enqueue("web", *orders, task_id="T-1")
    phases = []
    path = home.environment["PATH"]
    _hold_git(home, "update-ref")
    phases.append(_stopped_in(home, id, "git-held"))
    home.environment["PATH"] = path
    phases.append(_stopped_in(home, id, "setup-held"))
    home.go("setup-go")
    phases.append(_stopped_in(home, id, "agent-held"))
    workspace = Path(home.value(id, "workspace"))
    assert (workspace / "half.txt").read_text() == "done\n"  # what it had done is there to be gone on with
    _hold_git(home, "commit-tree")
    phases.append(_stopped_in(home, id, "git-held", twice=True))  # git itself would not come to an end
    home.environment["PATH"] = path
    phases.append(_stopped_in(home, id, "gate-held"))
    home.go("gate-go")
    phases.append(_stopped_in(home, id, "repair-held"))
    home.go("repair-go")
    assert home.value(id, "workspace") == str(workspace)
    with home.serve():
        home.reach("completed", id)
    assert len(set(phases)) == len(phases), phases
    assert home.value(id, "attempt") == len(phases) + 1
    home.audit(completed=1)


def test_a_drain_lets_work_end_and_takes_nothing_new(home: Home) -> None:
    home.repo("web")
    home.repo("api")
    first = home.enqueue("web", "wait go", task_id="T-1")
    second = home.enqueue("web", task_id="T-2")
    with home.serve() as daemon:
        home.began("T-1")
        assert (daemon.get("/livez"), daemon.get("/readyz")) == (200, 200)
        daemon.term()
        daemon.says("serve.draining")
        assert (daemon.get("/livez"), daemon.get("/readyz")) == (200, 503)
        third = home.enqueue("api", task_id="T-3")
        assert home.pilot("status", "--json").json["nodes"][0]["state"] == "draining"
        home.go("go")
        assert daemon.wait() == 0
        assert daemon.get("/livez") == 0
    assert home.statuses() == {"T-1": "completed", "T-2": "queued", "T-3": "queued"}
    assert [line.task_id for line in home.diary("start")] == ["T-1"]
    with home.serve():
        home.reach("completed", first, second, third)
    home.audit(completed=3)


def test_a_second_sigterm_ends_at_once_whatever_the_agent_ignores(home: Home) -> None:
    home.settings["dispatcher"]["drain_timeout"] = "60s"
    home.repo("web")
    id = home.enqueue("web", "stubborn", "child", "do 1: wait never", task_id="T-1")
    with home.serve() as daemon:
        home.began("T-1")
        home.until(lambda: home.diary("beat"), "the child's life")
        daemon.term()
        daemon.says("serve.draining")
        daemon.term()
        assert daemon.wait(seconds=8) == 0  # five, and what a loaded machine takes
    assert home.processes() == {}
    assert home.rows("SELECT status, failures, losses FROM executions WHERE id = ?", id) == [("queued", 0, 0)]
    with home.serve():
        home.reach("completed", id)
    home.audit(completed=1)


def test_an_idle_daemon_stops_at_once(home: Home) -> None:
    home.repo("web")
    with home.serve() as daemon:
        daemon.term()
        assert daemon.wait(seconds=5) == 0
    assert home.rows("SELECT count(*) FROM nodes") == [(0,)]
