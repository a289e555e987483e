"""The real Claude Code CLI in the sandbox: it works, goes on in its session, and leaves nothing; secrets stay."""

from __future__ import annotations

import json
import signal
import zlib
from pathlib import Path

import pytest

from tests.e2e.claude import sessions
from tests.e2e.conversing import bash, conversing, heard, write
from tests.e2e.daemon import Home
from tests.e2e.model_server import text

DONE = text("All done.")


@pytest.fixture
def boxed(home: Home) -> Home:
    """A pilot that is asked for the sandbox, with secrets in its environment and around it."""
    home.settings["executor"] |= {"sandbox": "bubblewrap"}
    home.environment |= {"CANARY": "c4n4ry", "GITHUB_TOKEN": "ghp_c4n4ry"}
    (home.root / ".env").write_text("TOKEN=c4n4ry\n")
    (home.root / ".env").chmod(0o600)
    (home.root / "home/.ssh").mkdir()
    (home.root / "home/.ssh/id_ed25519").write_text("c4n4ry")
    return home


def kept(home: Home) -> Path:
    """The home of the first project's agents, outside."""
    return home.state / "homes/1/home"


def in_the_call(home: Home) -> None:
    home.until((home.control / "up").exists, "the tool's start")
    home.until(lambda: home.rows("SELECT 1 FROM output WHERE kind = 'tool'"), "the tool's line in the journal")


def deaf(home: Home) -> str:
    n = seconds_of(home)
    return (
        f"setsid sleep {n} & (trap '' TERM INT; sleep {n}) & env -i setsid sleep {n} & "
        f"echo half > half.txt; touch {home.control}/up; sleep {n}"
    )


def seconds_of(home: Home) -> str:
    """For how long they sleep: no other test's do for so long."""
    return str(1_000_000 + zlib.crc32(str(home.root).encode()) % 1_000_000)


def sleepers(home: Home) -> list[str]:
    """What of `deaf` runs on this machine, whatever it carries."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            line = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if line[:1] == [b"sleep"] and line[1] == seconds_of(home).encode():
            found.append(entry.name)
    return found


@pytest.mark.parametrize("mode", ["clone", "worktree", "in_place"])
def test_a_task_is_done_and_secrets_stay(boxed: Home, mode: str) -> None:
    home = boxed
    gate = {"name": "inside", "kind": "test", "run": f"test -f a.txt && test ! -e {home.file} && test ! -e ~/.ssh"}
    repo = home.repo("web", workspace=mode, gates=[gate], setup=[f"test ! -e {home.file}; echo set up > ~/set-up"])
    look = bash(
        "{ env; cat /proc/[0-9]*/environ; cat ~/set-up; "
        f"for f in {home.file} {home.root}/.env {home.state}/pilot.db {home.root}/home/.ssh/id_ed25519 /etc/shadow; "
        f"do cat $f; done; ls -R {home.state}; ps ax; }} > seen.txt 2>&1; echo '{{}}' > ~/.claude/settings.json; "
        "git add -A; git commit -qm mine; node -p 6*7 && python3 -V && git log -1 --format=%s"
    )
    with conversing(home, {"T-1": [write("a.txt"), look, DONE]}) as model:
        end = home.pilot("run", "Write a.txt.", "-p", "web", "--task-id", "T-1", "--json").json

        assert (end["status"], end["outcome"], end["usage"]["input_tokens"]) == ("completed", "done", 300), end
        assert home.git(repo, "show", "pilot/T-1:a.txt") == "hi"
        seen = home.git(repo, "show", "pilot/T-1:seen.txt")
        assert "c4n4ry" not in seen
        assert "projects:" not in seen
        assert "set up" in seen
        assert "PILOT_RUN=" in seen
        assert "SQLite" not in seen
        told = heard(model.agent_requests[-1])
        assert "42" in told
        assert "settings.json: Read-only file system" in told
        assert sessions({"CLAUDE_CONFIG_DIR": f"{home.root}/home/.claude"}) == []
        assert sessions({"CLAUDE_CONFIG_DIR": str(kept(home) / ".claude")}) == [end["session_id"]]
        assert (kept(home) / "set-up").exists()
        home.audit(completed=1)


def test_one_task_leaves_no_orders_for_the_next(boxed: Home) -> None:
    """The CLI takes variables from a file of its own, over those that it is started with: the model's address."""
    home = boxed
    home.repo("web")
    orders = json.dumps({"env": {"ANTHROPIC_BASE_URL": "http://127.0.0.1:9"}})
    files = "~/.claude.json ~/.claude/.claude.json ~/.claude/.config.json ~/.claude/remote-settings.json"
    plant = bash(f"for f in {files}; do echo '{orders}' > $f; done")
    with conversing(home, {"T-1": [plant, DONE], "T-2": [write("a.txt"), DONE]}):
        for task in ("T-1", "T-2"):
            end = home.pilot("run", "Work.", "-p", "web", "--task-id", task, "--json", code=None).json
            assert end["status"] == "completed", end


def test_kill_9_of_the_daemon_leaves_nothing_and_the_session_goes_on(boxed: Home) -> None:
    home = boxed
    repo = home.repo("web")
    with conversing(home, {"T-1": [bash(deaf(home)), bash("echo whole > whole.txt"), DONE]}) as model:
        with home.serve() as daemon:
            id = home.enqueue("web", "Work long.", task_id="T-1")
            in_the_call(home)
            home.until(lambda: len(sleepers(home)) == 4, "four that sleep")
            session = home.value(id, "session_id")
            daemon.kill9()
        home.until(lambda: not sleepers(home) and not home.processes(), "the end of all that it started")
        assert home.value(id, "status") == "running"

        with home.serve():
            home.reach("completed", id)
        end = home.pilot("show", id, "--json").json
        assert (end["attempt"], end["failures"], end["session_id"]) == (2, 0, session)
        asked = model.agent_requests
        assert {request.session for request in asked} == {session}
        assert "Work long." in heard(asked[1]), "the conversation so far"
        for name in ("half", "whole"):
            assert home.git(repo, "show", f"pilot/T-1:{name}.txt") == name
        home.audit(completed=1)


def test_a_cancel_leaves_nothing_and_its_session_is_whole(boxed: Home) -> None:
    home = boxed
    home.repo("web")
    with conversing(home, {"T-1": [bash(deaf(home))]}), home.serve():
        id = home.enqueue("web", "Work long.", task_id="T-1")
        in_the_call(home)
        home.until(lambda: len(sleepers(home)) == 4, "four that sleep")

        home.pilot("cancel", id)

        home.reach("cancelled", id)
        assert sleepers(home) == []
        assert home.processes() == {}
        (session,) = (kept(home) / ".claude").glob("projects/*/*.jsonl")
        assert "interrupted by user" in session.read_text(), "the CLI had the time to write it down"


def test_ctrl_c_too(boxed: Home) -> None:
    home = boxed
    home.repo("web")
    with conversing(home, {"T-1": [bash(deaf(home))]}):
        run = home.start("run", "Wait.", "-p", "web", "--task-id", "T-1")
        in_the_call(home)
        run.send(signal.SIGINT)
        assert run.wait() == 130
        home.until(lambda: not sleepers(home), "the end of those that carry no mark")
        home.audit(cancelled=1)


def test_the_user_s_settings_count_and_stay_as_they_are(boxed: Home) -> None:
    home = boxed
    own = home.root / "home/.claude"
    own.mkdir()
    hook = {"matcher": "", "hooks": [{"type": "command", "command": "echo hooked >> ~/hooked"}]}
    (own / "settings.json").write_text(json.dumps({"hooks": {"SessionStart": [hook]}}))
    before = (own / "settings.json").read_text()
    home.repo("web")
    plant = bash(
        "mv ~/.claude ~/.was; rm -f ~/.claude/settings.json; echo '{}' > ~/.claude/settings.json; "
        "mkdir -p ~/.claude/agents && echo x > ~/.claude/agents/x.md; echo kept > ~/.cache-of-mine; echo x > x.txt"
    )
    with conversing(
        home, {"T-1": [plant, DONE], "T-2": [bash("cat ~/.cache-of-mine > y.txt; ls ~/.claude/agents"), DONE]}
    ):
        for task in ("T-1", "T-2"):
            home.pilot("run", "Work.", "-p", "web", "--task-id", task, "--json")
    assert (own / "settings.json").read_text() == before
    assert (kept(home) / "hooked").read_text() == "hooked\nhooked\n"
    assert [path.name for path in own.iterdir()] == ["settings.json"]
    assert home.git(home.repositories["web"], "show", "pilot/T-2:y.txt") == "kept"


def test_asked_for_and_not_to_be_had_is_an_error_and_auto_says_what_it_does(boxed: Home) -> None:
    home = boxed
    home.repo("web")
    broken = home.root / "bin/bwrap"
    broken.parent.mkdir()
    broken.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
    broken.chmod(0o755)
    home.environment["PATH"] = f"{broken.parent}:{home.environment['PATH']}"
    with conversing(home, {"T-1": [write("a.txt"), DONE]}) as model:
        refused = home.pilot("run", "Write.", "-p", "web", "--task-id", "T-1", code=2)
        assert "No permissions to create new namespace" in refused.err
        assert "say none" in refused.err
        assert not model.agent_requests

        home.configure(executor={**home.settings["executor"], "sandbox": "auto"})
        home.pilot("run", "Write.", "-p", "web", "--task-id", "T-1")
        assert not kept(home).exists()
        checks = {check["name"]: check for check in home.pilot("doctor", "--json", code=None).json["checks"]}
        assert checks["sandbox"]["status"] == "warning"
        assert "No permissions" in checks["sandbox"]["detail"]
