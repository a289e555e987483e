"""`pilot run` with the real Gemini CLI and OpenCode over the Agent Client Protocol, and scripted models."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.acp import GEMINI, OPENCODE, Agent, conversing, told
from tests.e2e.conversing import asks
from tests.e2e.daemon import Home
from tests.e2e.scripted_server import status, text

DONE = text("All done.")

variants = pytest.mark.variants
# OpenCode has a backend of its own, and takes its time
gemini = pytest.mark.parametrize("agent", [GEMINI], ids=str)


def run(home: Home, words: str = "Work.", code: int = 0) -> Any:
    """The end of task T-1 in project web."""
    return json.loads(home.pilot("run", words, "-p", "web", "--task-id", "T-1", "--json", code=code, seconds=110).out)


@pytest.mark.parametrize(
    ("agent", "sandbox"),
    [
        (GEMINI, "none"),
        (OPENCODE, "bubblewrap"),
        pytest.param(GEMINI, "bubblewrap", marks=variants),
        pytest.param(OPENCODE, "none", marks=variants),
    ],
    ids=str,
)
def test_a_task_is_written_committed_counted_and_remembered(home: Home, agent: Agent, sandbox: str) -> None:
    repo = home.repo("web", {"README.md": "# web\n", "AGENTS.md": "Speak Latin.\n"})
    with conversing(home, agent, {"T-1": [{**agent.write("a.txt"), "text": "I write it."}, DONE]}) as model:
        home.configure(executor={**home.settings["executor"], "sandbox": sandbox})
        done = home.pilot("run", "Write a.txt.", "-p", "web", "--task-id", "T-1", "--json", seconds=110)

        end = done.json
        assert (end["status"], end["outcome"], end["delivery"]) == ("completed", "done", "branch"), end
        assert (end["backend"], end["failures"]) == ("acp", 0)
        used = end["usage"]
        if agent is GEMINI:
            assert used == {"input_tokens": 200, "output_tokens": 40, "cost_usd": None}
        else:
            assert used == {"input_tokens": None, "output_tokens": None, "cost_usd": pytest.approx(0.0012)}
        assert end["session_id"]
        assert end["model"]
        assert home.git(repo, "show", "pilot/T-1:a.txt") == "hi"
        assert home.git(repo, "rev-list", "main..pilot/T-1").split() == [end["head_sha"]]
        live = [done.err.find(words) for words in ("• agent", "I write it.", "▸ ", "All done.", "• commit")]
        assert -1 not in live
        assert live == sorted(live), done.err
        asked = told(model.agent_requests[0])
        assert "Write a.txt." in asked
        assert "Speak Latin." in asked
        home.audit(completed=1)


@gemini
def test_a_bad_key_parks_the_agent_until_somebody_has_seen_to_it(home: Home, agent: Agent) -> None:
    home.repo("web")
    with conversing(home, agent, {"T-1": [status(401, "invalid x-api-key", times=9)]}):
        end = run(home, code=1)
        assert (end["status"], end["failure_class"], end["failures"]) == ("failed", "auth", 0)
        (parked,) = home.pilot("status", "--json").json["parked"]
        assert (parked["backend"], parked["until"]) == ("acp", None)
        assert "invalid x-api-key" in parked["reason"]
        home.audit(failed=1)


@pytest.mark.variants
def test_a_limit_with_a_far_reset_parks_the_agent_until_then(home: Home) -> None:
    home.repo("web")
    wait = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "7200s"}
    with conversing(home, GEMINI, {"T-1": [status(429, "Resource exhausted", details=[wait], times=9)]}):
        end = run(home, code=75)
        assert (end["failure_class"], end["failures"]) == ("rate_limit", 0)
        ((until,),) = home.rows("SELECT until FROM parks")
        assert 7000 < until / 1000 - time.time() < 7300
        home.audit(failed=1)


@pytest.mark.variants
@gemini
def test_a_question_ends_the_run_with_words(home: Home, agent: Agent) -> None:
    home.repo("web")
    with conversing(home, agent, {"T-1": [asks("Which colour?", "blue", "red")]}):
        asked = home.pilot("run", "Paint it.", "-p", "web", "--task-id", "T-1", code=3, seconds=110)
        assert "Which colour?" in asked.out
        assert "blue; red" in home.pilot("show", 1).out


def test_what_it_may_not_do_is_named_to_a_person(home: Home) -> None:
    home.repo("web")
    with conversing(home, GEMINI, {"T-1": [GEMINI.write("a.txt"), text("I may not.")]}, permissions="refuse"):
        end = run(home, code=3)
        assert end["status"] == "needs_human"
        assert "a.txt" in end["reason"]
        assert "executor.acp.permissions" in home.pilot("show", end["id"]).out
        home.audit(needs_human=1)


def test_a_session_that_is_lost_begins_anew_and_is_told_everything(home: Home) -> None:
    """Gemini CLI 0.61 can't go on in a session that began in the same minute."""
    gate = {"name": "files", "kind": "test", "run": "test -f good.txt || { echo E4711: no good.txt; exit 1; }"}
    repo = home.repo("web", gates=[gate])
    script = [GEMINI.write("bad.txt"), DONE, GEMINI.write("good.txt"), text("Repaired.")]
    with conversing(home, GEMINI, {"T-1": script}) as model:
        end = run(home, "Write.")
        assert (end["status"], end["outcome"], end["attempt"], end["failures"]) == ("completed", "done", 1, 0)
        last = told(model.agent_requests[-1])
        assert "E4711: no good.txt" in last
        assert "Write." in last
        assert home.git(repo, "ls-tree", "--name-only", "pilot/T-1").split() == ["README.md", "bad.txt", "good.txt"]
        home.audit(completed=1)


@gemini
def test_ctrl_c_in_a_tool_call_leaves_nothing(home: Home, agent: Agent) -> None:
    home.repo("web")
    long = agent.bash(f"setsid sleep 4711 & sleep 4712 & echo up > {home.control}/up; sleep 4713")
    with conversing(home, agent, {"T-1": [long]}) as model:
        command = home.start("run", "Wait.", "-p", "web", "--task-id", "T-1")
        home.until((home.control / "up").exists, "the tool's start", 60)
        home.until(lambda: sum("sleep 471" in line for line in home.processes().values()) >= 3, "three that sleep")

        command.send(signal.SIGINT)

        assert command.wait() == 130
        assert home.processes() == {}
        assert len(model.agent_requests) == 1
        home.audit(cancelled=1)


def test_a_program_that_does_not_speak_the_protocol_is_a_matter_of_configuration(home: Home, tmp_path: Path) -> None:
    home.repo("web")
    (program := tmp_path / "chatty").write_text("#!/bin/sh\necho Welcome to chatty 1.0!\n")
    program.chmod(0o755)
    with conversing(home, OPENCODE, {}):
        home.configure(executor={**home.settings["executor"], "acp": {"argv": [str(program)]}})
        end = run(home, code=1)
        assert (end["failure_class"], end["failures"]) == ("invalid_config", 0)
        assert "Welcome to chatty 1.0!" in end["error"]
        home.audit(failed=1)
