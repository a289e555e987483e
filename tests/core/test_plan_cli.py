"""`pilot plan …` and payloads of `pilot enqueue` in this process, on a real store: what is said, and with what code."""

from __future__ import annotations

import asyncio
import io
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from pilot.app.plan_run import Ended, News, PlanRequest, run_plan
from pilot.cli.main import main
from pilot.config.load import load
from pilot.domain.outcome import Ending, Outcome
from pilot.domain.plan import parse_plan
from pilot.domain.work import Wanted
from pilot.store import open_store
from tests.core.worksite import repository

PLAN = """\
# Plan: My Feature
policy: no_refactor=true
- [ ] id=ctx lane=1 payload=@cmd:make ctx
- [ ] id=docs lane=2 deps=ctx payload=@doc:LLM_TASK write the docs
- [ ] id=note lane=2 deps=ctx payload=@gh:acme/api#3
- [ ] id=test lane=3 deps=docs,note payload=@cmd:make test
"""


@dataclass
class Result:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Pilot = Callable[..., Result]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project `api`, and a folder to stand in."""
    repository(tmp_path / "api", {"Makefile": "ctx:\n\techo ctx > ctx.txt\ntest:\n\ttest -f ctx.txt\n"})
    (tmp_path / "pilot.yaml").write_text(
        yaml.safe_dump(
            {
                "state_dir": str(tmp_path / "state"),
                "executor": {
                    "type": "command",
                    "sandbox": "none",
                    "command": {"argv": [sys.executable, "-c", "open('agent.txt', 'w').write('x')"]},
                    "profiles": {"away": {"type": "external"}},
                    "routes": [{"match": {"kind": "deploy"}, "use": "away"}],
                },
                "projects": [
                    {
                        "name": "api",
                        "path": str(tmp_path / "api"),
                        "max_running": 2,
                        "allow_commands": ["make *", "nosuchprogram"],
                    }
                ],
            }
        )
    )
    monkeypatch.setenv("PILOT_CONFIG", str(tmp_path / "pilot.yaml"))
    monkeypatch.setattr("pilot.app.plan_run.become_subreaper", lambda: None)  # this process is the tests'
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return work


@pytest.fixture
def pilot(place: Path, capsys: pytest.CaptureFixture[str]) -> Pilot:
    """Runs a command line in this process."""

    def run(*arguments: str) -> Result:
        capsys.readouterr()
        code = main(arguments)
        out, err = capsys.readouterr()
        return Result(code, out, err)

    return run


def write(place: Path, text: str = PLAN) -> str:
    (place / "plan.md").write_text(text)
    return "plan.md"


def test_a_sound_plan_is_said_to_be_one(pilot: Pilot, place: Path) -> None:
    result = pilot("plan", "check", write(place))
    assert (result.code, result.out, result.err) == (0, "my-feature: 4 steps in 3 lanes, nothing wrong\n", "")
    assert pilot("plan", "check", "plan.md", "--json").json == {
        "ok": True, "plan": "my-feature", "steps": 4, "problems": [],
    }  # fmt: skip


def test_all_that_is_wrong_with_a_plan_is_said_at_once(pilot: Pilot, place: Path) -> None:
    text = "# Plan: P\n- [ ] id=a lane=x payload=@cmd:make; rm\n- [ ] id=b lane=1 deps=c payload=@gh:1\n"
    for command in ("check", "show", "submit", "run"):
        result = pilot("plan", command, write(place, text))
        assert (result.code, result.out) == (2, "")
        first, *more = result.err.splitlines()
        assert first.startswith("error: plan.md:2: lane is an integer")
        assert [line.split(":")[1] for line in more] == ["2", "3"]
    assert not (place.parent / "state").exists()
    result = pilot("plan", "check", "plan.md", "--json")
    assert result.code == 2
    assert [problem["line"] for problem in result.json["problems"]] == [2, 2, 3]
    (place / "plan.json").write_text('{"slug": "s", "steps": [{"id": "a", "lane": 1, "payload": "x"}]}')
    assert pilot("plan", "check", "plan.json", "--json").json["problems"][0]["where"] == "step 1 (a)"


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"\xff", "plan.md: not UTF-8 text"), (b" " * (1 << 20) + b"x", "1 MiB at most"), (b"\x00", "# Plan: NAME")],
)
def test_a_file_that_is_no_plan(pilot: Pilot, place: Path, content: bytes, words: str) -> None:
    (place / "plan.md").write_bytes(content)
    result = pilot("plan", "check", "plan.md")
    assert result.code == 2
    assert words in result.err
    for missing in ("nothing.md", str(place)):
        assert pilot("plan", "check", missing).code == 2


def test_a_plan_comes_from_stdin_too(pilot: Pilot, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"# Plan: P\n- [ ] id=a\n")))
    assert "error: stdin:2: lane is missing" in pilot("plan", "check", "-").err


def test_a_plan_is_drawn_before_and_after_it_was_submitted(pilot: Pilot, place: Path) -> None:
    evil = PLAN.replace("write the docs", "write").replace("My Feature", "My \x1b[2J\u202eFeature")
    result = pilot("plan", "show", write(place, evil))
    assert result.out == (
        "My \ufffdFeature (my-feature)\n"
        "policy: no_refactor=true\n"
        "○   ctx   lane 1  @cmd:make ctx\n"
        "├─○ docs  lane 2  @doc:LLM_TASK write\n"
        "○ │ note  lane 2  @gh:acme/api#3\n"
        "○─┘ test  lane 3  @cmd:make test\n"
    )
    assert pilot("plan", "show", "plan.md", "-p", "api").out == result.out
    write(place)
    pilot("plan", "submit", "plan.md", "-p", "api")
    assert "1 queued\n├─○ docs" in pilot("plan", "show", "plan.md", "-p", "api").out
    document = pilot("plan", "show", "plan.md", "-p", "api", "--json").json
    assert [step["status"] for step in document["steps"]] == ["queued", "blocked", "blocked", "blocked"]
    assert pilot("plan", "show", "plan.md", "-p", "none").code == 4
    assert pilot("plan", "show", "plan.md", "--mermaid").out.startswith("flowchart TD\n")
    again = pilot("plan", "show", "plan.md", "--markdown").out
    assert parse_plan(again).digest == document["digest"]
    assert "choose one" in pilot("plan", "show", "plan.md", "--mermaid", "--json").err


def test_a_plan_that_is_submitted_twice_is_there_once(pilot: Pilot, place: Path) -> None:
    first = pilot("plan", "submit", write(place), "-p", "api")
    assert (first.code, first.err) == (0, "plan my-feature: 4 new, 0 there already\n")
    assert first.out.splitlines() == ["1\tctx\tqueued", "2\tdocs\tblocked", "3\tnote\tblocked", "4\ttest\tblocked"]
    again = pilot("plan", "submit", "plan.md", "-p", "api", "--json").json
    assert {(step["execution"], step["duplicate"]) for step in again["steps"]} == {(n, True) for n in range(1, 5)}
    for more in ((), ("--key", "other")):
        write(place, PLAN + "- [ ] id=more lane=1 payload=@gh:1\n")
        result = pilot("plan", "submit", "plan.md", "-p", "api", *more)
        assert result.code == 2
        assert "open already, from another submission: my-feature::ctx (1, queued)" in result.err
        assert len(pilot("list").out.splitlines()) == 4


def test_what_the_project_does_not_take_is_said_with_its_line(pilot: Pilot, place: Path) -> None:
    text = PLAN.replace("make ctx", "rm x").replace("make test", "rm y")
    for command in ("submit", "run"):
        result = pilot("plan", command, write(place, text), "-p", "api")
        assert result.code == 2
        assert "plan.md:3: ctx: project api does not allow the command 'rm x'" in result.err
        assert "plan.md:6: test: project api does not allow the command 'rm y'" in result.err
        assert pilot("list").out == ""
        assert pilot("plan", command, "plan.md", "-p", "nowhere").code == 4


def test_a_plan_is_done_and_its_next_run_has_nothing_to_do(pilot: Pilot, place: Path) -> None:
    result = pilot("plan", "run", write(place), "-p", "api", "--agents", "3")
    assert result.code == 0, result.err
    assert "project api runs 2 at a time, not 3: its max_running in pilot.yaml says so" in result.err
    assert "✓ docs 2 completed" in result.err
    assert result.out.splitlines()[2:] == [
        "✓   ctx   lane 1  @cmd:make ctx  1 completed → pilot/my-feature-ctx",
        "├─✓ docs  lane 2  @doc:LLM_TASK write the docs  2 completed → pilot/my-feature-docs",
        "✓ │ note  lane 2  @gh:acme/api#3  3 completed",
        "✓─┘ test  lane 3  @cmd:make test  4 completed (nothing to change)",
    ]
    again = pilot("plan", "run", "plan.md", "-p", "api", "--json")
    assert (again.code, [step["execution"] for step in again.json["steps"]]) == (0, [1, 2, 3, 4])

    write(place, PLAN.replace("make test", "make ctx"))
    refused = pilot("plan", "run", "plan.md", "-p", "api", "--retry")
    assert refused.code == 2
    assert "plan.md is not what was submitted last as my-feature" in refused.err
    ticked = PLAN.replace("make test", "make ctx").replace("- [ ] id=ctx", "- [x] id=ctx")
    write(place, ticked.replace("- [ ] id=docs", "- [x] id=docs"))
    result = pilot("plan", "run", "plan.md", "-p", "api")
    assert result.code == 0, result.err
    assert "8 completed → pilot/my-feature-test" in result.out
    assert "● docs" not in result.err


def test_a_step_that_needs_a_person_leaves_code_3(pilot: Pilot, place: Path) -> None:
    text = "# Plan: P\n- [ ] id=a lane=1 payload=@cmd:nosuchprogram\n- [ ] id=b lane=1 deps=a payload=@gh:1\n"
    result = pilot("plan", "run", write(place, text), "-p", "api")
    assert result.code == 3, result.err
    assert "step a needs a person: " in result.err
    assert 'pilot answer 1 "…"     and then: pilot plan run plan.md -p api' in result.err
    assert pilot("cancel", "1").code == 0
    result = pilot("plan", "run", "plan.md", "-p", "api")
    assert result.code == 1
    assert "cancelled with that: a, b" in result.err


async def test_steps_of_workers_elsewhere_are_waited_for(place: Path) -> None:
    plan = parse_plan(
        "# Plan: P\n- [ ] id=a lane=7 kind=deploy payload=@cmd:make ctx\n- [ ] id=b lane=1 deps=a payload=@gh:1\n"
    )
    news: list[News] = []
    said = asyncio.Event()

    def show(one: News) -> None:
        news.append(one)
        if one.kind == "waiting":
            said.set()

    loaded = load(None, {"PILOT_CONFIG": str(place.parent / "pilot.yaml")})
    request = PlanRequest(plan=plan, project="api")
    running: asyncio.Task[Ended] = asyncio.create_task(run_plan(loaded, request, show))
    async with asyncio.timeout(30):
        await said.wait()
        async with open_store(f"sqlite:///{place.parent}/state/pilot.db") as store:
            (claim,) = await store.work.claim("pane", wanted=Wanted(lanes=(7,)))
            done = Outcome(ending=Ending.DONE, text="deployed")
            await store.work.complete(claim.execution.id, "pane", claim.fence, done)
        ended = await running
    assert [(str(one.kind), one.text) for one in news[:2]] == [
        ("submitted", "plan p: 2 steps, 2 new"),
        ("step", "a worker elsewhere is to do it (lane 7)"),
    ]
    assert news[2].text == "workers elsewhere are to do p::a"
    assert {id: str(row.status) for id, row in ended.steps.items()} == {"a": "completed", "b": "completed"}
    assert not ended.interrupted


def test_a_payload_is_put_into_the_queue(pilot: Pilot, place: Path) -> None:
    assert pilot("enqueue", "-p", "api", "@cmd:make test", "--callback", "https://hooks.example/x").out == "1\n"
    shown = pilot("show", "1", "--json").json
    assert (shown["payload"], shown["backend"], shown["title"]) == ("@cmd:make test", "payload", "@cmd:make test")
    assert shown["callback_url"].startswith("https://hooks.example")
    assert pilot("enqueue", "-p", "api", "@gh:a/b#1", "--json").json["status"] == "completed"
    for bad, words in (
        (("@cmd:rm x",), "does not allow the command 'rm x'"),
        (("@file:../x",), "inside the repository"),
        (("@cmd:make x | y",), "without a shell"),
        (("words", "--payload", '"@file:x#aply"'), "did you mean #apply?"),
        (("words", "--callback", "ftp://x"), "http or https"),
    ):
        result = pilot("enqueue", "-p", "api", *bad)
        assert (result.code, result.out) == (2, "")
        assert words in result.err
    assert len(pilot("list", "--all").out.splitlines()) == 2
