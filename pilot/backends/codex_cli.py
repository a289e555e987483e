"""What Codex is given: its own program, arguments, environment, and the prompt on its standard input."""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from pilot.config.executor import CodexSettings
from pilot.domain.agent import AgentRequest, Places
from pilot.domain.text import clean, fingerprint

KEYS = ("CODEX_API_KEY", "CODEX_ACCESS_TOKEN", "OPENAI_API_KEY")
"""What makes an account; the last one only for a provider of the user's own that asks for it."""
ACCOUNT = (
    *KEYS, "CODEX_HOME", "CODEX_SQLITE_HOME", "CODEX_CA_CERTIFICATE", "SSL_CERT_FILE", "OPENAI_ORGANIZATION",
    "OPENAI_PROJECT", "HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY",
    "no_proxy",
    # it says in local time when an allowance is back: pilot has to be in the same zone
    "TZ",
)  # fmt: skip
"""What it needs to reach its model, handed on from pilot's own environment besides `executor.environment`."""
STEERED_BY = (
    "config.toml", "AGENTS.md", "AGENTS.override.md", "hooks.json", ".env", "rules", "skills", "prompts", "plugins",
    "agents",
)  # fmt: skip
"""What of its folder steers it."""
FRESH = ("environments.toml", "models_cache.json")
"""What it obeys, too: where its commands run, and what a model is told. It does well without them."""
FULL_ACCESS = "danger-full-access"
_DEFAULTS: Mapping[str, object] = {
    # five seconds at every end where that address can't be reached
    "analytics.enabled": False,
    "check_for_update_on_startup": False,
    # fetched from elsewhere at every start
    "features.plugins": False,
    # what its user has connected to the account (mail, drives) is nothing for whoever writes a ticket
    "features.apps": False,
    # what one ticket has it remember would steer the next one
    "features.memories": False,
}


def arguments(settings: CodexSettings, request: AgentRequest, program: str) -> tuple[str, ...]:
    """The command line; the prompt comes on standard input.

    The sandbox's mode and all else is said again when a session is gone on with: what is not said then is the
    default, which is read-only. What the operator adds stands over pilot's defaults.
    """
    said: dict[str, object] = {**_DEFAULTS, "projects": _trust(request), "sandbox_mode": mode(settings, request)}
    if model := request.model or settings.model:
        said["model"] = model
    if hidden := [name for name in KEYS if name not in request.environment]:
        # the key is for the program; its commands get what executor.environment says
        said["shell_environment_policy.exclude"] = hidden
    if request.sandbox is not None:
        # can't be written down where the folder of skills is the user's own, and is not missed
        said["skills.bundled.enabled"] = False
    argv = [program, "exec", "--json", "--skip-git-repo-check"]
    for name, value in said.items():
        argv += ["-c", f"{name}={toml(value)}"]
    argv += settings.extra_args
    if request.session_id is not None:
        argv += ["resume", request.session_id]
    return (*argv, "-")


def _trust(request: AgentRequest) -> Mapping[str, object]:
    """That the repository is not to be trusted, whatever the user's own settings say.

    A checkout that the user trusts makes every linked worktree of it trusted, and then the repository's own
    `.codex/config.toml` starts programs outside of the sandbox. Untrusted, its AGENTS.md is not read either (which
    is followed when it is a link out of the workspace): pilot tells it (`message`).
    """
    folders = dict.fromkeys((request.workspace, os.path.realpath(request.workspace)))
    return {folder: {"trust_level": "untrusted"} for folder in folders}


def mode(settings: CodexSettings, request: AgentRequest) -> str:
    """The mode of its own sandbox for this run: none in pilot's, where its own can't be made and every command fails.

    What pilot's sandbox lets it write is the same as with workspace-write; but it has the network.
    """
    return FULL_ACCESS if request.sandbox is not None else settings.sandbox


def message(request: AgentRequest) -> bytes:
    """The prompt; a new session is told first what the repository tells agents."""
    words = request.prompt
    if request.session_id is None and (told := request.instructions.strip()):
        words = f"What this repository tells agents (AGENTS.md):\n\n{told}\n\n---\n\n{words}"
    return clean(words).encode()


def child_environment(environment: Mapping[str, str], environ: Mapping[str, str]) -> dict[str, str]:
    """Its whole environment: the request's, over what reaches the model."""
    return {**{name: environ[name] for name in ACCOUNT if name in environ}, **environment}


def account(child: Mapping[str, str]) -> str:
    """Whose allowance a run in this environment uses up: the key's, or that of the login in its folder."""
    return fingerprint({name: child[name] for name in KEYS if child.get(name)} or {"login": config_dir(child)})


def config_dir(child: Mapping[str, str]) -> str:
    """Where it has its login, its settings and its sessions."""
    return child.get("CODEX_HOME") or f"{child.get('HOME', '/').rstrip('/')}/.codex"


def places(child: Mapping[str, str], program: str) -> Places:
    """What it has on the machine: sessions in SQLite, a login that is renewed, settings, and what comes with it."""
    own, home = config_dir(child), child.get("HOME", "/").rstrip("/")
    named = [child.get(name, "") for name in ("CODEX_CA_CERTIFICATE", "SSL_CERT_FILE")]
    elsewhere = child.get("CODEX_SQLITE_HOME", "")
    return Places(
        state=(own, *([elsewhere] if elsewhere.startswith("/") else [])),
        logins=(f"{own}/auth.json", f"{own}/.credentials.json"),
        settings=(
            *(f"{own}/{name}" for name in STEERED_BY),
            f"{home}/.agents",
            *(path for path in named if path.startswith("/")),
        ),
        programs=_beside(program),
        fresh=tuple(f"{own}/{name}" for name in FRESH),
    )


def find(command: str, path: str | None) -> str | None:
    """The native program behind `command`; None when there is none of that name. `path`: the PATH to look in.

    npm installs a script of Node that starts it: killed, that one would leave the program behind, with its pipes.
    """
    found = shutil.which(command, path=path)
    if found is None:
        return None
    real = Path(os.path.realpath(found))
    return found if real.name != "codex.js" else str(_native(real) or found)


def _native(script: Path) -> Path | None:
    """The binary of the platform's package, in any of the places where a package manager may have put it."""
    system = {"darwin": "darwin", "win32": "win32"}.get(sys.platform, "linux")
    machine = "arm64" if platform.machine() in ("arm64", "aarch64") else "x64"
    package = f"@openai/codex-{system}-{machine}"
    folders = [folder for parent in script.parents for folder in (parent / package, parent / "node_modules" / package)]
    for folder in (*folders, script.parent.parent):
        for binary in sorted(folder.glob("vendor/*/bin/codex")):
            if os.access(binary, os.X_OK):
                return binary
    return None


def _beside(program: str) -> tuple[str, ...]:
    """The folder of helpers that the program was packed with."""
    folder = Path(os.path.realpath(program)).parent.parent
    return (str(folder),) if (folder / "codex-package.json").is_file() else ()


def toml(value: object) -> str:
    """The value as TOML on one line."""
    match value:
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case str():
            return json.dumps(clean(value), ensure_ascii=False).replace("\x7f", "\\u007f")
        case Mapping():
            return "{" + ",".join(f"{toml(name)}={toml(item)}" for name, item in value.items()) + "}"
        case Sequence():
            return "[" + ",".join(toml(item) for item in value) + "]"
    raise TypeError(f"{type(value).__name__} is nothing to say in TOML")
