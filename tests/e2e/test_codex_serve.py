"""`pilot serve` with the real Codex CLI and a scripted model: limits, questions, kill -9, cancel, shutdown."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.e2e.codex import conversing, heard, threads
from tests.e2e.conversing import asks
from tests.e2e.daemon import Home
from tests.e2e.responses_server import Turn, shell, status, text

DONE = text("All done.")
GO_ON = "Go on with the task"


def write(name: str, content: str = "hi", **more: Any) -> Turn:
    return shell(f"printf %s {content} > {name}", **more)


def long_call(home: Home) -> Turn:
    """A tool call without an end: children in sessions of their own, one of them deaf to signals."""
    return shell(
        f"setsid sleep 4711 & echo $! > {home.control}/orphan; (trap '' TERM INT; sleep 4712) & "
        f"echo half > half.txt; touch {home.control}/up; sleep 4713"
    )


def in_the_call(home: Home) -> None:
    home.until((home.control / "up").exists, "the tool's start")
    home.until(lambda: home.rows("SELECT 1 FROM output WHERE kind = 'tool'"), "the tool's line in the journal")


def test_what_goes_wrong_outside_is_told_apart(home: Home) -> None:
    """One agent each for three sorts of trouble, so that each has its own park; two more have none."""
    reset = int(time.time()) + 3 * 86400
    spent = {"error": {"type": "usage_limit_reached", "message": "spent", "plan_type": "pro", "resets_at": reset}}
    scripts: dict[str, list[Turn]] = {
        "KEY-1": [write("a.txt", when=GO_ON), {**DONE, "when": GO_ON}, status(401, "bad key", times=9)],
        "RATE-1": [status(429, "slow down", times=9)],
        "SPENT-1": [status(429, body=spent, times=9)],
        "DOWN-1": [status(500, times=9)],
        "OK-1": [{"cut": True}, write("a.txt"), DONE],
    }
    with conversing(home, scripts):
        names = [task.partition("-")[0].lower() for task in scripts]
        executor = home.settings["executor"]
        codex = {"type": "codex", "codex": executor["codex"]}
        home.configure(executor={**executor, "profiles": {f"{name}-agent": codex for name in names}})
        for name in names:
            home.repo(name, executor={"type": f"{name}-agent"})
        with home.serve() as daemon:
            key, rate, quota, down, ok = (home.enqueue(name, "work", task_id=f"{name.upper()}-1") for name in names)
            home.reach("completed", ok)
            home.until(lambda: home.rows("SELECT count(*) FROM parks") == [(3,)], "three parks")
            home.until(lambda: home.value(down, "failure_class") == "network", "the first failure of the network")

            parks = {park["backend"]: park for park in home.pilot("status", "--json").json["parked"]}
            assert sorted(parks) == ["key-agent", "rate-agent", "spent-agent"]
            assert (parks["key-agent"]["until"], "bad key" in parks["key-agent"]["reason"]) == (None, True)
            until = dict(home.rows("SELECT backend, until FROM parks"))
            assert 0 <= until["spent-agent"] / 1000 - reset <= 60
            assert 0 < until["rate-agent"] / 1000 - time.time() <= 120, "a growing guess, where nobody says when"
            for id, failure in ((key, "auth"), (rate, "rate_limit"), (quota, "quota")):
                row = home.pilot("show", id, "--json").json
                assert (row["status"], row["failure_class"], row["failures"]) == ("queued", failure, 0), row
                assert row["session_id"], "to go on in"

            session = home.value(key, "session_id")
            home.pilot("backend", "unpark", "key-agent")
            home.reach("completed", key)
            end = home.pilot("show", key, "--json").json
            assert (end["session_id"], end["attempt"], end["failures"]) == (session, 2, 0)
            daemon.term()
            assert daemon.wait() == 0
        home.audit(completed=2, queued=3)


def test_a_question_frees_the_slot_and_its_answer_goes_on_in_the_session(home: Home) -> None:
    repo = home.repo("web")
    scripts: dict[str, list[Turn]] = {
        "ASK-1": [write("half.txt"), asks("Which colour?", "blue", "red"), write("whole.txt", "blue"), DONE],
        "OTHER-1": [write("other.txt"), DONE],
    }
    with conversing(home, scripts) as model, home.serve():
        asking = home.enqueue("web", "Paint it.", task_id="ASK-1")
        other = home.enqueue("web", "Something else.", task_id="OTHER-1")
        home.reach("needs_human", asking)
        home.reach("completed", other)
        session = home.value(asking, "session_id")

        home.pilot("answer", asking, "Take $(touch /tmp/no) blue.")
        home.reach("completed", asking)

        mine = [request for request in model.agent_requests if request.session == session]
        assert len(mine) == 4
        told = heard(mine[2])
        assert told.find("Paint it.") < told.find("Which colour?") < told.rfind("Take $(touch /tmp/no) blue.")
        end = home.pilot("show", asking, "--json").json
        assert (end["session_id"], end["attempt"], end["failures"]) == (session, 2, 0)
        assert home.git(repo, "show", "pilot/ASK-1:half.txt") == "hi"
        assert home.git(repo, "show", "pilot/ASK-1:whole.txt") == "blue"
        assert end["usage"] == {"input_tokens": 400, "output_tokens": 80, "cost_usd": None}, "of both attempts, once"
    home.audit(completed=2)


@pytest.mark.parametrize("within", ["none", pytest.param("bubblewrap", marks=pytest.mark.variants)])
def test_kill_9_in_a_tool_call_ends_the_orphans_and_goes_on_in_the_session(home: Home, within: str) -> None:
    repo = home.repo("web")
    # Not `kill -0`: that finds a dead process, too, until its new parent has collected it.
    state = f'"$(cat /proc/$(cat {home.control}/orphan)/stat 2>/dev/null)"'
    alive = shell(f'case {state} in ""|*") Z "*) ;; *) touch {home.control}/alive;; esac; printf whole > whole.txt')
    script = {"T-1": [long_call(home), alive, DONE]}
    with conversing(home, script, within=within, sandbox="danger-full-access") as model:
        home.configure(executor={**home.settings["executor"], "sandbox_paths": {"write": [str(home.control)]}})
        with home.serve() as daemon:
            id = home.enqueue("web", "Work long.", task_id="T-1")
            in_the_call(home)
            session = home.value(id, "session_id")
            daemon.kill9()
        if within == "none":
            home.until(lambda: sum("sleep 471" in line for line in home.processes().values()) >= 3, "three that sleep")
        else:
            home.until(lambda: home.processes() == {}, "the end of all in the sandbox, with its daemon")
        assert home.value(id, "status") == "running"

        with home.serve():
            home.reach("completed", id)

            assert home.processes() == {}
            if within == "none":  # in there, numbers of processes begin anew
                assert not (home.control / "alive").exists(), "the first agent's children beside the second's"
            end = home.pilot("show", id, "--json").json
            assert (end["attempt"], end["failures"], end["session_id"]) == (2, 0, session)
            assert threads(home.root / "home") == ([session] if within == "none" else [])
            told = heard(model.agent_requests[1])
            assert told.find("Work long.") < told.find("You were interrupted. Go on with the task")
            for name in ("half", "whole"):
                assert home.git(repo, "show", f"pilot/T-1:{name}.txt") == name
            assert end["usage"]["input_tokens"] in (200, 300), "the killed attempt's call may be in the sum"
    home.audit(completed=1)


def test_cancel_in_a_tool_call_leaves_no_process(home: Home) -> None:
    home.repo("web")
    scripts = {"T-1": [long_call(home)], "T-2": [write("b.txt"), DONE]}
    with conversing(home, scripts), home.serve():
        id = home.enqueue("web", "Work long.", task_id="T-1")
        following = home.enqueue("web", "Work.", task_id="T-2")
        in_the_call(home)

        home.pilot("cancel", id)

        home.reach("cancelled", id)
        home.reach("completed", following)
        assert home.processes() == {}
        assert home.git(home.repositories["web"], "branch", "--list", "pilot/T-1") == ""
    home.audit(cancelled=1, completed=1)


@pytest.mark.variants
def test_a_shutdown_in_a_tool_call_costs_nothing_and_goes_on_after_it(home: Home) -> None:
    repo = home.repo("web")
    home.configure(dispatcher={"drain_timeout": "0.3s"})
    with conversing(home, {"T-1": [long_call(home), write("whole.txt", "whole"), DONE]}) as model:
        with home.serve() as daemon:
            id = home.enqueue("web", "Work long.", task_id="T-1")
            in_the_call(home)
            daemon.term()
            assert daemon.wait() == 0
        assert home.processes() == {}
        row = home.pilot("show", id, "--json").json
        assert (row["status"], row["reason"], row["failures"], row["node"]) == ("queued", "shutdown", 0, None)
        session = row["session_id"]
        assert session

        with home.serve():
            home.reach("completed", id)

        end = home.pilot("show", id, "--json").json
        assert (end["session_id"], end["attempt"], end["failures"]) == (session, 2, 0)
        told = heard(model.agent_requests[-1])
        assert told.find("Work long.") < told.find("You were interrupted")
        assert home.git(repo, "show", "pilot/T-1:whole.txt") == "whole"
    home.audit(completed=1)
