"""The life of one task from queued to its end: states, edges, and the row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from pilot.domain.errors import IllegalTransition


class Status(StrEnum):
    """Where an execution stands."""

    BLOCKED = "blocked"  #: waits for other executions
    QUEUED = "queued"  #: may run once `available_at` is past and a slot is free
    RUNNING = "running"  #: leased by a node
    NEEDS_HUMAN = "needs_human"  #: held for a person; always with a question or a reason
    COMPLETED = "completed"  #: final
    FAILED = "failed"  #: final
    CANCELLED = "cancelled"  #: final

    @property
    def final(self) -> bool:
        """Nothing ever leaves a final state."""
        return self in FINAL


FINAL = frozenset({Status.COMPLETED, Status.FAILED, Status.CANCELLED})
OPEN = frozenset(Status) - FINAL

TRANSITIONS: Mapping[Status, frozenset[Status]] = {
    # a dependency ended (queued, or cancelled with it), or a person cancelled
    Status.BLOCKED: frozenset({Status.QUEUED, Status.CANCELLED}),
    # claimed, or cancelled; completed when nobody has to do it: a note, or its result is there already
    Status.QUEUED: frozenset({Status.RUNNING, Status.COMPLETED, Status.CANCELLED}),
    # every end of an attempt; queued again after a retry, a shutdown or a lost node
    Status.RUNNING: frozenset({Status.QUEUED, Status.NEEDS_HUMAN, Status.COMPLETED, Status.FAILED, Status.CANCELLED}),
    # answered, or given up
    Status.NEEDS_HUMAN: frozenset({Status.QUEUED, Status.FAILED, Status.CANCELLED}),
    Status.COMPLETED: frozenset(),
    Status.FAILED: frozenset(),
    Status.CANCELLED: frozenset(),
}


def check_transition(before: Status, after: Status) -> None:
    """Raise `IllegalTransition` unless the table has this edge."""
    if after not in TRANSITIONS[before]:
        raise IllegalTransition(f"an execution that is {before} can't become {after}")


class Delivery(StrEnum):
    """How far the result has come, apart from how the execution ended."""

    NONE = "none"
    BRANCH = "branch"
    PR_OPEN = "pr_open"
    MERGED = "merged"
    CLOSED = "closed"


class Checks(StrEnum):
    """What CI says about the delivered change."""

    NONE = "none"
    PENDING = "pending"
    PASSED = "passed"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """One row of `executions`. Times are UTC milliseconds; unknown is None."""

    id: int
    project_id: int
    project: str
    project_path: str
    task_id: str
    title: str
    body: str
    source: str
    kind: str
    labels: tuple[str, ...]
    priority: int
    lane: int
    status: Status
    reason: str | None
    available_at: int
    deps_left: int
    slot: int | None
    node: str | None
    fence: int
    lease_until: int | None
    cancel_requested: bool
    reserved_for: str | None
    attempt: int
    failures: int
    losses: int
    streak: int
    mark: str | None
    max_attempts: int
    failure_class: str | None
    error: str | None
    outcome: str | None
    backend: str
    fallback: tuple[str, ...] = ()
    external: bool = False
    dedupe: str | None = None
    instant: bool = False
    model: str | None
    session_id: str | None
    feedback: str | None
    workspace: str | None
    place: str | None = None
    branch: str | None
    base_sha: str | None
    head_sha: str | None
    delivery: str
    pr_url: str | None
    checks: str
    input_tokens: int | None
    output_tokens: int | None
    cost_usd: float | None
    forgiven_usd: float = 0.0
    payload: Any
    origin: Mapping[str, Any] | None = None
    options: Mapping[str, Any]
    plan: str | None
    artifacts: Any
    callback_url: str | None
    parent: int | None
    idempotency_key: str | None
    input_hash: str | None
    created_at: int
    started_at: int | None
    finished_at: int | None


@dataclass(frozen=True, slots=True)
class Enqueued:
    """The answer to an enqueue: the new execution, or the one that already stands for it."""

    id: int
    status: Status
    duplicate: bool
