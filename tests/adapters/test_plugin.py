"""Agents from other packages: the example, installed as people install it, and packages with something wrong."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pilot.backends import build, known_backends
from pilot.backends.plugins import checks
from pilot.cli.agent_checks import agents
from pilot.config.schema import CommandSettings, ExecutorSettings, ProfileSettings, Settings
from pilot.domain.errors import ConfigError
from tests.core.plugged import Able, plug_in
from tests.e2e.daemon import Home

ROOT = Path(__file__).parents[2]
AGENT = """#!{python} -I
import json, pathlib, sys
def line(**event): print(json.dumps(event), flush=True)
prompt = sys.stdin.read()
line(session="s-1")
line(call="write robot.txt")
pathlib.Path("robot.txt").write_text(prompt.splitlines()[0])
line(answer="written")
line(used={{"in": 700, "out": 30, "usd": 0.25}})
line(done="Wrote robot.txt, as asked.")
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the example in it, put there by the real installer, without a network."""
    target = tmp_path_factory.mktemp("plug-in") / "site"
    source = target.parent / "source"
    shutil.copytree(ROOT / "examples/plugin", source, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    uv = shutil.which("uv") or str(ROOT / ".uv/bin/uv")  # where `make setup` puts it
    done = subprocess.run(
        [uv, "pip", "install", "--offline", "--no-deps", "--python", sys.executable, "--target", target, source],
        env={"PATH": os.environ["PATH"], "HOME": str(target.parent)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return target


def test_the_examples_own_tests_pass_where_it_is_installed(installed: Path) -> None:
    path = os.pathsep.join([str(installed), *sys.path])
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", installed.parent / "source"],
        cwd=installed, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout.split(" passed")[0].rpartition("\n")[2].rpartition(" ")[2]) > 40
    assert str(installed / "pilot_lines") in _origin(path)


def _origin(path: str) -> str:
    code = "import pilot_lines; print(pilot_lines.__file__)"
    return subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": path}, capture_output=True, text=True, check=True
    ).stdout


@pytest.fixture
def home(tmp_path: Path, installed: Path) -> Iterator[Home]:
    home = Home(tmp_path / "pilot")
    home.environment["PYTHONPATH"] = os.pathsep.join([str(installed), home.environment["PYTHONPATH"]])
    try:
        yield home
    finally:
        home.clear_away()


def test_pilot_runs_tasks_with_an_installed_plug_in(home: Home) -> None:
    program = home.root / "robot"
    program.write_text(AGENT.format(python=sys.executable))
    program.chmod(0o755)
    web = home.repo("web")
    home.configure(
        executor={
            "type": "external",
            "sandbox": "none",
            "profiles": {"robot": {"type": "lines", "settings": {"command": str(program)}}},
            "routes": [{"match": {"labels": ["robot"]}, "use": "robot"}],
        }
    )

    assert "ok, 1 project" in home.pilot("config", "check").out
    found = {check["name"]: check for check in home.pilot("doctor", "--json").json["checks"]}
    assert (found["robot"]["status"], found["robot"]["detail"]) == ("ok", str(program))
    assert found["plug-in lines"]["detail"] == "pilot_lines:backend of pilot-lines 1.0.0"

    home.pilot("run", "Say hello", "--backend", "robot", "--task-id", "T-1", cwd=web)
    document = home.pilot("show", 1, "--json").json
    assert (document["status"], document["backend"], document["session_id"]) == ("completed", "robot", "s-1")
    assert document["usage"] == {"input_tokens": 700, "output_tokens": 30, "cost_usd": 0.25}
    assert home.git(web, "show", "pilot/T-1:robot.txt")
    log = home.pilot("logs", 1).out
    assert "write robot.txt" in log
    home.audit(completed=1)

    with home.serve():
        home.pilot("enqueue", "Say hello again", "-p", "web", "--label", "robot")
        home.reach("completed", 2)


def test_what_is_wrong_with_its_settings_is_a_line_with_its_key(home: Home) -> None:
    home.repo("web")
    home.configure(executor={"type": "lines", "settings": {"comand": "x"}})

    for command in (("config", "check"), ("serve",), ("run", "x", "-p", "web")):
        said = home.pilot(*command, code=2).err
        assert "agent lines: settings.comand: Extra inputs are not permitted" in said


def test_what_the_page_about_backends_says_is_so(home: Home) -> None:
    page = (ROOT / "docs/backends.md").read_text()
    (settings,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    home.file.write_text(settings)
    home.environment["LINES_API_KEY"] = "a-key"

    assert "ok, 0 projects" in home.pilot("config", "check").out
    (line,) = re.findall(r"pilot doctor +# (.*)", page)
    assert line in home.pilot("doctor", code=None).out
    for path in re.findall(r"\]\(\.\./([^)]+)\)", page):
        assert (ROOT / path).exists(), path


# --- packages with something wrong -----------------------------------------------------------------------------

WRONG = {
    "raises": RuntimeError("no\nlicence"),
    "exits": SystemExit(3),
    "refuses": ConfigError(["settings.key: is missing"]),
    "nothing": lambda name, settings: None,
    "half": lambda name, settings: Able(),
    "codex": Able(),
    "twice": Able(),
    "good": Able(),
}


@pytest.fixture
def _wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plug_in(tmp_path / "one", monkeypatch, WRONG, "one")
    plug_in(tmp_path / "two", monkeypatch, {"twice": Able()}, "two")
    plug_in(tmp_path / "three", monkeypatch, {"absent": Able()}, "three")
    monkeypatch.delitem(sys.modules, "three")


def executor(**more: Any) -> ExecutorSettings:
    return ExecutorSettings(command=CommandSettings(argv=("agent",)), **more)


@pytest.mark.usefixtures("_wrong")
@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("raises", "agent raises can't be used: its plug-in one:raises of one 1.0 broke: RuntimeError: no licence"),
        ("exits", "agent exits can't be used: its plug-in one:exits of one 1.0 broke: SystemExit: 3"),
        ("absent", "its plug-in three:absent of three 1.0 broke: ModuleNotFoundError: No module named 'three'"),
        ("refuses", "agent refuses: settings.key: is missing"),
        ("nothing", "one:nothing of one 1.0 gives no Backend: NoneType has no name, capabilities, account, check"),
        ("half", "one:half of one 1.0 gives no Backend: Able has no name, capabilities, account"),
        ("twice", "there are several plug-ins named twice, "),
    ],
)
async def test_a_plug_in_that_is_wrong_is_one_line_for_those_who_use_it(kind: str, words: str) -> None:
    settings = executor()
    assert kind in known_backends(settings)
    with pytest.raises(ConfigError) as raised:
        build(kind, settings)
    (line,) = raised.value.problems
    assert words in line
    assert "\n" not in line

    # and nothing to those who don't
    assert build("good", settings).name == "good"
    assert build("command", settings).name == "command"
    assert not [check for check in await agents(Settings(executor=executor(type="good")), {}) if check.ok is False]
    used = [check.detail for check in await agents(Settings(executor=executor(type=kind)), {}) if check.ok is False]
    assert len(used) == 1
    assert used[0].startswith("executor.type: ")
    assert words in used[0]


@pytest.mark.usefixtures("_wrong")
def test_doctor_names_plug_ins_that_get_in_the_way() -> None:
    found = {check.name: check for check in checks()}

    assert (found["plug-in good"].ok, found["plug-in good"].detail) == (True, "one:good of one 1.0")
    assert found["plug-in codex"].ok is None
    assert "never used, for codex is built in" in found["plug-in codex"].detail
    assert found["plug-in twice"].ok is None
    assert "one:twice of one 1.0" in found["plug-in twice"].detail
    assert "two:twice of two 1.0" in found["plug-in twice"].detail


@pytest.mark.usefixtures("_wrong")
def test_a_plug_in_is_called_with_its_name_and_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, ExecutorSettings]] = []

    def mine(name: str, settings: ExecutorSettings) -> Any:
        calls.append((name, settings))
        return Able()(name, settings)

    plug_in(tmp_path / "mine", monkeypatch, {"mine": mine}, "mine")
    profile = ProfileSettings.model_validate({"type": "mine", "timeout": 5.0, "settings": {"b": 2}})
    settings = executor(timeout=60.0, settings={"a": 1, "b": 1}, profiles={"fast": profile})

    assert {"mine", "fast"} <= set(known_backends(settings))
    assert build("fast", settings).name == "fast"
    ((name, own),) = calls
    assert (name, own.type, own.timeout, dict(own.settings)) == ("fast", "mine", 5.0, {"a": 1, "b": 2})
    assert json.dumps(dict(own.settings))
