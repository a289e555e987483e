"""The real OpenCode for tests: where it is, and homes in which it talks to a scripted model only."""

from __future__ import annotations

import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

from tests.e2e.model_server import Turn, tool

MODULES = Path(__file__).parent / "node_modules"
MODEL = "anthropic/claude-sonnet-4-5"
NOWHERE = "http://127.0.0.1:9"
"""Nobody listens there: for `server_url`, so that no server of the developer's is found."""


def opencode_binary() -> str:
    """The pinned program, absolute. Raises `FileNotFoundError` with the remedy when it is not installed."""
    system = {"darwin": "darwin", "win32": "windows"}.get(sys.platform, "linux")
    machine = "arm64" if platform.machine() in ("arm64", "aarch64") else "x64"
    for package in (f"opencode-{system}-{machine}", f"opencode-{system}-{machine}-musl"):
        path = MODULES / package / "bin" / "opencode"
        if path.is_file() and os.access(path, os.X_OK):
            return str(path)
    raise FileNotFoundError("no OpenCode here: run `npm ci --prefix tests/e2e` (`make test` does)")


def configured(home: Path, url: str, **more: Any) -> Path:
    """Make `home` one whose user has set up OpenCode for the model at `url`; the settings' file."""
    file = home / ".config" / "opencode" / "opencode.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    provider = {"anthropic": {"options": {"baseURL": f"{url}/v1"}}}
    file.write_text(json.dumps({"provider": provider, **more}))
    return file


def opencode_environment(home: Path, url: str, **more: str) -> dict[str, str]:
    """A whole environment for a pilot, or the program, whose model is `url` and whose home is the folder `home`."""
    configured(home, url)
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "LANG": "C.UTF-8",
        "TERM": "dumb",
        "ANTHROPIC_API_KEY": "dummy",
        **more,
    }


QUIET = {"npm_config_registry": "http://127.0.0.1:9/", "OPENCODE_DISABLE_MODELS_FETCH": "1"}
"""For the agent's environment: nothing is looked for outside of this machine."""


def write(name: str, content: str = "hi", **more: Any) -> Turn:
    """The agent writes a file of its checkout."""
    return {**tool("write", filePath=f"${{cwd}}/{name}", content=content), **more}


def bash(command: str) -> Turn:
    """The agent runs a command in its checkout."""
    return tool("bash", command=command, description="a command")
