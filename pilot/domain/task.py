"""What is asked, and where."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Kind(StrEnum):
    """What sort of work a task is; routes and workers may choose by it."""

    BUILD = "build"
    TEST = "test"
    DEPLOY = "deploy"
    CODE = "code"
    CONTENT = "content"
    PLAN = "plan"


DEFAULT_PRIORITY = 2
DIRECT_PRIORITY = -1
"""A person waits for a direct run: it goes before the queue. `enqueue` accepts 0 and above only."""


@dataclass(frozen=True, slots=True)
class Project:
    """A repository as the store knows it; the unit of serialization.

    `key` is its identity: host and real path of git's common directory, or the normalized URL.
    `name` is its handle. `path` is where this key was last seen, for people.
    """

    id: int
    key: str
    name: str
    path: str
    max_running: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One request, before it is an execution.

    `options` are this task's own wishes over its project's settings: `branch`, `base`, `publish`,
    `timeout` (ms); besides `route`: the rule that chose the backend, and `plan_key`: under what its plan was
    submitted. `fallback`: who does it, in this order, while `backend` takes no work. `external`: left to a remote
    worker.
    `payload` is any JSON value the source wants kept. Times are UTC milliseconds.
    """

    project_id: int
    title: str
    task_id: str
    body: str = ""
    source: str = "api"
    kind: Kind = Kind.CODE
    labels: tuple[str, ...] = ()
    priority: int = DEFAULT_PRIORITY
    lane: int = 0
    after: tuple[int, ...] = ()
    payload: Any = None
    options: Mapping[str, Any] = field(default_factory=dict)
    backend: str = ""
    fallback: tuple[str, ...] = ()
    external: bool = False
    model: str | None = None
    max_attempts: int = 3
    available_at: int | None = None
    callback_url: str | None = None
    idempotency_key: str | None = None
    plan: str | None = None
    parent: int | None = None
    origin: Mapping[str, Any] | None = None
    """The ticket it came from, in its source's own words; kept, and given back with every report."""
    held: str | None = None
    """Why it is not to run before a person has answered; it begins as `needs_human` with this reason."""
    session_id: str | None = None
    """The session of `parent` to go on in, in that execution's `workspace`, told `feedback`."""
    workspace: str | None = None
    feedback: str | None = None
    dedupe: str | None = None
    """Names what it makes. Once the project has a result under this name, nobody makes it again."""
    instant: bool = False
    """Nobody has to do it: completed as soon as what it waits for is."""
    reserved_for: str | None = None
    """Node id of a direct run: nobody else may claim it, and it ends with that node."""
