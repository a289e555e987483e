"""`pilot run` with the real Codex CLI and a scripted model: one task, here and now."""

from __future__ import annotations

import json
import signal
import time
from typing import Any

import pytest

from tests.e2e.codex import conversing, heard, threads
from tests.e2e.conversing import asks
from tests.e2e.daemon import Home
from tests.e2e.responses_server import shell, status, text

DONE = text("All done.")


def run(home: Home, words: str = "Work.", code: int = 0) -> Any:
    """The end of task T-1 in project web."""
    return home.pilot("run", words, "-p", "web", "--task-id", "T-1", "--json", code=code).json


def test_a_task_is_written_committed_counted_and_remembered(home: Home) -> None:
    repo = home.repo("web", {"README.md": "# web\n", "CLAUDE.md": "Speak Latin.\n"})
    with conversing(home, {"T-1": [shell("echo hi > a.txt", text="I write it."), DONE]}) as model:
        done = home.pilot("run", "Write a.txt.", "-p", "web", "--task-id", "T-1", "--json")

        end = done.json
        assert (end["status"], end["outcome"], end["delivery"]) == ("completed", "done", "branch"), end
        assert (end["backend"], end["model"], end["failures"]) == ("codex", "scripted-model", 0)
        assert end["usage"] == {"input_tokens": 200, "output_tokens": 40, "cost_usd": None}
        assert [end["session_id"]] == threads(home.root / "home")
        assert home.git(repo, "show", "pilot/T-1:a.txt") == "hi"
        assert home.git(repo, "rev-list", "main..pilot/T-1").split() == [end["head_sha"]]

        live = [
            done.err.find(words) for words in ("• agent", "I write it.", "▸ shell echo hi", "All done.", "• commit")
        ]
        assert -1 not in live
        assert live == sorted(live), done.err
        told = heard(model.agent_requests[0])
        assert "Write a.txt." in told
        assert told.count("Speak Latin.") == 1
        home.audit(completed=1)


@pytest.mark.variants
def test_a_bad_key_parks_the_agent_until_somebody_has_seen_to_it(home: Home) -> None:
    home.repo("web")
    with conversing(home, {"T-1": [status(401, "bad key", times=9)]}):
        end = run(home, code=1)
        assert (end["status"], end["failure_class"], end["failures"]) == ("failed", "auth", 0)
        (parked,) = home.pilot("status", "--json").json["parked"]
        assert (parked["backend"], parked["until"]) == ("codex", None)
        assert "401 Unauthorized: bad key" in parked["reason"]
        home.audit(failed=1)


@pytest.mark.variants
def test_a_used_up_allowance_parks_it_until_it_is_back(home: Home) -> None:
    home.repo("web")
    reset = int(time.time()) + 3 * 86400
    error = {"type": "usage_limit_reached", "message": "spent", "plan_type": "pro", "resets_at": reset}
    with conversing(home, {"T-1": [status(429, body={"error": error})]}):
        end = run(home, code=75)
        assert (end["failure_class"], end["failures"]) == ("quota", 0)
        ((until,),) = home.rows("SELECT until FROM parks")
        assert 0 <= until / 1000 - reset <= 60
        home.audit(failed=1)


@pytest.mark.variants
def test_what_it_may_not_do_is_named_to_a_person(home: Home) -> None:
    home.repo("web")
    patch = "*** Begin Patch\n*** Add File: p.txt\n+hello\n*** End Patch\n"
    refused = {"tools": [{"name": "apply_patch", "freeform": patch}]}
    with conversing(home, {"T-1": [refused, text("I may not.")]}, sandbox="read-only", model="gpt-5.5"):
        end = run(home, code=3)
        assert end["status"] == "needs_human"
        assert "writing is blocked by read-only sandbox" in end["reason"]
        assert "executor.codex" in home.pilot("show", end["id"]).out
        home.audit(needs_human=1)


@pytest.mark.variants
def test_a_question_ends_the_run_with_words(home: Home) -> None:
    home.repo("web")
    with conversing(home, {"T-1": [asks("Which colour?", "blue", "red")]}):
        end = run(home, "Paint it.", code=3)
        assert "Which colour?" in end["reason"]
        assert "blue; red" in home.pilot("show", end["id"]).out


def test_a_red_gate_is_repaired_in_the_same_session_and_nothing_is_counted_twice(home: Home) -> None:
    gate = {"name": "files", "kind": "test", "run": "test -f good.txt || { echo no good.txt; exit 1; }"}
    repo = home.repo("web", gates=[gate])
    script = [shell("echo x > bad.txt"), DONE, shell("echo x > good.txt"), text("Repaired.")]
    with conversing(home, {"T-1": script}) as model:
        end = run(home, "Write.")

        assert (end["status"], end["outcome"], end["failures"]) == ("completed", "done", 0)
        assert {request.session for request in model.agent_requests} == {end["session_id"]}
        told = heard(model.agent_requests[2])
        assert told.find("Write.") < told.find("no good.txt")
        assert home.git(repo, "ls-tree", "--name-only", "pilot/T-1").split() == ["README.md", "bad.txt", "good.txt"]
        assert (end["usage"]["input_tokens"], end["usage"]["output_tokens"]) == (400, 80)
        home.audit(completed=1)


@pytest.mark.variants
def test_ctrl_c_in_a_tool_call_leaves_nothing(home: Home) -> None:
    home.repo("web")
    long = shell(f"setsid sleep 4711 & sleep 4712 & echo up > {home.control}/up; sleep 4713")
    with conversing(home, {"T-1": [long]}, sandbox="danger-full-access") as model:
        command = home.start("run", "Wait.", "-p", "web", "--task-id", "T-1")
        home.until((home.control / "up").exists, "the tool's start")
        home.until(lambda: sum("sleep 471" in line for line in home.processes().values()) >= 3, "three that sleep")

        command.send(signal.SIGINT)

        assert command.wait() == 130
        assert home.processes() == {}
        assert len(model.agent_requests) == 1
        home.audit(cancelled=1)


def test_a_model_that_falls_silent_is_given_up_and_asked_again_in_the_session(home: Home) -> None:
    repo = home.repo("web")
    with conversing(home, {"T-1": [{"text": "I begin.", "silence": 60}, shell("echo hi > a.txt"), DONE]}) as model:
        home.configure(executor={**home.settings["executor"], "stall_timeout": "2s"})
        end = run(home)
        assert (end["status"], end["attempt"], end["failures"]) == ("completed", 1, 0)
        assert {request.session for request in model.agent_requests} == {end["session_id"]}
        assert "You were interrupted" in heard(model.agent_requests[1])
        assert home.git(repo, "show", "pilot/T-1:a.txt") == "hi"
        home.audit(completed=1)


@pytest.mark.variants
def test_a_model_that_stays_silent_is_a_stall(home: Home) -> None:
    home.repo("web")
    with conversing(home, {"T-1": [{"silence": 60, "times": 9}]}):
        home.configure(executor={**home.settings["executor"], "stall_timeout": "2s"})
        end = run(home, code=124)
        assert (end["status"], end["failure_class"]) == ("failed", "stall")
        assert home.processes() == {}
        home.audit(failed=1)


def test_what_a_repository_has_for_the_agent_is_not_obeyed(home: Home) -> None:
    """Not even where its user trusts the checkout: a worktree of it would be trusted, too."""
    witness = home.root / "witness"
    hook = [{"hooks": [{"type": "command", "command": f"echo hook >> {witness}"}]}]
    touch = f'command = "sh"\nargs = ["-c", "echo served >> {witness}"]\n'
    files = {
        ".codex/config.toml": f'notify = ["sh", "-c", "echo told >> {witness}"]\n[mcp_servers.evil]\n{touch}',
        ".codex/hooks.json": json.dumps({"hooks": {"SessionStart": hook, "Stop": hook}}),
    }
    for mode in ("worktree", "in_place"):
        name = f"web-{mode[:2]}"
        repo = home.repo(name, files, workspace=mode)
        own = home.root / "home/.codex/config.toml"
        own.parent.mkdir(parents=True, exist_ok=True)
        own.write_text(f'[projects."{repo}"]\ntrust_level = "trusted"\n')
        with conversing(home, {name: [shell("echo hi > a.txt"), DONE]}):
            end = home.pilot("run", "Work.", "-p", name, "--task-id", name, "--json").json
            assert end["outcome"] == "done", end
            assert not witness.exists(), (mode, witness.read_text())


def test_in_pilot_s_sandbox_it_works_goes_on_and_keeps_nothing_that_would_steer_it(home: Home) -> None:
    gate = {"name": "files", "kind": "test", "run": "test -f good.txt || { echo no good.txt; exit 1; }"}
    repo = home.repo("web", gates=[gate])
    plant = (
        "mkdir -p ~/.codex/skills/s ~/.codex/rules; for name in config.toml AGENTS.md hooks.json skills/s/SKILL.md "
        "rules/default.rules; do echo planted > ~/.codex/$name; done; "
        f"echo out > {home.root}/out.txt; echo x > bad.txt; git add bad.txt; git commit -q -m own; env > env.txt"
    )
    script = [shell(plant), DONE, shell("echo x > good.txt"), text("Repaired.")]
    (own := home.root / "home/.codex").mkdir(parents=True)
    (own / "AGENTS.md").write_text("Always say moo.\n")
    with conversing(home, {"T-1": script}, within="bubblewrap") as model:
        end = run(home, "Write.")

        assert (end["status"], end["outcome"]) == ("completed", "done"), end
        assert {request.session for request in model.agent_requests} == {end["session_id"]}
        assert [path.name for path in own.iterdir()] == ["AGENTS.md"], "sessions are in the project's own home"
        assert (own / "AGENTS.md").read_text() == "Always say moo.\n"
        assert "Always say moo." in heard(model.agent_requests[0])
        kept = [path for path in home.state.rglob("*") if path.is_file() and "homes" in path.parts]
        assert not [path for path in kept if path.read_bytes() == b"planted\n"]
        assert not (home.root / "out.txt").exists()
        assert home.git(repo, "show", "pilot/T-1:good.txt") == "x"
        assert "dummy" not in home.git(repo, "show", "pilot/T-1:env.txt"), "the key"
        assert "failed to" not in home.pilot("logs", end["id"]).out
        home.audit(completed=1)


def test_a_cancel_in_pilot_s_sandbox_leaves_nothing(home: Home) -> None:
    home.repo("web")
    long = shell("setsid sleep 4711 & (trap '' TERM INT; sleep 4712) & echo up > up; sleep 4713")
    with conversing(home, {"T-1": [long]}, within="bubblewrap"):
        command = home.start("run", "Wait.", "-p", "web", "--task-id", "T-1")
        home.until(lambda: list(home.state.glob("workspaces/*/web/up")), "the tool's start")
        home.until(lambda: sum("sleep 471" in line for line in home.processes().values()) >= 3, "three that sleep")
        command.send(signal.SIGINT)
        assert command.wait() == 130
        assert home.processes() == {}
        home.audit(cancelled=1)
