"""What pilot.yaml asks of its agents is held against what they can do before anything runs."""

from __future__ import annotations

import re
import subprocess
import time
from pathlib import Path

import pytest

from pilot.app import agents
from pilot.app.context import open_context
from pilot.cli import agent_checks
from pilot.config.load import load
from pilot.config.schema import Settings
from pilot.config.uses import used_agents
from pilot.domain.agent import Capabilities, Check
from pilot.domain.errors import ConfigError, UsageError
from tests.core.plugged import Able, plug_in

PLAIN = Able(capabilities=Capabilities(model=False, sandbox=False))
PLUGS = {
    "able": Able(),
    "plain": PLAIN,
    "mute": Able(capabilities=None),
    "sick": Able(checks=RuntimeError("out of order")),
    "absent-minded": Able(),
    "broken": RuntimeError("no licence"),
}


@pytest.fixture(autouse=True)
def _plug_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plug_in(tmp_path / "plug-ins", monkeypatch, PLUGS)


def settings(tmp_path: Path, text: str) -> Settings:
    path = tmp_path / "pilot.yaml"
    path.write_text(text)
    return load(path, {"HOME": str(tmp_path)}).settings


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ("executor: {type: able, fallback: [claude-code], routes: [{use: able, model: m}]}", []),
        ("executor: {type: external}", []),
        ("executor: {type: plain, sandbox: auto}", []),
        ("executor: {type: able, sandbox: none, profiles: {p: {type: broken}}}", []),  # nobody uses p
        (
            "executor: {type: broken}",
            ["executor.type: agent broken can't be used: its plug-in plugged:broken of plugged 1.0 broke"],
        ),
        ("executor: {routes: [{use: plain, model: m}]}", ["executor.routes.0.model: plain can't be given a model"]),
        (
            "executor: {routes: [{use: p, model: m}], command: {argv: [x]}, profiles: {p: {type: command}}}",
            ["executor.routes.0.model: p can't be given a model"],
        ),
        (
            "executor: {type: plain, sandbox: bubblewrap}",
            ["executor.sandbox: bubblewrap is asked for, and plain does not run in pilot's sandbox"],
        ),
        (
            "executor: {fallback: [p], profiles: {p: {type: plain, sandbox: bubblewrap}}}",
            ["executor.profiles.p.sandbox: bubblewrap is asked for, and p does not"],
        ),
        ("executor: {type: mute}", ["executor.type: mute does not say what it can do"]),
        (
            "executor: {type: broken, fallback: [plain], routes: [{use: plain, model: m, fallback: [mute, broken]}]}",
            [
                "executor.type: agent broken can't be used",
                "executor.routes.0.model: plain can't",
                "executor.routes.0.fallback.0: mute does not",
            ],
        ),
        (
            "projects: [{name: a, path: /a}, {name: b, path: /b, executor: {type: plain, sandbox: bubblewrap}}]",
            ["projects.b.executor.sandbox: bubblewrap is asked for, and plain"],
        ),
        (
            "executor: {type: broken}\nprojects: [{name: b, path: /b, executor: {timeout: 5m}}]",
            ["executor.type: agent broken can't be used"],  # said once, where it stands
        ),
    ],
)
def test_each_thing_that_an_agent_can_not_do_is_one_line_with_its_key(
    tmp_path: Path, text: str, problems: list[str]
) -> None:
    found = agents.problems(settings(tmp_path, text), {})

    assert len(found) == len(problems), found
    for line, words in zip(found, problems, strict=True):
        assert line.startswith(words), line
        assert "\n" not in line
    if problems:
        with pytest.raises(ConfigError) as raised:
            agents.check(settings(tmp_path, text))
        assert list(raised.value.problems) == found


def test_a_sandbox_that_is_asked_for_by_name_has_to_be_there(tmp_path: Path) -> None:
    wanted = settings(tmp_path, "executor: {type: able, sandbox: bubblewrap, fallback: [claude-code]}")

    assert agents.problems(wanted) == []
    broken = tmp_path / "bin/bwrap"
    broken.parent.mkdir()
    broken.write_text("#!/bin/sh\necho no user name spaces >&2; exit 1\n")
    broken.chmod(0o755)
    (line,) = agents.problems(wanted, {"PATH": f"{broken.parent}:/usr/bin:/bin"})
    assert line.startswith("executor.sandbox: bubblewrap does not work here: no user name spaces; ")
    auto = settings(tmp_path, "executor: {type: able, sandbox: auto}")
    assert agents.problems(auto, {"PATH": f"{broken.parent}:/usr/bin:/bin"}) == []


def test_ten_thousand_projects_are_looked_at_once_per_way_of_setting_agents_up(tmp_path: Path) -> None:
    own = "executor: {type: plain, environment: {set: {A: b}}, settings: {deep: {a: [1]}}}"
    projects = "".join(f"  - {{name: p{n}, path: /p{n}, {own}}}\n" for n in range(10_000))
    found = settings(tmp_path, f"executor: {{type: able, sandbox: bubblewrap}}\nprojects:\n{projects}")
    before, started = PLAIN.built, time.process_time()

    assert len(agents.problems(found, {})) == 1
    assert PLAIN.built == before + 1
    assert time.process_time() - started < 10
    assert [name for name, _ in used_agents(found)] == ["able", "plain"]


@pytest.mark.parametrize(
    ("name", "model", "words"),
    [
        ("external", None, "external runs nothing here; `pilot enqueue` leaves"),
        ("plain", "m", "plain can't be given a model; run it without --model"),
        ("plain", None, "executor.sandbox: bubblewrap is asked for, and plain"),
        ("broken", None, "agent broken can't be used"),
        ("able", "m", ""),
    ],
)
def test_a_direct_run_looks_at_its_own_agent_only(tmp_path: Path, name: str, model: str | None, words: str) -> None:
    executor = settings(tmp_path, "executor: {type: broken, sandbox: bubblewrap}").executor
    if not words:
        agents.check_direct(name, model, executor)
        return
    with pytest.raises(UsageError) as raised:
        agents.check_direct(name, model, executor)
    assert str(raised.value).startswith(words)


async def test_doctor_looks_at_every_agent_that_a_task_may_come_to(tmp_path: Path) -> None:
    for name in ("claude", "tool"):
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text("#!/bin/sh\necho 2.1.0\n")
        program.chmod(0o755)
    found = settings(
        tmp_path,
        f"""executor:
  type: claude-code
  environment: {{pass: [PATH], set: {{ANTHROPIC_API_KEY: sk-of-this-test-only}}}}
  fallback: [stand-in]
  command: {{argv: [{tmp_path}/bin/tool]}}
  sandbox_paths: {{read: [bin], write: [gone]}}
  profiles: {{stand-in: {{type: command, sandbox: none}}, unused: {{type: broken}}, sick: {{type: sick}}}}
  routes: [{{match: {{labels: [a]}}, use: sick}}]
projects:
  - {{name: a, path: /a, executor: {{type: absent-minded}}}}
  - {{name: b, path: /b, executor: {{type: absent-minded}}}}
""",
    )
    environ = {"PATH": f"{tmp_path}/bin:/usr/bin:/bin", "HOME": str(tmp_path)}
    checks = await agent_checks.agents(found, environ)

    by_name = {check.name: check for check in checks}
    assert by_name["claude-code"].ok
    said = by_name["claude-code"].detail
    assert re.fullmatch(r"2\.1\.0 .*, account [0-9a-f]{8}", said), said
    assert "sk-of" not in repr(checks)
    assert by_name["stand-in"].detail == f"{tmp_path}/bin/tool"
    assert by_name["sick"] == Check("sick", False, "can't be checked: RuntimeError: out of order")
    assert [check.name for check in checks].count("absent-minded") == 1
    assert by_name["absent-minded"].ok is None
    assert "unused" not in by_name
    assert "agents" not in by_name
    *sandboxes, paths = agent_checks.sandboxes(found, environ)
    assert (paths.ok, paths.detail) == (None, f"{tmp_path}/gone is not there")
    lines = [check.detail for check in sandboxes]
    assert [line.rpartition("(")[2] for line in lines] == ["executor.sandbox: auto)", "executor.sandbox: none)"]


async def test_projects_with_keys_of_their_own_have_accounts_of_their_own(tmp_path: Path) -> None:
    """Also when all that they set is secret, or a mapping."""
    set_up = {
        "a": "{environment: {set: {ANTHROPIC_API_KEY: first}}}",
        "b": "{environment: {set: {ANTHROPIC_API_KEY: second}}}",
        "c": "{environment: {set: {ANTHROPIC_API_KEY: first}}}",
        "d": "{profiles: {mine: {type: claude-code}}, type: mine}",
    }
    lines = []
    for name, executor in set_up.items():
        subprocess.run(["git", "init", "-q", str(tmp_path / name)], check=True)
        lines.append(f"- {{name: {name}, path: {tmp_path / name}, executor: {executor}}}\n")
    (tmp_path / "pilot.yaml").write_text(f"state_dir: {tmp_path}/state\nprojects:\n{''.join(lines)}")

    async with open_context(load(tmp_path / "pilot.yaml", {"HOME": str(tmp_path)})) as context:
        accounts = context.accounts(context.projects)
        by_name = {own.name: accounts[id] for id, own in context.projects.items()}

    first, second, third, fourth = (by_name[name] for name in "abcd")
    assert first["claude-code"] == third["claude-code"] != second["claude-code"]
    assert set(fourth) >= {"mine"}
    assert "first" not in str(accounts)
