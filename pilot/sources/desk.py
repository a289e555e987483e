"""What every source works with: the projects, the door for tasks, and what people may do from afar."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from pilot.config.schema import ProjectSettings
from pilot.dispatch.intake import TaskRequest
from pilot.domain.execution import Enqueued
from pilot.domain.outside import Duties, Inbox, Outbox, Pulls, Refusals, SourceHealth
from pilot.domain.ports import Clock
from pilot.domain.task import Project
from pilot.store.history import History
from pilot.store.queue import SqlQueue

Served = tuple[Project, ProjectSettings]


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """One node's. `projects` is asked each time, so that a reload counts at once. `node`: this node's id.

    `submit` is `Intake.submit`; `retry` makes a new execution of an ended one (`by` whom) and gives its id.
    `redact` takes secrets out of text that goes outside.
    """

    node: str
    projects: Callable[[], Sequence[Served]]
    submit: Callable[[TaskRequest, Project, ProjectSettings], Awaitable[Enqueued]]
    retry: Callable[[int, str], Awaitable[int]]
    redact: Callable[[str], str]
    queue: SqlQueue
    history: History
    refusals: Refusals
    outbox: Outbox
    inbox: Inbox
    pulls: Pulls
    duties: Duties
    health: SourceHealth
    clock: Clock
    public_url: str | None = None
    """Where people reach this pilot's pages, without a slash at its end."""
