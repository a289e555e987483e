"""`pilot serve` with the real Claude Code CLI and a scripted model: limits, questions, kill -9, cancel, shutdown."""

from __future__ import annotations

import json
import time
from typing import Any

from tests.e2e.claude import claude_binary, sessions
from tests.e2e.conversing import asks, bash, conversing, heard, write
from tests.e2e.daemon import Home
from tests.e2e.model_server import Turn, status, text

DONE = text("All done.")
GO_ON = "Go on with the task"


def long_call(home: Home) -> Any:
    """A tool call without an end: children in sessions of their own, one of them deaf to signals."""
    return bash(
        f"setsid sleep 4711 & echo $! > {home.control}/orphan; (trap '' TERM INT; sleep 4712) & "
        f"echo half > half.txt; touch {home.control}/up; sleep 4713"
    )


def in_the_call(home: Home) -> None:
    home.until((home.control / "up").exists, "the tool's start")
    home.until(lambda: home.rows("SELECT 1 FROM output WHERE kind = 'tool'"), "the tool's line in the journal")


def test_what_goes_wrong_outside_is_told_apart(home: Home) -> None:
    """One agent each for four sorts of trouble, so that each has its own park; a fifth has none."""
    reset = int(time.time()) + 3600
    allowance = {
        "anthropic-ratelimit-unified-status": "rejected", "anthropic-ratelimit-unified-reset": str(reset),
        "anthropic-ratelimit-unified-representative-claim": "five_hour", "retry-after": "3600",
    }  # fmt: skip
    scripts: dict[str, list[Turn]] = {
        "KEY-1": [write("a.txt", when=GO_ON), {**DONE, "when": GO_ON}, status(401, "invalid x-api-key", times=9)],
        "RATE-1": [status(429, "slow down", headers={"retry-after": "3600"}, times=9)],
        "SPENT-1": [status(429, "limit", headers=allowance, times=9)],
        "DOWN-1": [status(500, times=9)],
        "OK-1": [write("a.txt"), DONE],
    }
    with conversing(home, scripts):
        claude = {"type": "claude-code", "claude-code": {"command": claude_binary()}}
        names = [task.partition("-")[0].lower() for task in scripts]
        profiles = {f"{name}-agent": claude for name in names}
        home.configure(executor={**home.settings["executor"], "profiles": profiles})
        for name in names:
            home.repo(name, executor={"type": f"{name}-agent"})
        # a subscription says when its allowance is back; an API key's 429 does not get through the CLI
        home.environment |= {"ANTHROPIC_API_KEY": "", "CLAUDE_CODE_OAUTH_TOKEN": "sk-ant-oat01-dummy"}
        with home.serve() as daemon:
            key, rate, spent, down, ok = (home.enqueue(name, "work", task_id=f"{name.upper()}-1") for name in names)
            began = time.time()
            network = (
                "SELECT e.available_at - a.finished_at FROM executions e JOIN attempts a ON a.execution_id = e.id "
                "WHERE e.id = ? AND e.status = 'queued' AND e.failure_class = 'network'"
            )
            ((pause,),) = home.until(lambda: home.rows(network, down), "the first failure of the network")
            assert [hold["kind"] for hold in home.pilot("why", down, "--json").json["holds"]] == ["time"]
            assert 5000 <= pause <= 10_000
            home.reach("completed", ok)
            home.until(lambda: home.rows("SELECT count(*) FROM parks") == [(3,)], "three parks")

            parks = {park["backend"]: park for park in home.pilot("status", "--json").json["parked"]}
            assert sorted(parks) == ["key-agent", "rate-agent", "spent-agent"]
            assert parks["key-agent"]["until"] is None
            assert "Please run /login" in parks["key-agent"]["reason"]
            until = dict(home.rows("SELECT backend, until FROM parks"))
            assert until["spent-agent"] == reset * 1000
            assert 30 <= until["rate-agent"] / 1000 - began <= 120, "a growing guess, where nobody says when"
            for id, failure in ((key, "auth"), (rate, "rate_limit"), (spent, "quota")):
                row = home.pilot("show", id, "--json").json
                assert (row["status"], row["failure_class"], row["failures"]) == ("queued", failure, 0), row
                assert row["session_id"], "to go on in"
            why = home.pilot("why", key, "--json").json
            assert [hold["kind"] for hold in why["holds"]] == ["parked"]
            assert "pilot backend unpark key-agent" in why["next"]
            assert time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(reset)) in home.pilot("why", spent).out

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
        assert "Which colour?" in home.pilot("why", asking).out
        assert home.git(repo, "branch", "--list", "pilot/ASK-1") == "", "nothing is delivered that is not done"
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
        assert end["usage"]["input_tokens"] == 400, "of both attempts"
    home.audit(completed=2)


def test_kill_9_in_a_tool_call_ends_the_orphans_and_goes_on_in_the_session(home: Home) -> None:
    repo = home.repo("web")
    # Not `kill -0`: that finds a dead process, too, until its new parent has collected it.
    state = f'"$(cat /proc/$(cat {home.control}/orphan)/stat 2>/dev/null)"'
    alive = bash(f'case {state} in ""|*") Z "*) ;; *) touch {home.control}/alive;; esac; echo whole > whole.txt')
    with conversing(home, {"T-1": [long_call(home), alive, DONE]}) as model:
        with home.serve() as daemon:
            id = home.enqueue("web", "Work long.", task_id="T-1")
            in_the_call(home)
            session = home.value(id, "session_id")
            daemon.kill9()
        home.until(lambda: sum("sleep 471" in line for line in home.processes().values()) >= 3, "three that sleep")
        assert home.value(id, "status") == "running"

        with home.serve():
            home.reach("completed", id)

            assert home.processes() == {}
            assert not (home.control / "alive").exists(), "the first agent's children were there beside the second's"
            end = home.pilot("show", id, "--json").json
            assert (end["attempt"], end["failures"], end["session_id"]) == (2, 0, session)
            assert sessions({"CLAUDE_CONFIG_DIR": f"{home.root}/home/.claude"}) == [session]
            asked = model.agent_requests
            assert {request.session for request in asked} == {session}
            told = next(words for words in map(heard, asked) if "You were interrupted. Go on with the task" in words)
            assert told.find("Work long.") < told.find("You were interrupted. Go on with the task")
            assert "Work long." in told
            for name in ("half", "whole"):
                assert home.git(repo, "show", f"pilot/T-1:{name}.txt") == name
            assert "sleep 4711" in home.pilot("logs", id, "--attempt", 1).out
    home.audit(completed=1)


def test_cancel_in_a_tool_call_leaves_no_process(home: Home) -> None:
    home.repo("web")
    with conversing(home, {"T-1": [long_call(home)], "T-2": [write("b.txt"), DONE]}), home.serve():
        id = home.enqueue("web", "Work long.", task_id="T-1")
        following = home.enqueue("web", "Work.", task_id="T-2")
        in_the_call(home)

        home.pilot("cancel", id)

        home.reach("cancelled", id)
        home.reach("completed", following)
        assert home.processes() == {}
        assert home.git(home.repositories["web"], "branch", "--list", "pilot/T-1") == ""
    home.audit(cancelled=1, completed=1)


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
        assert json.loads(json.dumps(end["usage"]))["input_tokens"]
    home.audit(completed=1)
