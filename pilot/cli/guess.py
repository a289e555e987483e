"""What a repository tells of itself: remote, base branch, how it is tested. Reads, runs only git."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

AGENTS = {"claude-code": "claude", "opencode": "opencode", "codex": "codex", "acp": "gemini"}
"""Backend by the program whose presence speaks for it, the likeliest first."""

_MAX = 1 << 20  # bytes of a file that is looked into
_GITHUB = re.compile(r"(?:\S*[@/])?github\.com[:/]([\w.-]+)/([\w.-]+?)(?:\.git)?/?")
_TARGET = re.compile(r"^([A-Za-z][\w-]*)\s*:(?!=)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Guess:
    """Commands by their kind (lint, test), what a new workspace needs first, and where it comes from."""

    agents: tuple[str, ...]
    github: str | None
    base: str | None
    setup: tuple[str, ...]
    gates: tuple[tuple[str, str], ...]


def guess(root: Path, path: str | None) -> Guess:
    """Look around in the repository whose top is `root`; `path` is $PATH."""
    setup: list[str] = []
    gates: dict[str, str] = {}
    for look in (_make, _node, _python, _cargo, _go):
        for kind, command in look(root):
            if kind == "setup":
                setup.append(command)
            else:
                gates.setdefault(kind, command)
    return Guess(
        agents=tuple(name for name, program in AGENTS.items() if shutil.which(program, path=path)),
        github=_github(_git(root, "config", "--get", "remote.origin.url")),
        base=_base(root),
        setup=tuple(setup),
        gates=tuple(sorted(gates.items())),
    )


def _git(root: Path, *args: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *args], capture_output=True, text=True, errors="replace", timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _github(url: str) -> str | None:
    found = _GITHUB.fullmatch(url)
    return f"{found[1]}/{found[2]}" if found else None


def _base(root: Path) -> str | None:
    head = _git(root, "symbolic-ref", "--short", "refs/remotes/origin/HEAD").removeprefix("origin/")
    if head:
        return head
    for name in ("main", "master"):
        if _git(root, "rev-parse", "--verify", "--quiet", f"refs/heads/{name}"):
            return name
    return _git(root, "symbolic-ref", "--short", "HEAD") or None


def _text(path: Path) -> str:
    try:
        if not path.is_file() or path.stat().st_size > _MAX:
            return ""
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _make(root: Path) -> list[tuple[str, str]]:
    targets = set(_TARGET.findall(_text(root / "Makefile") or _text(root / "makefile")))
    return [(kind, f"make {kind}") for kind in ("lint", "test") if kind in targets]


def _node(root: Path) -> list[tuple[str, str]]:
    try:
        package = json.loads(_text(root / "package.json") or "null")
    except (ValueError, RecursionError):
        return []
    scripts = package.get("scripts") if isinstance(package, dict) else None
    if not isinstance(scripts, dict):
        return []
    tool, setup = "npm", "npm ci" if (root / "package-lock.json").is_file() else "npm install"
    if (root / "pnpm-lock.yaml").is_file():
        tool, setup = "pnpm", "pnpm install --frozen-lockfile"
    elif (root / "yarn.lock").is_file():
        tool, setup = "yarn", "yarn install"
    found = [("setup", setup)]
    if isinstance(scripts.get("lint"), str):
        found.append(("lint", f"{tool} run lint"))
    if isinstance(scripts.get("test"), str) and "no test specified" not in scripts["test"]:
        found.append(("test", f"{tool} test"))
    return found


def _python(root: Path) -> list[tuple[str, str]]:
    import tomllib

    try:
        project = tomllib.loads(_text(root / "pyproject.toml"))
    except (tomllib.TOMLDecodeError, RecursionError):
        return []
    if not project:
        return []
    tools: dict[str, Any] = project.get("tool") if isinstance(project.get("tool"), dict) else {}  # type: ignore[assignment]
    locked = (root / "uv.lock").is_file()
    prefix = "uv run " if locked else ""
    found = [("setup", "uv sync")] if locked else []
    if "ruff" in tools:
        found.append(("lint", f"{prefix}ruff check ."))
    if "pytest" in tools or (root / "tests").is_dir():
        found.append(("test", f"{prefix}pytest -q"))
    return found


def _cargo(root: Path) -> list[tuple[str, str]]:
    if not _text(root / "Cargo.toml"):
        return []
    return [("lint", "cargo clippy --all-targets -- -D warnings"), ("test", "cargo test")]


def _go(root: Path) -> list[tuple[str, str]]:
    return [("lint", "go vet ./..."), ("test", "go test ./...")] if _text(root / "go.mod") else []
