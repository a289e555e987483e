"""The coding agents that pilot can drive, by name."""

from __future__ import annotations

import os
from collections.abc import Mapping

from pilot.backends.plugins import installed, plugged_in
from pilot.config.conflicts import suggestion
from pilot.config.executor import BUILT_IN, ExecutorSettings
from pilot.domain.agent import Backend
from pilot.domain.errors import ConfigError
from pilot.domain.pointer import MACHINE

__all__ = ["build", "known_backends"]


def known_backends(executor: ExecutorSettings) -> list[str]:
    """Every name that `build` makes something of: types, profiles, plug-ins."""
    types = {*BUILT_IN, *installed()}
    if not executor.command.argv:
        types.discard("command")
    return sorted({*types, *executor.profiles})


def build(name: str, executor: ExecutorSettings, environ: Mapping[str, str] | None = None) -> Backend:
    """The backend that a route, a project or `--backend` calls so: a type, a profile of `executor`, or a plug-in.

    `environ` is pilot's own environment (None: this process's). A plug-in is an entry point of the group
    `pilot.backends` whose name is the type; it is called with the name and the settings, the profile's over the
    executor's, and gives a `Backend`. Raises `ConfigError` in words for what can't be built.
    """
    if name == MACHINE:  # nobody's to configure
        from pilot.backends.payload import PayloadBackend

        return PayloadBackend()
    environ = os.environ if environ is None else environ
    settings = executor.resolve(name)
    environment = settings.environment.variables(environ)
    match settings.type:
        case "claude-code":
            from pilot.backends.claude_code import ClaudeCode

            return ClaudeCode(settings.claude_code, environ=environ, environment=environment, name=name)
        case "opencode":
            from pilot.backends.opencode import OpenCode

            return OpenCode(settings.opencode, environ=environ, environment=environment, name=name)
        case "codex":
            from pilot.backends.codex import Codex

            return Codex(settings.codex, environ=environ, environment=environment, name=name)
        case "acp":
            from pilot.backends.acp import Acp

            return Acp(settings.acp, environ=environ, environment=environment, name=name)
        case "command":
            from pilot.backends.command import Command

            return Command(settings.command, name=name, environment=environment)
        case "external":
            from pilot.backends.external import External

            return External(name=name)
        case kind if kind in installed():
            return plugged_in(kind, name, settings)
        case kind:
            names = [*BUILT_IN, *executor.profiles, *installed()]
            raise ConfigError([f"no agent '{kind}'{suggestion(kind, names)}: there are {', '.join(names)}"])
