"""Several processes, one database: daemons, direct runs and people's commands keep one order."""

from __future__ import annotations

import signal
import time
from pathlib import Path

from tests.e2e.daemon import Command, Home, prompt


def _run(home: Home, task_id: str, *orders: str, cwd: Path | None = None, options: tuple[str, ...] = ()) -> Command:
    """A `pilot run` beside the test."""
    return home.start("run", prompt(task_id, *orders), "--task-id", task_id, *options, cwd=cwd)


def _id(home: Home, task_id: str) -> int:
    found = home.until(
        lambda: home.rows("SELECT id FROM executions WHERE task_id = ? ORDER BY id DESC", task_id),
        f"a row of {task_id}",
    )
    return int(found[0][0])


# Two daemons


def test_two_daemons_share_twelve_tasks_and_none_is_done_twice(home: Home) -> None:
    ids = []
    for name in ("api", "web", "app"):
        home.repo(name)
    for n in range(4):
        for name in ("api", "web", "app"):
            ids.append(home.enqueue(name, *(["wait both"] if n == 0 else []), task_id=f"{name}-{n}"))
    home.configure(dispatcher={"max_running": 2})
    with home.serve() as one, home.serve() as other:
        assert one.url != other.url
        home.go("both")
        home.reach("completed", *ids, seconds=60)
    home.audit(completed=12)
    assert len(home.diary("start")) == len(home.diary("end")) == 12
    assert len(home.rows("SELECT DISTINCT node FROM attempts")) == 2
    for name in ("api", "web", "app"):
        order = [line.task_id for line in home.diary("start") if line.rest == name]
        assert order == [f"{name}-{n}" for n in range(4)]


def test_what_a_killed_daemon_ran_goes_to_the_other_before_its_lease_ends(home: Home) -> None:
    home.repo("web")
    home.configure(dispatcher={"lease": "10s"})  # a dead node of this host is known at the next sweep, lease/4
    id = home.enqueue("web", "do 1: child", "stubborn", "do 1: wait never", task_id="T-1")
    with home.serve() as one:
        home.began("T-1")
        home.until(lambda: home.diary("beat"), "the child's life")
        with home.serve() as other:
            one.kill9()
            killed = time.monotonic_ns()
            second = home.began("T-1", times=2)
            home.reach("completed", id)
            assert "execution.lost" in other.log
    assert second.at - killed < 10e9
    assert home.diary("beat")[-1].at < second.at
    assert home.rows("SELECT attempt, failures FROM executions") == [(2, 0)]
    home.audit(completed=1)


def test_a_daemon_that_was_stopped_beyond_its_lease_writes_nothing_any_more(home: Home) -> None:
    home.repo("web")
    home.configure(dispatcher={"lease": "3s"}, retry={"infra": {"backoff": "500ms"}})
    id = home.enqueue("web", "do 1: wait never", "wait go", task_id="T-1")
    with home.serve() as one:
        first = home.began("T-1")
        with home.serve() as other:
            one.send(signal.SIGSTOP)
            other.says("execution.lost.* execution=1")
            home.until(lambda: home.value(id, "attempt") > 1, "another claim")
            assert first.pid not in home.processes()
            one.send(signal.SIGCONT)
            one.says("attempt.lost")
            home.began("T-1", times=2)
            home.go("go")
            home.reach("completed", id)
    ends = home.rows("SELECT outcome FROM attempts ORDER BY number")
    assert (ends[0], ends[-1]) == (("interrupted",), ("done",))
    assert home.value(id, "failures") == 0
    home.audit(completed=1)


def test_max_running_of_a_project_and_of_a_node(home: Home) -> None:
    (home.control / "limit-wide").write_text("2")
    home.repo("wide", max_running=2)
    for name in ("a", "b"):
        home.repo(name)
    home.configure(dispatcher={"max_running": 3})
    tasks = ["wide-1", "wide-2", "wide-3", "a-1", "b-1"]
    ids = [home.enqueue(task.split("-")[0], f"wait {task}", task_id=task) for task in tasks]
    with home.serve():
        home.until(lambda: len(home.diary("start")) == 3, "as many as the node may run")
        # Fair turns: no project has its second before every project that waits had its first.
        status = home.pilot("status", "--json").json
        assert status["counts"]["running"] == 3
        assert max(p["running"] for p in status["projects"] if p["name"] == "wide") <= 2
        home.go(*tasks[:2])
        home.until(lambda: len(home.diary("start")) >= 4, "a free turn is taken")
        home.go(*tasks)
        home.reach("completed", *ids)
    home.audit(completed=5)
    alive, most, wide = 0, 0, 0
    for line in home.diary("start", "end"):
        alive += 1 if line.what == "start" else -1
        most = max(most, alive)
        wide += line.rest == "wide"
    assert most == 3
    assert wide == 6


# People's commands


def test_an_enqueue_wakes_a_daemon_in_another_process(home: Home) -> None:
    home.repo("web")
    home.configure(dispatcher={"poll_interval": "60s"})
    with home.serve():
        said = home.pilot("enqueue", prompt("T-1"), "-p", "web", "--task-id", "T-1", "--json").json
        assert said["duplicate"] is False
        again = home.pilot("enqueue", prompt("T-1"), "-p", "web", "--task-id", "T-1", "--json")
        home.began("T-1")
        home.reach("completed", said["id"], seconds=10)
    assert again.json["id"] == said["id"] or again.json["duplicate"] is False
    ((created, started),) = home.rows("SELECT created_at, started_at FROM executions WHERE id = ?", said["id"])
    assert started - created < 3000  # milliseconds, where the next look is a minute away
    home.audit()


def test_cancel_ends_what_another_process_runs_with_all_its_processes(home: Home) -> None:
    home.repo("web")
    id = home.enqueue("web", "child", "wait never", task_id="T-1")
    behind = home.enqueue("web", task_id="T-2")
    waiting = home.enqueue("web", task_id="T-3")
    with home.serve():
        agent = home.began("T-1")
        home.until(lambda: home.diary("beat"), "the child's life")
        child = home.diary("beat")[0].pid
        assert {agent.pid, child} <= home.processes().keys()
        assert home.pilot("cancel", waiting).out.split()[:1] == [str(waiting)]
        assert home.value(waiting, "status") == "cancelled"
        assert home.pilot("cancel", id, "--json").json == {"executions": [{"id": id, "status": "running"}]}
        home.reach("cancelled", id)
        assert not {agent.pid, child} & home.processes().keys()
        home.reach("completed", behind)
        assert "ended already: completed" in home.pilot("cancel", behind).out
        home.pilot("cancel", 4711, code=4)
    assert [line.task_id for line in home.diary("start")] == ["T-1", "T-2"]
    home.audit(cancelled=2, completed=1)


def test_pauses_belong_to_their_owners_and_hold_across_processes(home: Home) -> None:
    home.repo("web")
    home.repo("api")
    with home.serve():
        home.pilot("pause", "web", "--owner", "ann", "--reason", "release day")
        home.pilot("pause", "web", "--owner", "bob")
        web = home.enqueue("web", task_id="T-1")
        home.reach("completed", home.enqueue("api", task_id="T-2"))
        why = home.pilot("why", web, "--json").json
        assert [hold["kind"] for hold in why["holds"]] == ["paused", "paused"]
        assert "release day" in why["holds"][0]["detail"]
        home.pilot("resume", "web", "--owner", "carl", code=2)
        home.pilot("resume", "web", "--owner", "ann")
        home.reach("completed", home.enqueue("api", task_id="T-3"))
        assert home.value(web, "status") == "queued"
        home.pilot("resume", "web", "--owner", "bob")
        home.reach("completed", web)
        home.pilot("pause", "--reason", "everything")
        held = home.enqueue("api", task_id="T-4")
        assert home.pilot("why", held, "--json").json["holds"][0]["kind"] == "paused"
        home.pilot("resume")
        home.reach("completed", held)
    home.audit(completed=4)


# Direct runs


def test_a_direct_run_waits_for_the_daemons_task_and_says_so(home: Home) -> None:
    web = home.repo("web")
    running = home.enqueue("web", "wait go", task_id="T-1")
    queued = home.enqueue("web", task_id="T-2")
    with home.serve():
        home.began("T-1")
        busy = home.pilot("run", prompt("T-3"), "--no-wait", cwd=web, code=75)
        assert "T-1" in busy.err
        direct = _run(home, "T-4", cwd=web)
        said = direct.says("waiting: .*")
        assert f"{running}" in said
        assert "T-1" in said
        home.go("go")
        assert direct.wait() == 0
        home.reach("completed", running, queued)
    # A person waits for it: it goes before the queue.
    assert [line.task_id for line in home.diary("start")] == ["T-1", "T-4", "T-2"]
    assert home.statuses()[home.rows("SELECT task_id FROM executions WHERE status = 'cancelled'")[0][0]] == "cancelled"
    home.audit(completed=3, cancelled=1)


def test_ctrl_c_ends_a_direct_run_in_order(home: Home) -> None:
    web = home.repo("web")
    direct = _run(home, "T-1", "stubborn", "child", "wait never", cwd=web)
    home.began("T-1")
    home.until(lambda: home.diary("beat"), "the child's life")
    waiting = _run(home, "T-2", cwd=web)
    waiting.says("waiting: ")
    waiting.send(signal.SIGINT)
    assert waiting.wait() == 130
    direct.send(signal.SIGINT)
    home.until(lambda: home.rows("SELECT 1 FROM executions WHERE cancel_requested"), "the first Ctrl-C is heard")
    direct.send(signal.SIGINT)  # a second one: at once, whatever the agent ignores
    assert direct.wait(seconds=8) == 130
    assert "Traceback" not in direct.log + waiting.log
    assert home.statuses() == {"T-1": "cancelled", "T-2": "cancelled"}
    assert home.processes() == {}
    assert [line.task_id for line in home.diary("start")] == ["T-1"]
    home.audit(cancelled=2)


def test_a_closed_terminal_ends_a_direct_run_in_order(home: Home) -> None:
    web = home.repo("web")
    direct = _run(home, "T-1", "child", "wait never", cwd=web)
    home.began("T-1")
    home.until(lambda: home.diary("beat"), "the child's life")
    direct.send(signal.SIGHUP)
    assert direct.wait() == 130
    assert home.statuses() == {"T-1": "cancelled"}
    assert home.processes() == {}
    home.audit(cancelled=1)


def test_a_direct_run_that_is_cancelled_from_elsewhere_says_so(home: Home) -> None:
    web = home.repo("web")
    direct = _run(home, "T-1", "child", "wait never", cwd=web)
    home.began("T-1")
    home.pilot("cancel", 1, "--reason", "it was a mistake")
    assert direct.wait() == 130
    assert "1 cancelled" in direct.out
    assert "it was a mistake" in direct.out
    home.audit(cancelled=1)


def test_a_killed_direct_run_is_cancelled_by_the_next_node_and_its_agent_ended(home: Home) -> None:
    web = home.repo("web")
    direct = _run(home, "T-1", "child", "stubborn", "wait never", cwd=web)
    agent = home.began("T-1")
    home.until(lambda: home.diary("beat"), "the child's life")
    waiting = _run(home, "T-2", cwd=web)
    waiting.says("waiting: ")
    direct.kill9()
    waiting.kill9()
    assert agent.pid in home.processes()
    after = home.enqueue("web", task_id="T-3")
    with home.serve():
        home.reach("completed", after)
    assert home.statuses() == {"T-1": "cancelled", "T-2": "cancelled", "T-3": "completed"}
    assert home.processes() == {}
    assert [line.task_id for line in home.diary("start")] == ["T-1", "T-3"]
    home.audit(cancelled=2, completed=1)


def test_a_reload_stores_nothing_that_it_refuses_and_says_what_needs_a_restart(home: Home) -> None:
    web = home.repo("web")
    link = home.root / "link"
    link.symlink_to(web)
    with home.serve() as daemon:
        before = home.rows("SELECT * FROM projects")
        twice = [{"name": name, "path": str(path), "max_running": 3} for name, path in (("new", web), ("link", link))]
        projects = home.settings["projects"]
        home.configure(projects=twice)
        daemon.send(signal.SIGHUP)
        daemon.says("config.refused.*new, link")
        assert home.rows("SELECT * FROM projects") == before
        home.configure(projects=projects, dispatcher={**home.settings.get("dispatcher", {}), "max_running": 7})
        daemon.send(signal.SIGHUP)
        daemon.says("config.reloaded.*after_restart=.'dispatcher'")
    home.audit()


def test_one_repository_has_one_lane_however_it_is_named(home: Home) -> None:
    web = home.repo("web", {"docs/guide.md": "# Guide\n"}, project=False)
    home.configure()
    home.git(web, "branch", "side")
    side, link = home.root / "side", home.root / "link"
    link.symlink_to(web)
    home.git(web, "worktree", "add", "-q", str(side), "side")
    home.untouched["web"] = home.checkout(web)
    lane = "lane one-repository"
    first = _run(home, "T-1", lane, "wait go", cwd=web)
    home.began("T-1")
    others = [_run(home, task, lane, cwd=cwd) for task, cwd in (("T-2", link / "docs"), ("T-3", side))]
    for other in others:
        assert "T-1" in other.says("waiting: .*")
    home.go("go")
    assert [command.wait() for command in (first, *others)] == [0, 0, 0]
    assert len(home.rows("SELECT id FROM projects")) == 1
    home.git(web, "worktree", "remove", str(side))
    home.audit(completed=3)


def test_a_direct_run_needs_no_configuration_but_a_repository(home: Home, tmp_path: Path) -> None:
    web = home.repo("web", project=False)
    del home.environment["PILOT_CONFIG"]
    agent = tmp_path / "bin" / "claude"  # the agent that is the default, as far as a PATH is concerned
    agent.parent.mkdir()
    agent.write_text("#!/bin/sh\nexit 1\n")
    agent.chmod(0o755)
    home.environment["PATH"] = f"{agent.parent}:{home.environment['PATH']}"
    done = home.pilot("run", "Do it.", "--json", cwd=web, code=None)
    assert done.json["project"] == "web"
    assert done.json["project_path"] == str(web)
    assert done.json["backend"] == "claude-code"
    assert done.json["attempt"] == 1
    assert done.code in (1, 75)
    outside = home.pilot("run", "Do it.", cwd=tmp_path, code=2)
    assert outside.err.startswith("error: not in a git repository")
    assert len(outside.err.splitlines()) == 1
    assert outside.out == ""
