"""What OpenCode is given: the command line and environment of a server of its own, and a prompt. Pure, but for files.

A repository's own `opencode.json` and `.opencode` could have it run commands and send the account's key elsewhere; a
server that pilot starts is told to leave them alone. 1.18 does so, but for plugins: a half-built second reading of
the configuration imports those as soon as it works there, and no setting keeps it from doing so (`plugins_in`).
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pilot.backends.opencode_login import is_renewed
from pilot.backends.reading import as_event, as_list, parsed
from pilot.domain.agent import AgentRequest, Places
from pilot.domain.text import clean, fingerprint

_ACCOUNT = (
    "OPENCODE_CONFIG", "OPENCODE_CONFIG_DIR", "OPENCODE_AUTH_CONTENT", "XDG_CONFIG_HOME", "XDG_DATA_HOME",
    "XDG_CACHE_HOME", "XDG_STATE_HOME", "HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "NO_PROXY",
    "no_proxy", "NODE_EXTRA_CA_CERTS",
)  # fmt: skip
"""What it needs to find its settings and to reach a model, handed on from pilot's own environment."""
_AWS = (
    "AWS_REGION", "AWS_PROFILE", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN",
    "AWS_BEARER_TOKEN_BEDROCK",
)  # fmt: skip
_KEYS: Mapping[str, tuple[str, ...]] = {
    "amazon-bedrock": _AWS,
    "azure": ("AZURE_API_KEY", "AZURE_RESOURCE_NAME"),
    "google": ("GOOGLE_GENERATIVE_AI_API_KEY", "GEMINI_API_KEY"),
    "google-vertex": ("GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_CLOUD_PROJECT", "GOOGLE_VERTEX_LOCATION"),
    "google-vertex-anthropic": ("GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_CLOUD_PROJECT", "GOOGLE_VERTEX_LOCATION"),
}
"""Accounts by provider, where they are not `<PROVIDER>_API_KEY`; nobody else's key is handed on."""
STEERED_BY = (
    "opencode.json", "opencode.jsonc", "config.json", "AGENTS.md", "agent", "agents", "command", "commands", "mode",
    "modes", "plugin", "plugins", "skill", "skills", "tool", "tools",
)  # fmt: skip
"""What of a folder of its settings steers it."""
_DEFAULTS = {"OPENCODE_DISABLE_MODELS_FETCH": "1", "OPENCODE_DISABLE_LSP_DOWNLOAD": "1"}
_FORCED = {
    "OPENCODE_DISABLE_AUTOUPDATE": "1",
    "OPENCODE_DISABLE_PROJECT_CONFIG": "1",
    "OPENCODE_EXPERIMENTAL_DISABLE_FILEWATCHER": "1",
}
CONTENT = "OPENCODE_CONFIG_CONTENT"
PASSWORD = "OPENCODE_SERVER_PASSWORD"  # noqa: S105  the variable's name
USERNAME = "OPENCODE_SERVER_USERNAME"
UNPACKED = "BUN_TMPDIR"
"""Where it leaves libraries out of its own program, several MB for each start that nobody ever removes."""
_DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_SESSION = re.compile(r"ses_[A-Za-z0-9]{1,64}")
_COMMENT = re.compile(r'("(?:\\.|[^"\\])*")|//[^\n]*|/\*.*?\*/', re.DOTALL)
_LAST_COMMA = re.compile(r'("(?:\\.|[^"\\])*")|,(?=\s*[\]}])')


class Model(NamedTuple):
    """A model as OpenCode names it: `provider/id`, and ids may hold slashes."""

    provider: str
    id: str


def chosen(model: str | None) -> Model | None:
    """The parts of `provider/model`; None where it is not said in full, since then a model would be found somewhere."""
    provider, _, name = (model or "").partition("/")
    return Model(provider, name) if provider.strip() and name.strip() else None


def configuration(model: Model, given: str = "") -> str:
    """OPENCODE_CONFIG_CONTENT of a server for one attempt, which stands over the user's own files.

    `given`: what the operator has there, kept where it does not contradict. Raises ValueError when that is no JSON.
    """
    own = {
        "autoupdate": False,
        "share": "disabled",
        "snapshot": False,  # a second git of the workspace; pilot keeps the work itself
        "lsp": False,
        "formatter": False,
        "model": "/".join(model),
        "small_model": "/".join(model),  # else it finds one itself, and the code leaves for somewhere else
        "enabled_providers": [model.provider],
        # what is asked with nobody there to answer waits for ever; pilot has its own way of asking (prompt.py)
        "permission": {"external_directory": "deny", "question": "deny", "doom_loop": "deny"},
    }
    theirs = parsed(given.encode(errors="replace")) if given.strip() else {}
    if theirs is None:
        raise ValueError("it is no JSON object")
    return json.dumps(_over(own, theirs))


def _over(own: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    """Both, ours where they meet."""
    together = {**theirs, **own}
    for name, value in own.items():
        other = theirs.get(name)
        if isinstance(value, dict) and isinstance(other, dict):
            together[name] = _over(value, other)
    return together


def child_environment(
    environment: Mapping[str, str], environ: Mapping[str, str], model: Model | None, **server: str
) -> dict[str, str]:
    """The server's whole environment, which every tool of the agent inherits: the request's, the model's account.

    The request's own variables stand over pilot's and over the defaults, not over the forced ones. `server`: more.
    """
    wanted = [*_ACCOUNT, *(() if model is None else (*_keys(model), f"{_prefix(model)}_BASE_URL"))]
    handed_on = {name: environ[name] for name in wanted if name in environ}
    return {**_DEFAULTS, **handed_on, **environment, **_FORCED, **server}


def keys_in(child: Mapping[str, str], model: Model) -> list[str]:
    """Variables that are an account with the model's provider."""
    return [name for name in _keys(model) if child.get(name)]


def account(child: Mapping[str, str], model: Model | None, server: str) -> str:
    """Whose allowance a run uses up: the key's, or that of the login in its folder."""
    keys = {} if model is None else {name: child[name] for name in keys_in(child, model)}
    provider = {} if model is None else {"provider": model.provider}
    return fingerprint({**provider, "server": server, **(keys or {"login": login(child)})})


def _prefix(model: Model) -> str:
    return re.sub(r"[^A-Z0-9]", "_", model.provider.upper())


def _keys(model: Model) -> tuple[str, ...]:
    return _KEYS.get(model.provider, (f"{_prefix(model)}_API_KEY",))


def _folder(child: Mapping[str, str], variable: str, below: str) -> str:
    base = child.get(variable, "")
    if not base.startswith("/"):
        base = f"{child.get('HOME', '/').rstrip('/')}/{below}"
    return f"{base.rstrip('/')}/opencode"


def login(child: Mapping[str, str]) -> str:
    """The file of the accounts that `opencode auth login` makes."""
    return f"{_folder(child, 'XDG_DATA_HOME', '.local/share')}/auth.json"


def places(child: Mapping[str, str], command: str) -> Places:
    """What the program has on the machine."""
    data = _folder(child, "XDG_DATA_HOME", ".local/share")
    cache = _folder(child, "XDG_CACHE_HOME", ".cache")
    state = _folder(child, "XDG_STATE_HOME", ".local/state")
    config = _folder(child, "XDG_CONFIG_HOME", ".config")
    more = child.get("OPENCODE_CONFIG_DIR", "")
    written = (config, more) if more.startswith("/") else (config,)
    own = [f"{child['HOME'].rstrip('/')}/.opencode"] if child.get("HOME", "").startswith("/") else []
    named = [child.get(name, "") for name in ("OPENCODE_CONFIG", "NODE_EXTRA_CA_CERTS")]
    accounts = (f"{data}/auth.json",)
    renewed = is_renewed(accounts[0])
    return Places(
        # it does not start where it can't write into its folders of settings; what steers it in there stays as it is
        state=(data, cache, state, *written),
        logins=(*(accounts if renewed else ()), f"{data}/mcp-auth.json"),
        settings=(
            *(() if renewed else accounts),
            *(f"{folder}/{name}" for folder in (*written, *own) for name in STEERED_BY),
            *(path for path in named if path.startswith("/")),
        ),
        programs=_packages(command, child.get("PATH")),
        fresh=(f"{cache}/models.json",),  # it says to which address a provider's key is sent
    )


def _packages(command: str, path: str | None) -> tuple[str, ...]:
    """Where npm has put the program: what is on PATH is a script that starts the real one, a package beside it."""
    found = shutil.which(command, path=path)
    if found is None:
        return ()
    parts = Path(found).resolve().parts
    if "node_modules" not in parts:
        return ()
    return (str(Path(*parts[: parts.index("node_modules") + 1])),)


def plugins_in(workspace: str) -> list[str]:
    """Files of a repository that the program would import as soon as it works there, asked or not; or that name such.

    Packages named in a configuration are fetched from a registry, and are somebody else's; they are not meant.
    """
    folder = Path(workspace)
    found = []
    try:
        for kind in ("plugin", "plugins"):
            found += [path for end in ("ts", "js") for path in (folder / ".opencode" / kind).glob(f"*.{end}")]
        for place in (folder, folder / ".opencode"):
            for name in ("opencode.json", "opencode.jsonc"):
                if (place / name).is_file() and _names_files((place / name).read_text(errors="replace")):
                    found.append(place / name)
    except OSError:
        return [f"{folder / '.opencode'} (can't be read)"]
    return sorted(str(path.relative_to(folder)) for path in found)


def _names_files(text: str) -> bool:
    """Whether a configuration, JSON with comments, names plugins that are files; what can't be read may."""
    for pattern in (_COMMENT, _LAST_COMMA):
        text = pattern.sub(lambda found: found[1] or "", text)
    settings = parsed(text.encode(errors="replace"))
    if settings is None:
        return True
    named = [one for key in ("plugin", "plugins") for one in as_list(settings.get(key))]
    first = [one[0] if isinstance(one, list) and one else as_event(one).get("package", one) for one in named]
    return any(str(one).startswith((".", "/", "file:")) for one in first)


def is_session(text: str) -> bool:
    """Whether it is written as its session ids are; anything else would be a path of its own in a URL."""
    return _SESSION.fullmatch(text) is not None


def message_id(now: int, random: int, prefix: str = "msg") -> str:
    """An id for a message (or, with its `prefix`, a part), as the program makes them: later ones sort behind.

    `now` is UTC milliseconds, `random` some 80 bits. With ids of ours, a prompt can be sent twice and is done once.
    """
    tail = ""
    for _ in range(14):
        random, digit = divmod(random, len(_DIGITS))
        tail += _DIGITS[digit]
    return f"{prefix}_{(now * 0x1000 + 1) % (1 << 48):012x}{tail}"


def prompt(request: AgentRequest, model: Model, message: str, part: str) -> dict[str, Any]:
    """The body of a prompt. The model is said each time: an earlier one would else stick to the session."""
    body: dict[str, Any] = {
        "messageID": message,
        "model": {"providerID": model.provider, "modelID": model.id},
        "parts": [{"id": part, "type": "text", "text": clean(request.prompt)}],
    }
    if request.instructions.strip():
        body["system"] = clean(request.instructions)
    return body
