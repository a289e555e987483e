"""The real Codex CLI for tests: where it is, and settings with which it talks to a scripted model only."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.e2e.daemon import Home
from tests.e2e.responses_server import ResponsesServer, Turn
from tests.e2e.scripted_server import Request

MODULES = Path(__file__).parent / "node_modules"


def codex_binary() -> str:
    """The pinned CLI's native program, absolute. Raises `FileNotFoundError` with the remedy when it is not there."""
    system = {"darwin": "darwin", "win32": "win32"}.get(sys.platform, "linux")
    machine = "arm64" if platform.machine() in ("arm64", "aarch64") else "x64"
    for path in MODULES.glob(f"@openai/codex-{system}-{machine}/vendor/*/bin/codex"):
        if os.access(path, os.X_OK):
            return str(path)
    raise FileNotFoundError("no Codex CLI here: run `npm ci --prefix tests/e2e` (`make test` does)")


def codex_environment(home: Path, **more: str) -> dict[str, str]:
    """A whole environment whose home is the new folder `home`; nothing of the developer's own is in it.

    It has a folder of its own for what is temporary: the CLI makes no sandbox when its home is in such a folder, as
    the homes of tests are.
    """
    for folder in (home, home.parent / "temporary"):
        folder.mkdir(parents=True, exist_ok=True)
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "LANG": "C.UTF-8",
        "TERM": "dumb",
        "TMPDIR": str(home.parent / "temporary"),
        "CODEX_API_KEY": "dummy",
        **more,
    }


def provider(url: str, *, retries: int = 1, silence: float = 30.0, login: bool = False) -> list[str]:
    """Arguments (`extra_args`) that make the scripted model the CLI's own.

    `silence`: seconds of it in a stream. `login`: it takes the login of a person instead of a key.
    """
    said: dict[str, object] = {
        "name": "scripted", "base_url": f"{url}/v1", "wire_api": "responses",
        **({"requires_openai_auth": True} if login else {"env_key": "CODEX_API_KEY"}),
        "request_max_retries": retries, "stream_max_retries": retries, "stream_idle_timeout_ms": int(silence * 1000),
    }  # fmt: skip
    whole: dict[str, object] = {"model_provider": "scripted"}
    whole |= {f"model_providers.scripted.{name}": value for name, value in said.items()}
    return [argument for name, value in whole.items() for argument in ("-c", f"{name}={json.dumps(value)}")]


def threads(home: Path) -> list[str]:
    """Ids of the conversations that the CLI has stored."""
    return sorted(path.stem[-36:] for path in (home / ".codex").glob("sessions/*/*/*/rollout-*.jsonl"))


def conversing(
    home: Home, scripts: Mapping[str, Sequence[Turn]], *, within: str = "none", silence: float = 30.0, **codex: Any
) -> ResponsesServer:
    """A model that knows what to say to each task id; `home` uses it, with these settings of codex.

    `within`: pilot's sandbox.
    """
    model = ResponsesServer({"scripts": [{"when": task_id, "turns": turns} for task_id, turns in scripts.items()]})
    home.environment |= codex_environment(home.root / "home")
    own = {
        "command": codex_binary(),
        "model": "scripted-model",
        "extra_args": provider(model.url, silence=silence),
        **codex,
    }
    executor = {**home.settings["executor"], "type": "codex", "codex": own, "sandbox": within}
    executor["environment"] = {"pass": ["PATH", "HOME", "LANG", *(["TMPDIR"] if within == "none" else [])]}
    home.configure(executor=executor)
    return model


def heard(request: Request) -> str:
    """Everything that the model was told in a request: the conversation, oldest first, as one text."""
    parts: list[str] = []
    for item in request.body["input"]:
        for block in item.get("content") or [{"text": item.get("output") or json.dumps(item)}]:
            parts.append(str(block.get("text") or json.dumps(block)))
    return "\n".join(parts)
