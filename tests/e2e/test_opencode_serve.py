"""`pilot serve` with the real OpenCode and a scripted model: limits, kill -9, cancel, shutdown, a server that dies."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import pytest

from tests.e2e.conversing import asks, heard
from tests.e2e.daemon import Home
from tests.e2e.model_server import Turn, status, text
from tests.e2e.opencode import MODEL, NOWHERE, bash, conversing, opencode_binary, write

DONE = text("All done.")
GO_ON = "Go on with the task"
BOTH = pytest.mark.parametrize("sandbox", ["none", pytest.param("bubblewrap", marks=pytest.mark.variants)])


def long_call() -> Any:
    """A tool call without an end: children in sessions of their own, one of them deaf to signals."""
    return bash("setsid sleep 4711 & (trap '' TERM INT; sleep 4712) & echo half > half.txt; sleep 4713")


def in_the_call(home: Home) -> None:
    home.until(lambda: home.found("half.txt"), "the tool's start", 60)
    home.until(lambda: home.rows("SELECT 1 FROM output WHERE kind = 'tool'"), "the tool's line in the journal")


@BOTH
def test_kill_9_in_a_tool_call_leaves_no_orphans_and_goes_on_in_the_session(home: Home, sandbox: str) -> None:
    repo = home.repo("web")
    with conversing(home, {"T-1": [long_call(), write("whole.txt", "whole"), DONE]}, sandbox) as model:
        with home.serve() as daemon:
            id = home.enqueue("web", "Work long.", task_id="T-1")
            in_the_call(home)
            session = home.value(id, "session_id")
            daemon.kill9()
        if sandbox == "none":
            home.until(lambda: sum("sleep 471" in line for line in home.processes().values()) >= 3, "three that sleep")
        else:
            home.until(lambda: home.processes() == {}, "the end of the sandbox with its pilot")

        with home.serve():
            home.reach("completed", id)
            assert home.processes() == {}
            end = home.pilot("show", id, "--json").json
            assert (end["attempt"], end["failures"], end["session_id"]) == (2, 0, session)
            asked = model.agent_requests
            assert {request.session for request in asked} == {session}
            told = heard(asked[1])
            assert told.find("Work long.") < told.find("You were interrupted. Go on with the task")
            for name in ("half", "whole"):
                assert home.git(repo, "show", f"pilot/T-1:{name}.txt") == name
            assert "sleep 4711" in home.pilot("logs", id, "--attempt", 1).out
    home.audit(completed=1)


def test_cancel_in_a_tool_call_leaves_no_process(home: Home) -> None:
    home.repo("web")
    with conversing(home, {"T-1": [long_call()]}):
        home.scripted_too()
        with home.serve():
            _cancelled_in_the_call(home)
    home.audit(cancelled=1, completed=1)


def _cancelled_in_the_call(home: Home) -> None:
    id = home.enqueue("web", "Work long.", task_id="T-1")
    following = home.enqueue("web", task_id="T-2", backend="scripted")
    in_the_call(home)

    home.pilot("cancel", id)

    home.reach("cancelled", id)
    home.reach("completed", following)
    assert home.processes() == {}


@pytest.mark.variants
def test_a_shutdown_in_a_tool_call_costs_nothing_and_goes_on_after_it(home: Home) -> None:
    repo = home.repo("web")
    home.configure(dispatcher={"drain_timeout": "0.3s"})
    with conversing(home, {"T-1": [long_call(), write("whole.txt", "whole"), DONE]}):
        with home.serve() as daemon:
            id = home.enqueue("web", "Work long.", task_id="T-1")
            in_the_call(home)
            daemon.term()
            assert daemon.wait() == 0
        assert home.processes() == {}
        row = home.pilot("show", id, "--json").json
        assert (row["status"], row["reason"], row["failures"]) == ("queued", "shutdown", 0)
        session = row["session_id"]
        with home.serve():
            home.reach("completed", id)
        end = home.pilot("show", id, "--json").json
        assert (end["session_id"], end["attempt"], end["failures"]) == (session, 2, 0)
        assert home.git(repo, "show", "pilot/T-1:whole.txt") == "whole"
    home.audit(completed=1)


@pytest.mark.variants
def test_a_server_that_is_killed_in_the_middle_costs_a_pause(home: Home) -> None:
    repo = home.repo("web")
    with conversing(home, {"T-1": [long_call(), write("whole.txt", "whole"), DONE]}), home.serve():
        id = home.enqueue("web", "Work long.", task_id="T-1")
        in_the_call(home)
        session = home.value(id, "session_id")
        (server,) = [pid for pid, line in home.processes().items() if "serve --hostname" in line]
        os.kill(server, signal.SIGKILL)

        home.until(lambda: home.value(id, "failure_class") == "infra", "the failure's class")
        home.reach("completed", id)

        end = home.pilot("show", id, "--json").json
        assert (end["session_id"], end["attempt"], end["failures"]) == (session, 2, 0)
        assert home.git(repo, "show", "pilot/T-1:whole.txt") == "whole"
    home.audit(completed=1)


def test_what_goes_wrong_outside_is_told_apart(home: Home) -> None:
    """One agent each for two sorts of trouble, so that each has its own park; a third has none. More sorts, without a
    daemon: test_opencode_there.py."""
    scripts: dict[str, list[Turn]] = {
        "KEY-1": [write("a.txt", when=GO_ON), {**DONE, "when": GO_ON}, status(401, "invalid x-api-key", times=9)],
        "RATE-1": [status(429, "slow down", headers={"retry-after": "3600"}, times=9)],
    }
    with conversing(home, scripts):
        own = {"command": opencode_binary(), "model": MODEL, "server_url": NOWHERE}
        names = [task.partition("-")[0].lower() for task in scripts]
        profiles = {f"{name}-agent": {"type": "opencode", "opencode": own} for name in names}
        home.configure(executor={**home.settings["executor"], "profiles": profiles})
        for name in names:
            home.repo(name, executor={"type": f"{name}-agent"})
        home.scripted_too()
        with home.serve() as daemon:
            key, rate = (home.enqueue(name, "work", task_id=f"{name.upper()}-1") for name in names)
            home.until(lambda: home.rows("SELECT 1 FROM parks"), "a park")
            home.reach("completed", home.enqueue("key", task_id="OK-1", backend="scripted"))
            home.until(lambda: home.rows("SELECT count(*) FROM parks") == [(2,)], "two parks")
            parks = dict(home.rows("SELECT backend, until FROM parks"))
            assert sorted(parks) == ["key-agent", "rate-agent"]
            assert parks["key-agent"] is None
            assert 3500 < parks["rate-agent"] / 1000 - time.time() < 3700
            for id, failure in ((key, "auth"), (rate, "rate_limit")):
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
        home.audit(completed=2, queued=1)


@pytest.mark.variants
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
        home.pilot("answer", asking, "Take blue.")
        home.reach("completed", asking)
        mine = [request for request in model.agent_requests if request.session == session]
        assert len(mine) == 4
        assert "Take blue." in heard(mine[2])
        assert home.git(repo, "show", "pilot/ASK-1:whole.txt") == "blue"
    home.audit(completed=2)
