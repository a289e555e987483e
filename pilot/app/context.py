"""From settings to objects: store, projects, agents, runner, dispatcher."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Collection, Hashable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from pilot.app.machine import Machine, identity_of, secret_files
from pilot.app.node import alive, new_node, place_of
from pilot.backends import build, known_backends
from pilot.config.load import Loaded
from pilot.config.locate import ensure_state_dir
from pilot.config.schema import ExecutorSettings, ProjectSettings, Settings
from pilot.config.secrets import secrets_of
from pilot.config.uses import uses, what_is_set
from pilot.dispatch.dispatcher import Dispatcher, Limits
from pilot.dispatch.intake import Intake, TaskRequest
from pilot.domain.errors import NotFound, PilotError, UsageError
from pilot.domain.execution import Enqueued, Execution
from pilot.domain.outcome import Publication
from pilot.domain.ports import Accounts, Journal, Node, NodeKind
from pilot.domain.redact import Redactor
from pilot.domain.task import Project
from pilot.runner.git import Git
from pilot.runner.git_login import Login
from pilot.runner.identity import find_repository, repository_key
from pilot.runner.process import end_marked
from pilot.runner.publication import publication_of
from pilot.runner.runner import AttemptRunner
from pilot.runner.workspace import Workspaces
from pilot.store import Store, open_store
from pilot.telemetry.logs import redact_by

HURRY = 2.0
"""Seconds between the steps in which a second signal ends what runs: asked, ended without grace, left as it is."""


@dataclass(slots=True, kw_only=True)
class Context(Machine):
    """One process's view: its settings, its store, and the projects it can reach."""

    store: Store
    stored: dict[int, Project] = field(default_factory=dict)

    async def configure(self, settings: Settings) -> None:
        """Serve the projects of these settings from now on."""
        entries = [(identity_of(own), own) for own in settings.projects]
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

    def node(self, kind: NodeKind, max_running: int) -> Node:
        """This process as one that claims. Raises `StoreError`."""
        return new_node(kind, max_running, place_of(self.state_dir))

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
            made=self.store.history.made,
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
            alive=partial(alive, local=self.settings.store_url.startswith("sqlite:")),
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


@asynccontextmanager
async def open_context(loaded: Loaded) -> AsyncIterator[Context]:
    """Everything but the loop: state directory, store, projects."""
    settings = loaded.settings
    state_dir = Path(settings.state_dir)
    ensure_state_dir(state_dir)
    async with open_store(settings.store_url) as store:
        context = Context(settings=settings, store=store, state_dir=state_dir, hidden=secret_files(loaded.path))
        await context.configure(settings)
        redact_by(lambda: context.redact)
        yield context


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
