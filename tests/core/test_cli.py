"""The commands that read and act, on a real store: what they print, and with what code they end."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pilot.cli.codes import exit_code
from pilot.cli.main import main
from pilot.cli.show import pasted
from pilot.domain.agent import OutputKind
from pilot.domain.execution import Status
from pilot.domain.ports import NodeKind
from pilot.store import open_store, wall_clock
from pilot.store.history import History
from tests.store.bed import Bed, asked, broken, done, limited

EVIL = "\x1b]52;c;cHduZWQ=\x07evil\x1b[2J \u202etitle"


@dataclass
class Result:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()


Pilot = Callable[..., Result]


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty state directory, in an empty working directory."""
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("PILOT_HOME", str(state))
    return state


@pytest.fixture
def pilot(state: Path, capsys: pytest.CaptureFixture[str]) -> Pilot:
    """Runs a command line in this process."""

    def run(*arguments: str) -> Result:
        capsys.readouterr()
        code = main(arguments)
        out, err = capsys.readouterr()
        return Result(code, out, err)

    return run


def on(state: Path, work: Callable[[Bed], Coroutine[Any, Any, None]]) -> None:
    """Do something to the store, as another process would."""

    async def go() -> None:
        async with open_store(f"sqlite:///{state}/pilot.db") as store:
            await work(Bed(store, wall_clock))  # type: ignore[arg-type]

    asyncio.run(go())


@pytest.fixture
def stage(state: Path) -> Path:
    """web: 1 failed, 2 asks; api: 3 runs, 4 waits for 3, 5 is queued."""

    async def fill(bed: Bed) -> None:
        await bed.node()
        api, web = await bed.project("api"), await bed.project("web")
        await bed.put(web, title=EVIL, labels=("docs",), payload={"a": 1})
        failing = await bed.take(web)
        await bed.journal.write(
            failing,
            [
                (OutputKind.TEXT, b"I will look\n"),
                (OutputKind.TOOL, b"Bash: ls\n"),
                (OutputKind.RESULT, b"a\x1b[2Jb\n"),
                (OutputKind.STDOUT, "grü".encode()[:3]),
                (OutputKind.STDOUT, "grü".encode()[3:] + b"n"),
                (OutputKind.RAW, b'{"raw": 1}\n'),
                (OutputKind.STDERR, b"\xff\n"),
            ],
        )
        await bed.queue.finish(broken(failing))
        await bed.put(web, "GH-2", body="the whole\nstory")
        await bed.queue.finish(asked(await bed.take(web), options=("red", 'bl"ue'), default="red"))
        running = await bed.put(api)
        await bed.journal.note(await bed.take(api), phase="agent works")
        await bed.put(api, after=(running,))
        await bed.put(api)

    on(state, fill)
    return state


# Reading


def test_list_is_tab_separated_in_a_pipe_and_harmless(pilot: Pilot, stage: Path) -> None:
    result = pilot("list")

    assert result.code == 0
    assert [line.split("\t")[:4] for line in result.lines] == [
        ["5", "queued", "T-5", "api"],
        ["4", "blocked", "T-4", "api"],
        ["3", "running", "T-3", "api"],
        ["2", "needs_human", "GH-2", "web"],
        ["1", "failed", "T-1", "web"],
    ]
    assert result.lines[4].endswith("\tevil \ufffdtitle (agent: it broke)")
    assert result.lines[3].endswith("\tdo GH-2 (what colour?)")
    assert "\x1b" not in result.out + result.err
    assert result.err == ""


def test_list_as_one_document(pilot: Pilot, stage: Path) -> None:
    document = pilot("list", "--json").json

    assert list(document) == ["executions", "next_cursor"]
    assert [e["id"] for e in document["executions"]] == [5, 4, 3, 2, 1]
    assert document["executions"][1]["after"] == [3]
    assert document["executions"][4]["payload"] == {"a": 1}
    assert document["next_cursor"] is None


def test_list_goes_on_at_its_cursor(pilot: Pilot, stage: Path) -> None:
    seen: list[int] = []
    cursor: list[str] = []
    for _ in range(5):
        result = pilot("list", "--limit", "2", "--all", "--json", *cursor)
        seen += [e["id"] for e in result.json["executions"]]
        if result.json["next_cursor"] is None:
            break
        cursor = ["--cursor", result.json["next_cursor"]]

    assert seen == [5, 4, 3, 2, 1]
    assert "--cursor open.4" in pilot("list", "--limit", "2").err


@pytest.mark.parametrize(
    ("filters", "ids"),
    [
        (["--status", "queued"], ["5"]),
        (["--status", "queued,failed"], ["5", "1"]),
        (["--status", "queued", "--status", "failed"], ["5", "1"]),
        (["--project", "web"], ["2", "1"]),
        (["--project", "/src/web"], ["2", "1"]),
        (["--task-id", "GH-2"], ["2"]),
        (["--source", "github"], []),
    ],
)
def test_list_is_filtered(pilot: Pilot, stage: Path, filters: list[str], ids: list[str]) -> None:
    assert [line.split("\t")[0] for line in pilot("list", *filters).lines] == ids


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--status", "runing"], 2, "'runing' is no status; there are blocked, queued,"),
        (["--project", "nope"], 4, "no project 'nope'; it knows api, web"),
        (["--cursor", "x"], 2, "'x' is not a cursor"),
        (["--limit", "0"], 2, "0 is not in the range"),
        (["--frob"], 2, "No such option '--frob'"),
    ],
)
def test_list_refuses_in_words(pilot: Pilot, stage: Path, arguments: list[str], code: int, words: str) -> None:
    result = pilot("list", *arguments)

    assert (result.code, result.out) == (code, "")
    assert result.err.startswith("error: ")
    assert words in result.err


def test_show_is_a_page(pilot: Pilot, stage: Path) -> None:
    page = pilot("show", "1").out

    assert "1  T-1  evil \ufffdtitle" in page
    assert "reason    agent: it broke" in page
    assert "attempt 1: failed" in page
    assert "evidence  line 1" in page
    assert "  pilot retry 1\n" in page
    assert "\x1b" not in page


def test_show_says_how_to_answer(pilot: Pilot, stage: Path) -> None:
    page = pilot("show", "2").out

    assert "  | the whole\n  | story\n" in page
    assert "asked    what colour?" in page
    assert '  pilot answer 2 "red"\n' in page


@pytest.mark.parametrize("words", ["red", "$(touch pwned)", "`touch pwned`", 'it\'s "$HOME" \\ !!', "a; touch pwned"])
def test_an_answer_that_was_offered_can_be_pasted(words: str, tmp_path: Path) -> None:
    done = subprocess.run(
        ["/bin/sh", "-c", f"printf %s {pasted(words)}"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout == words
    assert list(tmp_path.iterdir()) == []


def test_show_as_one_document(pilot: Pilot, stage: Path) -> None:
    document = pilot("show", "1", "--json").json

    assert document["title"] == EVIL.replace("\x00", "")
    assert document["status"] == "failed"
    assert document["usage"] == {"input_tokens": None, "output_tokens": None, "cost_usd": None}
    assert document["finished_at"].endswith("Z")


def test_json_is_harmless_on_a_terminal(pilot: Pilot, stage: Path) -> None:
    out = pilot("show", "1", "--json").out

    assert out.isascii()
    assert "\x1b" not in out


def test_why(pilot: Pilot, stage: Path) -> None:
    result = pilot("why", "5")

    assert "position 1" in result.out
    assert "slot: 3 (T-3) runs in api on n1" in result.out
    document = pilot("why", "5", "--json").json
    assert list(document) == ["id", "status", "position", "holds", "next"]
    assert document["holds"][0]["execution"] == 3


@pytest.mark.parametrize("command", ["show", "logs", "retry", "cancel"])
@pytest.mark.parametrize(
    ("id", "code", "words"),
    [
        ("99", 4, "no execution 99"),
        ("x", 2, "'x' is not a valid integer"),
        ("0", 2, "0 is not in the range"),
        (str(2**63), 2, "is not in the range"),
        ("1\x1b[31m", 2, "is not a valid integer"),
    ],
)
def test_bad_ids(pilot: Pilot, stage: Path, command: str, id: str, code: int, words: str) -> None:
    result = pilot(command, id)

    assert result.code == code
    assert words in result.err
    assert "\x1b" not in result.err
    assert "Traceback" not in result.err


def test_status(pilot: Pilot, stage: Path) -> None:
    document = pilot("status", "--json").json
    page = pilot("status").out

    assert {"counts", "running", "projects", "parked", "sources", "nodes"} <= document.keys()
    assert document["counts"]["running"] == 1
    assert set(document["counts"]) == set(Status)
    assert [(r["id"], r["phase"]) for r in document["running"]] == [(3, "agent works")]
    assert "running 1" in page
    assert "agent works" in page


def test_events(pilot: Pilot, stage: Path) -> None:
    document = pilot("events", "--json", "--execution", "1").json
    kinds = [event["type"] for event in document["events"]]

    assert kinds == ["execution.queued", "execution.started", "execution.failed"]
    assert len(pilot("events", "--limit", "2").lines) == 2
    assert len(pilot("events", "--type", "execution.asked").lines) == 1
    assert "did you mean execution.failed?" in pilot("events", "--type", "execution.faild").err


# Logs


def test_logs_are_put_together_again_and_harmless(pilot: Pilot, stage: Path) -> None:
    result = pilot("logs", "1")

    assert result.code == 0
    assert result.lines == ["── attempt 1 ──", "I will look", "▸ Bash: ls", "  ab", "grün", "\ufffd"]


def test_logs_raw_are_the_bytes(stage: Path) -> None:
    raw = subprocess.run(
        [sys.executable, "-m", "pilot.cli.main", "logs", "1", "--raw"], capture_output=True, check=True
    )

    assert raw.stdout == "grün".encode() + b'{"raw": 1}\n\xff\n'


def test_logs_as_documents(pilot: Pilot, stage: Path) -> None:
    pieces = pilot("logs", "1", "--json").json["output"]

    assert [(piece["attempt"], piece["seq"], piece["kind"]) for piece in pieces[:2]] == [
        (1, 1, "text"),
        (1, 2, "tool"),
    ]
    assert pieces[-1]["base64"] == "/wo="
    assert pilot("logs", "1", "--attempt", "2", "--json").json == {"output": []}


def test_logs_follow_over_attempts_and_processes_until_the_end(stage: Path) -> None:
    follower = subprocess.Popen(
        [sys.executable, "-m", "pilot.cli.main", "logs", "3", "-f"], stdout=subprocess.PIPE, text=True, bufsize=1
    )
    assert follower.stdout is not None
    with follower:
        seen: list[str] = []
        reader = threading.Thread(target=lambda: seen.extend(follower.stdout or ()))
        reader.start()

        async def first(bed: Bed) -> None:
            execution = await bed.queue.get(3)
            await bed.journal.write(execution, [(OutputKind.TEXT, b"one\n")])
            await bed.queue.recover(["n1"], "its process died")

        async def second(bed: Bed) -> None:
            project = await bed.project("api")
            await bed.node("n2")
            execution = await bed.take(project, "n2")
            assert execution.id == 3
            await bed.journal.write(execution, [(OutputKind.TEXT, b"two\n")])
            await bed.queue.finish(done(execution))

        on(stage, first)  # each with a connection of its own that is then closed, as a daemon that restarts
        on(stage, second)
        assert follower.wait(30) == 0
        reader.join(30)

    assert [line.rstrip() for line in seen] == ["── attempt 1 ──", "one", "── attempt 2 ──", "two"]


# Acting


def test_cancel_says_what_became_of_each(pilot: Pilot, stage: Path) -> None:
    result = pilot("cancel", "5", "3", "1", "--reason", "no more")

    assert result.code == 0
    assert result.lines[0] == "5 is cancelled"
    assert result.lines[1].startswith("3 is asked to end")
    assert result.lines[2] == "1 has ended already: failed"
    assert pilot("show", "5", "--json").json["reason"] == "no more"
    assert "being cancelled" in pilot("why", "3").out


def test_cancel_goes_on_behind_an_unknown_id(pilot: Pilot, stage: Path) -> None:
    result = pilot("cancel", "99", "5", "--json")

    assert result.code == 4
    assert result.json == {"executions": [{"id": 99, "status": None}, {"id": 5, "status": "cancelled"}]}
    assert "no execution 99" in result.err


def test_answer_sends_it_back(pilot: Pilot, stage: Path) -> None:
    assert pilot("answer", "2", "blue").code == 0

    assert pilot("show", "2", "--json").json["status"] == "queued"
    assert "answer   blue (" in pilot("show", "2").out
    again = pilot("answer", "2", "red")
    assert (again.code, "it asks nothing" in again.err) == (2, True)
    assert pilot("answer", "2", "  ").code == 2


def test_retry_prints_the_new_id(pilot: Pilot, stage: Path) -> None:
    result = pilot("retry", "1")

    assert (result.code, result.out) == (0, "6\n")
    assert pilot("show", "6", "--json").json["parent"] == 1
    assert pilot("retry", "1").out == "6\n"  # the open one stands for the task
    assert "can be retried" in pilot("retry", "3").err


def test_pause_and_resume_by_owner(pilot: Pilot, stage: Path) -> None:
    assert pilot("pause", "api", "--reason", "deploy", "--owner", "ada").code == 0
    assert pilot("pause", "--owner", "bob").code == 0

    why = pilot("why", "5").out
    assert "paused: api is paused by ada" in why
    assert "deploy" in why
    refused = pilot("resume", "api", "--owner", "eve")
    assert (refused.code, "paused by ada, not by eve" in refused.err) == (2, True)
    assert pilot("resume", "api", "--owner", "ada", "--json").json == {
        "project": "api",
        "lifted": ["ada"],
        "still_paused_by": [],
    }
    assert pilot("resume", "--everybody").out == "everything is no longer paused\n"
    assert "paused" not in pilot("why", "5").out
    assert pilot("pause", "nope").code == 4


def test_a_parked_backend_is_shown_and_unparked(pilot: Pilot, stage: Path) -> None:
    async def park(bed: Bed) -> None:
        execution = await bed.queue.get(3)
        await bed.queue.finish(limited(execution, None))

    on(stage, park)

    assert "parked: agent until somebody unparks it: come back later" in pilot("status").out
    assert "agent takes no work" in pilot("why", "5").out
    assert "parked: agent" in pilot("backend", "unpark", "other").err
    assert pilot("backend", "unpark", "agent", "--account", "other").code == 4
    assert pilot("backend", "unpark", "agent").code == 0
    (parked,) = pilot("status", "--json").json["parked"]
    assert (parked["backend"], parked["state"], parked["until"], parked["tries"]) == ("agent", "half_open", None, 1)
    assert "parked: agent open for one task to try it: come back later" in pilot("status").out
    assert "takes no work" not in pilot("why", "5").out


def test_each_park_has_its_line_and_is_opened_by_its_account(pilot: Pilot, stage: Path) -> None:
    async def park(bed: Bed) -> None:
        for name, account in (("n1", "first"), ("n2", "second")):
            await bed.sql(
                "INSERT INTO parks (backend, account, failure, reason, until, since, changed_at, tries) VALUES "
                f"('agent', '{account}', 'quota', 'spent by {name}', NULL, 0, 0, 3)"
            )

    on(stage, park)

    assert pilot("backend", "unpark", "agent", "--account", "second").code == 0
    listed = pilot("backend", "list", "--json").json["backends"]
    parks = {one["account"]: one for one in listed if one["name"] == "agent"}
    assert {account: (one["state"], one["tries"], one["reason"]) for account, one in parks.items()} == {
        None: (None, None, None),  # what this configuration would use is not parked
        "first": ("for_a_person", 3, "spent by n1"),
        "second": ("half_open", 3, "spent by n2"),
    }
    table = pilot("backend", "list").out
    assert "until somebody unparks it: spent by n1" in table
    assert "open for one task to try it: spent by n2" in table
    assert "parked agent: until somebody unparks it: spent by n1" in pilot("doctor").out
    assert "agent (first)" in pilot("backend", "unpark", "agent", "--account", "third").err


# The store and the configuration


def test_without_a_store_it_says_what_makes_one(pilot: Pilot) -> None:
    for command in (["list"], ["cancel", "1"], ["db", "check"], ["db", "migrate"]):
        result = pilot(*command)
        assert result.code == 1
        assert "no database at" in result.err
        assert "`pilot serve`" in result.err


def test_another_programs_or_a_newer_or_a_damaged_store_is_refused(pilot: Pilot, state: Path) -> None:
    file = state / "pilot.db"
    with sqlite3.connect(file) as other:
        other.execute("CREATE TABLE theirs (x)")
    other.close()
    before = file.read_bytes()
    theirs = pilot("list")
    assert (theirs.code, "made by another program" in theirs.err) == (2, True)
    assert pilot("cancel", "1").code == 2
    assert file.read_bytes() == before

    file.write_bytes(b"garbage " * 4096)
    damaged = pilot("list")
    assert (damaged.code, "Restore a backup" in damaged.err) == (2, True)
    assert file.read_bytes() == b"garbage " * 4096


def test_db_commands(pilot: Pilot, stage: Path, tmp_path: Path) -> None:
    assert "is sound" in pilot("db", "check").out
    assert pilot("db", "check", "--json").json["ok"] is True
    assert pilot("db", "migrate", "--json").json["applied"] == []
    copy = tmp_path / "copy.db"
    assert pilot("db", "backup", str(copy)).code == 0
    assert "is there already" in pilot("db", "backup", str(copy)).err
    assert pilot("db", "prune").out.startswith("removed 0 executions")
    assert pilot("db", "prune", "--older-than", "0s").code == 2
    with sqlite3.connect(stage / "pilot.db") as connection:
        connection.execute("UPDATE projects SET running = 7 WHERE name = 'web'")
    connection.close()
    broken_store = pilot("db", "check")
    assert broken_store.code == 1
    assert "projects count what they run: web counts 7 running, and has 0" in broken_store.out


def test_every_problem_of_the_configuration_is_said(pilot: Pilot, state: Path) -> None:
    Path("pilot.yaml").write_text("serverr: {}\nexecutor: {timeout: 5}\n")

    result = pilot("config", "check")

    assert result.code == 2
    assert result.err.startswith("error: pilot.yaml:1:1: serverr:")
    assert "pilot.yaml:2:" in result.err
    document = pilot("config", "check", "--json").json
    assert (document["error"]["kind"], document["error"]["exit_code"]) == ("ConfigError", 2)


def test_config_commands(pilot: Pilot, state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert pilot("config", "path").code == 4
    Path("pilot.yaml").write_text('sources: {github: {token: "${TOKEN}"}}\n')
    monkeypatch.setenv("TOKEN", "ghp_secret")

    assert pilot("config", "path").out == f"{Path.cwd()}/pilot.yaml\n"
    assert pilot("config", "check").out.endswith("ok, 0 projects\n")
    shown = pilot("config", "show")
    assert "ghp_secret" not in shown.out + pilot("config", "show", "--json").out
    assert "token: '***'" in shown.out
    assert pilot("config", "schema").json["title"] == "pilot.yaml"


def test_config_may_stand_before_or_behind_the_command(pilot: Pilot, stage: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    other.write_text(f"state_dir: {tmp_path / 'elsewhere'}\n")

    assert pilot("list").code == 0
    for arguments in (
        ["--config", str(other), "list"],
        ["list", "--config", str(other)],
        ["list", f"--config={other}"],
    ):
        result = pilot(*arguments)
        assert (result.code, "elsewhere/pilot.db" in result.err) == (1, True)
    assert "named by --config" in pilot("list", "--config", "nowhere.yaml").err


# The command line itself


def test_errors_are_documents_too(pilot: Pilot, stage: Path) -> None:
    result = pilot("show", "99", "--json")

    assert result.code == 4
    assert result.json == {
        "error": {
            "kind": "NotFound",
            "message": "no execution 99; `pilot list --all` shows what there is",
            "exit_code": 4,
            "hint": None,
        }
    }
    assert pilot("show", "x", "--json").json["error"]["kind"] == "UsageError"


def test_a_typo_gets_a_suggestion(pilot: Pilot) -> None:
    result = pilot("lst")

    assert result.code == 2
    assert "no command 'lst'; did you mean 'list'?" in result.err


def test_a_bug_is_one_line_and_a_hint(pilot: Pilot, stage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("oh \x1b[31mno")

    monkeypatch.setattr(History, "executions", fail)

    result = pilot("list")
    assert result.code == 1
    assert result.err.splitlines() == [
        "error: ZeroDivisionError: oh no",
        "       this is a bug; the same command with --debug shows where",
    ]
    assert "Traceback" in pilot("list", "--debug").err


COMMANDS = {
    "init", "doctor", "config", "serve", "run", "enqueue", "list", "show", "why", "logs", "events", "status", "cancel",
    "retry", "answer", "sync", "pause", "resume", "backend", "db", "version", "help",
}  # fmt: skip


@pytest.mark.parametrize(
    "arguments", ["list", "list --json", "show 1 --json", "logs 1 --raw", "no-such-command --json"]
)
def test_a_full_disk_behind_stdout_is_said_in_one_line(stage: Path, arguments: str) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "pilot.cli.main", *arguments.split()],
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
        )

    assert done.returncode
    words = done.stderr.decode()
    assert "Traceback" not in words
    assert "this is a bug" not in words
    assert "error: " in words


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_stream_that_is_closed_is_nobody(stage: Path, closed: str) -> None:
    done = subprocess.run(
        ["/bin/sh", "-c", f'exec "$0" -m pilot.cli.main list {closed}', sys.executable],
        capture_output=True,
        check=False,
    )

    assert (done.returncode, done.stderr) == (0, b"")


def test_an_answer_from_stdin_is_text_of_some_length(stage: Path) -> None:
    def answer(words: bytes) -> tuple[int, bytes]:
        command = [sys.executable, "-m", "pilot.cli.main", "answer", "2", "-"]
        done = subprocess.run(
            command, input=words, capture_output=True, check=False, env=os.environ | {"PYTHONUTF8": "1"}
        )
        return done.returncode, done.stderr

    code, words = answer(b"\xff\xfe")
    assert (code, b"not UTF-8" in words) == (2, True)
    code, words = answer(b"x" * (2 << 20))
    assert (code, b"more than 1 MiB" in words) == (2, True)
    assert answer("grün\n".encode())[0] == 0


def test_every_command_has_help(pilot: Pilot) -> None:
    top = pilot("--help")

    listed = {line.split()[0] for line in top.out.split("Commands:")[1].splitlines() if line.startswith("  ")}
    assert listed >= COMMANDS
    assert "..." not in top.out.split("Commands:")[1]
    for command in COMMANDS:
        result = pilot(command, "--help")
        assert result.code == 0
        assert result.out.startswith("Usage: pilot ")
        assert pilot("help", command).out.split() == result.out.split()
    assert pilot().out.split() == top.out.split()
    assert pilot("help", "db", "prune").code == 0
    assert pilot("help", "nope").code == 4


def test_exit_codes_are_listed(pilot: Pilot) -> None:
    codes = [int(line.split()[0]) for line in pilot("help", "exit-codes").lines]

    assert codes == [0, 1, 2, 3, 4, 64, 75, 124, 130]
    assert "exit-codes" in pilot("--help").out


@pytest.mark.parametrize(
    ("status", "failure", "code"),
    [
        (Status.COMPLETED, None, 0),
        (Status.FAILED, "test", 1),
        (Status.FAILED, "timeout", 124),
        (Status.FAILED, "rate_limit", 75),
        (Status.NEEDS_HUMAN, None, 3),
        (Status.NEEDS_HUMAN, "budget", 64),
        (Status.FAILED, "budget", 64),
        (Status.QUEUED, "quota", 75),
        (Status.CANCELLED, None, 130),
    ],
)
def test_an_end_has_its_code(stage: Path, status: Status, failure: str | None, code: int) -> None:
    from dataclasses import replace

    async def go() -> None:
        async with open_store(f"sqlite:///{stage}/pilot.db") as store:
            execution = await store.queue.get(1)
        assert exit_code(replace(execution, status=status, failure_class=failure)) == code

    asyncio.run(go())


def test_version(pilot: Pilot) -> None:
    from pilot import __version__

    assert pilot("version").out == f"pilot {__version__}\n" == pilot("--version").out
    assert pilot("version", "--json").json["version"] == __version__


HEAVY = {"fastapi", "starlette", "uvicorn", "pydantic", "httpx", "github", "rich", "typer", "asyncio", "aiosqlite"}


@pytest.mark.parametrize("command", ["list", "show 1", "why 5", "status", "logs 1", "--help", "list --json"])
def test_quick_commands_load_nothing_heavy(stage: Path, command: str) -> None:
    code = (
        "import sys; from pilot.cli.main import main; code = main(sys.argv[1:]); "
        "print(*{name.split('.')[0] for name in sys.modules}, file=sys.stderr); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code, *command.split()], capture_output=True, text=True, check=True)

    assert HEAVY & set(done.stderr.split()) == set()


def test_a_reader_that_leaves_is_no_error(stage: Path) -> None:
    async def many(bed: Bed) -> None:
        project = await bed.project("web")
        for _ in range(300):
            await bed.put(project, title="x" * 300)

    on(stage, many)
    with subprocess.Popen(
        [sys.executable, "-m", "pilot.cli.main", "list", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        assert process.wait(30) == 0
        assert process.stderr.read() == b""


@pytest.mark.parametrize("command", [["events", "-f"], ["status", "--watch"], ["logs", "3", "-f"]])
def test_ctrl_c_ends_what_follows(stage: Path, command: list[str]) -> None:
    import signal

    async def said(bed: Bed) -> None:
        await bed.journal.write(await bed.queue.get(3), [(OutputKind.TEXT, b"hello\n")])

    on(stage, said)
    with subprocess.Popen(
        [sys.executable, "-m", "pilot.cli.main", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() != ""
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        assert process.stderr.read().strip() == ""


def test_events_follow_as_json_lines(stage: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "pilot.cli.main", "events", "-f", "--json", "--type", "project.paused"],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None

        async def pause(bed: Bed) -> None:
            await bed.queue.pause(0, "ada", "deploy")

        async def other(bed: Bed) -> None:
            await bed.queue.cancel(5, "ada")

        on(stage, pause)
        assert json.loads(process.stdout.readline())["data"]["owner"] == "ada"
        on(stage, other)
        on(stage, pause)
        event = json.loads(process.stdout.readline())
        process.terminate()

    assert (event["type"], event["data"]["owner"]) == ("project.paused", "ada")


def test_the_entry_point_is_installed(state: Path) -> None:
    program = Path(sys.executable).with_name("pilot")
    done = subprocess.run([program, "list"], capture_output=True, text=True, check=False, env={**os.environ})

    assert done.returncode == 1
    assert done.stderr.startswith("error: no database at")


def test_a_direct_runs_node_is_not_one_that_serves(pilot: Pilot, state: Path) -> None:
    async def fill(bed: Bed) -> None:
        await bed.node("run-1", kind=NodeKind.RUN)
        await bed.put(await bed.project("api"))

    on(state, fill)

    assert "node: no node is up" in pilot("why", "1").out
