"""What is known of agents that speak the Agent Client Protocol besides the protocol itself. Pure.

An agent that is not in here works all the same: what it needs of pilot's environment stands in
`executor.environment`, and what it has of its own on the machine in `executor.sandbox_paths`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from pilot.backends.claude_cli import FRESH, STEERED_BY
from pilot.backends.opencode_cli import UNPACKED, plugins_in
from pilot.backends.opencode_login import is_renewed
from pilot.domain.agent import Places
from pilot.domain.text import fingerprint

NET = (
    "HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "NO_PROXY", "no_proxy", "NODE_EXTRA_CA_CERTS",
    "SSL_CERT_FILE",
)  # fmt: skip
"""How the network is reached from here: handed on to every agent."""
_PROVIDERS = ("ANTHROPIC_API_KEY", "OPENAI_API_KEY", "GEMINI_API_KEY", "OPENROUTER_API_KEY")
_CONFIG = ("XDG_CONFIG_HOME", ".config")
_DATA = ("XDG_DATA_HOME", ".local/share")
_STATE = ("XDG_STATE_HOME", ".local/state")
_CACHE = ("XDG_CACHE_HOME", ".cache")
_XDG = tuple(variable for variable, _ in (_CONFIG, _DATA, _STATE, _CACHE))

_OPENCODE_STEERED_BY = (
    "opencode.json", "opencode.jsonc", "config.json", "AGENTS.md", "agent", "agents", "command", "commands", "mode",
    "modes", "plugin", "plugins", "skill", "skills", "tool", "tools",
)  # fmt: skip

Place = tuple[str, str, str]
"""A variable that names a folder, what that is below the home when it is not set, and a name in there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """One agent.

    `keys`: variables one of which is an account. `more`: what else it needs to reach its model.
    `defaults` stand under what the operator sets, `forced` over it. `methods`: ways of authentication that ask
    nobody, and the variable that each needs. `named`: variables that name files or folders which steer it.
    """

    keys: tuple[str, ...] = ()
    more: tuple[str, ...] = ()
    defaults: Mapping[str, str] = field(default_factory=dict)
    forced: Mapping[str, str] = field(default_factory=dict)
    methods: Mapping[str, str] = field(default_factory=dict)
    state: tuple[Place, ...] = ()
    logins: tuple[Place, ...] = ()
    settings: tuple[Place, ...] = ()
    named: tuple[str, ...] = ()
    reads_instructions: bool = False
    """It reads the repository's AGENTS.md or CLAUDE.md by itself."""
    cost: bool = False
    """It says what a run cost."""
    counts_last_call: bool = False
    """The tokens in its answer are the last call's of its model, not the whole run's."""
    silent_end: bool = False
    """Without a last word, its run has broken off: it says so in no other way."""
    forgets_cancelled: bool = False
    """What it has done in a turn that is cancelled is gone from its session: better ended by a signal."""
    unpacks: str = ""
    """A variable for the folder in which it leaves parts of its program."""
    renewed: Callable[[str], bool] | None = None
    """Whether a login has to be written by it; any other is shown read-only."""
    fresh: tuple[Place, ...] = ()
    """See `Places`."""
    plugins: Callable[[str], list[str]] | None = None
    """Files of a workspace that it would run as its own, told not to or not."""


NOTHING = Known()
GEMINI = Known(
    keys=("GEMINI_API_KEY", "GOOGLE_API_KEY", "GOOGLE_APPLICATION_CREDENTIALS"),
    more=(
        "GOOGLE_GEMINI_BASE_URL", "GOOGLE_VERTEX_BASE_URL", "GOOGLE_CLOUD_PROJECT", "GOOGLE_CLOUD_LOCATION",
        "GOOGLE_GENAI_USE_VERTEXAI", "GOOGLE_GENAI_USE_GCA",
    ),
    # without it the CLI starts itself a second time, and the first one obeys no signal
    defaults={"GEMINI_CLI_NO_RELAUNCH": "1"},
    methods={"gemini-api-key": "GEMINI_API_KEY", "vertex-ai": "GOOGLE_GENAI_USE_VERTEXAI"},
    state=(("HOME", "", ".gemini"),),
    logins=(("HOME", "", ".gemini/oauth_creds.json"), ("HOME", "", ".gemini/google_accounts.json")),
    settings=tuple(
        ("HOME", "", f".gemini/{name}")
        for name in (
            "settings.json", "trustedFolders.json", ".env", "GEMINI.md", "commands", "extensions", "policies",
            "agents", "hooks", "skills",
        )
    ),
    named=("GOOGLE_APPLICATION_CREDENTIALS",),
    silent_end=True,
    forgets_cancelled=True,
)  # fmt: skip
OPENCODE = Known(
    keys=(*_PROVIDERS, "GOOGLE_GENERATIVE_AI_API_KEY", "GROQ_API_KEY", "MISTRAL_API_KEY", "XAI_API_KEY",
          "DEEPSEEK_API_KEY", "OPENCODE_API_KEY"),
    more=("OPENCODE_CONFIG", "OPENCODE_CONFIG_CONTENT", "OPENCODE_CONFIG_DIR", *_XDG),
    defaults={"OPENCODE_DISABLE_AUTOUPDATE": "1"},
    # a repository's own settings could run commands here, and send the account's key to another address
    forced={"OPENCODE_DISABLE_PROJECT_CONFIG": "1"},
    state=tuple((*base, "opencode") for base in (_DATA, _STATE, _CACHE, _CONFIG)),
    logins=((*_DATA, "opencode/auth.json"),),
    # it does not start where it can't write into this folder; what steers it in there stays as it is
    settings=tuple((*_CONFIG, f"opencode/{name}") for name in _OPENCODE_STEERED_BY),
    named=("OPENCODE_CONFIG", "OPENCODE_CONFIG_DIR"),
    plugins=plugins_in,
    renewed=is_renewed,
    fresh=((*_CACHE, "opencode/models.json"),),
    unpacks=UNPACKED,
    cost=True,
    counts_last_call=True,
)  # fmt: skip
CLAUDE = Known(
    keys=("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "CLAUDE_CODE_OAUTH_TOKEN"),
    more=("ANTHROPIC_BASE_URL", "CLAUDE_CONFIG_DIR"),
    state=(("CLAUDE_CONFIG_DIR", ".claude", ""),),
    logins=(("CLAUDE_CONFIG_DIR", ".claude", ".credentials.json"),),
    settings=tuple(("CLAUDE_CONFIG_DIR", ".claude", name) for name in STEERED_BY),
    fresh=(("HOME", "", ".claude.json"), *(("CLAUDE_CONFIG_DIR", ".claude", name) for name in FRESH)),
    cost=True,
)
CODEX = Known(
    keys=("CODEX_API_KEY", "OPENAI_API_KEY"),
    more=("OPENAI_BASE_URL", "CODEX_HOME"),
    methods={"codex-api-key": "CODEX_API_KEY", "openai-api-key": "OPENAI_API_KEY"},
    state=(("CODEX_HOME", ".codex", ""),),
    logins=(("CODEX_HOME", ".codex", "auth.json"),),
    settings=tuple(("CODEX_HOME", ".codex", name) for name in ("config.toml", "AGENTS.md")),
    reads_instructions=True,
)
GOOSE = Known(
    keys=(*_PROVIDERS, "GOOGLE_API_KEY"),
    more=("GOOSE_PROVIDER", "GOOSE_MODEL", *_XDG),
    state=((*_DATA, "goose"), (*_STATE, "goose")),
    settings=((*_CONFIG, "goose"),),
)
QWEN = Known(
    keys=("OPENAI_API_KEY", "DASHSCOPE_API_KEY"),
    more=("OPENAI_BASE_URL", "OPENAI_MODEL"),
    methods={"openai": "OPENAI_API_KEY"},
    state=(("HOME", "", ".qwen"),),
    logins=(("HOME", "", ".qwen/oauth_creds.json"),),
    settings=(("HOME", "", ".qwen/settings.json"),),
)
BY_PROGRAM: Mapping[str, Known] = {
    "gemini": GEMINI,
    "gemini-cli": GEMINI,
    "opencode": OPENCODE,
    "opencode-ai": OPENCODE,
    "claude-code-acp": CLAUDE,
    "claude-agent-acp": CLAUDE,
    "codex-acp": CODEX,
    "goose": GOOSE,
    "qwen": QWEN,
    "qwen-code": QWEN,
}
"""Gemini CLI 0.61 and OpenCode 1.18 as measured, the others by what their documentation says."""


def known(argv: Sequence[str]) -> Known:
    """What is known of the agent that this command line starts, be it through `node`, `npx` or a path."""
    return next((BY_PROGRAM[name] for word in argv if (name := _program(word)) in BY_PROGRAM), NOTHING)


def child_environment(agent: Known, environment: Mapping[str, str], environ: Mapping[str, str]) -> dict[str, str]:
    """The agent's whole environment: the request's, and what it needs of pilot's own to reach its model."""
    wanted = (*NET, *agent.keys, *agent.more)
    handed_on = {name: environ[name] for name in wanted if name in environ}
    return {**agent.defaults, **handed_on, **environment, **agent.forced}


def places(agent: Known, argv: Sequence[str], child: Mapping[str, str]) -> Places:
    """What the agent has on the machine, its script if an interpreter runs it, and files that variables name."""
    named = (child.get(name, "") for name in (*agent.named, "NODE_EXTRA_CA_CERTS"))
    logins = _paths(agent.logins, child)
    kept = tuple(file for file in logins if agent.renewed is not None and not agent.renewed(file))
    return Places(
        state=_paths(agent.state, child),
        logins=tuple(file for file in logins if file not in kept),
        settings=(*_paths(agent.settings, child), *kept, *(path for path in named if path.startswith("/"))),
        programs=tuple(word for word in argv[1:] if word.startswith("/")),
        fresh=_paths(agent.fresh, child),
    )


def account(argv: Sequence[str], agent: Known, child: Mapping[str, str]) -> str:
    """Whose allowance a run uses up: the keys that it gets, or the login of this program in this home."""
    facts = {name: child[name] for name in (*agent.keys, *agent.more) if child.get(name)}
    if not any(name in facts for name in agent.keys):
        facts |= {"program": " ".join(argv), "home": child.get("HOME", "")}
    return fingerprint(facts)


def _program(word: str) -> str:
    """The name of the program, or package, that a word of a command line names."""
    return PurePosixPath(word).name.partition("@")[0].removesuffix(".js")


def _paths(wanted: Sequence[Place], child: Mapping[str, str]) -> tuple[str, ...]:
    home = PurePosixPath(child.get("HOME", ""))
    found = (PurePosixPath(child.get(variable) or home / default) / name for variable, default, name in wanted)
    return tuple(str(path) for path in found if path.is_absolute())
