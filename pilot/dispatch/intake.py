"""Intake: the one door through which a task enters: checked, routed, enqueued."""

from __future__ import annotations

import secrets
import shlex
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pilot.config.schema import ExecutorSettings, ProjectSettings, Settings
from pilot.domain.callback import check_callback
from pilot.domain.errors import UsageError
from pilot.domain.execution import Enqueued
from pilot.domain.payload import Payload, Work, allowed, is_pointer, parse_payload
from pilot.domain.pointer import MACHINE
from pilot.domain.routing import Choice, choose
from pilot.domain.task import DEFAULT_PRIORITY, Kind, Project, Task
from pilot.domain.text import one_line, slug

MAX_TITLE = 200
MAX_TASK_ID = 200
MAX_BODY = 1 << 20
MAX_DEDUPE = 200
TICKETS = ("github", "linear", "telegram", "todo_scan", "failing_ci")
"""Sources whose words come from outside."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRequest:
    """What somebody asks for, in their words. Times are UTC ms, `timeout` is ms.

    `title` defaults to the prompt's first line, `task_id` to a name made from it that is new every time.
    `backend` overrides the routes. A `prompt` or `payload` that is a pointer says what is to be done. `origin`, `held`,
    `session_id` and what follows: see `domain.task.Task`.
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
    callback_url: str | None = None
    dedupe: str | None = None
    plan: str | None = None
    plan_key: str | None = None
    """Under what its plan was submitted: kept, since a retry has no idempotency key."""
    done: bool = False
    """It has been done already: nobody does it, whatever its payload says."""


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
        """The task as it will be stored: route and model decided, defaults filled in. Raises `UsageError` in words."""
        return self.desk(project, own).task(request)

    def desk(self, project: Project, own: ProjectSettings) -> Desk:
        """Where the tasks of one project are taken in; for many at once, such as a plan's."""
        return Desk(self.settings, self.known, project, own)


class Desk:
    """Makes tasks of one project; what is the same for all of them is worked out once."""

    def __init__(
        self,
        settings: Settings,
        known: Callable[[ExecutorSettings], Collection[str]],
        project: Project,
        own: ProjectSettings,
    ) -> None:
        self._callbacks = settings.server.callbacks.allow_hosts
        self._known = known
        self._project = project
        self._own = own
        self._executor = settings.executor_for(own)
        self._routes = self._executor.domain_routes()
        self._external: dict[str, bool] = {}

    def task(self, request: TaskRequest) -> Task:
        """See `Intake.task`."""
        prompt, kept, pointer = _pointed(request)
        title, body = _title_and_body(request, prompt, pointer)
        choice = self._choice(request, title, pointer)
        if pointer is not None and pointer.work is Work.COMMAND and not request.done:
            self._check_allowed(pointer)
        options: Mapping[str, Any] = {
            "branch": request.branch,
            "base": request.base,
            "publish": request.publish,
            "timeout": request.timeout,
            "route": choice.rule,
            "plan_key": request.plan_key,
        }
        return Task(
            project_id=self._project.id,
            title=title,
            body=body,
            task_id=_task_id(request, title),
            source=request.source,
            kind=request.kind,
            labels=request.labels,
            priority=request.priority,
            lane=request.lane,
            after=request.after,
            payload=kept,
            options={key: value for key, value in options.items() if value is not None},
            backend=choice.backend,
            fallback=choice.fallback,
            external=choice.backend != MACHINE and self._is_external(choice.backend),
            model=request.model or choice.model,
            max_attempts=request.max_attempts or self._executor.max_attempts,
            available_at=request.available_at,
            callback_url=None if (url := request.callback_url) is None else check_callback(url, self._callbacks),
            idempotency_key=request.idempotency_key,
            plan=request.plan,
            dedupe=_dedupe(request, pointer),
            instant=request.done or (pointer is not None and pointer.work is Work.NOTHING),
            reserved_for=request.reserved_for,
            origin=request.origin,
            held=request.held,
            parent=request.parent,
            session_id=request.session_id,
            workspace=request.workspace,
            feedback=request.feedback,
        )

    def _choice(self, request: TaskRequest, title: str, pointer: Payload | None) -> Choice:
        """Who does it. What needs no agent pilot does itself, unless the route leaves it to workers elsewhere."""
        by_machine = pointer is not None and pointer.work.by_machine
        if request.backend is None:
            choice = choose(
                self._routes,
                self._executor.type,
                self._executor.fallback,
                project=self._project.name,
                kind=request.kind,
                labels=request.labels,
                title=title,
                source=request.source,
            )
        elif request.backend in (known := self._known(self._executor)):
            choice = Choice(request.backend, None, (), "asked for")
        else:
            raise UsageError(f"no backend {request.backend!r}; there are {', '.join(sorted(known))}")
        if not by_machine or self._is_external(choice.backend):
            return choice
        if request.backend is not None or request.model is not None:
            raise UsageError("pilot does this by itself, without an agent; leave backend and model out")
        return Choice(MACHINE, None, (), "payload")

    def _is_external(self, backend: str) -> bool:
        if backend not in self._external:
            self._external[backend] = self._executor.resolve(backend).type == "external"
        return self._external[backend]

    def _check_allowed(self, pointer: Payload) -> None:
        if not allowed(pointer.argv, self._own.allow_commands):
            patterns = self._own.allow_commands
            now = f"it allows {', '.join(map(repr, patterns))[:200]}" if patterns else "it allows none"
            raise UsageError(
                f"project {self._project.name} does not allow the command {one_line(shlex.join(pointer.argv), 100)!r}: "
                f"{now}; add a pattern for the whole command to its allow_commands in pilot.yaml"
            )


def _pointed(request: TaskRequest) -> tuple[str, Any, Payload | None]:
    """The prompt's words, the payload to keep, and what that points to.

    A prompt that is a pointer is its payload, except from where strangers write tickets: their words never name a
    program.
    """
    if is_pointer(request.payload):
        pointer = parse_payload(request.payload)
        same = request.prompt.strip() == pointer.text
        return "" if same else request.prompt, pointer.text, pointer
    if not is_pointer(request.prompt) or request.source in TICKETS or request.origin is not None:
        return request.prompt, request.payload, None
    pointer = parse_payload(request.prompt)
    if request.payload is not None:
        raise UsageError(f"the task is a payload itself ({one_line(pointer.text, 60)}), and can't have another one")
    return "", pointer.text, pointer


def _dedupe(request: TaskRequest, pointer: Payload | None) -> str | None:
    if request.done:
        return None  # what it made is not here to be pointed to
    if request.dedupe is None:
        return None if pointer is None else pointer.dedupe
    if not request.dedupe.strip() or len(request.dedupe) > MAX_DEDUPE or not request.dedupe.isprintable():
        raise UsageError(f"dedupe is 1 to {MAX_DEDUPE} printable characters, not {one_line(request.dedupe, 60)!r}")
    return request.dedupe


def _title_and_body(request: TaskRequest, prompt: str, pointer: Payload | None) -> tuple[str, str]:
    prompt = prompt.strip()
    words = "" if pointer is None else pointer.words
    title = one_line(request.title or (prompt or words).partition("\n")[0], MAX_TITLE)
    if pointer is not None:
        title = title or one_line(pointer.text, MAX_TITLE)
        prompt = "\n\n".join(filter(None, ["" if prompt == title else prompt, words]))
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
