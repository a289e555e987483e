"""`pilot queue`, `pilot contract` and `--server`, in this process: on the store here, and over HTTP."""

from __future__ import annotations

import io
import json
import re
import shlex
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pilot.cli.contract import WORKER
from pilot.cli.fences import Fences
from pilot.cli.main import main
from pilot.domain.access import Scope
from pilot.domain.errors import UsageError
from tests.adapters.api_rig import Rig, serving_beside


@dataclass(frozen=True, slots=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Pilot = Callable[..., Result]


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    monkeypatch.setenv("PILOT_CONFIG", str(tmp_path / "pilot.yaml"))
    monkeypatch.setenv("PILOT_WORKER", "me")
    monkeypatch.chdir(tmp_path)
    with serving_beside(tmp_path) as rig:
        monkeypatch.setenv("PILOT_TOKEN", rig.tokens[Scope.ADMIN])
        yield rig


@pytest.fixture
def pilot(rig: Rig, capsys: pytest.CaptureFixture[str]) -> Pilot:
    """A command of this machine's store."""

    def run(*arguments: object) -> Result:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return Result(code, out, err)

    return run


@pytest.fixture(params=["here", "there"])
def queue(request: pytest.FixtureRequest, rig: Rig, pilot: Pilot) -> Pilot:
    """`pilot queue`, on the store here and over HTTP."""
    server = [] if request.param == "here" else ["--server", rig.url]
    return lambda *arguments: pilot("queue", *arguments, *server)


def put(pilot: Pilot, project: str = "api", task_id: str = "T-1", *more: object) -> int:
    return int(pilot("enqueue", "-p", project, "--task-id", task_id, "do it\nwith care", *more).out)


def test_the_whole_of_a_task_by_hand(pilot: Pilot, queue: Pilot, tmp_path: Path) -> None:
    id = put(pilot)
    (tmp_path / "change.diff").write_bytes(b"--- a\n+++ b\n\xff")

    shown = queue("claim")
    assert shown.code == 0
    assert f"{id}  T-1: do it" in shown.out
    assert "  | with care" in shown.out
    assert queue("heartbeat", id, "--phase", "tests").code == 0
    assert pilot("status", "--json").json["running"][0]["phase"] == "tests"
    assert queue("output", id, "it goes well").code == 0
    done = queue("complete", id, "--summary", "did it", "--branch", "pilot/T-1", "--artifact", "change.diff")
    assert (done.code, done.out) == (0, f"{id} is completed\n")

    row = pilot("show", id, "--json").json
    assert (row["status"], row["outcome"], row["branch"]) == ("completed", "done", "pilot/T-1")
    assert [entry["name"] for entry in row["artifacts"]] == ["change.diff"]
    assert "it goes well" in pilot("logs", id).out
    told = pilot("show", id).out
    assert "did it" in told
    assert f"change.diff (13 bytes, sha256 {row['artifacts'][0]['sha256']})" in told


def test_the_next_one_comes_with_the_last_word(pilot: Pilot, queue: Pilot) -> None:
    first, second, third = put(pilot), put(pilot, "api", "T-2"), put(pilot, "api", "T-3")
    assert queue("claim").code == 0

    shown = queue("complete", first, "--next")
    assert shown.code == 0
    assert shown.out.startswith(f"{first} is completed\n")
    assert f"{second}  T-2: do it" in shown.out
    told = queue("fail", second, "no", "--class", "refusal", "--next", "--json").json
    assert [entry["id"] for entry in told["next"]] == [third]
    last = queue("complete", third, "--next")
    assert last.code == 0
    assert "nothing to claim now" in last.err


def test_nothing_to_claim_is_try_later(queue: Pilot) -> None:
    result = queue("claim", "--json")
    assert (result.code, result.json) == (75, {"executions": []})


def test_only_what_is_wanted_is_claimed(pilot: Pilot, queue: Pilot) -> None:
    put(pilot, "api", "A-1", "--lane", 1)
    web = put(pilot, "web", "W-1", "--lane", 2, "--kind", "test")

    assert queue("claim", "--lane", 3).code == 75
    assert queue("claim", "--kind", "deploy").code == 75
    claimed = queue("claim", "--max", 5, "--lane", 2, "--kind", "test", "-p", "web", "--json").json["executions"]

    assert [(entry["id"], entry["node"], entry["body"]) for entry in claimed] == [
        (web, "worker:me", "do it\nwith care")
    ]


def test_the_fence_is_remembered_and_may_be_given(pilot: Pilot, queue: Pilot, rig: Rig) -> None:
    id = put(pilot)
    fence = queue("claim", "--json").json["executions"][0]["fence"]
    assert stat.S_IMODE((rig.state / "claims.json").stat().st_mode) == 0o600

    assert queue("heartbeat", id, "--fence", fence).code == 0
    late = queue("complete", id, "--fence", fence + 1)
    assert late.code == 1, late
    other = queue("release", id, "--worker", "you")
    assert other.code == 2
    assert "does not know that you has claimed" in other.err
    assert queue("release", id, "--reason", "lunch").out == f"{id} is queued: lunch\n"
    again = queue("release", id, "--reason", "lunch")
    assert again.code == 0
    assert "it had been said before; nothing changed" in again.err
    assert queue("complete", id).code == 1, "another last word counts no more"


def test_a_failure_and_a_question(pilot: Pilot, queue: Pilot) -> None:
    id = put(pilot)
    queue("claim")
    failed = queue("fail", id, "--class", "test", "2 tests are red", "--excerpt", "E assert 1 == 2")
    assert failed.out.startswith(f"{id} is queued")
    assert pilot("show", id, "--json").json["failure_class"] == "test"

    queue("claim")
    asked = queue("complete", id, "--outcome", "question", "--question", "A or B?", "--option", "A", "--option", "B")
    assert asked.out == f"{id} is needs_human: A or B?\n"
    pilot("answer", id, "B")
    assert "  | B" in re.sub(r"\| .*B", "| B", queue("claim").out)


def test_a_wish_that_it_ends_is_heard(pilot: Pilot, queue: Pilot) -> None:
    id = put(pilot)
    queue("claim")
    pilot("cancel", id)
    beaten = queue("heartbeat", id, "-f")
    assert beaten.code == 130
    assert "pilot queue release" in beaten.out
    assert queue("release", id).out.startswith(f"{id} is cancelled")


def test_the_heartbeat_beside_the_work_ends_with_it(pilot: Pilot, queue: Pilot) -> None:
    """A result is no loss, to which a worker would have to stop at once."""
    id = put(pilot)
    queue("claim")
    queue("complete", id)
    ended = queue("heartbeat", id, "-f")
    assert (ended.code, ended.out) == (0, f"{id} is completed\n")
    assert queue("heartbeat", id).code == 1

    lost = put(pilot, "web", "W-1")
    queue("claim")
    queue("release", lost)
    assert queue("heartbeat", lost, "-f").code == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["complete", "1", "--outcome", "question"], "needs --question"),
        (["complete", "1", "--question", "x", "--outcome", "done"], "needs --question"),
        (["complete", "1", "--artifact", "nowhere.diff"], "No such file"),
        (["fail", "1", "--class", "bad-luck", "x"], "there are lint, test"),
        (["fail", "1", " "], "DETAIL is empty"),
        (["claim", "--worker", "x" * 81], "1 to 80 printable"),
        (["claim", "--kind", "fun"], "there are build"),
        (["heartbeat", "1"], "give --fence"),
        (["heartbeat", "0"], "range"),
    ],
)
def test_what_makes_no_sense_is_one_error(pilot: Pilot, arguments: list[str], words: str) -> None:
    result = pilot("queue", *arguments)
    assert result.code == 2
    assert words in result.err


def test_a_result_of_two_writers_is_refused_and_the_claim_stands(pilot: Pilot, queue: Pilot, tmp_path: Path) -> None:
    id = put(pilot)
    queue("claim")
    for name in ("a.diff", "b.txt"):
        (tmp_path / name).write_text("x")
    refused = queue("complete", id, "--artifact", "a.diff", "--artifact", "b.txt")
    assert refused.code == 2
    assert "either one .diff or whole files" in refused.err
    assert queue("complete", id, "--artifact", "a.diff").code == 0


def test_the_fences_file_loses_nothing_of_others(tmp_path: Path) -> None:
    one, two = Fences(tmp_path, "there"), Fences(tmp_path, "here")
    one.put("w", 1, 10)
    two.put("w", 1, 20)
    assert (one.get("w", 1), two.get("w", 1)) == (10, 20)
    (tmp_path / "claims.json").write_text("nonsense")
    with pytest.raises(UsageError, match="give --fence"):
        two.get("w", 1)


def test_what_the_contract_says_can_be_done(pilot: Pilot, queue: Pilot, tmp_path: Path, monkeypatch: Any) -> None:
    """Every command of the text, in the text's own words."""
    (tmp_path / "change.diff").write_text("x")
    told = [line.strip() for line in WORKER.splitlines() if re.match(r"\s+(pilot queue|echo )", line)]
    assert pilot("contract", "worker").out == WORKER
    assert len(told) == 10
    for number, line in enumerate(told):
        id = put(pilot, "api", f"T-{number}")
        command = line.replace("ID", str(id)).replace("BRANCH", f"pilot/T-{number}").replace("--wait 20", "--wait 0")
        words, _, piped = command.partition(" | ")
        argv = shlex.split(piped or words)
        if "claim" not in argv:
            assert queue("claim").code == 0
        if "--follow" in argv:
            pilot("cancel", id)  # else it would go on for as long as the task does
        if piped:
            monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"made the parser faster\n")))
        done = queue(*argv[2:])
        assert done.code in ((130,) if "--follow" in argv else (0,)), (line, done)
        if pilot("show", id, "--json").json["status"] == "running":
            queue("release", id)
        pilot("cancel", id)


def test_the_contract_of_executors_is_what_pilot_reads(pilot: Pilot) -> None:
    from pilot.runner.prompt import find_question

    text = pilot("contract", "executor", "--json").json["text"]
    block = text[text.index("```pilot-question") :].partition("\n\n")[0]
    found = find_question(block)
    assert found is not None
    assert found.options == ("JSON", "TOML")


# --server


def test_reading_commands_say_the_same_from_afar(pilot: Pilot, rig: Rig) -> None:
    first = put(pilot, "api", "T-1", "--label", "docs")
    put(pilot, "api", "T-2", "--after", first)
    pilot("queue", "claim")
    pilot("queue", "output", first, "hello")
    pilot("queue", "fail", first, "--class", "agent", "it broke")
    commands: list[list[object]] = [
        ["list"], ["list", "--json"], ["list", "--status", "blocked", "-p", "api"], ["show", first],
        ["show", first, "--json"], ["why", first], ["why", "T-2", "--json"], ["logs", first], ["logs", first, "--json"],
        ["events", "--execution", first], ["events", "--json", "--type", "execution.queued"], ["status"],
    ]  # fmt: skip

    for command in commands:
        here, there = pilot(*command), pilot(*command, "--server", rig.url)
        assert _still(there.out) == _still(here.out), command
        assert (there.code, there.err) == (here.code, here.err)


def _still(text: str) -> str:
    """Without what changes from one second to the next."""
    return re.sub(r"\b\d+(\.\d+)?[smh] ago|\bin \d+[smh]|took [\d.]+s|since \S+|\"now\": \S+", "-", text)


def test_acting_commands_act_there(pilot: Pilot, rig: Rig) -> None:
    there = ("--server", rig.url)
    new = pilot("enqueue", "-p", "api", "--task-id", "T-1", "do it", *there)
    assert new.code == 0
    id = int(new.out)
    assert pilot("enqueue", "-p", "api", "--task-id", "T-1", "do it", "--json", *there).json["duplicate"]
    assert "which project" in pilot("enqueue", "do it", *there).err
    assert pilot("pause", "api", *there).out.startswith("api is paused")
    assert pilot("queue", "claim", *there).code == 75
    assert pilot("resume", "api", "--everybody", *there).out == "api is no longer paused\n"
    assert pilot("cancel", id, 999, *there).code == 4
    assert pilot("show", id, "--json").json["status"] == "cancelled"
    again = int(pilot("retry", id, *there).out)
    pilot("queue", "claim", *there)
    pilot("queue", "complete", again, "--outcome", "question", "--question", "A?", *there)
    assert "queued again" in pilot("answer", again, "yes", *there).out
    assert pilot("logs", 999, *there).code == 4


def test_what_is_an_affair_of_one_machine_says_so(pilot: Pilot, rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = pilot("db", "check", "--server", rig.url)
    assert refused.code == 2
    assert "works on this machine only" in refused.err
    monkeypatch.setenv("PILOT_SERVER", rig.url)
    assert pilot("db", "check").code == 0
    monkeypatch.setenv("PILOT_SERVER", "http://127.0.0.1:1")
    away = pilot("list")
    assert away.code == 75
    assert "can't be reached" in away.err


def test_this_machines_token_goes_to_no_other(pilot: Pilot, rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PILOT_TOKEN")
    (rig.state / "token").write_text(rig.tokens[Scope.ADMIN])
    (rig.state / "token").chmod(0o600)
    assert pilot("list", "--server", rig.url).code == 0
    refused = pilot("list", "--server", "http://pilot.example:7337")
    assert refused.code == 2
    assert "no token" in refused.err
    for address in (rig.url.removeprefix("http://"), "ftp://pilot.example"):
        assert "begins with http:// or https://" in pilot("list", "--server", address).err
    file = rig.state / "other"
    file.write_text("pilot_wrong_token\n")
    wrong = pilot("list", "--server", rig.url, "--token-file", file)
    assert wrong.code == 2
    assert "does not know this token" in wrong.err
