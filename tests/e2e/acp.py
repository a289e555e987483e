"""The real agents that speak the Agent Client Protocol, each with a model that goes by a script."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.e2e import opencode
from tests.e2e.daemon import Home
from tests.e2e.gemini_server import GeminiServer
from tests.e2e.model_server import ModelServer
from tests.e2e.scripted_server import Request, ScriptedServer, Turn, tool

GEMINI_MODEL = "gemini-2.5-flash"


@dataclass(frozen=True, slots=True)
class Agent:
    """One of them: how it is started, what its user has set up, and what its tools are called."""

    name: str
    argv: Callable[[], list[str]]
    server: type[ScriptedServer]
    write: Callable[..., Turn]
    bash: Callable[[str], Turn]
    set_up: Callable[[Path, str], dict[str, str]]
    """Makes a home whose user has set the agent up for the model at a URL; the environment that goes with it."""

    def __str__(self) -> str:
        return self.name


def gemini_script() -> str:
    """The pinned Gemini CLI. Raises `FileNotFoundError` with the remedy when it is not installed."""
    script = opencode.MODULES / "@google" / "gemini-cli" / "bundle" / "gemini.js"
    if not script.is_file():
        raise FileNotFoundError("no Gemini CLI here: run `npm ci --prefix tests/e2e` (`make test` does)")
    return str(script)


def _gemini(home: Path, url: str) -> dict[str, str]:
    settings = {
        "security": {"auth": {"selectedType": "gemini-api-key"}},
        "model": {"name": GEMINI_MODEL},  # else another model is asked first which one to take
        "privacy": {"usageStatisticsEnabled": False},
        "general": {"enableAutoUpdate": False},
    }
    (home / ".gemini").mkdir(parents=True, exist_ok=True)
    (home / ".gemini" / "settings.json").write_text(json.dumps(settings))
    return {"GEMINI_API_KEY": "dummy", "GOOGLE_GEMINI_BASE_URL": url}


def _opencode(home: Path, url: str, **more: Any) -> dict[str, str]:
    opencode.configured(home, url, model=opencode.MODEL, small_model=opencode.MODEL, **more)
    return {"ANTHROPIC_API_KEY": "dummy", **opencode.QUIET}


def _gemini_write(name: str, content: str = "hi", **more: Any) -> Turn:
    return {**tool("write_file", file_path=f"${{cwd}}/{name}", content=content), **more}


def _gemini_bash(command: str) -> Turn:
    return tool("run_shell_command", command=command)


GEMINI = Agent(
    "gemini",
    lambda: [shutil.which("node") or "node", gemini_script(), "--acp"],
    GeminiServer,
    _gemini_write,
    _gemini_bash,
    _gemini,
)
OPENCODE = Agent(
    "opencode",
    lambda: [opencode.opencode_binary(), "acp"],
    ModelServer,
    opencode.write,
    opencode.bash,
    _opencode,
)
BOTH = (GEMINI, OPENCODE)


def environment(agent: Agent, home: Path, url: str) -> dict[str, str]:
    """The whole environment of a pilot whose agent this is; nothing of the developer's own is in it."""
    home.mkdir(parents=True, exist_ok=True)
    own = {"PATH": os.environ["PATH"], "HOME": str(home), "LANG": "C.UTF-8", "TERM": "dumb"}
    return {**own, **agent.set_up(home, url)}


def conversing(home: Home, agent: Agent, scripts: Mapping[str, Sequence[Turn]], **acp: Any) -> ScriptedServer:
    """A model that knows what to say to each task id; `home` uses it through this agent, with these settings."""
    model = agent.server({"scripts": [{"when": task_id, "turns": turns} for task_id, turns in scripts.items()]})
    home.environment |= agent.set_up(Path(home.environment["HOME"]), model.url)
    settings = {"type": "acp", "sandbox": "none", "acp": {"argv": agent.argv(), **acp}}
    handed_on = {name: home.environment[name] for name in opencode.QUIET if name in home.environment}
    home.configure(executor={**home.settings["executor"], **settings, "environment": {"set": handed_on}})
    return model


def told(request: Request) -> str:
    """All that the model was told in a request, as it was sent."""
    return json.dumps([request.body.get("messages"), request.body.get("contents")], ensure_ascii=False)


def earlier(agent: Agent, home: Path) -> None:
    """Let the sessions in this home have begun some minutes ago.

    Gemini CLI 0.61 names a session's file by the minute, and overwrites it when it goes on in the same minute.
    """
    if agent is GEMINI:
        for file in home.glob(".gemini/tmp/*/chats/session-*.jsonl"):
            file.rename(file.with_name(f"session-2026-01-01T00-00-{file.stem.rpartition('-')[2]}.jsonl"))
