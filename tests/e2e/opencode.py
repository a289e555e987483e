"""The real OpenCode for tests: where it is, and homes in which it talks to a scripted model only."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from tests.e2e.daemon import Home
from tests.e2e.model_server import ModelServer, Turn, tool
from tests.ports import free_port

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


QUIET = {
    "npm_config_registry": "http://127.0.0.1:9/",
    "OPENCODE_DISABLE_MODELS_FETCH": "1",
    "OPENCODE_MODELS_PATH": str(Path(__file__).parent / "models.json"),
}
"""For the agent's environment: nothing is looked for outside of this machine, and only the models of the tests are
known: with the thousands that it comes with, each start takes three seconds of a processor more."""


def write(name: str, content: str = "hi", **more: Any) -> Turn:
    """The agent writes a file of its checkout."""
    return {**tool("write", filePath=f"${{cwd}}/{name}", content=content), **more}


def bash(command: str) -> Turn:
    """The agent runs a command in its checkout."""
    return tool("bash", command=command, description="a command")


class Server:
    """An OpenCode server that somebody else has started: not pilot's to end."""

    def __init__(self, folder: Path, environment: Mapping[str, str], password: str = "") -> None:
        self.password = password
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        folder.mkdir(parents=True, exist_ok=True)
        argv = [opencode_binary(), "serve", "--hostname", "127.0.0.1", "--port", str(port)]
        own = {"OPENCODE_SERVER_PASSWORD": password} if password else {}
        with (folder / "server.log").open("wb") as log:
            self.process = subprocess.Popen(
                argv, cwd=folder, env={**environment, **QUIET, **own}, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self._log = folder / "server.log"

    def __enter__(self) -> Self:
        end = time.monotonic() + 60
        while "listening on" not in (said := self._log.read_text()):
            assert self.process.poll() is None, said
            assert time.monotonic() < end, said
            time.sleep(0.05)
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    @property
    def alive(self) -> bool:
        return self.process.poll() is None


def conversing(
    home: Home, scripts: Mapping[str, Sequence[Turn]], sandbox: str = "none", **opencode: Any
) -> ModelServer:
    """A model that knows what to say to each task id; `home` uses it, with these settings of opencode."""
    model = ModelServer({"scripts": [{"when": task_id, "turns": turns} for task_id, turns in scripts.items()]})
    configured(Path(home.environment["HOME"]), model.url)
    home.environment |= {"ANTHROPIC_API_KEY": "dummy"}
    own = {"command": opencode_binary(), "model": MODEL, "server_url": NOWHERE, **opencode}
    executor = {**home.settings["executor"], "type": "opencode", "opencode": own, "sandbox": sandbox}
    home.configure(executor={**executor, "environment": {"set": QUIET}})
    return model
