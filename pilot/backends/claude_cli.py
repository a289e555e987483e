"""What Claude Code is given: arguments, environment, and lines on its standard input. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping

from pilot.config.executor import ClaudeCodeSettings
from pilot.domain.agent import AgentRequest, Places
from pilot.domain.text import clean, fingerprint

INSTRUCTIONS_LIMIT = 96 << 10
"""Bytes of one argument; Linux takes no more than 128 KiB."""

ACCOUNT = (
    "ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "ANTHROPIC_BASE_URL", "ANTHROPIC_CUSTOM_HEADERS",
    "CLAUDE_CODE_OAUTH_TOKEN", "CLAUDE_CONFIG_DIR", "HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy",
    "NO_PROXY", "no_proxy", "NODE_EXTRA_CA_CERTS",
)  # fmt: skip
"""What the CLI needs to reach its model, handed on from pilot's own environment besides `executor.environment`."""
CLOUDS: Mapping[str, tuple[str, ...]] = {
    "CLAUDE_CODE_USE_BEDROCK": (
        "AWS_REGION", "AWS_PROFILE", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN",
        "AWS_BEARER_TOKEN_BEDROCK", "ANTHROPIC_BEDROCK_BASE_URL",
    ),
    "CLAUDE_CODE_USE_VERTEX": (
        "CLOUD_ML_REGION", "ANTHROPIC_VERTEX_PROJECT_ID", "ANTHROPIC_VERTEX_BASE_URL",
        "GOOGLE_APPLICATION_CREDENTIALS",
    ),
    "CLAUDE_CODE_USE_FOUNDRY": (
        "ANTHROPIC_FOUNDRY_RESOURCE", "ANTHROPIC_FOUNDRY_BASE_URL", "ANTHROPIC_FOUNDRY_API_KEY",
    ),
}  # fmt: skip
"""The same for a model in somebody's cloud, only when its switch is set."""
DEFAULTS = {
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    "DISABLE_AUTOUPDATER": "1",
    # the CLI's own ten retries take three minutes in which nobody knows why; admission knows better when
    "CLAUDE_CODE_MAX_RETRIES": "2",
    # what one ticket has it remember would steer the next one that is worked on in the same folder
    "CLAUDE_CODE_DISABLE_AUTO_MEMORY": "1",
    "CLAUDE_CODE_DISABLE_CRON": "1",
}
NOT_HERE = ("EnterWorktree", "ExitWorktree", "ScheduleWakeup")
"""Tools that would take the work out of its workspace, or wait for somebody to wake a process that has ended."""
FORCED = {
    # else `@/any/file` in an issue puts that file into the prompt
    "CLAUDE_CODE_DISABLE_ATTACHMENTS": "1",
}
STEERED_BY = (
    "settings.json", "settings.local.json", "CLAUDE.md", "agents", "commands", "hooks", "output-styles", "plugins",
    "rules", "skills",
)  # fmt: skip
"""What in the CLI's folder a run must not leave behind for the next: it could run commands, or give orders."""
FRESH = (".claude.json", ".config.json", "remote-settings.json")
"""What it keeps for itself, and obeys: variables in there stand over those that it is started with."""
KEYS = ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "CLAUDE_CODE_OAUTH_TOKEN", *CLOUDS)
"""One of these in the environment is an account."""


def arguments(settings: ClaudeCodeSettings, request: AgentRequest, session: str, *, resume: bool) -> tuple[str, ...]:
    """The command line.

    `--setting-sources user` and `--strict-mcp-config`: a repository's own settings could run commands on this
    machine, and send the account's key to another address.
    """
    argv = [settings.command, "-p", "--input-format", "stream-json", "--output-format", "stream-json", "--verbose"]
    argv += ["--setting-sources", "user", "--strict-mcp-config", "--permission-mode", settings.permission_mode]
    argv.append(f"--disallowedTools={','.join(NOT_HERE)}")
    argv += ["--resume" if resume else "--session-id", session]
    if model := request.model or settings.model:
        argv.append(f"--model={model}")
    if settings.max_turns is not None:
        argv += ["--max-turns", str(settings.max_turns)]
    if request.budget_usd is not None:
        # 0 would be no limit, and the CLI looks at it between two requests only; the runner watches, too
        argv += ["--max-budget-usd", f"{max(request.budget_usd, 0.000001):.6f}"]
    if request.instructions:
        argv.append(f"--append-system-prompt={_bounded(request.instructions, INSTRUCTIONS_LIMIT)}")
    return (*argv, *settings.extra_args)


def child_environment(
    settings: ClaudeCodeSettings, environment: Mapping[str, str], environ: Mapping[str, str], *, root: bool
) -> dict[str, str]:
    """The CLI's whole environment: the request's, what reaches the model, and what makes it fit for a machine.

    The request's own variables stand over pilot's and over the defaults, not over the forced ones.
    """
    wanted = [*ACCOUNT]
    for switch, names in CLOUDS.items():
        if environ.get(switch):
            wanted += [switch, *names]
    account = {name: environ[name] for name in wanted if name in environ}
    # as root the CLI refuses to skip permissions unless told that the machine is there for it
    sandbox = {"IS_SANDBOX": "1"} if root and bypasses(settings) else {}
    return {**DEFAULTS, **sandbox, **account, **environment, **FORCED}


def account(child: Mapping[str, str]) -> str:
    """Whose allowance a run in this environment uses up: the key, or the login in the CLI's folder."""
    names = (*KEYS, "ANTHROPIC_BASE_URL")
    return fingerprint({name: child[name] for name in names if child.get(name)} or {"login": config_dir(child)})


def config_dir(child: Mapping[str, str]) -> str:
    """Where the CLI has its login, its settings and its sessions."""
    return child.get("CLAUDE_CONFIG_DIR") or f"{child.get('HOME', '/').rstrip('/')}/.claude"


def places(child: Mapping[str, str]) -> Places:
    """What the CLI has on the machine: sessions and a login, settings with hooks, and files that variables name."""
    own, home = config_dir(child), child.get("HOME", "/").rstrip("/")
    settings = [f"{own}/{name}" for name in STEERED_BY]
    if child.get("CLAUDE_CODE_USE_BEDROCK"):
        settings.append(f"{home}/.aws")
    named = (child.get("GOOGLE_APPLICATION_CREDENTIALS"), child.get("NODE_EXTRA_CA_CERTS"))
    return Places(
        state=(own,),
        logins=(f"{own}/.credentials.json",),
        settings=(*settings, *(path for path in named if path and path.startswith("/"))),
        fresh=(f"{home}/.claude.json", *(f"{own}/{name}" for name in FRESH)),
    )


def bypasses(settings: ClaudeCodeSettings) -> bool:
    """Whether the agent may do everything unasked."""
    return settings.permission_mode == "bypassPermissions" or "--dangerously-skip-permissions" in settings.extra_args


def message(prompt: str) -> bytes:
    """A prompt as a line of its own."""
    # a first line that begins with "/" would be a command of the CLI
    content = f" {prompt}" if prompt.startswith("/") else prompt
    return _json({"type": "user", "message": {"role": "user", "content": clean(content)}})


def _json(event: Mapping[str, object]) -> bytes:
    return json.dumps(event).encode() + b"\n"


def _bounded(text: str, limit: int) -> str:
    return clean(text).encode()[:limit].decode(errors="ignore")


INTERRUPT = _json({"type": "control_request", "request_id": "pilot", "request": {"subtype": "interrupt"}})
"""Ends the tools and the turn; the CLI exits when its standard input is closed after it."""
