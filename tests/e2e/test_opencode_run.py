"""`pilot run` with the real OpenCode and a scripted model: one task, here and now, on a server of its own."""

from __future__ import annotations

import json
import signal
import time
from typing import Any

import pytest

from tests.e2e.conversing import asks, heard
from tests.e2e.daemon import Home
from tests.e2e.model_server import status, text
from tests.e2e.opencode import MODEL, QUIET, Server, bash, conversing, opencode_environment, write

DONE = text("All done.")


def run(home: Home, words: str = "Work.", code: int = 0) -> Any:
    """The end of task T-1 in project web."""
    return json.loads(home.pilot("run", words, "-p", "web", "--task-id", "T-1", "--json", code=code, seconds=110).out)


def test_a_task_is_written_committed_counted_and_remembered(home: Home) -> None:
    repo = home.repo("web", {"README.md": "# web\n", "AGENTS.md": "Speak Latin.\n"})
    with conversing(home, {"T-1": [{**write("a.txt"), "text": "I write it."}, DONE]}, "bubblewrap") as model:
        done = home.pilot("run", "Write a.txt.", "-p", "web", "--task-id", "T-1", "--json", seconds=110)

        end = done.json
        assert (end["status"], end["outcome"], end["delivery"]) == ("completed", "done", "branch"), end
        assert (end["backend"], end["attempt"], end["failures"], end["model"]) == ("opencode", 1, 0, MODEL)
        assert (end["usage"]["input_tokens"], end["usage"]["output_tokens"]) == (200, 40)
        assert end["usage"]["cost_usd"] > 0
        assert end["session_id"].startswith("ses_")
        assert home.git(repo, "show", "pilot/T-1:a.txt") == "hi"
        assert home.git(repo, "rev-list", "main..pilot/T-1").split() == [end["head_sha"]]
        live = [done.err.find(words) for words in ("• agent", "I write it.", "▸ write ", "All done.", "• commit")]
        assert -1 not in live
        assert live == sorted(live), done.err
        assert "Write a.txt." in heard(model.agent_requests[0])
        assert "Speak Latin." in json.dumps(model.agent_requests[0].body)
        assert home.processes() == {}
        home.audit(completed=1)


@pytest.mark.parametrize("kind", ["api", "oauth"])
def test_its_agent_leaves_no_orders_for_its_user_or_the_next_task(home: Home, kind: str) -> None:
    """An account can name an address whose commands the program runs: the user's own, outside of the sandbox."""
    login = home.root / "home/.local/share/opencode/auth.json"
    login.parent.mkdir(parents=True)
    token = {"type": "oauth", "access": "", "refresh": "", "expires": 0}
    mine = {"github-copilot": token if kind == "oauth" else {"type": "api", "key": "k"}}
    login.write_text(json.dumps(mine))
    orders = {"http://127.0.0.1:9": {"type": "wellknown", "key": "X", "token": "x"}}
    script = (
        "import pathlib\n"
        f"orders = {json.dumps({**mine, **orders})!r}\n"
        "data, cache = (pathlib.Path.home() / name / 'opencode' for name in ('.local/share', '.cache'))\n"
        "for file, text in (cache / 'models.json', '{}'), (data / 'auth.json', orders):\n"
        "    try: print(file.write_text(text))\n"
        "    except OSError as error: print(error)\n"
    )
    home.repo("web", {"plant.py": script})
    with conversing(home, {"T-1": [bash("python3 plant.py"), DONE], "T-2": [DONE]}, "bubblewrap") as model:
        own = {name: value for name, value in QUIET.items() if name != "OPENCODE_MODELS_PATH"}  # but what it finds
        home.configure(executor={**home.settings["executor"], "environment": {"set": own}})
        assert run(home)["status"] == "completed"
        told = heard(model.agent_requests[-1])
        assert ("Read-only file system" in told) == (kind == "api"), told
        assert json.loads(login.read_text()) == mine
        if kind == "api":  # no models were left for it
            end = home.pilot("run", "Work.", "-p", "web", "--task-id", "T-2", "--json", code=None, seconds=110).json
            assert end["status"] == "completed", end


def test_a_server_that_is_there_is_used_and_left_alone(home: Home) -> None:
    repo = home.repo("web")
    with conversing(home, {"T-1": [write("a.txt"), DONE]}) as model:
        environment = opencode_environment(home.root / "theirs", model.url)
        with Server(home.root / "theirs", environment, "their secret") as server:
            home.environment["OPENCODE_SERVER_PASSWORD"] = "their secret"
            own = {"server_url": server.url, "command": "/nowhere/opencode", "model": MODEL}
            home.configure(executor={**home.settings["executor"], "opencode": own})
            end = run(home)
            assert (end["status"], end["outcome"]) == ("completed", "done"), end
            assert home.git(repo, "show", "pilot/T-1:a.txt") == "hi"
            assert server.alive
            assert server.url in home.pilot("doctor", code=None).out
    home.audit(completed=1)


@pytest.mark.variants
def test_a_bad_key_parks_the_agent_until_somebody_has_seen_to_it(home: Home) -> None:
    home.repo("web")
    with conversing(home, {"T-1": [status(401, "invalid x-api-key", times=9)]}):
        end = run(home, code=1)
        assert (end["status"], end["failure_class"], end["failures"]) == ("failed", "auth", 0)
        (parked,) = home.pilot("status", "--json").json["parked"]
        assert (parked["backend"], parked["until"]) == ("opencode", None)
        assert "invalid x-api-key" in parked["reason"]
        home.audit(failed=1)


@pytest.mark.variants
def test_a_limit_with_a_far_reset_parks_the_agent_until_then(home: Home) -> None:
    home.repo("web")
    with conversing(home, {"T-1": [status(429, "slow down", headers={"retry-after": "7200"}, times=9)]}) as model:
        end = run(home, code=75)
        assert (end["failure_class"], end["failures"]) == ("rate_limit", 0)
        assert len(model.agent_requests) == 1
        ((until,),) = home.rows("SELECT until FROM parks")
        assert 7000 < until / 1000 - time.time() < 7300
        home.audit(failed=1)


@pytest.mark.variants
def test_a_question_ends_the_run_with_words(home: Home) -> None:
    home.repo("web")
    with conversing(home, {"T-1": [asks("Which colour?", "blue", "red")]}):
        asked = home.pilot("run", "Paint it.", "-p", "web", "--task-id", "T-1", code=3, seconds=110)
        assert "Which colour?" in asked.out
        assert "blue; red" in home.pilot("show", 1).out


@pytest.mark.variants
def test_a_red_gate_is_repaired_in_the_same_session(home: Home) -> None:
    gate = {"name": "files", "kind": "test", "run": "test -f good.txt || { echo E4711: no good.txt; exit 1; }"}
    repo = home.repo("web", gates=[gate])
    script = [write("bad.txt"), DONE, write("good.txt"), text("Repaired.")]
    with conversing(home, {"T-1": script}) as model:
        end = run(home, "Write.")
        assert (end["status"], end["outcome"], end["attempt"], end["failures"]) == ("completed", "done", 1, 0)
        assert {request.session for request in model.agent_requests} == {end["session_id"]}
        last = heard(model.agent_requests[-1])
        assert "E4711: no good.txt" in last
        assert "Write." in last
        assert home.git(repo, "ls-tree", "--name-only", "pilot/T-1").split() == ["README.md", "bad.txt", "good.txt"]
        assert (end["usage"]["input_tokens"], end["usage"]["output_tokens"]) == (400, 80)


@pytest.mark.variants
def test_a_model_that_falls_silent_is_asked_again_in_the_session_and_once_more_is_a_stall(home: Home) -> None:
    home.repo("web")
    with conversing(home, {"T-1": [{"text": "I begin.", "silence": 90, "times": 9}]}) as model:
        home.configure(executor={**home.settings["executor"], "stall_timeout": "3s"})
        end = run(home, code=124)
        assert (end["status"], end["failure_class"], end["attempt"]) == ("failed", "stall", 1)
        assert [request.session for request in model.agent_requests] == [end["session_id"]] * 2
        assert "no sign of life" in home.pilot("logs", end["id"]).out
        assert home.processes() == {}


@pytest.mark.variants
def test_ctrl_c_in_a_tool_call_leaves_nothing(home: Home) -> None:
    home.repo("web")
    with conversing(home, {"T-1": [bash("setsid sleep 4711 & sleep 4712 & touch up; sleep 4713")]}):
        command = home.start("run", "Wait.", "-p", "web", "--task-id", "T-1")
        home.until(lambda: home.found("up"), "the tool's start", 60)
        command.send(signal.SIGINT)
        assert command.wait(40) == 130
        assert home.processes() == {}
