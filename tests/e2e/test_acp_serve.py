"""`pilot serve` with the real Gemini CLI and OpenCode over the Agent Client Protocol, and scripted models."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.acp import GEMINI, OPENCODE, Agent, conversing, earlier, told
from tests.e2e.conversing import asks
from tests.e2e.daemon import Home
from tests.e2e.scripted_server import Turn, status, text

DONE = text("All done.")
LONG = 100.0
"""Seconds for a whole run of an agent that takes some to start."""

# OpenCode has a backend of its own, and takes its time
gemini = pytest.mark.parametrize("agent", [GEMINI], ids=str)


def long_call(home: Home, agent: Agent) -> Turn:
    """A tool call without an end: children in sessions of their own, one of them deaf to signals."""
    return agent.bash(
        f"setsid sleep 4711 & echo $! > {home.control}/orphan; (trap '' TERM INT; sleep 4712) & "
        f"echo half > half.txt; touch {home.control}/up; sleep 4713"
    )


def in_the_call(home: Home) -> None:
    home.until((home.control / "up").exists, "the tool's start", LONG)
    home.until(lambda: home.rows("SELECT 1 FROM output WHERE kind = 'tool'"), "the tool's line in the journal")


@gemini
def test_kill_9_in_a_tool_call_ends_the_orphans_and_goes_on_in_the_session(home: Home, agent: Agent) -> None:
    repo = home.repo("web")
    with conversing(home, agent, {"T-1": [long_call(home, agent), agent.write("whole.txt", "whole"), DONE]}) as model:
        with home.serve() as daemon:
            id = home.enqueue("web", "Work long.", task_id="T-1")
            in_the_call(home)
            session = home.value(id, "session_id")
            home.until(lambda: sum("sleep 471" in line for line in home.processes().values()) >= 3, "three that sleep")
            daemon.kill9()
        # an agent that sees its input end may end its own tool; what is in a session of its own stays
        assert any("sleep 4711" in line for line in home.processes().values())
        assert home.value(id, "status") == "running"
        earlier(agent, Path(home.environment["HOME"]))

        with home.serve():
            home.reach("completed", id, seconds=LONG)

            assert home.processes() == {}
            end = home.pilot("show", id, "--json").json
            assert (end["attempt"], end["failures"], end["session_id"]) == (2, 0, session)
            heard = told(model.agent_requests[-1])
            assert 0 < heard.find("Work long.") < heard.find("You were interrupted. Go on with the task")
            for name in ("half", "whole"):
                assert home.git(repo, "show", f"pilot/T-1:{name}.txt") == name
    home.audit(completed=1)


@gemini
def test_cancel_in_a_tool_call_leaves_no_process(home: Home, agent: Agent) -> None:
    home.repo("web")
    with conversing(home, agent, {"T-1": [long_call(home, agent)]}):
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
    home.reach("completed", following, seconds=LONG)
    assert home.processes() == {}


@gemini
def test_a_silent_model_is_given_up_asked_again_and_given_up_for_good(home: Home, agent: Agent) -> None:
    home.repo("web")
    (gate := home.control / "gate").touch()
    # before its first answer, Gemini CLI has no session to go on in
    with conversing(home, agent, {"T-1": [agent.write("a.txt"), text("half", silence=600, times=9)]}) as model:
        argv = ["sh", "-c", 'while [ ! -e "$0" ]; do sleep 0.1; done; exec "$@"', str(gate), *agent.argv()]
        settings = {"acp": {"argv": argv}, "stall_timeout": "8s", "max_attempts": 1}
        home.configure(executor={**home.settings["executor"], **settings})
        with home.serve():
            id = home.enqueue("web", "Work.", task_id="T-1")
            home.until(lambda: len(model.agent_requests) == 2, "the model's silence", LONG)
            gate.unlink()
            given_up = "SELECT 1 FROM output WHERE kind = 'pilot' AND instr(CAST(data AS TEXT), 'no sign of life')"
            home.until(lambda: home.rows(given_up), "the end of patience", LONG)
            earlier(agent, Path(home.environment["HOME"]))
            gate.touch()
            home.reach("failed", id, seconds=LONG)
            end = home.pilot("show", id, "--json").json
            assert (end["failure_class"], end["failures"]) == ("stall", 1), end
            assert len(model.agent_requests) >= 3, "gone on with once"
            assert home.processes() == {}
    home.audit(failed=1)


def test_a_question_frees_the_slot_and_its_answer_goes_on_in_the_session(home: Home) -> None:
    repo = home.repo("web")
    ask = [OPENCODE.write("half.txt"), asks("Which colour?", "blue", "red"), OPENCODE.write("whole.txt", "blue"), DONE]
    with conversing(home, OPENCODE, {"ASK-1": ask}) as model:
        home.scripted_too()
        with home.serve():
            asking = home.enqueue("web", "Paint it.", task_id="ASK-1")
            other = home.enqueue("web", task_id="OTHER-1", backend="scripted")
            home.reach("needs_human", asking, seconds=LONG)
            home.reach("completed", other, seconds=LONG)
            session = home.value(asking, "session_id")

            home.pilot("answer", asking, "Take $(touch /tmp/no) blue.")
            home.reach("completed", asking, seconds=LONG)

        heard = [told(request) for request in model.agent_requests if "Paint it." in told(request)][-1]
        assert heard.find("Paint it.") < heard.find("Which colour?") < heard.rfind("Take $(touch /tmp/no) blue.")
        end = home.pilot("show", asking, "--json").json
        assert (end["session_id"], end["attempt"], end["failures"]) == (session, 2, 0)
        assert home.git(repo, "show", "pilot/ASK-1:whole.txt") == "blue"
        assert end["usage"]["cost_usd"] == pytest.approx(4 * 0.0006), "of both attempts, each counted once"
    home.audit(completed=2)


def test_a_limit_parks_the_agent_and_the_others_go_on(home: Home) -> None:
    wait = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "3600s"}
    scripts = {"RATE-1": [status(429, "Resource exhausted", details=[wait], times=9)], "OK-1": [DONE]}
    with conversing(home, GEMINI, scripts):
        acp = {"type": "acp", "acp": home.settings["executor"]["acp"]}
        profiles = {"one": acp, "two": {**acp, "environment": {"set": {"GEMINI_API_KEY": "another"}}}}
        home.configure(executor={**home.settings["executor"], "profiles": profiles})
        home.repo("rate", executor={"type": "one"})
        home.repo("ok", executor={"type": "two"})
        with home.serve():
            rate = home.enqueue("rate", "work", task_id="RATE-1")
            home.until(lambda: home.rows("SELECT 1 FROM parks"), "a park", LONG)
            ok = home.enqueue("ok", "work", task_id="OK-1")
            home.reach("completed", ok, seconds=LONG)
            row = home.pilot("show", rate, "--json").json
            assert (row["status"], row["failure_class"], row["failures"]) == ("queued", "rate_limit", 0), row
            assert [hold["kind"] for hold in home.pilot("why", rate, "--json").json["holds"]] == ["parked"]
    home.audit(completed=1, queued=1)
