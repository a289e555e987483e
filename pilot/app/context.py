"""From settings to objects: store, projects, agents, runner, dispatcher."""

from __future__ import annotations

import contextlib
import os
import socket
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Collection, Hashable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pilot import __version__
from pilot.backends import build, known_backends
from pilot.config.load import Loaded
from pilot.config.locate import ensure_state_dir
from pilot.config.schema import ExecutorSettings, ProjectSettings, Settings
from pilot.config.secrets import secrets_of
from pilot.config.uses import uses, what_is_set
from pilot.dispatch.dispatcher import Dispatcher, Limits
from pilot.dispatch.intake import Intake, TaskRequest
from pilot.domain.agent import Backend, Sandbox
from pilot.domain.budget import Budget
from pilot.domain.errors import NotFound, PilotError, UsageError
from pilot.domain.execution import Enqueued, Execution
from pilot.domain.outcome import Publication
from pilot.domain.ports import Accounts, Journal, Node, NodeKind
from pilot.domain.redact import Redactor
from pilot.domain.task import Project
from pilot.runner.git import Git
from pilot.runner.git_login import Login
from pilot.runner.identity import find_repository, repository_key, url_key, without_secrets
from pilot.runner.process import end_marked
from pilot.runner.proctree import boot_id, host_id, is_alive, start_ticks
from pilot.runner.publication import publication_of
from pilot.runner.runner import AttemptRunner
from pilot.runner.sandbox import make_sandbox
from pilot.runner.sandbox_machine import Bwrap, Missing, find_sandbox, probe
from pilot.runner.workspace import Workspace, Workspaces
from pilot.store import Store, open_store
from pilot.telemetry.logs import redact_by

HURRY = 2.0
"""Seconds between the steps in which a second signal ends what runs: asked, ended without grace, left as it is."""


def new_node(kind: NodeKind, max_running: int) -> Node:
    """This process, as the store will know it."""
    pid = os.getpid()
    return Node(
        id=f"{socket.gethostname()[:40]}-{pid}-{uuid.uuid4().hex[:6]}",
        kind=kind,
        host=host_id(),
        boot_id=boot_id(),
        pid=pid,
        start_ticks=start_ticks(pid) or 0,
        version=__version__,
        max_running=max_running,
    )


def alive(node: Node) -> bool | None:
    """Whether the node's process lives; None when it is another host's and can't be known."""
    if node.host != host_id():
        return None
    return node.boot_id == boot_id() and is_alive(node.pid, node.start_ticks)


@dataclass(slots=True)
class Context:
    """One process's view: its settings, its store, and the projects it can reach."""

    settings: Settings
    store: Store
    state_dir: Path
    projects: dict[int, ProjectSettings] = field(default_factory=dict)
    stored: dict[int, Project] = field(default_factory=dict)
    hidden: tuple[Path, ...] = ()
    """Files that no agent may see: the configuration and its variables."""
    _served: dict[int, ProjectSettings] = field(default_factory=dict)  # also those that a reload has taken out
    _backends: dict[tuple[int, str], Backend] = field(default_factory=dict)  # by project and name
    _machine: Bwrap | Missing | None = None
    redact: Redactor = field(default_factory=Redactor)
    """Takes what is secret by these settings out of what is kept, shown or sent."""

    async def configure(self, settings: Settings) -> None:
        """Serve the projects of these settings from now on."""
        entries = [(_identity(own), own) for own in settings.projects]
        times = Counter(key for (key, _), _ in entries)
        twice = ", ".join(own.name for (key, _), own in entries if times[key] > 1)
        if twice:  # before anything of it is stored
            raise UsageError(f"these projects are one repository: {twice}. Keep one of them")
        stored = await self.store.queue.register(
            [(key, own.name, place, own.max_running, own.next_after, own.max_open_prs) for (key, place), own in entries]
        )
        self.settings, self.redact = settings, Redactor(secrets_of(settings))
        self.projects = {row.id: own for row, (_, own) in zip(stored, entries, strict=True)}
        self.stored = {row.id: row for row in stored}
        self._served |= self.projects
        self._backends = {}

    async def project(self, named: str | None, *, unconfigured: bool = False) -> tuple[Project, ProjectSettings]:
        """By name, path, or (None) where one stands. `unconfigured`: any git repository will do."""
        for id, own in self.projects.items():
            if named is not None and own.name == named:
                return self.stored[id], own
        place = Path(named).expanduser() if named is not None else Path.cwd()  # noqa: ASYNC240  once per command
        root = find_repository(place) if place.exists() else None
        if root is None:
            if named is None:
                raise UsageError("not in a git repository; go into one, or name a project with -p")
            raise NotFound(f"no project {named!r} in the configuration, and no git repository there")
        key, top = repository_key(root)
        for id, row in self.stored.items():
            if row.key == key:
                return row, self.projects[id]
        if not unconfigured:
            raise NotFound(
                f"{top} is not a project of the configuration; add it to pilot.yaml (`pilot init` writes one)"
            )
        own = ProjectSettings(name=Path(top).name, path=Path(top))
        (row,) = await self.store.queue.register([(key, own.name, str(top), None)])
        self.projects[row.id], self.stored[row.id] = own, row
        self._served[row.id] = own
        return row, own

    def own(self, execution: Execution) -> ProjectSettings:
        """Its project's settings. What runs comes to its end, also when a reload has taken its project out."""
        return self._served[execution.project_id]

    def backend(self, execution: Execution) -> Backend:
        """The agent that this execution was routed to, by its project's settings."""
        key = (execution.project_id, execution.backend)
        if key not in self._backends:
            executor = self.settings.executor_for(self.own(execution))
            self._backends[key] = build(execution.backend, executor)
        return self._backends[key]

    def accounts(self, projects: Collection[int], asked: str | None = None) -> Accounts:
        """Whose allowance each backend uses up that tasks of these projects (ids) are sent to, and the one asked for.

        Not of every backend there is: some take half a second to load.
        """
        told: dict[Hashable, Mapping[str, str]] = {}  # by what is set: a fingerprint takes its time
        found: dict[int, Mapping[str, str]] = {}
        for id in projects:
            own = self.projects[id]
            key = what_is_set(own.executor)
            if key not in told:
                told[key] = _accounts_of(self.settings.executor_for(own), asked)
            found[id] = told[key]
        return found

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
        if self._machine is None:
            self._machine = probe(os.environ)
        bwrap = find_sandbox(executor.sandbox, self._machine)
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

    def intake(self) -> Intake:
        """The door for tasks."""
        return Intake(self.settings, self.store.queue, known_backends)

    def publication(self, execution: Execution, base: str) -> Publication | None:
        """The pull request that a finished change of this execution is to become; `base`: the branch it began at."""
        if self.settings.sources.github is None:
            return None
        return publication_of(self.own(execution), execution, base)

    async def open_pulls(self, project: int) -> Collection[str]:
        """The branches of a project (id) that have an open pull request, or are to get one."""
        return [pull.branch for pull in await self.store.pulls.live([project])]

    async def _login(self, url: str) -> Login | None:
        if (own := self.settings.sources.github) is None:
            return None
        from pilot.app.git_logins import login_for

        return await login_for(own, url)

    def attempts(self, journal: Journal) -> AttemptRunner:
        """What does an attempt."""
        return AttemptRunner(
            project=self.own,
            backend=self.backend,
            executor=self.executor,
            workspaces=Workspaces(self.state_dir, git=Git(logins=self._login)),
            journal=journal,
            state_dir=self.state_dir,
            store_id=self.store.id,
            booked=self.store.history.used,
            confine=self.confine,
            budget=lambda execution: self.budget().left(execution),
            redact=lambda: self.redact,
            publish=self.publication,
            live=self.open_pulls,
        )

    def dispatcher(
        self,
        node: Node,
        limits: Limits,
        projects: Collection[Project],
        journal: Journal | None = None,
        asked: str | None = None,
    ) -> Dispatcher:
        """A dispatcher of this process; `asked`: the backend that its one task is to go to."""
        return Dispatcher(
            self.store.queue,
            self.attempts(journal or self.store.journal),
            node=node,
            projects=projects,
            clock=self.store.database.clock,
            limits=limits,
            accounts=self.accounts([project.id for project in projects], asked),
            budget=self.budget(),
            rules=self.settings.retry_rules(),
            alive=alive,
            # Never a later claim's: another node may have taken the row back, and begun again, meanwhile.
            end_processes=lambda id, fence: end_marked(f"{self.store.id}:{id}:", upto=fence),
        )


def _accounts_of(executor: ExecutorSettings, asked: str | None) -> dict[str, str]:
    used = {use.name for use in uses(executor)} | ({asked} if asked else set())
    found: dict[str, str] = {}
    for name in sorted(used):
        with contextlib.suppress(PilotError):  # whoever runs it is told
            found[name] = build(name, executor).account()
    return found


def _identity(own: ProjectSettings) -> tuple[str, str]:
    """Key and place. Raises `UsageError` for a path that is no repository."""
    if own.url is not None:
        return url_key(own.url), without_secrets(own.url)
    assert own.path is not None  # noqa: S101  the schema wants one of the two
    try:
        key, root = repository_key(own.path)
    except (OSError, PilotError) as error:
        raise UsageError(f"project {own.name}: {error}") from error
    return key, str(root)


@asynccontextmanager
async def open_context(loaded: Loaded) -> AsyncIterator[Context]:
    """Everything but the loop: state directory, store, projects."""
    settings = loaded.settings
    state_dir = Path(settings.state_dir)
    ensure_state_dir(state_dir)
    async with open_store(settings.store_url) as store:
        context = Context(settings, store, state_dir, hidden=_secret_files(loaded.path))
        await context.configure(settings)
        redact_by(lambda: context.redact)
        yield context


def _secret_files(config: Path | None) -> tuple[Path, ...]:
    """The configuration and the variables beside it, where they really are."""
    if config is None:
        return ()
    return tuple(path.resolve() for path in (config, config.absolute().parent / ".env") if path.exists())


def limits_of(settings: Settings) -> Limits:
    """The dispatcher's settings."""
    own = settings.dispatcher
    return Limits(
        max_running=own.max_running,
        lease=own.lease,
        drain_timeout=own.drain_timeout,
        poll_interval=own.poll_interval,
    )


async def enqueue(loaded: Loaded, request: TaskRequest, project: str | None) -> Enqueued:
    """One row into the queue of a configured project."""
    async with open_context(loaded) as context:
        row, own = await context.project(project)
        return await context.intake().submit(request, row, own)
