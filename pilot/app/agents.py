"""What pilot.yaml asks of its agents, against what they can do: told at once, before anything runs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial

from pilot.backends import build
from pilot.config.executor import ExecutorSettings
from pilot.config.schema import Settings
from pilot.config.uses import own_executors, uses
from pilot.domain.agent import Backend, Capabilities
from pilot.domain.errors import ConfigError, UsageError
from pilot.runner.sandbox_machine import Bwrap, Missing, probe

Machine = Callable[[], Bwrap | Missing]
"""Tells what sandbox this machine has, found out when it is first asked for."""


def problems(settings: Settings, environ: Mapping[str, str] | None = None) -> list[str]:
    """Every agent that can't be had and everything that one can't do, a line each, with its key in pilot.yaml.

    What the file says about projects costs one look per way in which agents are set up, however many there are.
    """
    environ = os.environ if environ is None else environ
    machine = _machine(environ)
    everywhere = dict.fromkeys(_problems(settings.executor, environ, machine))
    found = [f"executor.{key}: {what}" for key, what in everywhere]
    for project, executor in own_executors(settings):
        found += [
            f"projects.{project.name}.executor.{key}: {what}"
            for key, what in dict.fromkeys(_problems(executor, environ, machine))
            if (key, what) not in everywhere
        ]
    return found


def check(settings: Settings) -> None:
    """Raise `ConfigError` with all `problems`."""
    if found := problems(settings):
        raise ConfigError(found)


def check_direct(name: str, model: str | None, executor: ExecutorSettings) -> None:
    """Whether a task can be run here by this agent. Raises `UsageError` or `ConfigError` before it is queued."""
    able = build(name, executor).capabilities()
    if not able.runs:
        raise UsageError(f"{name} runs nothing here; `pilot enqueue` leaves a task to a worker that claims over HTTP")
    if model is not None and not able.model:
        raise UsageError(f"{name} can't be given a model; run it without --model")
    if (detail := _no_sandbox(name, able, executor, _machine(os.environ))) is not None:
        raise ConfigError([f"executor.sandbox: {detail}"])


def _problems(executor: ExecutorSettings, environ: Mapping[str, str], machine: Machine) -> Iterator[tuple[str, str]]:
    """By key under `executor`."""
    known: dict[str, Capabilities | str] = {}
    for use in uses(executor):
        first = use.name not in known
        if first:
            known[use.name] = _able(use.name, executor, environ)
        able = known[use.name]
        if isinstance(able, str):
            if first:  # one line for each agent that is not to be had
                yield use.key, able
            continue
        if use.model is not None and not able.model:
            yield use.model, f"{use.name} can't be given a model; leave it out"
        if use.stands_in and not able.runs:
            yield use.key, f"{use.name} runs nothing here, so it can't do the work of another"
        if first and (detail := _no_sandbox(use.name, able, executor, machine)) is not None:
            yield _sandbox_key(use.name, executor), detail


def _machine(environ: Mapping[str, str]) -> Machine:
    return cache(partial(probe, environ))


def _able(name: str, executor: ExecutorSettings, environ: Mapping[str, str]) -> Capabilities | str:
    """What this agent can do, or why it is not to be had."""
    try:
        return _capabilities(build(name, executor, environ))
    except ConfigError as error:
        return "; ".join(error.problems)


def _capabilities(backend: Backend) -> Capabilities:
    try:
        able = backend.capabilities()
    except Exception as error:  # the border to a plug-in
        raise ConfigError([f"{backend.name} does not say what it can do: {error!r}"]) from error
    if not isinstance(able, Capabilities):
        raise ConfigError([f"{backend.name} does not say what it can do: {able!r} are no Capabilities"])
    return able


def _no_sandbox(name: str, able: Capabilities, executor: ExecutorSettings, machine: Machine) -> str | None:
    """Why the sandbox that is asked for by name is not to be had; None when it is, or none is asked for."""
    wanted = executor.resolve(name).sandbox
    if wanted != "bubblewrap" or not able.runs:
        return None
    if not able.sandbox:
        return f"{wanted} is asked for, and {name} does not run in pilot's sandbox; say auto or none for it"
    found = machine()
    return f"{found.why}; {found.remedy}, or say none" if isinstance(found, Missing) else None


def _sandbox_key(name: str, executor: ExecutorSettings) -> str:
    profile = executor.profiles.get(name)
    own = profile is not None and "sandbox" in profile.model_fields_set
    return f"profiles.{name}.sandbox" if own else "sandbox"
