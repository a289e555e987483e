"""Intake: the one door through which a task enters: checked, routed, enqueued."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pilot.config.schema import ExecutorSettings, ProjectSettings, Settings
from pilot.domain.errors import UsageError
from pilot.domain.execution import Enqueued
from pilot.domain.routing import Choice, choose
from pilot.domain.task import DEFAULT_PRIORITY, Kind, Project, Task
from pilot.domain.text import one_line, slug

MAX_TITLE = 200
MAX_TASK_ID = 200
MAX_BODY = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRequest:
    """What somebody asks for, in their words. Times are UTC ms, `timeout` is ms.

    `title` defaults to the prompt's first line, `task_id` to a name made from it that is new every time.
    `backend` overrides the routes. `origin`, `held`, `session_id` and what follows: see `domain.task.Task`.
    """

    prompt: str
    title: str | None = None
    task_id: str | None = None
    source: str = "api"
    kind: Kind = Kind.CODE
    labels: tuple[str, ...] = ()
    priority: int = DEFAULT_PRIORITY
    lane: int = 0
    after: tuple[int, ...] = ()
    payload: Any = None
    backend: str | None = None
    model: str | None = None
    branch: str | None = None
    base: str | None = None
    publish: str | None = None
    timeout: int | None = None
    max_attempts: int | None = None
    available_at: int | None = None
    idempotency_key: str | None = None
    reserved_for: str | None = None
    origin: Mapping[str, Any] | None = None
    held: str | None = None
    parent: int | None = None
    session_id: str | None = None
    workspace: str | None = None
    feedback: str | None = None


class EnqueueQueue(Protocol):
    """The part of the queue that takes tasks in."""

    async def enqueue(self, task: Task) -> Enqueued:
        """See `ports.Queue.enqueue`."""
        ...


@dataclass(slots=True)
class Intake:
    """Turns requests into executions, by the settings of their project."""

    settings: Settings
    queue: EnqueueQueue
    known: Callable[[ExecutorSettings], Collection[str]]
    """Names of backends that can be built; those that stand in the configuration are checked with it."""

    async def submit(self, request: TaskRequest, project: Project, own: ProjectSettings) -> Enqueued:
        """Enqueue, or say what stands for it. Raises `UsageError` in words."""
        return await self.queue.enqueue(self.task(request, project, own))

    def task(self, request: TaskRequest, project: Project, own: ProjectSettings) -> Task:
        """The task as it will be stored: route and model decided, defaults filled in."""
        title, body = _title_and_body(request)
        executor = self.settings.executor_for(own)
        choice = choose(
            executor.domain_routes(),
            executor.type,
            executor.fallback,
            project=project.name,
            kind=request.kind,
            labels=request.labels,
            title=title,
            source=request.source,
        )
        if request.backend is not None:
            if request.backend not in (known := self.known(executor)):
                raise UsageError(f"no backend {request.backend!r}; there are {', '.join(sorted(known))}")
            choice = Choice(request.backend, None, (), "asked for")
        options: Mapping[str, Any] = {
            "branch": request.branch,
            "base": request.base,
            "publish": request.publish,
            "timeout": request.timeout,
            "route": choice.rule,
        }
        return Task(
            project_id=project.id,
            title=title,
            body=body,
            task_id=_task_id(request, title),
            source=request.source,
            kind=request.kind,
            labels=request.labels,
            priority=request.priority,
            lane=request.lane,
            after=request.after,
            payload=request.payload,
            options={key: value for key, value in options.items() if value is not None},
            backend=choice.backend,
            fallback=choice.fallback,
            external=executor.resolve(choice.backend).type == "external",
            model=request.model or choice.model,
            max_attempts=request.max_attempts or executor.max_attempts,
            available_at=request.available_at,
            idempotency_key=request.idempotency_key,
            reserved_for=request.reserved_for,
            origin=request.origin,
            held=request.held,
            parent=request.parent,
            session_id=request.session_id,
            workspace=request.workspace,
            feedback=request.feedback,
        )


def _title_and_body(request: TaskRequest) -> tuple[str, str]:
    prompt = request.prompt.strip()
    title = one_line(request.title or prompt.partition("\n")[0], MAX_TITLE)
    if not title:
        raise UsageError("a task needs words: its prompt is empty")
    if len(prompt.encode(errors="replace")) > MAX_BODY:
        raise UsageError("a prompt may have 1 MiB at most; put the rest into a file of the repository")
    return title, "" if prompt == title else prompt


def _task_id(request: TaskRequest, title: str) -> str:
    if request.task_id is None:
        return f"{slug(title, 40)}-{secrets.token_hex(3)}"
    task_id = request.task_id.strip()
    if not task_id or len(task_id) > MAX_TASK_ID or not task_id.isprintable():
        raise UsageError(f"a task id is 1 to {MAX_TASK_ID} printable characters, not {one_line(request.task_id)!r}")
    return task_id


def project_path(path: str | Path) -> str:
    """A path as people type it, made absolute."""
    return str(Path(path).expanduser().absolute())
