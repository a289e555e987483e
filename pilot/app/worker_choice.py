"""Which agent of this machine does what a worker was given: the server's choice is a wish, its own settings decide."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import replace

from pilot.app import agents
from pilot.app.machine import Machine, identity_of, secret_files
from pilot.backends import build, known_backends
from pilot.config.load import Loaded
from pilot.config.locate import ensure_state_dir
from pilot.config.schema import ExecutorSettings, ProjectSettings, Settings
from pilot.config.secrets import secrets_of
from pilot.domain.errors import PilotError, UsageError
from pilot.domain.execution import Execution
from pilot.domain.pointer import MACHINE, by_machine
from pilot.domain.redact import Redactor
from pilot.domain.routing import choose


def machine_of(loaded: Loaded, wanted: Collection[str], backend: str | None) -> Machine:
    """This machine, as a worker for these projects (names; none: all it has). Raises `UsageError` and `ConfigError`."""
    settings = loaded.settings
    if not settings.projects:
        raise UsageError("no project in the configuration: a worker claims only for those that it has")
    names = {own.name for own in settings.projects}
    if unknown := set(wanted) - names:
        raise UsageError(f"no project {sorted(unknown)[0]!r} in the configuration; it has {', '.join(sorted(names))}")
    agents.check(settings)
    ensure_state_dir(settings.state_dir)
    mine = {_id_of(identity_of(own)[0]): own for own in settings.projects}
    for own in settings.projects:
        if own.name in wanted or not wanted:
            check_choice(settings, own, backend)
    return Machine(
        settings=settings,
        state_dir=settings.state_dir,
        projects=mine,
        _served=dict(mine),
        hidden=secret_files(loaded.path),
        redact=Redactor(secrets_of(settings)),
    )


def _id_of(key: str) -> int:
    """A project's number on this machine: not the server's, and the same every time."""
    return int(hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()[:12], 16) | 1 << 48


def check_choice(settings: Settings, own: ProjectSettings, asked: str | None) -> None:
    """Raise `UsageError` when nothing here could do the project's tasks."""
    executor = settings.executor_for(own)
    if asked is not None and not _runs(asked, executor):
        raise UsageError(f"no backend {asked!r} that runs here; there are {', '.join(known_backends(executor))}")
    if asked is None and not _runs(executor.type, executor):
        raise UsageError(
            f"project {own.name}: executor {executor.type} runs nothing here. Name an agent with --backend, or give "
            "this machine a pilot.yaml of its own (--config) that does"
        )


def chosen(settings: Settings, own: ProjectSettings, asked: str | None, execution: Execution) -> Execution:
    """The execution with the agent that does it here: the one `asked` for, the server's, else this machine's own."""
    executor = settings.executor_for(own)
    if by_machine(execution.payload):
        return replace(execution, backend=MACHINE, model=None)
    if asked is not None and asked != execution.backend:
        return replace(execution, backend=asked, model=None)
    if _runs(execution.backend, executor):
        return execution
    choice = choose(
        executor.domain_routes(),
        executor.type,
        executor.fallback,
        project=own.name,
        kind=execution.kind,
        labels=execution.labels,
        title=execution.title,
        source=execution.source,
    )
    backend = choice.backend if _runs(choice.backend, executor) else executor.type
    return replace(execution, backend=backend, model=choice.model)


def _runs(name: str, executor: ExecutorSettings) -> bool:
    """Whether this machine has it, and it does something."""
    if name not in known_backends(executor):
        return False
    try:
        return build(name, executor).capabilities().runs
    except PilotError:
        return False
