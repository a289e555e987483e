"""The commands that need everything: run, enqueue, serve, doctor, through real processes."""

from __future__ import annotations

import json
import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.e2e.daemon import Home, prompt

SAYS = ("say I am at it", r"bytes \x1b]52;c;cHduZWQ=\x07done\x1b[2J\n")


def test_run_shows_progress_and_what_came_of_it(home: Home) -> None:
    web = home.repo("web")

    done = home.pilot("run", prompt("T-1", *SAYS), "--task-id", "T-1", cwd=web)

    assert done.out.splitlines()[0] == "1 completed (done)"
    assert "branch  pilot/T-1" in done.out.replace("  ", " ").replace("branch ", "branch  ")
    assert "  pilot show 1" in done.out
    assert "execution 1" in done.err
    assert "I am at it" in done.err
    assert "• " in done.err
    assert not {"\x1b", "\x07"} & set(done.err + done.out)
    assert home.git(web, "show", "pilot/T-1:T-1.txt") == "T-1"
    home.audit(completed=1)


def test_run_says_how_to_end_what_it_waits_for(home: Home) -> None:
    web = home.repo("web")
    home.settings["executor"]["profiles"] = {"gone": {"type": "command", "command": {"argv": ["no-such-agent"]}}}
    home.configure()
    home.pilot("run", "Do it.", "--backend", "gone", cwd=web, code=1)

    busy = home.pilot("run", "Do it.", "--backend", "gone", "--no-wait", cwd=web, code=75)

    assert "gone takes no work: invalid_config: " in busy.err
    assert "`pilot backend unpark gone`" in busy.err


def test_run_as_one_document(home: Home) -> None:
    web = home.repo("web")

    document = home.pilot("run", prompt("T-1"), "--task-id", "T-1", "--json", cwd=web).json

    assert document == home.pilot("show", 1, "--json").json
    assert (document["status"], document["outcome"], document["branch"]) == ("completed", "done", "pilot/T-1")
    assert document["head_sha"] == home.git(web, "rev-parse", "pilot/T-1")
    assert document["base_sha"] == home.git(web, "rev-parse", "main")


def test_run_reads_its_prompt_from_stdin_or_a_file(home: Home) -> None:
    web = home.repo("web")
    words = prompt("T-1", "write from.txt stdin")
    file = home.root / "task.md"
    file.write_text(prompt("T-2", "write from.txt a file"))

    home.pilot("run", "-", "--task-id", "T-1", cwd=web, input=words.encode())
    home.pilot("run", "--file", file, "--task-id", "T-2", "-p", "web")

    assert home.git(web, "show", "pilot/T-1:from.txt") == "stdin"
    assert home.git(web, "show", "pilot/T-2:from.txt") == "a file"


def test_runs_end_with_the_code_of_their_end(home: Home) -> None:
    web = home.repo("web")

    failed = home.pilot("run", prompt("T-1", "exit 3"), "--task-id", "T-1", cwd=web, code=1)
    late = home.pilot("run", prompt("T-2", "wait never"), "--task-id", "T-2", "--timeout", "1", cwd=web, code=124)
    question = '```pilot-question\n{"question": "Red or blue?", "options": ["red", "blue"]}\n```'
    order = f"bytes {question.encode('unicode_escape').decode()}"
    asks = home.pilot("run", prompt("T-3", order), "--task-id", "T-3", cwd=web, code=3)

    assert "1 failed" in failed.out
    assert "2 failed" in late.out
    assert 'pilot answer 3 "…"' in asks.out
    assert "Red or blue?" in home.pilot("show", 3).out
    home.audit(failed=2, needs_human=1)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, "what is there to do?"),
        (["x", "--file", "y"], 2, "not both"),
        (["x", "-p", "nope"], 4, "no project 'nope'"),
        (["x", "--backend", "nope"], 2, "no backend 'nope'"),
        (["x", "--publish", "mail"], 2, "'mail' is not one of"),
        (["x", "--timeout", "soon"], 2, "--timeout 'soon'"),
        (["x", "--attempts", "0"], 2, "0 is not in the range"),
        (["@cmd:make"], 2, "does not allow the command 'make'"),
    ],
)
def test_run_refuses_before_it_writes_anything(home: Home, arguments: list[str], code: int, words: str) -> None:
    web = home.repo("web")

    refused = home.pilot("run", *arguments, cwd=web, code=code)

    assert words in refused.err
    assert refused.out == ""
    assert home.rows("SELECT count(*) FROM executions") in ([], [(0,)])


def test_enqueue_prints_the_id_and_nothing_else(home: Home) -> None:
    web = home.repo("web")

    first = home.pilot("enqueue", "Do it.\nAll of it.", cwd=web)
    second = home.pilot("enqueue", "-", "-p", "web", "--title", "Mine", input=b"Do that.")

    assert (first.out, first.err) == ("1\n", "")
    assert second.out == "2\n"
    assert home.rows("SELECT title, body, status, source FROM executions ORDER BY id") == [
        ("Do it.", "Do it.\nAll of it.", "queued", "cli"),
        ("Mine", "Do that.", "queued", "cli"),
    ]


def test_enqueue_keeps_every_wish(home: Home) -> None:
    home.repo("web")
    home.pilot("enqueue", "first", "-p", "web")
    at = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=2)

    id = home.pilot(
        "enqueue", "second", "-p", "web", "--task-id", "GH-46", "--title", "T", "--kind", "test", "--priority", 5,
        "--lane", 3, "--after", 1, "--key", "k", "--label", "a", "--label", "b", "--at", at.isoformat(),
        "--source", "github", "--payload", '{"n": [1]}', "--json",
    ).json  # fmt: skip

    assert id == {"id": 2, "status": "blocked", "duplicate": False}
    document = home.pilot("show", 2, "--json").json
    wishes = {
        "task_id": "GH-46", "title": "T", "kind": "test", "priority": 5, "lane": 3, "after": [1], "source": "github",
        "labels": ["a", "b"], "payload": {"n": [1]}, "available_at": at.strftime("%Y-%m-%dT%H:%M:%S.000Z"),
    }  # fmt: skip
    assert {name: document[name] for name in wishes} == wishes


def test_a_repeated_enqueue_is_no_error(home: Home) -> None:
    home.repo("web")
    home.pilot("enqueue", "x", "-p", "web", "--task-id", "GH-1")
    home.pilot("enqueue", "y", "-p", "web", "--key", "k")

    again = home.pilot("enqueue", "x", "-p", "web", "--task-id", "GH-1")
    keyed = home.pilot("enqueue", "z", "-p", "web", "--key", "k", "--json")

    assert again.out == "1\n"
    assert "GH-1 is execution 1 already: queued" in again.err
    assert keyed.json == {"id": 2, "status": "queued", "duplicate": True}


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["x", "--kind", "feature"], 2, "there are build, test"),
        (["x", "--priority", "-1"], 2, "-1 is not in the range"),
        (["x", "--after", "99"], 4, "99"),
        (["x", "--at", "soon"], 2, "--at 'soon'"),
        (["x", "--payload", "{"], 2, "--payload: not JSON"),
        (["x", "-p", "nope"], 4, "no project 'nope'"),
        ([" "], 2, "nothing in it"),
        ([], 2, "Missing argument 'PROMPT|PAYLOAD'"),
    ],
)
def test_enqueue_refuses_in_words(home: Home, arguments: list[str], code: int, words: str) -> None:
    home.repo("web")

    refused = home.pilot("enqueue", *arguments, *(() if "-p" in arguments else ("-p", "web")), code=None)

    assert words in refused.err
    assert refused.code == code or (code == 4 and refused.code == 2 and "--after" in arguments)
    assert home.rows("SELECT count(*) FROM executions") in ([], [(0,)])


def test_serve_says_when_its_port_is_taken(home: Home) -> None:
    home.repo("web")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        refused = home.pilot("serve", "--port", port, code=None)

    assert refused.code != 0
    assert str(port) in refused.err
    assert refused.err.startswith("error: ")


def test_doctor_on_a_good_machine(home: Home) -> None:
    home.repo("web")
    home.pilot("enqueue", "x", "-p", "web")

    said = home.pilot("doctor")
    document = home.pilot("doctor", "--json").json

    assert document["ok"] is True
    checks = {check["name"]: check for check in document["checks"]}
    assert {"python", "sqlite", "git", "config", "state_dir", "disk", "store", "port", "projects", "sandbox"} <= set(
        checks
    )
    assert checks["store"]["status"] == "ok"
    assert "sound" in checks["store"]["detail"]
    assert checks["sandbox"]["status"] == "warning"
    assert "executor.sandbox: none" in checks["sandbox"]["detail"]
    assert "✓ git: git version" in said.out
    assert all(check["remedy"] for check in document["checks"] if check["status"] == "failure")


def test_doctor_finds_what_is_wrong(home: Home) -> None:
    web = home.repo("web")
    home.settings["projects"] += [
        {"name": "gone", "path": str(home.root / "nowhere")},
        {"name": "plain", "path": str(home.root)},
    ]
    (web / "sub").mkdir()
    home.settings["projects"].append({"name": "again", "path": str(web / "sub")})
    home.state.mkdir(mode=0o700)
    home.state.chmod(0o755)
    (home.state / "pilot.db").write_bytes(b"garbage" * 2000)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        home.configure(
            server={"port": taken.getsockname()[1]},
            executor={"type": "command", "command": {"argv": ["no-such-program"]}},
        )
        document = home.pilot("doctor", "--json", code=1).json
        page = home.pilot("doctor", code=1).out

    status = {check["name"]: check["status"] for check in document["checks"]}
    assert document["ok"] is False
    assert status["project gone"] == status["project plain"] == status["project again"] == "failure"
    assert status["store"] == status["port"] == "failure"
    assert status["state_dir"] == "warning"
    assert status["projects"] == "ok"
    assert any(check["status"] == "failure" and "no-such-program" in check["detail"] for check in document["checks"])
    assert "✗ project gone: " in page
    assert "    → chmod 700 " in page
    assert (home.state / "pilot.db").read_bytes() == b"garbage" * 2000


def test_doctor_says_every_problem_of_the_configuration(home: Home) -> None:
    home.file.write_text("serverr: {}\ndispatcher: {max_running: 0}\n")

    document = home.pilot("doctor", "--json", code=1).json

    assert len([check for check in document["checks"] if check["name"] == "config"]) == 2


def test_doctor_knows_that_the_port_is_pilots_own(home: Home) -> None:
    home.repo("web")
    with home.serve() as daemon:
        home.configure(server={"port": int(daemon.url.rsplit(":", 1)[1])})
        checks = home.pilot("doctor", "--json").json["checks"]

    (port,) = (check for check in checks if check["name"] == "port")
    assert (port["status"], "`pilot serve` runs" in port["detail"]) == ("ok", True)


def test_a_project_is_known_by_any_path_into_it(home: Home) -> None:
    web = home.repo("web", {"docs/guide.md": "# Guide"})
    home.pilot("enqueue", "x", "-p", "web")
    link = home.root / "link"
    link.symlink_to(web)

    for named in ("web", str(web), str(link / "docs"), "."):
        assert home.pilot("list", "-p", named, cwd=web / "docs").out.startswith("1\tqueued")
    home.pilot("pause", ".", cwd=link)
    assert "paused" in home.pilot("why", 1).out


def test_backends_are_listed(home: Home) -> None:
    home.repo("web")

    found = {one["name"]: one for one in home.pilot("backend", "list", "--json").json["backends"]}

    assert {"command", "claude-code"} <= set(found)
    assert (found["command"]["used"], found["command"]["parked"]) == (True, False)
    assert found["claude-code"]["capabilities"]["resume"] is True
    assert "command" in home.pilot("backend", "list").out


def test_a_first_day(home: Home, tmp_path: Path) -> None:
    home.fresh = True
    """init, a look around, a task, its answer: as the README tells it, with the configuration that init wrote."""
    web = home.repo("web", {"Makefile": "test:\n\ttrue\n"}, project=False)
    del home.environment["PILOT_CONFIG"]
    home.environment["PILOT_HOME"] = str(home.state)
    home.pilot("init", cwd=web)
    text = (web / "pilot.yaml").read_text()
    argv = json.dumps(home.settings["executor"]["command"]["argv"])
    own = f"type: command\n  command:\n    argv: {argv}\n  sandbox_paths: {{write: [{home.control}]}}"
    (web / "pilot.yaml").write_text(text.replace("type: claude-code", own))

    assert "ok, 1 project" in home.pilot("config", "check", cwd=web).out
    home.pilot("run", prompt("T-1"), "--task-id", "T-1", cwd=web)
    page = home.pilot("show", 1, cwd=web).out

    assert "gate test: ok" in page
    assert "make test" in page
    assert home.git(web, "show", "pilot/T-1:T-1.txt") == "T-1"
