"""What one machine can do by its own settings: agents, sandboxes, projects. Needs no store."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from pilot.backends import build
from pilot.config.schema import ExecutorSettings, ProjectSettings, Settings
from pilot.domain.agent import Backend, Sandbox
from pilot.domain.budget import Budget
from pilot.domain.errors import PilotError, UsageError
from pilot.domain.execution import Execution
from pilot.domain.pointer import MACHINE, by_machine
from pilot.domain.redact import Redactor
from pilot.runner.identity import repository_key, url_key, without_secrets
from pilot.runner.sandbox import make_sandbox
from pilot.runner.sandbox_machine import Bwrap, Missing, find_sandbox, probe
from pilot.runner.workspace import Workspace


@dataclass(slots=True, kw_only=True)
class Machine:
    """One process's settings, and what they make of an execution. Projects go by the ids that executions carry."""

    settings: Settings
    state_dir: Path
    projects: dict[int, ProjectSettings] = field(default_factory=dict)
    hidden: tuple[Path, ...] = ()
    """Files that no agent may see: the configuration and its variables."""
    redact: Redactor = field(default_factory=Redactor)
    """Takes what is secret by these settings out of what is kept, shown or sent."""
    _served: dict[int, ProjectSettings] = field(default_factory=dict)  # also those that a reload has taken out
    _backends: dict[tuple[int, str], Backend] = field(default_factory=dict)  # by project and name
    _sandbox: Bwrap | Missing | None = None

    def own(self, execution: Execution) -> ProjectSettings:
        """Its project's settings. What runs comes to its end, also when a reload has taken its project out."""
        return self._served[execution.project_id]

    def backend(self, execution: Execution) -> Backend:
        """The agent that this execution was routed to, by its project's settings; none for a machine's work."""
        name = MACHINE if by_machine(execution.payload) else execution.backend
        key = (execution.project_id, name)
        if key not in self._backends:
            executor = self.settings.executor_for(self.own(execution))
            self._backends[key] = build(name, executor)
        return self._backends[key]

    def budget(self) -> Budget:
        """What this process may spend."""
        own = self.settings.budget
        return Budget(own.per_execution_usd, own.per_day_usd)

    def executor(self, execution: Execution) -> ExecutorSettings:
        """How the execution's project runs its agents."""
        return self.settings.executor_for(self.own(execution))

    def confine(self, execution: Execution, executor: ExecutorSettings, workspace: Workspace) -> Sandbox | None:
        """The sandbox of one attempt, as its settings and this machine have it. Raises `ConfigError`."""
        if executor.sandbox == "none":
            return None
        if executor.sandbox == "auto" and not self.backend(execution).capabilities().sandbox:
            return None  # an agent that can't be kept in; asked for by name, it refuses
        if self._sandbox is None:
            self._sandbox = probe(os.environ)
        bwrap = find_sandbox(executor.sandbox, self._sandbox)
        if bwrap is None:
            return None
        return make_sandbox(
            bwrap,
            state_dir=self.state_dir,
            project_id=execution.project_id,
            workspace=workspace,
            paths=executor.sandbox_paths,
            # what stands in the checkout that an agent works in is the project's own affair
            hidden=[path for path in self.hidden if not path.is_relative_to(workspace.path)],
        )


def identity_of(own: ProjectSettings) -> tuple[str, str]:
    """A project's key and place. Raises `UsageError` for a path that is no repository."""
    if own.url is not None:
        return url_key(own.url), without_secrets(own.url)
    assert own.path is not None  # noqa: S101  the schema wants one of the two
    try:
        key, root = repository_key(own.path)
    except (OSError, PilotError) as error:
        raise UsageError(f"project {own.name}: {error}") from error
    return key, str(root)


def secret_files(config: Path | None) -> tuple[Path, ...]:
    """The configuration and the variables beside it, where they really are."""
    if config is None:
        return ()
    return tuple(path.resolve() for path in (config, config.absolute().parent / ".env") if path.exists())
