"""`pilot init`: what it finds in real repositories, and that what it writes is understood."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pilot.cli.main import main
from pilot.config.load import load


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty repository to stand in, and no agent on PATH but git's neighbours."""
    root = tmp_path / "My Project"
    root.mkdir()
    git(root, "init", "-q", "-b", "main")
    git(root, "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-q", "--allow-empty", "-m", "first")
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "git").symlink_to(str(subprocess.check_output(["which", "git"], text=True).strip()))
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setenv("PILOT_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(root)
    return root


def git(root: Path, *args: str) -> None:
    subprocess.run(["git", "-C", str(root), *args], check=True, capture_output=True)


def put(root: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def init(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> Any:
    capsys.readouterr()
    assert main(["init", "--json", *arguments]) == code
    return json.loads(capsys.readouterr().out)


def test_the_file_it_writes_is_valid(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = init(capsys)

    assert document["path"] == str(repository / "pilot.yaml")
    loaded = load(repository / "pilot.yaml", os.environ)
    (project,) = loaded.settings.projects
    assert (project.name, project.path, project.base, project.gates) == ("my-project", repository, "main", ())
    assert loaded.warnings == ()
    assert main(["config", "check"]) == 0


def test_it_never_overwrites(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (repository / "pilot.yaml").write_text("mine")

    document = init(capsys, code=2)

    assert "is there already, and stays as it is" in document["error"]["message"]
    assert (repository / "pilot.yaml").read_text() == "mine"


def test_from_a_folder_or_for_another_repository(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    below = repository / "src" / "deep"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    assert init(capsys)["path"] == str(repository / "pilot.yaml")
    (repository / "pilot.yaml").unlink()

    monkeypatch.chdir(tmp_path)
    assert init(capsys, "My Project")["path"] == str(repository / "pilot.yaml")
    assert "in no git repository" in init(capsys, code=2)["error"]["message"]
    assert "is no directory" in init(capsys, "nowhere", code=2)["error"]["message"]


@pytest.mark.parametrize(
    ("remote", "github"),
    [
        ("git@github.com:Acme/api.git", "Acme/api"),
        ("https://github.com/acme/api", "acme/api"),
        ("ssh://git@github.com/acme/my.api.git", "acme/my.api"),
        ("https://token@github.com/acme/api/", "acme/api"),
        ("https://gitlab.com/acme/api.git", None),
        ("https://notgithub.com/acme/api.git", None),
        ("https://github.com/acme/api/tree/main", None),
        ("/srv/git/api.git", None),
    ],
)
def test_the_remote(repository: Path, capsys: pytest.CaptureFixture[str], remote: str, github: str | None) -> None:
    git(repository, "remote", "add", "origin", remote)

    assert init(capsys)["github"] == github
    text = (repository / "pilot.yaml").read_text()
    assert "token@" not in text
    assert ("# sources:" in text) == (github is not None)


def test_the_base_branch_is_the_remotes(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    git(repository, "update-ref", "refs/remotes/origin/trunk", "HEAD")
    git(repository, "symbolic-ref", "refs/remotes/origin/HEAD", "refs/remotes/origin/trunk")

    assert init(capsys)["base"] == "trunk"


@pytest.mark.parametrize(
    ("files", "setup", "gates"),
    [
        ({"Makefile": "lint:\n\tx\ntest: lint\n\ty\nVAR := 1\n"}, [], ["make lint", "make test"]),
        ({"Makefile": "tests:\n\tx\n# lint: no\n"}, [], []),
        (
            {"package.json": '{"scripts": {"test": "jest", "lint": "eslint"}}', "package-lock.json": "{}"},
            ["npm ci"],
            ["npm run lint", "npm test"],
        ),
        (
            {"package.json": '{"scripts": {"test": "echo \\"Error: no test specified\\" && exit 1"}}'},
            ["npm install"],
            [],
        ),
        (
            {"package.json": '{"scripts": {"test": "x"}}', "pnpm-lock.yaml": ""},
            ["pnpm install --frozen-lockfile"],
            ["pnpm test"],
        ),
        ({"package.json": "not json"}, [], []),
        ({"pyproject.toml": "[tool.ruff]\n[tool.pytest.ini_options]\n"}, [], ["ruff check .", "pytest -q"]),
        (
            {"pyproject.toml": "[project]\nname='x'\n", "tests/t.py": "", "uv.lock": ""},
            ["uv sync"],
            ["uv run pytest -q"],
        ),
        ({"pyproject.toml": "= broken"}, [], []),
        ({"Cargo.toml": "[package]"}, [], ["cargo clippy --all-targets -- -D warnings", "cargo test"]),
        ({"go.mod": "module x"}, [], ["go vet ./...", "go test ./..."]),
        ({"Makefile": "test:\n\tx\n", "go.mod": "module x"}, [], ["go vet ./...", "make test"]),
    ],
)
def test_how_it_is_tested(
    repository: Path, capsys: pytest.CaptureFixture[str], files: Mapping[str, str], setup: list[str], gates: list[str]
) -> None:
    put(repository, files)

    document = init(capsys)

    assert document["setup"] == setup
    assert [gate["run"] for gate in document["gates"]] == gates
    (project,) = load(repository / "pilot.yaml", os.environ).settings.projects
    assert list(project.setup) == setup
    assert [gate.run for gate in project.gates] == gates


def test_agents_on_the_path(repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("claude", "codex", "gemini"):
        program = tmp_path / "bin" / name
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)

    assert init(capsys)["agents"] == ["claude-code", "codex", "acp"]


@pytest.mark.parametrize(("program", "agent"), [("codex", "codex"), ("opencode", "opencode"), ("gemini", "acp")])
def test_the_agent_that_is_there_is_the_one_to_use(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], program: str, agent: str
) -> None:
    (tmp_path / "bin" / program).write_text("#!/bin/sh\n")
    (tmp_path / "bin" / program).chmod(0o755)

    assert main(["init"]) == 0

    assert load(repository / "pilot.yaml", os.environ).settings.executor.type == agent
    assert capsys.readouterr().err == ""


def test_without_an_agent_it_says_so(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init"]) == 0

    out, err = capsys.readouterr()
    assert "no agent was found on PATH (claude, " in err
    assert "pilot doctor" in out


@pytest.mark.parametrize("name", ["yes", "1.5", "-", "a: b #c", '"quoted"', "ü${HOME}", "émoji🎉", "x" * 120, "a'b\nc"])
def test_names_that_yaml_would_misread(
    tmp_path: Path, repository: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    root = tmp_path / name
    root.mkdir()
    git(root, "init", "-q", "-b", "feature/ü-1")

    document = init(capsys, str(root))

    (project,) = load(Path(document["path"]), os.environ).settings.projects
    assert project.path == root
    assert project.base == "feature/ü-1"
