"""The real Claude Code CLI for tests: where it is, and an environment in which it talks to a scripted model only."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path

MODULES = Path(__file__).parent / "node_modules"


def claude_binary() -> str:
    """The pinned CLI, absolute. Raises `FileNotFoundError` with the remedy when it is not installed.

    The platform package's binary comes first: npm may leave a stub in `.bin` when it runs no install scripts.
    """
    system = {"darwin": "darwin", "win32": "win32"}.get(sys.platform, "linux")
    machine = "arm64" if platform.machine() in ("arm64", "aarch64") else "x64"
    package = f"@anthropic-ai/claude-code-{system}-{machine}"
    for path in (MODULES / package / "claude", MODULES / f"{package}-musl" / "claude", MODULES / ".bin/claude"):
        if path.is_file() and os.access(path, os.X_OK):
            return str(path)
    raise FileNotFoundError("no Claude Code CLI here: run `npm ci --prefix tests/e2e` (`make test` does)")


def claude_environment(home: Path, url: str, **more: str) -> dict[str, str]:
    """A whole environment for a pilot, or a CLI, whose model is `url` and whose home is the new folder `home`.

    Nothing of the developer's own accounts, settings or sessions is in it. `pilot serve` and `pilot run` started
    with it find everything that they hand on to the CLI by themselves; the CLI must be named in pilot.yaml::

        executor: {type: claude-code, claude-code: {command: <claude_binary()>}}
    """
    home.mkdir(parents=True, exist_ok=True)
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "LANG": "C.UTF-8",
        "TERM": "dumb",
        "CLAUDE_CONFIG_DIR": str(home / ".claude"),
        "ANTHROPIC_BASE_URL": url,
        "ANTHROPIC_API_KEY": "dummy",
        **more,
    }


def sessions(environment: Mapping[str, str]) -> list[str]:
    """Ids of the conversations that the CLI has stored."""
    stored = Path(environment["CLAUDE_CONFIG_DIR"]).glob("projects/*/*.jsonl")
    return sorted(path.stem for path in stored)
