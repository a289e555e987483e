"""Every fact that the event log can hold. One row each, written with the change it tells of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class EventType(StrEnum):
    """Past tense; `data` is what the comment names."""

    QUEUED = "execution.queued"  #: status, source, backend
    STARTED = "execution.started"  #: attempt, fence, node, slot
    RETRIED = "execution.requeued"  #: reason, failure_class, available_at, counted
    UNBLOCKED = "execution.unblocked"  #: by
    ASKED = "execution.asked"  #: reason, question
    ANSWERED = "execution.answered"  #: by
    CANCEL_ASKED = "execution.cancel_requested"  #: by
    COMPLETED = "execution.completed"  #: outcome, branch; reason, where nobody had to do it
    FAILED = "execution.failed"  #: reason, failure_class
    CANCELLED = "execution.cancelled"  #: reason
    REROUTED = "execution.rerouted"  #: from, to, reason: another backend does it, for its own is parked
    LOST = "execution.lost"  #: node, why: its lease ended or its process died
    PARKED = "backend.parked"  #: backend, account, until, reason
    HALF_OPENED = "backend.half_opened"  #: backend, account, by: one may try it
    PROBED = "backend.probed"  #: backend, account: this execution tries it
    UNPARKED = "backend.unparked"  #: backend, account, by: it takes work again
    PAUSED = "project.paused"  #: owner, reason (project None: all)
    RESUMED = "project.resumed"  #: owner
    NODE_STARTED = "node.started"  #: node, kind, version
    NODE_STOPPED = "node.stopped"  #: node, reason
    REFUSED = "trigger.refused"  #: source, actor, reason, task_id, key, url
    PULL_OPENED = "pull.opened"  #: number, url
    PULL_CHECKS = "pull.checks"  #: checks, red
    PULL_MERGED = "pull.merged"  #: number, url
    PULL_CLOSED = "pull.closed"  #: number, url
    PULL_REPAIRED = "pull.repair_queued"  #: number, execution, why
    PULL_GIVEN_UP = "pull.repairs_used_up"  #: number, repairs, why: a person has to look
    DELIVERY_FAILED = "delivery.failed"  #: kind, reason


@dataclass(frozen=True, slots=True)
class Event:
    """One row of the event log. `id` ascends over the whole store; `at` is UTC ms."""

    id: int
    at: int
    type: str
    execution_id: int | None
    project_id: int | None
    data: Mapping[str, Any]
